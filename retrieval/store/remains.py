"""What can still be read of a damaged catalog of any format, row by row."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from mmsearch.retrieval.store.checks import integrity
from mmsearch.retrieval.store.quiet import READ_ERRORS

Row = dict[str, Any]

_PROBES = 20_000  # reads of a table between its readable ends
_LARGEST = 2**63 - 1
_DISAGREE = re.compile(r"row (\d+) missing from index (\w+)")
_ALLOWED: Mapping[str, tuple[object, ...]] = {
    "modality": ("image", "text"),
    "status": ("ok", "failed"),
    "kind": ("folder", "manifest", "rows"),
    "dtype": ("float32", "float16"),
    "relative": (0, 1),
    "listed": (0, 1),
}
_SINCE_FORMAT_1: Mapping[str, Mapping[str, object]] = {
    "roots": {"kind": "folder"},
    "assets": {"listed": 0},
    "segments": {"model_id": 1},
}
"""What columns hold that a catalog of format 1 does not have."""


class Remains:
    """The readable rows of a catalog.

    Where a table and one of its indexes do not agree on a row, that row is not to be trusted and left out.
    """

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        """Reads from `connection`, or finds nothing for None."""
        self._connection = connection
        self._doubtful: dict[str, set[int]] = {}
        self._used: dict[str, int] = {}
        self.whole: dict[str, bool] = {}
        """Of each table that was read, whether nothing of it was left out."""
        if connection is not None:
            connection.text_factory = lambda value: value.decode("utf-8", "replace")
            self._prepare(connection)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        with contextlib.suppress(*READ_ERRORS):
            connection.execute("PRAGMA writable_schema=ON")  # or one broken statement of the schema hides all tables
        with contextlib.suppress(*READ_ERRORS):
            tables = dict(connection.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index'"))
            disagree = [match for line in integrity(connection) if (match := _DISAGREE.fullmatch(line))]
            for index in {match[2] for match in disagree} & tables.keys():
                if self._is_readable(tables[index], index):
                    rows = {int(match[1]) for match in disagree if match[2] == index}
                    self._doubtful.setdefault(tables[index], set()).update(rows)
        with contextlib.suppress(*READ_ERRORS):
            for name, number in connection.execute("SELECT name, seq FROM sqlite_sequence"):
                self._used[name] = int(number)

    def _is_readable(self, table: str, index: str) -> bool:
        """Whether an index can be read to its end; one that cannot says nothing against its table."""
        assert self._connection is not None
        try:
            self._connection.execute(f'SELECT COUNT(*) FROM {table} INDEXED BY "{index}"').fetchone()
        except READ_ERRORS:
            return False
        return True

    def used(self, table: str) -> int:
        """The largest id that a table has ever given out, as far as that is known."""
        return self._used.get(table, 0)

    def meta(self) -> dict[str, str]:
        """What the catalog says of itself."""
        return {row["key"]: row["value"] for row in self.rows("meta")}

    def rows(self, table: str) -> Iterator[Row]:
        """The rows of a table of the current format that can be read and make sense."""
        from mmsearch.retrieval.store.schema import METADATA

        self.whole[table] = False
        if self._connection is None:
            return
        try:
            there = {row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")}
        except READ_ERRORS:
            return
        columns = {column.name: column for column in METADATA.tables[table].columns}
        names = [name for name in columns if name in there]
        if not names:
            return
        missing = {name: _SINCE_FORMAT_1.get(table, {}).get(name) for name in columns if name not in there}
        self.whole[table] = True
        doubtful = self._doubtful.get(table, set())
        for rowid, *values in self._read(table, ", ".join(f'"{name}"' for name in names)):
            row = {**missing, **dict(zip(names, values, strict=True))}
            if table == "assets" and "owner_root_id" in missing and row["owner_uri"] is not None:
                row["owner_root_id"] = row["root_id"]
            if rowid in doubtful or not all(_fits(column, row[name]) for name, column in columns.items()):
                self.whole[table] = False
            else:
                yield row

    def _read(self, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
        """Rows by rowid: from both ends of the table up to what cannot be read, then of halves of what is between."""
        assert self._connection is not None
        query = f"SELECT rowid, {columns} FROM {table} NOT INDEXED WHERE rowid BETWEEN ? AND ? ORDER BY rowid"
        pending = [(0, _LARGEST)]
        probes = 0
        while pending and probes < _PROBES:
            low, high = pending.pop()
            probes += 1
            try:
                for row in self._connection.execute(query, (low, high)):
                    low = row[0] + 1
                    yield row
                continue
            except READ_ERRORS:
                self.whole[table] = False
            try:
                for row in self._connection.execute(f"{query} DESC", (low, high)):
                    high = row[0] - 1
                    yield row
                continue
            except READ_ERRORS:
                pass
            if low < high:
                middle = (low + high) // 2
                pending += [(middle + 1, high), (low, middle)]


def _fits(column: Any, value: object) -> bool:
    """Whether a value is one that the column may hold."""
    if value is None:
        return bool(column.nullable)
    kind = column.type.python_type
    if kind is float:
        return isinstance(value, float | int)
    if not isinstance(value, int if kind is bool else kind):
        return False
    if column.name in ("uri", "owner_uri") and not str(value).isascii():
        return False
    return column.name not in _ALLOWED or value in _ALLOWED[column.name]
