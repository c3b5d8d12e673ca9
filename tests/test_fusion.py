"""Reciprocal rank fusion, against its formula."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.retrieval.fusion import reciprocal_rank_fusion

RANKINGS = st.lists(st.lists(st.integers(1, 30), unique=True, max_size=12), max_size=4)


def test_scores_are_sums_of_reciprocal_ranks() -> None:
    fused = reciprocal_rank_fusion([[7, 3, 9], [3, 8]])
    assert [item for item, _ in fused] == [3, 7, 8, 9]
    assert dict(fused)[3] == pytest.approx(1 / 62 + 1 / 61)
    assert dict(fused)[9] == pytest.approx(1 / 63)


def test_equal_scores_go_by_the_smaller_id() -> None:
    assert [item for item, _ in reciprocal_rank_fusion([[9], [2], [5]])] == [2, 5, 9]


def test_nothing_fuses_to_nothing() -> None:
    assert reciprocal_rank_fusion([]) == []
    assert reciprocal_rank_fusion([[], []]) == []


def test_an_item_named_twice_counts_its_better_rank() -> None:
    assert reciprocal_rank_fusion([[4, 4, 5]]) == reciprocal_rank_fusion([[4, 5]])


def test_a_negative_ranking_takes_from_what_others_hold() -> None:
    fused = reciprocal_rank_fusion([[7, 3], [3, 8]], weights=[1.0, -2.0])
    assert fused == [(7, pytest.approx(1 / 61)), (3, pytest.approx(1 / 62 - 2 / 61))]
    assert fused == reciprocal_rank_fusion([[3, 8], [7, 3]], weights=[-2.0, 1.0])
    assert reciprocal_rank_fusion([[1, 2]], weights=[-1.0]) == []


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 1.0, 1.0]])
def test_each_ranking_has_a_weight(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="argument 2"):
        reciprocal_rank_fusion([[1], [2]], weights=weights)


@given(st.lists(st.integers(0, 28), min_size=3, max_size=3, unique=True))
def test_items_of_the_same_ranks_are_equal(places: list[int]) -> None:
    """Three items have the same three ranks, each in other rankings: added up in turn, some differ by rounding."""
    rankings = []
    for turn in range(3):
        ranking = list(range(100 * (turn + 1), 100 * (turn + 1) + 29))
        for item in range(3):
            ranking[places[(item + turn) % 3]] = item + 1
        rankings.append(ranking)
    fused = reciprocal_rank_fusion(rankings)
    assert len({score for item, score in fused if item <= 3}) == 1
    assert [item for item, _ in fused if item <= 3] == [1, 2, 3]


@given(RANKINGS, st.data())
def test_weighted_fusion_matches_the_naive_one(rankings: list[list[int]], data: st.DataObject) -> None:
    # Eighths: exact as floats, so that the naive version can be exact too.
    eighths = st.integers(-80, 80).filter(bool).map(lambda number: number / 8)
    weights = data.draw(st.lists(eighths, min_size=len(rankings), max_size=len(rankings)))
    held = {item for ranking, weight in zip(rankings, weights, strict=True) if weight > 0 for item in ranking}
    exact = {
        item: sum(
            Fraction(weight) / (61 + ranking.index(item))
            for ranking, weight in zip(rankings, weights, strict=True)
            if item in ranking
        )
        for item in held
    }
    fused = reciprocal_rank_fusion(rankings, weights=weights)
    assert dict(fused) == pytest.approx({item: float(score) for item, score in exact.items()}, abs=1e-15)
    assert fused == sorted(fused, key=lambda pair: (-pair[1], pair[0]))


@given(RANKINGS, st.integers(0, 60), st.data())
def test_items_get_their_share_of_a_ranking(rankings: list[list[int]], constant: int, data: st.DataObject) -> None:
    quarters = st.integers(0, 4).map(lambda number: number / 4)
    shares = [data.draw(st.none() | st.fixed_dictionaries(dict.fromkeys(ranking, quarters))) for ranking in rankings]
    exact: dict[int, Fraction] = {}
    for ranking, share in zip(rankings, shares, strict=True):
        for rank, item in enumerate(ranking, start=1):
            part = Fraction(1 if share is None else share[item]) / (constant + rank)
            exact[item] = exact.get(item, Fraction(0)) + part
    fused = reciprocal_rank_fusion(rankings, shares=shares, constant=constant)
    assert dict(fused) == pytest.approx({item: float(score) for item, score in exact.items()}, abs=1e-15)
    assert fused == sorted(fused, key=lambda pair: (-pair[1], pair[0]))


@given(RANKINGS, st.integers(1, 40))
def test_matches_exact_arithmetic(rankings: list[list[int]], k: int) -> None:
    exact: dict[int, Fraction] = {}
    for ranking in rankings:
        for place, item in enumerate(ranking):
            exact[item] = exact.get(item, Fraction(0)) + Fraction(1, 61 + place)
    fused = reciprocal_rank_fusion(rankings, k=k)
    assert len(fused) == min(k, len(exact))
    assert fused == reciprocal_rank_fusion(rankings)[:k]
    for item, score in fused:
        assert score == pytest.approx(float(exact[item]))
