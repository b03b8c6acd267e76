"""The latency suite's own arithmetic and plumbing, on made-up timings and processes."""

from __future__ import annotations

import datetime as dt
import gc
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.evidence import Unit
from harness.paired.contest import Contest, Plan, UntimedPacer, garbage_kept, run, time_alone
from harness.paired.draw import BatchDraw, Length, draw_by_length
from harness.paired.estimate import (
    CONFIDENCE,
    ERROR,
    LOOKS,
    Disturbance,
    MeasurementError,
    Ratio,
    held_up_share,
    opening_log_ratio,
    pair_log_ratio,
    quantile,
    ratio_of,
    supports,
)
from harness.paired.regimes import HOT_CALLS, IDLE_CALLS, PAUSE_S, hot_log_ratio, idle_log_ratio
from harness.paired.workload import Workload
from harness.shift import location
from harness.verdict import Limit
from suites.latency import SUITE
from suites.latency import first_answer as program
from suites.latency import test_calls as calls_of_suite
from suites.latency.fresh_process import (
    FirstAnswer,
    FreshProcessError,
    Way,
    first_answer,
    parse_report,
    report_line,
)
from suites.latency.test_calls import (
    CALLS_FOR_P99,
    FEWEST_CALLS,
    Bench,
    affordable_calls,
    is_settled,
)
from suites.latency.test_first_answer import MOST_STARTS, first_answers
from suites.latency.test_first_answer import is_settled as starts_are_settled

MS = 1_000_000
ROUND = Plan().pairs_per_round


class FakeClock:
    """A clock that stands still until somebody spends time."""

    def __init__(self):
        self.ns = 0

    def now_ns(self):
        return self.ns

    def utc(self):
        return dt.datetime(2026, 11, 1, tzinfo=dt.timezone.utc)

    def pause(self, seconds):
        self.ns += round(seconds * 1e9)


class TickingClock(FakeClock):
    """A clock that moves on by a millisecond whenever it is read."""

    def now_ns(self):
        self.ns += MS
        return self.ns


class DisabledPacer(UntimedPacer):
    """What `--benchmark-disable` makes of it: one round, no tear-down."""

    def pedantic(self, target, *, setup=None, teardown=None, rounds, iterations):
        if setup:
            setup()
        target()


class Machine:
    """Sides that take as long as they are told to, on a clock of their own; keeps who answered when.

    `duration_ns(name, session, now)`: name is "S", "B" or "C" (the control); session counts how often a side was opened.
    """

    def __init__(self, duration_ns):
        self.clock = FakeClock()
        self.calls = []
        self.opened = []
        self._duration_ns = duration_ns

    def _spend(self, name, session=0):
        self.clock.ns += round(self._duration_ns(name, session, self.clock.ns))

    def opener(self, name):
        def open_side():
            self.opened.append(name)
            session = self.opened.count(name)

            def answer(texts):
                self.calls.append((name, tuple(texts)))
                self._spend(name, session)

            return answer

        return open_side

    def contest(self, plan=None):
        return Contest(
            self.opener("S"),
            self.opener("B"),
            lambda block: [f"query {block}"],
            lambda: self._spend("C"),
            self.clock,
            plan,
        )

    def compare(self, settled=lambda contest: True, plan=None, pacer=None, **options):
        contest = self.contest(plan)
        pacer = pacer or UntimedPacer()
        run(contest, pacer, lambda: settled(contest), self.clock, baseline_name="PyTorch", **options)
        return contest


def steady(subject_ms=2, baseline_ms=8):
    return Machine(lambda name, session, now: MS * {"S": subject_ms, "B": baseline_ms, "C": 0.1}[name])


def noisy(ratio, rounds, seed, *, session_spread=0.024, held_up=0.1):
    """Log ratios of rounds as a busy machine gives them: sessions that differ, and rounds that a neighbour spoils."""
    rng = np.random.default_rng(seed)
    logs = np.log(ratio) + session_spread * rng.standard_normal(rounds)
    spoilt = rng.random(rounds) < held_up
    return list(logs + spoilt * rng.choice([-1, 1], rounds) * rng.uniform(0.05, 0.5, rounds))


