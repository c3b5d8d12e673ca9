"""The catalog: its schema, and the statements of the one writer. Reading is `store.reader`'s.

Everything a writer does happens inside one SQLite transaction that ends with `Catalog.commit`. Readers see
nothing of it before, and all of it after.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.records import AssetRecord, NewItem
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Stamp
from mmsearch.retrieval.uris import absolute_path

_T = TypeVar("_T")
_CHUNK = 500  # old SQLite builds take 999 parameters

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
ROOTS = _table(
    "roots",
    sa.Column("root_id", sa.Integer, primary_key=True),
    sa.Column("path", sa.LargeBinary, nullable=False),  # bytes, as the file system has them
    sa.Column("relative", sa.Boolean, nullable=False),  # to the index folder, which the root contains
    sa.Column("device", sa.Integer, nullable=False),
    sa.Column("last_scan_generation", sa.Integer),
    sa.Column("completed_at", sa.Text),
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
    sa.Column("content_hash", sa.LargeBinary, index=True),  # null: never read successfully
    sa.Column("status", sa.Text, nullable=False),  # ok | failed
    sa.Column("error", sa.Text),
    sa.Column("owner_uri", sa.Text),
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
SEGMENTS = _table(
    "segments",
    sa.Column("segment_id", sa.Integer, primary_key=True),
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
    sa.Column("space", sa.Text, nullable=False),
    sa.Column("content_key", sa.LargeBinary, nullable=False),
    # Null only inside a transaction. No foreign key: without an index here, which every commit and merge would pay
    # for, the deletion of a segment would have to look at all embeddings. LocalStore.verify checks it instead.
    sa.Column("segment_id", sa.Integer),
    sa.UniqueConstraint("space", "content_key"),
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


def connect(catalog: Path) -> sa.Engine:
    """An engine for one writer: WAL, every commit on the medium before it returns, explicit transactions."""

    def open_() -> sqlite3.Connection:
        connection = sqlite3.connect(catalog, timeout=30, isolation_level=None, check_same_thread=False)
        for pragma in ("foreign_keys=ON", "synchronous=FULL", "fullfsync=ON", "checkpoint_fullfsync=ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    engine = sa.create_engine("sqlite://", creator=open_, poolclass=sa.pool.NullPool)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def create_catalog(path: Path, meta: Mapping[str, str]) -> None:
    """Writes a whole new catalog of the current format at `path`, in WAL mode, closed and synced."""
    engine = connect(path)
    try:
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA journal_mode=WAL")
        finally:
            raw.close()
        with engine.begin() as connection:
            METADATA.create_all(connection, checkfirst=False)
            connection.execute(sa.insert(META), [{"key": key, "value": value} for key, value in meta.items()])
            connection.exec_driver_sql(f"PRAGMA application_id={layout.APPLICATION_ID}")
            connection.exec_driver_sql(f"PRAGMA user_version={layout.FORMAT_VERSION}")
    finally:
        engine.dispose()


def _chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _storable(text: str | None) -> str | None:
    """Text as SQLite can hold it: half characters, as in names that are not UTF-8, are written out in hexadecimal."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


_PARAM = sa.bindparam
_FIND_ASSET = sa.select(ASSETS.c.asset_id).where(ASSETS.c.root_id == _PARAM("root_id"), ASSETS.c.uri == _PARAM("uri"))
_INSERT_ASSET = sa.insert(ASSETS)
_ASSET_ITEMS = sa.select(ITEMS.c.modality, ITEMS.c.embedding_id).where(ITEMS.c.asset_id == _PARAM("asset"))
_DELETE_ITEMS = sa.delete(ITEMS).where(ITEMS.c.asset_id == _PARAM("asset"))
_DELETE_ASSET = sa.delete(ASSETS).where(ASSETS.c.asset_id == _PARAM("asset"))
_METADATA_FIELDS = ("width", "height", "taken", "camera", "orientation", "latitude", "longitude", "phash")


