"""Where a sample lies, and how far two lie apart: Hodges-Lehmann estimates, with distribution-free confidence intervals.

Knows nothing of runs or measures. Assumes of two samples only that they differ by a shift, of one that it is symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.99
# Beyond so many pairs the normal approximation is exact to a rank or two, and counting every order takes seconds.
_MOST_COUNTED_PAIRS = 10_000
_MOST_COUNTED_VALUES = 200


@dataclass(frozen=True, slots=True)
class Shift:
    """How much higher a sample lies than the other, or than zero, and a two-sided interval of that.

    Without `low` and `high` the samples are too small to say so.
    """

    estimate: float
    low: float | None
    high: float | None


def shift(subject: Sequence[float], baseline: Sequence[float]) -> Shift:
    """Estimate how much higher `subject` lies than `baseline`, with an interval of 99 % confidence.

    The estimate is the median of all pairwise differences (Hodges & Lehmann 1963). The interval is Moses': the
    differences at the ranks that the Mann-Whitney test does not reject (Hollander, Wolfe & Chicken, Nonparametric
    Statistical Methods, 3rd ed., section 4.3). It needs no normal distribution, and a few outliers do not move it.

    Raises:
        ValueError: a sample is empty.
    """
    if not subject or not baseline:
        message = "a sample is empty, so there is no shift to estimate"
        raise ValueError(message)
    differences = np.sort(
        np.subtract.outer(np.asarray(subject, np.float64), np.asarray(baseline, np.float64)), axis=None
    )
    return _between_ranks(differences, _rank(len(subject), len(baseline)))


@lru_cache(maxsize=32)
def _rank(one: int, other: int) -> int:
    """Find the largest rank k whose interval, k-th smallest to k-th largest difference, covers with 99 %; 0 for none.

    The interval misses the true shift with probability 2 P(U ≤ k - 1), U being Mann and Whitney's statistic.
    """
    allowed = (1 - CONFIDENCE) / 2
    if one * other > _MOST_COUNTED_PAIRS:
        spread = sqrt(one * other * (one + other + 1) / 12)
        return max(int(one * other / 2 + NormalDist().inv_cdf(allowed) * spread), 0)
    return _largest_rank(_orders(one, other), allowed * comb(one + other, one))


def _orders(one: int, other: int) -> list[int]:
    """Count the orders of two samples that have U = 0, 1, 2, …: the coefficients of the Gaussian binomial."""
    counts = [1] + [0] * (one * other)
    for factor in range(1, one + 1):
        for place in range(len(counts) - 1, other + factor - 1, -1):
            counts[place] -= counts[place - other - factor]
        for place in range(factor, len(counts)):
            counts[place] += counts[place - factor]
    return counts


def location(values: Sequence[float], confidence: float = CONFIDENCE) -> Shift:
    """Estimate where values lie that scatter around their centre as often to one side as to the other.

    The estimate is the median of the means of all pairs of values, each with itself too (Walsh averages; Hodges &
    Lehmann 1963). The interval is Tukey's: the averages at the ranks that Wilcoxon's signed-rank test does not reject
    (Hollander, Wolfe & Chicken, Nonparametric Statistical Methods, 3rd ed., section 3.4). Up to 29 % of the values may be
    anything.

    Raises:
        ValueError: there is no value, or the confidence is not between 0 and 1.
    """
    if not values or not 0 < confidence < 1:
        message = f"{len(values)} values and a confidence of {confidence} have no location to estimate"
        raise ValueError(message)
    sample = np.asarray(values, np.float64)
    one, other = np.triu_indices(len(sample))
    averages = np.sort((sample[one] + sample[other]) / 2)
    return _between_ranks(averages, _signed_rank(len(sample), confidence))


def _between_ranks(ordered: NDArray[np.float64], rank: int) -> Shift:
    """Take the median, and the interval from the k-th smallest to the k-th largest; there is none of rank 0."""
    estimate = float(np.median(ordered))
    if rank == 0:
        return Shift(estimate, None, None)
    return Shift(estimate, float(ordered[rank - 1]), float(ordered[-rank]))


@lru_cache(maxsize=64)
def _signed_rank(count: int, confidence: float) -> int:
    """Find the largest rank k whose interval, k-th smallest to k-th largest Walsh average, covers with this confidence.

    It misses the centre with probability 2 P(W ≤ k - 1), W being the sum of the ranks of the positive values; 0 for none.
    """
    if count > _MOST_COUNTED_VALUES:
        spread = sqrt(count * (count + 1) * (2 * count + 1) / 24)
        return max(int(count * (count + 1) / 4 + NormalDist().inv_cdf((1 - confidence) / 2) * spread), 0)
    # of all subsets of the ranks 1 … count, how many have the sum 0, 1, 2, …
    counts = [1] + [0] * (count * (count + 1) // 2)
    for rank in range(1, count + 1):
        for place in range(len(counts) - 1, rank - 1, -1):
            counts[place] += counts[place - rank]
    return _largest_rank(counts, (1 - confidence) / 2 * 2**count)


def _largest_rank(counts: Sequence[int], allowed: float) -> int:
    """Tell how many of the counts, from the first on, add up to no more than is allowed."""
    below = 0
    for rank, count in enumerate(counts):
        below += count
        if below > allowed:
            return rank
    return len(counts)