class TestOrder:
    def test_pairs_are_abba(self):
        """The baseline answers first in one pair and last in the next, and both pairs of a block ask the same."""
        machine = steady()
        contest = machine.contest()
        for _ in range(4):
            contest.before()
            contest.subject()
            contest.after()
        calls = machine.calls[2 * contest.plan.warm_up_calls :]
        assert "".join(name for name, _ in calls) == "BSSBBSSB"
        assert [texts for _, texts in calls] == [("query 0",)] * 4 + [("query 1",)] * 4

    def test_sessions_are_fresh_in_every_round_and_made_in_turn(self):
        """Both sides are opened anew twice a round, after half of its calls; each is opened first once."""
        machine = steady()
        machine.compare()
        assert "".join(machine.opened) == "SBBS" * LOOKS[0]
        calls = [texts[0] for name, texts in machine.calls if name == "S"]
        per_opening = 3 + ROUND // 2
        assert [len(set(calls[start + 3 : start + per_opening])) for start in range(0, len(calls), per_opening)] == [
            4
        ] * (2 * LOOKS[0])

    def test_long_calls_share_their_sessions(self):
        """Where sessions need not be fresh, they are opened and warmed up once, and single pairs alternate."""
        machine = steady()
        machine.compare(plan=Plan(1, 1, 1, reopened=False))
        assert machine.opened == ["S", "B"]
        assert "".join(name for name, _ in machine.calls) == "SB" + "BSSB" * (LOOKS[0] // 2)

    def test_warm_up_is_not_timed(self):
        """Some calls of each session come before the timed ones, and are in no timing."""
        first = set()

        def duration(name, session, now):
            if name == "C" or len(first) > 100:
                return MS
            count = sum(1 for caller, _ in machine.calls[machine_start[0] :] if caller == name)
            return 1000 * MS if count <= 3 else MS

        machine_start = [0]
        machine = Machine(duration)
        contest = machine.compare(plan=Plan(reopened=False))
        assert len(machine.calls) == 2 * (LOOKS[0] * ROUND + 3)
        assert set(contest.subject_ns) == set(contest.baseline_ns) == {MS}

    def test_the_control_runs_beside_every_call(self):
        """The unchanging workload is timed once for each call of either side."""
        contest = steady().compare()
        assert len(contest.beside_subject_ns) == len(contest.beside_baseline_ns) == LOOKS[0] * ROUND
        assert set(contest.beside_subject_ns) == {MS // 10}

    def test_everything_measured_is_stored(self):
        """The benchmark's file holds every raw duration of both sides and of the control."""
        pacer = UntimedPacer()
        contest = steady().compare(pacer=pacer)
        assert pacer.extra_info == {
            "subject_ns": contest.subject_ns,
            "baseline_ns": contest.baseline_ns,
            "control_ns": [*contest.beside_subject_ns, *contest.beside_baseline_ns],
            "pairs_per_round": ROUND,
            "baseline_name": "PyTorch",
        }
        json.dumps(pacer.extra_info)

    def test_a_disabled_benchmark_is_an_error(self):
        """One round instead of all of them measures nothing and must not look as if it did."""
        with pytest.raises(MeasurementError, match=r"1 and 1 timings came of 192 pairs\. .* --benchmark-disable"):
            steady().compare(pacer=DisabledPacer())
        machine = steady()
        with pytest.raises(MeasurementError, match="benchmark-disable"):
            time_alone(DisabledPacer(), machine.opener("S")(), lambda block: ["q"], machine.clock, calls=20)

    def test_a_pair_that_never_began(self):
        """pytest-benchmark's profiler calls the target once more, outside any pair."""
        with pytest.raises(MeasurementError, match="a pair was timed that never began"):
            steady().contest().subject()


class TestLooks:
    def test_what_is_settled_ends(self):
        """After the first look nothing more is measured if it is settled."""
        assert steady().compare().rounds == LOOKS[0]

    @pytest.mark.parametrize("look", LOOKS)
    def test_what_is_not_settled_goes_on(self, look):
        """Rounds are added up to the look that settles it, and never beyond the last look."""
        assert steady().compare(lambda contest: contest.rounds >= look).rounds == look
        assert steady().compare(lambda contest: False).rounds == LOOKS[-1]

    def test_between_looks_nobody_looks(self):
        """It is asked whether it is settled at the looks only: each question is another chance to err."""
        asked = []
        steady().compare(lambda contest: asked.append(contest.rounds))
        assert asked == list(LOOKS[:-1])

    def test_time_is_limited(self):
        """A comparison that would run beyond its budget ends at the look before, with what it has."""
        contest = steady(subject_ms=100, baseline_ms=100).compare(lambda contest: False, budget_s=150)
        assert contest.rounds == 24  # 48 rounds would take 211 s

    def test_levels_add_up(self):
        """All looks together err as often as is stated."""
        assert (1 - CONFIDENCE) * len(LOOKS) == pytest.approx(ERROR)


class TestRatio:
    def test_quiet_machine(self):
        """A subject that takes a quarter of the time has ratio 0.25, interval included."""
        ratio = steady(2, 8).compare().ratio()
        assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.25, 0.25, 0.25))
        assert ratio.rounds == LOOKS[0]

    def test_drift_cancels(self):
        """A machine that slows to a third of its speed during the run changes no ratio."""
        contest = Machine(
            lambda name, session, now: MS * {"S": 3, "B": 10, "C": 0.1}[name] * (1 + now / (1000 * MS))
        ).compare()
        assert max(contest.subject_ns) > 3 * min(contest.subject_ns)
        assert contest.ratio().value == pytest.approx(0.3, rel=0.005)

    def test_order_effect_cancels(self):
        """Being 20 % faster right after one's own call, on either side, leaves equals equal."""

        def duration(name, session, now):
            again = len(machine.calls) > 1 and machine.calls[-2][0] == name
            return MS * (0.8 if again else 1.0)

        machine = Machine(duration)
        contest = machine.compare()
        singles = {round(s / b, 2) for s, b in zip(contest.subject_ns, contest.baseline_ns, strict=True)}
        assert singles == {0.8, 1.25}
        assert contest.ratio().value == pytest.approx(1.0, abs=0.01)

    def test_orders_count_alike_though_one_call_is_held_up(self):
        """A held-up call in one order does not hand the round to the other order."""
        contest = steady().compare()
        factors = [1.2 if pair % 2 == 0 else 0.9 for pair in range(contest.pairs)]
        factors[1::8] = [50] * len(factors[1::8])
        contest.baseline_ns = [MS] * contest.pairs
        contest.subject_ns = [round(MS * factor) for factor in factors]
        assert contest.ratio().value == pytest.approx(math.sqrt(1.2 * 0.9))

    def test_creation_order_cancels(self):
        """A session that is 4 % slower for having been made second leaves equals equal."""

        def duration(name, session, now):
            # S is opened first at one time and B at the next
            second = {"S": session % 2 == 0, "B": session % 2 == 1}.get(name, False)
            return MS * (1.04 if second else 1.0)

        assert Machine(duration).compare().ratio().value == pytest.approx(1.0, abs=0.001)

    def test_sessions_are_what_varies(self):
        """Sessions of one file that differ by 5 % make a wide interval, though the calls of each agree to the last digit."""
        rng = np.random.default_rng(0)
        speeds = dict(zip(itertools.product("SB", range(1, 200)), rng.normal(1, 0.05, 398), strict=True))
        ratio = Machine(lambda name, session, now: MS * speeds.get((name, session), 1)).compare().ratio()
        assert ratio.low < 1 < ratio.high
        assert ratio.high / ratio.low > 1.05

    def test_held_up_calls(self):
        """Calls held up for 20 times as long, one in twenty, move neither estimate nor interval by much."""
        rng = np.random.default_rng(0)
        contest = Machine(
            lambda name, session, now: MS * {"S": 2, "B": 5, "C": 0.1}[name] * (20 if rng.random() < 0.05 else 1)
        ).compare()
        assert sum(duration > 20 * MS for duration in contest.subject_ns) > 5
        ratio = contest.ratio()
        assert ratio.value == pytest.approx(0.4, rel=0.02)
        assert ratio.high / ratio.low < 1.5

    def test_chosen_blocks(self):
        """The ratio of some blocks is made of those alone."""
        machine = Machine(lambda name, session, now: MS)
        contest = machine.compare()
        contest.subject_ns = [MS * (3 if pair // 2 % 4 == 2 else 1) for pair in range(contest.pairs)]
        assert contest.ratio(lambda block: block % 4 == 2).value == pytest.approx(3)
        assert contest.ratio(lambda block: block % 4 == 0).value == pytest.approx(1)

    @pytest.mark.parametrize("rounds", [12, 24, 48])
    def test_interval_covers_the_true_ratio(self, rounds):
        """Of 1000 intervals of 99 % about 990 hold the true ratio, with sessions that differ and spoilt rounds."""
        found = [ratio_of(noisy(0.8, rounds, seed), 0.99) for seed in range(1000)]
        assert np.mean([ratio.low <= 0.8 <= ratio.high for ratio in found]) >= 0.98

    def test_five_percent_slower_is_found(self):
        """By the last look 5 % slower is told from a limit of 2 % in each of 40 runs, and equals are never called slower."""
        assert all(ratio_of(noisy(1.05, LOOKS[-1], seed)).low > 1.02 for seed in range(40))
        assert all(ratio_of(noisy(1.0, LOOKS[-1], seed)).high < 1.02 for seed in range(40))

    @pytest.mark.parametrize("count", range(9))
    def test_too_few_rounds(self, count):
        """Nine rounds or fewer carry no interval of this confidence, so there is no ratio to decide by."""
        with pytest.raises(MeasurementError, match=f"^{count} rounds carry no interval"):
            ratio_of([0.0] * count)

    def test_no_time_at_all(self):
        """A duration of zero is a clock too coarse, not a ratio of zero."""
        with pytest.raises(MeasurementError, match="finer clock"):
            pair_log_ratio(0, MS)

    def test_held_up_calls_in_either_order(self):
        """One call in four that is held up, in either order, moves nothing; the two orders count alike."""
        assert opening_log_ratio([0.2, 0.2, 9.0, 0.2], [-0.1, -0.1, -0.1, -9.0]) == pytest.approx(0.05)
        assert opening_log_ratio([0.3], []) == opening_log_ratio([], [0.3]) == 0.3


class TestDisturbance:
    def test_calm(self):
        """A machine that treats both sides alike takes nothing from the interval."""
        found = steady().compare().disturbance()
        assert found.calm
        assert (found.allowance, found.held_up) == (0, 0)

    def test_a_machine_that_favours_one_side(self):
        """What slows the control beside the subject widens the interval by as much, so that nothing is rejected for it."""
        slowed = {"S": False}

        def duration(name, session, now):
            # the subject's turn and its control are slowed, as by a neighbour that comes and goes in step
            if name == "C":
                slowed["C"] = not slowed.get("C", False)
                turn = machine.turn()
                return MS * (1.3 if turn == "S" else 1.0)
            return MS * (1.3 if name == "S" else 1.0)

        machine = Machine(duration)
        machine.turn = lambda: "S" if _beside_subject(machine) else "B"
        contest = machine.compare()
        assert not contest.disturbance().calm
        assert contest.ratio().value == pytest.approx(1.3)
        assert contest.ratio().low <= 1.0 + 1e-9

    def test_held_up(self):
        """A control that is held up in most calls says that the machine is disturbed, though both sides are alike."""
        even = Ratio(1.0, 0.98, 1.03, 12)
        assert Disturbance(even, held_up=0.4).allowance == 0
        assert Disturbance(even, held_up=0.6).allowance == pytest.approx(math.log(1.03))

    def test_held_up_share(self):
        """Calls count as held up from half as long again as the undisturbed ones."""
        assert held_up_share([100] * 100) == 0
        assert held_up_share([100] * 60 + [149] * 20 + [151] * 20) == 0.2
        assert held_up_share([100] * 30 + [200] * 70) == 0.7

    def test_widening(self):
        """An allowance moves both ends outward and leaves the estimate."""
        assert Ratio(1.0, 0.9, 1.2, 12).widened(math.log(1.1)) == Ratio(
            1.0, pytest.approx(0.9 / 1.1), pytest.approx(1.32), 12
        )

    def test_the_workload_never_changes(self):
        """The control gives the same answer at every call."""
        workload = Workload()
        assert len({workload() for _ in range(3)} | {Workload()()}) == 1


def _beside_subject(machine):
    """Whether the control that runs now stands beside the subject's call: order BSSB, four controls a block."""
    machine.controls = getattr(machine, "controls", 0) + 1
    # each control runs twice, once to prime and once timed: B S | S B
    return (machine.controls - 1) // 2 % 4 in {1, 2}


class TestSettled:
    @pytest.mark.parametrize(
        ("limit", "settled"),
        [(Limit(), True), (Limit(maximum=1.2), True), (Limit(maximum=0.8), True), (Limit(maximum=1.0), False)],
    )
    def test_calls(self, limit, settled):
        """It is settled when the whole interval is on one side of the limit, or when there is none."""
        assert is_settled(limit, Ratio(1.0, 0.9, 1.1, 12)) is settled

    def test_starts(self):
        """Starts are settled when each limit is plainly kept; what breaks one is worth some more starts."""
        measures = first_answers([start(400)] * 3, [start(4000)] * 2)
        assert starts_are_settled(lambda name: Limit(maximum=1.5), [measures[0]])
        assert not starts_are_settled(lambda name: Limit(maximum=0.05), [measures[0]])
        assert starts_are_settled(lambda name: Limit(), measures)
        assert MOST_STARTS > 3


class TestHold:
    """What a comparison records, and how long it goes on."""

    @pytest.fixture
    def hold(self, monkeypatch):
        monkeypatch.setattr(calls_of_suite, "Workload", lambda: lambda: None)

        def run_with(limits, duration_ns=lambda name, session, now: MS * {"S": 2, "B": 4}[name], **options):
            machine, recorded = Machine(duration_ns), {}
            bench = Bench(
                UntimedPacer(),
                machine.clock,
                None,
                lambda name, value, **more: recorded.update({name: (value, more)}),
                lambda name: limits.get(name, Limit()),
            )
            names = {"all": None, "first": lambda block: block % 4 == 0}
            monkeypatch.setattr(Contest, "_time_control", lambda contest: MS)
            contest = bench.hold(
                machine.opener("S"),
                machine.opener("B"),
                "last release",
                lambda block: [f"query {block}"],
                names,
                **options,
            )
            return contest, recorded

        return run_with

    def test_what_is_recorded(self, hold):
        """Each measure has its estimate and interval, and the rounds that they come from; the machine is noted once."""
        contest, recorded = hold({})
        assert contest.rounds == LOOKS[0]
        for name, (value, more) in recorded.items():
            assert value == pytest.approx(0.5), name
            assert more["interval"] == pytest.approx((0.5, 0.5))
            assert more["details"]["baseline"] == "last release"
            assert more["details"]["log_ratios"] == pytest.approx([math.log(0.5)] * LOOKS[0], abs=1e-5)
        assert "control" in recorded["all"][1]["details"]
        assert "control" not in recorded["first"][1]["details"]

    @pytest.mark.parametrize(
        ("limits", "rounds"),
        [
            ({"all": Limit(maximum=0.9)}, LOOKS[0]),
            ({"all": Limit(maximum=0.1), "first": Limit(maximum=0.9)}, LOOKS[0]),
            ({"all": Limit(maximum=0.5)}, LOOKS[-1]),
            ({"all": Limit(maximum=0.9), "first": Limit(maximum=0.5)}, LOOKS[-1]),
            ({"all": Limit(0.5, 0.9, warn_undecided=True)}, LOOKS[-1]),
        ],
    )
    def test_it_goes_on_until_every_limit_is_settled(self, hold, limits, rounds):
        """One measure that cannot be told from its limit keeps the whole comparison going, to the last look."""
        rng = np.random.default_rng(0)
        speeds = rng.normal(1, 0.02, 10_000)
        contest, _ = hold(limits, lambda name, session, now: MS * {"S": 2, "B": 4}[name] * speeds[session])
        assert contest.rounds == rounds


class TestRegimes:
    def test_hot(self):
        """The first call of a block does not count."""
        machine = Machine(lambda name, session, now: MS)
        seen = {"S": 0, "B": 0}

        def side(name, ms):
            def answer(texts):
                seen[name] += 1
                machine.clock.ns += MS * (100 if seen[name] % HOT_CALLS == 1 else ms)

            return answer

        for first in (True, False):
            ratio = hot_log_ratio(side("S", 1), side("B", 4), ["q"], machine.clock, subject_first=first)
            assert math.exp(ratio) == pytest.approx(0.25)

    def test_idle(self):
        """A pause comes before each call, and is in no timing."""
        clock = FakeClock()
        ended = [-math.inf]
        gaps = []

        def side(ms):
            def answer(texts):
                gaps.append(clock.ns - ended[0])
                clock.ns += MS * ms
                ended[0] = clock.ns

            return answer

        ratio = idle_log_ratio(side(2), side(4), ["q"], clock, subject_first=True)
        assert math.exp(ratio) == pytest.approx(0.5)
        assert len(gaps) == 2 * IDLE_CALLS
        assert min(gaps) >= PAUSE_S * 1e9


class TestLocation:
    """The one-sample estimate in harness.shift, against tables and its own law."""

    @pytest.mark.parametrize(("count", "rank"), [(8, 1), (10, 4), (12, 8), (20, 38), (30, 110)])
    def test_ranks_are_the_signed_rank_tests(self, count, rank):
        """The interval's rank is one more than the signed-rank test's two-sided 1 % critical value (0, 3, 7, 37, 109)."""
        values = [2.0**place for place in range(count)]
        averages = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))
        found = location(values, 0.99)
        assert (found.low, found.high) == (averages[rank - 1], averages[-rank])

    def test_many_values(self):
        """The normal approximation beyond 200 values meets the counted ranks at 200 to a thousandth of the spread."""
        rng = np.random.default_rng(0)
        values = list(rng.standard_normal(201))
        counted, approximated = location(values[:200], 0.99), location(values, 0.99)
        assert approximated.low == pytest.approx(counted.low, abs=0.02)

    def test_nothing_to_locate(self):
        """No values, or a confidence that is none, are errors."""
        with pytest.raises(ValueError, match="no location"):
            location([])
        with pytest.raises(ValueError, match="no location"):
            location([1.0], 1.0)


