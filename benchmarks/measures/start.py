"""From the start of a process to its first answer, and the memory it took, against transformers' pipeline on PyTorch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from baselines.crew import FOLDER
from baselines.roster import OURS
from baselines.roster import PIPELINE as PYTORCH

from harness.paired.estimate import ratio_of
from harness.progress import Progress
from harness.timing import Clock
from measures.latency import CONFIDENCE
from measures.result import Result, of_ratio
from suites.latency.fresh_process import FirstAnswer, Way, first_answer

PROGRAM = (sys.executable, str(FOLDER / "baselines" / "first_pipeline.py"))
DURATION = "process start to first answer / transformers pipeline on PyTorch"
MEMORY = "peak memory up to the first answer / transformers pipeline on PyTorch"
Starter = Callable[[], FirstAnswer]


def starters(
    candidate: Path, checkpoint: Path, variants: Sequence[str], query: str, clock: Clock
) -> dict[str, Starter]:
    """Name the ways; the last one is the baseline."""
    ways: dict[str, Starter] = {
        OURS[variant]: (lambda variant=variant: first_answer(Way("lean", candidate, variant), query, clock))  # type: ignore[misc]
        for variant in variants
    }
    ways["pipeline over ORTModel FP32"] = lambda: first_answer(Way("optimum", candidate, "fp32"), query, clock)
    pipeline = Way(PYTORCH, checkpoint)
    ways[PYTORCH] = lambda: first_answer(pipeline, query, clock, program=PROGRAM)
    return ways


def start_results(ways: dict[str, Starter], rounds: int, progress: Progress) -> list[Result]:
    """Start every way once a round, in an order that turns round, after a first start of each that does not count."""
    names = list(ways)
    for name in names:
        progress.now(f"first start, not counted: {name}")
        ways[name]()
    answers: dict[str, list[FirstAnswer]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else names[::-1]:
            progress.now(f"start {number + 1} of {rounds}: {name}")
            answers[name].append(ways[name]())
    return [result for name in names[:-1] for result in _compared(name, answers[name], answers[names[-1]])]


def _compared(name: str, subject: Sequence[FirstAnswer], baseline: Sequence[FirstAnswer]) -> list[Result]:
    pairs = list(zip(subject, baseline, strict=True))
    durations = [math.log(ours.duration_ns / theirs.duration_ns) for ours, theirs in pairs]
    memory = [math.log(ours.peak_memory_kib / theirs.peak_memory_kib) for ours, theirs in pairs]
    return [
        of_ratio(DURATION, name, "ratio", ratio_of(durations, CONFIDENCE), log_ratios=durations),
        of_ratio(MEMORY, name, "ratio", ratio_of(memory, CONFIDENCE), log_ratios=memory),
    ]
