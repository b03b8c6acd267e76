"""What timings say: the ratio of two ways to answer, with an interval, and quantiles of one.

Numbers in, numbers out: nothing here runs anything or knows a limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, median

from harness.errors import HarnessError
from harness.shift import location

# After so many rounds it is looked whether a limit is kept or broken; between the looks, never.
LOOKS = (12, 24, 48, 96)
# How often all looks together may put an interval beside the truth, to either side of it.
ERROR = 0.01
# Looking four times is four chances to err, so each look gets a quarter (Bonferroni).
CONFIDENCE = 1 - ERROR / len(LOOKS)
# Of the calls of an unchanging workload, so many may be held up before the machine counts as disturbed.
MOST_HELD_UP = 0.5
# A quantile rests on what lies beyond it: with 20 samples there, its 95 % interval ends about 9 ranks to either side.
SAMPLES_BEYOND = 20


class MeasurementError(HarnessError):
    """The timings that were taken cannot carry the statement that was asked of them."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How long one way takes, as a multiple of the other: an estimate, the interval that it lies in, from how many rounds."""

    value: float
    low: float
    high: float
    rounds: int

    def widened(self, by: float) -> Ratio:
        """Move the interval's ends apart, by a log ratio each."""
        return Ratio(self.value, self.low * math.exp(-by), self.high * math.exp(by), self.rounds)


def ratio_of(log_ratios: Sequence[float], confidence: float = CONFIDENCE) -> Ratio:
    """Estimate a ratio from one log ratio per round.

    Rounds, not calls, are what is drawn: the calls of one round share their sessions, and two sessions of one file
    differ (by 2.4 % on the machine of PERFORMANCE.md), so that an interval made of calls would be about these two
    sessions and no others (Kalibera & Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013, section 6).

    The estimate is Hodges' and Lehmann's, the interval that of Wilcoxon's signed-rank test; see `harness.shift.location`.
    The percentile bootstrap of the same estimate covers 97 % instead of 99 with 12 rounds (docs/latency.md).

    Raises:
        MeasurementError: there are fewer rounds than the confidence needs.
    """
    found = location(log_ratios, confidence) if log_ratios else None
    if found is None or found.low is None or found.high is None:
        message = f"{len(log_ratios)} rounds carry no interval of {confidence:.2%}; {LOOKS[0]} are needed."
        raise MeasurementError(message)
    return Ratio(math.exp(found.estimate), math.exp(found.low), math.exp(found.high), len(log_ratios))


def pair_log_ratio(subject_ns: int, baseline_ns: int) -> float:
    """Compare two calls that answered the same, one after the other.

    Raises:
        MeasurementError: a call took no time by the clock.
    """
    if min(subject_ns, baseline_ns) <= 0:
        message = "a call took no time at all by this clock, so there is no ratio. Measure with a finer clock."
        raise MeasurementError(message)
    return math.log(subject_ns / baseline_ns)


def opening_log_ratio(baseline_first: Sequence[float], subject_first: Sequence[float]) -> float:
    """Sum up the pairs that share their sessions: the median of those in the one order, and of those in the other; their mean.

    Who goes first matters: a model that answers twice in a row finds its weights in the cache, so the median over all pairs
    would sit between two humps. With both orders alike the mean is free of that, and of any steady drift of the machine. A
    call that is held up moves no median.
    """
    return mean(median(pairs) for pairs in (baseline_first, subject_first) if pairs)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What a workload that never changes says about the machine: its ratio to itself, and how often it was held up.

    It ran beside subject and baseline alike, so a ratio other than 1 is the machine's doing.
    """

    ratio: Ratio
    held_up: float

    @property
    def calm(self) -> bool:
        """Whether both sides had the same machine: the interval holds 1, and most calls were not held up."""
        return self.ratio.low <= 1 <= self.ratio.high and self.held_up <= MOST_HELD_UP

    @property
    def allowance(self) -> float:
        """By what log ratio the machine may have favoured one side, as far as the workload can tell; 0 on a calm one."""
        return 0.0 if self.calm else max(-math.log(self.ratio.low), math.log(self.ratio.high), 0.0)


def held_up_share(durations_ns: Sequence[int]) -> float:
    """Tell how many calls of an unchanging workload took half as long again as its undisturbed ones.

    Undisturbed is the lower fifth: most calls may be held up on a busy machine, but hardly all.
    """
    ordered = sorted(durations_ns)
    undisturbed = ordered[len(ordered) // 5]
    return sum(duration > 1.5 * undisturbed for duration in ordered) / len(ordered)


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of durations, with an interval of 95 % or more."""

    value_ns: int
    low_ns: int
    high_ns: int


def supports(count: int, share: float) -> bool:
    """Tell whether so many samples carry a quantile: p95 needs 400, p99 needs 2,000."""
    return count * min(share, 1 - share) >= SAMPLES_BEYOND - 1e-9


def quantile(durations_ns: Sequence[int], share: float, confidence: float = 0.95) -> Quantile:
    """Read a quantile as the order statistic of rank ⌈n·share⌉, a duration that was really seen.

    The interval's ends are order statistics too, of ranks n·share ± z·√(n·share·(1 - share)): the normal approximation of
    the distribution-free interval (David & Nagaraja, Order Statistics, 3rd ed., section 7.1). It takes calls as
    independent, which they are not quite.

    Raises:
        MeasurementError: fewer than `SAMPLES_BEYOND` samples lie beyond the quantile; 400 are needed for p95.
    """
    count = len(durations_ns)
    if not supports(count, share):
        message = f"{count} timings are too few for the {share:g} quantile: {SAMPLES_BEYOND} must lie beyond it."
        raise MeasurementError(message)
    ordered = sorted(durations_ns)
    spread = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(count * share * (1 - share))
    low, high = math.floor(count * share - spread), math.ceil(count * share + spread)
    rank = math.ceil(count * share - 1e-9)
    return Quantile(ordered[rank - 1], ordered[max(low, 1) - 1], ordered[min(high, count) - 1])