class FakeModel:
    """A tokenizer of one token a letter, and a model without entities."""

    labels = ("O",)
    pad_token_id = 0
    maximum_tokens = 512


class TestAlone:
    def test_durations(self):
        """Each timed call gives its own duration; those of the warm-up are in none."""
        clock = FakeClock()
        spent = iter([1000 * MS] * 3 + [number * MS for number in range(1, 21)])

        def answer(texts):
            clock.ns += next(spent)

        durations = time_alone(UntimedPacer(), answer, lambda block: ["q"], clock, calls=20)
        assert durations == [number * MS for number in range(1, 21)]

    @pytest.mark.parametrize(("ms", "calls"), [(0.5, 2000), (2, 1000), (4, 500), (50, 400)])
    def test_calls_by_budget(self, ms, calls):
        """Fast models are called 2,000 times, slow ones as often as 2 s allow, 400 times at least."""
        clock = FakeClock()

        def answer(texts):
            clock.ns += round(ms * MS)

        assert affordable_calls(answer, lambda block: ["q"], clock) == calls

    @pytest.mark.parametrize(
        ("ms", "limited", "names"),
        [
            (0.5, False, {"p50_ms", "p95_ms", "p99_ms"}),
            (5, False, {"p50_ms", "p95_ms"}),
            (5, True, {"p50_ms", "p95_ms", "p99_ms"}),
        ],
    )
    def test_quantiles_that_the_calls_carry(self, monkeypatch, ms, limited, names):
        """p99 is said where 2,000 calls fit into the budget, or where the policy limits it; else it is not said at all."""
        clock, recorded = FakeClock(), {}

        def answer(texts):
            clock.ns += round(ms * MS)

        monkeypatch.setattr("suites.latency.test_calls.answering", lambda model: answer)
        limit = Limit(maximum=9) if limited else Limit()
        bench = Bench(
            UntimedPacer(),
            clock,
            None,
            lambda name, value, **more: recorded.update({name: (value, more)}),
            lambda name: limit if name == "p99_ms" else Limit(),
        )
        calls_of_suite.test_single_queries_alone(bench, FakeModel(), lambda block: ["q"])
        assert set(recorded) == names
        assert all(value == pytest.approx(ms) for value, _ in recorded.values())
        assert {more["unit"] for _, more in recorded.values()} == {Unit.MILLISECOND}

    def test_quantiles_are_ranks(self):
        """p50 and p95 of 1..400 are 200 and 380, with intervals that hold them."""
        median, high = quantile(range(1, 401), 0.5), quantile(range(1, 401), 0.95)
        assert (median.low_ns, median.value_ns, median.high_ns) == (180, 200, 220)
        assert (high.low_ns, high.value_ns, high.high_ns) == (371, 380, 389)

    def test_what_a_quantile_needs(self):
        """With 399 calls fewer than 20 lie beyond p95, and it is not stated; p99 needs 2,000."""
        with pytest.raises(MeasurementError, match="399 timings are too few"):
            quantile(range(399), 0.95)
        assert supports(FEWEST_CALLS, 0.95)
        assert not supports(CALLS_FOR_P99 - 1, 0.99)
        assert supports(CALLS_FOR_P99, 0.99)