class Catalog:
    """The writer's connection. Used by one thread at a time; the lock of the index is the caller's business."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self._engine = connect(index / layout.CATALOG)
        self._connection = self._engine.connect()
        self.item_counts: dict[str, int] = defaultdict(int)  # changes of this transaction, by modality
        self._known: dict[str, dict[bytes, int]] = {}  # embeddings that this transaction has met
        self.touched: set[int] = set()  # embeddings that won or lost items in this transaction

    def close(self) -> None:
        """Ends the transaction without its changes and closes the connection."""
        self._connection.close()
        self._engine.dispose()

    def rollback(self) -> None:
        """Forgets everything since the last commit."""
        self._connection.rollback()
        self._forget()

    def commit(self) -> None:
        """Publishes everything since the last commit at once; on the medium when it returns."""
        self._connection.commit()
        self._forget()

    def _forget(self) -> None:
        self.item_counts.clear()
        self.touched.clear()
        self._known.clear()

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

    def roots(self) -> dict[str, tuple[int, int]]:
        """Absolute path of every root to its id and device."""
        rows = self._connection.execute(sa.select(ROOTS.c.root_id, ROOTS.c.path, ROOTS.c.relative, ROOTS.c.device))
        return {layout.root_path(self._index, row.path, row.relative): (row.root_id, row.device) for row in rows}

    def add_root(self, path: Path, device: int) -> int:
        """A new root; returns its id."""
        stored, relative = layout.stored_root(self._index, path)
        row = {"path": stored, "relative": relative, "device": device}
        return self._inserted(self._connection.execute(sa.insert(ROOTS), row))

    def update_root(self, root_id: int, **values: object) -> None:
        """Sets columns of a root."""
        self._connection.execute(sa.update(ROOTS).where(ROOTS.c.root_id == root_id), values)

    # Embeddings

    def embedding_ids(self, space: str, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Ids of the embeddings of these content keys; absent keys are left out."""
        known = self._known.setdefault(space, {})
        found = {key: known[key] for key in keys if key in known}
        for chunk in _chunks(key for key in dict.fromkeys(keys) if key not in found):
            query = sa.select(EMBEDDINGS.c.content_key, EMBEDDINGS.c.embedding_id).where(
                EMBEDDINGS.c.space == space, EMBEDDINGS.c.content_key.in_(chunk)
            )
            found.update((key, id_) for key, id_ in self._connection.execute(query))
        known.update(found)
        return found

    def reserve(self, space: str, keys: Iterable[bytes]) -> dict[bytes, int]:
        """New embedding rows for keys that have none yet; their vectors follow before the commit."""
        wanted = list(dict.fromkeys(keys))
        if wanted:
            rows = [{"space": space, "content_key": key} for key in wanted]
            self._connection.execute(sa.insert(EMBEDDINGS), rows)
        ids = self.embedding_ids(space, wanted)
        self.touched.update(ids.values())
        return ids

    def smallest_items(self, ids: Sequence[int]) -> dict[int, int]:
        """Embedding ids to the smallest item id that points to each; those without items are left out."""
        found: dict[int, int] = {}
        for chunk in _chunks(ids):
            query = (
                sa.select(ITEMS.c.embedding_id, sa.func.min(ITEMS.c.item_id))
                .where(ITEMS.c.embedding_id.in_(chunk))
                .group_by(ITEMS.c.embedding_id)
            )
            found.update((id_, item) for id_, item in self._connection.execute(query))
        return found

    def update_tombstones(self, generation: int) -> None:
        """Makes the tombstones right for every embedding that won or lost items in this transaction."""
        for chunk in _chunks(sorted(self.touched)):
            self._connection.execute(sa.delete(TOMBSTONES).where(TOMBSTONES.c.embedding_id.in_(chunk)))
            pointed_to = sa.select(ITEMS.c.item_id).where(ITEMS.c.embedding_id == EMBEDDINGS.c.embedding_id)
            unused = sa.select(EMBEDDINGS.c.embedding_id, EMBEDDINGS.c.segment_id, sa.literal(generation)).where(
                EMBEDDINGS.c.embedding_id.in_(chunk), ~sa.exists(pointed_to)
            )
            columns = ["embedding_id", "segment_id", "generation"]
            self._connection.execute(sa.insert(TOMBSTONES).from_select(columns, unused))

    # Assets and items

    def assets_by_hash(self, content_hash: bytes) -> list[AssetRecord]:
        """Assets whose content was last read as this, oldest first; this transaction's included."""
        query = (
            sa.select(ASSETS, ROOTS.c.path, ROOTS.c.relative)
            .join(ROOTS, ROOTS.c.root_id == ASSETS.c.root_id)
            .where(ASSETS.c.content_hash == content_hash)
            .order_by(ASSETS.c.asset_id)
        )
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

    def update_asset(self, asset_id: int | None, root_id: int, ref: ItemRef, values: Mapping[str, object]) -> int:
        """Writes an asset at `ref.uri`, its stamp from `ref` and other columns from `values`; returns its id.

        It is the asset of that id, wherever it was before, or a new one for None.
        """
        row = {
            "root_id": root_id,
            "uri": ref.uri,
            "modality": ref.modality,
            "size": ref.stamp.size,
            "mtime_ns": ref.stamp.mtime_ns,
            "owner_uri": ref.owner,
            **{key: _storable(value) if isinstance(value, str) else value for key, value in values.items()},
        }
        if asset_id is None:
            return self._inserted(self._connection.execute(_INSERT_ASSET, row))
        self._connection.execute(sa.update(ASSETS).where(ASSETS.c.asset_id == asset_id), row)
        return asset_id

    @staticmethod
    def metadata_columns(metadata: AssetMetadata) -> dict[str, object]:
        """The columns of an asset that hold what the file says of itself."""
        return {field: getattr(metadata, field) for field in _METADATA_FIELDS}

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
        rows = []
        for item, embedding_id in zip(items, embedding_ids, strict=True):
            self.item_counts[item.modality] += 1
            self.touched.add(embedding_id)
            rows.append(
                {
                    "asset_id": asset_id,
                    "fragment": item.fragment,
                    "modality": item.modality,
                    "embedding_id": embedding_id,
                    "text": _storable(item.text),
                }
            )
        if rows:
            self._connection.execute(sa.insert(ITEMS), rows)

    # Segments

    def segments(self) -> list[sa.RowMapping]:
        """All segment rows, oldest first."""
        rows = self._connection.execute(sa.select(SEGMENTS).order_by(SEGMENTS.c.segment_id))
        return list(rows.mappings())

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
