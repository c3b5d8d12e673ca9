"""Anytime scoring: the rule of the order against a naive version, budgets, and rerankers that fail or hang."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_reranker import Clock, Scripted

from mmsearch.retrieval.rerank import RerankCandidate
from mmsearch.retrieval.rerank.fake import FakeReranker
from mmsearch.retrieval.rerank.scoring import Outcome, Scorer
from mmsearch.retrieval.types import Modality

STEP = 1000.0
"""Seconds that a call takes on the clock of the tests: waiting for a thread, which is real, takes no share of it."""


def candidates(count: int, modalities: Sequence[Modality] = ("image",)) -> list[RerankCandidate]:
    return [RerankCandidate(at, modalities[at % len(modalities)], f"text {at}", None) for at in range(count)]


def budget(calls: float) -> int:
    return int(1000 * STEP * calls)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What hanging rerankers wait for."""
    event = threading.Event()
    yield event
    event.set()


def ticking(reranker: Scripted, clock: Clock) -> Scripted:
    """Each call takes a step."""

    def tick(_: int) -> None:
        clock.now += STEP

    reranker.before = tick
    return reranker


# The rule


def naive_order(
    scores: Sequence[float], readable: Sequence[bool], batch_size: int, calls: int | None
) -> tuple[list[int], int]:
    """Positions in their new order, and how many have a score."""
    read = [at for at, can in enumerate(readable) if can]
    looked_at = read if calls is None else read[: calls * batch_size]
    scored = [at for at in looked_at if math.isfinite(scores[at])]
    first = []
    for at in scored:  # insertion: before the first that is worse
        place = next((n for n, other in enumerate(first) if scores[other] < scores[at]), len(first))
        first.insert(place, at)
    return first + [at for at in range(len(scores)) if at not in scored], len(scored)


@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.integers(-3, 3).map(float), st.sampled_from((math.nan, math.inf, -math.inf, -0.0, 0.0))),
            st.booleans(),
        ),
        max_size=30,
    ),
    batch_size=st.integers(1, 8),
    calls=st.one_of(st.none(), st.integers(1, 6)),
)
def test_the_order_is_that_of_the_rule(rows: list[tuple[float, bool]], batch_size: int, calls: int | None) -> None:
    scores, readable = [score for score, _ in rows], [can for _, can in rows]
    given_ = [RerankCandidate(at, "image" if can else "text", None, None) for at, can in enumerate(readable)]
    clock = Clock()
    reranker = ticking(Scripted(lambda one: scores[one.item_id], batch_size=batch_size, modalities=("image",)), clock)
    limit = None if calls is None else budget(calls - 0.5)
    outcome = Scorer(clock).score(reranker, "query", given_, budget_ms=limit)
    order, scored = naive_order(scores, readable, batch_size, calls)
    assert outcome.order() == order
    assert outcome.scored == scored
    looked_at = [at for batch in reranker.batches for at in batch]
    assert looked_at == [at for at in range(len(rows)) if readable[at]][: len(looked_at)]  # in first-stage order
    assert all(len(batch) <= batch_size for batch in reranker.batches)
    unscored = [at for at in order if outcome.scores[at] is None]
    assert order[len(order) - len(unscored) :] == unscored == sorted(unscored)


def test_equal_scores_keep_the_order_of_the_first_stage() -> None:
    outcome = Scorer().score(Scripted(lambda one: float(one.item_id in (3, 5))), "query", candidates(8))
    assert outcome.order() == [3, 5, 0, 1, 2, 4, 6, 7]


def test_what_cannot_be_scored_comes_after_what_is() -> None:
    outcome = Scorer().score(Scripted(lambda one: math.nan if one.item_id < 2 else -9.0), "query", candidates(4))
    assert outcome.order() == [2, 3, 0, 1]
    assert outcome.scores == (None, None, -9.0, -9.0)
    assert outcome.failure is None and not outcome.out_of_time


def test_other_modalities_are_not_shown_to_the_reranker() -> None:
    reranker = Scripted(modalities=("text",), batch_size=2)
    outcome = Scorer().score(reranker, "query", candidates(6, ("image", "text")))
    assert reranker.batches == [[1, 3], [5]]
    assert outcome.order() == [5, 3, 1, 0, 2, 4]


def test_nothing_to_score_starts_nothing() -> None:
    reranker = Scripted(modalities=("text",))
    assert Scorer().score(reranker, "query", candidates(3)) == Outcome((None,) * 3, (None,) * 3)
    assert Scorer().score(reranker, "query", []) == Outcome((), ())
    assert reranker.batches == []


# The budget


