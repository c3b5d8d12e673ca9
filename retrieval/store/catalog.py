"""The catalog: its schema, and the statements of the one writer. Reading is `store.reader`'s.

Everything a writer does happens inside one SQLite transaction that ends with `Catalog.commit`. Readers see
nothing of it before, and all of it after.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import insert

from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.records import AssetRecord, Model, NewItem
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp
from mmsearch.retrieval.uris import absolute_path

_T = TypeVar("_T")
_CHUNK = 500  # old SQLite builds take 999 parameters

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
    return {compact(str(statement.compile(dialect=sqlite.dialect()))) for statement in made}


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
            values = {**meta, "model_id": str(model.model_id)}
            connection.execute(sa.insert(META), [{"key": key, "value": value} for key, value in values.items()])
            connection.execute(sa.insert(MODELS), model._asdict())
            connection.exec_driver_sql(f"PRAGMA application_id={layout.APPLICATION_ID}")
            connection.exec_driver_sql(f"PRAGMA user_version={layout.FORMAT_VERSION}")
        _run_raw(engine, "PRAGMA journal_mode=WAL")
    finally:
        engine.dispose()


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


def _chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _storable(text: str | None) -> str | None:
    """Text as SQLite can hold it: half characters, as in names that are not UTF-8, are written out in hexadecimal."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_same(text: sa.RowMapping, new: Sequence[NewItem]) -> bool:
    """Whether a text item stays what it is."""
    return [one.content_key for one in new] == [text["content_key"]]


_PARAM = sa.bindparam
_FIND_ASSET = sa.select(ASSETS.c.asset_id).where(ASSETS.c.root_id == _PARAM("root_id"), ASSETS.c.uri == _PARAM("uri"))
_INSERT_ASSET = sa.insert(ASSETS)
_ASSET_ITEMS = sa.select(ITEMS.c.modality, ITEMS.c.embedding_id).where(ITEMS.c.asset_id == _PARAM("asset"))
_DELETE_ITEMS = sa.delete(ITEMS).where(ITEMS.c.asset_id == _PARAM("asset"))
_DELETE_ITEM = sa.delete(ITEMS).where(ITEMS.c.item_id == _PARAM("item"))
_MOVE_ITEM = sa.update(ITEMS).where(ITEMS.c.item_id == _PARAM("item")).values(embedding_id=_PARAM("embedding"))
_DELETE_ASSET = sa.delete(ASSETS).where(ASSETS.c.asset_id == _PARAM("asset"))
_OWNED = ASSETS.alias()
_UNNAMED = sa.select(ASSETS.c.asset_id).where(
    ASSETS.c.listed,
    ~sa.exists(
        sa.select(_OWNED.c.asset_id).where(
            _OWNED.c.owner_root_id == ASSETS.c.root_id, _OWNED.c.owner_uri == ASSETS.c.uri
        )
    ),
)
_METADATA_FIELDS = ("width", "height", "taken", "camera", "orientation", "latitude", "longitude", "phash")


