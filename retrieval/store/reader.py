"""Reading an index: the standard sqlite3 module, numpy, and nothing heavier, so that a query starts fast.

The SQL here is written by hand against the schema that `store.catalog` declares; tests/test_store.py runs every
statement against exactly that schema.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt, IndexNotFound, IndexTooNew, UsageError
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.records import Candidate
from mmsearch.retrieval.store.records import ItemRecord as ItemRecord
from mmsearch.retrieval.store.segments import Segment, search_rows
from mmsearch.retrieval.types import Failure, IndexInfo, Modality, RootInfo
from mmsearch.retrieval.uris import absolute_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

SQL = {
    "meta": "SELECT key, value FROM meta",
    "generation": "SELECT value FROM meta WHERE key = 'generation'",
    "segments": "SELECT segment_id, space, filename, count, bytes FROM segments ORDER BY segment_id",
    "tombstones": "SELECT embedding_id FROM tombstones WHERE segment_id = ? ORDER BY embedding_id",
    "items_of_embeddings": (
        "SELECT embedding_id, item_id FROM items WHERE embedding_id IN (SELECT value FROM json_each(?))"
    ),
    "embeddings_of_items": (
        "SELECT item_id, embedding_id FROM items WHERE modality = ? AND item_id IN (SELECT value FROM json_each(?))"
    ),
    "item_ids": "SELECT item_id FROM items WHERE modality = ? ORDER BY item_id",
    "items": (
        "SELECT item_id, asset_id, root_id, uri, fragment, items.modality, text, content_hash, owner_uri, width,"
        " height, taken, camera, orientation, latitude, longitude, phash"
        " FROM items JOIN assets USING (asset_id) WHERE item_id IN (SELECT value FROM json_each(?))"
    ),
    "items_of_hash": ("SELECT item_id FROM items JOIN assets USING (asset_id) WHERE content_hash = ? ORDER BY item_id"),
    "roots": "SELECT root_id, path, relative, device FROM roots ORDER BY root_id",
    "whole_roots": "SELECT root_id FROM roots WHERE completed_at IS NOT NULL",
    "root_items": "SELECT root_id, COUNT(*) FROM items JOIN assets USING (asset_id) GROUP BY root_id",
    "failed": "SELECT root_id, uri, error FROM assets WHERE status = 'failed' ORDER BY root_id, uri",
    "assets": (
        "SELECT uri, size, mtime_ns, owner_uri, modality, CASE status WHEN 'ok' THEN NULL ELSE COALESCE(error, '') END"
        " FROM assets WHERE root_id = ?"
    ),
}
"""Every statement of this module, by name."""

_ATTEMPTS = 10


def connect(path: Path) -> sqlite3.Connection:
    """A read-only connection to the catalog of the index at `path`, inside a read transaction.

    Raises:
        IndexNotFound: there is no index.
        IndexTooNew: it was written by a newer mmsearch.
        IndexCorrupt: SQLite cannot read it.
    """
    layout.require_index(path)
    layout.refuse_network_filesystem(path)
    catalog = path.absolute() / layout.CATALOG
    log = path / f"{layout.CATALOG}-wal"
    quiet = not log.exists() or log.stat().st_size == 0
    # SQLite cannot make the log's shared memory on a read-only medium; without a log it need not.
    frozen = quiet and not os.access(path, os.W_OK)
    address = f"{catalog.as_uri()}?mode=ro{'&immutable=1' if frozen else ''}"
    try:
        connection = sqlite3.connect(address, uri=True, timeout=30, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _corrupt(path, error) from error
    try:
        connection.execute("BEGIN")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > layout.FORMAT_VERSION:
            raise IndexTooNew(layout.too_new(path, found))
    except sqlite3.Error as error:
        connection.close()
        raise _corrupt(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def is_old(connection: sqlite3.Connection) -> bool:
    """Whether a catalog has a format that must be migrated before it can be read."""
    return bool(connection.execute("PRAGMA user_version").fetchone()[0] < layout.FORMAT_VERSION)


def _corrupt(path: Path, error: sqlite3.Error) -> IndexCorrupt:
    return IndexCorrupt(f"the catalog of {path} cannot be read ({error}); {layout.RESTORE}")


class Snapshot:
    """One generation of an index, unchanged for as long as it is open. Safe to use from several threads.

    It holds a read transaction and maps the segments when it is opened: commits, merges and even the removal of
    the folder do not change its answers. Open a new one now and then: the log of the catalog cannot shrink below
    the oldest open snapshot.

    Attributes:
        path: the index folder.
        generation: number of commits that this snapshot has seen.
        model, identity, dim: of the encoder whose vectors these are.
        counts: items by modality.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Takes over `connection`, which `connect` has made. Use `Snapshot.open`."""
        self.path = path
        self._lock = threading.Lock()
        self._connection = connection
        self._probe: sqlite3.Connection | None = None
        catalog = os.stat(path / layout.CATALOG)
        self._file = (catalog.st_dev, catalog.st_ino)
        meta = dict(self._rows("meta"))
        self.generation = int(meta["generation"])
        self.model: str = meta["model"]
        self.identity: str = meta["identity"]
        self.dim = int(meta["dim"])
        modalities: tuple[Modality, ...] = ("image", "text")
        self.counts: dict[Modality, int] = {name: int(meta.get(f"items.{name}", 0)) for name in modalities}
        self._roots = {
            root_id: layout.root_path(path, stored, relative)
            for root_id, stored, relative, _device in self._rows("roots")
        }
        self._segments: dict[str, list[Segment]] = {}
        self._dead: dict[str, list[NDArray[np.int64]]] = {}
        for segment_id, space, filename, count, size in self._rows("segments"):
            segment = Segment(path / layout.SEGMENTS / filename)
            if (segment.count, segment.header["bytes"], segment.dim) != (count, size, self.dim):
                raise IndexCorrupt(f"{segment.path} is not the segment that the catalog names; {layout.RESTORE}")
            dead = np.array([row[0] for row in self._rows("tombstones", segment_id)], np.int64)
            self._segments.setdefault(space, []).append(segment)
            self._dead.setdefault(space, []).append(segment.positions(dead))

    @classmethod
    def open(cls, path: Path) -> Snapshot:
        """The newest generation of the index at `path`; an old format is migrated first.

        Raises:
            IndexNotFound: there is no index (any more).
            IndexTooNew: it was written by a newer mmsearch.
            IndexCorrupt: a file is missing or damaged.
            IndexLocked: it must be migrated, and another process is writing to it.
            UnsafeFilesystem: it lies on a network drive.
        """
        path = Path(path).absolute()
        for attempt in range(_ATTEMPTS):
            connection = connect(path)
            try:
                if is_old(connection):
                    connection.close()
                    from mmsearch.retrieval.store.local import upgrade

                    upgrade(path)
                    continue
                return cls(path, connection)
            except FileNotFoundError as error:  # merged away after we had read its name: look again
                connection.close()
                layout.require_index(path)
                if attempt == _ATTEMPTS - 1:
                    raise IndexCorrupt(f"{error.filename} is missing; {layout.RESTORE}") from error
            except BaseException:
                connection.close()
                raise
        raise IndexCorrupt(f"{path} changes its format all the time")

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the generation. Further calls fail."""
        with self._lock:
            self._connection.close()
            if self._probe is not None:
                self._probe.close()
                self._probe = None
            self._segments.clear()
            self._dead.clear()

    def _rows(self, name: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connection.execute(SQL[name], parameters).fetchall()
            except sqlite3.ProgrammingError:
                raise  # a closed snapshot is the caller's mistake
            except sqlite3.Error as error:
                raise _corrupt(self.path, error) from error

    def is_current(self) -> bool:
        """Whether a new snapshot would show the same. False too when the index is gone or was replaced."""
        try:
            catalog = os.stat(self.path / layout.CATALOG)
        except OSError:
            return False
        if (catalog.st_dev, catalog.st_ino) != self._file:
            return False
        try:
            with self._lock:
                if self._probe is None:
                    self._probe = connect(self.path)
                    self._probe.execute("ROLLBACK")
                row = self._probe.execute(SQL["generation"]).fetchone()
        except (sqlite3.Error, IndexNotFound, IndexCorrupt, IndexTooNew):
            return False
        return row is not None and int(row[0]) == self.generation

    def search(self, space: Modality, queries: NDArray[np.float32], k: int) -> list[list[Candidate]]:
        """The k items of a modality with the highest inner products, exactly.

        Args:
            space: modality to look at.
            queries: float32 (q, dim).
            k: at least 1; more than there are items is well.

        Returns:
            For each query at most k candidates, best first, equal scores by `item_id`.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, not {k}")
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must have shape (q, {self.dim}), not {queries.shape}")
        if not np.isfinite(queries).all():
            raise ValueError("queries must be finite numbers")
        found = search_rows(self._segments.get(space, []), self._dead.get(space, []), queries, k)
        items = self._items_of(ids for ids, _ in found)
        answers = []
        for ids, scores in found:
            pairs = [
                (-score, item_id)
                for embedding_id, score in zip(ids.tolist(), scores.tolist(), strict=True)
                for item_id in items[embedding_id]
            ]
            answers.append([Candidate(item_id, -negative) for negative, item_id in sorted(pairs)[:k]])
        return answers

    def _items_of(self, embeddings: Iterable[NDArray[np.int64]]) -> dict[int, list[int]]:
        arrays = list(embeddings)
        ids = np.unique(np.concatenate(arrays)).tolist() if arrays else []
        items: dict[int, list[int]] = {id_: [] for id_ in ids}
        for embedding_id, item_id in self._rows("items_of_embeddings", json.dumps(ids)):
            items[embedding_id].append(item_id)
        return items

    def item_ids(self, space: Modality) -> NDArray[np.int64]:
        """All item ids of a modality, ascending."""
        return np.array([row[0] for row in self._rows("item_ids", space)], np.int64)

    def vectors(self, space: Modality, item_ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of items, float32 (n, dim), in the order asked for.

        Raises:
            KeyError: an item is not there, or not of this modality.
        """
        wanted = [int(id_) for id_ in item_ids]
        embedding_of = dict(self._rows("embeddings_of_items", space, json.dumps(wanted)))
        ids = np.array([embedding_of[id_] for id_ in wanted], np.int64)
        rows = np.empty((len(ids), self.dim), np.float32)
        missing = np.ones(len(ids), dtype=bool)
        for segment in self._segments.get(space, []):
            at = segment.positions(ids)
            here = at >= 0
            rows[here] = segment.rows[at[here]]
            missing &= ~here
        if missing.any():
            raise IndexCorrupt(
                f"{self.path} has no vector for item {wanted[int(np.argmax(missing))]}; {layout.RESTORE}"
            )
        return rows

    def items(self, item_ids: Sequence[int]) -> dict[int, ItemRecord]:
        """What is known of items, in one query; ids that are not there are left out."""
        ids = json.dumps([int(id_) for id_ in item_ids])
        return {row[0]: self._record(row) for row in self._rows("items", ids)}

    def _record(self, row: tuple[Any, ...]) -> ItemRecord:
        item_id, asset_id, root_id, uri, *rest = row
        root = self._roots[root_id]
        return ItemRecord(item_id, asset_id, root, uri, absolute_path(root, uri), *rest)

    def items_of_hash(self, content_hash: bytes) -> list[int]:
        """Ids of all items whose file has this content."""
        return [row[0] for row in self._rows("items_of_hash", content_hash)]

    def info(self) -> IndexInfo:
        """What the index holds."""
        items = dict(self._rows("root_items"))
        whole = {row[0] for row in self._rows("whole_roots")}
        roots = [
            RootInfo(path=root, items=items.get(root_id, 0), present=os.path.isdir(root), whole=root_id in whole)
            for root_id, root in self._roots.items()
        ]
        failed = [
            Failure(absolute_path(self._roots[root_id], uri), error or "")
            for root_id, uri, error in self._rows("failed")
        ]
        return IndexInfo(
            path=str(self.path),
            model=self.model,
            identity=self.identity,
            dim=self.dim,
            generation=self.generation,
            items=sum(self.counts.values()),
            images=self.counts["image"],
            texts=self.counts["text"],
            segments=sum(len(segments) for segments in self._segments.values()),
            bytes=layout.index_bytes(self.path),
            roots=tuple(roots),
            failed=tuple(failed),
        )
