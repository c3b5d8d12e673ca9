"""A reranker that does what a test says, and a clock that it moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmsearch.retrieval.rerank import RerankCandidate
from mmsearch.retrieval.types import Modality


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A `Reranker` that scores by a function.

    Attributes:
        batches: the item ids of each call.
        queries: the texts that it was to read.
        candidates: all that it was given.
        before: called with the number of each call, before it scores.
        result: makes something else of the scores.
    """

    name = "scripted"
    identity = "scripted-1"

    def __init__(
        self,
        score: Callable[[RerankCandidate], float] = lambda candidate: float(candidate.item_id),
        *,
        batch_size: int = 4,
        modalities: Sequence[Modality] = ("image", "text"),
    ) -> None:
        self.modalities = frozenset(modalities)
        self.batch_size = batch_size
        self.batches: list[list[int]] = []
        self.queries: list[str] = []
        self.candidates: list[RerankCandidate] = []
        self.before: Callable[[int], object] = lambda number: None
        self.result: Callable[[int, Any], Any] = lambda number, scores: scores
        self._score = score
        self._lock = threading.Lock()

    def score(self, query: str, candidates: Sequence[RerankCandidate]) -> Any:
        with self._lock:
            number = len(self.batches)
            self.batches.append([candidate.item_id for candidate in candidates])
            self.queries.append(query)
            self.candidates += candidates
        self.before(number)
        scores = np.array([self._score(candidate) for candidate in candidates], np.float32)
        return self.result(number, scores)
