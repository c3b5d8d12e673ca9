"""Where items come from: folders, globs and single files, scanned without opening a file.

A scan costs one directory listing per folder and one `stat` per file. Hidden names (also AppleDouble `._x.jpg`)
and the index itself are passed over, links are followed once, and the order is the same each time: in a folder
its files by name, then its folders by name; linked folders come last, so that a folder's real path wins.

What a scan could not see is not gone: `scope` tells for which known uris the absence from a completed scan means
that the file was removed.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mmsearch.indexers.patterns import Filter, is_glob
from mmsearch.retrieval.errors import PathNotFound, UsageError
from mmsearch.retrieval.media import IMAGE_EXTENSIONS, TEXT_EXTENSIONS
from mmsearch.retrieval.types import Failure, ItemRef, Modality, Root, Stamp
from mmsearch.retrieval.uris import path_to_uri, uri_to_path

_log = logging.getLogger(__name__)

_SIDECAR_EXTENSION = ".txt"


class _Scan:
    """What all sources have in common.

    Attributes:
        root: what the uris are relative to.
        skipped: files of unknown kinds by extension, of the last scan.
        errors: folders and files that could not be read, of the last scan.
        incomplete_prefixes: uris (of folders and files) that the last scan could not look into.
        complete: True once a scan has run to its end and its root was still there then.
        rivals: sources of the same root that are scanned before; what they find is theirs.
    """

    def __init__(self, root: Root) -> None:
        self.root = root
        self.skipped: Mapping[str, int] = {}
        self.errors: list[Failure] = []
        self.incomplete_prefixes: list[str] = []
        self.complete = False
        self.rivals: list[_Scan] = []
        self._given: set[str] = set()
        self._kinds: dict[str, Modality] = dict.fromkeys(IMAGE_EXTENSIONS, "image")
        self._kinds.update(dict.fromkeys(TEXT_EXTENSIONS, "text"))

    def _begin(self) -> Counter[str]:
        self.complete = False
        self.errors = []
        self.incomplete_prefixes = []
        self._given = set()
        self.skipped = skipped = Counter[str]()
        return skipped

    def _end(self) -> None:
        """A drive that vanished during the scan must not make its files look removed."""
        try:
            self.complete = os.stat(self.root.path).st_dev == self.root.device
        except OSError:
            self.complete = False
        if not self.complete:
            self.errors.append(Failure(str(self.root.path), "the folder went away while it was scanned"))
            self.incomplete_prefixes.append("")

    def _failed(self, path: str, uri: str, error: OSError) -> None:
        _log.debug("cannot read %s: %s", path, error)
        self.errors.append(Failure(path, f"cannot be read: {error.strerror or error}"))
        self.incomplete_prefixes.append(uri)

    def _take(self, uri: str) -> bool:
        if self.rivals and any(uri in rival._given for rival in self.rivals):
            return False
        self._given.add(uri)
        return True

    def _saw(self, uri: str) -> bool:
        """False where the last scan could not look, or another source has found the file."""
        if any(uri in rival._given for rival in self.rivals):
            return False
        return not any(
            not prefix or uri == prefix or uri.startswith(prefix + "/") for prefix in self.incomplete_prefixes
        )


class FolderSource(_Scan):
    """A folder with everything in it, or what a filter takes of it.

    Args:
        root: what uris are relative to.
        start: path of the scanned folder relative to the root, `/`-separated; empty for the root itself.
        filter: what is wanted; its patterns see paths relative to `start`.
        within: put before those paths, where the scan is a part of a larger one.
        avoid: folders that are not entered (the index, roots of their own).
    """

    def __init__(
        self,
        root: Root,
        start: str = "",
        *,
        filter: Filter | None = None,
        within: str = "",
        avoid: Iterable[str | Path] = (),
    ) -> None:
        super().__init__(root)
        self.start = start
        self.filter = filter or Filter()
        self.within = f"{within}/" if within else ""
        self._avoid = [os.fspath(path) for path in avoid]

    def __repr__(self) -> str:
        return f"FolderSource({str(self.root.path / self.start)!r})"

    def scope(self, uri: str) -> bool:
        """Whether a known uri, absent from this source's last completed scan, is gone.

        No for uris outside the scanned folder, under a folder that could not be read, or not wanted by the filter
        (a run with other patterns removes nothing).
        """
        path = uri_to_path(uri).replace(os.sep, "/")
        if self.start:
            if not path.startswith(self.start + "/"):
                return False
            path = path[len(self.start) + 1 :]
        return not _is_hidden(path) and self.filter.takes(self.within + path) and self._saw(uri)

    def scan(self) -> Iterator[ItemRef]:
        """Finds the files. Counters and `complete` are those of this scan once it is exhausted."""
        skipped = self._begin()
        seen = _identities(self._avoid)
        start = os.path.join(self.root.path, *self.start.split("/")) if self.start else str(self.root.path)
        prefix = f"{path_to_uri(self.start)}/" if self.start else ""
        folders = [(start, self.within, prefix)]
        links: deque[tuple[str, str, str]] = deque()
        while folders or links:
            path, inner, prefix = folders.pop() if folders else links.popleft()
            try:
                identity = os.stat(path)
                if (identity.st_dev, identity.st_ino) in seen:
                    continue
                seen.add((identity.st_dev, identity.st_ino))
                with os.scandir(path) as listing:
                    entries = sorted(listing, key=_name)
            except OSError as error:
                if path == start:
                    self._failed(path, prefix.rstrip("/"), error)
                    return
                if not isinstance(error, FileNotFoundError):  # else it went after it was listed
                    self._failed(path, prefix.rstrip("/"), error)
                continue
            below: list[tuple[str, str, str]] = []
            yield from self._files(entries, inner, prefix, below, links, skipped)
            folders.extend(reversed(below))
        self._end()

    def _files(
        self,
        entries: Sequence[os.DirEntry[str]],
        inner: str,
        prefix: str,
        below: list[tuple[str, str, str]],
        links: deque[tuple[str, str, str]],
        skipped: Counter[str],
    ) -> Iterator[ItemRef]:
        """The files of one folder; its folders go into `below` and `links`."""
        root, kinds, wanted = str(self.root.path), self._kinds, self.filter
        filtered = wanted != Filter()
        owners: dict[str, str] | None = None
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            try:
                if entry.is_dir():
                    if not filtered or wanted.enters(inner + name):
                        found = (entry.path, f"{inner}{name}/", f"{prefix}{path_to_uri(name)}/")
                        (links if entry.is_symlink() else below).append(found)
                    continue
                if filtered and not wanted.takes(inner + name):
                    continue
                extension = _extension(name)
                modality = kinds.get(extension)
                if modality is None:
                    skipped[extension] += 1
                    continue
                if not entry.is_file():
                    continue  # a pipe, a device, a broken link
                stat = entry.stat()
            except FileNotFoundError:
                continue  # deleted since it was listed
            except OSError as error:
                self._failed(entry.path, prefix + path_to_uri(name), error)
                continue
            owner = None
            if extension == _SIDECAR_EXTENSION:
                if owners is None:
                    owners = _owners(entry.name for entry in entries)
                picture = owners.get(name[: -len(extension)])
                owner = prefix + path_to_uri(picture) if picture else None
            uri = prefix + path_to_uri(name)
            if self._take(uri):
                yield ItemRef(root, uri, entry.path, modality, Stamp(stat.st_size, stat.st_mtime_ns), owner)


class FileSource(_Scan):
    """Files that were named one by one, under one root. Hidden ones too: they were named.

    Args:
        root: what uris are relative to.
        paths: `/`-separated, relative to the root.
    """

    def __init__(self, root: Root, paths: Iterable[str]) -> None:
        super().__init__(root)
        self._paths = {path_to_uri(path): path for path in sorted(set(paths))}

    def __repr__(self) -> str:
        return f"FileSource({str(self.root.path)!r}, {len(self._paths)} files)"

    def scope(self, uri: str) -> bool:
        """Whether a known uri, absent from this source's last completed scan, is gone: named files only."""
        return uri in self._paths and self._saw(uri)

    def scan(self) -> Iterator[ItemRef]:
        """Finds the named files that are still there."""
        skipped = self._begin()
        root = str(self.root.path)
        owners: dict[str, dict[str, str]] = {}
        for uri, relative in self._paths.items():
            path = os.path.join(root, *relative.split("/"))
            folder, name = os.path.split(path)
            extension = _extension(name)
            modality = self._kinds.get(extension)
            if modality is None:
                skipped[extension] += 1
                continue
            try:
                stat = os.stat(path)
                if extension == _SIDECAR_EXTENSION and folder not in owners:
                    owners[folder] = _owners(sorted(os.listdir(folder)))
            except FileNotFoundError:
                continue
            except OSError as error:
                self._failed(path, uri, error)
                continue
            picture = owners[folder].get(name[: -len(extension)]) if extension == _SIDECAR_EXTENSION else None
            owner = None
            if picture:
                owner = f"{uri.rpartition('/')[0]}/{path_to_uri(picture)}".lstrip("/")
            if self._take(uri):
                yield ItemRef(root, uri, path, modality, Stamp(stat.st_size, stat.st_mtime_ns), owner)
        self._end()


