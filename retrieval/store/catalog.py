"""The catalog as the one writer changes it. Its tables are in `store.schema`; reading is `store.reader`'s.

Everything a writer does happens inside one SQLite transaction that ends with `Catalog.commit`. Readers see
nothing of it before, and all of it after.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.records import AssetRecord, NewItem
from mmsearch.retrieval.store.schema import (
    ASSETS,
    EMBEDDINGS,
    ITEMS,
    META,
    REMOVED,
    ROOTS,
    SALVAGED,
    SEGMENTS,
    TAGS,
    TOKENS,
    TOMBSTONES,
    connect,
    raw,
)
from mmsearch.retrieval.store.words import update_words
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp
from mmsearch.retrieval.uris import absolute_path

_T = TypeVar("_T")
CHUNK = 500  # old SQLite builds take 999 parameters


def _chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def inserted_id(result: sa.CursorResult[Any]) -> int:
    """Id of the row that a statement has inserted."""
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def _storable(text: str | None) -> str | None:
    """Text as SQLite can hold it: half characters, as in names that are not UTF-8, are written out in hexadecimal."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _distinct_tags(tags: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    """Tags as the table can hold them, by what it tells them apart by: capitals of ASCII make no difference."""
    best: dict[str, tuple[str, float]] = {}
    for tag, relevance in tags.items():
        written = tag.encode("utf-8", "backslashreplace").decode("utf-8")
        folded = _folded(written)
        if folded not in best or best[folded][1] < relevance:
            best[folded] = written, relevance
    return best


def _folded(tag: str) -> str:
    return tag.encode("utf-8", "backslashreplace").lower().decode("utf-8")


_PARAM = sa.bindparam
_FIND_ASSET = sa.select(ASSETS.c.asset_id).where(ASSETS.c.root_id == _PARAM("root_id"), ASSETS.c.uri == _PARAM("uri"))
_INSERT_ASSET = sa.insert(ASSETS)
_ITEM_COLUMNS = (ITEMS.c.item_id, ITEMS.c.modality, ITEMS.c.embedding_id)
_ASSET_ITEMS = sa.select(*_ITEM_COLUMNS).where(ITEMS.c.asset_id == _PARAM("asset"))
_DELETE_ITEMS = sa.delete(ITEMS).where(ITEMS.c.asset_id == _PARAM("asset"))
_DELETE_TAGS = sa.delete(TAGS).where(TAGS.c.asset_id == _PARAM("asset"))
_DELETE_ASSET = sa.delete(ASSETS).where(ASSETS.c.asset_id == _PARAM("asset"))
_THESE_ASSETS = "SELECT asset_id FROM assets WHERE asset_id IN (SELECT value FROM json_each(?))"
_THEIR_TAGS = "SELECT asset_id, tag, relevance FROM tags WHERE asset_id IN (SELECT value FROM json_each(?))"
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
        self.connection = self._engine.connect()
        self.item_counts: dict[str, int] = defaultdict(int)  # changes of this transaction, by modality
        self._known: dict[tuple[int, str], dict[bytes, int]] = {}  # embeddings that this transaction has met
        self.touched: set[int] = set()  # embeddings that won or lost items in this transaction
        self.reworded: set[int] = set()  # assets whose items have other words than before
        self.gone: set[int] = set()  # items that were deleted
        self._model_id: int | None = None
        self._salvaging: bool | None = None  # whether anything is salvaged; both read when first needed

    def close(self) -> None:
        """Ends the transaction without its changes and closes the connection."""
        self.connection.close()
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
        self.connection.rollback()

    def commit(self) -> None:
        """Publishes everything since the last commit at once; on the medium when it returns."""
        self.connection.commit()
        self._forget()

    def _forget(self) -> None:
        self.item_counts.clear()
        self.touched.clear()
        self.reworded.clear()
        self.gone.clear()
        self._known.clear()
        self._model_id = self._salvaging = None

    # Meta and roots

    def meta(self) -> dict[str, str]:
        """All keys and values of the table `meta`."""
        return {row.key: row.value for row in self.connection.execute(sa.select(META.c.key, META.c.value))}

    def set_meta(self, values: Mapping[str, str]) -> None:
        """Writes keys of the table `meta`."""
        rows = [{"key": key, "value": value} for key, value in values.items()]
        statement = insert(META)
        self.connection.execute(
            statement.on_conflict_do_update(index_elements=["key"], set_={"value": statement.excluded.value}), rows
        )

    def root_rows(self) -> list[dict[str, object]]:
        """Roots as plain JSON: what a lost catalog is rebuilt from."""
        rows = self.connection.execute(sa.select(ROOTS).order_by(ROOTS.c.root_id))
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
        for row in self.connection.execute(sa.select(ROOTS)).mappings():
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
        return inserted_id(self.connection.execute(sa.insert(ROOTS), row))

    def update_root(self, root_id: int, **values: object) -> None:
        """Sets columns of a root."""
        self.connection.execute(sa.update(ROOTS).where(ROOTS.c.root_id == root_id), values)

    def delete_root(self, root_id: int) -> None:
        """Deletes a root that has no assets, with what was removed from it."""
        self.connection.execute(sa.delete(REMOVED).where(REMOVED.c.root_id == root_id))
        self.connection.execute(sa.delete(ROOTS).where(ROOTS.c.root_id == root_id))

    def set_removed(self, root_id: int, uri: str, *, removed: bool) -> None:
        """Notes that later scans pass over a file or folder, or that they no longer do."""
        if removed:
            statement = insert(REMOVED).on_conflict_do_nothing()
            self.connection.execute(statement, {"root_id": root_id, "uri": uri})
        else:
            self.connection.execute(sa.delete(REMOVED).where(REMOVED.c.root_id == root_id, REMOVED.c.uri == uri))

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
            found.update((key, id_) for key, id_ in self.connection.execute(query))
        known.update(found)
        return found

    def reserve(self, space: str, keys: Iterable[bytes], model_id: int | None = None) -> dict[bytes, int]:
        """New embedding rows for keys that have none yet; their vectors follow before the commit."""
        model_id = model_id or self.model_id
        wanted = list(dict.fromkeys(keys))
        if wanted:
            rows = [{"model_id": model_id, "space": space, "content_key": key} for key in wanted]
            self.connection.execute(sa.insert(EMBEDDINGS), rows)
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
                found.update((id_, item) for id_, item in self.connection.execute(query))
        return found

    def update_tombstones(self, generation: int) -> None:
        """Makes the tombstones right for every embedding that won or lost items in this transaction.

        Those of a model that is being changed to, and those that wait for their content to be found again, have no
        items yet and are not dead.
        """
        for chunk in _chunks(sorted(self.touched)):
            self.connection.execute(sa.delete(TOMBSTONES).where(TOMBSTONES.c.embedding_id.in_(chunk)))
            pointed_to = sa.select(ITEMS.c.item_id).where(ITEMS.c.embedding_id == EMBEDDINGS.c.embedding_id)
            unused = sa.select(EMBEDDINGS.c.embedding_id, EMBEDDINGS.c.segment_id, sa.literal(generation)).where(
                EMBEDDINGS.c.embedding_id.in_(chunk),
                EMBEDDINGS.c.model_id == self.model_id,
                ~sa.exists(pointed_to),
                ~sa.exists(sa.select(SALVAGED.c.item_id).where(SALVAGED.c.embedding_id == EMBEDDINGS.c.embedding_id)),
            )
            columns = ["embedding_id", "segment_id", "generation"]
            self.connection.execute(sa.insert(TOMBSTONES).from_select(columns, unused))

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
        return [self._asset_record(row) for row in self.connection.execute(query).mappings()]

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
        id_ = self.connection.execute(_FIND_ASSET, {"root_id": root_id, "uri": uri}).scalar()
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
        if asset_id is not None:
            self.reworded.add(asset_id)
        else:
            return inserted_id(self.connection.execute(_INSERT_ASSET, {**row, "listed": ref.listed}))
        if not ref.listed:  # once named by the user, it is more than a line of a manifest
            row["listed"] = False
        self.connection.execute(sa.update(ASSETS).where(ASSETS.c.asset_id == asset_id), row)
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
        return sorted((row.asset_id, row.uri) for query in queries for row in self.connection.execute(query))

    def has_content(self, asset_id: int) -> bool:
        """Whether an asset was ever read successfully."""
        query = sa.select(ASSETS.c.content_hash).where(ASSETS.c.asset_id == asset_id)
        return self.connection.execute(query).scalar() is not None

    def assets_of_key(self, root_id: int, key: str) -> list[tuple[int, str]]:
        """Ids and uris of the rows of a key: itself, and those that repeat it (`~2`, `~3`...)."""
        repeated = sa.and_(ASSETS.c.uri > f"{key}~", ASSETS.c.uri < f"{key}\x7f")  # "~" is 0x7E
        query = sa.select(ASSETS.c.asset_id, ASSETS.c.uri).where(
            ASSETS.c.root_id == root_id, (ASSETS.c.uri == key) | repeated
        )
        return [(row.asset_id, row.uri) for row in self.connection.execute(query)]

    def owned_by(self, root_id: int, uri: str) -> list[tuple[int, str]]:
        """Ids and uris of what belongs to a picture."""
        query = sa.select(ASSETS.c.asset_id, ASSETS.c.uri).where(
            ASSETS.c.owner_root_id == root_id, ASSETS.c.owner_uri == uri
        )
        return [(row.asset_id, row.uri) for row in self.connection.execute(query)]

    def owner_of(self, asset_id: int) -> tuple[int, str] | None:
        """Root id and uri of the picture that an asset belongs to."""
        query = sa.select(ASSETS.c.owner_root_id, ASSETS.c.owner_uri).where(ASSETS.c.asset_id == asset_id)
        row = self.connection.execute(query).one()
        return None if row.owner_uri is None else (row.owner_root_id, row.owner_uri)

    def follow_picture(self, old: tuple[int, str], new: tuple[int, str]) -> None:
        """Lets what belongs to a picture belong to it where it is now."""
        self.connection.execute(
            sa.update(ASSETS).where(ASSETS.c.owner_root_id == old[0], ASSETS.c.owner_uri == old[1]),
            {"owner_root_id": new[0], "owner_uri": new[1]},
        )

    def unlisted(self, pictures: Iterable[tuple[int, str]]) -> list[int]:
        """Those of some pictures (root id, uri) that only rows named, and that no row names any more."""
        query = _UNNAMED.where(ASSETS.c.root_id == _PARAM("root"), ASSETS.c.uri == _PARAM("uri"))
        found = [self.connection.execute(query, {"root": root, "uri": uri}).scalar() for root, uri in pictures]
        return [id_ for id_ in found if id_ is not None]

    def all_unlisted(self) -> list[int]:
        """All such pictures. Looks at all assets."""
        return list(self.connection.execute(_UNNAMED).scalars())

    def delete_items(self, asset_id: int) -> int:
        """Deletes the items of an asset and what a model has said of them; returns how many it had."""
        lost = self.connection.execute(_ASSET_ITEMS, {"asset": asset_id}).all()
        for item_id, modality, embedding_id in lost:
            self.gone.add(item_id)
            self.item_counts[modality] -= 1
            self.touched.add(embedding_id)
        if lost:
            self.connection.execute(_DELETE_ITEMS, {"asset": asset_id})
        self.connection.execute(_DELETE_TAGS, {"asset": asset_id})
        return len(lost)

    def delete_asset(self, asset_id: int) -> None:
        """Deletes an asset and its items."""
        self.delete_items(asset_id)
        self.connection.execute(_DELETE_ASSET, {"asset": asset_id})

    def insert_items(self, asset_ids: Sequence[int], items: Sequence[NewItem], embedding_ids: Sequence[int]) -> None:
        """Adds items to assets, in order."""
        rows: list[dict[str, object]] = []
        salvaged = self._claim_salvaged(embedding_ids)
        for asset_id, item, embedding_id in zip(asset_ids, items, embedding_ids, strict=True):
            self.item_counts[item.modality] += 1
            self.touched.add(embedding_id)
            self.reworded.add(asset_id)
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
            self.connection.execute(sa.insert(ITEMS), rows)

    def update_words(self) -> None:
        """Makes the words right of every item that this transaction has added, deleted or moved."""
        update_words(raw(self.connection), self.reworded, self.gone)

    def set_tags(self, tags: Mapping[int, Mapping[str, float]], among: Collection[str] | None = None) -> int:
        """Sets the tags of assets, with the relevance of each, in place of those before; returns how many changed.

        With `among`, only these tags are looked at, and all others stay. Tags without a relevance are somebody's own:
        they stay in any case. Tags that differ in ASCII capitals only are one, of the larger relevance; assets that
        are not there are passed over.
        """
        run = self.connection.exec_driver_sql
        looked_at = None if among is None else {_folded(tag) for tag in among}
        changed = 0
        for some in _chunks(tags):
            ids = (json.dumps(some),)
            there: dict[int, dict[str, tuple[str, float | None]]] = {
                asset_id: {} for (asset_id,) in run(_THESE_ASSETS, ids)
            }
            for asset_id, tag, relevance in run(_THEIR_TAGS, ids):
                there[asset_id][_folded(tag)] = tag, relevance
            gone: list[tuple[int, str]] = []
            come: list[tuple[int, str, float]] = []
            for asset_id, before in there.items():
                own = {folded for folded, (_, relevance) in before.items() if relevance is None}
                found = _distinct_tags(tags[asset_id])
                wanted = {folded: one for folded, one in found.items() if folded not in own}
                out = [
                    (asset_id, old[0])
                    for folded, old in before.items()
                    if folded not in own and (looked_at is None or folded in looked_at) and wanted.get(folded) != old
                ]
                into = [(asset_id, *new) for folded, new in wanted.items() if before.get(folded) != new]
                if {tag for _, tag in out} != {tag for _, tag, _ in into}:
                    self.reworded.add(asset_id)
                changed += bool(out or into)
                gone += out
                come += into
            if gone:
                run("DELETE FROM tags WHERE asset_id = ? AND tag = ?", gone)
            if come:
                run("INSERT INTO tags (asset_id, tag, relevance) VALUES (?, ?, ?)", come)
        return changed

    # What a lost catalog left behind

    def _claim_salvaged(self, embedding_ids: Sequence[int]) -> dict[int, int]:
        """Item ids that embeddings had before the catalog was lost; each is given out once."""
        if self._salvaging is None:
            self._salvaging = self.connection.execute(sa.select(SALVAGED.c.embedding_id).limit(1)).first() is not None
        if not self._salvaging:
            return {}
        found: dict[int, int] = {}
        for chunk in _chunks(dict.fromkeys(embedding_ids)):
            rows = self.connection.execute(sa.select(SALVAGED).where(SALVAGED.c.embedding_id.in_(chunk)))
            found.update((row.embedding_id, row.item_id) for row in rows)
            self.connection.execute(sa.delete(SALVAGED).where(SALVAGED.c.embedding_id.in_(chunk)))
        return {embedding: item for embedding, item in found.items() if item}

    def forget_salvaged(self) -> int:
        """Lets go of embeddings whose content was not found again; returns how many."""
        ids = list(self.connection.execute(sa.select(SALVAGED.c.embedding_id)).scalars())
        if ids:
            self.connection.execute(sa.delete(SALVAGED))
            self.touched.update(ids)
        return len(ids)

    # Segments

    def segments(self) -> list[sa.RowMapping]:
        """All segment rows, oldest first."""
        rows = self.connection.execute(sa.select(SEGMENTS).order_by(SEGMENTS.c.segment_id))
        return list(rows.mappings())

    def filenames(self) -> set[str]:
        """The names of all files in `segments` that there should be."""
        names = sa.union_all(sa.select(SEGMENTS.c.filename), sa.select(TOKENS.c.filename))
        return set(self.connection.execute(names).scalars())

    def has_lost_segments(self) -> bool:
        """Whether an embedding is said to be in a segment of which there is no row. Looks at all embeddings."""
        known = sa.select(SEGMENTS.c.segment_id)
        query = sa.select(EMBEDDINGS.c.embedding_id).where(EMBEDDINGS.c.segment_id.not_in(known)).limit(1)
        return self.connection.execute(query).first() is not None

    def next_segment_id(self) -> int:
        """An id that no committed segment ever had."""
        query = sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'segments'")
        return int(self.connection.execute(query).scalar() or 0) + 1

    def insert_segment(self, values: Mapping[str, object], embedding_ids: Iterable[int]) -> None:
        """Records a segment whose file is complete, and that it now holds these embeddings."""
        self.connection.execute(sa.insert(SEGMENTS), dict(values))
        update = sa.update(EMBEDDINGS).where(EMBEDDINGS.c.embedding_id == _PARAM("id"))
        rows = [{"id": id_, "segment_id": values["segment_id"]} for id_ in embedding_ids]
        if rows:
            self.connection.execute(update, rows)

    def tombstones(self, segment_id: int) -> list[int]:
        """Embedding ids in a segment that no item points to."""
        query = sa.select(TOMBSTONES.c.embedding_id).where(TOMBSTONES.c.segment_id == segment_id)
        return list(self.connection.execute(query.order_by(TOMBSTONES.c.embedding_id)).scalars())

    def drop_segments(self, segment_ids: Sequence[int]) -> None:
        """Deletes segment rows with their tombstones and the tombstoned embeddings."""
        for segment_id in segment_ids:
            dead = self.tombstones(segment_id)
            self.connection.execute(sa.delete(TOMBSTONES).where(TOMBSTONES.c.segment_id == segment_id))
            for chunk in _chunks(dead):
                self.connection.execute(sa.delete(EMBEDDINGS).where(EMBEDDINGS.c.embedding_id.in_(chunk)))
            self.connection.execute(sa.delete(SEGMENTS).where(SEGMENTS.c.segment_id == segment_id))
