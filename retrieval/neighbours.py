"""Candidates for pairs of near neighbours, without ever looking at all pairs at once.

Rows are numbered from the best to the worst, and a pair is (i, j) with i < j: where something has to be capped, the
best rows are those that everything is still compared with. Both functions yield blocks of pairs; a pair may come
more than once, and not every pair holds: who asks verifies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
    ScoredPairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
    Rows = Callable[[NDArray[np.int64]], NDArray[np.float32]]

HASH_BITS = 64

BEST_ROWS = 4096
"""Of a bucket with more rows than this, each row is compared with the best of it only. Buckets as full as that are
pathological (blank pages, one picture saved ten thousand times), and the best is what the rest belong to."""
BEST_EQUALS = 64
"""As `BEST_ROWS`, of rows with one and the same hash."""
EXACT_ROWS = 16_384
"""Up to so many vectors all are compared with all, a block at a time."""

_ROWS_PER_CENTRE = 400
_PROBES = 8
_SAMPLES_PER_CENTRE = 32
_ROUNDS = 6
_BLOCK_ROWS = 8192
_BLOCK_HOMES = 1024
_BLOCK_HASHES = 2**17  # stays in the cache of a processor
_BLOCK_PAIRS = 2**20
_BITS_OF_BYTE = np.array([number.bit_count() for number in range(256)], np.uint8)


def hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """In how many bits hashes differ, element by element."""
    differing = a ^ b
    counted: NDArray[np.uint8]
    if hasattr(np, "bitwise_count"):  # since numpy 2.0
        counted = np.bitwise_count(differing)
    else:
        bytes_ = np.ascontiguousarray(differing)[..., None].view(np.uint8)
        counted = _BITS_OF_BYTE[bytes_].sum(axis=-1, dtype=np.uint8)
    return counted


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same array, with rows of length one; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(lengths > 0, lengths, 1)
    return rows


def hash_pairs(
    hashes: NDArray[np.uint64], bits: int, *, progress: Callable[[float], None] = lambda share: None
) -> Iterator[Pairs]:
    """Pairs of rows whose hashes differ in at most so many bits; all of them, but for the two caps.

    Hashes are cut into one band of bits more than may differ, so that two of them agree in one band at least
    (Norouzi, Punjani, Fleet: Fast Search in Hamming Space with Multi-Index Hashing, 2012), and each is compared
    with those in the same bucket of a band.

    Args:
        hashes: of each row, uint64 (n).
        bits: less than 64; the work grows steeply with it.
        progress: told what share is done.
    """
    groups = _Groups(hashes)
    for group in groups.larger():
        yield from _within(group)
    bands = bits + 1
    for band in range(bands):
        for bucket in _buckets_of_band(groups.hashes, band, bands):
            for a, b in _close_hashes(groups.hashes, bucket, bits):
                yield from groups.spread(a, b)
        progress((band + 1) / bands)


class _Groups:
    """Rows by their hash: many pictures may have one and the same, and it is compared once.

    Attributes:
        hashes: the distinct ones, in the order of their best rows.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        distinct, best, of_row, sizes = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
        order = np.argsort(best)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        self.hashes: NDArray[np.uint64] = distinct[order]
        self._sizes: NDArray[np.int64] = sizes[order]
        self._starts: NDArray[np.int64] = np.cumsum(self._sizes) - self._sizes
        self._rows: NDArray[np.int64] = np.argsort(place[of_row], kind="stable")  # ascending within a hash

    def larger(self) -> Iterator[NDArray[np.int64]]:
        """The rows of each hash that several have."""
        for at in np.flatnonzero(self._sizes > 1):
            yield self._rows[self._starts[at] : self._starts[at] + self._sizes[at]]

    def spread(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Iterator[Pairs]:
        """Pairs of hashes to pairs of their rows; of a hash with very many, the best with all of the other."""
        full = (self._sizes[a] > BEST_EQUALS) | (self._sizes[b] > BEST_EQUALS)
        a, b = np.concatenate([a, b[full]]), np.concatenate([b, a[full]])
        across, down = self._sizes[b], np.minimum(self._sizes[a], BEST_EQUALS)
        many = np.cumsum(across * down) // _BLOCK_PAIRS
        for start, end in _runs(many):
            lengths = (across * down)[start:end]
            of_pair = np.repeat(np.arange(start, end), lengths)
            number = np.arange(len(of_pair)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            i = self._rows[self._starts[a][of_pair] + number // across[of_pair]]
            j = self._rows[self._starts[b][of_pair] + number % across[of_pair]]
            yield np.minimum(i, j), np.maximum(i, j)


def _runs(keys: NDArray[Any]) -> list[tuple[int, int]]:
    """Start and end of every run of equal keys."""
    if not len(keys):
        return []
    inner = (np.flatnonzero(keys[1:] != keys[:-1]) + 1).tolist()
    return list(zip([0, *inner], [*inner, len(keys)], strict=True))


def _within(bucket: NDArray[np.int64]) -> Iterator[Pairs]:
    """All pairs of rows of a bucket, which ascend; of the best with all, if there are very many."""
    for number, row in enumerate(bucket[: BEST_EQUALS if len(bucket) > BEST_EQUALS else -1]):
        rest = bucket[number + 1 :]
        yield np.full(len(rest), row), rest


def _buckets_of_band(hashes: NDArray[np.uint64], band: int, bands: int) -> Iterator[NDArray[np.int64]]:
    """Places of hashes that agree in every so manieth bit from that of the band on; two or more in each bucket."""
    keys = hashes & np.uint64(sum(1 << bit for bit in range(band, HASH_BITS, bands)))
    order = np.argsort(keys, kind="stable")
    for start, end in _runs(keys[order]):
        if end - start > 1:
            yield order[start:end]


def _close_hashes(hashes: NDArray[np.uint64], bucket: NDArray[np.int64], bits: int) -> Iterator[Pairs]:
    mine = hashes[bucket]
    best = min(len(bucket), BEST_ROWS)
    step = max(1, _BLOCK_HASHES // len(bucket))
    for start in range(0, best, step):
        a, b = np.nonzero(hamming(mine[start : min(start + step, best), None], mine[None, start:]) <= bits)
        upper = a < b
        if upper.any():
            yield bucket[start + a[upper]], bucket[start + b[upper]]


def vector_pairs(
    rows: Rows, count: int, least: float, *, progress: Callable[[float], None] = lambda share: None
) -> Iterator[ScoredPairs]:
    """Pairs of rows with an inner product of at least `least`, give or take rounding, with that product.

    Up to `EXACT_ROWS` all are compared with all. Above, rows are gathered around centres (spherical k-means), and
    each is compared with the rows of the centres that are nearest to it: most pairs are found, and the nearer the
    surer.

    Args:
        rows: gives the vectors of some rows, of length one, float32 (m, dim).
        count: of all rows.
        least: the smallest inner product wanted.
        progress: told what share is done.
    """
    buckets: Iterator[tuple[NDArray[np.int64], NDArray[np.int64], float]]
    if count <= EXACT_ROWS:
        buckets = _everything(count)
    else:
        buckets = _around_centres(rows, count)
    for homes, visitors, share in buckets:
        base = rows(homes)
        slack = base.shape[1] * 2.0**-22
        for start in range(0, len(visitors), _BLOCK_ROWS):
            some = visitors[start : start + _BLOCK_ROWS]
            scores = rows(some) @ base.T
            a, b = np.nonzero(scores >= least - slack)
            i, j = some[a], homes[b]
            apart = i != j
            if apart.any():
                i, j = i[apart], j[apart]
                yield np.minimum(i, j), np.maximum(i, j), scores[a, b][apart]
        progress(share)


def _everything(count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], float]]:
    for start in range(0, count, _BLOCK_HOMES):
        rest = np.arange(start, count)
        left = max(0, count - start - _BLOCK_HOMES)
        yield rest[:_BLOCK_HOMES], rest, 1 - (left / count) ** 2


def _around_centres(rows: Rows, count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], float]]:
    """For every centre the rows that are at home there, those for which it is one of the nearest, the share done."""
    mean, centres = _centres(rows, count, max(1, count // _ROWS_PER_CENTRE))
    probes = min(_PROBES, len(centres))
    home = np.empty(count, np.int64)
    near = np.empty((count, probes), np.int32)
    bias = centres @ mean
    for start in range(0, count, _BLOCK_ROWS):
        some = slice(start, min(start + _BLOCK_ROWS, count))
        scores = rows(np.arange(some.start, some.stop)) @ centres.T - bias
        near[some] = np.argpartition(scores, -probes, axis=1)[:, -probes:]
        home[some] = scores.argmax(axis=1)
    by_home = np.argsort(home, kind="stable")
    by_near = np.argsort(near, axis=None, kind="stable")
    ends_home = np.searchsorted(home[by_home], np.arange(len(centres) + 1))
    ends_near = np.searchsorted(near.ravel()[by_near], np.arange(len(centres) + 1))
    for at in range(len(centres)):
        homes = by_home[ends_home[at] : ends_home[at + 1]][:BEST_ROWS]
        visitors = by_near[ends_near[at] : ends_near[at + 1]] // probes
        if len(homes):
            yield homes, visitors, (at + 1) / len(centres)


def _centres(rows: Rows, count: int, wanted: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean of all rows, and centres of spherical k-means around it; of a sample, the same every time.

    Embeddings lie in a cone. Seen from the origin, centres of much that differs are short and near to everything:
    a few of them would be home to half of all rows.
    """
    chosen = np.random.default_rng(0).permutation(count)[: wanted * _SAMPLES_PER_CENTRE]
    sample = rows(chosen)
    mean = sample.mean(axis=0, dtype=np.float32)
    sample = unit_rows(sample - mean)
    centres = sample[:wanted].copy()
    for _ in range(_ROUNDS):
        nearest = (sample @ centres.T).argmax(axis=1)
        order = np.argsort(nearest, kind="stable")
        for start, end in _runs(nearest[order]):
            centres[nearest[order[start]]] = sample[order[start:end]].sum(axis=0)
        centres = unit_rows(centres)
    return mean, centres
