"""Putting ranked lists together by rank, because scores of different spaces cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

RRF_CONSTANT = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[int]], *, weights: Sequence[float] | None = None, k: int | None = None
) -> list[tuple[int, float]]:
    """Fuses rankings of item ids, best first.

    An item scores the sum of `weight / (60 + rank)` over the rankings that hold it, ranks counted from 1. A ranking
    that names an item twice counts its better rank only. A ranking of negative weight only takes from what others
    hold.

    Args:
        rankings: item ids, best first.
        weights: of the rankings; all 1 by default.
        k: how many to return; all by default.

    Returns:
        (item id, score) by falling score; equal scores by the smaller id.
    """
    if weights is None:
        weights = [1.0] * len(rankings)
    parts: dict[int, list[float]] = {}
    weighted = list(zip(rankings, weights, strict=True))
    for ranking, weight in sorted(weighted, key=lambda pair: pair[1] < 0):
        for rank, item_id in enumerate(dict.fromkeys(ranking), start=1):
            if weight > 0 or item_id in parts:
                parts.setdefault(item_id, []).append(weight / (RRF_CONSTANT + rank))
    # An exact sum: rounding in the order of the rankings would tell apart items of the same ranks.
    scores = [(item_id, math.fsum(summands)) for item_id, summands in parts.items()]
    return sorted(scores, key=lambda pair: (-pair[1], pair[0]))[:k]
