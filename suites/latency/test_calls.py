"""How long calls take, from the text of queries to their entities.

Calls of the two sides alternate, and a third workload runs between them. That is the cache regime that limits are held
in: a service's model seldom finds its weights in the cache either, because requests come with pauses and other programs
run. `test_cache_regimes` shows what the other regimes would have said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from harness.artifact import Artifact, Variant
from harness.evidence import Unit
from harness.machine import cpu_frequency, usable_cpus
from harness.paired.contest import Answer, Contest, Opener, Pacer, Plan, run, time_alone
from harness.paired.draw import BatchDraw, Draw, Length, Texts, draw_by_length
from harness.paired.estimate import CONFIDENCE, LOOKS, Quantile, Ratio, quantile, ratio_of, supports
from harness.paired.regimes import hot_log_ratio, idle_log_ratio
from harness.paired.workload import Workload
from harness.plugin import RecordMeasure
from harness.serving import Runtime
from harness.tagging import LabelledSet, TokenClassifier, tag
from harness.timing import Clock
from harness.verdict import Limit

if TYPE_CHECKING:
    from harness.candidate import Candidate
    from harness.reference import Reference

BATCH_SIZE = 16
# Where limits are far off, or there are none, a round may be short.
COARSE = Plan(openings_per_round=1)
BATCHES = Plan(blocks_per_opening=1, openings_per_round=1, pairs_per_block=1, reopened=False)
# p95 rests on the 20 above it; p99 is said where the budget pays for 2,000 calls, or the policy limits it.
FEWEST_CALLS = 400
CALLS_FOR_P99 = 2_000
ALONE_BUDGET_S = 2.0
QUANTILES = (("p50_ms", 0.50), ("p95_ms", 0.95), ("p99_ms", 0.99))
_NS_PER_MS = 1e6
_NS_PER_S = 1e9
_DIGITS = 6

LimitOf = Callable[[str], Limit]


def answering(model: TokenClassifier) -> Answer:
    """The whole path that a served query takes: encode, run, decode."""

    def answer(texts: Texts) -> object:
        return [tagged.spans(model.labels) for tagged in tag(model, texts, BATCH_SIZE)]

    return answer


def fresh(model: Candidate) -> Opener:
    """Open a candidate anew for every round."""
    return lambda: answering(model.reopened())


def same(model: TokenClassifier) -> Opener:
    """Give the same model in every round: what cannot be opened anew, or need not be."""
    return lambda: answering(model)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement of calls is made with."""

    pacer: Pacer
    clock: Clock
    labelled: LabelledSet
    record_measure: RecordMeasure
    limit_of: LimitOf

    def hold(
        self,
        subject: Opener,
        baseline: Opener,
        baseline_name: str,
        texts: Callable[[int], Texts],
        names: dict[str, Callable[[int], bool] | None],
        plan: Plan | None = None,
    ) -> Contest:
        """Compare until each measure is settled, and record them.

        Args:
            subject: opens what is judged.
            baseline: opens what it is compared with.
            baseline_name: what that is, for people.
            texts: the texts of each block.
            names: the measures, each with the blocks that it is made of; all of them if None.
            plan: how calls are cut.
        """
        contest = Contest(subject, baseline, texts, Workload(), self.clock, plan)
        before = cpu_frequency()

        def settled() -> bool:
            return all(is_settled(self.limit_of(name), contest.ratio(chosen)) for name, chosen in names.items())

        run(contest, self.pacer, settled, self.clock, baseline_name=baseline_name)
        machine = {"control": control_of(contest), "cpu_frequency": [str(before), str(cpu_frequency())]}
        for name, chosen in names.items():
            details = {
                "baseline": baseline_name,
                "pairs_per_round": contest.plan.pairs_per_round,
                "log_ratios": [round(one, _DIGITS) for one in contest.log_ratios(chosen)],
            }
            self.record_ratio(name, contest.ratio(chosen), **details, **(machine if chosen is None else {}))
        return contest

    def record_ratio(self, name: str, ratio: Ratio, **details: object) -> None:
        """Record a ratio with its interval."""
        shown = {"rounds": ratio.rounds, "confidence": CONFIDENCE, **details}
        self.record_measure(name, ratio.value, unit=Unit.RATIO, interval=(ratio.low, ratio.high), details=shown)


def is_settled(limit: Limit, ratio: Ratio) -> bool:
    """Tell whether a ratio is plainly on one side of its limit; of what has none, one look is enough."""
    return limit.reported_only or limit.holds(ratio.low, ratio.high) is not None


def control_of(contest: Contest) -> dict[str, Any]:
    """Say for the evidence what the unchanging workload did meanwhile."""
    found = contest.disturbance()
    return {
        "ratio": round(found.ratio.value, _DIGITS),
        "interval": [round(found.ratio.low, _DIGITS), round(found.ratio.high, _DIGITS)],
        "held_up_share": round(found.held_up, 3),
        "calm": found.calm,
    }


@pytest.fixture(scope="session")
def draw(labelled_set: LabelledSet, reference: Reference) -> Draw:
    """Single queries, by how many tokens the reference makes of them."""
    texts = labelled_set.texts
    return draw_by_length(texts, [sum(len(part.input_ids) for part in one.windows) for one in reference.encode(texts)])


@pytest.fixture
def bench(
    benchmark: Pacer, clock: Clock, labelled_set: LabelledSet, record_measure: RecordMeasure, limit_of: LimitOf
) -> Bench:
    """The tools of one test."""
    return Bench(benchmark, clock, labelled_set, record_measure, limit_of)


