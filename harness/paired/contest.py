"""Two ways to answer, timed in turns, until it is clear which side of its limits their ratio is on.

Times come from a `Clock` and calls from outside, so the tests of this module need neither models nor waiting.
What the timings say is `estimate`'s.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any, Protocol

from harness.paired.draw import Texts
from harness.paired.estimate import (
    LOOKS,
    Disturbance,
    MeasurementError,
    Ratio,
    held_up_share,
    opening_log_ratio,
    pair_log_ratio,
    ratio_of,
)
from harness.timing import Clock

Answer = Callable[[Texts], object]
# A fresh way to answer: a session of its own. What cannot be opened again, such as PyTorch's model, gives itself.
Opener = Callable[[], Answer]

# One comparison ends after so long even if nothing is settled; the verdict is then INCOMPLETE, or a warning.
BUDGET_S = 60.0
_NS_PER_S = 1e9
_WARM_UP_CALLS = 3
_RUN_PLAIN = "Run pytest-benchmark without --benchmark-disable and --benchmark-cprofile."


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


class UntimedPacer:
    """Calls as pytest-benchmark does and times nothing: for measuring outside of a pytest session."""

    def __init__(self) -> None:
        """Store nothing yet."""
        self.extra_info: dict[str, Any] = {}

    def pedantic(
        self,
        target: Callable[[], object],
        *,
        setup: Callable[[], None] | None = None,
        teardown: Callable[[], None] | None = None,
        rounds: int,
        iterations: int,
    ) -> object:
        """Call everything `rounds` times."""
        for _ in range(rounds * iterations):
            if setup:
                setup()
            target()
            if teardown:
                teardown()
        return None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a comparison is cut: pairs into blocks, blocks by the sessions that they share, these into rounds.

    The baseline goes first in one pair, the subject in the next: ABBA. Two pairs on the same texts make a block, unless
    calls are so long that who goes first makes no difference; then each pair is a block, and the order alternates from
    block to block. After so many blocks both sides are opened anew, and so often in a round: which session is made first
    makes a difference of its own (3.7 % to either side on the machine of docs/latency.md), so a round has both orders. Where
    calls are long, or a side cannot be opened again, once is enough: `reopened`.
    """

    blocks_per_opening: int = 4
    openings_per_round: int = 2
    pairs_per_block: int = 2
    reopened: bool = True

    @property
    def pairs_per_opening(self) -> int:
        """Calls of either side that share their sessions."""
        return self.blocks_per_opening * self.pairs_per_block

    @property
    def pairs_per_round(self) -> int:
        """Calls of either side in a round."""
        return self.pairs_per_opening * self.openings_per_round

    @property
    def warm_up_calls(self) -> int:
        """Calls of either side that are not timed, after it was opened: as many as are timed, three at most."""
        return min(self.pairs_per_opening, _WARM_UP_CALLS)


