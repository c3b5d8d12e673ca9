"""The words of items, for lexical search: what the table `words` holds, and how the writer keeps it so."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from mmsearch.retrieval.lexicon import name_words, words_of

_CHUNK = 1000

_SOURCE = (
    "SELECT item_id, text, CASE kind WHEN 'folder' THEN uri END,"
    " (SELECT GROUP_CONCAT(tag, char(10)) FROM tags WHERE tags.asset_id = assets.asset_id)"
    " FROM items JOIN assets USING (asset_id) JOIN roots USING (root_id)"
)
_INSERT = "INSERT INTO words (rowid, text, name, tags) VALUES (?, ?, ?, ?)"


def refill_words(connection: sqlite3.Connection) -> None:
    """Makes the table anew, of all items."""
    connection.execute("DELETE FROM words")
    rows = connection.execute(f"{_SOURCE} ORDER BY item_id")
    while page := rows.fetchmany(_CHUNK):
        connection.executemany(_INSERT, map(_worded, page))


def update_words(connection: sqlite3.Connection, assets: Iterable[int], gone: Iterable[int]) -> None:
    """Makes the rows right of all items of some assets, and lets go of those of items that are gone."""
    for some in _chunks(gone):
        _delete(connection, some)
    for some in _chunks(assets):
        query = f"{_SOURCE} WHERE asset_id IN (SELECT value FROM json_each(?)) ORDER BY item_id"
        rows = connection.execute(query, (json.dumps(some),)).fetchall()
        _delete(connection, [row[0] for row in rows])
        connection.executemany(_INSERT, map(_worded, rows))


def _delete(connection: sqlite3.Connection, items: Sequence[int]) -> None:
    there = connection.execute(
        "SELECT id FROM words_docsize WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(items),)
    ).fetchall()
    if there:  # each deletion writes to the table, needed or not
        connection.executemany("DELETE FROM words WHERE rowid = ?", there)


def _worded(row: tuple[int, str | None, str | None, str | None]) -> tuple[int, str | None, str | None, str | None]:
    item_id, text, uri, tags = row
    return (
        item_id,
        None if text is None else words_of(text),
        None if uri is None else name_words(uri),
        None if tags is None else words_of(tags),
    )


def _chunks(ids: Iterable[int]) -> Iterator[list[int]]:
    iterator = iter(sorted(ids))
    while some := list(islice(iterator, _CHUNK)):
        yield some
