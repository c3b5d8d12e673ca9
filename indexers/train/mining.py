"""Hard negatives: pictures that the model mixes up come into the same batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmsearch.indexers.train.pairs import Pairs

_BLOCK = 512


def neighbours(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    pairs: Pairs,
    pictures: NDArray[np.int64],
    k: int,
) -> NDArray[np.int64]:
    """The pictures that are most easily taken for each picture, none of which shares a caption with it.

    How easily: the cosine of one's picture and the other's captions, both ways.

    Args:
        images: (n, dim) embeddings of `pictures`.
        texts: (len(pairs.texts), dim) embeddings of all captions; those of other pictures are not looked at.
        pairs: whose captions they are.
        pictures: (n,) rows of `pairs`.
        k: how many for each.

    Returns:
        (n, k) places in `pictures`, hardest first; -1 where there are not so many.
    """
    means = np.stack([texts[pairs.captions[p]].mean(0) for p in pictures])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    holders: dict[int, list[int]] = {}
    for place, p in enumerate(pictures):
        for text in pairs.captions[p]:
            holders.setdefault(int(text), []).append(place)
    k = min(k, len(pictures) - 1)
    found = np.full((len(pictures), k), -1, np.int64)
    for start in range(0, len(pictures), _BLOCK):
        stop = min(start + _BLOCK, len(pictures))
        scores = images[start:stop] @ means.T + means[start:stop] @ images.T
        for row in range(stop - start):
            for text in pairs.captions[pictures[start + row]]:
                scores[row, holders[int(text)]] = -np.inf
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k] if k else np.zeros((stop - start, 0), np.int64)
        inside = np.take_along_axis(scores, best, 1)
        order = np.lexsort((best, -inside), axis=1) if k else best
        best, inside = np.take_along_axis(best, order, 1), np.take_along_axis(inside, order, 1)
        found[start:stop] = np.where(np.isfinite(inside), best, -1)
    return found


def epoch_order(
    count: int, hard: NDArray[np.int64] | None, per_picture: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Every place once, in random order; with `hard`, each is followed by its hardest that have not come yet.

    Args:
        count: of places.
        hard: (count, k) of `neighbours`, or None.
        per_picture: how many of them follow it.
        rng: decides the order.
    """
    order = rng.permutation(count)
    if hard is None or not per_picture:
        return order
    free = np.ones(count, bool)
    placed: list[int] = []
    for place in order:
        if not free[place]:
            continue
        free[place] = False
        placed.append(int(place))
        near = hard[place][hard[place] >= 0]
        follow = near[free[near]][:per_picture]
        free[follow] = False
        placed += follow.tolist()
    return np.array(placed, np.int64)