def test_the_budget_ends_between_batches(clock: Clock) -> None:
    reranker = ticking(Scripted(batch_size=3), clock)
    outcome = Scorer(clock).score(reranker, "query", candidates(10), budget_ms=budget(2))
    assert reranker.batches == [[0, 1, 2], [3, 4, 5]]
    assert outcome.order() == [5, 4, 3, 2, 1, 0, 6, 7, 8, 9]
    assert outcome.out_of_time and outcome.failure is None
    assert outcome.milliseconds == (*[round(1000 * STEP / 3, 3)] * 6, *[None] * 4)


def test_a_budget_that_suffices_ends_nothing(clock: Clock) -> None:
    outcome = Scorer(clock).score(ticking(Scripted(batch_size=5), clock), "query", candidates(10), budget_ms=budget(2))
    assert outcome.scored == 10
    assert not outcome.out_of_time


def test_scores_that_are_there_at_the_last_moment_count(clock: Clock) -> None:
    outcome = Scorer(clock).score(ticking(Scripted(), clock), "query", candidates(8), budget_ms=budget(0.5))
    assert outcome.scored == 4


# Rerankers that fail


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (lambda scores: scores[:-1], "shape (1,) for 2"),
        (lambda scores: np.append(scores, 1.0), "shape (3,) for 2"),
        (lambda scores: scores[:, None], "shape (2, 1) for 2"),
        (lambda scores: np.float32(1.0), "shape () for 2"),
        (lambda scores: None, "shape () for 2"),
        (lambda scores: ["good", "bad"], "list instead of 2 scores"),
        (lambda scores: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("call", [0, 1])
def test_a_reranker_that_fails_changes_nothing(result: Callable[[Any], Any], said: str, call: int) -> None:
    reranker = Scripted(batch_size=2)
    reranker.result = lambda number, scores: result(scores) if number == call else scores
    outcome = Scorer().score(reranker, "query", candidates(6))
    assert outcome.failure is not None and said in outcome.failure
    assert outcome.order() == [0, 1, 2, 3, 4, 5]
    assert outcome.scored == 0
    assert len(reranker.batches) == call + 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError(), RuntimeError("two\nlines")])
def test_whatever_it_raises_does_not_reach_the_search(error: BaseException) -> None:
    def fail(_: int) -> None:
        raise error

    reranker = Scripted()
    reranker.before = fail
    outcome = Scorer().score(reranker, "query", candidates(3))
    assert outcome.failure is not None and outcome.failure.startswith(type(error).__name__)
    assert "\n" not in outcome.failure
    assert outcome.order() == [0, 1, 2]


def test_a_machine_without_threads_serves_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    outcome = Scorer().score(Scripted(), "query", candidates(3))
    assert outcome.failure == "can't start new thread"
    assert outcome.order() == [0, 1, 2]


def test_none_but_nan_is_a_failure() -> None:
    outcome = Scorer().score(Scripted(lambda one: math.nan), "query", candidates(3))
    assert outcome.failure == "it could score none of the candidates"
    assert outcome.order() == [0, 1, 2]


def test_lists_of_numbers_are_scores() -> None:
    reranker = Scripted()
    reranker.result = lambda number, scores: [int(score) for score in scores]
    assert Scorer().score(reranker, "query", candidates(3)).scores == (0.0, 1.0, 2.0)


# Rerankers that hang


def test_a_reranker_that_hangs_is_left_behind(release: threading.Event) -> None:
    reranker = Scripted()
    reranker.before = lambda number: release.wait(60)
    scorer = Scorer()
    outcome = scorer.score(reranker, "query", candidates(6), budget_ms=20)
    assert not release.is_set()
    assert outcome.out_of_time and outcome.scored == 0
    assert outcome.order() == [0, 1, 2, 3, 4, 5]
    assert scorer.left_behind() == 1


def test_without_a_budget_a_reranker_that_hangs_is_given_up_too(release: threading.Event) -> None:
    reranker = Scripted()
    reranker.before = lambda number: number == 1 and release.wait(60)
    outcome = Scorer(patience=0.5).score(reranker, "query", candidates(10))
    assert not release.is_set()
    assert outcome.out_of_time
    assert outcome.order() == [3, 2, 1, 0, 4, 5, 6, 7, 8, 9]  # the first batch was there


def test_what_was_left_behind_ends_with_its_batch(release: threading.Event) -> None:
    reranker = Scripted()
    reranker.before = lambda number: release.wait(60)
    scorer = Scorer()
    scorer.score(reranker, "query", candidates(8), budget_ms=20)
    (thread,) = (one for one in threading.enumerate() if one.name == "mmsearch-rerank")
    assert thread.daemon
    release.set()
    thread.join(60)
    assert scorer.left_behind() == 0
    assert len(reranker.batches) == 1


