"""How long calls take, from the text of queries to their entities."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pytest

from harness.artifact import Artifact, Variant
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.tagging import LabelledSet, TokenClassifier, tag
from harness.timing import Clock
from suites.latency.pairing import Answer, Pacer, PairedTimings, Texts, draw, quantile, time_alone, time_pairs

if TYPE_CHECKING:
    from harness.candidate import Candidate
    from harness.reference import Reference

BATCH_SIZE = 32
# Enough for limits that stand far off, in seconds on two slow cores; to tell ratios 5 % apart takes 300.
SINGLE_PAIRS = 100
FP32_PAIRS = 100
BATCH_PAIRS = 11  # the bound is the second largest of 11, so one call that is held up does not make it
SINGLE_CALLS = 400  # p95 rests on the 20 above it
_NS_PER_MS = 1e6
_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement of calls is made with."""

    pacer: Pacer
    clock: Clock
    texts: Sequence[str]
    record_measure: RecordMeasure

    def pairs(self, subject: TokenClassifier, baseline: TokenClassifier, calls: int, batch_size: int) -> PairedTimings:
        """Time two models in turns on queries drawn from the data."""
        queries = draw(self.texts, calls, batch_size)
        return time_pairs(
            self.pacer,
            answering(subject),
            answering(baseline),
            queries,
            self.clock,
            pairs_per_block=2 if batch_size == 1 else 1,
        )

    def record_ratio(self, name: str, timings: PairedTimings, **details: object) -> None:
        """Record the upper bound of a paired ratio, with the estimate itself beside it."""
        ratio = timings.ratio()
        self.record_measure(name, ratio.upper_bound, unit=Unit.RATIO, details={**asdict(ratio), **details})


def answering(model: TokenClassifier) -> Answer:
    """The whole path that a served query takes: encode, run, decode."""

    def answer(texts: Texts) -> object:
        return [tagged.spans(model.labels) for tagged in tag(model, texts, BATCH_SIZE)]

    return answer


@pytest.fixture
def bench(benchmark: Pacer, clock: Clock, labelled_set: LabelledSet, record_measure: RecordMeasure) -> Bench:
    """The tools of one test."""
    return Bench(benchmark, clock, labelled_set.texts, record_measure)


@pytest.fixture
def serial_reference(reference: Reference) -> Generator[Reference]:
    """The reference on one thread, as the candidate is, for as long as the test takes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield reference
    torch.set_num_threads(threads)


def test_single_queries_against_the_reference(bench: Bench, model: Candidate, serial_reference: Reference) -> None:
    """One query a call: the time per call, as a multiple of PyTorch's."""
    timings = bench.pairs(model, serial_reference, SINGLE_PAIRS, 1)
    bench.record_ratio("single_query_ratio_to_reference", timings)


def test_batches_against_the_reference(bench: Bench, model: Candidate, serial_reference: Reference) -> None:
    """32 queries a call: the time per call, as a multiple of PyTorch's, and queries per second."""
    timings = bench.pairs(model, serial_reference, BATCH_PAIRS, BATCH_SIZE)
    bench.record_ratio("batch_ratio_to_reference", timings)
    queries, seconds = BATCH_PAIRS * BATCH_SIZE, sum(timings.subject_ns) / _NS_PER_S
    details = {"queries": queries, "seconds": seconds}
    bench.record_measure("throughput", queries / seconds, unit=Unit.QUERIES_PER_SECOND, details=details)


def test_single_queries_against_fp32(
    bench: Bench, model: Candidate, candidate: Artifact, serial_reference: Reference
) -> None:
    """One query a call: the time per call, as a multiple of the release's own FP32 model's.

    For FP32 itself these are two sessions of one file: the value shows what two equals look like on this machine.
    A release without an FP32 model is held against the FP32 model that there is, PyTorch's.
    """
    from harness.candidate import Candidate

    fp32 = Candidate(candidate, Variant.FP32) if Variant.FP32 in candidate.variants else None
    timings = bench.pairs(model, fp32 or serial_reference, FP32_PAIRS, 1)
    bench.record_ratio("ratio_to_fp32", timings, baseline="model.onnx" if fp32 else "PyTorch")


def test_single_queries_alone(bench: Bench, model: Candidate) -> None:
    """One query a call, call after call: milliseconds per query."""
    durations = time_alone(bench.pacer, answering(model), draw(bench.texts, SINGLE_CALLS, 1), bench.clock)
    for name, share in (("p50_ms", 0.50), ("p95_ms", 0.95)):
        found = quantile(durations, share)
        interval = [found.low_ns / _NS_PER_MS, found.high_ns / _NS_PER_MS]
        details = {"calls": len(durations), "interval_95_ms": interval}
        bench.record_measure(name, found.value_ns / _NS_PER_MS, unit=Unit.MILLISECOND, details=details)
