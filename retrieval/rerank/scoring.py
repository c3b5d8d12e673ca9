"""Scoring candidates for as long as there is time: a reranker that fails or hangs never costs the answer."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.rerank import THREAD

if TYPE_CHECKING:
    from mmsearch.retrieval.rerank import RerankCandidate, Reranker

_log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Without a budget, how many seconds a reranker may take for one batch before it is given up: far longer than the
slowest of ours takes on a slow machine."""

_LEFT_BEHIND = 8
"""How many calls that did not come back in time may still be running before no further ones are made."""

_GRACE = 10.0
"""How many seconds a program that ends waits for a call that was left behind."""

NONE_SCORED = "it could score none of the candidates"
"""A failure: of all that it was given, a reranker gave nothing but NaN for it."""

_KEPT = 64
"""How many outcomes are kept for the further pages of their queries."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of scoring n candidates.

    Attributes:
        scores: of each candidate, higher is better; None for one that was not scored.
        milliseconds: that each took, a batch's time shared by its candidates; None for one that was not looked at.
        out_of_time: whether there was no time for some.
        failure: why the reranker cannot be trusted with this query, in one line; nothing is scored then.
    """

    scores: tuple[float | None, ...]
    milliseconds: tuple[float | None, ...]
    out_of_time: bool = False
    failure: str | None = None

    @property
    def scored(self) -> int:
        """How many have a score."""
        return sum(score is not None for score in self.scores)

    def order(self) -> list[int]:
        """The positions of the candidates, best first.

        Those with scores come first, by score, equal ones as they were; then those without, as they were. So nothing
        that was not scored overtakes anything that was.
        """
        scored = [(-score, at) for at, score in enumerate(self.scores) if score is not None]
        return [at for _, at in sorted(scored)] + [at for at, score in enumerate(self.scores) if score is None]


