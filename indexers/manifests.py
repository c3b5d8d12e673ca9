"""Manifests: tables whose rows name pictures, texts, or pictures with their captions (CSV, JSON lines, Parquet).

A manifest is read twice. The first time finds its columns, the types of a CSV's cells and the folders of its pictures;
the second time gives the rows, one at a time. A row that cannot be used does not end either.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmsearch.indexers.rows import ID_NAMES, IMAGE_NAMES, TEXT_NAMES, BadRow, Row, bad_row, picture_path, row_of, unique
from mmsearch.indexers.tables import TABLES, Bad
from mmsearch.retrieval.errors import UsageError

_MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns a user has named, where their names do not say what they are; None for the usual names."""

    text: str | None = None
    image: str | None = None
    id: str | None = None

    def to_json(self) -> str | None:
        """As a catalog keeps it; None where nothing was named."""
        named = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(named, sort_keys=True) if named else None

    @classmethod
    def from_json(cls, text: str | None) -> Columns:
        """The inverse of `to_json`."""
        return cls(**json.loads(text)) if text else cls()


def is_manifest(path: str | Path) -> bool:
    """Whether a file is a manifest, by its name."""
    return os.path.splitext(path)[1].lower() in TABLES


class Manifest:
    """A manifest whose columns are known.

    Args:
        path: the file.
        columns: names of columns where they are not the usual ones.

    Attributes:
        path: absolute.
        columns: the columns that are meant; None for those that are not there.
        folders: absolute folders of the pictures that it names.

    Raises:
        UsageError: it is empty, or no column can be a text or an image; a named column is not there or there twice.
        MediaError: it cannot be read as what its name says.
        MissingExtra: a package that reads this kind of file is not installed.
        OSError: it cannot be read at all.
    """

    def __init__(self, path: Path, columns: Columns | None = None) -> None:
        self.path = Path(os.path.abspath(path))
        self._base = str(self.path.parent)
        self._table = TABLES[self.path.suffix.lower()](self.path)
        self.columns = _resolved(self.path, self._table.names, columns or Columns())
        self._table.prepare(self.columns)
        self.folders = self._picture_folders()

    def rows(self) -> Iterator[Row | BadRow]:
        """Reads the rows, from the first; each has a key of its own."""
        return unique(self._rows())

    def _rows(self) -> Iterator[Row | BadRow]:
        names = self.columns
        special = {names.text, names.image, names.id}
        for number, record in self._table.records():
            if isinstance(record, Bad):
                yield bad_row(number, record.error, id=None, said=record.said)
                continue
            yield row_of(
                number,
                id=record.get(names.id) if names.id is not None else None,
                text=record.get(names.text) if names.text is not None else None,
                image=record.get(names.image) if names.image is not None else None,
                meta={name: value for name, value in record.items() if name not in special},
                base=self._base,
            )

    def _picture_folders(self) -> set[str]:
        folders: set[str] = set()
        if self.columns.image is None:
            return folders
        for value in self._table.values(self.columns.image):
            if isinstance(value, str):
                try:
                    path = picture_path(value, self._base)
                except ValueError:
                    continue
                if path is not None:
                    folders.add(os.path.dirname(path))
        return folders


def _resolved(path: Path, names: Sequence[str], wanted: Columns) -> Columns:
    """Which column is what."""
    found: dict[str, str | None] = {}
    usual = {"text": TEXT_NAMES, "image": IMAGE_NAMES, "id": ID_NAMES}
    for role, candidates in usual.items():
        named = getattr(wanted, role)
        found[role] = _named(path, names, role, named) if named is not None else _usual(names, candidates)
    if found["text"] is None and found["image"] is None:
        shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
        raise UsageError(
            f"{path} has no column that is known as text or image; its columns are {shown}. "
            "Say which it is with --text-column or --image-column"
        )
    for role, name in found.items():
        if name is not None and list(names).count(name) > 1:
            raise UsageError(f"{path} has two columns called {name}, and one should be the {role}; rename one")
    return Columns(**found)


def _named(path: Path, names: Sequence[str], role: str, wanted: str) -> str:
    if wanted in names:
        return wanted
    like = [name for name in names if name.lower() == wanted.lower()]
    if len(like) == 1:
        return like[0]
    shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    raise UsageError(f"{path} has no column {wanted!r} that could be the {role}; its columns are {shown}")


def _usual(names: Sequence[str], candidates: Sequence[str]) -> str | None:
    for candidate in candidates:
        if candidate in names:
            return candidate
    for candidate in candidates:
        for name in names:
            if name.lower() == candidate:
                return name
    return None