Source = FolderSource | FileSource
"""What the pipeline takes: `root`, `scan()`, `scope(uri)`, and what the last scan met."""


def open_sources(
    paths: Sequence[str | Path],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    index_path: str | Path | None = None,
    known_roots: Iterable[str | Path] = (),
    partial_roots: Iterable[str | Path] = (),
) -> list[Source]:
    """One source for each folder or glob, and one for the single files of each root.

    No file is found twice: a PATH inside a known root (or inside another PATH) is scanned under that root; a known
    root inside a PATH is left out there and scanned as a source of its own. A single file's root is its folder.

    Args:
        paths: folders, files, globs; relative ones from the current folder. An existing name is never a glob.
        include: patterns that files must match, see `patterns.Filter`; not for single files.
        exclude: patterns of files and folders to leave out; not for single files.
        index_path: the index folder, which is not scanned.
        known_roots: absolute paths of the roots that the index has already.
        partial_roots: the same of roots of which only single files or globs were named. Nothing but those is put
            under them, until a PATH is that folder or one above it.

    Raises:
        PathNotFound: there is no such file or folder.
        UsageError: the path is empty, or neither a file nor a folder.
    """
    roots = _Roots(known_roots, partial_roots)
    folders, files = _sorted_out(paths)
    index = [] if index_path is None else [os.path.abspath(index_path)]
    sources: list[Source] = []
    whole: list[str] = []  # real paths of folders that are scanned whole
    for path, glob in folders:
        real = os.path.realpath(path)
        if _is_covered(real, whole):
            continue
        if not glob:
            whole.append(real)
        root, start = roots.of(path, whole=not glob)
        wanted = Filter.of(include, exclude, glob)
        nested = roots.inside(real, wanted)
        sources.append(FolderSource(_root(root), start, filter=wanted, avoid=[*index, *nested]))
        for inner, within in nested.items():
            deeper = [other for other in nested if other != inner and _inside(other, inner)]
            sources.append(
                FolderSource(_root(roots.path(inner)), filter=wanted, within=within, avoid=[*index, *deeper])
            )
    named: dict[str, list[str]] = {}
    for path in files:
        folder, name = os.path.split(path)
        if name.startswith(".") or not _is_covered(roots.real(folder), whole):
            root, start = roots.of(folder, whole=False)
            named.setdefault(root, []).append(f"{start}/{name}" if start else name)
    sources.extend(FileSource(_root(root), inner) for root, inner in named.items())
    for position, source in enumerate(sources):
        source.rivals = [other for other in sources[:position] if other.root.path == source.root.path]
    return sources


