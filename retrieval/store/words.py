"""The words of items, for lexical search: what the table `words` holds, and how the writer keeps it so."""

from __future__ import annotations

import heapq
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice

from mmsearch.retrieval.lexicon import name_words, words_of

_COLUMNS = 'USING fts5(text, name, tags, tokenize = "unicode61 remove_diacritics 2")'
WORDS = f"CREATE VIRTUAL TABLE words {_COLUMNS}"
"""What lexical search looks in, a row for each item under its id."""

_CHUNK = 1000
_SHADOWS = ("config", "content", "data", "docsize", "idx")

_SOURCE = (
    "SELECT item_id, text, CASE kind WHEN 'folder' THEN uri END,"
    " (SELECT GROUP_CONCAT(tag, char(10)) FROM tags WHERE tags.asset_id = assets.asset_id)"
    " FROM items JOIN assets USING (asset_id) JOIN roots USING (root_id)"
)
_INSERT = "INSERT INTO words (rowid, text, name, tags) VALUES (?, ?, ?, ?)"


def refill_words(connection: sqlite3.Connection) -> None:
    """Makes the table anew, of all items, be it damaged."""
    connection.execute("DROP TABLE words")
    connection.execute(WORDS)
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


def wrong_words(connection: sqlite3.Connection) -> int:
    """How many items have no words, or others than they should have, or are no items."""
    expected = map(_worded, connection.execute(f"{_SOURCE} ORDER BY item_id"))
    there = connection.execute("SELECT rowid, text, name, tags FROM words ORDER BY rowid")
    by_item = groupby(heapq.merge(expected, there, key=_item_of), key=_item_of)
    return sum(len(pair := list(rows)) != 2 or pair[0] != pair[1] for _, rows in by_item)


def is_sound(connection: sqlite3.Connection) -> bool:
    """Whether what FTS5 finds words with is undamaged, which SQLite's own check of a database does not look at.

    FTS5 checks itself only where it may write, so it is given a copy, which does not outlive the connection.
    """
    try:
        connection.execute(f"CREATE VIRTUAL TABLE temp.copied_words {_COLUMNS}")
        for part in _SHADOWS:
            connection.execute(f"DELETE FROM temp.copied_words_{part}")
            connection.execute(f"INSERT INTO temp.copied_words_{part} SELECT * FROM main.words_{part}")
        connection.execute("INSERT INTO temp.copied_words (copied_words) VALUES ('integrity-check')")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return False
    return True


def _item_of(row: tuple[int, *tuple[str | None, ...]]) -> int:
    return row[0]


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
