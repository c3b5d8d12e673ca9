"""The one writer of an index: collects changes in a transaction, and publishes them with the vectors they need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.errors import IndexNotFound, IndexUnusable
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.catalog import CATALOG_ERRORS, Catalog
from mmsearch.retrieval.store.lock import Lock
from mmsearch.retrieval.store.publish import Batch, Kind, SegmentStore
from mmsearch.retrieval.store.records import AssetRecord, NewItem
from mmsearch.retrieval.store.segments import KEY_BYTES, DType
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Writer:
    """Collects changes; `commit` publishes them all at once, `rollback` (or leaving without commit) none.

    After `commit` returns, everything before it is on the medium and visible to new snapshots. A process that
    dies earlier, at whatever point, leaves the generation before. For one thread at a time.
    """

    def __init__(self, path: Path, *, identity: str, dim: int, dtype: DType, steps: Callable[[str], None]) -> None:
        """Takes the lock of the index at `path`. Use `LocalStore.writer`."""
        self._path = path
        self._dim = dim
        self._steps = steps
        self._lock = Lock(path)
        try:
            self._catalog = Catalog(path)
        except BaseException:
            self._lock.release()
            raise
        self._segments = SegmentStore(path, self._catalog, identity=identity, dim=dim, dtype=dtype, steps=steps)
        self._open = True
        self._dirty = False  # something that readers could see has changed
        self._touched_rows = False  # something has changed
        self._roots: dict[str, int] = {}  # paths as the caller writes them
        self._unfilled: dict[tuple[str, bytes], int] = {}  # embeddings whose vector has not come yet
        self._vectors: dict[Kind, list[Batch]] = {}
        try:
            with self._guard():
                self._segments.sweep()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forgets what was not committed and gives the lock back. Idempotent."""
        if self._open:
            self._open = False
            try:
                self._catalog.close()
            finally:
                self._lock.release()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turns what disks and databases raise into this library's errors, with nothing half-done left behind."""
        try:
            yield
        except (OSError, *CATALOG_ERRORS) as error:
            with contextlib.suppress(*CATALOG_ERRORS):
                self.rollback()
            if not layout.is_index(self._path):
                raise IndexNotFound(f"the index at {self._path} was removed while it was written to") from error
            reason = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
            raise IndexUnusable(
                f"cannot write to the index at {self._path}: {reason}; everything committed before is safe"
            ) from error
        except (KeyboardInterrupt, SystemExit):  # perhaps between two statements that belong together
            with contextlib.suppress(*CATALOG_ERRORS):
                self.rollback()
            raise

    def _changed(self, *, visible: bool = True) -> None:
        self._touched_rows = True
        self._dirty = self._dirty or visible

    # Roots

    def root(self, root: Root) -> None:
        """Registers a root, or notes its device; before its refs are added."""
        with self._guard():
            known = self._root_row(root.path)
            if known is None:
                self._roots[str(root.path)] = self._catalog.add_root(root.path, root.device)
                self._changed()
            elif known[1] != root.device:
                self._catalog.update_root(known[0], device=root.device)
                self._changed(visible=False)

    def scanned(self, root: Root) -> None:
        """Notes that a scan of the whole root was completed; bookkeeping that makes no new generation."""
        with self._guard():
            generation = int(self._catalog.meta()["generation"])
            values = {"completed_at": _now(), "last_scan_generation": generation}
            self._catalog.update_root(self._root_id(str(root.path)), **values)
            self._changed(visible=False)

    def _root_row(self, path: Path) -> tuple[int, int] | None:
        stored, relative = layout.stored_root(self._path, path)
        row = self._catalog.roots().get(layout.root_path(self._path, stored, relative))
        if row is not None:
            self._roots[str(path)] = row[0]
        return row

    def _root_id(self, root: str) -> int:
        if root not in self._roots and self._root_row(Path(root)) is None:
            raise ValueError(f"unknown root {root!r}: register it with Writer.root first")
        return self._roots[root]

    # Looking

    def find(self, space: Modality, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Embedding ids of the content keys whose vectors are there already, this transaction's included."""
        with self._guard():
            found = self._catalog.embedding_ids(space, keys)
        return {key: id_ for key, id_ in found.items() if (space, key) not in self._unfilled}

    def asset_by_hash(self, content_hash: bytes) -> list[AssetRecord]:
        """Assets that had this content when they were last read, oldest first, this transaction's included.

        Their `root` is written as the caller has written it, where this writer has met it.
        """
        with self._guard():
            records = self._catalog.assets_by_hash(content_hash)
        names = {id_: name for name, id_ in self._roots.items()}
        return [replace(record, root=names.get(record.root_id, record.root)) for record in records]

    # Changing

    def add(self, ref: ItemRef, *, content_hash: bytes, metadata: AssetMetadata, items: Sequence[NewItem]) -> bool:
        """Sets the asset at `ref.uri` and its items, in place of what was there; returns whether it had items.

        The vectors of the items come through `embed`, before or after, in this transaction or an earlier one.
        """
        for item in items:
            _checked(item.content_key)
        with self._guard():
            values = {
                **self._catalog.metadata_columns(metadata),
                "content_hash": content_hash,
                "status": "ok",
                "error": None,
                "indexed_at": _now(),
            }
            root_id = self._root_id(ref.root)
            there = self._catalog.find_asset(root_id, ref.uri)
            replaced = there is not None and self._catalog.delete_items(there) > 0
            asset_id = self._catalog.update_asset(there, root_id, ref, values)
            ids: dict[tuple[str, bytes], int] = {}
            for space in sorted({item.modality for item in items}):
                keys = [item.content_key for item in items if item.modality == space]
                found = self._catalog.embedding_ids(space, keys)
                reserved = self._catalog.reserve(space, [key for key in keys if key not in found])
                self._unfilled.update({(space, key): id_ for key, id_ in reserved.items()})
                ids.update({(space, key): id_ for key, id_ in (found | reserved).items()})
            embeddings = [ids[item.modality, item.content_key] for item in items]
            self._catalog.insert_items(asset_id, items, embeddings)
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
    ) -> None:
        """Gives vectors to content keys; keys that have one already keep it.

        Args:
            space: embedding space.
            keys: n content keys of 32 bytes.
            rows: float32 (n, dim), finite.
            precision: how they were computed, as `Encoder` says; recorded with the segment.
            device: the same.
            backend: the same.
        """
        rows = np.asarray(rows, np.float32)
        if rows.shape != (len(keys), self._dim):
            raise ValueError(f"rows must have shape ({len(keys)}, {self._dim}), not {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("an encoder gave vectors that are not finite numbers")
        with self._guard():
            known = self._catalog.embedding_ids(space, keys)
            first: dict[bytes, int] = {}
            for number, key in enumerate(keys):
                if key not in known or (space, key) in self._unfilled:
                    first.setdefault(_checked(key), number)
            if not first:
                return
            known |= self._catalog.reserve(space, [key for key in first if key not in known])
            for key in first:
                self._unfilled.pop((space, key), None)
            ids = np.array([known[key] for key in first], np.int64)
            key_bytes = np.frombuffer(b"".join(first), np.uint8).reshape(-1, KEY_BYTES)
            batch = Batch(ids, key_bytes, rows[list(first.values())])
            self._vectors.setdefault(Kind(space, precision, device, backend), []).append(batch)
            self._changed()

    def move(self, root: str, old_uri: str, ref: ItemRef) -> None:
        """Gives an asset, with its items, a new uri and stamp; what was at the new uri is removed.

        Raises:
            KeyError: there is no asset at `old_uri`.
        """
        with self._guard():
            asset_id = self._catalog.find_asset(self._root_id(root), old_uri)
            if asset_id is None:
                raise KeyError(old_uri)
            new_root = self._root_id(ref.root)
            there = self._catalog.find_asset(new_root, ref.uri)
            if there is not None and there != asset_id:
                self._catalog.delete_asset(there)
            self._catalog.update_asset(asset_id, new_root, ref, {"status": "ok", "error": None})
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
            self._catalog.update_asset(asset_id, root_id, ref, {"status": "ok", "error": None})
            self._changed()

    def fail(self, ref: ItemRef, error: str) -> None:
        """Records that a file cannot be read. Items of an earlier, good content stay."""
        with self._guard():
            root_id = self._root_id(ref.root)
            asset_id = self._catalog.find_asset(root_id, ref.uri)
            values = {"status": "failed", "error": error}
            if asset_id is None:
                values["indexed_at"] = _now()
            self._catalog.update_asset(asset_id, root_id, ref, values)
            self._changed()

    def remove(self, root: str, uris: Sequence[str]) -> int:
        """Removes assets with their items; returns how many were there."""
        removed = 0
        with self._guard():
            root_id = self._root_id(root)
            for uri in uris:
                asset_id = self._catalog.find_asset(root_id, uri)
                if asset_id is not None:
                    self._catalog.delete_asset(asset_id)
                    self._changed()
                    removed += 1
        return removed

    # Publishing

    def commit(self) -> int:
        """Publishes everything since the last commit and returns the generation.

        Segment files first, each whole and on the medium; then one transaction. Without changes it does nothing.
        Where it raises, everything since the last commit is forgotten.

        Raises:
            IndexUnusable: the disk is full or cannot be written to.
            IndexNotFound: the folder is gone.
        """
        try:
            with self._guard():
                return self._commit()
        except BaseException:
            with contextlib.suppress(*CATALOG_ERRORS):
                self.rollback()
            raise

    def _commit(self) -> int:
        meta = self._catalog.meta()
        generation = int(meta["generation"])
        if self._unfilled:
            space, key = next(iter(self._unfilled))
            raise ValueError(f"{len(self._unfilled)} items have no vector, the first {space} {key.hex()}")
        if not layout.is_index(self._path):
            raise IndexNotFound(f"the index at {self._path} was removed while it was written to")
        if not self._touched_rows:
            self._catalog.rollback()
            return generation
        if self._dirty:
            self._steps("commit:segments")
            generation += 1
            self._segments.write(self._vectors, generation)
            self._steps("commit:catalog")
            self._catalog.update_tombstones(generation)
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
        self._catalog.rollback()
        self._roots.clear()
        self._reset()

    def _reset(self) -> None:
        self._dirty = self._touched_rows = False
        self._unfilled.clear()
        self._vectors.clear()

    # Merging

    def merge(self) -> int:
        """Commits, then merges small segments and drops tombstones; returns how many segments were merged.

        Tiers by size: a segment is merged together with everything smaller than it once those add up to its own
        size. So each time a row is copied, the segment that it is in at least doubles: a row is copied O(log n)
        times, and n rows lie in O(log n) segments. Open snapshots keep the segments that they have.

        Raises:
            IndexCorrupt: a segment is missing or damaged. Nothing is lost by that: every file stays, what was
                committed is committed, and this writer can go on.
        """
        self.commit()
        try:
            with self._guard():
                return self._segments.merge()
        except BaseException:
            with contextlib.suppress(*CATALOG_ERRORS):
                self.rollback()
            raise


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a content key has {KEY_BYTES} bytes, not {len(key)}")
    return key


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
