"""Measures of rankings: of where the judged items of each query stand, and of how many items are tied with them.

Success@k is what CLIP papers print as "R@k" on COCO and Flickr30k: 1 if at least one relevant item is among the
first k. Recall@k is the share of the relevant items that are there (recall in the IR sense). The others are those
of trec_eval: relevant is a grade of 1 or more, the gain of nDCG is the grade, its discount log2(1 + rank), its ideal
that of all relevant items, found or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.evaluate.ranked import Floats, Ints, Ranked, values_of

Relevant = Sequence[Mapping[int, int] | Sequence[int]]
"""For each query what is known of it: item row -> grade, or the rows that are relevant, with the grade 1."""

KS = (1, 5, 10)
"""The k of success@k, recall@k, nDCG@k and judged@k, if no others are asked for."""


_SCORES = 2**22
"""Scores held at once by `measure_embeddings`."""
_COUNTED = 8
"""With more judged items than this, a query's scores are sorted; with fewer, counting is faster."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Measures of a system, a value for each query.

    Attributes:
        ids: of the queries, in the order of the values.
        values: measure -> one value for each query: "success@k", "recall@k", "ndcg@k", "judged@k" for each k, "mrr",
            "map", and "rank", that of the first relevant item (infinity if there is none).
        expected: the same, each the expected value over all orders of the items that are tied.
        unjudged: queries of a run that were left out because nothing is known about them.
    """

    ids: tuple[str, ...]
    values: dict[str, Floats]
    expected: dict[str, Floats]
    unjudged: int = 0

    def means(self) -> dict[str, float]:
        """The mean over the queries of every measure but the rank; 0 where there are no queries."""
        return _means(self.values)

    def expected_means(self) -> dict[str, float]:
        """The same of the expected values."""
        return _means(self.expected)

    @property
    def median_rank(self) -> float:
        """Median over the queries of the rank of the first relevant item; infinity if half of them find none."""
        ranks = self.values["rank"]
        return float(np.median(ranks)) if len(ranks) else float("inf")

    def summary(self) -> dict[str, float | None]:
        """Means and "median_rank" for JSON, which has no infinity: that is None."""
        return {**self.means(), "median_rank": self.median_rank if isfinite(self.median_rank) else None}


def _means(values: Mapping[str, Floats]) -> dict[str, float]:
    return {name: float(each.mean()) if len(each) else 0.0 for name, each in values.items() if name != "rank"}


def measure_embeddings(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    relevant: Relevant,
    *,
    ids: Sequence[str] | None = None,
    item_ids: Sequence[int] | Sequence[str] | NDArray[np.int64] | None = None,
    own: Sequence[int] | None = None,
    ks: Iterable[int] = KS,
    block: int | None = None,
) -> Evaluated:
    """Measures of ranking all items for every query, by inner product.

    Nothing is sorted that need not be: how many items score higher than a judged one is counted, for a block of
    queries at a time.

    Args:
        queries: (q, dim) rows.
        items: (n, dim) rows. Equal rows have equal scores, whatever the rounding of the matrix product.
        relevant: for each query the rows of `items` that were judged. A grade below 1 is judged as not relevant.
            A query without relevant items counts 0.
        ids: of the queries; their numbers, if not given.
        item_ids: of the items, each once, numbers or texts; their row numbers, if not given. Among equal scores
            the smaller one stands first.
        own: for each query the row of `items` that is the query itself, and is left out for it.
        ks: where rankings are cut.
        block: queries scored at once; as many as make some 4 million scores, if not given.

    Returns:
        One value for each query and measure. An item whose score is NaN is not ranked: it counts as not found.

    Raises:
        UsageError: shapes or lengths do not fit, a row is none of `items`, item ids repeat, or a k is below 1.
    """
    queries, items = np.asarray(queries, np.float32), np.asarray(items, np.float32)
    names = tuple(map(str, range(len(queries)))) if ids is None else tuple(ids)
    _check(queries, items, relevant, names)
    mine = None if own is None else _own_rows(own, len(queries), len(items))
    query, row, grade = _judgements(relevant, len(items))
    if item_ids is not None:
        order, place = _by_id(np.asarray(item_ids), len(items))
        items, row, mine = items[order], place[row], None if mine is None else place[mine]
    same = _same_rows(items)
    retrieved = np.empty(len(queries), np.int64)
    rank, above, tied = (np.zeros(len(query), np.int64) for _ in range(3))
    step = block or max(1, _SCORES // max(1, len(items)))
    for start in range(0, len(queries), step):
        with np.errstate(invalid="ignore", over="ignore"):
            scores = queries[start : start + step] @ items.T
        if same is not None:
            scores = scores[:, same]
        if mine is not None:
            scores[np.arange(len(scores)), mine[start : start + step]] = np.nan  # not ranked
        retrieved[start : start + step] = scores.shape[1] - np.count_nonzero(np.isnan(scores), axis=1)
        part = slice(*np.searchsorted(query, [start, start + step]))
        above[part], tied[part] = _places(scores, query[part] - start, row[part])
        rank[part] = 1 + above[part] + _earlier(scores, query[part] - start, row[part], tied[part])
    found = tied > 0
    ranked = Ranked(retrieved, query, grade, *(part[found] for part in (query, grade, rank, above, tied)))
    return Evaluated(names, *values_of(ranked, ks))


def _check(
    queries: NDArray[np.float32], items: NDArray[np.float32], relevant: Relevant, names: tuple[str, ...]
) -> None:
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise UsageError(f"queries {queries.shape} and items {items.shape} must be rows of the same length")
    if len(relevant) != len(queries) or len(names) != len(queries):
        raise UsageError(
            f"{len(queries)} queries need as many ids and judgements: {len(names)} and {len(relevant)} given"
        )


def _judgements(relevant: Relevant, items: int) -> tuple[Ints, Ints, Ints]:
    """Each judgement once, by query: number of the query, row of the item, grade."""
    judged = [each if isinstance(each, Mapping) else dict.fromkeys(map(int, each), 1) for each in relevant]
    sizes = [len(each) for each in judged]
    query = np.repeat(np.arange(len(judged)), sizes)
    row = np.fromiter((row for each in judged for row in each), np.int64, sum(sizes))
    grade = np.fromiter((grade for each in judged for grade in each.values()), np.int64, sum(sizes))
    wrong = np.flatnonzero((row < 0) | (row >= items))
    if len(wrong):
        at = wrong[0]
        raise UsageError(f"query {query[at]} has item row {row[at]} as judged, and the rows are 0 to {items - 1}")
    return query, row, grade


def _own_rows(own: Sequence[int], queries: int, items: int) -> Ints:
    rows = np.asarray(own, np.int64)
    if rows.shape != (queries,) or np.any((rows < 0) | (rows >= items)):
        raise UsageError(f"each of the {queries} queries needs one row of 0 to {items - 1} as its own")
    return rows


def _by_id(item_ids: NDArray[Any], items: int) -> tuple[Ints, Ints]:
    """Rows in the order of their ids, and the place of each row in it."""
    if item_ids.shape != (items,) or len(np.unique(item_ids)) < items:
        raise UsageError(f"{items} items need as many item ids, all different")
    order = np.argsort(item_ids)
    place = np.empty(items, np.int64)
    place[order] = np.arange(items)
    return order, place


def _same_rows(items: NDArray[np.float32]) -> Ints | None:
    """For each row the first one that equals it; None if all differ.

    A matrix product may round equal rows differently, at the edges of its tiles, and so tell apart what is tied.
    """
    first: dict[bytes, int] = {}
    same = np.fromiter(
        (first.setdefault(blake2b(row.tobytes(), digest_size=16).digest(), number) for number, row in enumerate(items)),
        np.int64,
        len(items),
    )
    return same if len(first) < len(items) else None


def _places(scores: NDArray[np.float32], query: Ints, row: Ints) -> tuple[Ints, Ints]:
    """How many items score higher than each judged one, and how many the same: 0 of the latter for a NaN."""
    mine = scores[query, row]
    above, tied = np.zeros(len(query), np.int64), np.zeros(len(query), np.int64)
    ends = np.searchsorted(query, np.arange(len(scores)), "right")
    starts = np.searchsorted(query, np.arange(len(scores)), "left")
    sizes = ends - starts
    for number in range(min(_COUNTED, int(sizes.max(initial=0)))):
        asked = np.flatnonzero((sizes > number) & (sizes <= _COUNTED))
        if not len(asked):
            continue
        at = starts[asked] + number
        part = scores if len(asked) == len(scores) else scores[asked]
        above[at] = np.count_nonzero(part > mine[at, None], axis=1)
        tied[at] = np.count_nonzero(part >= mine[at, None], axis=1) - above[at]
    for asked_row in np.flatnonzero(sizes > _COUNTED).tolist():
        at_rows = slice(starts[asked_row], ends[asked_row])
        ordered = np.sort(scores[asked_row])
        ordered = ordered[: len(ordered) - np.count_nonzero(np.isnan(ordered))]
        up_to = np.searchsorted(ordered, mine[at_rows], "right")
        above[at_rows] = len(ordered) - up_to
        tied[at_rows] = up_to - np.searchsorted(ordered, mine[at_rows], "left")
    return above, tied


def _earlier(scores: NDArray[np.float32], query: Ints, row: Ints, tied: Ints) -> Ints:
    """How many of the items with the score of a judged one have a smaller id."""
    earlier = np.zeros(len(query), np.int64)
    for at in np.flatnonzero(tied > 1).tolist():
        line = scores[query[at]]
        earlier[at] = np.count_nonzero(line[: row[at]] == line[row[at]])
    return earlier


def measure_run(
    run: Mapping[str, Mapping[str, float] | Sequence[str]],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    ks: Iterable[int] = KS,
) -> Evaluated:
    """Measures of a run in the sense of TREC: query -> what was found for it.

    Args:
        run: for each query the ids found with their scores, higher is better, or the ids alone, best first. Equal
            scores stand in the order of the mapping, which `read_run` makes that of the ranks in the file. An id
            whose score is NaN counts as not found.
        qrels: for each query the ids that somebody judged, with their grades. What nobody judged is not relevant;
            judged@k tells how much of that there is.
        ks: where rankings are cut.

    Returns:
        A value for each query of `qrels`, in their order. Queries without results count 0; those of the run that
        `qrels` does not have are left out, and counted in `unjudged`.

    Raises:
        UsageError: a k is below 1, or an id occurs twice in an ordered list.
    """
    retrieved = np.zeros(len(qrels), np.int64)
    judged: list[tuple[int, int]] = []
    found: list[tuple[int, int, int, int, int]] = []
    for number, (query, grades) in enumerate(qrels.items()):
        judged += [(number, grade) for grade in grades.values()]
        ids, scores = _ordered(query, run.get(query, ()))
        retrieved[number] = len(ids)
        places = {item: place for place, item in enumerate(ids) if item in grades}
        at = np.fromiter(places.values(), np.int64, len(places))
        if scores is None:
            above, end = at, at + 1
        else:
            above = np.searchsorted(-scores, -scores[at], "left")
            end = np.searchsorted(-scores, -scores[at], "right")
        found += [
            (number, grades[item], place + 1, first, last - first)
            for (item, place), first, last in zip(places.items(), above.tolist(), end.tolist(), strict=True)
        ]
    judgements = np.array(judged, np.int64).reshape(-1, 2)
    rows = np.array(found, np.int64).reshape(-1, 5)
    ranked = Ranked(retrieved, *judgements.T, *rows.T)
    return Evaluated(tuple(qrels), *values_of(ranked, ks), sum(query not in qrels for query in run))


def _ordered(query: str, results: Mapping[str, float] | Sequence[str]) -> tuple[list[str], Floats | None]:
    """Ids, best first, and their scores, if there are any."""
    if not isinstance(results, Mapping):
        if len(set(results)) < len(results):
            twice = next(item for number, item in enumerate(results) if item in results[:number])
            raise UsageError(f"query {query}: {twice} is in the results twice; leave one out")
        return list(results), None
    ids = [item for item, score in results.items() if not isnan(score)]
    scores = np.array([results[item] for item in ids], np.float64)
    order = np.argsort(-scores, kind="stable")
    return [ids[at] for at in order.tolist()], scores[order]
