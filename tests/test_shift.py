"""The shift between two samples: the estimate, and an interval that holds what it promises."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from harness.shift import _orders, _rank, shift


def test_the_estimate_is_the_median_difference():
    """The median of all pairwise differences: one wild value moves it little."""
    assert shift([1.0, 2.0, 3.0], [0.0, 0.0, 900.0]).estimate == 1.0


@pytest.mark.parametrize(("one", "other"), [(1, 1), (2, 3), (4, 4), (5, 3)])
def test_orders_are_counted_as_by_hand(one, other):
    """The counts of Mann and Whitney's U are those of going through every order of both samples."""
    counts = [0] * (one * other + 1)
    for places in combinations(range(one + other), one):
        counts[sum(place - number for number, place in enumerate(places))] += 1
    assert _orders(one, other) == counts
    assert sum(counts) == comb(one + other, one)


@pytest.mark.parametrize(("one", "other", "rank"), [(4, 4, 0), (5, 5, 1), (7, 7, 5), (10, 10, 17)])
def test_ranks_are_those_of_the_tables(one, other, rank):
    """Two-sided 99 % critical values of the Mann-Whitney test; samples of four have none."""
    assert _rank(one, other) == rank


def test_large_samples_are_approximated():
    """Beyond 10,000 pairs the rank is the normal approximation's, within a rank or two of where counting ends."""
    assert _rank(101, 100) == pytest.approx(_rank(100, 100), rel=0.02)


def test_too_small_samples_have_no_interval():
    """Three starts of a process cannot give 99 % confidence, and do not pretend to."""
    found = shift([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (found.estimate, found.low, found.high) == (0.0, None, None)


def test_the_interval_covers():
    """Of 400 pairs of skewed samples a shift of 0.1 lies outside the interval in 1 %, give or take."""
    random = np.random.default_rng(7)
    missed = 0
    for _ in range(400):
        found = shift(list(random.exponential(1.0, 11) + 0.1), list(random.exponential(1.0, 11)))
        missed += not found.low <= 0.1 <= found.high
    assert missed <= 10


def test_equal_samples_are_surely_equal():
    """A sample against itself: no shift, inside the interval."""
    values = [0.1 * number for number in range(12)]
    found = shift(values, values)
    assert found.low <= found.estimate == 0.0 <= found.high


def test_the_interval_is_the_same_from_either_side():
    """Exchanging the samples turns the interval round."""
    one, other = [0.1 * number**2 for number in range(9)], [0.3 * number for number in range(8)]
    found, turned = shift(one, other), shift(other, one)
    assert (found.estimate, found.low, found.high) == pytest.approx((-turned.estimate, -turned.high, -turned.low))


def test_an_empty_sample_is_refused():
    """Nothing has no median."""
    with pytest.raises(ValueError, match="empty"):
        shift([], [1.0])
