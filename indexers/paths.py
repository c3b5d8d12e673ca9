"""From what a user names (folders, globs, manifests, single files) to sources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmsearch.indexers.manifests import Columns, Manifest, is_manifest
from mmsearch.indexers.patterns import Filter, is_glob
from mmsearch.indexers.roots import Roots, is_covered, is_inside, stat_root
from mmsearch.indexers.rowsources import ManifestSource, RowsSource
from mmsearch.indexers.sources import FileSource, FolderSource
from mmsearch.retrieval.errors import MMSearchError, PathNotFound, UsageError
from mmsearch.retrieval.types import Failure, Root

Source = FolderSource | FileSource | ManifestSource | RowsSource
"""What the pipeline takes: `root`, `scan()`, `scope(uri)`, `followers()`, and what the last scan met."""


def open_sources(
    paths: Sequence[str | Path],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    index_path: str | Path | None = None,
    known_roots: Iterable[str | Path] = (),
    partial_roots: Iterable[str | Path] = (),
    columns: Columns | None = None,
    unusable: list[Failure] | None = None,
) -> list[Source]:
    """One source for each folder, glob or manifest, and one for the single files of each root.

    No file is found twice: a PATH inside a known root (or inside another PATH) is scanned under that root; a known
    root inside a PATH is left out there and scanned as a source of its own. The root of single files is the folder
    that holds them all.

    Args:
        paths: folders, files, globs; relative ones from the current folder. An existing name is never a glob.
        include: patterns that files must match, see `patterns.Filter`; not for single files.
        exclude: patterns of files and folders to leave out; not for single files.
        index_path: the index folder, which is not scanned.
        known_roots: absolute paths of the roots that the index has already.
        partial_roots: the same of roots of which only single files or globs were named. Nothing but those is put
            under them, until a PATH is that folder or one above it.
        columns: which columns of manifests are meant, where their names do not say it.
        unusable: of a long list: gets the paths that would raise, and the rest goes on without them.

    Raises:
        PathNotFound: there is no such file or folder.
        UsageError: the path is empty, or neither a file nor a folder; a manifest has no column that can be used.
        MediaError: a manifest cannot be read at all.
    """
    roots = Roots(known_roots, partial_roots)
    folders, files = _sorted_out(paths, unusable)
    index = [] if index_path is None else [os.path.abspath(index_path)]
    sources: list[Source] = []
    whole: list[str] = []  # real paths of folders that are scanned whole
    for path, glob in folders:
        real = os.path.realpath(path)
        if is_covered(real, whole):
            continue
        if not glob:
            whole.append(real)
        root, start = roots.of(path, whole=not glob)
        wanted = Filter.of(include, exclude, glob)
        nested = roots.inside(real, wanted)
        sources.append(FolderSource(stat_root(root), start, filter=wanted, avoid=[*index, *nested]))
        for inner, within in nested.items():
            deeper = [other for other in nested if other != inner and is_inside(other, inner)]
            sources.append(
                FolderSource(stat_root(roots.path(inner)), filter=wanted, within=within, avoid=[*index, *deeper])
            )
    named: dict[str, list[str]] = {}
    manifests = dict.fromkeys(path for path in files if is_manifest(path))
    files = [path for path in files if not is_manifest(path)]
    roots.adopt({os.path.dirname(path) for path in files})
    for path in files:
        folder, name = os.path.split(path)
        if name.startswith(".") or not is_covered(roots.real(folder), whole):
            root, start = roots.of(folder, whole=False)
            named.setdefault(root, []).append(f"{start}/{name}" if start else name)
    sources.extend(FileSource(stat_root(root), inner) for root, inner in named.items())
    for path in manifests:
        with _noted(path, unusable):
            sources.append(open_manifest(path, columns or Columns(), roots))
    for position, source in enumerate(sources):
        source.rivals = [other for other in sources[:position] if other.root.path == source.root.path]
    return sources


def open_manifest(path: str, columns: Columns, roots: Roots) -> ManifestSource:
    """The source of a manifest; errors as `open_sources`."""
    try:
        manifest = Manifest(Path(path), columns)
    except OSError as error:
        raise UsageError(f"cannot be read: {path} ({error.strerror})") from None
    root = Root(Path(path), os.stat(path).st_dev, "manifest", columns.to_json())
    return ManifestSource(root, manifest, roots)


@contextmanager
def _noted(path: str, unusable: list[Failure] | None) -> Iterator[None]:
    """Notes an error about a path, if there is where to, instead of raising it."""
    try:
        yield
    except MMSearchError as error:
        if unusable is None:
            raise
        unusable.append(
            Failure(path, "does not exist" if isinstance(error, PathNotFound) else str(error).removesuffix(f": {path}"))
        )


def _sorted_out(paths: Sequence[str | Path], unusable: list[Failure] | None) -> tuple[list[tuple[str, str]], list[str]]:
    """Folders (with a glob or without), those that may hold others first, and single files."""
    folders: set[tuple[str, str]] = set()
    files: list[str] = []
    for given in paths:
        with _noted(os.fspath(given), unusable):
            path, glob = _resolved(os.fspath(given))
            if os.path.isdir(path):
                folders.add((path, glob))
            elif os.path.isfile(path):
                files.append(path)
            else:
                raise UsageError(f"neither a file nor a folder: {given}")
    return sorted(folders, key=lambda folder: (folder[1] != "", len(folder[0]), folder)), files


def _resolved(given: str) -> tuple[str, str]:
    """An absolute existing path, and the glob that is to be matched below it (or an empty one)."""
    if not given:  # an unset variable must not mean the current folder
        raise UsageError("a PATH is empty; name a folder, a file or a glob (`.` is the current folder)")
    path = os.path.abspath(os.path.expanduser(given))
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        parts = path.split(os.sep)
        fixed = next((at for at, part in enumerate(parts) if is_glob(part)), 0)
        folder = os.sep.join(parts[:fixed]) or os.sep
        if not fixed or not os.path.isdir(folder):
            raise PathNotFound(f"no such file or folder: {given}") from None
        return folder, "/".join(parts[fixed:])
    except OSError as error:
        raise UsageError(f"cannot be read: {given} ({error.strerror})") from None
    return path, ""
