"""Taking files, folders, manifests and rows out of an index, and back in. No file on disk is touched.

What was taken out stays out: later scans of its root pass over it, until it is named itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.indexers.roots import is_inside, relative_to
from mmsearch.indexers.rows import id_key
from mmsearch.retrieval.errors import PathNotFound, UsageError
from mmsearch.retrieval.store.diff import is_below
from mmsearch.retrieval.store.layout import ROWS
from mmsearch.retrieval.uris import absolute_path, path_to_uri

if TYPE_CHECKING:
    from mmsearch.retrieval.store import LocalStore
    from mmsearch.retrieval.store.reader import StoredRoot


def remove(store: LocalStore, paths: Sequence[str | Path], ids: Sequence[str | int] = ()) -> int:
    """Takes files, whole folders, manifests and rows out of an index; returns how many files and rows they were.

    Args:
        store: an existing index.
        paths: need not exist on disk any more. A root, and roots below a path, are forgotten; anything else under a
            root is passed over by later scans until it is named itself.
        ids: of rows that a program gave.

    Raises:
        UsageError: a path or an id is empty.
        PathNotFound: the index knows nothing at a path, and there is nothing on disk either; nothing was removed.
        IndexLocked: somebody else is writing.
    """
    keys = [id_key(id_) for id_ in ids]
    roots = _roots(store)
    removed = 0
    with store.writer() as writer:
        for path in paths:
            place = _real(path)
            found = 0
            known = os.path.lexists(place)
            for root in roots:
                if is_inside(os.path.realpath(root.path), place):
                    found += writer.forget_root(root.path)
                    known = True
            gone = [root for root in roots if is_inside(os.path.realpath(root.path), place)]
            roots = [root for root in roots if root not in gone]
            for root, uri in _uris(roots, place):
                found += writer.take_out(root.path, uri)
            if not found and not known:
                raise PathNotFound(f"there is nothing in the index, or on disk, at {path}")
            removed += found
        if keys and any(root.kind == "rows" for root in _roots(store)):
            removed += writer.remove_rows(ROWS, keys)
        writer.commit()
        writer.merge()
    return removed


def taken_back(store: LocalStore, paths: Sequence[str | Path]) -> list[tuple[str, str]]:
    """Which of some paths had been taken out, as (root, uri): naming them takes them back in.

    Raises:
        UsageError: a path is inside a folder that was taken out.
    """
    back = []
    with store.snapshot() as snapshot:
        removed = {root.root_id: snapshot.removed(root.root_id) for root in snapshot.roots()}
        roots = [root for root in snapshot.roots() if removed[root.root_id]]
        places = [(path, root, uri) for path in paths for root, uri in _uris(roots, _real(path))]
        named = {(root.root_id, uri) for _, root, uri in places}
        for path, root, uri in places:
            for out in removed[root.root_id]:
                if out == uri:
                    back.append((root.path, uri))
                elif is_below(uri, (out,)) and (root.root_id, out) not in named:
                    raise UsageError(
                        f"{path} is in {absolute_path(root.path, out)}, which was taken out of the index; "
                        "name that folder to take it back"
                    )
    return back


def _roots(store: LocalStore) -> list[StoredRoot]:
    with store.snapshot() as snapshot:
        return snapshot.roots()


def _uris(roots: Sequence[StoredRoot], place: str) -> Iterator[tuple[StoredRoot, str]]:
    """Where a path is under each folder that holds it."""
    for root in roots:
        above = os.path.realpath(root.path)
        if root.kind == "folder" and place != above and is_inside(place, above):
            yield root, path_to_uri(relative_to(place, above))


def _real(path: str | Path) -> str:
    """The path with links in its folders followed: a link itself may be what is meant."""
    absolute = os.path.abspath(os.path.expanduser(path))
    if not os.fspath(path):
        raise UsageError("a PATH is empty")
    folder, name = os.path.split(absolute)
    return os.path.join(os.path.realpath(folder), name)