@pytest.fixture
def serial_reference(reference: Reference) -> Generator[Reference]:
    """The reference on one thread, as the candidate is, for as long as the test takes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield reference
    torch.set_num_threads(threads)


def test_single_queries_against_the_reference(
    bench: Bench, model: Candidate, serial_reference: Reference, draw: Draw
) -> None:
    """One query a call: the time per call, as a multiple of PyTorch's; of all queries, and of short and long ones."""
    names: dict[str, Callable[[int], bool] | None] = {"single_query_ratio_to_reference": None}
    for length in Length:
        names[f"{length.value}_query_ratio_to_reference"] = lambda block, wanted=length: draw.length(block) is wanted  # type: ignore[misc]
    bench.hold(fresh(model), same(serial_reference), "PyTorch", draw, names, COARSE)


def test_batches_against_the_reference(bench: Bench, model: Candidate, serial_reference: Reference) -> None:
    """16 queries a call: the time per call, as a multiple of PyTorch's, and queries per second."""
    draw = BatchDraw(bench.labelled.texts, BATCH_SIZE)
    contest = bench.hold(
        same(model), same(serial_reference), "PyTorch", draw, {"batch_ratio_to_reference": None}, BATCHES
    )
    rate = ratio_of([math.log(BATCH_SIZE * _NS_PER_S / duration) for duration in contest.subject_ns])
    details = {"queries": BATCH_SIZE * contest.pairs, "seconds": sum(contest.subject_ns) / _NS_PER_S}
    bench.record_measure(
        "throughput", rate.value, unit=Unit.QUERIES_PER_SECOND, interval=(rate.low, rate.high), details=details
    )


def test_single_queries_against_fp32(
    bench: Bench, model: Candidate, candidate: Artifact, variant: str, draw: Draw
) -> None:
    """One query a call: the time per call, as a multiple of the release's own FP32 model's."""
    from harness.candidate import Candidate

    if variant == Variant.FP32.value or Variant.FP32 not in candidate.variants:
        return  # nothing to compare with; optional, unless the policy limits it
    fp32 = Candidate(candidate, Variant.FP32, runtime=model.runtime)
    bench.hold(fresh(model), fresh(fp32), "model.onnx", draw, {"ratio_to_fp32": None}, COARSE)


def test_single_queries_against_the_last_release(
    bench: Bench, model: Candidate, baseline: Artifact | None, variant: str, draw: Draw
) -> None:
    """One query a call: the time per call, as a multiple of the same variant's of the release that is served now."""
    from harness.candidate import Candidate

    if baseline is None or Variant(variant) not in baseline.variants:
        return  # not promised then
    last = Candidate(baseline, Variant(variant), runtime=model.runtime)
    bench.hold(fresh(model), fresh(last), "last release", draw, {"ratio_to_last_release": None})


def test_single_queries_alone(bench: Bench, model: Candidate, draw: Draw) -> None:
    """One query a call, call after call: milliseconds per query, as quantiles that the number of calls supports."""
    answer = answering(model)
    wanted = any(not bench.limit_of(name).reported_only for name, share in QUANTILES if share > 0.95)
    calls = CALLS_FOR_P99 if wanted else affordable_calls(answer, draw, bench.clock)
    durations = time_alone(bench.pacer, answer, draw, bench.clock, calls=calls)
    for name, share in QUANTILES:
        if supports(calls, share):
            record_quantile(bench, name, quantile(durations, share), calls)


def affordable_calls(answer: Answer, draw: Draw, clock: Clock) -> int:
    """Say how many calls fit into the budget, by the time that some take; 400 to 2,000."""
    begin = clock.now_ns()
    for number in range(FEWEST_CALLS // 20):
        answer(draw(number))
    each_s = max(clock.now_ns() - begin, 1) / _NS_PER_S / (FEWEST_CALLS // 20)
    return min(max(int(ALONE_BUDGET_S / each_s), FEWEST_CALLS), CALLS_FOR_P99)


def record_quantile(bench: Bench, name: str, found: Quantile, calls: int) -> None:
    """Record a quantile in ms, with its interval."""
    low, value, high = (one / _NS_PER_MS for one in (found.low_ns, found.value_ns, found.high_ns))
    bench.record_measure(name, value, unit=Unit.MILLISECOND, interval=(low, high), details={"calls": calls})


def test_cache_regimes(bench: Bench, model: Candidate, serial_reference: Reference, draw: Draw) -> None:
    """What the ratio to PyTorch is call after call of one model, and after a pause before each call."""
    clock = bench.clock
    sides = (answering(model), answering(serial_reference))
    for name, measure in (("hot_ratio_to_reference", hot_log_ratio), ("idle_ratio_to_reference", idle_log_ratio)):
        log_ratios = [measure(*sides, draw(number), clock, subject_first=number % 2 == 1) for number in range(LOOKS[0])]
        bench.record_ratio(name, ratio_of(log_ratios), log_ratios=[round(one, _DIGITS) for one in log_ratios])


@pytest.fixture(scope="session")
def served(candidate: Artifact, runtime: Runtime) -> Candidate:
    """The variant that programs get by default."""
    from harness.candidate import Candidate

    return Candidate(candidate, candidate.default_variant, runtime=runtime)


def test_all_threads(bench: Bench, served: Candidate, draw: Draw) -> None:
    """The default variant on as many threads as the process may really use, as a multiple of its time on one."""
    from harness.candidate import Candidate

    threads = usable_cpus()
    if threads == 1:
        return  # the same as on one; optional, unless the policy limits it
    many = Candidate(served.artifact, served.variant, threads=threads, runtime=served.runtime)
    bench.hold(fresh(many), fresh(served), "one thread", draw, {"all_threads_ratio": None}, COARSE)