class _Roots:
    """The roots of an index, those of the current call included, by real path."""

    def __init__(self, known: Iterable[str | Path], partial: Iterable[str | Path]) -> None:
        self._real: dict[str, str] = {}
        self._known = {self.real(os.fspath(root)): os.fspath(root) for root in known}
        self._partial = {self.real(os.fspath(root)): os.fspath(root) for root in partial}

    def real(self, folder: str) -> str:
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        return self._real[folder]

    def of(self, folder: str, *, whole: bool) -> tuple[str, str]:
        """The deepest root that holds `folder` (a new one if none does) and the path from there to it.

        A folder that is scanned whole does not go under a partial root: later runs look at files there only.
        """
        real = self.real(folder)
        above = [root for root in (self._known if whole else {**self._partial, **self._known}) if _inside(real, root)]
        if not above:
            self._known[real] = folder
            return folder, ""
        root = max(above, key=len)
        return self.path(root), _relative(real, root)

    def path(self, real: str) -> str:
        """A root as the index knows it, by its real path."""
        return self._known[real] if real in self._known else self._partial[real]

    def inside(self, folder: str, wanted: Filter) -> dict[str, str]:
        """Roots strictly below `folder` that a scan would come by, with their path from it."""
        found: dict[str, str] = {}
        for root in sorted({*self._known, *self._partial}):
            path = _relative(root, folder) if _inside(root, folder) else ""
            parts = path.split("/")
            steps = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
            if path and not _is_hidden(path) and all(map(wanted.enters, steps)) and os.path.isdir(root):
                found[root] = path
        return found


def _sorted_out(paths: Sequence[str | Path]) -> tuple[list[tuple[str, str]], list[str]]:
    """Folders (with a glob or without), those that may hold others first, and single files."""
    folders: set[tuple[str, str]] = set()
    files: list[str] = []
    for given in paths:
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


def _root(path: str) -> Root:
    return Root(Path(path), os.stat(path).st_dev)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _relative(path: str, folder: str) -> str:
    return path[len(folder.rstrip(os.sep)) + 1 :].replace(os.sep, "/")


def _is_covered(real: str, whole: Sequence[str]) -> bool:
    """Whether the scan of a whole folder comes by `real`. It does not enter hidden folders."""
    return any(_inside(real, above) and not _is_hidden(_relative(real, above)) for above in whole)


def _is_hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path


def _identities(paths: Iterable[str]) -> set[tuple[int, int]]:
    found = set()
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError:
            continue
        found.add((stat.st_dev, stat.st_ino))
    return found


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _extension(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _owners(names: Iterable[str]) -> dict[str, str]:
    """The picture of each stem; the first by name where there are several."""
    owners: dict[str, str] = {}
    for name in names:
        extension = _extension(name)
        if extension in IMAGE_EXTENSIONS and name[0] != ".":
            owners.setdefault(name[: -len(extension)], name)
    return owners