class TestGarbage:
    def test_collector_rests_and_resumes(self):
        """No collection during measurement; afterwards everything is as before, also after a failure."""

        def measure():
            with garbage_kept():
                assert not gc.isenabled()
                assert gc.get_freeze_count() > 0
                raise MeasurementError

        with pytest.raises(MeasurementError):
            measure()
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0


class TestDraw:
    texts = tuple("x" * number for number in range(1, 41))
    tokens = tuple(range(1, 41))

    def test_parts(self):
        """Short is the quarter with the fewest tokens, long the one with the most, typical what is between."""
        draw = draw_by_length(self.texts, self.tokens)
        assert draw.tokens == {Length.SHORT: (1, 10), Length.TYPICAL: (11, 30), Length.LONG: (31, 40)}

    def test_is_deterministic_and_keeps_proportions(self):
        """The same queries in every run, a quarter of them short, half typical, a quarter long."""
        draw, again = draw_by_length(self.texts, self.tokens), draw_by_length(self.texts, self.tokens)
        drawn = [draw(block) for block in range(400)]
        assert drawn == [again(block) for block in range(400)]
        lengths = [len(text) for (text,) in drawn]
        assert sum(length <= 10 for length in lengths) == sum(length > 30 for length in lengths) == 100
        assert len(set(lengths)) == 40
        assert all(
            low <= len(draw(block)[0]) <= high for block in range(8) for low, high in [draw.tokens[draw.length(block)]]
        )

    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_few_queries(self, count):
        """Any number of queries has short, typical and long ones."""
        draw = draw_by_length(self.texts[:count], self.tokens[:count])
        assert all(draw(block)[0] in self.texts[:count] for block in range(8))

    def test_batches(self):
        """Batches are the same in every run; a query that is a tenth of the data is about a tenth of the draw."""
        texts = ["short"] * 90 + ["a rather long one"] * 10
        batches = [BatchDraw(texts, 32)(block) for block in range(100)]
        assert batches == [BatchDraw(texts, 32)(block) for block in range(100)]
        assert {len(batch) for batch in batches} == {32}
        assert sum(batch.count(texts[-1]) for batch in batches) / 3200 == pytest.approx(0.1, abs=0.02)

    def test_nothing_to_draw_from(self):
        """An empty labelled set is an error that says so."""
        with pytest.raises(MeasurementError, match="no labelled query"):
            draw_by_length([], [])
        with pytest.raises(MeasurementError, match="no labelled query"):
            BatchDraw([], 1)(0)


