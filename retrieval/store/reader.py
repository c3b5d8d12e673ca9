"""Reading an index: the standard sqlite3 module, numpy, and nothing heavier, so that a query starts fast.

The SQL here is written by hand against the schema that `store.schema` declares; tests/test_store.py runs every
statement against exactly that schema.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt, IndexNotFound, IndexTooNew, IndexUnusable, UsageError
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.columns import PICTURE_COLUMNS, Embeddings, PictureColumns, read_pictures
from mmsearch.retrieval.store.records import Candidate, Model
from mmsearch.retrieval.store.records import ItemRecord as ItemRecord
from mmsearch.retrieval.store.segments import Segment, search_rows, search_some
from mmsearch.retrieval.types import Failure, IndexInfo, Modality, RootInfo, RootKind, Stamp
from mmsearch.retrieval.uris import absolute_path, path_to_uri

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.store.tokens import TokenFiles

_log = logging.getLogger(__name__)

_ITEM = (
    "item_id, asset_id, root_id, uri, fragment, items.modality, text, content_hash, owner_root_id, owner_uri, width,"
    " height, taken, camera, orientation, latitude, longitude, phash, mtime_ns, assets.meta"
)
_ASSET = (
    "uri, size, mtime_ns, owner_root_id, owner_uri, modality, listed,"
    " CASE status WHEN 'ok' THEN NULL ELSE COALESCE(error, '') END"
)

SQL = {
    "meta": "SELECT key, value FROM meta",
    "model": (
        "SELECT model_id, name, identity, dim, max_tokens FROM models"
        " WHERE model_id = (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'model_id')"
    ),
    "probes": "SELECT vectors FROM probes WHERE model_id = ?",
    "generation": "SELECT value FROM meta WHERE key = 'generation'",
    "segments": (
        "SELECT segment_id, space, filename, count, bytes FROM segments WHERE model_id = ? ORDER BY segment_id"
    ),
    "tombstones": "SELECT embedding_id FROM tombstones WHERE segment_id = ? ORDER BY embedding_id",
    "items_of_embeddings": (
        "SELECT embedding_id, item_id FROM items WHERE embedding_id IN (SELECT value FROM json_each(?))"
    ),
    "embeddings_of_items": (
        "SELECT item_id, embedding_id FROM items WHERE modality = ? AND item_id IN (SELECT value FROM json_each(?))"
    ),
    "item_ids": "SELECT item_id FROM items WHERE modality = ? ORDER BY item_id",
    "items": (
        f"SELECT {_ITEM} FROM items JOIN assets USING (asset_id) WHERE item_id IN (SELECT value FROM json_each(?))"
    ),
    "items_after": (
        f"SELECT {_ITEM} FROM items JOIN assets USING (asset_id) WHERE item_id > ? AND item_id <= ?"
        " ORDER BY item_id LIMIT ?"
    ),
    "pictures": (
        "SELECT item_id, content_key, root_id, uri, content_hash FROM items JOIN assets USING (asset_id)"
        " JOIN embeddings USING (embedding_id) WHERE items.modality = 'image' AND item_id > ? AND item_id <= ?"
        " ORDER BY item_id LIMIT ?"
    ),
    "picture_columns": (
        f"SELECT {PICTURE_COLUMNS} FROM items JOIN assets USING (asset_id)"
        " WHERE items.modality = 'image' AND item_id > ? AND item_id <= ? ORDER BY item_id LIMIT ?"
    ),
    "texts": (
        "SELECT item_id, fragment, text FROM items WHERE modality = 'text' AND item_id > ? AND item_id <= ?"
        " ORDER BY item_id LIMIT ?"
    ),
    "items_of_hash": (
        "SELECT item_id FROM items JOIN embeddings USING (embedding_id)"
        " WHERE model_id = ? AND space = ? AND content_key = ? ORDER BY item_id"
    ),
    "same_content": (
        "SELECT item_id FROM items WHERE embedding_id = (SELECT embedding_id FROM items WHERE item_id = ?)"
    ),
    "tags": (
        "SELECT item_id, tag FROM items JOIN tags USING (asset_id)"
        " WHERE item_id IN (SELECT value FROM json_each(?)) ORDER BY tag"
    ),
    "captions": (
        "SELECT items.item_id, caption.text FROM items JOIN assets AS picture USING (asset_id)"
        " JOIN assets AS owned ON owned.owner_root_id = picture.root_id AND owned.owner_uri = picture.uri"
        " JOIN items AS caption ON caption.asset_id = owned.asset_id"
        " WHERE items.item_id IN (SELECT value FROM json_each(?)) AND caption.text IS NOT NULL"
        " ORDER BY caption.item_id"
    ),
    "tag_counts": "SELECT MIN(tag), COUNT(*) FROM tags GROUP BY tag ORDER BY tag",
    "tokens": (
        "SELECT filename, length, width, count, bytes FROM tokens WHERE model_id = ? AND identity = ?"
        " ORDER BY segment_id"
    ),
    "token_files": "SELECT COUNT(*) FROM tokens WHERE model_id = ?",
    "files_of_embeddings": (
        "SELECT embedding_id, content_key, root_id, uri, size, mtime_ns FROM items JOIN assets USING (asset_id)"
        " JOIN embeddings USING (embedding_id) WHERE embedding_id IN (SELECT value FROM json_each(?))"
        " AND status = 'ok' ORDER BY embedding_id, item_id"
    ),
    "roots": (
        "SELECT root_id, path, relative, kind, device, columns, mounts, completed_at FROM roots ORDER BY root_id"
    ),
    "named": "SELECT uri FROM assets WHERE root_id = ? AND NOT listed ORDER BY uri",
    "removed": "SELECT uri FROM removed WHERE root_id = ? ORDER BY uri",
    "root_items": "SELECT root_id, COUNT(*) FROM items JOIN assets USING (asset_id) GROUP BY root_id",
    "failed": "SELECT root_id, uri, error FROM assets WHERE status = 'failed' ORDER BY root_id, uri",
    "assets": f"SELECT {_ASSET} FROM assets WHERE root_id = ?",
    "assets_at": f"SELECT {_ASSET} FROM assets WHERE root_id = ? AND uri IN (SELECT value FROM json_each(?))",
}
"""Every statement of this module, by name."""

_ATTEMPTS = 10
_CACHE_KIB = 65_536
"""How much of the catalog stays in memory: filters and words look at rows all over it."""
_PAGE = 1000
_DISK_ERRORS = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_LAST = 2**63 - 1


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
        raise unreadable(path, error) from error
    try:
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        connection.execute("BEGIN")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > layout.FORMAT_VERSION:
            raise IndexTooNew(layout.too_new(path, found))
    except sqlite3.Error as error:
        connection.close()
        raise unreadable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def is_old(connection: sqlite3.Connection) -> bool:
    """Whether a catalog has a format that must be migrated before it can be read."""
    return bool(connection.execute("PRAGMA user_version").fetchone()[0] < layout.FORMAT_VERSION)


def unreadable(path: Path, error: Exception) -> IndexUnusable:
    """The error to raise for what SQLite says of a catalog: it is damaged, or the disk does not let it be read."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK_ERRORS:
        return IndexUnusable(
            f"the catalog of {path} cannot be opened ({error}): the disk is full, or fails; nothing was changed"
        )
    return IndexCorrupt(f"the catalog of {path} cannot be read ({error}); {layout.RESTORE}")


