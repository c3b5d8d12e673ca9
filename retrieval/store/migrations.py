"""Numbered steps from older index formats to the current one.

Step n leads from format n-1 to n. Each runs in one transaction with the record that it has run (SQLite's
`user_version`), so a crash leaves the index before a step or after it, never inside.

A step is frozen: it spells out the schema of its own time, whatever `store.schema` says later.

To change the format: change it in `store.schema`, raise `layout.FORMAT_VERSION`, add the step here, and
keep an index of the old format in tests/samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import sqlalchemy as sa

from mmsearch.retrieval.errors import IndexCorrupt, IndexTooNew
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.schema import connect, raw
from mmsearch.retrieval.store.words import refill_words

_WORDS_SINCE = 3
Step = Callable[[sa.Connection], None]


def _rebuild(connection: sa.Connection, table: str, ddl: str, source: str) -> None:
    """Makes a table anew from a select over the old one, which is called `old` meanwhile; ids stay used up."""
    run = connection.exec_driver_sql
    used = run("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).scalar() or 0
    run(f"ALTER TABLE {table} RENAME TO old")
    run(ddl)
    run(f"INSERT INTO {table} {source}")
    run("DROP TABLE old")
    run("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
    run("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, used))


def _to_2(connection: sa.Connection) -> None:
    """Vectors of several models; roots that are manifests; rows that belong to a picture; what was removed."""
    run = connection.exec_driver_sql
    run(
        "CREATE TABLE models (model_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,"
        " identity TEXT NOT NULL, dim INTEGER NOT NULL, max_tokens INTEGER, UNIQUE (identity))"
    )
    run(
        "INSERT INTO models (model_id, name, identity, dim, max_tokens) SELECT 1,"
        " (SELECT value FROM meta WHERE key = 'model'), (SELECT value FROM meta WHERE key = 'identity'),"
        " CAST((SELECT value FROM meta WHERE key = 'dim') AS INTEGER),"
        " CAST((SELECT value FROM meta WHERE key = 'max_tokens') AS INTEGER)"
    )
    run("DELETE FROM meta WHERE key IN ('model', 'identity', 'dim', 'max_tokens')")
    run("INSERT INTO meta (key, value) VALUES ('model_id', '1')")
    _rebuild(
        connection,
        "roots",
        "CREATE TABLE roots (root_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL,"
        " relative BOOLEAN NOT NULL, kind TEXT NOT NULL, device INTEGER NOT NULL, last_scan_generation INTEGER,"
        " completed_at TEXT, columns TEXT, mounts TEXT, UNIQUE (path, relative))",
        "SELECT root_id, path, relative, 'folder', device, last_scan_generation, completed_at, NULL, NULL FROM old",
    )
    _rebuild(
        connection,
        "assets",
        "CREATE TABLE assets (asset_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, root_id INTEGER NOT NULL,"
        " uri TEXT NOT NULL, modality TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
        " content_hash BLOB, status TEXT NOT NULL, error TEXT, owner_root_id INTEGER, owner_uri TEXT,"
        " listed BOOLEAN NOT NULL, width INTEGER, height INTEGER, taken TEXT, camera TEXT, orientation INTEGER,"
        " latitude FLOAT, longitude FLOAT, phash INTEGER, meta TEXT, indexed_at TEXT NOT NULL,"
        " UNIQUE (root_id, uri), FOREIGN KEY(root_id) REFERENCES roots (root_id))",
        "SELECT asset_id, root_id, uri, modality, size, mtime_ns, content_hash, status, error,"
        " CASE WHEN owner_uri IS NOT NULL THEN root_id END, owner_uri, 0, width, height, taken, camera, orientation,"
        " latitude, longitude, phash, meta, indexed_at FROM old",
    )
    run("CREATE INDEX ix_assets_hash ON assets (content_hash) WHERE modality != 'image'")
    run("CREATE INDEX ix_assets_owner ON assets (owner_root_id, owner_uri) WHERE owner_uri IS NOT NULL")
    run(
        "CREATE TABLE removed (root_id INTEGER NOT NULL, uri TEXT NOT NULL, PRIMARY KEY (root_id, uri),"
        " FOREIGN KEY(root_id) REFERENCES roots (root_id))"
    )
    _rebuild(
        connection,
        "segments",
        "CREATE TABLE segments (segment_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, model_id INTEGER NOT NULL,"
        " space TEXT NOT NULL, filename TEXT NOT NULL, dtype TEXT NOT NULL, dim INTEGER NOT NULL,"
        " count INTEGER NOT NULL, bytes INTEGER NOT NULL, checksum BLOB NOT NULL, precision TEXT NOT NULL,"
        " device TEXT NOT NULL, backend TEXT NOT NULL, generation INTEGER NOT NULL, UNIQUE (filename))",
        "SELECT segment_id, 1, space, filename, dtype, dim, count, bytes, checksum, precision, device, backend,"
        " generation FROM old",
    )
    _rebuild(
        connection,
        "embeddings",
        "CREATE TABLE embeddings (embedding_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,"
        " model_id INTEGER NOT NULL, space TEXT NOT NULL, content_key BLOB NOT NULL, segment_id INTEGER,"
        " UNIQUE (model_id, space, content_key))",
        "SELECT embedding_id, 1, space, content_key, segment_id FROM old",
    )
    run(
        "CREATE TABLE salvaged (embedding_id INTEGER NOT NULL, item_id INTEGER NOT NULL, PRIMARY KEY (embedding_id),"
        " FOREIGN KEY(embedding_id) REFERENCES embeddings (embedding_id))"
    )


def _to_3(connection: sa.Connection) -> None:
    """Tags; words to search for; indexes for filters; what scores are judged by."""
    for statement in (
        "CREATE TABLE tags (asset_id INTEGER NOT NULL, tag TEXT COLLATE NOCASE NOT NULL, relevance FLOAT,"
        " PRIMARY KEY (asset_id, tag), FOREIGN KEY(asset_id) REFERENCES assets (asset_id))",
        "CREATE INDEX ix_tags_tag ON tags (tag)",
        "CREATE TABLE probes (model_id INTEGER NOT NULL, vectors BLOB NOT NULL, PRIMARY KEY (model_id),"
        " FOREIGN KEY(model_id) REFERENCES models (model_id))",
        "CREATE INDEX ix_assets_taken ON assets (taken) WHERE taken IS NOT NULL",
        "CREATE INDEX ix_assets_place ON assets (latitude, longitude) WHERE latitude IS NOT NULL",
        'CREATE VIRTUAL TABLE words USING fts5(text, name, tags, tokenize = "unicode61 remove_diacritics 2")',
    ):
        connection.exec_driver_sql(statement)


def _to_4(connection: sa.Connection) -> None:
    """Compressed tokens of pictures."""
    connection.exec_driver_sql(
        "CREATE TABLE tokens (segment_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, model_id INTEGER NOT NULL,"
        " identity TEXT NOT NULL, filename TEXT NOT NULL, length INTEGER NOT NULL, width INTEGER NOT NULL,"
        " count INTEGER NOT NULL, bytes INTEGER NOT NULL, checksum BLOB NOT NULL, generation INTEGER NOT NULL,"
        " UNIQUE (filename))"
    )


MIGRATIONS: Mapping[int, Step] = {2: _to_2, 3: _to_3, 4: _to_4}
"""Format number to the step that leads to it. Format 1 is the first; nothing leads there."""


def migrate(index: Path, steps: Callable[[str], None] = lambda name: None) -> int:
    """Brings the catalog of `index` to the current format, in one transaction, and returns the format it had.

    The caller holds the lock of the index. `steps` is told the name of each step before it happens.

    Raises:
        IndexTooNew: the format is newer than this code.
        IndexCorrupt: no step leads on from the format.
    """
    engine = connect(index / layout.CATALOG, foreign_keys=False)  # or a table could not be made anew
    try:
        with engine.connect() as connection:
            found = read_format(connection)
            for number in range(found + 1, layout.FORMAT_VERSION + 1):
                if number not in MIGRATIONS:
                    raise IndexCorrupt(f"{index} has format {found}, which no mmsearch has written")
                steps(f"migrate:{number}")
                MIGRATIONS[number](connection)
            if found < layout.FORMAT_VERSION:
                if found < _WORDS_SINCE:  # made of the tables as they are now
                    refill_words(raw(connection))
                connection.exec_driver_sql(f"PRAGMA user_version={layout.FORMAT_VERSION}")
                steps("migrate:commit")
                connection.commit()
            connection.rollback()
            if found > layout.FORMAT_VERSION:
                raise IndexTooNew(layout.too_new(index, found))
            return found
    finally:
        engine.dispose()


def read_format(connection: sa.Connection) -> int:
    """Format number of a catalog."""
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
