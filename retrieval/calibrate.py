"""From raw scores to relevance: whether an item stands out from what its index and its model score anyway.

A cosine means something only beside others of its model: unrelated texts and photos score 0.2 by one model and 0.6 by
another. So a score is first put into the unit of its model, standard deviations above the mean of unrelated pairs.
Relevance is then a logistic function of that, of the mean and the spread of the query's own scores in the index (its
background), and of how many items there were to find a high score among by chance. A single word never says as much of
a picture as a sentence does, so the weights go over from those of words to those of sentences with a text's length.
They are fitted by `benchmarks/relevance.py --fit` on photos and captions that nothing is reported on;
`docs/relevance.md` has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmsearch.retrieval.lexicon import word_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.clauses import EmbeddedClause
    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.types import Modality

SAMPLE = 4096
"""How many vectors of a modality make a background."""

FEWEST = 50
"""With fewer vectors to compare with, relevance is unknown."""

MATCH = 0.5
"""The relevance from which on an item is said to match: about 5 of 100 queries for what is not there reach it."""

NO_MATCH = 0.25
"""The relevance below which an item is said not to match: about 5 of 100 captions and words for what is there stay
below, but 24 of 100 phrases of some words."""

_SENTENCE = 5
"""Texts of as many words are sentences, which is what the models have learned from."""

_PROBES = 256
"""How many pictures of an index are taken as queries to learn what unrelated ones score."""


_FAR = 500.0
"""Log-odds that are as good as certain; much larger ones overflow."""


class Reference(NamedTuple):
    """The scores of pairs that have nothing to do with each other.

    Attributes:
        mean: of all.
        deviation: the standard deviation of those of one query, averaged over queries.
    """

    mean: float
    deviation: float


class Weights(NamedTuple):
    """The logistic function: what each part adds to the log-odds.

    Attributes:
        bias: a constant.
        score: per reference deviation that the score is above the reference mean.
        mean: the same, for the mean of the query's scores in the index.
        deviation: per reference deviation of the standard deviation of the query's scores.
        size: per power of ten of the items of that modality.
    """

    bias: float
    score: float
    mean: float
    deviation: float
    size: float


Direction = tuple["Modality", "Modality"]
"""The modality of a query, and that of the items."""

# The tables are what the command in the module's docstring prints.
WORD_WEIGHTS: dict[Direction, Weights] = {
    ("text", "image"): Weights(-0.093, 0.5, 1.269, 0.385, -0.763),
    ("text", "text"): Weights(-1.709, 0.5, 0.728, -0.876, 0.262),
}
"""Of single words as queries."""

WEIGHTS: dict[Direction, Weights] = {
    ("text", "image"): Weights(-6.147, 1.875, 0.914, 0.869, -0.942),
    ("image", "image"): Weights(-3.566, 2.106, -0.273, 0.31, -1.432),
    ("text", "text"): Weights(-4.964, 1.833, -0.241, -0.032, -0.579),
    ("image", "text"): Weights(-7.024, 2.128, 0.621, 1.802, -0.102),
}
"""Of pictures and sentences as queries."""

REFERENCES: dict[str, dict[Direction, Reference]] = {
    "starter": {
        ("text", "image"): Reference(0.5064, 0.0778),
        ("image", "image"): Reference(0.4716, 0.0982),
        ("text", "text"): Reference(0.5783, 0.0737),
        ("image", "text"): Reference(0.5341, 0.0935),
    }
}
"""By model. Of other models they are measured on each index, with `probes` and with its own pictures as queries."""


def length_of(text: str) -> float:
    """How much of a sentence a text is, 0 for a single word to 1; two Chinese characters count as a word."""
    return min(max((word_count(text) - 1) / (_SENTENCE - 1), 0.0), 1.0)


def weights_of(direction: Direction, length: float) -> Weights:
    """The weights for queries of a length, see `length_of`; pictures are whole sentences."""
    whole = WEIGHTS[direction]
    word = WORD_WEIGHTS.get(direction, whole)
    return Weights(*((1 - length) * one + length * other for one, other in zip(word, whole, strict=True)))


class Background:
    """What an index scores for one query anyway.

    Args:
        scores: of a sample of the items.
        count: how many items there are.
        weights: of the direction of the query.
        unit: what unrelated pairs score.
    """

    def __init__(
        self, scores: NDArray[np.floating], count: int, weights: Weights | None, unit: Reference | None
    ) -> None:
        self.mean = float(scores.mean()) if len(scores) else 0.0
        self.deviation = float(scores.std()) if len(scores) else 0.0
        known = len(scores) >= FEWEST and self.deviation > 0 and unit is not None and unit.deviation > 0
        self._weights = weights if known else None
        self._unit = unit if known else None
        self._count = count

    def relevance(self, scores: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Relevances 0..1 of scores; None where there is too little to compare with."""
        if self._weights is None or self._unit is None:
            return None
        weights, unit = self._weights, self._unit
        standard = (np.asarray(scores, np.float64) - unit.mean) / unit.deviation
        constant = (
            weights.bias
            + weights.mean * (self.mean - unit.mean) / unit.deviation
            + weights.deviation * self.deviation / unit.deviation
            + weights.size * math.log10(self._count)
        )
        odds = np.clip(weights.score * standard + constant, -_FAR, _FAR)
        relevance: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-odds))
        return relevance


