"""Whether a difference between two systems, measured on the same queries, is more than chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_EXACT = 20
"""Up to so many differing queries all sign flips are tried: a million."""
_CHUNK = 500
"""Samples drawn at once, so that memory stays flat."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference of a measure between two systems on the same queries.

    Attributes:
        delta: mean of b minus mean of a.
        low, high: 95 % bootstrap interval of delta.
        p: two-sided p-value of "no difference", by the test that made the comparison.
    """

    delta: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    a: NDArray[np.float64] | NDArray[np.bool_],
    b: NDArray[np.float64] | NDArray[np.bool_],
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare per-query values of two systems (Sakai 2006; Efron & Tibshirani, shift method).

    Args:
        a: one value per query: 0/1 for success@k, or any other per-query measure.
        b: the other system's, in the same order.
        samples: resamples of the query set.
        seed: of the resampling.

    Raises:
        ValueError: the arrays differ in length or are empty.
    """
    difference = _difference(a, b)
    delta = float(difference.mean())
    means = _resampled(difference, samples, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    p = float(np.mean(np.abs(means - delta) >= abs(delta)))
    return Comparison(delta, float(low), float(high), p)


def paired_randomisation(
    a: NDArray[np.float64] | NDArray[np.bool_],
    b: NDArray[np.float64] | NDArray[np.bool_],
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare per-query values by exchanging the systems' values of queries at random (Fisher; Smucker et al. 2007).

    If the systems do not differ, the sign of each query's difference is a matter of chance: p is the share of signs
    with which the mean is at least as far from 0. Where at most 20 queries differ, all signs are tried and p is
    exact; otherwise as many as `samples`, and what was observed counts as one of them, so that p is never 0.

    Args:
        a: one value per query.
        b: the other system's, in the same order.
        samples: drawn signs, and the resamples of the interval, which is that of `paired_bootstrap`.
        seed: of both.

    Raises:
        ValueError: the arrays differ in length or are empty.
    """
    difference = _difference(a, b)
    low, high = np.quantile(_resampled(difference, samples, seed), [0.025, 0.975])
    p = randomisation_p(a, b, samples=samples, seed=seed)
    return Comparison(float(difference.mean()), float(low), float(high), p)


def randomisation_p(
    a: NDArray[np.float64] | NDArray[np.bool_],
    b: NDArray[np.float64] | NDArray[np.bool_],
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> float:
    """The p of `paired_randomisation` alone, which needs no resamples.

    Raises:
        ValueError: the arrays differ in length or are empty.
    """
    difference = _difference(a, b)
    differing = difference[difference != 0]
    exact = len(differing) <= _EXACT
    # Sums in another order round differently: what is equal must not count as smaller.
    least = abs(differing.sum()) - 1e-12 * np.abs(differing).sum()
    as_far = drawn = 0
    for signs in _all_signs(len(differing)) if exact else _drawn_signs(len(differing), samples, seed):
        as_far += int(np.count_nonzero(np.abs(signs @ differing) >= least))
        drawn += len(signs)
    return as_far / drawn if exact else (as_far + 1) / (drawn + 1)


def _difference(
    a: NDArray[np.float64] | NDArray[np.bool_], b: NDArray[np.float64] | NDArray[np.bool_]
) -> NDArray[np.float64]:
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired values are needed: {len(a)} and {len(b)} queries given")
    return b.astype(np.float64) - a.astype(np.float64)


def _resampled(difference: NDArray[np.float64], samples: int, seed: int) -> NDArray[np.float64]:
    """Means of resamples of the queries."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            difference[rng.integers(0, len(difference), (min(_CHUNK, samples - done), len(difference)))].mean(axis=1)
            for done in range(0, samples, _CHUNK)
        ]
    )


def _all_signs(count: int) -> Iterator[NDArray[np.float64]]:
    """Every row of -1 and 1, in pieces."""
    for start in range(0, 2**count, 2**14):
        numbers = np.arange(start, min(start + 2**14, 2**count))
        yield _signs(numbers[:, None] >> np.arange(count) & 1)


def _drawn_signs(count: int, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    for done in range(0, samples, _CHUNK):
        yield _signs(rng.integers(0, 2, (min(_CHUNK, samples - done), count)))


def _signs(bits: NDArray[np.int64]) -> NDArray[np.float64]:
    return 1 - 2 * bits.astype(np.float64)
