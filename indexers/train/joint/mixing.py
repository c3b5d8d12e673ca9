"""How much each score of a reranker counts: chosen on captions, and tried on those of other photos."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Tried for late interaction and for cross-attention, in units of the scores' deviations; the cosine has 1."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The first stage's best photos of each caption, best first.

    Attributes:
        parts: (captions, photos, 3): the cosine of the embeddings, late interaction, cross-attention.
        right: (captions, photos): whether it is the caption's photo.
        photo: of each caption, (captions,).
    """

    parts: NDArray[np.float32]
    right: NDArray[np.bool_]
    photo: NDArray[np.int64]

    def success(self, scores: NDArray[Any] | None, k: int = 1) -> NDArray[np.bool_]:
        """Of each caption, whether its photo is among the first k; ties go to the first stage, whose order None is."""
        if scores is None:
            return np.asarray(self.right[:, :k].any(1))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.asarray(np.take_along_axis(self.right, order, 1).any(1))


def cross_fitted(sets: Sequence[Candidates]) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Scores of each set by weights that are best for the other half of the photos, and the weights best for all.

    Best is the highest mean success@1 over the sets.
    """
    units = np.mean([one.parts.std(1).mean(0) for one in sets], axis=0)
    mixes = [np.array([1.0, late, cross]) / units for late, cross in itertools.product(WEIGHTS, WEIGHTS)]
    hits = [np.stack([one.success(one.parts @ mix) for mix in mixes]) for one in sets]

    def best(chosen_on: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
        means = [of[:, which].mean(1) for of, which in zip(hits, chosen_on, strict=True)]
        return np.asarray(mixes[int(np.mean(means, axis=0).argmax())])

    found = [np.empty(one.right.shape) for one in sets]
    for side in (0, 1):
        mix = best([one.photo % 2 != side for one in sets])
        for one, scores in zip(sets, found, strict=True):
            mine = one.photo % 2 == side
            scores[mine] = (one.parts @ mix)[mine]
    return found, best([np.ones(len(one.photo), bool) for one in sets])
