"""Repairs of an index whose catalog can be trusted, and what the making of a new one has in common with them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.checks import DEAD, EMPTY
from mmsearch.retrieval.store.findings import Findings
from mmsearch.retrieval.store.words import refill_words

Steps = Callable[[str], None]

UNREAD = "UPDATE assets SET size = -1, content_hash = NULL WHERE"
"""Files look changed to the next scan, which reads them again; the rest of the statement says which."""


def mend(found: Findings, steps: Steps) -> None:
    """Takes lost segments and tokens out of the catalog, and puts right what it counts; one transaction."""
    steps("repair:aside")
    for name in (*found.lost, *found.lost_tokens):
        set_aside(found.path, found.path / layout.SEGMENTS / name)
    with transaction(found.path / layout.CATALOG) as connection:
        steps("repair:catalog")
        for name in found.lost:
            _drop_segment(connection, found.named[name])
        connection.executemany(
            "DELETE FROM tokens WHERE segment_id = ?", [(found.tokens[n],) for n in found.lost_tokens]
        )
        query = "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'generation'"
        settle(connection, connection.execute(query).fetchone()[0] + 1)
        steps("repair:commit")
    steps("repair:done")


def sweep(found: Findings, steps: Steps) -> None:
    """Removes what nothing names; the caller holds the lock. A catalog that a repair has replaced is kept."""
    steps("repair:sweep")
    for name in (*found.orphans, *found.orphan_tokens):
        (found.path / layout.SEGMENTS / name).unlink(missing_ok=True)
    for name in found.leftovers:
        if name.startswith(layout.OLD_CATALOG):
            set_catalog_aside(found.path)
        else:
            (found.path / name).unlink(missing_ok=True)


@contextlib.contextmanager
def transaction(catalog: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a catalog inside one transaction, on the medium when the block ends."""
    from mmsearch.retrieval.store.schema import connect

    engine = connect(catalog, foreign_keys=False)
    pooled = engine.raw_connection()
    try:
        connection = pooled.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")
    finally:
        pooled.close()  # without COMMIT: a rollback
        engine.dispose()


def _drop_segment(connection: sqlite3.Connection, segment_id: int) -> None:
    """Forgets a segment, its embeddings and their items; the files of these are read again by the next scan.

    Their items get new ids then: what `salvaged` remembers hangs on embeddings, and these are gone.
    """
    mine = "(SELECT embedding_id FROM embeddings WHERE segment_id = ?)"
    for statement in (
        f"{UNREAD} asset_id IN (SELECT asset_id FROM items WHERE embedding_id IN {mine})",
        f"DELETE FROM items WHERE embedding_id IN {mine}",
        f"DELETE FROM salvaged WHERE embedding_id IN {mine}",
        "DELETE FROM tombstones WHERE segment_id = ?",
        "DELETE FROM embeddings WHERE segment_id = ?",
        "DELETE FROM segments WHERE segment_id = ?",
    ):
        connection.execute(statement, (segment_id,))


def settle(connection: sqlite3.Connection, generation: int) -> None:
    """Makes right what follows from the rest of the catalog: tombstones, counts, words, files without items."""
    connection.execute(f"{UNREAD} {EMPTY}")
    connection.execute("DELETE FROM tombstones")
    query = f"SELECT embedding_id, segment_id, ? FROM ({DEAD})"
    connection.execute(f"INSERT INTO tombstones (embedding_id, segment_id, generation) {query}", (generation,))
    meta = {"generation": str(generation)}
    for modality in ("image", "text"):
        count = connection.execute("SELECT COUNT(*) FROM items WHERE modality = ?", (modality,)).fetchone()[0]
        meta[f"items.{modality}"] = str(count)
    connection.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", meta.items())
    refill_words(connection)


# Setting aside


def set_aside(index: Path, file: Path) -> None:
    """Moves a file into the folder for damaged ones, where it keeps its name if that is free."""
    if file.exists():
        target = _folder(index) / file.name
        number = 1
        while target.exists():
            target = target.with_name(f"{file.name}-{number}")
            number += 1
        _move(file, target)


def set_catalog_aside(index: Path) -> None:
    """Moves the catalog that another has replaced, with its log, into the folder for damaged ones."""
    folder = _folder(index)
    number = 1
    while any((folder / f"{layout.CATALOG}-{number}{ending}").exists() for ending in ("", "-wal")):
        number += 1
    for ending in ("-shm", "-wal", ""):  # the catalog last: while it is there, this is not done
        file = index / f"{layout.OLD_CATALOG}{ending}"
        if file.exists():
            _move(file, folder / f"{layout.CATALOG}-{number}{ending}")


def _folder(index: Path) -> Path:
    folder = index / layout.DAMAGED
    folder.mkdir(mode=0o700, exist_ok=True)
    layout.sync_folder(index)
    return folder


def _move(file: Path, target: Path) -> None:
    os.replace(file, target)
    layout.sync_folder(target.parent)
    layout.sync_folder(file.parent)
