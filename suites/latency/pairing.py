"""Two ways to answer, timed in turns, and what the timings say about their ratio.

Times come from a `Clock` and calls from outside, so the tests of this module need neither models nor waiting.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from harness.errors import HarnessError
from harness.timing import Clock

if TYPE_CHECKING:
    from numpy.typing import NDArray

Texts = Sequence[str]
Answer = Callable[[Texts], object]

CONFIDENCE = 0.99
SEED = 20261101
# The largest of n values lies below the median of their distribution with probability 2^-n: fewer than 7 have no rank
# that is a 99 % upper bound.
MINIMUM_BLOCKS = 7
# A quantile rests on what lies beyond it: with 20 samples there, its 95 % interval ends about 9 ranks to either side.
SAMPLES_BEYOND = 20
_NORMAL_95 = 1.959963984540054
_MOST_WARM_UP_CALLS = 5
_RUN_PLAIN = "Run pytest-benchmark without --benchmark-disable and --benchmark-cprofile."


class MeasurementError(HarnessError):
    """The timings that were taken cannot carry the statement that was asked of them."""


class Pacer(Protocol):
    """What is used of pytest-benchmark's `benchmark` fixture: it calls, times around the calls, and stores."""

    extra_info: dict[str, Any]

    def pedantic(
        self,
        target: Callable[[], object],
        *,
        setup: Callable[[], None] | None = None,
        teardown: Callable[[], None] | None = None,
        rounds: int,
        iterations: int,
    ) -> object:
        """Call `setup`, `target`, `teardown`, once a round."""
        ...


@dataclass(frozen=True, slots=True)
class RatioEstimate:
    """How long the subject takes, as a multiple of the baseline: the median, and a one-sided 99 % upper bound on it."""

    median: float
    upper_bound: float
    blocks: int


@dataclass(frozen=True, slots=True)
class PairedTimings:
    """Durations of subject and baseline on the same input, pair by pair, in the order they were taken.

    Baseline first in one pair, subject first in the next: ABBA. Two pairs make a block, unless calls are so long that
    who goes first makes no difference; then each pair is a block of its own.
    """

    subject_ns: tuple[int, ...]
    baseline_ns: tuple[int, ...]
    pairs_per_block: int = 2

    def __post_init__(self) -> None:
        """Refuse timings that do not form whole blocks, or too few of them."""
        pairs = len(self.subject_ns)
        whole = pairs == len(self.baseline_ns) and pairs % self.pairs_per_block == 0
        if not whole or pairs < self.pairs_per_block * MINIMUM_BLOCKS:
            message = (
                f"{pairs} timings of the one side and {len(self.baseline_ns)} of the other are no ratio: that needs "
                f"whole blocks of {self.pairs_per_block} pairs, {MINIMUM_BLOCKS} at least. {_RUN_PLAIN}"
            )
            raise MeasurementError(message)
        if min(*self.subject_ns, *self.baseline_ns) <= 0:
            message = "a call took no time at all by this clock, so there is no ratio. Measure with a finer clock."
            raise MeasurementError(message)

    @property
    def block_log_ratios(self) -> NDArray[np.float64]:
        """The mean log ratio of the pairs of each block.

        Who goes first matters: a model that answers twice in a row finds its weights in the cache. Each block of two
        holds both orders once, so its mean is free of that, and of any steady drift of the machine; the median over
        single pairs would sit between two humps. No block is left out, however odd.
        """
        pairs = np.log(np.asarray(self.subject_ns, np.float64)) - np.log(np.asarray(self.baseline_ns, np.float64))
        return np.asarray(pairs.reshape(-1, self.pairs_per_block).mean(axis=1))

    def ratio(self) -> RatioEstimate:
        """Estimate the ratio: the median over blocks, with its distribution-free bound.

        Law: `upper_bound >= median`, and a block that takes longer never lowers either.
        """
        ordered = np.sort(self.block_log_ratios)
        bound = float(ordered[upper_rank(len(ordered)) - 1])
        return RatioEstimate(math.exp(float(np.median(ordered))), math.exp(bound), len(ordered))


def upper_rank(count: int) -> int:
    """Tell which of `count` sorted values is the one-sided 99 % upper bound on their distribution's median.

    The k-th lies at or above the median unless k or more values lie below it, so k is the smallest for which a
    binomial(count, 1/2) variable stays below k with probability 0.99 (David & Nagaraja, Order Statistics, 3rd ed.,
    section 7.1; the sign test). It holds for every distribution and every count, where the percentile bootstrap of the
    median covers only 96 to 98 % with 7 or 8 values (1500 draws of Student's t with 3 degrees of freedom).
    """
    below = 0
    for rank in range(1, count + 1):
        below += math.comb(count, rank - 1)
        if below >= CONFIDENCE * 2**count:
            return rank
    message = f"{count} blocks have no 99 % upper bound; {MINIMUM_BLOCKS} are needed at least."
    raise MeasurementError(message)