class Catalog:
    """The writer's connection. Used by one thread at a time; the lock of the index is the caller's business."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self._engine = connect(index / layout.CATALOG)
        self._connection = self._engine.connect()
        self.item_counts: dict[str, int] = defaultdict(int)  # changes of this transaction, by modality
        self._known: dict[tuple[int, str], dict[bytes, int]] = {}  # embeddings that this transaction has met
        self.touched: set[int] = set()  # embeddings that won or lost items in this transaction
        self._model_id: int | None = None
        self._salvaging: bool | None = None  # whether anything is salvaged; both read when first needed

    def close(self) -> None:
        """Ends the transaction without its changes and closes the connection."""
        self._connection.close()
        self._engine.dispose()

    @property
    def model_id(self) -> int:
        """The current model, to the end of the transaction the one that was committed."""
        if self._model_id is None:
            self._model_id = int(self.meta()["model_id"])
        return self._model_id

    def rollback(self) -> None:
        """Forgets everything since the last commit."""
        self._forget()
        self._connection.rollback()

    def commit(self) -> None:
        """Publishes everything since the last commit at once; on the medium when it returns."""
        self._connection.commit()
        self._forget()

    def _forget(self) -> None:
        self.item_counts.clear()
        self.touched.clear()
        self._known.clear()
        self._model_id = self._salvaging = None

    # Meta and roots

    def meta(self) -> dict[str, str]:
        """All keys and values of the table `meta`."""
        return {row.key: row.value for row in self._connection.execute(sa.select(META.c.key, META.c.value))}

    def set_meta(self, values: Mapping[str, str]) -> None:
        """Writes keys of the table `meta`."""
        rows = [{"key": key, "value": value} for key, value in values.items()]
        statement = insert(META)
        self._connection.execute(
            statement.on_conflict_do_update(index_elements=["key"], set_={"value": statement.excluded.value}), rows
        )

    def root_rows(self) -> list[dict[str, object]]:
        """Roots as plain JSON: what a lost catalog is rebuilt from."""
        rows = self._connection.execute(sa.select(ROOTS).order_by(ROOTS.c.root_id))
        return [
            {
                "path": quote_from_bytes(row.path),
                "relative": bool(row.relative),
                "kind": row.kind,
                "columns": row.columns,
                "whole": row.completed_at is not None,
            }
            for row in rows
        ]

    def find_root(self, path: str) -> sa.RowMapping | None:
        """The row of a root."""
        for row in self._connection.execute(sa.select(ROOTS)).mappings():
            root = layout.root_path(self._index, row["path"], row["relative"])
            if layout.is_root(root, row["relative"], path):
                return row
        return None

    def add_root(self, root: Root) -> int:
        """A new root; returns its id."""
        stored, relative = layout.stored_root(self._index, root)
        row = {
            "path": stored,
            "relative": relative,
            "kind": root.kind,
            "device": root.device,
            "columns": root.columns,
        }
        return self._inserted(self._connection.execute(sa.insert(ROOTS), row))

    def update_root(self, root_id: int, **values: object) -> None:
        """Sets columns of a root."""
        self._connection.execute(sa.update(ROOTS).where(ROOTS.c.root_id == root_id), values)

    def delete_root(self, root_id: int) -> None:
        """Deletes a root that has no assets, with what was removed from it."""
        self._connection.execute(sa.delete(REMOVED).where(REMOVED.c.root_id == root_id))
        self._connection.execute(sa.delete(ROOTS).where(ROOTS.c.root_id == root_id))

    def set_removed(self, root_id: int, uri: str, *, removed: bool) -> None:
        """Notes that later scans pass over a file or folder, or that they no longer do."""
        if removed:
            statement = insert(REMOVED).on_conflict_do_nothing()
            self._connection.execute(statement, {"root_id": root_id, "uri": uri})
        else:
            self._connection.execute(sa.delete(REMOVED).where(REMOVED.c.root_id == root_id, REMOVED.c.uri == uri))

    # Models

    def models(self) -> dict[int, Model]:
        """All models by id."""
        rows = self._connection.execute(sa.select(MODELS).order_by(MODELS.c.model_id))
        return {row.model_id: Model(*row) for row in rows}

    def add_model(self, name: str, identity: str, dim: int, max_tokens: int | None) -> int:
        """A new model; returns its id."""
        row = {"name": name, "identity": identity, "dim": dim, "max_tokens": max_tokens}
        return self._inserted(self._connection.execute(sa.insert(MODELS), row))

    def drop_model(self, model_id: int) -> None:
        """Deletes a model with its segments and embeddings, none of which has an item."""
        mine = sa.select(EMBEDDINGS.c.embedding_id).where(EMBEDDINGS.c.model_id == model_id)
        self._connection.execute(sa.delete(SALVAGED).where(SALVAGED.c.embedding_id.in_(mine)))
        self._connection.execute(sa.delete(TOMBSTONES).where(TOMBSTONES.c.embedding_id.in_(mine)))
        self._connection.execute(sa.delete(EMBEDDINGS).where(EMBEDDINGS.c.model_id == model_id))
        self._connection.execute(sa.delete(SEGMENTS).where(SEGMENTS.c.model_id == model_id))
        self._connection.execute(sa.delete(MODELS).where(MODELS.c.model_id == model_id))

    def replace_texts(self, recut: Callable[[str | None, str], list[NewItem] | None], model_id: int) -> None:
        """Replaces text items by what `recut` (fragment, text) makes of them and a model has the vectors of.

        An item that becomes a single one keeps its id.
        """
        for page in self._texts():
            cuts = [(row, recut(row["fragment"], row["text"])) for row in page if row["text"] is not None]
            news = [(row, new) for row, new in cuts if new is not None and not _is_same(row, new)]
            ids = self.embedding_ids("text", [one.content_key for _, new in news for one in new], model_id)
            # Without all of its vectors an item is left to `repoint_items`.
            whole = [(row, new) for row, new in news if all(one.content_key in ids for one in new)]
            self._move_items([(row["item_id"], ids[new[0].content_key]) for row, new in whole if len(new) == 1])
            cut = [(row, new) for row, new in whole if len(new) != 1]
            self._delete_items("text", [row["item_id"] for row, _ in cut])
            items = [one for _, new in cut for one in new]
            assets = [row["asset_id"] for row, new in cut for _ in new]
            self._insert_items(assets, items, [ids[one.content_key] for one in items])

    def _move_items(self, moved: Sequence[tuple[int, int]]) -> None:
        """Points items to other embeddings."""
        if moved:
            rows = [{"item": item, "embedding": embedding} for item, embedding in moved]
            self._connection.execute(_MOVE_ITEM, rows)

    def _delete_items(self, modality: Modality, ids: Sequence[int]) -> None:
        if ids:
            self._connection.execute(_DELETE_ITEM, [{"item": item} for item in ids])
            self.item_counts[modality] -= len(ids)

    def _texts(self) -> Iterator[Sequence[sa.RowMapping]]:
        """Every text item, in pages: their texts may not fit in memory. Those added on the way are left out."""
        last = self._connection.execute(sa.select(sa.func.max(ITEMS.c.item_id))).scalar() or 0
        query = sa.select(
            ITEMS.c.item_id, ITEMS.c.asset_id, ITEMS.c.fragment, ITEMS.c.text, EMBEDDINGS.c.content_key
        ).join(EMBEDDINGS, EMBEDDINGS.c.embedding_id == ITEMS.c.embedding_id)
        texts = query.where(ITEMS.c.modality == "text", ITEMS.c.item_id <= last).order_by(ITEMS.c.item_id)
        after = 0
        while page := self._connection.execute(texts.where(ITEMS.c.item_id > after).limit(_CHUNK)).mappings().all():
            yield page
            after = page[-1]["item_id"]

    def repoint_items(self, model_id: int) -> int:
        """Points every item to the vector of its content by another model; returns how many items have none.

        Those are deleted, and their files look changed to the next scan.
        """
        old, new = EMBEDDINGS.alias(), EMBEDDINGS.alias()
        same = sa.and_(new.c.model_id == model_id, new.c.space == old.c.space, new.c.content_key == old.c.content_key)
        target = (
            sa.select(new.c.embedding_id)
            .select_from(old.join(new, same))
            .where(old.c.embedding_id == ITEMS.c.embedding_id)
            .scalar_subquery()
        )
        elsewhere = sa.select(EMBEDDINGS.c.embedding_id).where(EMBEDDINGS.c.model_id == self.model_id)
        lost = self._connection.execute(
            sa.select(ITEMS.c.item_id, ITEMS.c.asset_id, ITEMS.c.modality).where(
                ITEMS.c.embedding_id.in_(elsewhere), target.is_(None)
            )
        ).all()
        for item_id, asset_id, modality in lost:
            self.item_counts[modality] -= 1
            self._connection.execute(sa.delete(ITEMS).where(ITEMS.c.item_id == item_id))
            self._connection.execute(
                sa.update(ASSETS).where(ASSETS.c.asset_id == asset_id), {"size": -1, "content_hash": None}
            )
        self._connection.execute(
            sa.update(ITEMS).where(ITEMS.c.embedding_id.in_(elsewhere)).values(embedding_id=target)
        )
        return len(lost)

    def switch_model(self, model_id: int, generation: int) -> None:
        """Makes another model, which all items point to, the current one, and drops the one before.

        The transaction has to be committed next.
        """
        self.drop_model(self.model_id)
        pointed_to = sa.select(ITEMS.c.item_id).where(ITEMS.c.embedding_id == EMBEDDINGS.c.embedding_id)
        unused = sa.select(EMBEDDINGS.c.embedding_id, EMBEDDINGS.c.segment_id, sa.literal(generation)).where(
            EMBEDDINGS.c.model_id == model_id, ~sa.exists(pointed_to)
        )
        columns = ["embedding_id", "segment_id", "generation"]
        self._connection.execute(sa.insert(TOMBSTONES).from_select(columns, unused))
        self.set_meta({"model_id": str(model_id)})
        self.touched.clear()

    # Embeddings

    def embedding_ids(self, space: str, keys: Sequence[bytes], model_id: int | None = None) -> dict[bytes, int]:
        """Ids of the embeddings of these content keys, by the current model by default; absent keys are left out."""
        model_id = model_id or self.model_id
        known = self._known.setdefault((model_id, space), {})
        found = {key: known[key] for key in keys if key in known}
        for chunk in _chunks(key for key in dict.fromkeys(keys) if key not in found):
            query = sa.select(EMBEDDINGS.c.content_key, EMBEDDINGS.c.embedding_id).where(
                EMBEDDINGS.c.model_id == model_id,
                EMBEDDINGS.c.space == space,
                EMBEDDINGS.c.content_key.in_(chunk),
            )
            found.update((key, id_) for key, id_ in self._connection.execute(query))
        known.update(found)
        return found

    def reserve(self, space: str, keys: Iterable[bytes], model_id: int | None = None) -> dict[bytes, int]:
        """New embedding rows for keys that have none yet; their vectors follow before the commit."""
        model_id = model_id or self.model_id
        wanted = list(dict.fromkeys(keys))
        if wanted:
            rows = [{"model_id": model_id, "space": space, "content_key": key} for key in wanted]
            self._connection.execute(sa.insert(EMBEDDINGS), rows)
        ids = self.embedding_ids(space, wanted, model_id)
        self.touched.update(ids.values())
        return ids

    def smallest_items(self, ids: Sequence[int]) -> dict[int, int]:
        """Embedding ids to the smallest item id of the same content; those without items are left out.

        Of a model that is being changed to, these are the items that will point to it. Embeddings that wait for
        their content to be found again keep the item that they had.
        """
        found: dict[int, int] = {}
        mine, current = EMBEDDINGS.alias(), EMBEDDINGS.alias()
        same = sa.and_(
            current.c.model_id == self.model_id,
            current.c.space == mine.c.space,
            current.c.content_key == mine.c.content_key,
        )
        joined = mine.join(current, same).join(ITEMS, ITEMS.c.embedding_id == current.c.embedding_id)
        smallest = sa.select(mine.c.embedding_id, sa.func.min(ITEMS.c.item_id)).select_from(joined)
        for chunk in _chunks(ids):
            waiting = sa.select(SALVAGED).where(SALVAGED.c.embedding_id.in_(chunk))
            pointed_to = smallest.where(mine.c.embedding_id.in_(chunk)).group_by(mine.c.embedding_id)
            for query in (waiting, pointed_to):
                found.update((id_, item) for id_, item in self._connection.execute(query))
        return found

    def update_tombstones(self, generation: int) -> None:
        """Makes the tombstones right for every embedding that won or lost items in this transaction.

        Those of a model that is being changed to, and those that wait for their content to be found again, have no
        items yet and are not dead.
        """
        for chunk in _chunks(sorted(self.touched)):
            self._connection.execute(sa.delete(TOMBSTONES).where(TOMBSTONES.c.embedding_id.in_(chunk)))
            pointed_to = sa.select(ITEMS.c.item_id).where(ITEMS.c.embedding_id == EMBEDDINGS.c.embedding_id)
            unused = sa.select(EMBEDDINGS.c.embedding_id, EMBEDDINGS.c.segment_id, sa.literal(generation)).where(
                EMBEDDINGS.c.embedding_id.in_(chunk),
                EMBEDDINGS.c.model_id == self.model_id,
                ~sa.exists(pointed_to),
                ~sa.exists(sa.select(SALVAGED.c.item_id).where(SALVAGED.c.embedding_id == EMBEDDINGS.c.embedding_id)),
            )
            columns = ["embedding_id", "segment_id", "generation"]
            self._connection.execute(sa.insert(TOMBSTONES).from_select(columns, unused))

    # Assets and items

    def assets_by_hash(self, content_hash: bytes, modality: Modality) -> list[AssetRecord]:
        """Assets whose content was last read as this, oldest first; this transaction's included."""
        query = sa.select(ASSETS, ROOTS.c.path, ROOTS.c.relative).join(ROOTS, ROOTS.c.root_id == ASSETS.c.root_id)
        if modality == "image":
            pictures = (
                sa.select(ITEMS.c.asset_id)
                .join(EMBEDDINGS, EMBEDDINGS.c.embedding_id == ITEMS.c.embedding_id)
                .where(
                    EMBEDDINGS.c.model_id == self.model_id,
                    EMBEDDINGS.c.space == "image",
                    EMBEDDINGS.c.content_key == content_hash,
                )
            )
            query = query.where(ASSETS.c.asset_id.in_(pictures))
        else:
            query = query.where(sa.text("assets.modality != 'image'"))  # not a parameter: it picks the index
        query = query.where(ASSETS.c.content_hash == content_hash).order_by(ASSETS.c.asset_id)
        return [self._asset_record(row) for row in self._connection.execute(query).mappings()]

    def _asset_record(self, row: sa.RowMapping) -> AssetRecord:
        root = layout.root_path(self._index, row["path"], row["relative"])
        return AssetRecord(
            asset_id=row["asset_id"],
            root_id=row["root_id"],
            root=root,
            uri=row["uri"],
            path=absolute_path(root, row["uri"]),
            modality=row["modality"],
            stamp=Stamp(row["size"], row["mtime_ns"]),
            content_hash=row["content_hash"],
            owner=row["owner_uri"],
            status=row["status"],
            metadata=AssetMetadata(**{field: row[field] for field in _METADATA_FIELDS}),
        )

    def find_asset(self, root_id: int, uri: str) -> int | None:
        """Id of the asset at a uri."""
        id_ = self._connection.execute(_FIND_ASSET, {"root_id": root_id, "uri": uri}).scalar()
        return None if id_ is None else int(id_)

    def update_asset(
        self, asset_id: int | None, root_id: int, owner_root_id: int | None, ref: ItemRef, values: Mapping[str, object]
    ) -> int:
        """Writes an asset at `ref.uri`, its stamp from `ref` and other columns from `values`; returns its id.

        It is the asset of that id, wherever it was before, or a new one for None.
        """
        row: dict[str, object] = {
            "root_id": root_id,
            "uri": ref.uri,
            "modality": ref.modality,
            "size": ref.stamp.size,
            "mtime_ns": ref.stamp.mtime_ns,
            "owner_root_id": owner_root_id,
            "owner_uri": ref.owner,
            **{key: _storable(value) if isinstance(value, str) else value for key, value in values.items()},
        }
        if asset_id is None:
            return self._inserted(self._connection.execute(_INSERT_ASSET, {**row, "listed": ref.listed}))
        if not ref.listed:  # once named by the user, it is more than a line of a manifest
            row["listed"] = False
        self._connection.execute(sa.update(ASSETS).where(ASSETS.c.asset_id == asset_id), row)
        return asset_id

    @staticmethod
    def metadata_columns(metadata: AssetMetadata) -> dict[str, object]:
        """The columns of an asset that hold what the file says of itself."""
        return {field: getattr(metadata, field) for field in _METADATA_FIELDS}

    def assets_below(self, root_id: int, uri: str = "") -> list[tuple[int, str]]:
        """Ids and uris of the asset at `uri` and of all below it as a folder; of the whole root for an empty one."""
        all_ = sa.select(ASSETS.c.asset_id, ASSETS.c.uri).where(ASSETS.c.root_id == root_id)
        queries = [all_]
        if uri:
            # Uris are ASCII and "0" follows "/": a range of the index, in which `%` and `_` mean nothing. Two queries,
            # because SQLite would read the whole root for `or`.
            queries = [
                all_.where(ASSETS.c.uri == uri),
                all_.where(ASSETS.c.uri >= f"{uri}/", ASSETS.c.uri < f"{uri}0"),
            ]
        return sorted((row.asset_id, row.uri) for query in queries for row in self._connection.execute(query))

    def has_content(self, asset_id: int) -> bool:
        """Whether an asset was ever read successfully."""
        query = sa.select(ASSETS.c.content_hash).where(ASSETS.c.asset_id == asset_id)
        return self._connection.execute(query).scalar() is not None

    def assets_of_key(self, root_id: int, key: str) -> list[tuple[int, str]]:
        """Ids and uris of the rows of a key: itself, and those that repeat it (`~2`, `~3`...)."""
        repeated = sa.and_(ASSETS.c.uri > f"{key}~", ASSETS.c.uri < f"{key}\x7f")  # "~" is 0x7E
        query = sa.select(ASSETS.c.asset_id, ASSETS.c.uri).where(
            ASSETS.c.root_id == root_id, (ASSETS.c.uri == key) | repeated
        )
        return [(row.asset_id, row.uri) for row in self._connection.execute(query)]

    def owned_by(self, root_id: int, uri: str) -> list[tuple[int, str]]:
        """Ids and uris of what belongs to a picture."""
        query = sa.select(ASSETS.c.asset_id, ASSETS.c.uri).where(
            ASSETS.c.owner_root_id == root_id, ASSETS.c.owner_uri == uri
        )
        return [(row.asset_id, row.uri) for row in self._connection.execute(query)]

    def owner_of(self, asset_id: int) -> tuple[int, str] | None:
        """Root id and uri of the picture that an asset belongs to."""
        query = sa.select(ASSETS.c.owner_root_id, ASSETS.c.owner_uri).where(ASSETS.c.asset_id == asset_id)
        row = self._connection.execute(query).one()
        return None if row.owner_uri is None else (row.owner_root_id, row.owner_uri)

    def follow_picture(self, old: tuple[int, str], new: tuple[int, str]) -> None:
        """Lets what belongs to a picture belong to it where it is now."""
        self._connection.execute(
            sa.update(ASSETS).where(ASSETS.c.owner_root_id == old[0], ASSETS.c.owner_uri == old[1]),
            {"owner_root_id": new[0], "owner_uri": new[1]},
        )

    def unlisted(self, pictures: Iterable[tuple[int, str]]) -> list[int]:
        """Those of some pictures (root id, uri) that only rows named, and that no row names any more."""
        query = _UNNAMED.where(ASSETS.c.root_id == _PARAM("root"), ASSETS.c.uri == _PARAM("uri"))
        found = [self._connection.execute(query, {"root": root, "uri": uri}).scalar() for root, uri in pictures]
        return [id_ for id_ in found if id_ is not None]

    def all_unlisted(self) -> list[int]:
        """All such pictures. Looks at all assets."""
        return list(self._connection.execute(_UNNAMED).scalars())

    def delete_items(self, asset_id: int) -> int:
        """Deletes the items of an asset; returns how many it had."""
        lost = self._connection.execute(_ASSET_ITEMS, {"asset": asset_id}).all()
        for modality, embedding_id in lost:
            self.item_counts[modality] -= 1
            self.touched.add(embedding_id)
        if lost:
            self._connection.execute(_DELETE_ITEMS, {"asset": asset_id})
        return len(lost)

    def delete_asset(self, asset_id: int) -> None:
        """Deletes an asset and its items."""
        self.delete_items(asset_id)
        self._connection.execute(_DELETE_ASSET, {"asset": asset_id})

    def insert_items(self, asset_id: int, items: Sequence[NewItem], embedding_ids: Sequence[int]) -> None:
        """Adds items to an asset, in order."""
        self._insert_items([asset_id] * len(items), items, embedding_ids)

    def _insert_items(self, asset_ids: Sequence[int], items: Sequence[NewItem], embedding_ids: Sequence[int]) -> None:
        rows: list[dict[str, object]] = []
        salvaged = self._claim_salvaged(embedding_ids)
        for asset_id, item, embedding_id in zip(asset_ids, items, embedding_ids, strict=True):
            self.item_counts[item.modality] += 1
            self.touched.add(embedding_id)
            rows.append(
                {
                    "item_id": salvaged.pop(embedding_id, None),  # None: a new one
                    "asset_id": asset_id,
                    "fragment": item.fragment,
                    "modality": item.modality,
                    "embedding_id": embedding_id,
                    "text": _storable(item.text),
                }
            )
        if rows:
            self._connection.execute(sa.insert(ITEMS), rows)

    # What a lost catalog left behind

    def _claim_salvaged(self, embedding_ids: Sequence[int]) -> dict[int, int]:
        """Item ids that embeddings had before the catalog was lost; each is given out once."""
        if self._salvaging is None:
            self._salvaging = self._connection.execute(sa.select(SALVAGED.c.embedding_id).limit(1)).first() is not None
        if not self._salvaging:
            return {}
        found: dict[int, int] = {}
        for chunk in _chunks(dict.fromkeys(embedding_ids)):
            rows = self._connection.execute(sa.select(SALVAGED).where(SALVAGED.c.embedding_id.in_(chunk)))
            found.update((row.embedding_id, row.item_id) for row in rows)
            self._connection.execute(sa.delete(SALVAGED).where(SALVAGED.c.embedding_id.in_(chunk)))
        return {embedding: item for embedding, item in found.items() if item}

    def forget_salvaged(self) -> int:
        """Lets go of embeddings whose content was not found again; returns how many."""
        ids = list(self._connection.execute(sa.select(SALVAGED.c.embedding_id)).scalars())
        if ids:
            self._connection.execute(sa.delete(SALVAGED))
            self.touched.update(ids)
        return len(ids)

    # Segments

    def segments(self) -> list[sa.RowMapping]:
        """All segment rows, oldest first."""
        rows = self._connection.execute(sa.select(SEGMENTS).order_by(SEGMENTS.c.segment_id))
        return list(rows.mappings())

    def has_lost_segments(self) -> bool:
        """Whether an embedding is said to be in a segment of which there is no row. Looks at all embeddings."""
        known = sa.select(SEGMENTS.c.segment_id)
        query = sa.select(EMBEDDINGS.c.embedding_id).where(EMBEDDINGS.c.segment_id.not_in(known)).limit(1)
        return self._connection.execute(query).first() is not None

    def next_segment_id(self) -> int:
        """An id that no committed segment ever had."""
        query = sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'segments'")
        return int(self._connection.execute(query).scalar() or 0) + 1

    def insert_segment(self, values: Mapping[str, object], embedding_ids: Iterable[int]) -> None:
        """Records a segment whose file is complete, and that it now holds these embeddings."""
        self._connection.execute(sa.insert(SEGMENTS), dict(values))
        update = sa.update(EMBEDDINGS).where(EMBEDDINGS.c.embedding_id == _PARAM("id"))
        rows = [{"id": id_, "segment_id": values["segment_id"]} for id_ in embedding_ids]
        if rows:
            self._connection.execute(update, rows)

    def tombstones(self, segment_id: int) -> list[int]:
        """Embedding ids in a segment that no item points to."""
        query = sa.select(TOMBSTONES.c.embedding_id).where(TOMBSTONES.c.segment_id == segment_id)
        return list(self._connection.execute(query.order_by(TOMBSTONES.c.embedding_id)).scalars())

    def drop_segments(self, segment_ids: Sequence[int]) -> None:
        """Deletes segment rows with their tombstones and the tombstoned embeddings."""
        for segment_id in segment_ids:
            dead = self.tombstones(segment_id)
            self._connection.execute(sa.delete(TOMBSTONES).where(TOMBSTONES.c.segment_id == segment_id))
            for chunk in _chunks(dead):
                self._connection.execute(sa.delete(EMBEDDINGS).where(EMBEDDINGS.c.embedding_id.in_(chunk)))
            self._connection.execute(sa.delete(SEGMENTS).where(SEGMENTS.c.segment_id == segment_id))

    @staticmethod
    def _inserted(result: sa.CursorResult[Any]) -> int:
        key = result.inserted_primary_key
        assert key is not None
        return int(key[0])
