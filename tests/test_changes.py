"""Change points: found where they are, and none where nothing changed."""

from __future__ import annotations

import numpy as np
import pytest

from harness.changes import LONGEST_SERIES, SHORTEST_SERIES, _divergences, change_points


def noise(count, seed=1, scale=0.02):
    return np.random.default_rng(seed).normal(1.0, scale, count)


def energy(left, right):
    """Matteson & James' scaled sample divergence, written down as in their paper: equations 5 and 6."""
    n, m = len(left), len(right)
    across = np.mean([[abs(a - b) for b in right] for a in left])
    inside = [np.mean([abs(side[i] - side[k]) for k in range(len(side)) for i in range(k)]) for side in (left, right)]
    return n * m / (n + m) * (2 * across - inside[0] - inside[1])


def test_the_divergence_is_that_of_the_paper():
    """The fast sums give what the formula gives, term by term, for every split."""
    values = noise(13, scale=1.0)
    fast = _divergences(np.abs(np.subtract.outer(values, values)), 4)
    assert fast == pytest.approx([energy(values[:k], values[k:]) for k in range(4, 10)])


def test_three_planted_changes_are_found():
    """Steps of +10 %, -8 % and +6 % in noise of 2 % are found within three runs of where they are, and no others."""
    values = noise(150)
    values[40:] *= 1.10
    values[80:] *= 0.92
    values[120:] *= 1.06
    found = change_points(list(values))
    assert [round(one.index / 40) * 40 for one in found] == [40, 80, 120]
    assert all(abs(one.index - place) <= 3 for one, place in zip(found, (40, 80, 120), strict=True))
    assert found[0].after / found[0].before == pytest.approx(1.10, abs=0.02)
    assert all(one.p_value <= 0.01 for one in found)


@pytest.mark.parametrize("seed", range(8))
def test_a_stable_series_has_no_change(seed):
    """Noise alone is no change."""
    assert change_points(list(noise(60, seed))) == ()


def test_single_outliers_are_no_change():
    """A run here and there that was held up does not make a step."""
    values = noise(80)
    values[[11, 37, 63]] *= 1.6
    assert change_points(list(values)) == ()


def test_a_constant_series_has_no_change():
    """Values that never differ are no change, and no division by zero."""
    assert change_points([0.95] * 40) == ()


def test_what_divides_as_well_by_chance_is_no_change():
    """Two odd values that stand together: nearly half of all shuffles divide exactly as well, up to rounding."""
    assert change_points([0.7, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]) == ()
    assert change_points([*[0.957] * 12, 0.951, *[0.957] * 12]) == ()


def test_a_step_between_two_constants_is_found_exactly():
    """What is computed, such as F1, repeats exactly: a step is found at its run, six runs later."""
    (found,) = change_points([0.957] * 6 + [0.951] * 6)
    assert (found.index, found.before, found.after) == (6, 0.957, 0.951)


@pytest.mark.parametrize("count", range(SHORTEST_SERIES))
def test_a_short_series_has_no_change(count):
    """Fewer values than two stretches need are no series; neither is none."""
    assert change_points([1.0 + number for number in range(count)]) == ()


def test_the_answer_is_the_same_every_time():
    """The shuffles are drawn from a fixed seed."""
    values = [*noise(20), *(noise(20, 2) * 1.01)]
    first = change_points(values, significance=0.5)
    assert first[0].p_value > 0.01
    assert all(change_points(values, significance=0.5) == first for _ in range(5))


def test_of_a_long_series_the_end_is_looked_at():
    """A change in the latest values is found at its place in the whole series; one long ago is left."""
    values = np.concatenate([np.ones(100), np.full(LONGEST_SERIES - 30, 2.0), np.full(60, 3.0)])
    (found,) = change_points(list(values))
    assert found.index == 100 + LONGEST_SERIES - 30


def test_the_scale_does_not_matter():
    """Milliseconds or seconds, the changes are the same."""
    values = np.concatenate([noise(30), noise(30, 2) * 1.2])
    assert [one.index for one in change_points(list(values))] == [
        one.index for one in change_points(list(values / 1e6))
    ]
