#!/usr/bin/env python3
"""Three ways from the start of a process to its first answer, side by side.

    python benchmarks/cold_start.py --release models/bus_ner_onnx --checkpoint models/bus_ner_transformer --runs 5

Each run starts one fresh process per way, in turns and in reversed order every other run. A first start of each
is not counted: it fills the page cache and writes bytecode. Time ends when the answer arrives; memory is the
peak resident set; modules are those imported by then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from harness.artifact import Variant, open_artifact
from harness.errors import HarnessError
from harness.timing import SystemClock
from suites.latency.first_answer import WATCHED
from suites.latency.fresh_process import FirstAnswer, Way, first_answer

QUERY = "AC sleeper bus from Bangalore to Mumbai tomorrow"
TITLES = {
    "lean": "BusNERInference, ONNX",
    "pytorch": "BusNERInference, PyTorch",
    "optimum": "optimum and pipeline, ONNX",
}
_WIDTH_OF_FILES = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; 2 if a way cannot be run."""
    options = parse(arguments)
    try:
        ways = ways_to_answer(options.release, options.checkpoint, options.variant)
        answers = take_turns(ways, options.query, options.runs)
    except HarnessError as err:
        print(err, file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES).print(table(ways, answers))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--release", type=Path, default=Path("models/bus_ner_onnx"), metavar="DIR")
    parser.add_argument("--checkpoint", type=Path, default=Path("models/bus_ner_transformer"), metavar="DIR")
    parser.add_argument("--variant", choices=[variant.value for variant in Variant], help="default: the release's own")
    parser.add_argument("--query", default=QUERY)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="starts of each way (default: 5)")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs must be 1 or more")
    return options


def ways_to_answer(release: Path, checkpoint: Path, variant: str | None) -> list[Way]:
    """List the ways that are compared; the lean one is first, and ratios are multiples of it."""
    served = variant or open_artifact(release).default_variant.value
    return [Way("lean", release, served), Way("pytorch", checkpoint), Way("optimum", release, served)]


def take_turns(ways: Sequence[Way], query: str, runs: int) -> dict[str, list[FirstAnswer]]:
    """Start each way once uncounted, then `runs` times in turns; tells on standard error what is running."""
    clock = SystemClock()
    answers: dict[str, list[FirstAnswer]] = {way.name: [] for way in ways}
    progress = Console(stderr=True)
    for run in range(runs + 1):
        for way in ways if run % 2 else ways[::-1]:
            progress.print(f"run {run} of {runs}: {way}" if run else f"not counted: {way}", highlight=False)
            answer = first_answer(way, query, clock)
            if run:
                answers[way.name].append(answer)
    return answers


def table(ways: Sequence[Way], answers: dict[str, list[FirstAnswer]]) -> Table:
    """Lay out medians, their ratios to the lean way, and which heavy packages each way imports."""
    runs = len(answers[ways[0].name])
    lean_ms, lean_mib = medians(answers[ways[0].name])
    found = Table(
        title=f"From process start to first answer, median of {runs}",
        caption=f"ratios are to {TITLES['lean']}",
    )
    found.add_column("way", no_wrap=True)
    for heading in ("ms", "ratio", "peak MiB", "ratio", "modules"):
        found.add_column(heading, justify="right")
    found.add_column("of them")
    for way in ways:
        milliseconds, mebibytes = medians(answers[way.name])
        first = answers[way.name][0]
        found.add_row(
            TITLES[way.name] + (f" {way.variant}" if way.variant else ""),
            f"{milliseconds:,.0f}",
            f"{milliseconds / lean_ms:.1f}",
            f"{mebibytes:,.0f}",
            f"{mebibytes / lean_mib:.1f}",
            f"{first.modules:,}",
            ", ".join(first.watched) or f"no {', '.join(WATCHED)}",
        )
    return found


def medians(answers: Sequence[FirstAnswer]) -> tuple[float, float]:
    """Milliseconds to the first answer, and peak MiB."""
    return median(answer.duration_ms for answer in answers), median(answer.peak_memory_mib for answer in answers)


if __name__ == "__main__":
    sys.exit(main())
