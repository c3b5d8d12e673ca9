"""What is read of an index as a whole: its vectors by position, and what is known of its pictures, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt
from mmsearch.retrieval.store.segments import Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURE_COLUMNS = (
    "item_id, embedding_id, COALESCE(phash, 0), phash IS NOT NULL, COALESCE(width * height, 0), size, mtime_ns"
)
"""What `read_pictures` takes, of items joined with assets."""


@dataclass(frozen=True, slots=True)
class PictureColumns:
    """The image items of an index, a row each, ascending by `item_ids`; all arrays are int64 (n) but `hashed`.

    Attributes:
        item_ids, embedding_ids: of each item; equal content has one embedding.
        phashes: perceptual hashes; 0 where `hashed` (bool) is not set.
        areas: pixels; 0 where unknown.
        sizes: bytes of the file.
        mtimes: modification time in nanoseconds since 1970.
    """

    item_ids: NDArray[np.int64]
    embedding_ids: NDArray[np.int64]
    phashes: NDArray[np.int64]
    hashed: NDArray[np.bool_]
    areas: NDArray[np.int64]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, rows: NDArray[Any]) -> PictureColumns:
        """Some of the rows, in the order given, or those where a mask is set."""
        return PictureColumns(
            self.item_ids[rows],
            self.embedding_ids[rows],
            self.phashes[rows],
            self.hashed[rows],
            self.areas[rows],
            self.sizes[rows],
            self.mtimes[rows],
        )


def read_pictures(rows: Iterable[tuple[Any, ...]]) -> PictureColumns:
    """Columns out of rows of `PICTURE_COLUMNS`; no more than one row is a Python object at a time."""
    table = np.fromiter(chain.from_iterable(rows), np.int64).reshape(-1, 7)
    item_ids, embedding_ids, phashes, hashed, areas, sizes, mtimes = np.ascontiguousarray(table.T)
    return PictureColumns(item_ids, embedding_ids, phashes, hashed.astype(bool), areas, sizes, mtimes)


class Embeddings:
    """The live vectors of a space by position. Nothing is copied before it is asked for.

    Attributes:
        ids: embedding ids, ascending, int64 (n).
        dim: of the vectors.
    """

    def __init__(self, segments: Sequence[Segment], dead: Sequence[NDArray[np.int64]], dim: int) -> None:
        """`dead`: for each segment, positions to leave out."""
        self._segments = segments
        self.dim = dim
        kept = [np.delete(np.arange(segment.count), gone) for segment, gone in zip(segments, dead, strict=True)]
        none = np.empty(0, np.int64)
        ids = np.concatenate([none, *(segment.ids[at] for segment, at in zip(segments, kept, strict=True))])
        order = np.argsort(ids, kind="stable")
        self.ids: NDArray[np.int64] = ids[order]
        self._source = np.concatenate([none, *(np.full(len(at), number) for number, at in enumerate(kept))])[order]
        self._position = np.concatenate([none, *kept])[order]

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where some embeddings are in `ids`.

        Raises:
            IndexCorrupt: one is not there.
        """
        at = np.searchsorted(self.ids, ids)
        if len(ids) and (not len(self) or not np.array_equal(self.ids[at % len(self)], ids)):
            raise IndexCorrupt("the index has items without vectors; `mmsearch doctor` says more")
        return at

    def rows(self, at: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors at some positions of `ids`, float32 (m, dim), copied out."""
        out = np.empty((len(at), self.dim), np.float32)
        source, position = self._source[at], self._position[at]
        for number in np.unique(source):
            mine = np.flatnonzero(source == number)
            out[mine] = self._segments[number].rows[position[mine]]
        return out
