"""From the start of a process to its first answer: what a restart, a new instance or a command line waits for.

Each answer comes from a process of its own. PyTorch's starts take seconds, so all variants share them; they
stand between the export's starts, not before all of them.
"""

from __future__ import annotations

from statistics import median

import pytest

from harness.artifact import Artifact
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.tagging import LabelledSet
from harness.timing import Clock
from suites.latency.fresh_process import FirstAnswer, Way, first_answer
from suites.latency.pairing import MeasurementError, Pacer

LEAN_STARTS = 3
REFERENCE_STARTS = 2


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
    reference_starts: ReferenceStarts,
    record_measure: RecordMeasure,
) -> None:
    """Start to first answer, and peak memory, of the runtime that releases are served with, against PyTorch's.

    The ratio of times is the median of the export's over the fastest of PyTorch's: a slow moment of the machine
    counts against the candidate, never for it.
    """
    way = Way("lean", candidate.folder, variant)
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
    record_first_answers(record_measure, answers, reference_starts.answers)


def record_first_answers(
    record_measure: RecordMeasure, answers: list[FirstAnswer], reference: list[FirstAnswer]
) -> None:
    """Record the four measures of fresh processes, with every start in the details."""
    durations = [answer.duration_ms for answer in answers]
    reference_durations = [answer.duration_ms for answer in reference]
    peaks = [answer.peak_memory_mib for answer in answers]
    reference_peaks = [answer.peak_memory_mib for answer in reference]
    both = {"starts_ms": durations, "reference_starts_ms": reference_durations}
    record_measure("cold_start_ratio", median(durations) / min(reference_durations), unit=Unit.RATIO, details=both)
    modules = {"modules": answers[0].modules, "reference_modules": reference[0].modules}
    record_measure("cold_start_ms", median(durations), unit=Unit.MILLISECOND, details=modules)
    memory = {"peaks_mib": peaks, "reference_peaks_mib": reference_peaks}
    record_measure("peak_memory_ratio", max(peaks) / min(reference_peaks), unit=Unit.RATIO, details=memory)
    record_measure("peak_memory_mib", max(peaks), unit=Unit.MEBIBYTE)
