"""What the measures of a ranking are, computed from where its judged items stand and what is tied with them.

All queries are computed at once, in arrays. Definitions are in `measures.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsearch.retrieval.errors import UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Where judged items stand, all queries in one: what the measures need to know of a ranking, and no more.

    Attributes:
        retrieved: (q,) how many items each query ranks.
        judged_query, judged_grade: (j,) each judgement, found or not: the number of its query, and its grade.
        query, grade: (f,) the same of the judged items that are ranked.
        rank: (f,) their ranks, from 1.
        above: (f,) how many items have a higher score.
        tied: (f,) how many have the same score, themselves included.
    """

    retrieved: Ints
    judged_query: Ints
    judged_grade: Ints
    query: Ints
    grade: Ints
    rank: Ints
    above: Ints
    tied: Ints


def values_of(ranked: Ranked, ks: Iterable[int]) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """All measures of rankings, one value for each query, and the expected values over the orders of tied items.

    Raises:
        UsageError: a k is below 1.
    """
    cuts = sorted(set(ks))
    if any(k < 1 for k in cuts):
        raise UsageError(f"k must be at least 1, not {cuts[0]}")
    queries = len(ranked.retrieved)
    order = np.lexsort((ranked.rank, ranked.query))
    query, grade, rank, above, tied = (
        part[order] for part in (ranked.query, ranked.grade, ranked.rank, ranked.above, ranked.tied)
    )
    counts = _Counts.of(ranked, cuts)
    relevant = grade > 0
    values: dict[str, Floats] = {}
    expected: dict[str, Floats] = {}

    def per_query(weights: NDArray[Any]) -> Floats:
        return _sums(query, weights, queries)

    first = np.full(queries, np.inf)
    np.minimum.at(first, query[relevant], rank[relevant].astype(np.float64))
    blocks = _Blocks.of(query[relevant], above[relevant], tied[relevant])
    for k in cuts:
        values[f"success@{k}"] = (first <= k).astype(np.float64)
        expected[f"success@{k}"] = blocks.success(k, queries)
        inside, share = rank <= k, np.clip(k - above, 0, tied) / tied
        values[f"recall@{k}"] = _divided(per_query(relevant & inside), counts.relevant)
        expected[f"recall@{k}"] = _divided(per_query(relevant * share), counts.relevant)
        gain, discounts = np.maximum(grade, 0), np.concatenate([[0.0], np.cumsum(_discount(np.arange(1, k + 1)))])
        values[f"ndcg@{k}"] = _divided(per_query(gain * inside * _discount(rank)), counts.ideal[k])
        discount = (discounts[np.minimum(above + tied, k)] - discounts[np.minimum(above, k)]) / tied
        expected[f"ndcg@{k}"] = _divided(per_query(gain * discount), counts.ideal[k])
        shown = np.minimum(k, ranked.retrieved)
        values[f"judged@{k}"] = _divided(per_query(inside), shown)
        expected[f"judged@{k}"] = _divided(per_query(share), shown)
    values["mrr"] = 1 / first
    expected["mrr"] = blocks.reciprocal_rank(queries)
    number = _numbers(query[relevant])
    precisions = _sums(query[relevant], number / rank[relevant], queries)
    values["map"] = _divided(precisions, counts.relevant)
    expected["map"] = _divided(blocks.precisions(queries), counts.relevant)
    values["rank"] = first
    expected["rank"] = blocks.rank(queries)
    return values, expected


