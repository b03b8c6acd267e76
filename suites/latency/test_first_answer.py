"""From the start of a process to its first answer: what a restart, a new instance or a command line waits for.

Each answer comes from a process of its own. PyTorch's starts take seconds, so all variants share them; they
stand between the export's starts, not before all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import pytest

from harness.artifact import Artifact
from harness.errors import one_line
from harness.evidence import Measure, MeasureKey, Unit
from harness.paired.contest import Pacer
from harness.paired.estimate import MeasurementError
from harness.plugin import RecordMeasure
from harness.serving import Runtime
from harness.tagging import LabelledSet
from harness.timing import Clock
from harness.verdict import Limit
from suites.latency.fresh_process import FirstAnswer, FreshProcessError, Way, first_answer

LEAN_STARTS = 3
REFERENCE_STARTS = 1
# Where these do not settle it: enough that the range of all ratios misses their median in 1 of 128 cases at most.
MOST_STARTS = 8
ORTMODEL_STARTS = 1
_WAYS = {Runtime.ONNXRUNTIME: "lean", Runtime.OPENVINO: "openvino"}


class ReferenceStarts:
    """The reference's fresh processes, started when they are first needed and kept for the session."""

    def __init__(self, way: Way, query: str, clock: Clock) -> None:
        self._way, self._query, self._clock = way, query, clock
        self.answers: list[FirstAnswer] = []

    def ask(self, way: Way) -> FirstAnswer:
        """Put the same query to a fresh process of any way."""
        return first_answer(way, self._query, self._clock)

    def at_least(self, count: int) -> None:
        """Start as many more as are missing."""
        while len(self.answers) < count:
            self.answers.append(self.ask(self._way))


@pytest.fixture(scope="session")
def typical_query(labelled_set: LabelledSet) -> str:
    """The labelled query of median length."""
    if not labelled_set.texts:
        message = "there is no labelled query to measure with. Name a file that has some (--data FILE)."
        raise MeasurementError(message)
    return sorted(labelled_set.texts, key=len)[len(labelled_set.texts) // 2]


@pytest.fixture(scope="session")
def reference_starts(pytestconfig: pytest.Config, typical_query: str, clock: Clock) -> ReferenceStarts:
    """Fresh processes that answer with PyTorch."""
    return ReferenceStarts(Way("pytorch", pytestconfig.getoption("reference")), typical_query, clock)


def test_first_answer_of_a_fresh_process(
    benchmark: Pacer,
    candidate: Artifact,
    variant: str,
    runtime: Runtime,
    reference_starts: ReferenceStarts,
    record_measure: RecordMeasure,
    limit_of: Callable[[str], Limit],
) -> None:
    """Start to first answer, and peak memory, of the runtime that releases are served with, against PyTorch's."""
    way = Way(_WAYS[runtime], candidate.folder, variant)
    answers: list[FirstAnswer] = []
    reference_starts.ask(way)  # not counted: reads files into the page cache, writes bytecode

    def reference_in_between() -> None:
        reference_starts.at_least(1 if len(answers) < LEAN_STARTS // 2 else REFERENCE_STARTS)

    def start() -> None:
        answers.append(reference_starts.ask(way))

    benchmark.pedantic(start, setup=reference_in_between, rounds=LEAN_STARTS, iterations=1)
    reference_starts.at_least(REFERENCE_STARTS)
    if len(answers) != LEAN_STARTS:
        message = f"{len(answers)} of {LEAN_STARTS} starts ran. Run pytest-benchmark without --benchmark-disable."
        raise MeasurementError(message)
    while len(answers) < MOST_STARTS and not is_settled(limit_of, first_answers(answers, reference_starts.answers)):
        start()
        reference_starts.at_least(len(answers))
    for measure in first_answers(answers, reference_starts.answers):
        name, details = measure.key.name, measure.details
        record_measure(name, measure.value, unit=measure.unit, details=details, interval=measure.interval)


def is_settled(limit_of: Callable[[str], Limit], measures: Sequence[Measure]) -> bool:
    """Tell whether each measure plainly keeps its limit. What breaks it is worth some more starts."""
    return all(
        limit.reported_only or limit.holds(*measure.ends)
        for measure in measures
        for limit in (limit_of(measure.key.name),)
    )


def first_answers(answers: Sequence[FirstAnswer], reference: Sequence[FirstAnswer]) -> list[Measure]:
    """Sum up fresh processes: medians, each with the range of what was seen.

    With few starts there is no finer interval: the range of n independent values misses their median with probability
    2^(1-n), and the range of all ratios is wider than that of pairs.
    """
    times = [answer.duration_ms for answer in answers]
    reference_times = [answer.duration_ms for answer in reference]
    peaks = [answer.peak_memory_mib for answer in answers]
    reference_peaks = [answer.peak_memory_mib for answer in reference]
    modules = {"modules": answers[0].modules, "reference_modules": reference[0].modules}
    return [
        _ratio(
            "cold_start_ratio", times, reference_times, {"starts_ms": times, "reference_starts_ms": reference_times}
        ),
        _median("cold_start_ms", Unit.MILLISECOND, times, modules),
        _ratio(
            "peak_memory_ratio", peaks, reference_peaks, {"peaks_mib": peaks, "reference_peaks_mib": reference_peaks}
        ),
        _median("peak_memory_mib", Unit.MEBIBYTE, peaks, {}),
    ]


def _ratio(name: str, values: list[float], others: list[float], details: Mapping[str, object]) -> Measure:
    interval = (min(values) / max(others), max(values) / min(others))
    value = min(max(median(values) / median(others), interval[0]), interval[1])  # rounding may put it a hair outside
    return Measure(MeasureKey("latency", "", name), value, Unit.RATIO, details, interval)


def _median(name: str, unit: Unit, values: list[float], details: Mapping[str, object]) -> Measure:
    return Measure(MeasureKey("latency", "", name), median(values), unit, details, (min(values), max(values)))


def test_first_answer_of_ortmodel(
    candidate: Artifact, reference_starts: ReferenceStarts, record_measure: RecordMeasure
) -> None:
    """Start to first answer the usual way, optimum's ORTModel in a transformers pipeline, with the default variant.

    It is there to compare with. Not every good export opens that way (other names of inputs, no configuration that
    optimum reads), so then there is nothing to say, and a policy that limits these measures will say that they are missing.
    """
    way = Way("optimum", candidate.folder, candidate.default_variant.value)
    try:
        answers = [reference_starts.ask(way) for _ in range(ORTMODEL_STARTS)]
    except FreshProcessError as err:
        print(f"ORTModel: {one_line(err)}")  # noqa: T201  # into the session's log
        return
    starts = _median("ortmodel_cold_start_ms", Unit.MILLISECOND, [one.duration_ms for one in answers], {})
    peaks = _median("ortmodel_peak_memory_mib", Unit.MEBIBYTE, [one.peak_memory_mib for one in answers], {})
    for measure in (starts, peaks):
        record_measure(measure.key.name, measure.value, unit=measure.unit, interval=measure.interval)