UNKNOWN = Background(np.empty(0), 0, None, None)
"""Of a query that has no vector."""


class Calibration:
    """What the scores of one snapshot mean. Safe to use from several threads."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._measured: dict[Direction, Reference | None] = {}
        self._samples: dict[Modality, NDArray[np.float32]] = {}

    def sample(self, space: Modality) -> NDArray[np.float32]:
        """Vectors of a modality that stand for all of it, (n, dim); gathered once."""
        if space not in self._samples:
            self._samples[space] = self._snapshot.sample(space, SAMPLE)
        return self._samples[space]

    def background(
        self, space: Modality, clauses: Sequence[EmbeddedClause], shares: Sequence[float], row: NDArray[np.float32]
    ) -> Background:
        """The background of a composed query.

        Its score is the sum of share times cosine over the clauses, so its unit is put together of theirs. What is
        asked not to be there says nothing about a match: it only moves the unit by what is usual.

        Args:
            space: the modality of the items.
            clauses: of the query.
            shares: the factor of each clause in `row`.
            row: the composed vector, float32 (dim,).
        """
        sample = self.sample(space)
        asked = [(share, clause) for share, clause in zip(shares, clauses, strict=True) if share > 0]
        if not asked or len(sample) < FEWEST:
            return Background(sample @ row, len(sample), None, None)
        mean = deviation = 0.0
        for share, clause in zip(shares, clauses, strict=True):
            usual = self._reference(clause.kind, space) if share > 0 else None
            if usual is None:
                own = sample @ clause.row
                usual = Reference(float(own.mean()), float(own.std()))
            mean += share * usual.mean
            deviation += max(share, 0.0) * usual.deviation
        first = max(asked, key=lambda pair: pair[0])[1]
        weights = weights_of((first.kind or space, space), first.length)
        return Background(sample @ row, self._snapshot.counts[space], weights, Reference(mean, deviation))

    def _reference(self, kind: Modality | None, space: Modality) -> Reference | None:
        """What unrelated pairs of a direction score; None where that is not known."""
        if kind is None:
            return None
        known = REFERENCES.get(self._snapshot.model)
        if known is not None:
            return known[kind, space]
        if (kind, space) not in self._measured:
            queries = self._snapshot.probes() if kind == "text" else self._snapshot.sample("image", _PROBES)
            self._measured[kind, space] = reference_of(queries, self.sample(space))
        return self._measured[kind, space]


def reference_of(queries: NDArray[np.float32], rows: NDArray[np.float32]) -> Reference | None:
    """What queries that have nothing to do with rows score; None with too few of either.

    Args:
        queries: (q, dim) of length 1; some may be rows themselves, which does not count.
        rows: (n, dim).
    """
    if len(queries) < FEWEST or len(rows) < FEWEST:
        return None
    scores = (queries @ rows.T).astype(np.float64)
    scores[scores > _ITSELF] = np.nan
    told = scores[(~np.isnan(scores)).any(axis=1)]
    return Reference(float(np.nanmean(told)), float(np.nanstd(told, axis=1).mean())) if len(told) else None


_ITSELF = 0.9999
"""A cosine beyond which two vectors are one."""