GOOD_REPORT = {"entities": 2, "modules": 237, "watched": [], "peak_memory_kib": 102_400}


class TestReport:
    def test_other_output_is_passed_over(self):
        """Warnings printed before the report do not hide it."""
        line = report_line(["a warning\n", "\n", f"{program.MARK}{json.dumps(GOOD_REPORT)}\n"])
        assert parse_report(line, 3 * MS, "lean") == FirstAnswer(3 * MS, 102_400, 237, (), 2)

    def test_units(self):
        """Nanoseconds become milliseconds, KiB become MiB."""
        answer = parse_report(json.dumps(GOOD_REPORT), 3 * MS, "lean")
        assert (answer.duration_ms, answer.peak_memory_mib) == (3.0, 100.0)

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "no JSON",
            "[]",
            json.dumps({**GOOD_REPORT, "peak_memory_kib": 0}),
            json.dumps({**GOOD_REPORT, "modules": "many"}),
            json.dumps({name: value for name, value in GOOD_REPORT.items() if name != "peak_memory_kib"}),
        ],
    )
    def test_unreadable_reports(self, line):
        """A report that lacks something, or holds nonsense, is an error that names the way, never a number."""
        with pytest.raises(FreshProcessError, match="fresh process for lean"):
            parse_report(line, MS, "lean")


