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

from mmsearch.indexers.patterns import Filter
from mmsearch.indexers.roots import is_hidden
from mmsearch.retrieval.media import IMAGE_EXTENSIONS, TEXT_EXTENSIONS
from mmsearch.retrieval.store.diff import is_below
from mmsearch.retrieval.types import Failure, ItemRef, Modality, Root, Stamp
from mmsearch.retrieval.uris import path_to_uri, uri_to_path

_log = logging.getLogger(__name__)

_SIDECAR_EXTENSION = ".txt"


class Scan:
    """What all sources have in common.

    Attributes:
        root: what the uris are relative to.
        skipped: files of unknown kinds by extension, of the last scan.
        errors: folders and files that could not be read, of the last scan.
        incomplete_prefixes: uris (of folders and files) that the last scan could not look into.
        complete: True once a scan has run to its end and its root was still there then.
        mounts: uris of folders that the last scan has met on other drives than the root's.
        rivals: sources of the same root that are scanned before; what they find is theirs.
    """

    few = False
    """Whether a scan finds a few of many, so that what it does not find is not missing."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.skipped: Mapping[str, int] = {}
        self.errors: list[Failure] = []
        self.incomplete_prefixes: list[str] = []
        self.complete = False
        self.mounts: set[str] = set()
        self.rivals: list[Scan] = []
        self._given: set[str] = set()
        self._kinds: dict[str, Modality] = dict.fromkeys(IMAGE_EXTENSIONS, "image")
        self._kinds.update(dict.fromkeys(TEXT_EXTENSIONS, "text"))

    def followers(self) -> list[FileSource]:
        """Sources that are to be scanned after this one: none."""
        return []

    def _begin(self) -> Counter[str]:
        self.complete = False
        self.mounts = set()
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

    def _mounted(self, uri: str) -> None:
        """Notes a folder on another drive; those below it add nothing."""
        if not is_below(uri, self.mounts):
            self.mounts.add(uri)

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


class FolderSource(Scan):
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
        return not is_hidden(path) and self.filter.takes(self.within + path) and self._saw(uri)

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
                if prefix and identity.st_dev != self.root.device:
                    self._mounted(prefix[:-1])
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
                extension = extension_of(name)
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
                yield ItemRef(root, uri, entry.path, modality, Stamp.of(stat), owner)


class FileSource(Scan):
    """Files that were named one by one, under one root. Hidden ones too: they were named.

    Args:
        root: what uris are relative to.
        paths: `/`-separated, relative to the root.
        listed: they are pictures that rows name, not the user.
    """

    def __init__(self, root: Root, paths: Iterable[str], *, listed: bool = False) -> None:
        super().__init__(root)
        self.listed = listed
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
            extension = extension_of(name)
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
            if stat.st_dev != self.root.device and "/" in uri:
                self._mounted(uri.rpartition("/")[0])
            if self._take(uri):
                stamp = Stamp.of(stat)
                yield ItemRef(root, uri, path, modality, stamp, owner, listed=self.listed)
        self._end()


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


def extension_of(name: str) -> str:
    """The ending of a name in lower case, with its dot; empty for none, and for names that are nothing else."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _owners(names: Iterable[str]) -> dict[str, str]:
    """The picture of each stem; the first by name where there are several."""
    owners: dict[str, str] = {}
    for name in names:
        extension = extension_of(name)
        if extension in IMAGE_EXTENSIONS and name[0] != ".":
            owners.setdefault(name[: -len(extension)], name)
    return owners