class Contest:
    """The rounds of one comparison. A pair is `before`, `subject`, `after`, in this order.

    Both sides are opened anew again and again, the one first at one time and the other at the next. Beside each call runs a
    workload that never changes.
    """

    def __init__(
        self,
        subject: Opener,
        baseline: Opener,
        texts: Callable[[int], Texts],
        control: Callable[[], object],
        clock: Clock,
        plan: Plan | None = None,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            subject: opens what is judged.
            baseline: opens what it is compared with.
            texts: the texts that all calls of a block answer, by the block's number.
            control: the unchanging workload.
            clock: where the time comes from.
            plan: how the calls are cut.
        """
        self._open = (subject, baseline)
        self._texts, self._control, self._clock = texts, control, clock
        self.plan = plan or Plan()
        self._sides: tuple[Answer, Answer] | None = None
        self.subject_ns: list[int] = []
        self.baseline_ns: list[int] = []
        self.beside_subject_ns: list[int] = []
        self.beside_baseline_ns: list[int] = []

    @property
    def pairs(self) -> int:
        """How many pairs are complete."""
        return min(len(self.subject_ns), len(self.baseline_ns))

    @property
    def rounds(self) -> int:
        """How many rounds are complete."""
        return self.pairs // self.plan.pairs_per_round

    def before(self) -> None:
        """Begin a pair, with fresh sessions if it is the first of those that share them."""
        if self.pairs % self.plan.pairs_per_opening == 0:
            self._open_both()
        if self.pairs % 2 == 0:
            self._ask_baseline()
        self.beside_subject_ns.append(self._time_control())

    def subject(self) -> None:
        """Let the subject answer."""
        self.subject_ns.append(self._time_answer(self._both()[0]))

    def after(self) -> None:
        """End a pair."""
        if len(self.baseline_ns) < len(self.subject_ns):
            self._ask_baseline()

    def _ask_baseline(self) -> None:
        self.beside_baseline_ns.append(self._time_control())
        self.baseline_ns.append(self._time_answer(self._both()[1]))

    def _open_both(self) -> None:
        if self._sides is not None and not self.plan.reopened:
            return
        self._sides = None  # both sessions go before new ones come
        gc.collect()
        subject, baseline = self._open
        if self.pairs // self.plan.pairs_per_opening % 2 == 0:
            self._sides = (subject(), baseline())
        else:
            second = baseline()
            self._sides = (subject(), second)
        texts = self._texts(self.pairs // self.plan.pairs_per_block)
        for _ in range(self.plan.warm_up_calls):
            for answer in self._sides:
                answer(texts)

    def _both(self) -> tuple[Answer, Answer]:
        if self._sides is None:
            message = f"a pair was timed that never began. {_RUN_PLAIN}"
            raise MeasurementError(message)
        return self._sides

    def _time_control(self) -> int:
        self._control()  # what ran just before is not to make a difference
        return self._time(self._control)

    def _time_answer(self, answer: Answer) -> int:
        texts = self._texts(self.pairs // self.plan.pairs_per_block)
        return self._time(lambda: answer(texts))

    def _time(self, call: Callable[[], object]) -> int:
        begin = self._clock.now_ns()
        call()
        return self._clock.now_ns() - begin

    def log_ratios(self, chosen: Callable[[int], bool] | None = None) -> list[float]:
        """Give one log ratio per round, of all its blocks or of those chosen by their number."""
        return self._rounds_of(self.subject_ns, self.baseline_ns, chosen)

    def ratio(self, chosen: Callable[[int], bool] | None = None) -> Ratio:
        """Estimate the ratio of subject to baseline, its interval widened by what the machine may have added to it.

        Raises:
            MeasurementError: there are too few rounds.
        """
        return ratio_of(self.log_ratios(chosen)).widened(self.disturbance().allowance)

    def disturbance(self) -> Disturbance:
        """Tell what the unchanging workload says about the machine.

        Raises:
            MeasurementError: there are too few rounds.
        """
        ratio = ratio_of(self._rounds_of(self.beside_subject_ns, self.beside_baseline_ns, None))
        return Disturbance(ratio, held_up_share([*self.beside_subject_ns, *self.beside_baseline_ns]))

    def _rounds_of(
        self, subject_ns: Sequence[int], baseline_ns: Sequence[int], chosen: Callable[[int], bool] | None
    ) -> list[float]:
        size, pairs = self.plan.pairs_per_block, self.plan.pairs_per_opening

        def opening(number: int) -> float:
            orders: tuple[list[float], list[float]] = ([], [])
            for pair in range(number * pairs, (number + 1) * pairs):
                if chosen is None or chosen(pair // size):
                    orders[pair % 2].append(pair_log_ratio(subject_ns[pair], baseline_ns[pair]))
            return opening_log_ratio(*orders)

        openings = self.plan.openings_per_round
        return [mean(map(opening, range(one * openings, (one + 1) * openings))) for one in range(self.rounds)]


def run(
    contest: Contest,
    pacer: Pacer,
    settled: Callable[[], bool],
    clock: Clock,
    *,
    baseline_name: str,
    budget_s: float = BUDGET_S,
) -> None:
    """Run a comparison until it is settled or its time is up, and store all of it with the benchmark.

    The first look's pairs run as pytest-benchmark's rounds, so that its own tools show the subject's calls; what is added
    later stands beside them in `extra_info`.

    Raises:
        MeasurementError: not every pair was run exactly once.
    """
    begin = clock.now_ns()
    per_round = contest.plan.pairs_per_round
    with garbage_kept():
        pairs = LOOKS[0] * per_round
        pacer.pedantic(contest.subject, setup=contest.before, teardown=contest.after, rounds=pairs, iterations=1)
        if not len(contest.subject_ns) == len(contest.baseline_ns) == pairs:
            message = (
                f"{len(contest.subject_ns)} and {len(contest.baseline_ns)} timings came of {pairs} pairs. {_RUN_PLAIN}"
            )
            raise MeasurementError(message)
        for look in LOOKS[1:]:
            spent_s = (clock.now_ns() - begin) / _NS_PER_S
            if settled() or spent_s * look / contest.rounds > budget_s:
                break
            while contest.rounds < look:
                contest.before()
                contest.subject()
                contest.after()
    pacer.extra_info.update(
        subject_ns=contest.subject_ns,
        baseline_ns=contest.baseline_ns,
        control_ns=[*contest.beside_subject_ns, *contest.beside_baseline_ns],
        pairs_per_round=per_round,
        baseline_name=baseline_name,
    )


def time_alone(pacer: Pacer, answer: Answer, texts: Callable[[int], Texts], clock: Clock, *, calls: int) -> list[int]:
    """Time one way to answer, call after call, in ns.

    Raises:
        MeasurementError: not every call was made exactly once.
    """
    for number in range(_WARM_UP_CALLS):
        answer(texts(number))
    durations: list[int] = []

    def answer_next() -> None:
        asked = texts(len(durations))
        begin = clock.now_ns()
        answer(asked)
        durations.append(clock.now_ns() - begin)

    with garbage_kept():
        pacer.pedantic(answer_next, rounds=calls, iterations=1)
    if len(durations) != calls:
        message = f"{len(durations)} timings came of {calls} calls. {_RUN_PLAIN}"
        raise MeasurementError(message)
    return durations


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
