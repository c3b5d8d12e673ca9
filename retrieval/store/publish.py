"""Turning the vectors of a transaction into segments, and small segments into larger ones."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.catalog import Catalog
from mmsearch.retrieval.store.models import Models
from mmsearch.retrieval.store.records import Model
from mmsearch.retrieval.store.segments import (
    ABOUT_BYTES,
    DType,
    Segment,
    SegmentRows,
    live_rows,
    write_segment,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_DEAD_SHARE = 0.25  # a segment with more tombstones than this is rewritten by a merge
_FEW_ROWS = 1000
_TIER = 7
"""How many times its rows must have come in smaller segments before a segment is copied together with them; one of few
rows is copied once there are as many. More copies less, and leaves more segments: about seven of a size. After 2,000
commits of 100, with a merge every 16, each row was copied 2.3 times; with 1 in place of 7, 3.6 times."""


class Batch(NamedTuple):
    """Vectors that one call gave: embedding ids (n), content keys (n, 32), float32 rows (n, dim)."""

    ids: NDArray[np.int64]
    keys: NDArray[np.uint8]
    rows: NDArray[np.float32]


class Kind(NamedTuple):
    """What the rows of one new segment have in common; the last three as the encoder says."""

    model_id: int
    space: str
    precision: str
    device: str
    backend: str


class SegmentStore:
    """The segment files of an index, for the one writer. Nothing here commits but `merge`."""

    def __init__(
        self, path: Path, catalog: Catalog, models: Models, *, dtype: DType, steps: Callable[[str], None]
    ) -> None:
        self._path = path
        self._catalog = catalog
        self._models = models
        self._dtype: DType = dtype
        self._steps = steps
        self._last = 0  # no number is used twice, even where a commit failed in an unclear way

    def model(self, model_id: int) -> Model:
        """A model of the catalog, by its id."""
        return self._models.by_id()[model_id]

    def sweep(self) -> None:
        """Removes files of vectors and tokens that no catalog row names: what crashed writers and merges left.

        Nothing goes where the catalog itself has lost rows.
        """
        named = self._catalog.filenames()
        found = [name for name in os.listdir(self._path / layout.SEGMENTS) if layout.is_segment_name(name)]
        orphans = [name for name in found if name not in named]
        vectors = any(name.endswith(".seg") and not layout.is_token_name(name) for name in orphans)
        if vectors and self._catalog.has_lost_segments():
            raise IndexCorrupt(f"the catalog of {self._path} names vectors that are in no segment; {layout.RESTORE}")
        self._catalog.rollback()
        for name in orphans:
            unlink(self._path / layout.SEGMENTS / name)

    def write(self, vectors: Mapping[Kind, Sequence[Batch]], generation: int) -> None:
        """Writes one segment of each kind and its rows in the catalog; visible after the commit."""
        for kind, batches in vectors.items():
            ids, keys, rows = (np.concatenate(column) for column in zip(*batches, strict=True))
            order = np.argsort(ids)
            longest = 1.001 * float(np.linalg.norm(rows, axis=1).max(initial=0.0))  # float16 may round a row up
            self._write(kind, self._dtype, ids[order], keys[order], iter([rows[order]]), longest, generation)

    def _write(
        self,
        kind: Kind,
        dtype: DType,
        ids: NDArray[np.int64],
        keys: NDArray[np.uint8],
        blocks: Iterator[NDArray[Any]],
        longest: float,
        generation: int,
    ) -> None:
        number = max(self._catalog.next_segment_id(), self._last + 1)
        self._last = number
        listed = ids.tolist()
        items = self._catalog.smallest_items(listed)
        item_ids = np.array([items.get(id_, 0) for id_ in listed], np.int64)
        name = layout.segment_name(kind.space, number)
        model = self.model(kind.model_id)
        file = write_segment(
            self._path / layout.SEGMENTS / name,
            SegmentRows(ids, keys, item_ids, blocks, longest),
            space=kind.space,
            dim=model.dim,
            dtype=dtype,
            about=self._about(model),
            steps=self._steps,
        )
        values = {
            "segment_id": number,
            "filename": name,
            "dtype": dtype,
            "dim": model.dim,
            "count": len(listed),
            "bytes": file.size,
            "checksum": file.checksum,
            "generation": generation,
            **kind._asdict(),
        }
        self._catalog.insert_segment(values, listed)

    def _about(self, model: Model) -> dict[str, Any]:
        """What a lost catalog could be made from again, as far as the header has room."""
        about: dict[str, Any] = {"identity": model.identity, "model": model.name, "max_tokens": model.max_tokens}
        if model.model_id != self._catalog.model_id:
            about["staged"] = True
        roots: list[dict[str, object]] = []
        for root in self._catalog.root_rows():
            roots.append(root)
            if len(json.dumps({**about, "roots": roots})) > ABOUT_BYTES:
                roots.pop()
        return {**about, "roots": roots}

    def merge(self, *, all_segments: bool = False) -> int:
        """Merges small segments (or all) of each space, each space in a commit; returns how many went in."""
        merged = 0
        by_kind: dict[tuple[int, str, str], list[Part]] = {}
        for row in self._catalog.segments():
            by_kind.setdefault((row["model_id"], row["space"], row["dtype"]), []).append(self._part(row))
        for parts in by_kind.values():
            merged += self._merge_some(all_worth(parts) if all_segments else to_merge(parts))
        self._catalog.rollback()  # ends the reading
        return merged

    def live_ids(self, model_id: int) -> NDArray[np.int64]:
        """The embeddings of pictures of a model that are not dead."""
        mine = [row for row in self._catalog.segments() if (row["model_id"], row["space"]) == (model_id, "image")]
        parts = [self._part(row) for row in mine]
        return np.concatenate([np.empty(0, np.int64), *(np.delete(part.segment.ids, part.dead) for part in parts)])

    def _part(self, row: Any) -> Part:
        try:
            segment = Segment(self._path / layout.SEGMENTS / row["filename"])
        except FileNotFoundError as error:
            raise IndexCorrupt(f"{error.filename} is missing; {layout.RESTORE}") from error
        dead = segment.positions(np.array(self._catalog.tombstones(row["segment_id"]), np.int64))
        if (dead < 0).any():  # as an index, -1 would be the last row
            raise IndexCorrupt(f"{segment.path} is not the segment that the catalog names; {layout.RESTORE}")
        return Part(row, segment, dead)

    def _merge_some(self, parts: list[Part]) -> int:
        if not parts:
            return 0
        for part in parts:  # before a damaged row gets a fresh checksum
            if part.segment.checksum() != part.row["checksum"]:
                raise IndexCorrupt(
                    f"{part.segment.path} is damaged (checksum) and was not merged; "
                    f"everything committed is kept; {layout.RESTORE}"
                )
        generation = int(self._catalog.meta()["generation"]) + 1
        self._steps("merge:segments")
        if any(part.live for part in parts):
            segments = [part.segment for part in parts]
            ids, keys, blocks = live_rows(segments, [part.dead for part in parts])
            first = parts[0].row
            how = (_joined(part.row[name] for part in parts) for name in Kind._fields[2:])
            kind = Kind(first["model_id"], first["space"], *how)
            longest = max(segment.max_norm for segment in segments)
            self._write(kind, first["dtype"], ids, keys, blocks, longest, generation)
        self._steps("merge:catalog")
        self._catalog.drop_segments([part.row["segment_id"] for part in parts])
        self._catalog.set_meta({"generation": str(generation)})
        self._steps("merge:commit")
        self._catalog.commit()
        self._steps("merge:unlink")
        for part in parts:
            unlink(part.segment.path)
        self._steps("merge:done")
        return len(parts)


class Part(NamedTuple):
    """A segment that a merge may take: its row in the catalog, the file, and the positions of its dead rows."""

    row: Any
    segment: Segment
    dead: NDArray[np.int64]

    @property
    def live(self) -> int:
        """How many rows would survive."""
        return self.segment.count - len(self.dead)


def to_merge(parts: list[Part]) -> list[Part]:
    """The smallest segments up to the last that those before it outweigh, and those with many tombstones."""
    parts = sorted(parts, key=lambda part: (part.live, part.row["segment_id"]))
    end, smaller = 0, 0
    for number, part in enumerate(parts):
        if number and part.live * (_TIER if part.live >= _FEW_ROWS else 1) <= smaller:
            end = number + 1
        smaller += part.live
    return parts[:end] + [part for part in parts[end:] if len(part.dead) > _DEAD_SHARE * part.segment.count]


def all_worth(parts: list[Part]) -> list[Part]:
    """Everything, unless it is one segment already without a tombstone."""
    return parts if len(parts) > 1 or any(len(part.dead) for part in parts) else []


def _joined(values: Iterator[str]) -> str:
    """One value where all are the same, else all of them."""
    return ",".join(sorted({one for value in values for one in value.split(",")}))


def unlink(path: Path) -> None:
    """Removes a file that nothing names any more, if that can be done now."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # Windows, while a reader maps it; the next writer tries again
        _log.debug("cannot remove %s yet: %s", path, error)