@dataclass(frozen=True, slots=True)
class _Counts:
    """Per query what measures are divided by: relevant items, and the ideal DCG for each k."""

    relevant: Ints
    ideal: dict[int, Floats]

    @classmethod
    def of(cls, ranked: Ranked, ks: Sequence[int]) -> _Counts:
        order = np.lexsort((-ranked.judged_grade, ranked.judged_query))
        query, gain = ranked.judged_query[order], np.maximum(ranked.judged_grade[order], 0)
        rank, size = _numbers(query), len(ranked.retrieved)
        dcg = gain * _discount(rank)
        ideal = {k: _sums(query, dcg * (rank <= k), size) for k in ks}
        return cls(np.bincount(query[gain > 0], minlength=size), ideal)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Tied items among which there are relevant ones, best first within a query.

    All orders of the n items of a block are equally likely (McSherry & Najork, ECIR 2008).

    Attributes:
        query: of each block.
        above: a, items with a higher score.
        tied: n, items of the block.
        relevant: m, relevant ones of them.
        before: relevant ones in the blocks before.
        first: whether it is the first of its query.
    """

    query: Ints
    above: Ints
    tied: Ints
    relevant: Ints
    before: Ints
    first: NDArray[np.bool_]

    @classmethod
    def of(cls, query: Ints, above: Ints, tied: Ints) -> _Blocks:
        """Of relevant items in the order of query and rank."""
        starts = np.ones(len(query), bool)
        starts[1:] = (query[1:] != query[:-1]) | (above[1:] != above[:-1])
        at = np.flatnonzero(starts)
        before = _numbers(query)[at] - 1
        return cls(query[at], above[at], tied[at], np.diff(at, append=len(query)), before, before == 0)

    def success(self, k: int, queries: int) -> Floats:
        """Chance that one of the first k is relevant: hypergeometric, for the places the first block has there."""
        above, tied, relevant = self.above[self.first], self.tied[self.first], self.relevant[self.first]
        places = np.clip(k - above, 0, tied)
        none = np.ones(len(places))
        for drawn in range(int(places.max(initial=0))):
            left = np.maximum(tied - drawn, 1)
            none *= np.where(drawn < places, np.maximum(tied - relevant - drawn, 0) / left, 1.0)
        return _sums(self.query[self.first], 1 - none, queries)

    def rank(self, queries: int) -> Floats:
        """Expected rank of the first relevant item: a + (n + 1) / (m + 1)."""
        ranks = np.full(queries, np.inf)
        ranks[self.query[self.first]] = (self.above + (self.tied + 1) / (self.relevant + 1))[self.first]
        return ranks

    def reciprocal_rank(self, queries: int) -> Floats:
        """Of place t of n, the chance that the first of m is there is C(n-t, m-1) / C(n, m)."""
        kinds, which = self._kinds(self.first)
        means = [_first_reciprocal(*kind) for kind in kinds.tolist()]
        return _sums(self.query[self.first], np.array(means)[which], queries)

    def precisions(self, queries: int) -> Floats:
        """Expected sum of the precisions at the relevant items.

        With one of them at place t, (m-1)(t-1)/(n-1) of the others are expected before it.
        """
        kinds, which = self._kinds(np.ones(len(self.query), bool))
        sums = np.array([_precision_sums(*kind) for kind in kinds.tolist()]).reshape(-1, 2)[which]
        return _sums(self.query, sums[:, 0] + self.before * sums[:, 1], queries)

    def _kinds(self, chosen: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """The different (a, n, m), and which of them each block is."""
        kinds = np.stack([self.above[chosen], self.tied[chosen], self.relevant[chosen]], axis=1)
        kinds, which = np.unique(kinds, axis=0, return_inverse=True)
        return kinds, which.reshape(-1)


def _first_reciprocal(above: int, tied: int, relevant: int) -> float:
    place = np.arange(1, tied - relevant + 2)
    later = (tied - relevant + 1 - place[:-1]) / (tied - place[:-1])  # of C(n-t, m-1): one by the one before
    chance = relevant / tied * np.concatenate([[1.0], np.cumprod(later)])
    return float((chance / (above + place)).sum())


def _precision_sums(above: int, tied: int, relevant: int) -> tuple[float, float]:
    """Sum over the block of what its own relevant items give, and of what one relevant item before it adds."""
    place = np.arange(1, tied + 1)
    own = 1 + (relevant - 1) * (place - 1) / max(tied - 1, 1)
    share = relevant / tied
    return float((share * own / (above + place)).sum()), float((share / (above + place)).sum())


def _discount(rank: Ints) -> Floats:
    return np.asarray(1 / np.log2(1 + rank))


def _numbers(query: Ints) -> Ints:
    """1, 2, 3, ... anew for each query, in an array where equal ones stand together."""
    starts = np.ones(len(query), bool)
    starts[1:] = query[1:] != query[:-1]
    at = np.flatnonzero(starts)
    return np.arange(1, len(query) + 1) - np.repeat(at, np.diff(at, append=len(query)))


def _sums(query: Ints, weights: NDArray[Any], queries: int) -> Floats:
    return np.bincount(query, weights.astype(np.float64), queries).astype(np.float64)


def _divided(part: Floats, whole: Floats | Ints) -> Floats:
    """Part of a whole; 0 where there is nothing to be part of."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