class StoredRoot(NamedTuple):
    """A root as the catalog knows it; `mounts` are uris of folders in it on other drives."""

    root_id: int
    path: str
    relative: bool
    kind: RootKind
    device: int
    columns: str | None
    mounts: tuple[str, ...]
    whole: bool

    def is_at(self, path: str) -> bool:
        """Whether `path` names this root."""
        return layout.is_root(self.path, self.relative, path)

    def present(self) -> bool:
        """Whether it can be found now."""
        return os.path.isdir(self.path) if self.kind == "folder" else self.kind == "rows" or os.path.isfile(self.path)


class PictureFile(NamedTuple):
    """A file of a picture: the embedding and content key of what it held when it was last read, and its stamp then."""

    embedding_id: int
    content_key: bytes
    root: str
    path: str
    stamp: Stamp


def read_roots(index: Path, rows: Iterable[tuple[Any, ...]]) -> list[StoredRoot]:
    """Roots out of the rows of `SQL["roots"]`."""
    return [
        StoredRoot(
            root_id,
            layout.root_path(index, stored, relative),
            bool(relative),
            kind,
            device,
            columns,
            tuple(json.loads(mounts or "[]")),
            completed is not None,
        )
        for root_id, stored, relative, kind, device, columns, mounts, completed in rows
    ]


