"""The latency suite's own arithmetic and plumbing, on made-up timings and processes."""

from __future__ import annotations

import datetime as dt
import gc
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.errors import HarnessError
from suites.latency import SUITE
from suites.latency import first_answer as program
from suites.latency.fresh_process import (
    FirstAnswer,
    FreshProcessError,
    Way,
    first_answer,
    parse_report,
    report_line,
)
from suites.latency.pairing import (
    MINIMUM_BLOCKS,
    AbbaRun,
    MeasurementError,
    PairedTimings,
    draw,
    garbage_kept,
    quantile,
    time_alone,
    time_pairs,
    upper_rank,
)
from suites.latency.test_first_answer import record_first_answers

MS = 1_000_000


class FakeClock:
    """A clock that stands still until somebody spends time."""

    def __init__(self):
        self.ns = 0

    def now_ns(self):
        return self.ns

    def utc(self):
        return dt.datetime(2026, 11, 1, tzinfo=dt.timezone.utc)


class FakePacer:
    """pytest-benchmark's `pedantic`, without its timer."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, *, setup=None, teardown=None, rounds, iterations):
        assert iterations == 1
        for _ in range(rounds):
            if setup:
                setup()
            target()
            if teardown:
                teardown()


class TickingClock(FakeClock):
    """A clock that moves on by a millisecond whenever it is read."""

    def now_ns(self):
        self.ns += MS
        return self.ns


class DisabledPacer(FakePacer):
    """What `--benchmark-disable` makes of it: one round, no tear-down."""

    def pedantic(self, target, *, setup=None, teardown=None, rounds, iterations):
        if setup:
            setup()
        target()


class Machine:
    """Answers that take as long as they are told to, on a clock of their own; keeps who answered when."""

    def __init__(self, duration_ns):
        self.clock = FakeClock()
        self.calls = []
        self._duration_ns = duration_ns

    def way(self, name):
        def answer(texts):
            self.calls.append((name, texts))
            self.clock.ns += round(self._duration_ns(name, len(self.calls), self.clock.ns))

        return answer

    def compare(self, pairs, **options):
        inputs = [[f"query {number}"] for number in range(pairs)]
        return time_pairs(FakePacer(), self.way("subject"), self.way("baseline"), inputs, self.clock, **options)


def timings_of(log_ratios, baseline_ns=10 * MS):
    """Pairs with these log ratios."""
    subject = tuple(round(baseline_ns * float(np.exp(ratio))) for ratio in log_ratios)
    return PairedTimings(subject, (baseline_ns,) * len(subject))


def noisy(ratio, pairs, seed):
    """Log ratios as a busy machine gives them: 3 % spread, an order effect of ±4 %, 1 in 20 held up 2-20 fold."""
    rng = np.random.default_rng(seed)
    logs = np.log(ratio) + 0.03 * rng.standard_normal(pairs) + np.where(np.arange(pairs) % 2, -0.04, 0.04)
    held_up = rng.random(pairs) < 0.05
    return logs + held_up * rng.choice([-1, 1], pairs) * np.log(rng.uniform(2, 20, pairs))


class TestOrder:
    def test_pairs_are_abba(self):
        """The baseline answers first in even pairs and last in odd ones, and both answer every query."""
        machine = Machine(lambda name, call, now: MS)
        inputs = [["a"], ["b"], ["c"], ["d"]]
        run = AbbaRun(machine.way("S"), machine.way("B"), inputs, machine.clock)
        FakePacer().pedantic(run.subject, setup=run.before, teardown=run.after, rounds=4, iterations=1)
        assert "".join(name for name, _ in machine.calls) == "BSSBBSSB"
        assert [texts for _, texts in machine.calls] == [[text] for text in "aabbccdd"]

    def test_warm_up_is_not_timed(self):
        """Calls before the timed ones are made, at most 5 of each side, and are in no timing."""
        machine = Machine(lambda name, call, now: 1000 * MS if call <= 10 else MS)
        timings = machine.compare(60)
        assert len(machine.calls) == 2 * 60 + 2 * 5
        assert set(timings.subject_ns) == {MS}

    def test_everything_measured_is_stored(self):
        """The benchmark's file holds every raw duration of both sides."""
        machine = Machine(lambda name, call, now: call * MS)
        pacer = FakePacer()
        inputs = [["q"]] * 14
        timings = time_pairs(pacer, machine.way("S"), machine.way("B"), inputs, machine.clock)
        assert pacer.extra_info == {
            "subject_ns": list(timings.subject_ns),
            "baseline_ns": list(timings.baseline_ns),
        }
        json.dumps(pacer.extra_info)

    def test_a_disabled_benchmark_is_an_error(self):
        """One round instead of all of them measures nothing and must not look as if it did."""
        machine = Machine(lambda name, call, now: MS)
        with pytest.raises(MeasurementError, match=r"1 and 1 timings came of 20 pairs\. .* --benchmark-disable"):
            time_pairs(DisabledPacer(), machine.way("S"), machine.way("B"), [["q"]] * 20, machine.clock)
        with pytest.raises(MeasurementError, match="benchmark-disable"):
            time_alone(DisabledPacer(), machine.way("S"), [["q"]] * 20, machine.clock)


