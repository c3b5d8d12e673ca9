"""Retrieval measures over embeddings, and whether a difference between two systems is more than chance.

Success@k is what CLIP papers print as "R@k" on COCO and Flickr30k: the share of queries with at least one
relevant item among the first k (it is not recall in the IR sense when a query has several relevant items).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512
"""Queries scored at once, so that memory stays flat."""


def first_ranks(
    queries: NDArray[np.float32], items: NDArray[np.float32], relevant: Sequence[Sequence[int]]
) -> NDArray[np.int64]:
    """Rank (1 = best) of the best-ranked relevant item of each query.

    Args:
        queries: (q, dim) rows.
        items: (n, dim) rows; the score is the inner product.
        relevant: for each query the rows of `items` that answer it, at least one.

    Ties count against the system: an item of equal score ranks before the relevant one.
    """
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _BLOCK):
        scores = queries[start : start + _BLOCK] @ items.T
        for row, answer in enumerate(relevant[start : start + _BLOCK]):
            wanted = np.asarray(answer)
            best = scores[row, wanted].max()
            scores[row, wanted] = -np.inf
            ranks[start + row] = 1 + np.count_nonzero(~(scores[row] < best))  # not >=: a NaN never ranks first
    return ranks


def success_at_k(ranks: NDArray[np.int64], k: int) -> float:
    """Share of queries whose best relevant item is among the first `k`."""
    return float(np.mean(ranks <= k))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference of a measure between two systems on the same queries.

    Attributes:
        delta: mean of b minus mean of a.
        low, high: 95 % interval of delta.
        p: two-sided bootstrap p-value of "no difference".
    """

    delta: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    a: NDArray[np.float64] | NDArray[np.bool_],
    b: NDArray[np.float64] | NDArray[np.bool_],
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare per-query values of two systems (Sakai 2006; Efron & Tibshirani, shift method).

    Args:
        a: one value per query: 0/1 for success@k, or any other per-query measure.
        b: the other system's, in the same order.
        samples: resamples of the query set.
        seed: of the resampling.

    Raises:
        ValueError: the arrays differ in length or are empty.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired values are needed: {len(a)} and {len(b)} queries given")
    difference = b.astype(np.float64) - a.astype(np.float64)
    delta = float(difference.mean())
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            difference[rng.integers(0, len(difference), (min(500, samples - done), len(difference)))].mean(axis=1)
            for done in range(0, samples, 500)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    p = float(np.mean(np.abs(means - delta) >= abs(delta)))
    return Comparison(delta, float(low), float(high), p)


def zero_shot_accuracy(images: NDArray[np.float32], classes: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Top-1 accuracy of naming each image (n, dim) by the nearest class text (c, dim)."""
    return float(np.mean(np.argmax(images @ classes.T, axis=1) == labels))


def overlap_at_k(a: NDArray[np.float32], b: NDArray[np.float32], items: NDArray[np.float32], k: int) -> float:
    """Mean number of items that the first `k` answers of paired queries share: two languages, two indexes."""
    tops = [np.argsort(-(queries @ items.T), axis=1, kind="stable")[:, :k] for queries in (a, b)]
    return float(np.mean([len(set(x) & set(y)) for x, y in zip(*tops, strict=True)]))


def roc_auc(present: NDArray[np.float64], absent: NDArray[np.float64]) -> float:
    """Area under the ROC curve: the chance that one of `present` is above one of `absent`; equal ones count half."""
    absent = np.sort(absent)
    below = np.searchsorted(absent, present, "left")
    not_above = np.searchsorted(absent, present, "right")
    return float((below + not_above).sum() / (2 * len(present) * len(absent)))