class AbbaRun:
    """The calls of one paired comparison: `before`, `subject`, `after`, once a pair and in this order.

    The baseline answers before the subject in even pairs and after it in odd ones: ABBA, ABBA, …
    """

    def __init__(self, subject: Answer, baseline: Answer, inputs: Sequence[Texts], clock: Clock) -> None:
        self._subject, self._baseline = subject, baseline
        self._inputs = inputs
        self._clock = clock
        self._pair = 0
        self._subject_ns: list[int] = []
        self._baseline_ns: list[int] = []

    def before(self) -> None:
        """Begin a pair."""
        if self._pair % 2 == 0:
            self._time(self._baseline, self._baseline_ns)

    def subject(self) -> None:
        """Let the subject answer."""
        self._time(self._subject, self._subject_ns)

    def after(self) -> None:
        """End a pair."""
        if self._pair % 2 == 1:
            self._time(self._baseline, self._baseline_ns)
        self._pair += 1

    def _time(self, answer: Answer, durations: list[int]) -> None:
        texts = self._inputs[self._pair]
        begin = self._clock.now_ns()
        answer(texts)
        durations.append(self._clock.now_ns() - begin)

    def timings(self, pairs_per_block: int = 2) -> PairedTimings:
        """Give what was measured.

        Raises:
            MeasurementError: not every pair was run exactly once.
        """
        if not len(self._subject_ns) == len(self._baseline_ns) == len(self._inputs):
            message = (
                f"{len(self._subject_ns)} and {len(self._baseline_ns)} timings came of "
                f"{len(self._inputs)} pairs. {_RUN_PLAIN}"
            )
            raise MeasurementError(message)
        return PairedTimings(tuple(self._subject_ns), tuple(self._baseline_ns), pairs_per_block)


def time_pairs(
    benchmark: Pacer,
    subject: Answer,
    baseline: Answer,
    inputs: Sequence[Texts],
    clock: Clock,
    *,
    pairs_per_block: int = 2,
) -> PairedTimings:
    """Time subject and baseline on every input, in ABBA order, and store all of it with the benchmark.

    Raises:
        MeasurementError: not every pair was run exactly once, or there are too few of them.
    """
    for texts in _warm_up(inputs):
        subject(texts)
        baseline(texts)
    run = AbbaRun(subject, baseline, inputs, clock)
    with garbage_kept():
        benchmark.pedantic(run.subject, setup=run.before, teardown=run.after, rounds=len(inputs), iterations=1)
    timings = run.timings(pairs_per_block)
    benchmark.extra_info["subject_ns"] = list(timings.subject_ns)
    benchmark.extra_info["baseline_ns"] = list(timings.baseline_ns)
    return timings


def _warm_up(inputs: Sequence[Texts]) -> Sequence[Texts]:
    """Choose the calls that are made before timing begins: a tenth as many as are timed, 1 to 5."""
    return inputs[: min(max(len(inputs) // 10, 1), _MOST_WARM_UP_CALLS)]


def time_alone(benchmark: Pacer, subject: Answer, inputs: Sequence[Texts], clock: Clock) -> list[int]:
    """Time one way to answer on every input, call after call, in ns.

    Raises:
        MeasurementError: not every input was answered exactly once.
    """
    for texts in _warm_up(inputs):
        subject(texts)
    durations: list[int] = []
    remaining = iter(inputs)

    def answer_next() -> None:
        texts = next(remaining)
        begin = clock.now_ns()
        subject(texts)
        durations.append(clock.now_ns() - begin)

    with garbage_kept():
        benchmark.pedantic(answer_next, rounds=len(inputs), iterations=1)
    if len(durations) != len(inputs):
        message = (
            f"{len(durations)} timings came of {len(inputs)} calls. Run pytest-benchmark without --benchmark-disable."
        )
        raise MeasurementError(message)
    return durations


@dataclass(frozen=True, slots=True)
class QuantileEstimate:
    """A quantile of durations, with a 95 % interval."""

    value_ns: int
    low_ns: int
    high_ns: int


def quantile(durations_ns: Sequence[int], share: float) -> QuantileEstimate:
    """Read a quantile as the order statistic of rank ⌈n·share⌉, a duration that was really seen.

    The interval's ends are order statistics too, of ranks n·share ± 1.96·√(n·share·(1 - share)): the normal
    approximation of the distribution-free interval (David & Nagaraja, Order Statistics, 3rd ed., section 7.1).

    Raises:
        MeasurementError: fewer than `SAMPLES_BEYOND` samples lie beyond the quantile; 400 are needed for p95.
    """
    count = len(durations_ns)
    if count * min(share, 1 - share) < SAMPLES_BEYOND - 1e-9:
        message = f"{count} timings are too few for the {share:g} quantile: {SAMPLES_BEYOND} must lie beyond it."
        raise MeasurementError(message)
    ordered = sorted(durations_ns)
    spread = _NORMAL_95 * math.sqrt(count * share * (1 - share))
    low, high = math.floor(count * share - spread), math.ceil(count * share + spread)
    rank = math.ceil(count * share - 1e-9)
    return QuantileEstimate(ordered[rank - 1], ordered[max(low, 1) - 1], ordered[min(high, count) - 1])


@contextmanager
def garbage_kept() -> Generator[None]:
    """Keep the garbage collector out of the timings; it works again afterwards."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def draw(texts: Sequence[str], calls: int, batch_size: int, seed: int = SEED) -> list[Texts]:
    """Draw queries for so many calls, with replacement: their lengths are distributed as the data's own.

    Raises:
        MeasurementError: there is no query to draw from.
    """
    if not texts:
        message = "there is no labelled query to measure with. Name a file that has some (--data FILE)."
        raise MeasurementError(message)
    picks = np.random.default_rng(seed).integers(0, len(texts), (calls, batch_size))
    return [[texts[index] for index in row] for row in picks]
