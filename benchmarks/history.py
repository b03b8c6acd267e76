#!/usr/bin/env python3
"""How well changes are found in a history, and how fast a long history opens.

    python benchmarks/history.py changes      # 300 synthetic runs with three planted changes, beside a plain 5 % rule
    python benchmarks/history.py noise        # how noisy the ratios of real runs are: --results DIR
    python benchmarks/history.py opening      # 10,000 runs of 131 measures: the list, and one measure

The planted changes are +10 % at run 80, -8 % at run 170 and +5 % at run 240; what is between them is noise of three
kinds. A change counts as found within five runs of where it is, once; everything else that is said is false.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from harness.changes import change_points
from harness.history import HISTORY_FILE, Entry, entry_line, read_history
from harness.timing import SystemClock

RUNS = 300
PLANTED = ((80, 1.10), (170, 0.92), (240, 1.05))
NEAR = 5
SERIES = 100
STABLE_SERIES = 300
PLAIN_SHARE = 0.05
LONG = 10_000
OPENINGS = 5
FIXTURE = Path(__file__).parent.parent / "tests" / "histories" / "version-1.jsonl"

Values = NDArray[np.float64]


def main() -> None:
    """Measure one thing and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("changes", "noise", "opening"))
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="runs, for `noise`")
    options = parser.parse_args()
    measurements: dict[str, Callable[[], None]] = {
        "changes": measure_changes,
        "noise": lambda: measure_noise(options.results),
        "opening": measure_opening,
    }
    measurements[options.what]()


# --- changes


def quiet(random: np.random.Generator) -> Values:
    """Noise of 2 %, the runs independent."""
    return np.asarray(np.exp(random.normal(0, 0.02, RUNS)))


def with_outliers(random: np.random.Generator) -> Values:
    """Noise of 3 %, and every fiftieth run held up by 10 to 50 %."""
    held_up = np.where(random.random(RUNS) < 0.02, random.uniform(1.1, 1.5, RUNS), 1.0)
    return np.asarray(np.exp(random.normal(0, 0.03, RUNS)) * held_up)


def drifting(random: np.random.Generator) -> Values:
    """Noise of 2 % in which each run keeps three tenths of what the one before was off: against the assumptions."""
    noise = random.normal(0, 0.02, RUNS)
    for run in range(1, RUNS):
        noise[run] += 0.3 * noise[run - 1]
    return np.asarray(np.exp(noise))


NOISES = (quiet, with_outliers, drifting)


def plant(values: Values) -> Values:
    """Change a series at the planted places."""
    changed: Values = values.copy()
    for place, factor in PLANTED:
        changed[place:] *= factor
    return changed


def by_test(values: Values) -> list[int]:
    """Ask the harness."""
    return [one.index for one in change_points(list(values))]


def by_previous(values: Values) -> list[int]:
    """A plain rule: 5 % from the run before."""
    return [run for run in range(1, RUNS) if abs(values[run] / values[run - 1] - 1) > PLAIN_SHARE]


def by_recent(values: Values) -> list[int]:
    """A plain rule: 5 % from the median of the ten runs before."""
    return [run for run in range(10, RUNS) if abs(values[run] / np.median(values[run - 10 : run]) - 1) > PLAIN_SHARE]


RULES: tuple[tuple[str, Callable[[Values], list[int]]], ...] = (
    ("E-Divisive", by_test),
    ("5 % from the run before", by_previous),
    ("5 % from the median of ten", by_recent),
)


@dataclass(frozen=True, slots=True)
class Score:
    """What a rule said of a series: how many planted changes it found, how far off, and what it said besides."""

    found: int
    offsets: tuple[int, ...]
    false: int


def score(said: Sequence[int]) -> Score:
    """Compare what was said with what was planted; a change that is said twice is found once and false once."""
    left = list(said)
    offsets = []
    for place, _ in PLANTED:
        near = [one for one in left if abs(one - place) <= NEAR]
        if near:
            nearest = min(near, key=lambda one: abs(one - place))
            left.remove(nearest)
            offsets.append(nearest - place)
    return Score(len(offsets), tuple(offsets), len(left))


