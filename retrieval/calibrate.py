"""From raw scores to relevance: how far a score stands out from what the index scores for a query anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = 4096
"""How many vectors of a modality make a background."""

FEWEST = 50
"""With fewer vectors to compare with, relevance is unknown."""

MATCH = 0.5
"""The relevance from which on an item is said to match."""


class Background:
    """The scores that a sample of an index has for one query.

    Attributes:
        mean, deviation: of the scores.
    """

    def __init__(self, scores: NDArray[np.floating]) -> None:
        self.mean = float(scores.mean()) if len(scores) else 0.0
        self.deviation = float(scores.std()) if len(scores) else 0.0
        self._known = len(scores) >= FEWEST and self.deviation > 0

    def relevance(self, scores: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Relevances 0..1 of scores; None where there is too little to compare with."""
        if not self._known:
            return None
        standardised = (np.asarray(scores, np.float64) - self.mean) / self.deviation
        return 1.0 / (1.0 + np.exp(-(standardised - 4.0) * 2.0))
