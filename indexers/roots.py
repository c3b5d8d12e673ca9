"""Which root a path belongs to: every file is found under one root, however it was named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmsearch.indexers.patterns import Filter
from mmsearch.retrieval.types import Root


class Roots:
    """The roots of an index, those of the current call included, by real path."""

    def __init__(self, known: Iterable[str | Path], partial: Iterable[str | Path]) -> None:
        self._real: dict[str, str] = {}
        self._known = {self.real(os.fspath(root)): os.fspath(root) for root in known}
        self._partial = {self.real(os.fspath(root)): os.fspath(root) for root in partial}

    def real(self, folder: str) -> str:
        """A folder with all links followed."""
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        return self._real[folder]

    def of(self, folder: str, *, whole: bool) -> tuple[str, str]:
        """The deepest root that holds `folder` (a new one if none does) and the path from there to it.

        A folder that is scanned whole does not go under a partial root: later runs look at files there only.
        """
        real = self.real(folder)
        above = [root for root in (self._known if whole else {**self._partial, **self._known}) if is_inside(real, root)]
        if not above:
            self._known[real] = folder
            return folder, ""
        root = max(above, key=len)
        return self.path(root), relative_to(real, root)

    def adopt(self, folders: Iterable[str]) -> None:
        """Makes a root for folders that are under none: the deepest that holds them all, but not the whole disk."""
        every = {**self._partial, **self._known}
        homeless = [
            folder for folder in sorted(folders) if not any(is_inside(self.real(folder), root) for root in every)
        ]
        by_top: dict[str, list[str]] = {}
        for folder in homeless:
            by_top.setdefault(os.sep.join(folder.split(os.sep)[:2]), []).append(folder)
        common = os.path.commonpath(homeless) if homeless else ""
        for group in [homeless] if common not in ("", os.path.dirname(common)) else by_top.values():
            self.of(os.path.commonpath(group), whole=False)

    def path(self, real: str) -> str:
        """A root as the index knows it, by its real path."""
        return self._known[real] if real in self._known else self._partial[real]

    def inside(self, folder: str, wanted: Filter) -> dict[str, str]:
        """Roots strictly below `folder` that a scan would come by, with their path from it."""
        found: dict[str, str] = {}
        for root in sorted({*self._known, *self._partial}):
            path = relative_to(root, folder) if is_inside(root, folder) else ""
            parts = path.split("/")
            steps = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
            if path and not is_hidden(path) and all(map(wanted.enters, steps)) and os.path.isdir(root):
                found[root] = path
        return found


def stat_root(path: str) -> Root:
    """A folder that is there as a root."""
    return Root(Path(path), os.stat(path).st_dev)


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is a folder or somewhere in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def relative_to(path: str, folder: str) -> str:
    """The `/`-separated path from a folder to what is inside it."""
    return path[len(folder.rstrip(os.sep)) + 1 :].replace(os.sep, "/")


def is_covered(real: str, whole: Sequence[str]) -> bool:
    """Whether the scan of a whole folder comes by `real`. It does not enter hidden folders."""
    return any(is_inside(real, above) and not is_hidden(relative_to(real, above)) for above in whole)


def is_hidden(path: str) -> bool:
    """Whether a scan passes over a relative path."""
    return path.startswith(".") or "/." in path