class Scorer:
    """Asks rerankers. Safe to use from several threads; keep one for as long as pages of queries are asked for.

    Args:
        clock: seconds, for budgets.
        patience: seconds for a batch where there is no budget.

    Attributes:
        patience: as given.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, patience: float = PATIENCE) -> None:
        self._clock = clock
        self.patience = patience
        self._lock = threading.Lock()
        self._left: list[_Worker] = []
        self._kept: OrderedDict[Hashable, tuple[Reranker, Outcome]] = OrderedDict()

    def score(
        self,
        reranker: Reranker,
        query: str,
        candidates: Sequence[RerankCandidate],
        *,
        budget_ms: int | None = None,
        page: Hashable = None,
        is_first: bool = True,
    ) -> Outcome:
        """Scores candidates in their order, batch by batch, until all are scored or the time is up.

        A batch that is not back when the time is up is left behind, and does not count. Scores that are back count,
        whatever becomes of later batches, unless the reranker fails: by an error, a wrong number of scores, or none
        but NaN for all. Then no score counts, because who gives nonsense for one batch may have given it before.

        Args:
            reranker: called from a thread of its own.
            query: what it reads.
            candidates: best first; those of modalities that the reranker does not read are passed over.
            budget_ms: wall-clock time for all of them; None for no limit but `PATIENCE`.
            page: what the pages of a query have in common: later ones get what came of the first, so that they fit
                together though time may have been up earlier or later.
            is_first: whether it is a first page.
        """
        key = (id(reranker), query, tuple(candidate.item_id for candidate in candidates), budget_ms, page)
        if not is_first and (known := self._kept_outcome(key)) is not None:
            return known
        outcome = self._scored(reranker, query, candidates, budget_ms)
        with self._lock:
            self._kept[key] = reranker, outcome  # the reranker too: its id is free for another when it is gone
            self._kept.move_to_end(key)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return outcome

    def left_behind(self) -> int:
        """How many calls that did not come back in time are still running."""
        with self._lock:
            self._left = [worker for worker in self._left if worker.is_running()]
            return len(self._left)

    def _kept_outcome(self, key: Hashable) -> Outcome | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
            return kept[1]

    def _scored(
        self, reranker: Reranker, query: str, candidates: Sequence[RerankCandidate], budget_ms: int | None
    ) -> Outcome:
        deadline = None if budget_ms is None else self._clock() + budget_ms / 1000
        scores: list[float | None] = [None] * len(candidates)
        milliseconds: list[float | None] = [None] * len(candidates)
        out_of_time, failure = False, None
        if (running := self.left_behind()) >= _LEFT_BEHIND:
            failure = f"{running} earlier calls are still running"
        else:
            worker = _Worker(reranker, query)
            try:
                for batch in _batches(reranker, candidates):
                    began = self._clock()
                    patience = self.patience if deadline is None else deadline - began
                    if patience <= 0:
                        out_of_time = True
                        break
                    found = worker.score([candidates[at] for at in batch], patience)
                    each = round(1000 * (self._clock() - began) / len(batch), 3)
                    for at, score in zip(batch, found, strict=True):
                        scores[at], milliseconds[at] = score, each
            except Empty:
                out_of_time = True
                _log.info("%s was not back with %d candidates in time", reranker.name, len(batch))
            except _Failed as error:
                failure = str(error)
            finally:  # Ctrl-C as well
                self._leave(worker)
        looked_at = any(spent is not None for spent in milliseconds)
        if failure is None and looked_at and not out_of_time and all(score is None for score in scores):
            failure = NONE_SCORED
        if failure is not None:
            scores = [None] * len(candidates)
        return Outcome(tuple(scores), tuple(milliseconds), out_of_time, failure)

    def _leave(self, worker: _Worker) -> None:
        worker.stop()
        with self._lock:
            self._left.append(worker)


def _batches(reranker: Reranker, candidates: Sequence[RerankCandidate]) -> Iterator[list[int]]:
    """Positions of the candidates that a reranker reads, in their order, as many at once as it likes."""
    read = [at for at, candidate in enumerate(candidates) if candidate.modality in reranker.modalities]
    size = max(1, reranker.batch_size)
    for start in range(0, len(read), size):
        yield read[start : start + size]


class _Failed(Exception):
    """A reranker raised, or returned what are no scores."""


class _Worker:
    """A thread that asks a reranker, a batch at a time. Whoever waits for it can leave; it ends after its batch.

    Python ends with daemon threads running, and one that is within a model's native code then takes the process down
    (SIGABRT in torch). So the end of a program waits for the batch, for some seconds; `mmsearch.cli.main` does not, and
    leaves Python out instead.
    """

    def __init__(self, reranker: Reranker, query: str) -> None:
        self._reranker = reranker
        self._query = query
        self._batches: SimpleQueue[list[RerankCandidate] | None] = SimpleQueue()
        self._results: SimpleQueue[list[float | None] | _Failed] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting = False

    def score(self, batch: list[RerankCandidate], patience: float) -> list[float | None]:
        """The scores of a batch.

        Raises:
            _Failed: there are none.
            Empty: they are not there within some seconds.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
            atexit.register(self._finish)
            try:
                self._thread.start()
            except RuntimeError as error:  # no more threads
                atexit.unregister(self._finish)
                raise _Failed(str(error)) from error
        self._batches.put(batch)
        self._waiting = True
        found = self._results.get(timeout=min(patience, threading.TIMEOUT_MAX))
        self._waiting = False
        if isinstance(found, _Failed):
            raise found
        return found

    def stop(self) -> None:
        """Lets the thread end after the batch that it is at."""
        self._batches.put(None)

    def is_running(self) -> bool:
        """Whether it is at a batch that nobody waits for any more."""
        return self._waiting and self._thread is not None and self._thread.is_alive()

    def _finish(self) -> None:
        self.stop()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(_GRACE)

    def _run(self) -> None:
        try:
            self._answer()
        finally:
            atexit.unregister(self._finish)

    def _answer(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                result: list[float | None] | _Failed = _checked(self._reranker.score(self._query, batch), len(batch))
            except _Failed as error:
                result = error
            except BaseException as error:  # whoever waits must hear of it, whatever it is
                _log.info("%s failed", self._reranker.name, exc_info=error)
                said = str(error).strip().splitlines()
                result = _Failed(f"{type(error).__name__}: {said[0]}" if said else type(error).__name__)
            self._results.put(result)


def _checked(found: object, count: int) -> list[float | None]:
    """Scores as numbers; None for what is not finite.

    Raises:
        _Failed: they are no `count` numbers.
    """
    try:
        scores = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _Failed(f"it returned {type(found).__name__} instead of {count} scores") from error
    if scores.shape != (count,):
        raise _Failed(f"it returned scores of the shape {scores.shape} for {count} candidates")
    return [score if finite else None for score, finite in zip(scores.tolist(), np.isfinite(scores), strict=True)]
