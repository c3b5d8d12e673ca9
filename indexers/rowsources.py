"""Where rows come from: manifests, and programs that give items. A row is an asset of its own.

A row may name a picture. That is a file like others, found once, under the root of its folder; the row is its caption
and what else is known of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmsearch.indexers.manifests import Manifest
from mmsearch.indexers.roots import Roots, stat_root
from mmsearch.indexers.rows import BadRow, Row
from mmsearch.indexers.sources import FileSource, Scan, extension_of
from mmsearch.retrieval.errors import MediaError, UsageError
from mmsearch.retrieval.media import IMAGE_EXTENSIONS
from mmsearch.retrieval.store.layout import ROWS
from mmsearch.retrieval.types import Failure, ItemRef, Root, Stamp
from mmsearch.retrieval.uris import path_to_uri


@dataclass(frozen=True, slots=True)
class RowRef(ItemRef):
    """A row that a scan has read; its stamp covers what it says and the stamp of its picture.

    Attributes:
        row: what it says.
        error: why it cannot be used, or None.
        unseen: the path of its picture, where it cannot be used because that is not to be seen.
    """

    row: Row | None = None
    error: str | None = None
    unseen: str | None = None


class _RowScan(Scan):
    """What sources of rows have in common: a row is an asset, and its picture is a file under a root of its own."""

    def __init__(self, root: Root, roots: Roots) -> None:
        super().__init__(root)
        self._roots = roots
        self._pictures: dict[str, set[str]] = {}  # paths by root

    def followers(self) -> list[FileSource]:
        """The sources of the pictures that the last scan has met."""
        return [FileSource(stat_root(root), paths, listed=True) for root, paths in self._pictures.items()]

    def _ref(self, row: Row | BadRow) -> RowRef:
        path = f"{self.root.path}#{row.key}"
        if isinstance(row, BadRow):
            return self._bad_ref(row.key, path, f"row {row.number}: {row.error}")
        picture, owner_root, owner = b"", None, None
        weight = sum(map(len, row.texts))
        if isinstance(row.image, bytes):
            weight += len(row.image)
        elif row.image is not None:
            try:
                picture, owner_root, owner = self._picture(row.image)
            except OSError as error:
                absent = isinstance(error, FileNotFoundError | NotADirectoryError)
                reason = "does not exist" if absent else f"cannot be read: {error.strerror}"
                bad = self._bad_ref(row.key, path, f"row {row.number}: its image {row.image} {reason}")
                return replace(bad, unseen=row.image)
            except UsageError as error:
                return self._bad_ref(row.key, path, f"row {row.number}: its image {row.image} {error}")
        stamp = Stamp(weight, hashed(row.digest + picture))
        return RowRef(str(self.root.path), row.key, path, "text", stamp, owner, owner_root, row=row)

    def _bad_ref(self, key: str, path: str, error: str) -> RowRef:
        stamp = Stamp(-1, hashed(error.encode("utf-8", "surrogateescape")))
        return RowRef(str(self.root.path), key, path, "text", stamp, error=error)

    def _picture(self, path: str) -> tuple[bytes, str, str]:
        """The stamp of a picture as bytes, its root and its uri there."""
        if extension_of(path) not in IMAGE_EXTENSIONS:
            raise UsageError("is of no kind of picture that is known")
        stat = os.stat(path)
        folder, name = os.path.split(path)
        root, start = self._roots.of(folder, whole=False)
        inner = f"{start}/{name}" if start else name
        self._pictures.setdefault(root, set()).add(inner)
        return b"%d:%d" % (stat.st_size, stat.st_mtime_ns), root, path_to_uri(inner)


class ManifestSource(_RowScan):
    """The rows of a manifest, and the pictures that they name."""

    def __init__(self, root: Root, manifest: Manifest, roots: Roots) -> None:
        super().__init__(root, roots)
        self._manifest = manifest

    def __repr__(self) -> str:
        return f"ManifestSource({str(self.root.path)!r})"

    def scope(self, uri: str) -> bool:
        """Whether a known row, absent from the last completed scan, is gone: any is."""
        return self.complete

    def scan(self) -> Iterator[ItemRef]:
        """Reads the manifest; a row that cannot be used is found too, with its error."""
        self._begin()
        self._pictures = {}
        path = str(self.root.path)
        try:
            before = os.stat(path)
            self._roots.adopt(self._manifest.folders)
            for row in self._manifest.rows():
                yield self._ref(row)
            after = os.stat(path)
        except (OSError, MediaError, UsageError) as error:
            reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            self.errors.append(Failure(path, reason))
            return
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if not same:
            self.errors.append(Failure(path, "it was written to while it was read; the next run reads it again"))
        self.complete = same and after.st_dev == self.root.device


class RowsSource(_RowScan):
    """Rows that a program gives: they have ids, and stay until they are removed.

    Args:
        rows: what is given; a few of many.
        roots: where their pictures belong.
    """

    few = True

    def __init__(self, rows: Sequence[Row | BadRow], roots: Roots) -> None:
        super().__init__(Root(Path(ROWS), 0, "rows"), roots)
        self._rows = rows

    def __repr__(self) -> str:
        return f"RowsSource({len(self._rows)} rows)"

    def scope(self, uri: str) -> bool:
        """Whether a known row is gone because it was not given now: never."""
        return False

    def scan(self) -> Iterator[ItemRef]:
        """Goes through the rows."""
        self._begin()
        self._pictures = {}
        self._roots.adopt({os.path.dirname(path) for row in self._rows if (path := _picture_path(row))})
        for row in self._rows:
            yield self._ref(row)
        self.complete = True


def _picture_path(row: Row | BadRow) -> str | None:
    return row.image if isinstance(row, Row) and isinstance(row.image, str) else None


def hashed(content: bytes) -> int:
    """63 bits of a hash, as large as a stamp's time can be."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
