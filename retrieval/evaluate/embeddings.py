"""Small measures straight from embeddings and scores, for training and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512
"""Queries scored at once, so that memory stays flat."""


def first_ranks(
    queries: NDArray[np.float32], items: NDArray[np.float32], relevant: Sequence[Sequence[int]]
) -> NDArray[np.int64]:
    """Rank (1 = best) of the best-ranked relevant item of each query, where ties count against the system.

    Training watches itself by this: an item of equal score ranks before the relevant one, so that a model which
    has collapsed to one point looks as bad as it is. What is published is `measure_embeddings`.

    Args:
        queries: (q, dim) rows.
        items: (n, dim) rows; the score is the inner product.
        relevant: for each query the rows of `items` that answer it, at least one.
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
