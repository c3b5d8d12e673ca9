"""Shaping of rankings, against naive versions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmsearch.retrieval import shaping
from mmsearch.retrieval.shaping import Ranking, collapse, deepening, diversify, group, newest_first

_HALVES = st.tuples(*[st.sampled_from((-0.5, 0.5))] * 4)
_AXES = st.sampled_from([tuple(float(at == axis) for at in range(4)) for axis in range(4)])
UNIT = st.one_of(_HALVES, _AXES)
"""Vectors of length 1 whose cosines have no rounding."""

POOL = st.lists(st.tuples(st.integers(0, 8), UNIT), max_size=12).map(
    lambda pool: sorted(pool, key=lambda pair: -pair[0])
)
TRADE_OFF = st.sampled_from((0.0, 0.25, 0.3, 0.5, 0.9, 1.0))


def _arrays(pool: list[tuple[int, tuple[float, ...]]]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    scores = np.array([score for score, _ in pool], np.float64) / 8
    return scores, np.array([vector for _, vector in pool], np.float32).reshape(len(pool), 4)


def _naive_relevance(pool: list[tuple[int, tuple[float, ...]]], k: int, trade_off: float) -> list[int]:
    """The definition of maximal marginal relevance, pair by pair."""
    scores = [score / 8 for score, _ in pool]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    chosen: list[int] = []
    while len(chosen) < min(k, len(pool)):
        best, best_value = -1, -np.inf
        for at, (_, vector) in enumerate(pool):
            if at in chosen:
                continue
            relevance = (scores[at] - low) / (high - low) if high > low else 1.0
            cosines = [sum(a * b for a, b in zip(vector, pool[other][1], strict=True)) for other in chosen]
            value = (1 - trade_off) * relevance - trade_off * max(cosines, default=0.0)
            if value > best_value:
                best, best_value = at, value
        chosen.append(best)
    return chosen + [at for at in range(len(pool)) if at not in chosen]


# Diversity


@given(POOL, st.integers(0, 14), TRADE_OFF)
def test_diversify_is_maximal_marginal_relevance(
    pool: list[tuple[int, tuple[float, ...]]], k: int, trade_off: float
) -> None:
    assert diversify(*_arrays(pool), k, trade_off) == _naive_relevance(pool, k, trade_off)


@given(POOL, TRADE_OFF)
def test_more_diverse_items_go_on_where_fewer_ended(pool: list[tuple[int, tuple[float, ...]]], by: float) -> None:
    scores, vectors = _arrays(pool)
    whole = diversify(scores, vectors, len(pool), by)
    assert sorted(whole) == list(range(len(pool)))
    for k in range(len(pool)):
        order = diversify(scores, vectors, k, by)
        assert order[:k] == whole[:k]
        assert order[k:] == sorted(order[k:]), "the rest keeps its order"


@given(POOL)
def test_no_trade_off_changes_nothing(pool: list[tuple[int, tuple[float, ...]]]) -> None:
    assert diversify(*_arrays(pool), len(pool), 0.0) == list(range(len(pool)))


@given(POOL, st.integers(-3, 3), TRADE_OFF)
def test_diversity_does_not_depend_on_the_scale_of_scores(
    pool: list[tuple[int, tuple[float, ...]]], shift: int, by: float
) -> None:
    scores, vectors = _arrays(pool)
    assert diversify(scores / 64 + shift, vectors, len(pool), by) == diversify(scores, vectors, len(pool), by)


def test_a_copy_comes_after_something_else() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1]]
    assert diversify(np.array([1.0, 0.9, 0.8]), vectors, 3, 0.5) == [0, 2, 1]


# Near-duplicates


def _same(matrix: NDArray[np.bool_]) -> Callable[[int, int], NDArray[np.bool_]]:
    return lambda start, stop: matrix[start:stop, :stop]


def _naive_collapse(matrix: NDArray[np.bool_]) -> list[tuple[int, list[int]]]:
    kept: list[tuple[int, list[int]]] = []
    for position in range(len(matrix)):
        for best, duplicates in kept:
            if matrix[position, best]:
                duplicates.append(position)
                break
        else:
            kept.append((position, []))
    return kept


@pytest.mark.parametrize("block", [1, 3, 128])
@given(data=st.data())
def test_collapse_compares_with_what_is_kept(block: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 12))
    pairs = data.draw(st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11))))
    matrix = np.eye(12, dtype=bool)
    for a, b in pairs:
        matrix[a, b] = matrix[b, a] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shaping, "_BLOCK", block)
        assert collapse(count, _same(matrix[:count, :count])) == _naive_collapse(matrix[:count, :count])


def test_a_chain_of_small_changes_is_not_one_picture() -> None:
    chain = np.abs(np.subtract.outer(np.arange(5), np.arange(5))) <= 1
    assert collapse(5, _same(chain)) == [(0, [1]), (2, [3]), (4, [])]


def test_collapse_over_several_blocks() -> None:
    keys = np.arange(1000) % 300
    assert collapse(1000, lambda start, stop: keys[start:stop, None] == keys[:stop]) == [
        (at, list(range(at + 300, 1000, 300))) for at in range(300)
    ]


def test_equal_pictures_collapse_to_the_first() -> None:
    assert collapse(4, _same(np.ones((4, 4), bool))) == [(0, [1, 2, 3])]
    assert collapse(0, _same(np.ones((0, 0), bool))) == []


# Groups


@given(st.lists(st.sampled_from(["a", "b", "c", 0, None])))
def test_groups_keep_the_order_and_count_everything(keys: list[str | int | None]) -> None:
    groups = group(keys)
    positions = [position for position, _ in groups]
    assert positions == sorted(set(positions))
    for position, others in groups:
        key = keys[position]
        assert others == ([] if key is None else [at for at, other in enumerate(keys) if other == key][1:])
        assert key is None or keys.index(key) == position
    assert sum(1 + len(others) for _, others in groups) == len(keys)


def test_a_key_is_not_a_position() -> None:
    assert group([1, None, 0, 1]) == [(0, [3]), (1, []), (2, [])]


# Paging


class _Lists:
    """Two lists fused at a depth: deeper ones change the order of what shallow ones have."""

    def __init__(self, first: list[int], second: list[int]) -> None:
        self.lists = first, second
        self.depths: list[int] = []

    def __call__(self, depth: int) -> Ranking:
        self.depths.append(depth)
        scores: dict[int, float] = {}
        for items in self.lists:
            for rank, item_id in enumerate(items[:depth], start=1):
                scores[item_id] = scores.get(item_id, 0.0) + 1 / (60 + rank)
        return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shaping, "FIRST_DEPTH", 2)
    yield


_LIST = st.permutations(range(1, 25)).flatmap(lambda items: st.integers(0, 24).map(lambda size: list(items[:size])))


@given(_LIST, _LIST, st.integers(1, 40), st.integers(0, 40))
def test_pages_fit_together(first: list[int], second: list[int], n: int, fewer: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shaping, "FIRST_DEPTH", 2)
        fetch = _Lists(first, second)
        whole = deepening(fetch, n)
        m = max(1, n - fewer)
        assert deepening(fetch, m) == whole[:m]
        ids = [item_id for item_id, _ in whole]
        assert len(set(ids)) == len(ids) == min(n, len({*first, *second}))


def test_shallow_lists_come_first(shallow: None) -> None:
    fetch = _Lists([1, 2, 3, 4], [5, 6, 3, 4])
    assert [item_id for item_id, _ in deepening(fetch, 2)] == [1, 5]
    assert fetch.depths == [2]
    assert fetch(4)[0][0] == 3, "in deeper lists another one is best"
    assert [item_id for item_id, _ in deepening(fetch, 6)] == [1, 5, 3, 4, 2, 6]


def test_a_ranking_ends_where_its_lists_end(shallow: None) -> None:
    assert deepening(_Lists([], []), 10) == []
    assert [item_id for item_id, _ in deepening(_Lists([7], []), 10)] == [7]
    assert [item_id for item_id, _ in deepening(_Lists([1, 2], [3, 4]), 10)] == [1, 3, 2, 4]


def test_first_pages_need_one_look() -> None:
    fetch = _Lists(list(range(1, 5001)), [])
    assert len(deepening(fetch, 1000)) == 1000
    assert fetch.depths == [1000]
    assert [item_id for item_id, _ in deepening(fetch, 1001)] == list(range(1, 1002))
    assert fetch.depths == [1000, 1000, 2000]


# Dates


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_newest_first_by_the_wall_clock(berlin: None) -> None:
    times: list[tuple[str | None, int | None]] = [
        ("2024-05-01T10:00:00", None),
        ("2024-05-01T12:00:00+09:00", 0),
        ("2024-05-01T11:00:00-08:00", 0),
        (None, None),
        (None, 1_714_552_200 * 10**9),  # 2024-05-01 10:30 in Berlin
        ("1969-12-31T23:59:59", 2_000_000_000 * 10**9),
    ]
    assert newest_first(times) == [1, 2, 4, 0, 5, 3]


def test_equal_dates_keep_their_ranks() -> None:
    same = ("2024-05-01T10:00:00", None)
    assert newest_first([same, ("2024-05-01T10:00:00+02:00", 5), ("2024-05-02T00:00:00", 1), same]) == [2, 0, 1, 3]
    assert newest_first([]) == []
    assert newest_first([(None, None), (None, None)]) == [0, 1]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6))
def test_any_modification_time_has_a_place(times: list[int]) -> None:
    order = newest_first([(None, modified) for modified in times])
    seconds = [times[at] // 10**9 for at in order]
    assert all(later >= earlier - 3601 for later, earlier in pairwise(seconds))
    assert sorted(order) == list(range(len(times)))
