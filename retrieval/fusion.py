"""Putting ranked lists together by rank, because scores of different spaces cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

RRF_CONSTANT = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""

HYBRID_CONSTANT, WORDS_WEIGHT, WORDS_DEPTH = 5, 2.0, 100
"""How dense search and words are fused: the constant, the weight of the words, and how many of their list count.

Of that weight an item gets the share of the query's words that it has. With 60, and any word as good as all, a photo
without a caption comes after every captioned one that has a word of the query, however well it fits. Chosen on train
photos of which all or half have captions; `benchmarks/queries.py` measures what comes of it.
"""

WORDS_RANKED = 5_000
"""Of how many items with the words the newest are ranked for hybrid search. A word that more have says little, and to
rank them all would take longer than to look at every picture. Lexical search ranks all, and so does a filter."""


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[int]],
    *,
    weights: Sequence[float] | None = None,
    shares: Sequence[Mapping[int, float] | None] | None = None,
    constant: int = RRF_CONSTANT,
    k: int | None = None,
) -> list[tuple[int, float]]:
    """Fuses rankings of item ids, best first.

    An item scores the sum of `weight / (constant + rank)` over the rankings that hold it, ranks counted from 1. A
    ranking that names an item twice counts its better rank only. A ranking of negative weight only takes from what
    others hold.

    Args:
        rankings: item ids, best first.
        weights: of the rankings; all 1 by default.
        shares: which share of a ranking's weight each of its items gets; None for all of it.
        constant: the larger, the less first ranks count for more than later ones.
        k: how many to return; all by default.

    Returns:
        (item id, score) by falling score; equal scores by the smaller id.
    """
    if weights is None:
        weights = [1.0] * len(rankings)
    if shares is None:
        shares = [None] * len(rankings)
    parts: dict[int, list[float]] = {}
    weighted = list(zip(rankings, weights, shares, strict=True))
    for ranking, weight, share in sorted(weighted, key=lambda one: one[1] < 0):
        for rank, item_id in enumerate(dict.fromkeys(ranking), start=1):
            if weight > 0 or item_id in parts:
                whole = weight if share is None else weight * share[item_id]
                parts.setdefault(item_id, []).append(whole / (constant + rank))
    # An exact sum: rounding in the order of the rankings would tell apart items of the same ranks.
    scores = [(item_id, math.fsum(summands)) for item_id, summands in parts.items()]
    return sorted(scores, key=lambda pair: (-pair[1], pair[0]))[:k]