class TestRatio:
    def test_quiet_machine(self):
        """A subject that takes a quarter of the time has ratio 0.25, bound included."""
        ratio = Machine(lambda name, call, now: 2 * MS if name == "subject" else 8 * MS).compare(40).ratio()
        assert (ratio.median, ratio.upper_bound, ratio.blocks) == (pytest.approx(0.25), pytest.approx(0.25), 20)

    def test_drift_cancels(self):
        """A machine that slows to a fifth of its speed during the run changes no ratio."""

        def duration(name, call, now):
            return (3 * MS if name == "subject" else 10 * MS) * (1 + call / 100)

        timings = Machine(duration).compare(200)
        assert max(timings.subject_ns) > 4.5 * min(timings.subject_ns)
        assert timings.ratio().median == pytest.approx(0.3, rel=0.001)

    def test_order_effect_cancels(self):
        """Being 20 % faster right after one's own call, on either side, leaves equals equal."""
        machine = Machine(lambda name, call, now: MS)

        def duration(name, call, now):
            again = len(machine.calls) > 1 and machine.calls[-2][0] == name
            return MS * (0.8 if again else 1.0)

        machine._duration_ns = duration
        timings = machine.compare(100)
        assert {round(subject / baseline, 2) for subject, baseline in zip(*_sides(timings), strict=True)} == {0.8, 1.25}
        assert timings.ratio().median == pytest.approx(1.0, abs=0.01)

    def test_heavy_tails(self):
        """Calls held up for up to 20 times as long move neither median nor bound by much, and none is dropped."""
        timings = timings_of(noisy(0.4, 300, seed=1))
        ratio = timings.ratio()
        assert ratio.blocks == 150
        assert ratio.median == pytest.approx(0.4, rel=0.02)
        assert ratio.upper_bound == pytest.approx(0.4, rel=0.03)

    def test_bound_is_deterministic_and_above_the_median(self):
        """The same timings give the same bound, and none lies below its median."""
        for seed in range(50):
            timings = timings_of(noisy(0.4, 14 + 2 * seed, seed))
            assert timings.ratio() == timings.ratio()
            assert timings.ratio().upper_bound > timings.ratio().median

    @pytest.mark.parametrize(("count", "rank"), [(7, 7), (8, 8), (12, 11), (20, 16), (50, 34), (100, 63)])
    def test_ranks_are_the_sign_tests(self, count, rank):
        """The bound's rank is the count less the sign test's one-sided 1 % critical value (0, 0, 1, 4, 16, 37)."""
        assert upper_rank(count) == rank

    @pytest.mark.parametrize("count", range(MINIMUM_BLOCKS))
    def test_too_few_have_no_rank(self, count):
        """Six values or fewer carry no 99 % bound."""
        with pytest.raises(MeasurementError, match="no 99 % upper bound"):
            upper_rank(count)

    @pytest.mark.parametrize("pairs", [14, 24, 100])
    def test_bound_covers_the_true_ratio(self, pairs):
        """Of 1000 bounds on a ratio of exactly 1, about 990 lie at or above it, with few blocks as with many."""
        bounds = [timings_of(noisy(1.0, pairs, seed)).ratio().upper_bound for seed in range(1000)]
        assert np.mean(np.asarray(bounds) >= 1.0) >= 0.985

    def test_five_percent_slower_is_found(self):
        """300 noisy pairs tell 5 % slower from a limit of 2 %, in each of 40 runs."""
        assert all(timings_of(noisy(1.05, 300, seed)).ratio().upper_bound > 1.02 for seed in range(40))
        assert all(timings_of(noisy(1.05, 300, seed)).ratio().median > 1.02 for seed in range(40))

    def test_equals_are_not_flagged(self):
        """300 noisy pairs of equals stay below a limit of 2 %, bound and all, in each of 40 runs."""
        assert all(timings_of(noisy(1.0, 300, seed)).ratio().upper_bound < 1.02 for seed in range(40))

    @pytest.mark.parametrize("pairs", [0, 2, 2 * MINIMUM_BLOCKS - 2, 2 * MINIMUM_BLOCKS + 1])
    def test_too_few_or_half_blocks(self, pairs):
        """Fewer blocks than a 99 % bound needs, or half a block, are refused."""
        with pytest.raises(MeasurementError, match="whole blocks of 2 pairs"):
            PairedTimings((MS,) * pairs, (MS,) * pairs)

    def test_sides_must_match(self):
        """Timings of unequal number are refused."""
        with pytest.raises(MeasurementError, match="16 timings of the one side and 18"):
            PairedTimings((MS,) * 16, (MS,) * 18)

    def test_no_time_at_all(self):
        """A duration of zero is a clock too coarse, not a ratio of zero."""
        with pytest.raises(MeasurementError, match="finer clock"):
            PairedTimings((MS,) * 15 + (0,), (MS,) * 16)

    def test_pairs_of_long_calls_are_blocks(self):
        """With one pair a block, 7 pairs carry a bound: the largest of them."""
        ratio = PairedTimings((1, 2, 3, 4, 5, 6, 7), (10,) * 7, pairs_per_block=1).ratio()
        assert ratio.median == pytest.approx(0.4)
        assert ratio.upper_bound == pytest.approx(0.7)


