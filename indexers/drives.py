"""Drives that are not mounted now: what an index has of them stays there."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.indexers.roots import is_inside, relative_to
from mmsearch.indexers.rowsources import RowRef
from mmsearch.retrieval.store.diff import is_below
from mmsearch.retrieval.types import ItemRef, Root
from mmsearch.retrieval.uris import absolute_path, path_to_uri

if TYPE_CHECKING:
    from mmsearch.retrieval.store import LocalStore
    from mmsearch.retrieval.store.reader import StoredRoot


class Drives:
    """The folders of an index, as it knew them when this was first asked."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._roots: list[StoredRoot] | None = None

    def keep(self, ref: ItemRef) -> ItemRef:
        """A ref as it should be compared: a row whose picture may still be somewhere stays with it."""
        if not isinstance(ref, RowRef) or ref.unseen is None:
            return ref
        place = self._lost(ref.unseen)
        return ref if place is None else replace(ref, owner_root=place[0], owner=place[1])

    def _lost(self, path: str) -> tuple[str, str] | None:
        """The root and the uri of a file that cannot be seen, unless it is plainly gone."""
        if self._roots is None:
            with self._store.snapshot() as snapshot:
                self._roots = [root for root in snapshot.roots() if root.kind == "folder"]
        folder, name = os.path.split(path)
        real = os.path.join(os.path.realpath(folder), name)
        above = [(os.path.realpath(root.path), root) for root in self._roots]
        place, root = max(
            ((place, root) for place, root in above if is_inside(real, place)),
            key=lambda pair: len(pair[0]),
            default=("", None),
        )
        if root is None:
            return None
        uri = path_to_uri(relative_to(real, place))
        known = Root(Path(root.path), root.device)
        away = not _is_gone(path) or looks_unmounted(known) or bool(on_lost_drives(known, root.mounts, {uri}))
        return (root.path, uri) if away else None


def _is_gone(path: str) -> bool:
    """Whether it can be seen that a file is not there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def looks_unmounted(root: Root) -> bool:
    """Whether a folder is not there, is empty, or is another one than it was."""
    try:
        return os.stat(root.path).st_dev != root.device or all(name.startswith(".") for name in os.listdir(root.path))
    except OSError:
        return True


def on_lost_drives(root: Root, mounts: Sequence[str], missing: Collection[str]) -> set[str]:
    """Missing files under folders of the root that were on other drives and are not now."""
    lost = [uri for uri in mounts if not _is_foreign(root, uri)]
    return {uri for uri in missing if is_below(uri, lost)} if lost else set()


def _is_foreign(root: Root, uri: str) -> bool:
    try:
        return os.stat(absolute_path(str(root.path), uri)).st_dev != root.device
    except OSError:
        return False
