#!/usr/bin/env python3
"""What a wrong number of threads costs where a process may not use the whole machine.

    python benchmarks/threads.py --candidate models/bus_ner_onnx

The same export answers the same queries with the threads that `harness.machine` counts, with as many as onnxruntime
takes by itself, and with one for each CPU of the host: in a process that may use everything, in one pinned to a CPU,
and in one whose cgroup grants half a core. In each process the three take turns in blocks of calls, each begun with a
fresh quota, or what one of them overdraws would be held against the next. How long a block is matters under a quota: a
short burst may fit into what a period grants, a long one is throttled however it is run. So both are measured.

`taskset` does not hold onnxruntime: the threads that it counts by itself it binds to cores of the host, so the column
CPUs may show more of them than the process was given.

The group is created below this process's own and removed at the end; where the system refuses that, what it refused is
printed, and that row is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.errors import HarnessError, one_line
from harness.inference import NERInference
from harness.judging_data import default_data
from harness.labelled_data import read_labelled_set
from harness.machine import CGROUPS, PROC, cpu_allowance, cpu_frequency
from harness.paired.contest import garbage_kept
from harness.paired.draw import BatchDraw, Texts
from harness.paired.estimate import quantile
from harness.timing import SystemClock

MARK = "threads "
PERIOD_US = 100_000
QUOTA_US = PERIOD_US // 2
WARM_UP_CALLS = 5
_NS_PER_MS = 1e6
_WIDTH_OF_FILES = 120
_THIS = (sys.executable, str(Path(__file__).resolve()))
# $0 is the file that takes in processes, $@ what to become in there.
_ENTER = ("sh", "-c", 'echo $$ > "$0" && exec "$@"')


class RefusedError(HarnessError):
    """The system gives no group with a quota of its own."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One way to choose the threads, and what calls took.

    Attributes:
        name: how the number was chosen.
        threads: how many there are in a model run.
        cpus: how many CPUs they may run on.
        cpu_ms: CPU time of a call, of all threads together.
        p50_ms: time of a call, as are the other two.
    """

    name: str
    threads: int
    cpus: int
    cpu_ms: float
    p50_ms: float
    p95_ms: float
    mean_ms: float


@dataclass(frozen=True, slots=True)
class Place:
    """A process that was measured, and how much of the machine it had."""

    title: str
    calls: int
    host: int
    affinity: int
    quota: float | None
    usable: int
    ways: tuple[Timed, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure in three processes and print the table; 2 if one of them fails."""
    options = parse(arguments)
    if options.measure:
        print(MARK + json.dumps(measured(options)), flush=True)
        return 0
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES, highlight=False)
    before = cpu_frequency()
    try:
        for calls in options.calls:
            console.print(table(list(measured_places(options, calls, console))))
    except HarnessError as err:
        print(err, file=sys.stderr)
        return 2
    console.print(f"CPUs before: {before or 'not said'}; after: {cpu_frequency() or 'not said'}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--candidate", type=Path, default=Path("models/bus_ner_onnx"), metavar="DIR")
    parser.add_argument(
        "--calls", type=int, nargs="+", default=[10, 100], metavar="N", help="calls in a block (default: 10, then 100)"
    )
    parser.add_argument("--total", type=int, default=400, metavar="N", help="calls of each way (default: 400)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="queries in a call (default: 1)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# -- the three processes -----------------------------------------------------------------------------------------------


def measured_places(options: argparse.Namespace, calls: int, console: Console) -> Iterator[Place]:
    """Measure unrestricted, pinned to one CPU, and with a quota of half a core."""
    command = [*_THIS, "--measure", "--candidate", str(options.candidate)]
    command += ["--calls", str(calls), "--total", str(options.total), "--batch", str(options.batch)]
    cpu = min(os.sched_getaffinity(0))
    yield answered("unrestricted", command)
    yield answered(f"taskset -c {cpu}", ["taskset", "-c", str(cpu), *command])
    try:
        with half_a_core() as entering:
            yield answered("quota of half a core", [*entering, *command])
    except RefusedError as err:
        console.print(f"no quota of half a core could be had: {err}")


def answered(title: str, command: Sequence[str]) -> Place:
    """Run one process to its end and read what it measured.

    Raises:
        HarnessError: it cannot be started, or ends without an answer.
    """
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as err:
        message = f"{command[0]} cannot be run ({err.strerror}). Install it."
        raise HarnessError(message) from err
    line = next((line for line in ended.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None:
        message = (
            f"{title}: the process ended with exit code {ended.returncode} and no answer: {one_line(ended.stderr)}"
        )
        raise HarnessError(message)
    if ended.stderr:
        print(f"{title}: {len(ended.stderr.splitlines())} lines, such as {one_line(ended.stderr)}", file=sys.stderr)
    content = json.loads(line.removeprefix(MARK))
    ways = tuple(Timed(**way) for way in content.pop("ways"))
    return Place(title, **content, ways=ways)


@contextmanager
def half_a_core() -> Iterator[list[str]]:
    """Create a group that is granted half a core, and give what to begin a command with so that it runs in there.

    Raises:
        RefusedError: neither version of cgroups lets this process have one, nor does systemd; all refusals are named.
    """
    refusals = []
    for group, limits in possible_groups():
        try:
            group.mkdir()
        except OSError as err:
            refusals.append(f"mkdir {group}: {err.strerror}")
            continue
        try:
            if refusal := refused(group, limits):
                refusals.append(refusal)
                continue
            yield [*_ENTER, str(group / "cgroup.procs")]
            return
        finally:
            group.rmdir()
    if refusal := refused_by_systemd():
        raise RefusedError("; ".join([*refusals, refusal]))
    yield list(_SYSTEMD)


def possible_groups() -> Iterator[tuple[Path, dict[str, int | str]]]:
    """Name a new group below the own one of either version, with the files that set its quota."""
    for line in (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        name = f"{path.strip('/')}/harness-threads-{os.getpid()}".lstrip("/")
        if not controllers:
            yield CGROUPS / name, {"cpu.max": f"{QUOTA_US} {PERIOD_US}"}
        elif "cpu" in controllers.split(","):
            yield CGROUPS / "cpu" / name, {"cpu.cfs_period_us": PERIOD_US, "cpu.cfs_quota_us": QUOTA_US}


def refused(group: Path, limits: dict[str, int | str]) -> str:
    """Set the limits of a group; tell what was refused."""
    for name, value in limits.items():
        if not (group / name).exists():
            return f"{group} has no {name}: the controller is not enabled there"
        try:
            (group / name).write_text(str(value), encoding="ascii")
        except OSError as err:
            return f"{value} > {group / name}: {err.strerror}"
    return ""


_SYSTEMD = ("systemd-run", "--quiet", "--scope", "-p", f"CPUQuota={100 * QUOTA_US // PERIOD_US}%", "--")


def refused_by_systemd() -> str:
    """Ask systemd for a group; tell what it refused."""
    try:
        ended = subprocess.run([*_SYSTEMD, "true"], capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as err:
        return f"systemd-run: {err.strerror}"
    return f"systemd-run: {one_line(ended.stderr)}" if ended.returncode else ""


# -- in each of them ---------------------------------------------------------------------------------------------------


def measured(options: argparse.Namespace) -> dict[str, object]:
    """Let the three ways take turns in this process."""
    (calls,) = options.calls
    allowance = cpu_allowance()
    NERInference(options.candidate)  # the first one starts what all of them share
    asked = {"as counted": allowance.usable, "onnxruntime's own": 0, "one per host CPU": allowance.host}
    ways = [Way(name, options.candidate, threads) for name, threads in asked.items()]
    texts = read_labelled_set(default_data(), labels=ways[0].model.labels).texts
    draw = BatchDraw(texts, options.batch)
    take_turns(ways, [draw(number) for number in range(options.total)], calls)
    return {
        **asdict(allowance),
        "calls": calls,
        "usable": allowance.usable,
        "ways": [asdict(way.timed()) for way in ways],
    }


class Way:
    """A model with so many threads, and what its calls took so far."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self._name = name
        others = own_threads()
        self.model = NERInference(folder, threads=threads)
        # whoever calls works too
        self._threads = (own_threads() - others) | {os.getpid()}
        self._clock = SystemClock()
        self._durations: list[int] = []
        self._cpu_ns = 0

    def answer(self, block: Sequence[Texts]) -> None:
        """Answer a block of calls."""
        begin_cpu = time.process_time_ns()
        for texts in block:
            begin = self._clock.now_ns()
            self.model.batch_extract(texts)
            self._durations.append(self._clock.now_ns() - begin)
        self._cpu_ns += time.process_time_ns() - begin_cpu

    def timed(self) -> Timed:
        """Sum up."""
        count = len(self._durations)
        middle, slow = (quantile(self._durations, share).value_ns / _NS_PER_MS for share in (0.50, 0.95))
        cpus = frozenset[int]().union(*map(os.sched_getaffinity, self._threads))
        mean = sum(self._durations) / count / _NS_PER_MS
        return Timed(self._name, len(self._threads), len(cpus), self._cpu_ns / count / _NS_PER_MS, middle, slow, mean)


def own_threads() -> frozenset[int]:
    """Name the threads of this process."""
    return frozenset(int(entry.name) for entry in (PROC / "self" / "task").iterdir())


def take_turns(ways: Sequence[Way], inputs: Sequence[Texts], calls: int) -> None:
    """Let every way answer every input, in blocks of so many calls, in an order that rotates from block to block."""
    for texts in inputs[:WARM_UP_CALLS]:
        for way in ways:
            way.model.batch_extract(texts)
    with garbage_kept():
        for turn, first in enumerate(range(0, len(inputs), calls)):
            for place in range(len(ways)):
                time.sleep(PERIOD_US / 1e6)  # the next period has its quota whole
                ways[(turn + place) % len(ways)].answer(inputs[first : first + calls])


# -- the table ---------------------------------------------------------------------------------------------------------


def table(places: Sequence[Place]) -> Table:
    """Lay out each way's times, and their ratios to those with the threads that were counted."""
    found = Table(
        title=f"{places[0].calls} calls in a row",
        caption="CPUs: on which these threads may run; ratios are to the threads as counted in the same process",
    )
    for heading in ("process", "threads"):
        found.add_column(heading, no_wrap=True)
    for heading in ("", "CPUs", "CPU ms", "p50 ms", "ratio", "p95 ms", "ratio", "mean ms", "ratio"):
        found.add_column(heading, justify="right")
    for place in places:
        quota = "none" if place.quota is None else f"{place.quota:g}"
        facts = (place.title, f"host {place.host}, affinity {place.affinity}", f"quota {quota}, usable {place.usable}")
        for fact, way in zip(facts, place.ways, strict=True):
            found.add_row(
                fact, way.name, f"{way.threads}", f"{way.cpus}", f"{way.cpu_ms:.2f}", *times(way, place.ways[0])
            )
        found.add_section()
    return found


def times(way: Timed, counted: Timed) -> Iterator[str]:
    """Write each time and its ratio to that with the threads that were counted."""
    pairs = ((way.p50_ms, counted.p50_ms), (way.p95_ms, counted.p95_ms), (way.mean_ms, counted.mean_ms))
    for value, base in pairs:
        yield f"{value:.2f}"
        yield f"{value / base:.2f}"


if __name__ == "__main__":
    sys.exit(main())
