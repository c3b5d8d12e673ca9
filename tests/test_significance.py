"""The randomisation test against every sign there is, and against what it must say of chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.retrieval.evaluate import paired_bootstrap, paired_randomisation, significance


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=9))
def test_p_is_the_share_of_all_signs(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, float).T / 10
    differences = [y - x for x, y in pairs]
    sums = [
        abs(sum(sign * each for sign, each in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(pairs))
    ]
    expected = np.mean([each >= abs(sum(differences)) for each in sums])
    assert paired_randomisation(a, b, samples=10).p == pytest.approx(expected)


def test_drawn_signs_come_close_to_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a = rng.random(14)
    b = a + rng.normal(0.1, 0.2, 14)
    exact = paired_randomisation(a, b)
    monkeypatch.setattr(significance, "_EXACT", 0)
    drawn = paired_randomisation(a, b, samples=20_000)
    assert drawn.p != exact.p
    assert drawn.p == pytest.approx(exact.p, abs=0.015)
    assert 0.01 < exact.p < 0.5


def test_only_queries_that_differ_count() -> None:
    a, b = np.zeros(1000), np.zeros(1000)
    b[:5] = 1
    found = paired_randomisation(a, b, samples=200)
    assert found.p == 2 / 2**5  # exact, for all that there are 1,000 queries
    assert found.delta == 0.005
    boot = paired_bootstrap(a, b, samples=200)
    assert (found.low, found.high) == (boot.low, boot.high)


def test_equal_systems_do_not_differ() -> None:
    same = np.random.default_rng(1).random(30)
    found = paired_randomisation(same, same, samples=100)
    assert (found.delta, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_difference_that_no_sample_reaches_has_no_p_of_zero() -> None:
    assert paired_randomisation(np.zeros(400), np.ones(400), samples=999).p == 1 / 1000


def test_chance_is_called_a_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    called = sum(
        paired_randomisation(rng.normal(size=60), rng.normal(size=60), samples=400).p < 0.1 for _ in range(200)
    )
    assert 6 <= called <= 36


@pytest.mark.parametrize(("left", "right"), [(3, 2), (0, 0)])
def test_unpaired_values_are_refused(left: int, right: int) -> None:
    with pytest.raises(ValueError, match=f"{left} and {right} queries"):
        paired_randomisation(np.zeros(left), np.zeros(right))
