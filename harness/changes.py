"""Where a series of values changed: E-Divisive with means, with a permutation test of each change.

Matteson & James, "A Nonparametric Approach for Multiple Change Point Analysis of Multivariate Data", JASA 109 (2014),
with exponent 1, as MongoDB runs it on the results of its benchmarks (Daly et al., "The Use of Change Point Detection
to Identify Software Performance Regressions in a Continuous Integration System", ICPE 2020). Assumes no distribution.

Says where and by how much, not why, and not whether it is for the better. A change is found once there are enough
values after it; whether the very last value is worse than the one before is for `harness.comparison`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# The chance that a series without any change is said to have one or more.
SIGNIFICANCE = 0.01
# With 5 values to either side the permutation test can just reach it, 2 of the 252 ways to split ten values in half,
# and with 6 does so surely.
SHORTEST_SEGMENT = 5
SHORTEST_SERIES = 2 * SHORTEST_SEGMENT
# Distances grow with the square of the length; so many values take about a second.
LONGEST_SERIES = 500
_PERMUTATIONS = 499
# A test that cannot become significant any more is ended (Besag & Clifford, "Sequential Monte Carlo p-values",
# Biometrika 78 (1991)): ten shuffled series as extreme as the real one make p ≥ 0.02 here, however the rest came out.
_ENOUGH_EXTREME = 10
_SEED = 20261123


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """A value from which on the series is another one.

    `index` is that value's place in the series; `before` and `after` are the medians of the stretches to either side, up
    to the next change; `p_value` is that of the permutation test that found it.
    """

    index: int
    before: float
    after: float
    p_value: float


@dataclass(frozen=True, slots=True)
class _Split:
    """A place that divides a stretch of the series, and the p-value of the test of it."""

    index: int
    p_value: float


def change_points(
    values: Sequence[float], *, significance: float = SIGNIFICANCE, shortest: int = SHORTEST_SEGMENT
) -> tuple[ChangePoint, ...]:
    """Find the changes of a series, in order of their place. The same series gives the same answer.

    The place that divides the series best is tested against the best place of the shuffled series; if it stands out, it
    is a change, and the stretches to either side are searched likewise. Each stretch has a test of its own, where
    Matteson & James shuffle all stretches at once: that takes a fraction of the time in a series that changes often.
    So a series without a change gets one or more with probability `significance`, however long it is, and so does each
    stretch between changes.

    Args:
        values: finite numbers, oldest first, of which the last `LONGEST_SERIES` are looked at.
        significance: the level of each test.
        shortest: how many values a stretch has at least.
    """
    skipped = max(len(values) - LONGEST_SERIES, 0)
    series = np.asarray(values[skipped:], np.float64)
    random = np.random.default_rng(_SEED)
    splits: list[_Split] = []
    stretches = [(0, len(series))]
    while stretches:
        begin, end = stretches.pop()
        split = _best_split(series[begin:end], shortest, random)
        if split is not None and split.p_value <= significance:
            place = begin + split.index
            splits.append(_Split(place, split.p_value))
            stretches += [(place, end), (begin, place)]
    splits.sort(key=lambda split: split.index)
    places = [0, *(split.index for split in splits), len(series)]
    levels = [float(np.median(series[begin:end])) for begin, end in pairwise(places) if end > begin]
    return tuple(
        ChangePoint(skipped + split.index, before, after, split.p_value)
        for split, before, after in zip(splits, levels, levels[1:], strict=False)
    )


def _best_split(series: Array, shortest: int, random: np.random.Generator) -> _Split | None:
    """Find the place that divides a stretch best, and test it; None where the stretch is too short or never varies."""
    if len(series) < 2 * shortest:
        return None
    distances = np.abs(np.subtract.outer(series, series))
    divergences = _divergences(distances, shortest)
    place = int(np.argmax(divergences))
    if divergences[place] <= 0:
        return None
    # equal up to rounding is equal: a series of few distinct values has many equal splits
    threshold = float(divergences[place]) * (1 - 1e-9)
    extreme = 0
    for number in range(1, _PERMUTATIONS + 1):
        extreme += _shuffled_divergence(distances, shortest, random) >= threshold
        if extreme == _ENOUGH_EXTREME:
            return _Split(shortest + place, extreme / number)
    return _Split(shortest + place, (extreme + 1) / (_PERMUTATIONS + 1))


def _shuffled_divergence(distances: Array, shortest: int, random: np.random.Generator) -> float:
    order = random.permutation(len(distances))
    return float(_divergences(distances[order[:, None], order], shortest).max())


def _divergences(distances: Array, shortest: int) -> Array:
    """Compute how much the two sides of each split differ: Matteson & James' (6), the scaled energy distance.

    Args:
        distances: float64, (values, values): how far each value is from each other.
        shortest: how many values a side has at least.

    Returns:
        float64, (values - 2 · shortest + 1,): the first for the split that leaves `shortest` values on the left.
    """
    count = len(distances)
    left = np.arange(shortest, count - shortest + 1, dtype=np.float64)
    right = count - left
    # sums over pairs with both members among the first k values, and with at least one member among them
    within = np.cumsum(_sums_to_the_left(distances))
    touched = np.cumsum(distances.sum(axis=1)) - within
    places = slice(shortest - 1, count - shortest)
    left_within, across = within[places], touched[places] - within[places]
    right_within = within[-1] - touched[places]
    pairs = 2 * across / (left * right)
    energy = pairs - 2 * left_within / (left * (left - 1)) - 2 * right_within / (right * (right - 1))
    return np.asarray(energy * left * right / count)


def _sums_to_the_left(distances: Array) -> Array:
    """Sum each row up to its diagonal."""
    return np.asarray(np.einsum("ij,ij->i", distances, _triangle(len(distances))))


@lru_cache(maxsize=8)
def _triangle(count: int) -> Array:
    """Ones below the diagonal; kept, because every shuffle needs the same."""
    return np.tri(count, k=-1)
