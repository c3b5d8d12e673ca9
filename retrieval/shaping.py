"""Shaping a ranking: near-duplicates and groups collapsed, diversity, pages that fit together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST_DEPTH = 1000
"""How deep lists are fused for the first pages."""

_BLOCK = 128

Ranking = list[tuple[int, float]]
"""(item id, score), best first, equal scores by item id."""


def deepening(fetch: Callable[[int], Ranking], need: int) -> Ranking:
    """The first `need` of a ranking that may change when it is computed from deeper lists.

    What lists of `FIRST_DEPTH` give comes first, then what lists twice as deep add, and so on: so pages fit together,
    however many are asked for at once.

    Args:
        fetch: the ranking from lists of a depth.
        need: how many are needed; fewer come where there are fewer.
    """
    found: Ranking = []
    seen: set[int] = set()
    depth = FIRST_DEPTH
    while True:
        ranked = fetch(depth)
        new = [pair for pair in ranked if pair[0] not in seen][: depth - len(found)]
        seen.update(item_id for item_id, _ in new)
        found += new
        if len(found) >= need or len(ranked) < depth:
            return found[:need]
        depth *= 2


def diversify(scores: NDArray[np.floating], vectors: NDArray[np.float32], k: int, trade_off: float) -> list[int]:
    """The order of a pool by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Each step takes what is relevant and least like what was taken: the largest `(1 - trade_off) * score - trade_off *
    similarity`, scores scaled to 0..1 over the pool, similarity the largest cosine to what was taken.

    Args:
        scores: of the pool (n,), best first.
        vectors: of length 1 (n, dim).
        k: how many are chosen; the rest follows in its old order.
        trade_off: 0 changes nothing, 1 looks at difference only.

    Returns:
        Positions in the pool. Equal values by position, and a larger `k` only goes on where a smaller one ended.
    """
    span = float(scores.max() - scores.min()) if len(scores) else 0.0
    relevant = (scores - scores.min()) / span if span else np.ones(len(scores))
    closest = np.full(len(scores), -np.inf)
    left = np.ones(len(scores), dtype=bool)
    order: list[int] = []
    for _ in range(min(k, len(scores))):
        likeness = np.zeros(len(scores)) if not order else closest
        value = np.where(left, (1 - trade_off) * relevant - trade_off * likeness, -np.inf)
        best = int(np.argmax(value))
        order.append(best)
        left[best] = False
        closest = np.maximum(closest, vectors @ vectors[best])
    return order + np.flatnonzero(left).tolist()


def group(keys: Sequence[Hashable | None]) -> list[tuple[int, list[int]]]:
    """The best of each group, in rank order: (position, positions of the others). None is a group of its own."""
    first: dict[Hashable, int] = {}
    others: dict[int, list[int]] = {}
    for position, key in enumerate(keys):
        best = position if key is None else first.setdefault(key, position)
        if best == position:
            others[best] = []
        else:
            others[best].append(position)
    return list(others.items())


def collapse(count: int, same: Callable[[int, int], NDArray[np.bool_]]) -> list[tuple[int, list[int]]]:
    """Near-duplicates under the best of them, in rank order: (position, positions of its duplicates).

    Each is compared with those that are kept before it, so that no chain of small changes leads from one to another.

    Args:
        count: how many there are.
        same: (start, stop) to bool (stop - start, stop): for the positions from start to stop, whether each is a
            near-duplicate of each position before stop. It is asked for a block at a time.
    """
    kept = np.zeros(count, dtype=bool)
    duplicates: dict[int, list[int]] = {}
    for start in range(0, count, _BLOCK):
        alike = same(start, min(start + _BLOCK, count))
        for position, row in enumerate(alike, start):
            matches = row[:position] & kept[:position]
            if matches.any():
                duplicates[int(matches.argmax())].append(position)
            else:
                kept[position] = True
                duplicates[position] = []
    return list(duplicates.items())


def newest_first(times: Sequence[tuple[str | None, int | None]]) -> list[int]:
    """The order of hits by date: (ISO 8601 capture time, modification time in ns since 1970) of each.

    Capture times are compared as wall-clock times; without one the modification time stands for it. What has neither
    comes last; equal times keep their order.
    """
    from datetime import datetime

    def wall_clock(position: int) -> str:
        taken, modified = times[position]
        if taken is None and modified is not None:
            taken = datetime.fromtimestamp(modified / 1e9).isoformat()
        return (taken or "")[:19]

    return sorted(range(len(times)), key=wall_clock, reverse=True)
