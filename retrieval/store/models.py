"""The models of an index, and what changing from one to another does to the catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa

from mmsearch.retrieval.store.catalog import CHUNK, Catalog, inserted_id
from mmsearch.retrieval.store.records import Model, NewItem
from mmsearch.retrieval.store.schema import (
    ASSETS,
    EMBEDDINGS,
    ITEMS,
    MODELS,
    PROBES,
    SALVAGED,
    SEGMENTS,
    TOKENS,
    TOMBSTONES,
)
from mmsearch.retrieval.types import Modality

_DELETE_ITEM = sa.delete(ITEMS).where(ITEMS.c.item_id == sa.bindparam("item"))
_MOVE_ITEM = (
    sa.update(ITEMS).where(ITEMS.c.item_id == sa.bindparam("item")).values(embedding_id=sa.bindparam("embedding"))
)


class Models:
    """The models whose vectors a catalog has, inside the transaction of its one writer."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._connection = catalog.connection

    def by_id(self) -> dict[int, Model]:
        """All models by id."""
        rows = self._connection.execute(sa.select(MODELS).order_by(MODELS.c.model_id))
        return {row.model_id: Model(*row) for row in rows}

    def add(self, name: str, identity: str, dim: int, max_tokens: int | None) -> int:
        """A new model; returns its id."""
        row = {"name": name, "identity": identity, "dim": dim, "max_tokens": max_tokens}
        return inserted_id(self._connection.execute(sa.insert(MODELS), row))

    def has_probes(self, model_id: int) -> bool:
        """Whether the vectors of the probes are there."""
        query = sa.select(sa.exists().where(PROBES.c.model_id == model_id))
        return bool(self._connection.execute(query).scalar())

    def set_probes(self, model_id: int, vectors: bytes) -> None:
        """Keeps the vectors of the probes, little-endian float16."""
        self._connection.execute(sa.insert(PROBES), {"model_id": model_id, "vectors": vectors})

    def drop(self, model_id: int) -> None:
        """Deletes a model with its segments, tokens and embeddings, none of which has an item."""
        mine = sa.select(EMBEDDINGS.c.embedding_id).where(EMBEDDINGS.c.model_id == model_id)
        self._connection.execute(sa.delete(SALVAGED).where(SALVAGED.c.embedding_id.in_(mine)))
        self._connection.execute(sa.delete(TOMBSTONES).where(TOMBSTONES.c.embedding_id.in_(mine)))
        self._connection.execute(sa.delete(EMBEDDINGS).where(EMBEDDINGS.c.model_id == model_id))
        self._connection.execute(sa.delete(SEGMENTS).where(SEGMENTS.c.model_id == model_id))
        self._connection.execute(sa.delete(TOKENS).where(TOKENS.c.model_id == model_id))
        self._connection.execute(sa.delete(PROBES).where(PROBES.c.model_id == model_id))
        self._connection.execute(sa.delete(MODELS).where(MODELS.c.model_id == model_id))

    def replace_texts(self, recut: Callable[[str | None, str], list[NewItem] | None], model_id: int) -> None:
        """Replaces text items by what `recut` (fragment, text) makes of them and a model has the vectors of.

        An item that becomes a single one keeps its id.
        """
        for page in self._texts():
            cuts = [(row, recut(row["fragment"], row["text"])) for row in page if row["text"] is not None]
            news = [(row, new) for row, new in cuts if new is not None and not _is_same(row, new)]
            ids = self._catalog.embedding_ids("text", [one.content_key for _, new in news for one in new], model_id)
            # Without all of its vectors an item is left to `repoint_items`.
            whole = [(row, new) for row, new in news if all(one.content_key in ids for one in new)]
            self._move_items([(row["item_id"], ids[new[0].content_key]) for row, new in whole if len(new) == 1])
            cut = [(row, new) for row, new in whole if len(new) != 1]
            self._delete_items("text", [row["item_id"] for row, _ in cut])
            items = [one for _, new in cut for one in new]
            assets = [row["asset_id"] for row, new in cut for _ in new]
            self._catalog.insert_items(assets, items, [ids[one.content_key] for one in items])

    def _move_items(self, moved: Sequence[tuple[int, int]]) -> None:
        """Points items to other embeddings."""
        if moved:
            rows = [{"item": item, "embedding": embedding} for item, embedding in moved]
            self._connection.execute(_MOVE_ITEM, rows)

    def _delete_items(self, modality: Modality, ids: Sequence[int]) -> None:
        if ids:
            self._connection.execute(_DELETE_ITEM, [{"item": item} for item in ids])
            self._catalog.item_counts[modality] -= len(ids)
            self._catalog.gone.update(ids)

    def _texts(self) -> Iterator[Sequence[sa.RowMapping]]:
        """Every text item, in pages: their texts may not fit in memory. Those added on the way are left out."""
        last = self._connection.execute(sa.select(sa.func.max(ITEMS.c.item_id))).scalar() or 0
        query = sa.select(
            ITEMS.c.item_id, ITEMS.c.asset_id, ITEMS.c.fragment, ITEMS.c.text, EMBEDDINGS.c.content_key
        ).join(EMBEDDINGS, EMBEDDINGS.c.embedding_id == ITEMS.c.embedding_id)
        texts = query.where(ITEMS.c.modality == "text", ITEMS.c.item_id <= last).order_by(ITEMS.c.item_id)
        after = 0
        while page := self._connection.execute(texts.where(ITEMS.c.item_id > after).limit(CHUNK)).mappings().all():
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
        elsewhere = sa.select(EMBEDDINGS.c.embedding_id).where(EMBEDDINGS.c.model_id == self._catalog.model_id)
        lost = self._connection.execute(
            sa.select(ITEMS.c.item_id, ITEMS.c.asset_id, ITEMS.c.modality).where(
                ITEMS.c.embedding_id.in_(elsewhere), target.is_(None)
            )
        ).all()
        for item_id, asset_id, modality in lost:
            self._catalog.item_counts[modality] -= 1
            self._catalog.gone.add(item_id)
            self._connection.execute(sa.delete(ITEMS).where(ITEMS.c.item_id == item_id))
            self._connection.execute(
                sa.update(ASSETS).where(ASSETS.c.asset_id == asset_id), {"size": -1, "content_hash": None}
            )
        self._connection.execute(
            sa.update(ITEMS).where(ITEMS.c.embedding_id.in_(elsewhere)).values(embedding_id=target)
        )
        return len(lost)

    def switch(self, model_id: int, generation: int) -> None:
        """Makes another model, which all items point to, the current one, and drops the one before.

        The transaction has to be committed next.
        """
        self.drop(self._catalog.model_id)
        pointed_to = sa.select(ITEMS.c.item_id).where(ITEMS.c.embedding_id == EMBEDDINGS.c.embedding_id)
        unused = sa.select(EMBEDDINGS.c.embedding_id, EMBEDDINGS.c.segment_id, sa.literal(generation)).where(
            EMBEDDINGS.c.model_id == model_id, ~sa.exists(pointed_to)
        )
        columns = ["embedding_id", "segment_id", "generation"]
        self._connection.execute(sa.insert(TOMBSTONES).from_select(columns, unused))
        self._catalog.set_meta({"model_id": str(model_id)})
        self._catalog.touched.clear()


def _is_same(text: sa.RowMapping, new: Sequence[NewItem]) -> bool:
    """Whether a text item stays what it is."""
    return [one.content_key for one in new] == [text["content_key"]]
