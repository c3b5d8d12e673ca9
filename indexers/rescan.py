"""The sources of `mmsearch index` without PATH: every root that the index has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.indexers.sources import FileSource, Source, open_sources
from mmsearch.retrieval.types import Failure, ItemRef, Root
from mmsearch.retrieval.uris import uri_to_path

if TYPE_CHECKING:
    from mmsearch.retrieval.store.local import LocalStore


class AbsentRoot:
    """A root that is not there now: it scans empty, so the pipeline keeps its items unless told to prune."""

    complete = True

    def __init__(self, root: Root) -> None:
        self.root = root
        self.skipped: Mapping[str, int] = {}
        self.errors: list[Failure] = []

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

    Roots of which only single files were ever named give those files, not their whole folder.
    """
    roots = store.info().roots
    sources: list[Source | AbsentRoot] = []
    whole = [root.path for root in roots if root.whole]
    for root in roots:
        path = Path(root.path)
        if not root.present:
            sources.append(AbsentRoot(Root(path, -1)))
        elif not root.whole:
            here = Root(path, path.stat().st_dev)
            known = store.diff(here, ()).missing
            sources.append(FileSource(here, [uri_to_path(uri) for uri in known]))
    present = [path for path in whole if Path(path).is_dir()]
    sources.extend(open_sources(present, include, exclude, index_path=store.path, known_roots=whole))
    return sources
