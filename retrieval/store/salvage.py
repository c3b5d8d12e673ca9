"""A catalog made anew, of what can be read of the old one and of the segments.

What segments say is the truth about embeddings. Items are kept where their asset and their embedding are there and
fit by content. Every other embedding waits in `salvaged`, with the id that its item had, for a scan to find its
content again: no file has to be encoded twice. Tokens are derived and do not count: their files are left for the
next sweep.

The new catalog is finished beside the old one before anything is moved, so a salvage that ends early has lost
nothing, and another one starts afresh. While the old one is moved away it is called `OLD_CATALOG`, where that other
one finds it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.diagnosis import counted
from mmsearch.retrieval.store.findings import Findings
from mmsearch.retrieval.store.quiet import READ_ERRORS, open_quietly
from mmsearch.retrieval.store.records import Model
from mmsearch.retrieval.store.remains import Remains, Row
from mmsearch.retrieval.store.repairs import UNREAD, set_aside, set_catalog_aside, settle, transaction
from mmsearch.retrieval.store.segment_check import SegmentCheck
from mmsearch.retrieval.store.segments import KEY_BYTES, Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

Steps = Callable[[str], None]

_ID_GAP = 1_000_000
"""Item ids go on this far above everything that is known of: those of items that left no trace are not given again."""

_NOT_KEPT = re.compile(r"items\..*|generation|model_id|model|identity|dim|max_tokens|created_by")
"""Keys of `meta` that are written afresh."""


class Outcome(NamedTuple):
    """What a salvage tells of itself."""

    told: str
    lost_items: int


class _Part(NamedTuple):
    """A segment that the new catalog will name."""

    segment_id: int
    check: SegmentCheck
    segment: Segment
    model: Model
    row: Row | None


class Salvage:
    """One making of a new catalog; use `run`. The caller holds the lock."""

    def __init__(self, found: Findings, model: str | None, steps: Steps) -> None:
        """`model` names the encoder of segments that do not say the name of theirs."""
        self._index = found.path
        self._checks = found.segments
        self._tokens = (*found.tokens, *found.orphan_tokens)
        self._name = model
        self._steps = steps
        self._now = datetime.now(UTC).isoformat(timespec="seconds")

    def run(self) -> Outcome:
        """Makes the new catalog and puts it in the place of the old one.

        Raises:
            IndexCorrupt: there is nothing to make it of, or nothing says which model the vectors are of.
        """
        new = self._index / layout.NEW_CATALOG
        layout.make_folders(self._index)
        for leftover in self._index.glob(f"{layout.NEW_CATALOG}*"):
            leftover.unlink()
        self._steps("salvage:read")
        with self._open_old() as remains:
            outcome = self._build(remains, new)
        self._steps("salvage:aside")
        for name in self._losers:
            set_aside(self._index, self._index / layout.SEGMENTS / name)
        self._put_in_place(new)
        return outcome

    # The old catalog

    @contextlib.contextmanager
    def _open_old(self) -> Iterator[Remains]:
        """What is left of the catalog, here or where a salvage that ended early has moved it."""
        if not (self._index / layout.CATALOG).exists():
            self._move_log()
        with contextlib.ExitStack() as stack:
            connection = None
            for name in (layout.CATALOG, layout.OLD_CATALOG):
                if (self._index / name).exists():
                    with contextlib.suppress(*READ_ERRORS):
                        connection = stack.enter_context(open_quietly(self._index / name, busy=False))
                    break
            yield Remains(connection)

    def _put_in_place(self, new: Path) -> None:
        """The old catalog away with its log, the new one here; the log never lies beside the wrong one."""
        catalog, old = self._index / layout.CATALOG, self._index / layout.OLD_CATALOG
        if catalog.exists():
            if old.exists():  # of an earlier salvage that only had to be tidied up after
                set_catalog_aside(self._index)
            self._steps("salvage:old")
            os.replace(catalog, old)
        self._move_log()
        self._steps("salvage:rename")
        os.replace(new, catalog)
        layout.sync_folder(self._index)
        self._steps("salvage:tidy")
        set_catalog_aside(self._index)
        self._steps("salvage:done")

    def _move_log(self) -> None:
        """Moves the log after its catalog."""
        for ending in ("-wal", "-shm"):
            log = self._index / f"{layout.CATALOG}{ending}"
            if log.exists():
                self._steps(f"salvage:old{ending}")
                os.replace(log, self._index / f"{layout.OLD_CATALOG}{ending}")
        layout.sync_folder(self._index)

    # The new catalog

    def _build(self, remains: Remains, new: Path) -> Outcome:
        from mmsearch.retrieval.store.local import _version
        from mmsearch.retrieval.store.schema import create_catalog

        meta = remains.meta()
        rows = {row["filename"]: row for row in remains.rows("segments")}
        models = self._models(remains, meta)
        parts = self._choose(models, rows)
        current = self._current(models, parts)
        parts = self._of_two_models(parts, current)
        self._losers = sorted(self._checks.keys() - {part.check.name for part in parts})
        generation = _number(meta.get("generation")) or max((part.segment_id for part in parts), default=0)
        kept = {key: value for key, value in meta.items() if not _NOT_KEPT.fullmatch(key)}
        kept.setdefault("created_at", self._now)
        if kept.get("dtype") not in ("float32", "float16"):
            kept["dtype"] = parts[0].segment.header["dtype"] if parts else "float32"
        self._steps("salvage:create")
        layout.create_file(new)
        create_catalog(new, current, {**kept, "generation": "0", "created_by": _version()})
        with transaction(new) as connection:
            self._steps("salvage:fill")
            self._fill(connection, remains, parts, current)
            outcome = self._match(connection, remains, parts, current)
            settle(connection, generation + 1)
            self._set_sequences(connection, remains)
            self._steps("salvage:commit")
        log = Path(f"{new}-wal")
        if log.exists() and log.stat().st_size:
            raise OSError(f"{log.name} was not written back")
        return outcome

    # Models

    def _models(self, remains: Remains, meta: dict[str, str]) -> dict[str, Model]:
        """Models by identity: those of the old catalog, and those that only headers speak of."""
        models = {row["identity"]: Model(**row) for row in remains.rows("models")}
        if "identity" in meta and not models:  # format 1
            dim = _number(meta.get("dim"))
            models[meta["identity"]] = Model(1, meta.get("model", ""), meta["identity"], dim, None)
        said = _number(meta.get("model_id", "1"))
        self._said = next((model.identity for model in models.values() if model.model_id == said), None)
        last = max((model.model_id for model in models.values()), default=0)
        for segment in self._segments():
            header = segment.header
            known = models.get(header["identity"])
            if known is None:
                last += 1
                name = header.get("model") or self._name or _bundled(header["identity"])
                known = Model(last, name or "", header["identity"], segment.dim, header.get("max_tokens"))
            models[header["identity"]] = known._replace(dim=segment.dim)
        return models

    def _segments(self) -> list[Segment]:
        """The sound segments, newest first."""
        checks = sorted(self._checks.values(), key=lambda check: _segment_number(check.name), reverse=True)
        return [check.segment for check in checks if check.segment is not None]

    def _current(self, models: dict[str, Model], parts: list[_Part]) -> Model:
        """The model whose vectors are searched: as the old catalog says, where that can be so.

        Else that of the newest segment that was not written while its model was only being changed to.
        """
        said = [models[self._said]] if self._said is not None else []
        mine = {part.model for part in parts}
        by_age = sorted(parts, key=lambda part: part.segment_id, reverse=True)
        in_use = [part.model for part in by_age if not part.segment.header.get("staged")]
        candidates = [*(one for one in said if one in mine), *in_use, *(part.model for part in by_age), *said]
        if not candidates:
            raise IndexCorrupt(
                f"nothing can be saved of the index at {self._index}: no segment of it is sound, and the catalog does "
                "not say its model; remove the folder and index again"
            )
        if not candidates[0].name:
            raise IndexCorrupt(
                f"nothing says which model made the index at {self._index} ({candidates[0].identity}); "
                "name it: `mmsearch doctor --repair --model MODEL`"
            )
        return candidates[0]

    # Segments

    def _choose(self, models: dict[str, Model], rows: dict[str, Row]) -> list[_Part]:
        """The sound segments that hold no embedding twice: those of the old catalog first, then the newest."""
        sound = [check for check in self._checks.values() if _is_as_written(check, rows.get(check.name))]
        sound.sort(key=lambda check: (check.name in rows, _segment_number(check.name)), reverse=True)
        ids: list[NDArray[np.int64]] = []
        keys: dict[tuple[str, str], list[NDArray[np.bytes_]]] = {}
        parts: list[_Part] = []
        last = max((_segment_number(name) for name in self._checks), default=0)
        taken: set[int] = set()
        for check in sound:
            assert check.segment is not None
            segment = check.segment
            own = np.ascontiguousarray(segment.keys).view(f"S{KEY_BYTES}").ravel()  # compared as if padded: all bytes
            held = keys.setdefault((segment.header["identity"], segment.header["space"]), [])
            twice = len(np.unique(own)) < len(own)
            if twice or _common(segment.ids, ids) or _common(own, held):
                continue
            ids.append(segment.ids)
            held.append(own)
            number = _segment_number(check.name)
            if number in taken:
                last += 1
                number = last
            taken.add(number)
            parts.append(_Part(number, check, segment, models[segment.header["identity"]], rows.get(check.name)))
        return parts

    @staticmethod
    def _of_two_models(parts: list[_Part], current: Model) -> list[_Part]:
        """Without what is neither of the current model nor of the newest that is being changed to."""
        others = sorted((part for part in parts if part.model != current), key=lambda part: part.segment_id)
        staged = others[-1].model if others and others[-1].model.name else current
        return [part for part in parts if part.model in (current, staged)]

    # Rows

    def _fill(self, connection: sqlite3.Connection, remains: Remains, parts: list[_Part], current: Model) -> None:
        """All tables but those that follow from others."""
        for model in {part.model for part in parts} - {current}:
            _insert(connection, "models", iter([model._asdict()]))
        _insert(connection, "roots", remains.rows("roots"))
        if not remains.whole["roots"]:
            self._add_roots(connection, remains, parts)
        for table in ("assets", "items", "removed", "tags"):
            _insert(connection, table, remains.rows(table))
        connection.execute("DELETE FROM assets WHERE root_id NOT IN (SELECT root_id FROM roots)")
        connection.execute("DELETE FROM tags WHERE asset_id NOT IN (SELECT asset_id FROM assets)")
        connection.execute("DELETE FROM removed WHERE root_id NOT IN (SELECT root_id FROM roots)")
        for part in parts:
            row = part.row or {"precision": "unknown", "device": "unknown", "backend": "unknown", "generation": 0}
            header = part.segment.header
            values = {
                **row,
                **{name: header[name] for name in ("space", "dtype", "dim", "count", "bytes")},
                "segment_id": part.segment_id,
                "model_id": part.model.model_id,
                "filename": part.check.name,
                "checksum": part.check.checksum,
            }
            _insert(connection, "segments", iter([values]))
            ids, keys = part.segment.ids.tolist(), part.segment.keys.tobytes()
            same = (part.model.model_id, header["space"])
            connection.executemany(
                "INSERT INTO embeddings (embedding_id, model_id, space, content_key, segment_id)"
                " VALUES (?, ?, ?, ?, ?)",
                (
                    (id_, *same, keys[KEY_BYTES * number : KEY_BYTES * (number + 1)], part.segment_id)
                    for number, id_ in enumerate(ids)
                ),
            )

    def _add_roots(self, connection: sqlite3.Connection, remains: Remains, parts: list[_Part]) -> None:
        """Roots that the newest segment speaks of. Older ones may know roots that the user has given up."""
        newest = max(parts, key=lambda part: part.segment_id, default=None)
        last = max(remains.used("roots"), *_largest(connection, "roots", "root_id"))
        last = max(last, max((row["root_id"] for row in remains.rows("assets")), default=0))
        for root in newest.segment.header.get("roots", ()) if newest else ():
            last += 1
            stored = unquote_to_bytes(root["path"])
            try:
                device = os.stat(layout.root_path(self._index, stored, root["relative"])).st_dev
            except OSError:
                device = 0
            row = {
                "root_id": last,
                "path": stored,
                "relative": root["relative"],
                "kind": root["kind"],
                "device": device,
                "columns": root["columns"],
                "completed_at": self._now if root["whole"] else None,
            }
            _insert(connection, "roots", iter([row]))

    def _match(self, connection: sqlite3.Connection, remains: Remains, parts: list[_Part], current: Model) -> Outcome:
        """Keeps the items whose asset and embedding fit, and lets the other embeddings wait for their files."""
        run = connection.execute
        connection.create_function("content_key_of", 3, _content_key_of, deterministic=True)
        run("CREATE TEMP TABLE unfit AS SELECT item_id, asset_id, embedding_id FROM items")
        run(
            "DELETE FROM unfit WHERE item_id IN (SELECT item_id FROM items JOIN assets USING (asset_id)"
            " JOIN embeddings USING (embedding_id) WHERE items.modality = embeddings.space"
            " AND items.modality = assets.modality AND embeddings.model_id = ?"
            " AND content_key = content_key_of(items.modality, content_hash, text))",
            (current.model_id,),
        )
        lost = run(
            "SELECT COUNT(*) FROM unfit WHERE embedding_id NOT IN (SELECT embedding_id FROM embeddings)"
        ).fetchone()[0]
        run("CREATE TEMP TABLE was (embedding_id INTEGER PRIMARY KEY, item_id INTEGER NOT NULL)")
        self._remember(connection, remains, parts, current)
        if not remains.whole["items"]:  # texts may have lost some of their pieces: they are cut again
            texts = (
                "SELECT asset_id FROM assets WHERE modality = 'text'"
                " AND root_id NOT IN (SELECT root_id FROM roots WHERE kind = 'rows')"
            )
            run(
                "INSERT INTO unfit SELECT item_id, asset_id, embedding_id FROM items WHERE asset_id IN "
                f"({texts}) AND item_id NOT IN (SELECT item_id FROM unfit)"
            )
            run(f"{UNREAD} asset_id IN ({texts})")
        run(f"{UNREAD} asset_id IN (SELECT asset_id FROM unfit)")
        run("DELETE FROM items WHERE item_id IN (SELECT item_id FROM unfit)")
        run(
            "INSERT INTO salvaged (embedding_id, item_id) SELECT embedding_id, COALESCE(was.item_id, 0) FROM embeddings"
            " LEFT JOIN was USING (embedding_id) WHERE model_id = ?"
            " AND embedding_id NOT IN (SELECT embedding_id FROM items)",
            (current.model_id,),
        )
        run(
            "UPDATE salvaged SET item_id = 0 WHERE item_id IN (SELECT item_id FROM items) OR embedding_id NOT IN"
            " (SELECT MIN(embedding_id) FROM salvaged GROUP BY item_id)"
        )
        items = run("SELECT COUNT(*) FROM items").fetchone()[0]
        waiting = run("SELECT COUNT(*) FROM salvaged").fetchone()[0]
        roots = run("SELECT COUNT(*) FROM roots").fetchone()[0]
        told = f"made anew: {counted(items, 'item')} and {counted(roots, 'root')} kept"
        if waiting:
            told += f", {counted(waiting, 'embedding')} wait for `mmsearch index` to find their files again"
        if not remains.whole["removed"]:
            told += "; what was taken out with `mmsearch remove` may come back"
        return Outcome(told, lost)

    def _remember(self, connection: sqlite3.Connection, remains: Remains, parts: list[_Part], current: Model) -> None:
        """The item that each embedding had: by its segment, else by an earlier salvage, best by the old catalog."""
        statement = "INSERT OR REPLACE INTO was (embedding_id, item_id) VALUES (?, ?)"
        for part in parts:
            if part.model == current:
                pairs = zip(part.segment.ids.tolist(), part.segment.item_ids.tolist(), strict=True)
                connection.executemany(statement, (pair for pair in pairs if pair[1] > 0))
        earlier = ((row["embedding_id"], row["item_id"]) for row in remains.rows("salvaged"))
        connection.executemany(statement, (pair for pair in earlier if pair[1] > 0))
        connection.execute(
            "INSERT OR REPLACE INTO was SELECT embedding_id, MIN(item_id) FROM items"
            " WHERE item_id NOT IN (SELECT item_id FROM unfit) GROUP BY embedding_id"
        )

    def _set_sequences(self, connection: sqlite3.Connection, remains: Remains) -> None:
        """No id that was ever given out is given again."""
        segments = self._segments()
        seen = {
            "items": max((int(segment.item_ids.max(initial=0)) for segment in segments), default=0),
            "embeddings": max((int(segment.ids.max(initial=0)) for segment in segments), default=0),
            "segments": max((_segment_number(name) for name in self._checks), default=0),
            "tokens": max((_segment_number(name) for name in self._tokens), default=0),
        }
        columns = {"items": "item_id", "embeddings": "embedding_id", "segments": "segment_id", "tokens": "segment_id"}
        for table, column in {**columns, "assets": "asset_id", "roots": "root_id", "models": "model_id"}.items():
            last = max(seen.get(table, 0), remains.used(table), *_largest(connection, table, column))
            if table == "items":
                last = max(last, *_largest(connection, "salvaged", "item_id")) + _ID_GAP
            connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last))


def _insert(connection: sqlite3.Connection, table: str, rows: Iterator[Row]) -> None:
    """Adds rows that have the same columns; what contradicts an earlier row is left out."""
    first = next(rows, None)
    if first is None:
        return
    columns = ", ".join(f'"{name}"' for name in first)
    marks = ", ".join(f":{name}" for name in first)
    statement = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
    connection.execute(statement, first)
    connection.executemany(statement, rows)


def _largest(connection: sqlite3.Connection, table: str, column: str) -> tuple[int, int]:
    """The largest value of a column, as the last of arguments to `max`."""
    return 0, int(connection.execute(f"SELECT COALESCE(MAX({column}), 0) FROM {table}").fetchone()[0])


def _is_as_written(check: SegmentCheck, row: Row | None) -> bool:
    return check.segment is not None and (row is None or row["checksum"] == check.checksum)


def _common(values: NDArray[Any], others: list[NDArray[Any]]) -> bool:
    return any(len(np.intersect1d(values, other, assume_unique=True)) for other in others)


def _segment_number(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _bundled(identity: str) -> str | None:
    """The name of the model that comes with mmsearch, if it is that one."""
    from mmsearch.retrieval.encoders import starter

    try:
        return "starter" if starter.identity() == identity else None
    except OSError:
        return None


def _content_key_of(modality: str, content_hash: bytes | None, text: str | None) -> bytes | None:
    """The key of an item's embedding: what it was computed from."""
    if modality == "image":
        return content_hash
    from mmsearch.retrieval.media import content_hash as hash_of

    return None if text is None else hash_of(text.encode("utf-8", "surrogatepass"))