def measure_changes() -> None:
    """Print what each rule finds, and what it says of series without a change."""
    print(f"{SERIES} series of {RUNS} runs, 3 changes planted in each; {STABLE_SERIES} stable series (first rule)")
    print(
        f"{'noise':15} {'rule':28} {'found':>10} {'exactly':>8} {'false a series':>15} {'stable with a false one':>24}"
    )
    for noise in NOISES:
        for title, rule in RULES:
            scores = [score(rule(plant(noise(np.random.default_rng(seed))))) for seed in range(SERIES)]
            found = sum(one.found for one in scores)
            exact = sum(offset == 0 for one in scores for offset in one.offsets)
            false = sum(one.false for one in scores) / SERIES
            stable = sum(bool(rule(noise(np.random.default_rng(10_000 + seed)))) for seed in range(STABLE_SERIES))
            of = len(PLANTED) * SERIES
            shares = f"{found:>4}/{of:<5} {exact:>4}/{of:<5} {false:>13.2f} {stable:>18}/{STABLE_SERIES}"
            print(f"{noise.__name__:15} {title:28} {shares}")
    clock = SystemClock()
    begin = clock.now_ns()
    example = change_points(list(plant(with_outliers(np.random.default_rng(0)))))
    print(f"one series of {RUNS}: {(clock.now_ns() - begin) / 1e9:.2f} s")
    for one in example:
        print(f"  run {one.index}: {(one.after / one.before - 1) * 100:+.1f} %, p = {one.p_value:.3f}")


# --- noise


def measure_noise(results: Path) -> None:
    """Print how far the measures of runs of the same files, on the same machine and data, lie apart."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in read_history(results):
        groups.setdefault((entry.digests.candidate, entry.digests.data, entry.machine.id), []).append(entry)
    runs = max(groups.values(), key=len)
    print(f"{len(runs)} runs of {runs[0].digests.candidate[:19]} on {runs[0].machine}")
    every = [run.measures() for run in runs]
    for key in sorted(every[-1]):
        values = [measures[key].value for measures in every if key in measures]
        if len(values) > 1 and max(values) > min(values) > 0:
            print(f"  {key!s:50} {len(values):3} runs, largest / smallest {max(values) / min(values):.3f}")


# --- opening


def measure_opening() -> None:
    """Make a history of 10,000 runs from a real one, and open it: in this process, and as the commands do."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        make_long(results)
        size = (results / HISTORY_FILE).stat().st_size
        print(f"{LONG} runs, {size / 2**20:.0f} MiB")
        commands: dict[str, list[str]] = {
            "harness history": ["history"],
            "harness history latency.int8.p50_ms": ["history", "latency.int8.p50_ms"],
            "harness compare": ["compare"],
        }
        ways: dict[str, Callable[[], object]] = {"read_history": partial(read_history, results)}
        for title, words in commands.items():
            ways[title] = partial(run_command, [*words, "--results", str(results)])
        for title, way in ways.items():
            seconds = []
            for _ in range(OPENINGS):
                begin = clock.now_ns()
                way()
                seconds.append((clock.now_ns() - begin) / 1e9)
            print(f"  {title:40} median {median(seconds):.2f} s, slowest {max(seconds):.2f} s")


def run_command(words: Sequence[str]) -> None:
    """Run a command as a person does, start of the interpreter included."""
    subprocess.run([sys.executable, "-m", "harness", *words], check=True, capture_output=True)  # noqa: S603


def make_long(results: Path) -> None:
    """Write 10,000 runs an hour apart, each with all measures and samples of a real run, and times of its own."""
    template = read_history_line(FIXTURE)
    measures, samples = template.measures(), template.samples()
    random = np.random.default_rng(0)
    with (results / HISTORY_FILE).open("wb") as stream:
        for number in range(LONG):
            moment = template.time + datetime.timedelta(hours=number)
            name = f"{moment:%Y%m%dT%H%M%S}.000Z-{number:06x}"
            factor = float(np.exp(random.normal(0, 0.03)))
            changed = {
                key: replace(one, value=one.value * factor) if key.suite == "latency" else one
                for key, one in measures.items()
            }
            entry = replace(template, run=name, time=moment, folder=name)
            stream.write(entry_line(entry, changed, samples) + b"\n")


def read_history_line(path: Path) -> Entry:
    """Read the first run of a history file."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / HISTORY_FILE).write_bytes(path.read_bytes())
        return read_history(Path(folder))[0]


if __name__ == "__main__":
    main()