def test_calls_that_never_come_back_do_not_pile_up(release: threading.Event) -> None:
    reranker = Scripted()
    reranker.before = lambda number: release.wait(60)
    scorer = Scorer()
    for _ in range(8):
        assert scorer.score(reranker, "query", candidates(2), budget_ms=1).out_of_time
    outcome = scorer.score(reranker, "query", candidates(2), budget_ms=1)
    assert outcome.failure == "8 earlier calls are still running"
    assert len(reranker.batches) <= 8
    release.set()
    for thread in threading.enumerate():
        if thread.name == "mmsearch-rerank":
            thread.join(60)
    assert scorer.score(reranker, "query", candidates(2)).scored == 2


def test_threads_end_with_their_query() -> None:
    before = threading.active_count()
    scorer = Scorer()
    for _ in range(20):
        scorer.score(Scripted(), "query", candidates(6))
    for thread in threading.enumerate():
        if thread.name == "mmsearch-rerank":
            thread.join(60)
    assert threading.active_count() <= before
    assert scorer.left_behind() == 0


def test_ctrl_c_ends_the_waiting(release: threading.Event) -> None:
    reranker = Scripted()

    def press(_: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(60)

    reranker.before = press
    scorer = Scorer()
    with pytest.raises(KeyboardInterrupt):
        scorer.score(reranker, "query", candidates(6))
    assert not release.is_set()
    assert scorer.left_behind() == 1


# Pages


def test_further_pages_get_what_came_of_the_first(clock: Clock) -> None:
    reranker = ticking(Scripted(batch_size=2), clock)
    scorer = Scorer(clock)
    first = scorer.score(reranker, "query", candidates(6), budget_ms=budget(1), page=1)
    assert first.scored == 2
    assert scorer.score(reranker, "query", candidates(6), budget_ms=budget(1), page=1, is_first=False) == first
    assert len(reranker.batches) == 1


@pytest.mark.parametrize("change", ["query", "candidates", "budget", "page", "reranker", "first"])
def test_what_is_another_query_is_scored_anew(change: str) -> None:
    reranker, scorer = Scripted(), Scorer()
    scorer.score(reranker, "query", candidates(3), page=1)
    other = Scripted() if change == "reranker" else reranker
    scorer.score(
        other,
        "another" if change == "query" else "query",
        candidates(2 if change == "candidates" else 3),
        budget_ms=10**9 if change == "budget" else None,
        page=2 if change == "page" else 1,
        is_first=change == "first",
    )
    assert sum(len(one.batches) for one in {reranker, other}) == 2


def test_only_the_last_queries_are_kept() -> None:
    reranker, scorer = Scripted(), Scorer()
    for number in range(65):
        scorer.score(reranker, f"query {number}", candidates(1))
    scorer.score(reranker, "query 64", candidates(1), is_first=False)
    assert len(reranker.batches) == 65
    scorer.score(reranker, "query 0", candidates(1), is_first=False)
    assert len(reranker.batches) == 66


def test_threads_do_not_mix_their_queries() -> None:
    scorer = Scorer()

    def ask(number: int) -> list[int]:
        sign = 1 if number % 2 else -1
        return scorer.score(
            Scripted(lambda one: sign * one.item_id, batch_size=1 + number % 5), f"{number}", candidates(20)
        ).order()

    with ThreadPoolExecutor(8) as pool:
        orders = list(pool.map(ask, range(64)))
    assert all(
        order == (list(range(20))[::-1] if number % 2 else list(range(20))) for number, order in enumerate(orders)
    )


# The fake


def test_the_fake_reads_words(tmp_path: Any) -> None:
    there = tmp_path / "red-car.png"
    there.touch()
    scores = FakeReranker().score(
        "a red car",
        [
            RerankCandidate(1, "text", "A blue CAR", None),
            RerankCandidate(2, "image", None, there),
            RerankCandidate(3, "image", "a red car", tmp_path / "gone.png"),
            RerankCandidate(4, "text", "nothing", None),
        ],
    )
    assert scores.dtype == np.float32 and scores.shape == (4,)
    assert np.isnan(scores[2])
    assert scores[0] > scores[1] - 0.01 and scores[1] > scores[3]
    assert np.array_equal(
        scores[:2],
        FakeReranker().score(
            "a red car", [RerankCandidate(9, "text", "A blue CAR", None), RerankCandidate(2, "image", None, there)]
        ),
    )