def _sides(timings):
    return timings.subject_ns, timings.baseline_ns


class TestAlone:
    def test_durations(self):
        """Each timed call gives its own duration."""
        machine = Machine(lambda name, call, now: call * MS)
        durations = time_alone(FakePacer(), machine.way("S"), [["q"]] * 20, machine.clock)
        assert durations == [call * MS for call in range(3, 23)]

    def test_quantiles_are_ranks(self):
        """p50 and p95 of 1..400 are 200 and 380, with intervals that hold them."""
        median, high = quantile(range(1, 401), 0.5), quantile(range(1, 401), 0.95)
        assert (median.low_ns, median.value_ns, median.high_ns) == (180, 200, 220)
        assert (high.low_ns, high.value_ns, high.high_ns) == (371, 380, 389)

    def test_p95_needs_400(self):
        """With 399 calls fewer than 20 lie beyond p95, and it is not stated."""
        with pytest.raises(MeasurementError, match="399 timings are too few"):
            quantile(range(399), 0.95)


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
    def test_is_deterministic_and_keeps_proportions(self):
        """The same queries in every run; a query that is a tenth of the data is about a tenth of the draw."""
        texts = ["short"] * 90 + ["a rather long one"] * 10
        calls = draw(texts, 100, 32)
        assert calls == draw(texts, 100, 32)
        assert {len(batch) for batch in calls} == {32}
        assert sum(batch.count(texts[-1]) for batch in calls) / 3200 == pytest.approx(0.1, abs=0.02)

    def test_nothing_to_draw_from(self):
        """An empty labelled set is an error that says so."""
        with pytest.raises(MeasurementError, match="no labelled query"):
            draw([], 1, 1)


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


class TestMeasures:
    def test_fresh_process_measures(self):
        """Time is the median over the reference's fastest start, memory the largest over its smallest."""
        answers = [FirstAnswer(ms * MS, mib << 10, 237, (), 1) for ms, mib in ((400, 100), (200, 101), (300, 99))]
        reference = [FirstAnswer(ms * MS, mib << 10, 3213, ("torch",), 1) for ms, mib in ((9000, 404), (6000, 500))]
        recorded = {}
        record_first_answers(lambda name, value, **_: recorded.update({name: value}), answers, reference)
        assert recorded == {
            "cold_start_ratio": 300 / 6000,
            "cold_start_ms": 300,
            "peak_memory_ratio": 101 / 404,
            "peak_memory_mib": 101,
        }

    def test_promises_are_unique(self):
        """No measure is promised twice, and each is promised for every variant."""
        assert len({promise.name for promise in SUITE.measures}) == len(SUITE.measures) == 10
        assert all(promise.per_variant for promise in SUITE.measures)