def child(code):
    """A fresh process that runs this instead of the program."""
    return (sys.executable, "-S", "-c", code)


class TestProcess:
    way = Way("lean", Path("release"), "int8")

    def test_request_and_answer(self):
        """The query arrives unharmed, whatever its characters; the clock alone says how long it took."""
        code = (
            "import json, sys; request = json.loads(sys.stdin.readline())\n"
            "assert request['query'] == 'पुणे → \"Goa\"\\n\U0001f68c', ascii(request)\n"
            "assert (request['way'], request['variant']) == ('lean', 'int8')\n"
            f"print('{program.MARK}' + json.dumps({GOOD_REPORT!r}))"
        )
        clock = FakeClock()
        clock.now_ns = iter([5 * MS, 12 * MS]).__next__
        answer = first_answer(self.way, 'पुणे → "Goa"\n\U0001f68c', clock, program=child(code))
        assert (answer.duration_ns, answer.entities) == (7 * MS, 2)

    def test_output_that_is_no_text(self):
        """Bytes that are no UTF-8, printed before the report, do not hide it."""
        code = (
            "import json, sys; sys.stdout.buffer.write(bytes([255, 10])); sys.stdout.flush()\n"
            f"print('{program.MARK}' + json.dumps({GOOD_REPORT!r}))"
        )
        assert first_answer(self.way, "pune", TickingClock(), program=child(code)).modules == 237

    def test_the_program_says_why_it_fails(self, tmp_path):
        """The real program's own error reaches the one who asked."""
        why = r"ended with exit code 1 .*ArtifactError: .*nowhere does not exist"
        with pytest.raises(FreshProcessError, match=why):
            first_answer(Way("lean", tmp_path / "nowhere"), "pune", TickingClock())

    def test_crash(self):
        """A process that crashes gives an error with the way, the exit code and its last words."""
        code = "import sys; print('loading'); sys.exit('cannot map model_quantized.onnx')"
        with pytest.raises(FreshProcessError) as caught:
            first_answer(self.way, "pune", TickingClock(), program=child(code))
        assert isinstance(caught.value, HarnessError)
        assert str(caught.value) == (
            "the fresh process for lean (int8) ended with exit code 1 before it answered: cannot map "
            "model_quantized.onnx. Try it by hand: harness extract release."
        )

    def test_killed(self):
        """A process that is killed, as for want of memory, is told apart from one that exits."""
        code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        with pytest.raises(FreshProcessError, match="was ended by signal 9 before it answered: it said nothing"):
            first_answer(self.way, "pune", TickingClock(), program=child(code))

    def test_hang(self):
        """A process that never answers is ended and called what it is."""
        code = "import sys, threading; threading.Event().wait()"
        with pytest.raises(FreshProcessError, match=r"gave no answer within 0\.05 s"):
            first_answer(self.way, "pune", TickingClock(), program=child(code), timeout_s=0.05)

    def test_memory_is_the_childs_own(self):
        """A small process started by a big one reports its own peak: ru_maxrss would report the parent's."""
        ballast = b"x" * (300 << 20)
        code = (
            f"import sys; sys.path.insert(0, {str(Path(program.__file__).parent)!r})\n"
            "import json, first_answer\n"
            "kib = first_answer.peak_memory_kib()\n"
            f"print('{program.MARK}' + json.dumps({{**{GOOD_REPORT!r}, 'peak_memory_kib': kib}}))"
        )
        answer = first_answer(self.way, "pune", TickingClock(), program=child(code))
        assert len(ballast) > 100 << 20
        assert answer.peak_memory_mib < 100


