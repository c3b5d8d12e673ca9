"""The schema of a catalog, how one is made, and how the writer's connection to one is set up.

The SQL of readers is written by hand against it, in `store.reader`. To change it, see `store.migrations`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.records import Model
from mmsearch.retrieval.store.words import WORDS

# Random keys dirty a page each: of small pages a commit writes a quarter of what it writes of SQLite's usual 4096.
_PAGE_BYTES = 1024

METADATA = sa.MetaData()

CATALOG_ERRORS = (sqlite3.Error, sa.exc.SQLAlchemyError)
"""What the methods of `Catalog` raise where SQLite cannot do its work."""


def _table(name: str, *columns: sa.schema.SchemaItem) -> sa.Table:
    return sa.Table(name, METADATA, *columns, sqlite_autoincrement=True)


META = sa.Table(
    "meta",
    METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
MODELS = _table(  # `meta.model_id` is the one whose vectors are searched; another is being changed to
    "models",
    sa.Column("model_id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("identity", sa.Text, nullable=False, unique=True),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("max_tokens", sa.Integer),
)
PROBES = sa.Table(  # vectors of the texts of `retrieval.probes`, by which scores are judged
    "probes",
    METADATA,
    sa.Column("model_id", sa.Integer, sa.ForeignKey("models.model_id"), primary_key=True),
    sa.Column("vectors", sa.LargeBinary, nullable=False),  # little-endian float16, row after row
)
ROOTS = _table(
    "roots",
    sa.Column("root_id", sa.Integer, primary_key=True),
    sa.Column("path", sa.LargeBinary, nullable=False),  # bytes, as the file system has them
    sa.Column("relative", sa.Boolean, nullable=False),  # to the index folder, which the root contains
    sa.Column("kind", sa.Text, nullable=False),  # folder | manifest | rows
    sa.Column("device", sa.Integer, nullable=False),
    sa.Column("last_scan_generation", sa.Integer),
    sa.Column("completed_at", sa.Text),
    sa.Column("columns", sa.Text),  # JSON: which columns of a manifest were named
    sa.Column("mounts", sa.Text),  # JSON: uris of folders on other drives than the root's, of the last whole scan
    sa.UniqueConstraint("path", "relative"),
)
ASSETS = _table(
    "assets",
    sa.Column("asset_id", sa.Integer, primary_key=True),
    sa.Column("root_id", sa.Integer, sa.ForeignKey("roots.root_id"), nullable=False),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("modality", sa.Text, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("mtime_ns", sa.Integer, nullable=False),
    sa.Column("content_hash", sa.LargeBinary),  # null: never read successfully
    sa.Column("status", sa.Text, nullable=False),  # ok | failed
    sa.Column("error", sa.Text),
    sa.Column("owner_root_id", sa.Integer),
    sa.Column("owner_uri", sa.Text),
    sa.Column("listed", sa.Boolean, nullable=False),  # only rows of manifests name it
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
    sa.Column("taken", sa.Text),
    sa.Column("camera", sa.Text),
    sa.Column("orientation", sa.Integer),
    sa.Column("latitude", sa.Float),
    sa.Column("longitude", sa.Float),
    sa.Column("phash", sa.Integer),
    sa.Column("meta", sa.Text),  # JSON object: fields of manifests
    sa.Column("indexed_at", sa.Text, nullable=False),
    sa.UniqueConstraint("root_id", "uri"),
)
# Pictures are found through their embedding, whose key is the same hash: an index of random keys dirties a page for
# each new row, which is most of what a commit writes.
sa.Index("ix_assets_hash", ASSETS.c.content_hash, sqlite_where=sa.text("modality != 'image'"))
sa.Index("ix_assets_owner", ASSETS.c.owner_root_id, ASSETS.c.owner_uri, sqlite_where=ASSETS.c.owner_uri.is_not(None))
# What filters ask for and few rows answer. Any comparison with the column lets SQLite use a partial index.
sa.Index("ix_assets_taken", ASSETS.c.taken, sqlite_where=ASSETS.c.taken.is_not(None))
sa.Index("ix_assets_place", ASSETS.c.latitude, ASSETS.c.longitude, sqlite_where=ASSETS.c.latitude.is_not(None))
TAGS = sa.Table(  # what `mmsearch tag` has found in pictures
    "tags",
    METADATA,
    sa.Column("asset_id", sa.Integer, sa.ForeignKey("assets.asset_id"), primary_key=True),
    sa.Column("tag", sa.Text(collation="NOCASE"), primary_key=True),
    sa.Column("relevance", sa.Float),
)
sa.Index("ix_tags_tag", TAGS.c.tag)
REMOVED = sa.Table(  # files and folders that the user took out: later scans of their root pass over them
    "removed",
    METADATA,
    sa.Column("root_id", sa.Integer, sa.ForeignKey("roots.root_id"), primary_key=True),
    sa.Column("uri", sa.Text, primary_key=True),
)
SEGMENTS = _table(
    "segments",
    sa.Column("segment_id", sa.Integer, primary_key=True),
    sa.Column("model_id", sa.Integer, nullable=False),
    sa.Column("space", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False, unique=True),
    sa.Column("dtype", sa.Text, nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("checksum", sa.LargeBinary, nullable=False),
    sa.Column("precision", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
)
TOKENS = _table(  # files with compressed tokens of pictures: derived, `mmsearch index` makes anew what is not there
    "tokens",
    sa.Column("segment_id", sa.Integer, primary_key=True),
    sa.Column("model_id", sa.Integer, nullable=False),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False, unique=True),
    sa.Column("length", sa.Integer, nullable=False),  # tokens of a picture
    sa.Column("width", sa.Integer, nullable=False),  # numbers of a token
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("checksum", sa.LargeBinary, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
)
EMBEDDINGS = _table(
    "embeddings",
    sa.Column("embedding_id", sa.Integer, primary_key=True),
    sa.Column("model_id", sa.Integer, nullable=False),
    sa.Column("space", sa.Text, nullable=False),
    sa.Column("content_key", sa.LargeBinary, nullable=False),
    # Null only inside a transaction. No foreign key: without an index here, which every commit and merge would pay
    # for, the deletion of a segment would have to look at all embeddings. `store.doctor` checks it instead.
    sa.Column("segment_id", sa.Integer),
    sa.UniqueConstraint("model_id", "space", "content_key"),
)
ITEMS = _table(
    "items",
    sa.Column("item_id", sa.Integer, primary_key=True),
    sa.Column("asset_id", sa.Integer, sa.ForeignKey("assets.asset_id"), nullable=False, index=True),
    sa.Column("fragment", sa.Text),
    sa.Column("modality", sa.Text, nullable=False),
    sa.Column("embedding_id", sa.Integer, sa.ForeignKey("embeddings.embedding_id"), nullable=False, index=True),
    sa.Column("text", sa.Text),
    sa.Column("meta", sa.Text),
)
TOMBSTONES = sa.Table(  # embeddings that a segment holds and no item points to
    "tombstones",
    METADATA,
    sa.Column("embedding_id", sa.Integer, sa.ForeignKey("embeddings.embedding_id"), primary_key=True),
    sa.Column("segment_id", sa.Integer, sa.ForeignKey("segments.segment_id"), nullable=False, index=True),
    sa.Column("generation", sa.Integer, nullable=False),
)
SALVAGED = sa.Table(  # embeddings out of a lost catalog, and the item that each had: content found again gets both
    "salvaged",
    METADATA,
    sa.Column("embedding_id", sa.Integer, sa.ForeignKey("embeddings.embedding_id"), primary_key=True),
    sa.Column("item_id", sa.Integer, nullable=False),
)


def connect(catalog: Path, *, foreign_keys: bool = True, page_size: int | None = None) -> sa.Engine:
    """An engine for one writer: every commit on the medium before it returns, explicit transactions.

    `page_size` is that of a new file; a file that is there keeps its own.
    """
    keys = ("foreign_keys=ON",) if foreign_keys else ("foreign_keys=OFF", "legacy_alter_table=ON")

    def open_() -> sqlite3.Connection:
        connection = sqlite3.connect(catalog, timeout=30, isolation_level=None, check_same_thread=False)
        sizes = () if page_size is None else (f"page_size={page_size}",)
        for pragma in (
            *sizes,
            *keys,
            "wal_autocheckpoint=4000",
            "synchronous=FULL",
            "fullfsync=ON",
            "checkpoint_fullfsync=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    engine = sa.create_engine("sqlite://", creator=open_, poolclass=sa.pool.NullPool)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def statements() -> set[str]:
    """What makes the tables and indexes of a catalog, as `compact` writes it."""
    tables = METADATA.sorted_tables
    made: list[sa.schema.ExecutableDDLElement] = [sa.schema.CreateTable(table) for table in tables]
    made += [sa.schema.CreateIndex(index) for table in tables for index in table.indexes]
    return {compact(WORDS), *(compact(str(statement.compile(dialect=sqlite.dialect()))) for statement in made)}


def compact(sql: str) -> str:
    """A statement without what does not matter: blanks, line ends and quotes."""
    return re.sub(r'[\s"]', "", sql)


def create_catalog(path: Path, model: Model, meta: Mapping[str, str]) -> None:
    """Writes a whole new catalog of the current format at `path`, in WAL mode, closed and synced.

    It gets its log last: what a full disk keeps in a log would not follow when the file is renamed.
    """
    engine = connect(path, page_size=_PAGE_BYTES)
    try:
        with engine.begin() as connection:
            METADATA.create_all(connection, checkfirst=False)
            connection.exec_driver_sql(WORDS)
            values = {**meta, "model_id": str(model.model_id)}
            connection.execute(sa.insert(META), [{"key": key, "value": value} for key, value in values.items()])
            connection.execute(sa.insert(MODELS), model._asdict())
            connection.exec_driver_sql(f"PRAGMA application_id={layout.APPLICATION_ID}")
            connection.exec_driver_sql(f"PRAGMA user_version={layout.FORMAT_VERSION}")
        _run_raw(engine, "PRAGMA journal_mode=WAL")
    finally:
        engine.dispose()


def raw(connection: sa.Connection) -> sqlite3.Connection:
    """The connection of the standard library beneath, in the same transaction."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _run_raw(engine: sa.Engine, statement: str) -> None:
    """Runs what SQLite takes outside transactions only."""
    raw = engine.raw_connection()
    try:
        raw.cursor().execute(statement)
    finally:
        raw.close()


def reason(error: BaseException) -> str:
    """What a disk or a database says, without the words that libraries put around it."""
    return str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
