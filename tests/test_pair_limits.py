"""`harness.pair_limits`: no pair is too large, nothing is changed that need not be, and no sign turns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.pair_limits import LARGEST_PAIR, fit_weights, limit_pairs

WEIGHTS = arrays.arrays(
    np.int8, arrays.array_shapes(min_dims=1, max_dims=3, max_side=9), elements=st.integers(-128, 127)
)


def pairs(values, axis):
    rows = np.moveaxis(values.astype(int), axis, 0)
    return np.abs(rows[1:] + rows[:-1])


@given(WEIGHTS, st.data())
def test_every_pair_is_within_the_limit(values, data):
    """Whatever the weights and the axis, no two neighbours of the result exceed 128; shape and type stay."""
    axis = data.draw(st.integers(-values.ndim, values.ndim - 1))
    limited = limit_pairs(values, axis)
    assert (limited.shape, limited.dtype) == (values.shape, np.int8)
    assert pairs(limited, axis).max(initial=0) <= LARGEST_PAIR


@given(WEIGHTS)
def test_weights_only_become_smaller(values):
    """No weight grows, and none changes its sign."""
    limited = limit_pairs(values, 0).astype(int)
    assert (np.abs(limited) <= np.abs(values.astype(int))).all()
    assert (limited * values.astype(int) >= 0).all()
    assert ((limited != 0) | (values == 0)).all()


@given(WEIGHTS)
def test_nothing_is_changed_that_need_not_be(values):
    """Every changed weight was in a too large pair or beside one, and no single one could be nearer to what it was."""
    limited = limit_pairs(values, 0).astype(int)
    assert (limit_pairs(limited.astype(np.int8), 0) == limited).all()
    for place in zip(*np.nonzero(limited != values), strict=True):
        nearer = limited.copy()
        nearer[place] += np.sign(int(values[place]))
        assert pairs(nearer, 0).max() > LARGEST_PAIR
    if pairs(values, 0).max(initial=0) <= LARGEST_PAIR:
        assert (limited == values).all()


@given(st.integers(-128, 127), st.integers(-128, 127))
def test_a_single_pair_gives_way_at_least_cost(first, second):
    """Of all pairs within the limit, the result is as near as any in squares."""
    limited = limit_pairs(np.array([first, second], np.int8), 0).astype(int)
    left, right = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij")
    cost = np.where(np.abs(left + right) <= LARGEST_PAIR, (left - first) ** 2 + (right - second) ** 2, 1 << 20)
    assert (limited[0] - first) ** 2 + (limited[1] - second) ** 2 == cost.min()


def test_known_pairs():
    """Neighbours of one sign share what is too much; of three, the middle one pays once for both pairs."""
    known = {(127, 127): (64, 64), (127, 3): (126, 2), (-128, -1): (-127, -1), (127, -127): (127, -127)}
    for given_pair, expected in known.items():
        assert tuple(limit_pairs(np.array(given_pair, np.int8), 0)) == expected
    three = np.array([40, 127, 40])
    cheapest = 13**2 + 26**2 + 13**2  # 27, 101, 27
    assert np.square(limit_pairs(three.astype(np.int8), 0) - three).sum() < cheapest * 1.1


@pytest.fixture(scope="module")
def matrix():
    """Weights as transformers have them: normal, with a few large ones in some columns."""
    random = np.random.default_rng(20261123)
    weights = random.standard_normal((96, 40)).astype(np.float32)
    weights[random.integers(0, 96, 12), random.integers(0, 40, 12)] *= 8
    weights[:, 7] = 0
    return weights


def error(weights, values, scales):
    return np.square(weights - values * scales).sum(axis=0, dtype=np.float64)


@pytest.mark.parametrize("axis", [0, 1])
def test_fitted_weights_beat_seven_bits(matrix, axis):
    """Each column is at most as far off as with 7 bits, the whole much nearer, and no pair is too large."""
    fitted = fit_weights(matrix if axis == 0 else np.ascontiguousarray(matrix.T), axis)
    values = np.moveaxis(fitted.values, axis, 0)
    assert pairs(values, 0).max() <= LARGEST_PAIR
    assert np.abs(values.astype(int)).max() <= 127
    assert (fitted.scales > 0).all()
    scales = np.where(np.abs(matrix).max(axis=0) > 0, np.abs(matrix).max(axis=0), 1) / 64
    reduced = error(matrix, np.rint(matrix / scales), scales)
    ours = error(matrix, values, fitted.scales)
    assert (ours <= reduced * (1 + 1e-6) + 1e-12).all()
    assert ours.sum() < reduced.sum() * 0.6
    assert not values[:, 7].any()


def test_fitting_is_the_same_every_time(matrix):
    """The same weights give the same bytes."""
    first, second = fit_weights(matrix), fit_weights(matrix.copy())
    assert (first.values == second.values).all()
    assert (first.scales == second.scales).all()