def start(ms, mib=100):
    return FirstAnswer(ms * MS, mib << 10, 237, (), 1)


class TestMeasures:
    def test_fresh_process_measures(self):
        """Medians, each with the range of what was seen; ratios with the range of all ratios."""
        answers = [start(400, 100), start(200, 101), start(300, 99)]
        reference = [FirstAnswer(ms * MS, mib << 10, 3213, ("torch",), 1) for ms, mib in ((9000, 404), (6000, 500))]
        found = {one.key.name: (one.value, one.interval) for one in first_answers(answers, reference)}
        assert found == {
            "cold_start_ratio": (300 / 7500, (200 / 9000, 400 / 6000)),
            "cold_start_ms": (300, (200, 400)),
            "peak_memory_ratio": (100 / 452, (99 / 500, 101 / 404)),
            "peak_memory_mib": (100, (99, 101)),
        }

    def test_equal_starts(self):
        """Starts that are all alike give an interval of one point, and rounding does not push the value out of it."""
        for ms in range(100, 200):
            ratio = first_answers([start(ms)] * 3, [start(7)] * 2)[0]
            assert ratio.interval[0] <= ratio.value <= ratio.interval[1]

    def test_promises_are_unique(self):
        """No measure is promised twice."""
        assert len({promise.name for promise in SUITE.measures}) == len(SUITE.measures)
