"""The one writer of an index: collects changes in a transaction, and publishes them with the vectors they need."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.errors import IndexNotFound
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.models import Models
from mmsearch.retrieval.store.publish import Batch, Kind, SegmentStore
from mmsearch.retrieval.store.records import AssetRecord, Model, NewItem
from mmsearch.retrieval.store.segments import KEY_BYTES, DType
from mmsearch.retrieval.store.session import Session
from mmsearch.retrieval.store.token_segments import TokenBatch, TokenKind, TokenSegments
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Writer(Session):
    """Collects changes; `commit` publishes them all at once, `rollback` (or leaving without commit) none.

    After `commit` returns, everything before it is on the medium and visible to new snapshots. A process that
    dies earlier, at whatever point, leaves the generation before. For one thread at a time.
    """

    def __init__(self, path: Path, *, dtype: DType, steps: Callable[[str], None]) -> None:
        """Takes the lock of the index at `path`. Use `LocalStore.writer`."""
        super().__init__(path)
        self._steps = steps
        self._models = Models(self._catalog)
        self._segments = SegmentStore(path, self._catalog, self._models, dtype=dtype, steps=steps)
        self._tokens = TokenSegments(path, self._catalog, self._segments.live_ids, steps=steps)
        self._dirty = False  # something that readers could see has changed
        self._touched_rows = False  # something has changed
        self._unfilled: set[tuple[int, str, bytes]] = set()  # model, space, key of vectors that have not come yet
        self._left: set[tuple[int, str]] = set()  # pictures that rows of manifests have let go
        self._expected: set[tuple[int, str]] = set()  # pictures that rows still to come will name
        self._vectors: dict[Kind, list[Batch]] = {}
        self._token_rows: dict[TokenKind, list[TokenBatch]] = {}
        try:
            with self._guard():
                self._segments.sweep()
        except BaseException:
            self.close()
            raise

    def _changed(self, *, visible: bool = True) -> None:
        self._touched_rows = True
        self._dirty = self._dirty or visible

    # Roots

    def root(self, root: Root) -> None:
        """Registers a root, or notes its device and columns; before its refs are added."""
        with self._guard():
            known = self._root_row(str(root.path))
            if known is None:
                self._roots[str(root.path)] = self._catalog.add_root(root)
                self._changed()
            elif (known["device"], known["columns"]) != (root.device, root.columns):
                self._catalog.update_root(known["root_id"], device=root.device, columns=root.columns)
                self._changed(visible=False)

    def scanned(self, root: Root) -> None:
        """Notes that a scan of the whole root was completed; bookkeeping that makes no new generation."""
        with self._guard():
            generation = int(self._catalog.meta()["generation"])
            values = {"completed_at": _now(), "last_scan_generation": generation}
            self._catalog.update_root(self._root_id(str(root.path)), **values)
            self._changed(visible=False)

    def mounted(self, root: Root, uris: Sequence[str]) -> None:
        """Notes which folders of a root are on other drives than the root; makes no new generation."""
        with self._guard():
            self._catalog.update_root(self._root_id(str(root.path)), mounts=json.dumps(uris) if uris else None)
            self._changed(visible=False)

    def take_out(self, root: str, uri: str) -> int:
        """Removes the asset at `uri` and all below it, and lets later scans pass over them; returns how many.

        What belongs to a removed picture (sidecar texts, rows) goes with it.
        """
        with self._guard():
            root_id = self._root_id(root)
            gone = self._catalog.assets_below(root_id, uri)
            removed = self._delete(gone)
            for _, owner in gone:
                removed += self._delete(self._catalog.owned_by(root_id, owner))
            self._catalog.set_removed(root_id, uri, removed=True)
            self._changed(visible=False)
        return removed

    def take_back(self, root: str, uri: str) -> None:
        """Lets scans find again what `take_out` removed."""
        with self._guard():
            self._catalog.set_removed(self._root_id(root), uri, removed=False)
            self._changed(visible=False)

    def remove_rows(self, root: str, keys: Sequence[str]) -> int:
        """Removes rows by their keys, with those of the same id after them (`id=17~2`); returns how many."""
        with self._guard():
            root_id = self._root_id(root)
            return sum(self._delete(self._catalog.assets_of_key(root_id, key)) for key in dict.fromkeys(keys))

    def forget_root(self, root: str) -> int:
        """Removes a root with all its assets; returns how many they were."""
        with self._guard():
            root_id = self._root_id(root)
            removed = self._delete(self._catalog.assets_below(root_id))
            self._delete_unlisted()
            self._catalog.delete_root(root_id)
            self._roots = {name: id_ for name, id_ in self._roots.items() if id_ != root_id}
            self._changed()
        return removed

    def _owner_root_id(self, ref: ItemRef) -> int | None:
        return None if ref.owner is None else self._root_id(ref.owner_root or ref.root)

    # Looking

    def find(self, space: Modality, keys: Sequence[bytes], model_id: int | None = None) -> dict[bytes, int]:
        """Embedding ids of the content keys whose vectors are there already, this transaction's included.

        By the current model, or by the one of that id.
        """
        with self._guard():
            model_id = model_id or self._catalog.model_id
            found = self._catalog.embedding_ids(space, keys, model_id)
        return {key: id_ for key, id_ in found.items() if (model_id, space, key) not in self._unfilled}

    def assets_by_hash(self, content_hash: bytes, modality: Modality) -> list[AssetRecord]:
        """Assets of a modality that had this content when last read, oldest first, this transaction's included.

        Their `root` is written as the caller has written it, where this writer has met it.
        """
        with self._guard():
            records = self._catalog.assets_by_hash(content_hash, modality)
        names = {id_: name for name, id_ in self._roots.items()}
        return [replace(record, root=names.get(record.root_id, record.root)) for record in records]

    # Changing

    def add(
        self,
        ref: ItemRef,
        *,
        content_hash: bytes,
        metadata: AssetMetadata,
        items: Sequence[NewItem],
        meta: str | None = None,
    ) -> bool:
        """Sets the asset at `ref.uri` and its items, in place of what was there; returns whether it had been good.

        `meta` is the JSON object of a row's further columns. The vectors of the items come through `embed`, before or
        after, in this transaction or an earlier one.
        """
        for item in items:
            _checked(item.content_key)
        with self._guard():
            values = {
                **self._catalog.metadata_columns(metadata),
                "meta": meta,
                "content_hash": content_hash,
                "status": "ok",
                "error": None,
                "indexed_at": _now(),
            }
            root_id = self._root_id(ref.root)
            there = self._catalog.find_asset(root_id, ref.uri)
            replaced = False
            if there is not None:
                self._leave_picture(there)
                replaced = self._catalog.has_content(there)
                self._catalog.delete_items(there)
            asset_id = self._catalog.update_asset(there, root_id, self._owner_root_id(ref), ref, values)
            ids: dict[tuple[str, bytes], int] = {}
            for space in sorted({item.modality for item in items}):
                keys = [item.content_key for item in items if item.modality == space]
                found = self._catalog.embedding_ids(space, keys)
                reserved = self._catalog.reserve(space, [key for key in keys if key not in found])
                self._unfilled.update((self._catalog.model_id, space, key) for key in reserved)
                ids.update({(space, key): id_ for key, id_ in (found | reserved).items()})
            embeddings = [ids[item.modality, item.content_key] for item in items]
            self._catalog.insert_items([asset_id] * len(items), items, embeddings)
            self._changed()
        return replaced

    def embed(
        self,
        space: Modality,
        keys: Sequence[bytes],
        rows: NDArray[np.float32],
        *,
        precision: str,
        device: str,
        backend: str,
        model_id: int | None = None,
    ) -> None:
        """Gives vectors to content keys; keys that have one already keep it.

        Args:
            space: embedding space.
            keys: n content keys of 32 bytes.
            rows: float32 (n, dim), finite.
            precision: how they were computed, as `Encoder` says; recorded with the segment.
            device: the same.
            backend: the same.
            model_id: of the model whose vectors these are; the current one by default.
        """
        rows = np.asarray(rows, np.float32)
        with self._guard():
            model_id = model_id or self._catalog.model_id
            dim = self._segments.model(model_id).dim
        if rows.shape != (len(keys), dim):
            raise ValueError(f"rows must have shape ({len(keys)}, {dim}), not {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("an encoder gave vectors that are not finite numbers")
        with self._guard():
            known = self._catalog.embedding_ids(space, keys, model_id)
            first: dict[bytes, int] = {}
            for number, key in enumerate(keys):
                if key not in known or (model_id, space, key) in self._unfilled:
                    first.setdefault(_checked(key), number)
            if not first:
                return
            known |= self._catalog.reserve(space, [key for key in first if key not in known], model_id)
            self._unfilled.difference_update((model_id, space, key) for key in first)
            ids = np.array([known[key] for key in first], np.int64)
            key_bytes = np.frombuffer(b"".join(first), np.uint8).reshape(-1, KEY_BYTES)
            batch = Batch(ids, key_bytes, rows[list(first.values())])
            self._vectors.setdefault(Kind(model_id, space, precision, device, backend), []).append(batch)
            self._changed()

    def embed_tokens(
        self, keys: Sequence[bytes], tokens: NDArray[np.int8], *, identity: str, model_id: int | None = None
    ) -> None:
        """Gives tokens to pictures that have an embedding, this transaction's included; those with tokens keep them.

        Args:
            keys: n content keys of pictures.
            tokens: int8 (n, length, width); `TokenEncoder` says of which shape.
            identity: `TokenEncoder.token_identity`; who reads the tokens asks for it.
            model_id: of the model whose embeddings these are; the current one by default.

        Raises:
            ValueError: the tokens have another shape or type, or a picture has no embedding.
        """
        if tokens.ndim != 3 or len(tokens) != len(keys) or tokens.dtype != np.int8:
            raise ValueError(f"tokens must be int8 ({len(keys)}, length, width), not {tokens.dtype} {tokens.shape}")
        if not len(keys):
            return
        with self._guard():
            model_id = model_id or self._catalog.model_id
            known = self._catalog.embedding_ids("image", keys, model_id)
        if len(known) < len(set(keys)):
            raise ValueError(f"{len(set(keys)) - len(known)} pictures with tokens have no embedding")
        ids = np.array([known[key] for key in keys], np.int64)
        key_bytes = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        kind = TokenKind(model_id, identity, *tokens.shape[1:])
        batch = TokenBatch(ids, key_bytes, tokens.reshape(len(keys), -1))
        self._token_rows.setdefault(kind, []).append(batch)
        self._changed()

    def drop_other_tokens(self, identity: str) -> int:
        """Commits, then lets go of tokens of the current model that are not of this identity.

        Returns how many files that was.
        """
        self.commit()
        with self._whole():
            return self._tokens.drop_others(self._catalog.model_id, identity)

    def move(self, root: str, old_uri: str, ref: ItemRef) -> None:
        """Gives an asset, with its items, a new uri and stamp; what was at the new uri is removed.

        Raises:
            KeyError: there is no asset at `old_uri`.
        """
        with self._guard():
            asset_id = self._catalog.find_asset(self._root_id(root), old_uri)
            if asset_id is None:
                raise KeyError(old_uri)
            old, new = (self._root_id(root), old_uri), (self._root_id(ref.root), ref.uri)
            there = self._catalog.find_asset(*new)
            if there is not None and there != asset_id:
                self._leave_picture(there)
                self._catalog.delete_asset(there)
            self._leave_picture(asset_id)
            values = {"status": "ok", "error": None}
            self._catalog.update_asset(asset_id, new[0], self._owner_root_id(ref), ref, values)
            self._catalog.follow_picture(old, new)
            if old in self._left:
                self._left.add(new)
            self._changed()

    def touch(self, ref: ItemRef) -> None:
        """Notes a new stamp (and owner) of a file whose content is what was indexed.

        Raises:
            KeyError: there is no asset at `ref.uri`.
        """
        with self._guard():
            root_id = self._root_id(ref.root)
            asset_id = self._catalog.find_asset(root_id, ref.uri)
            if asset_id is None:
                raise KeyError(ref.uri)
            self._leave_picture(asset_id)
            values = {"status": "ok", "error": None}
            self._catalog.update_asset(asset_id, root_id, self._owner_root_id(ref), ref, values)
            self._changed()

    def fail(self, ref: ItemRef, error: str) -> None:
        """Records that a file cannot be read. Items of an earlier, good content stay."""
        with self._guard():
            root_id = self._root_id(ref.root)
            asset_id = self._catalog.find_asset(root_id, ref.uri)
            values = {"status": "failed", "error": error}
            if asset_id is None:
                values["indexed_at"] = _now()
            else:
                self._leave_picture(asset_id)
            self._catalog.update_asset(asset_id, root_id, self._owner_root_id(ref), ref, values)
            self._changed()

    def remove(self, root: str, uris: Sequence[str]) -> int:
        """Removes assets with their items; returns how many were there."""
        with self._guard():
            root_id = self._root_id(root)
            found = [(self._catalog.find_asset(root_id, uri), uri) for uri in dict.fromkeys(uris)]
            return self._delete([(asset_id, uri) for asset_id, uri in found if asset_id is not None])

    def _delete(self, assets: Sequence[tuple[int, str]]) -> int:
        for asset_id, _ in assets:
            self._leave_picture(asset_id)
            self._catalog.delete_asset(asset_id)
            self._changed()
        return len(assets)

    def _leave_picture(self, asset_id: int) -> None:
        """Notes that a row may be the last that named its picture; the commit sees to it."""
        owner = self._catalog.owner_of(asset_id)
        if owner is not None:
            self._left.add(owner)

    def _delete_unlisted(self) -> None:
        """Removes pictures that only rows of manifests had named and that none names any more."""
        for asset_id in self._catalog.unlisted(sorted(self._left - self._expected)):
            self._catalog.delete_asset(asset_id)
        self._left.clear()

    def expect(self, root: str, uris: Sequence[str]) -> None:
        """Keeps pictures that rows are going to name, though rows before them let go of them in an earlier commit."""
        with self._guard():
            root_id = self._root_id(root)
            self._expected.update((root_id, uri) for uri in uris)

    def forget_unnamed(self) -> int:
        """Removes pictures that only rows could name and none does, since whenever; returns how many.

        A writer that died between a picture and its row leaves one. Looks at all files.
        """
        with self._guard():
            unnamed = self._catalog.all_unlisted()
            for asset_id in unnamed:
                self._catalog.delete_asset(asset_id)
                self._changed()
        return len(unnamed)

    def forget_salvaged(self) -> int:
        """Lets go of embeddings out of a lost catalog whose content a whole run has not found; see `doctor`."""
        with self._guard():
            forgotten = self._catalog.forget_salvaged()
            if forgotten:
                self._changed()
        return forgotten

    def tag(self, tags: Mapping[int, Mapping[str, float]], among: Collection[str] | None = None) -> int:
        """Sets the tags of assets, by their ids, in place of those before; returns how many assets that changed.

        Each tag comes with its relevance. Tags go with the content that they were found in; those without a relevance
        are somebody's own and stay. With `among`, only these tags are looked at, and all others stay.
        """
        with self._guard():
            changed = self._catalog.set_tags(tags, among)
            if changed:
                self._changed()
        return changed

    # Another model

    def models(self) -> dict[int, Model]:
        """The models whose vectors are here, by id: the current one and at most one that is being changed to."""
        with self._guard():
            return self._models.by_id()

    @property
    def model_id(self) -> int:
        """Id of the current model."""
        with self._guard():
            return self._catalog.model_id

    def has_probes(self, model_id: int | None = None) -> bool:
        """Whether the current model, or a staged one, has its probes."""
        with self._guard():
            return self._models.has_probes(self._catalog.model_id if model_id is None else model_id)

    def set_probes(self, rows: NDArray[np.float32], model_id: int | None = None) -> None:
        """Keeps what the current model, or a staged one, embeds the texts of `retrieval.probes` to.

        Args:
            rows: (p, dim).
            model_id: of a model that has none yet.
        """
        with self._guard():
            vectors = np.asarray(rows, "<f2").tobytes()
            self._models.set_probes(self._catalog.model_id if model_id is None else model_id, vectors)
            self._changed(visible=False)

    def stage(self, name: str, identity: str, dim: int, max_tokens: int | None) -> int:
        """The id of a model to change to; what an earlier, unfinished change to it has embedded is there already.

        Its vectors come through `embed`, in as many commits as it takes, and no reader sees them before `switch`.
        An unfinished change to another model is given up.
        """
        with self._guard():
            for model in self._models.by_id().values():
                if model.identity == identity:
                    return model.model_id
                if model.model_id != self._catalog.model_id:
                    self._models.drop(model.model_id)
                    gone = model.model_id
                    self._vectors = {kind: some for kind, some in self._vectors.items() if kind.model_id != gone}
                    self._token_rows = {kind: some for kind, some in self._token_rows.items() if kind.model_id != gone}
            self._changed(visible=False)
            return self._models.add(name, identity, dim, max_tokens)

    def switch(self, model_id: int, recut: Callable[[str | None, str], list[NewItem] | None]) -> int:
        """Commits, then makes a staged model the current one, in one transaction; the old vectors go.

        Args:
            model_id: what `stage` gave.
            recut: from (fragment, text) of a text item to the items that it becomes, or None to keep it. A single
                one has its fragment and text, and may have another content key; it keeps the id of the item.

        Returns:
            How many items had no vector by the new model and were removed; their files look changed to a scan.

        Raises:
            ValueError: no model of that id is staged.
        """
        self.commit()
        with self._whole():
            if model_id == self._catalog.model_id or model_id not in self._models.by_id():
                raise ValueError(f"no model {model_id} is staged")
            generation = int(self._catalog.meta()["generation"]) + 1
            self._steps("switch:catalog")
            self._models.replace_texts(recut, model_id)
            lost = self._models.repoint_items(model_id)
            self._catalog.update_words()
            self._models.switch(model_id, generation)
            self._publish_counts(self._catalog.meta(), generation)
            self._steps("switch:commit")
            self._catalog.commit()
            self._steps("switch:unlink")
            self._segments.sweep()
            self._steps("switch:done")
        return lost

    # Publishing

    def commit(self) -> int:
        """Publishes everything since the last commit and returns the generation.

        Segment files first, each whole and on the medium; then one transaction. Without changes it does nothing.
        Where it raises, everything since the last commit is forgotten.

        Raises:
            IndexUnusable: the disk is full or cannot be written to.
            IndexNotFound: the folder is gone.
        """
        with self._whole():
            return self._commit()

    def _commit(self) -> int:
        meta = self._catalog.meta()
        generation = int(meta["generation"])
        if self._unfilled:
            _, space, key = min(self._unfilled)
            raise ValueError(f"{len(self._unfilled)} items have no vector, the first {space} {key.hex()}")
        if not layout.is_index(self._path):
            raise IndexNotFound(f"the index at {self._path} was removed while it was written to")
        if not self._touched_rows:
            self._catalog.rollback()
            return generation
        if self._dirty:
            self._delete_unlisted()
            self._steps("commit:segments")
            generation += 1
            self._segments.write(self._vectors, generation)
            self._tokens.write(self._token_rows, generation)
            self._steps("commit:catalog")
            self._catalog.update_tombstones(generation)
            self._catalog.update_words()
            self._publish_counts(meta, generation)
        self._steps("commit:commit")
        self._catalog.commit()
        self._steps("commit:done")
        self._reset()
        return generation

    def _publish_counts(self, meta: dict[str, str], generation: int) -> None:
        values = {"generation": str(generation)}
        for modality, change in self._catalog.item_counts.items():
            key = f"items.{modality}"
            values[key] = str(int(meta.get(key, 0)) + change)
        self._catalog.set_meta(values)

    def rollback(self) -> None:
        """Forgets everything since the last commit."""
        self._expected.clear()
        self._reset()
        super().rollback()

    def _reset(self) -> None:
        self._dirty = self._touched_rows = False
        self._unfilled.clear()
        self._left.clear()
        self._vectors.clear()
        self._token_rows.clear()

    # Merging

    def merge(self, *, all_segments: bool = False) -> int:
        """Commits, then merges small segments and drops tombstones; returns how many segments were merged.

        Files of tokens are merged in the same way, without the rows of embeddings that are gone; one that is missing
        or damaged is dropped.

        With `all_segments` each space becomes one segment without tombstones; that costs a copy of everything.

        Tiers by size: a segment is merged together with everything smaller than it once that adds up to seven times
        its size, or, where it has less than a thousand rows, to its size. So each time a row is copied, the segment
        that it is in grows at least eightfold, or doubles: a row is copied O(log n) times, and n rows lie in O(log n)
        segments. Open snapshots keep the segments that they have.

        Raises:
            IndexCorrupt: a segment is missing or damaged. Nothing is lost by that: every file stays, what was
                committed is committed, and this writer can go on.
        """
        self.commit()
        with self._whole():
            merged = self._segments.merge(all_segments=all_segments)
            return merged + self._tokens.merge(all_segments=all_segments)


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a content key has {KEY_BYTES} bytes, not {len(key)}")
    return key


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