def row_id(uri: str) -> str | None:
    """The id that a manifest or a program gave to a row, out of its uri; None for rows without one."""
    return unquote(uri[3:].partition("~")[0]) if uri.startswith("id=") else None


def failure_path(root: StoredRoot, uri: str) -> str:
    """What tells a person which file or row failed."""
    return absolute_path(root.path, uri) if root.kind == "folder" else f"{root.path}#{uri}"


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
        model = Model(*self._rows("model")[0])
        self._model_id = model.model_id
        self.model, self.identity, self.dim = model.name, model.identity, model.dim
        modalities: tuple[Modality, ...] = ("image", "text")
        self.counts: dict[Modality, int] = {name: int(meta.get(f"items.{name}", 0)) for name in modalities}
        self._roots = {row.root_id: row for row in read_roots(path, self._rows("roots"))}
        self._token_files: dict[str, TokenFiles] = {}  # by identity
        self._segments: dict[str, list[Segment]] = {}
        self._dead: dict[str, list[NDArray[np.int64]]] = {}
        for segment_id, space, filename, count, size in self._rows("segments", model.model_id):
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
            except OSError as error:
                connection.close()
                raise IndexCorrupt(f"{error.filename} cannot be read ({error.strerror}); {layout.RESTORE}") from error
            except (IndexError, KeyError) as error:  # no generation, no model
                connection.close()
                raise unreadable(path, error) from error
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
            self._token_files.clear()

    def _rows(self, name: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.select(SQL[name], parameters)

    def select(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement that reads this generation of the catalog."""
        with self._lock:
            try:
                return self._connection.execute(statement, parameters).fetchall()
            except sqlite3.ProgrammingError:
                raise  # a closed snapshot is the caller's mistake
            except sqlite3.Error as error:
                raise unreadable(self.path, error) from error

    def register(self, functions: Mapping[str, tuple[int, Callable[..., float | str | None]]]) -> None:
        """Lets statements call functions: SQL name to number of arguments and function."""
        with self._lock:
            for name, (arguments, function) in functions.items():
                self._connection.create_function(name, arguments, function, deterministic=True)

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
        except (sqlite3.Error, IndexNotFound, IndexUnusable):
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
        depth = k
        while True:  # salvaged vectors wait without an item: they take no place
            found = search_rows(self._segments.get(space, []), self._dead.get(space, []), queries, depth)
            answers = self._candidates(found, k)
            if all(len(got) >= k or len(ids) < depth for got, (ids, _) in zip(answers, found, strict=True)):
                return answers
            depth *= 4

    def search_embeddings(
        self, space: Modality, query: NDArray[np.float32], ids: NDArray[np.int64], k: int
    ) -> list[Candidate]:
        """Like `search` for one query (dim,), among the items of these embeddings only."""
        found = search_some(self._segments.get(space, []), ids, np.ascontiguousarray(query, np.float32), k)
        return self._candidates([found], k)[0]

    def _candidates(
        self, found: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]], k: int
    ) -> list[list[Candidate]]:
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

    def sample(self, space: Modality, size: int) -> NDArray[np.float32]:
        """About `size` vectors of a modality (half as many at least, where there are as many), float32 (n, dim).

        Always the same of the same embeddings, in whatever segments they lie: evenly spaced by id.
        """
        segments, dead = self._segments.get(space, []), self._dead.get(space, [])
        first = min((int(segment.ids[0]) for segment in segments if segment.count), default=0)
        last = max((int(segment.ids[-1]) for segment in segments if segment.count), default=-1)
        step = max(1, (last - first + 1) // size)
        while True:
            ids = np.arange(first, last + 1, step)
            chosen = [np.setdiff1d(one.positions(ids), [-1, *gone]) for one, gone in zip(segments, dead, strict=True)]
            if step == 1 or sum(map(len, chosen)) >= size // 2:
                break
            step = max(1, step // 2)
        rows = [one.rows[at].astype(np.float32) for one, at in zip(segments, chosen, strict=True)]
        return np.concatenate([np.empty((0, self.dim), np.float32), *rows])

    def probes(self) -> NDArray[np.float32]:
        """What the model embeds the texts of `retrieval.probes` to, (p, dim); none where it was not asked."""
        found = self._rows("probes", self._model_id)
        return np.frombuffer(b"".join(row[0] for row in found), "<f2").astype(np.float32).reshape(-1, self.dim)

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

    def tokens(
        self, item_ids: Sequence[int] | NDArray[np.int64], identity: str
    ) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
        """The compressed tokens of pictures that an encoder of this `token_identity` has made.

        Files are opened by the first call. What was merged since this snapshot was opened is found where it is now.

        Args:
            item_ids: n items; those that are no pictures, or not there, have no tokens.
            identity: `TokenEncoder.token_identity`.

        Returns:
            Which of the items have tokens, bool (n), and their tokens, int8 (n, length, width), with zeros for the
            others; (n, 0, 0) where there are none of this identity.
        """
        wanted = [int(id_) for id_ in item_ids]
        embedding_of = dict(self._rows("embeddings_of_items", "image", json.dumps(wanted)))
        ids = np.array([embedding_of.get(id_, -1) for id_ in wanted], np.int64)
        return self._tokens_of(identity).take(ids)

    def without_tokens(self, identity: str) -> NDArray[np.int64]:
        """Ids of the embeddings of pictures that have no tokens of this identity, ascending, int64 (n)."""
        pairs = zip(self._segments.get("image", []), self._dead.get("image", []), strict=True)
        ids = np.concatenate([np.empty(0, np.int64), *(np.delete(one.ids, dead) for one, dead in pairs)])
        return np.sort(ids[~self._tokens_of(identity).has(ids)])

    def _tokens_of(self, identity: str) -> TokenFiles:
        """The open files of an identity."""
        if identity not in self._token_files:
            from mmsearch.retrieval.store.tokens import TokenFiles, TokenRow

            asked = (self._model_id, identity)
            rows = self._rows("tokens", *asked)
            for _ in range(_ATTEMPTS):
                files = TokenFiles(self.path / layout.SEGMENTS, (TokenRow(*row) for row in rows), identity)
                before, rows = rows, self._newest_rows("tokens", *asked) if files.missing else rows
                if rows == before:
                    break
            for name in (*files.missing, *files.damaged):
                _log.warning("%s cannot be used; %s", self.path / layout.SEGMENTS / name, layout.RESTORE)
            self._token_files[identity] = files
        return self._token_files[identity]

    def _newest_rows(self, name: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of the newest generation of the same index; none where that is gone."""
        try:
            catalog = os.stat(self.path / layout.CATALOG)
            if (catalog.st_dev, catalog.st_ino) != self._file:
                return []
            with closing(connect(self.path)) as connection:
                return connection.execute(SQL[name], parameters).fetchall()
        except (OSError, sqlite3.Error, IndexNotFound, IndexUnusable):
            return []

    def files_of(self, embedding_ids: Sequence[int]) -> list[PictureFile]:
        """Where the pictures of some embeddings are, as last read: each file, by embedding. Rows have no file."""
        found = self._rows("files_of_embeddings", json.dumps([int(id_) for id_ in embedding_ids]))
        return [
            PictureFile(embedding_id, key, root.path, absolute_path(root.path, uri), Stamp(size, mtime_ns))
            for embedding_id, key, root_id, uri, size, mtime_ns in found
            if (root := self._roots[root_id]).kind == "folder"
        ]

    def embeddings(self, space: Modality) -> Embeddings:
        """The vectors of a space, for who looks at all of them."""
        return Embeddings(self._segments.get(space, []), self._dead.get(space, []), self.dim)

    def picture_columns(self) -> PictureColumns:
        """What tells which of two pictures is the better one, and whether they are alike, of every image item."""
        return read_pictures(self._paged("picture_columns"))

    def items(self, item_ids: Sequence[int]) -> dict[int, ItemRecord]:
        """What is known of items, in one query; ids that are not there are left out."""
        ids = json.dumps([int(id_) for id_ in item_ids])
        return {row[0]: self._record(row) for row in self._rows("items", ids)}

    def _record(self, row: tuple[Any, ...]) -> ItemRecord:
        item_id, asset_id, root_id, uri, fragment, modality, text, content_hash, owner_root_id, owner, *rest = row
        root = self._roots[root_id]
        place = root.path
        path: str | None = absolute_path(place, uri)
        id_ = None
        if root.kind != "folder":  # a row: what it says is of its picture, or of the manifest
            id_, key = row_id(uri), uri
            picture = self._roots.get(owner_root_id) if owner is not None else None
            if picture is not None:
                place, uri = picture.path, owner
            elif root.kind == "manifest":
                uri = path_to_uri(os.path.basename(place))
            path = absolute_path(place, uri) if picture is not None else place if root.kind == "manifest" else None
            if path is not None:
                fragment = key if fragment is None else f"{key}&{fragment}"
        fields = (item_id, asset_id, place, uri, path, fragment, modality, text, content_hash, owner, *rest, id_)
        return ItemRecord(*fields)

    def _paged(self, name: str, after: int = 0, last: int = _LAST) -> Iterator[tuple[Any, ...]]:
        while rows := self._rows(name, after, last, _PAGE):
            yield from rows
            after = rows[-1][0]

    def all_items(self) -> Iterator[ItemRecord]:
        """Every item, by id, a page at a time."""
        return map(self._record, self._paged("items_after"))

    def pictures(self, after: int = 0, last: int = _LAST) -> Iterator[tuple[bytes, bytes | None, str | None]]:
        """Of every image item the content key, the hash of its file and where that is (None: nowhere).

        By id; only of those above `after` and up to `last`.
        """
        for _item_id, key, root_id, uri, content_hash in self._paged("pictures", after, last):
            root = self._roots[root_id]
            yield key, content_hash, absolute_path(root.path, uri) if root.kind == "folder" else None

    def texts(self, after: int = 0, last: int = _LAST) -> Iterator[tuple[str | None, str | None]]:
        """Of every text item the fragment and the text; as `pictures`."""
        for _item_id, fragment, text in self._paged("texts", after, last):
            yield fragment, text

    def removed(self, root_id: int) -> list[str]:
        """Uris of files and folders of a root that the user took out."""
        return [row[0] for row in self._rows("removed", root_id)]

    def named(self, root: str) -> list[str]:
        """Uris under a root that are there for themselves, not only because rows name them."""
        ids = [row.root_id for row in self._roots.values() if row.is_at(root)]
        return [uri for id_ in ids for (uri,) in self._rows("named", id_)]

    def roots(self) -> list[StoredRoot]:
        """All roots."""
        return list(self._roots.values())

    def failures(self) -> list[Failure]:
        """Every file and row that could not be indexed, and why."""
        return [
            Failure(failure_path(self._roots[root_id], uri), error or "")
            for root_id, uri, error in self._rows("failed")
        ]

    def pictures_of_hash(self, content_hash: bytes) -> list[int]:
        """Ids of all image items of a picture with this content."""
        return self._items_of_hash("image", content_hash)

    def texts_of_hash(self, text_hash: bytes) -> list[int]:
        """Ids of all text items with this text (`media.text_hash`)."""
        return self._items_of_hash("text", text_hash)

    def _items_of_hash(self, space: Modality, key: bytes) -> list[int]:
        return [row[0] for row in self._rows("items_of_hash", self._model_id, space, key)]

    def same_content(self, item_id: int) -> frozenset[int]:
        """Ids of all items with the content of an item, itself included."""
        return frozenset(row[0] for row in self._rows("same_content", item_id))

    def tags(self, item_ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """The tags of items, sorted; those without are left out."""
        found: dict[int, tuple[str, ...]] = {}
        for item_id, tag in self._rows("tags", json.dumps([int(id_) for id_ in item_ids])):
            found[item_id] = (*found.get(item_id, ()), tag)
        return found

    def captions(self, item_ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """The texts that belong to pictures, by item id; those without are left out."""
        found: dict[int, list[str]] = {}
        for item_id, text in self._rows("captions", json.dumps([int(id_) for id_ in item_ids])):
            found.setdefault(item_id, []).append(text)
        return {item_id: tuple(texts) for item_id, texts in found.items()}

    def tag_counts(self) -> list[tuple[str, int]]:
        """Every tag with the number of files that have it, by name."""
        return [(tag, count) for tag, count in self._rows("tag_counts")]

    def info(self) -> IndexInfo:
        """What the index holds."""
        items = dict(self._rows("root_items"))
        roots = [
            RootInfo(
                path=root.path,
                items=items.get(root.root_id, 0),
                present=root.present(),
                whole=root.whole,
                kind=root.kind,
                columns=root.columns,
            )
            for root in self._roots.values()
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
            segments=sum(map(len, self._segments.values())) + self._rows("token_files", self._model_id)[0][0],
            bytes=layout.index_bytes(self.path),
            roots=tuple(roots),
            failed=tuple(self.failures()),
        )
