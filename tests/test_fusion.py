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
