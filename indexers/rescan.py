"""The sources of `mmsearch index` without PATH: every root that the index has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.indexers.manifests import Columns
from mmsearch.indexers.paths import Source, open_manifest, open_sources
from mmsearch.indexers.roots import Roots
from mmsearch.indexers.sources import FileSource
from mmsearch.retrieval.errors import MMSearchError
from mmsearch.retrieval.types import Failure, ItemRef, Root, RootInfo
from mmsearch.retrieval.uris import uri_to_path

if TYPE_CHECKING:
    from mmsearch.retrieval.store.local import LocalStore


class AbsentRoot:
    """A root that is not there now, or cannot be read.

    One that is absent scans empty, so the pipeline keeps its items unless told to prune. One with an `error` is not
    scanned at all.
    """

    few = False

    def __init__(self, root: Root, error: str | None = None) -> None:
        self.root = root
        self.complete = error is None
        self.skipped: Mapping[str, int] = {}
        self.errors = [Failure(str(root.path), error)] if error is not None else []
        self.mounts: set[str] = set()

    def followers(self) -> list[Source]:
        """Sources that are to be scanned after this one: none."""
        return []

    def scan(self) -> Iterator[ItemRef]:
        """Finds nothing."""
        return iter(())

    def scope(self, uri: str) -> bool:
        """Everything under the root is absent."""
        return True


def rescan_sources(
    store: LocalStore, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Source | AbsentRoot]:
    """One source for each root of an index.

    Roots of which only single files were ever named give those files, not their whole folder. Rows that a program
    gave have nothing that could be scanned.
    """
    roots = [root for root in store.info().roots if root.kind != "rows"]
    folders = [root for root in roots if root.kind == "folder"]
    whole = [root.path for root in folders if root.whole]
    partial = [root.path for root in folders if not root.whole]
    sources: list[Source | AbsentRoot] = []
    for root in folders:
        path = Path(root.path)
        if not root.present:
            sources.append(AbsentRoot(Root(path, -1)))
        elif not root.whole:
            here = Root(path, path.stat().st_dev)
            named = [uri_to_path(uri) for uri in store.named(path)]
            if named:
                sources.append(FileSource(here, named))
    present = [path for path in whole if Path(path).is_dir()]
    sources.extend(open_sources(present, include, exclude, index_path=store.path, known_roots=whole))
    sources.extend(_manifest(root, Roots(whole, partial)) for root in roots if root.kind == "manifest")
    return sources


def _manifest(root: RootInfo, roots: Roots) -> Source | AbsentRoot:
    gone = Root(Path(root.path), -1, "manifest", root.columns)
    if not root.present:
        return AbsentRoot(gone)
    try:
        return open_manifest(root.path, Columns.from_json(root.columns), roots)
    except MMSearchError as error:
        return AbsentRoot(gone, str(error))
