"""Calls of many contenders in turns, in two cache regimes, and what they say relative to one of them.

Hot: one contender answers again and again, and its first answer, which brings the weights into the cache, does not
count. Alternating: every call comes after one of another contender, in an order drawn anew each time round, so that none
has the same one before it always. Rounds are what intervals are made of: each opens the models anew, since two sessions
of one file are not equally fast (docs/latency.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median

import numpy as np
from baselines.crew import Racer
from numpy.random import Generator

from harness.paired.estimate import MeasurementError, Ratio, pair_log_ratio, ratio_of
from harness.progress import Progress, Silence

SEED = 20261123
# Wilcoxon's interval of 99 % needs 8 rounds.
CONFIDENCE = 0.99
FEWEST_ROUNDS = 8
_WARM_UP_CALLS = 3


class Regime(Enum):
    """What ran before a call: the same session, or another model."""

    HOT = "hot"
    ALTERNATING = "alternating"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much is measured.

    Attributes:
        rounds: how often everything is opened anew.
        turns: alternating calls of each contender in a round.
        hot_calls: calls of a hot block that count; one more is made before them.
    """

    rounds: int = 12
    turns: int = 24
    hot_calls: int = 24

    def __post_init__(self) -> None:
        """Refuse what carries no interval."""
        if self.rounds < FEWEST_ROUNDS or min(self.turns, self.hot_calls) < 1:
            message = f"{self.rounds} rounds are too few: {FEWEST_ROUNDS} carry an interval of {CONFIDENCE:.0%}."
            raise MeasurementError(message)


Times = dict[str, list[int]]


def alternating_round(racers: Sequence[Racer], key: str, indices: Sequence[int], random: Generator) -> Times:
    """Ask each contender once per input, in an order drawn for each input."""
    times: Times = {racer.name: [] for racer in racers}
    last: Racer | None = None
    for index in indices:
        order = [racers[place] for place in random.permutation(len(racers))]
        if order[0] is last and len(order) > 1:  # twice in a row would be hot
            order[0], order[-1] = order[-1], order[0]
        for racer in order:
            times[racer.name] += racer.time(key, [index])
        last = order[-1]
    return times


def hot_round(racers: Sequence[Racer], key: str, indices: Sequence[int], random: Generator) -> Times:
    """Ask each contender for all inputs in a row, after one call that does not count."""
    times: Times = {}
    for place in random.permutation(len(racers)):
        racer = racers[place]
        times[racer.name] = racer.time(key, [indices[-1], *indices])[1:]
    return times


def round_log_ratio(subject: Sequence[int], baseline: Sequence[int]) -> float:
    """Sum up a round: the median over inputs of the log ratio of the two calls that answered the same.

    Raises:
        MeasurementError: the two did not answer the same number of calls, or none.
    """
    if len(subject) != len(baseline) or not subject:
        message = f"{len(subject)} and {len(baseline)} calls make no pairs"
        raise MeasurementError(message)
    return median(pair_log_ratio(ours, theirs) for ours, theirs in zip(subject, baseline, strict=True))


@dataclass(frozen=True, slots=True)
class Race:
    """All times of a race: by set of inputs and regime, one entry per round."""

    times: Mapping[tuple[str, Regime], Sequence[Times]]

    def log_ratios(self, key: str, regime: Regime, subject: str, baseline: str) -> list[float]:
        """Give one log ratio per round."""
        return [round_log_ratio(each[subject], each[baseline]) for each in self.times[key, regime]]

    def ratio(self, key: str, regime: Regime, subject: str, baseline: str) -> Ratio:
        """Estimate how long the subject takes, as a multiple of the baseline."""
        return ratio_of(self.log_ratios(key, regime, subject, baseline), CONFIDENCE)

    def median_ns(self, key: str, regime: Regime, name: str) -> float:
        """Give the median of all calls; for orientation, since only ratios compare."""
        return median(one for each in self.times[key, regime] for one in each[name])


def race(
    racers: Sequence[Racer],
    inputs: Mapping[str, int],
    schedule: Schedule,
    progress: Progress | None = None,
) -> Race:
    """Let contenders answer in turns, in both regimes.

    Args:
        racers: the contenders; each has loaded every set of inputs.
        inputs: the sets by their key, with how many inputs each holds.
        schedule: how much.
        progress: who is told.
    """
    random = np.random.default_rng(SEED)
    told = progress or Silence()
    times: dict[tuple[str, Regime], list[Times]] = {(key, regime): [] for key in inputs for regime in Regime}
    for number in range(schedule.rounds):
        told.now(f"round {number + 1} of {schedule.rounds}, {len(racers)} contenders")
        for place in random.permutation(len(racers)):
            if racers[place].reopens and number:
                racers[place].reopen()
        for key, count in inputs.items():
            for racer in racers:
                racer.time(key, [0] * _WARM_UP_CALLS)
            turns = _indices(number, schedule.turns, count)
            calls = _indices(number, schedule.hot_calls, count)
            times[key, Regime.ALTERNATING].append(alternating_round(racers, key, turns, random))
            times[key, Regime.HOT].append(hot_round(racers, key, calls, random))
    return Race(times)


def _indices(number: int, wanted: int, count: int) -> list[int]:
    """Go through the inputs where the last round stopped."""
    return [place % count for place in range(number * wanted, (number + 1) * wanted)]
