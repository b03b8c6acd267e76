"""Starts a fresh process, waits for its first answer, and tells what that took.

The other end of the pipe is `first_answer.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.errors import HarnessError, one_line
from harness.timing import Clock
from suites.latency.first_answer import MARK, WATCHED

PROGRAM = (sys.executable, str(Path(__file__).with_name("first_answer.py")))
TIMEOUT_S = 120.0
_KIB_PER_MIB = 1024
_NS_PER_MS = 1e6


class FreshProcessError(HarnessError):
    """A fresh process gave no answer."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to an answer: `lean`, `openvino`, `pytorch` or `optimum`, and the folder with the model."""

    name: str
    folder: Path
    variant: str | None = None

    def __str__(self) -> str:
        """Name it in messages."""
        return f"{self.name} ({self.variant})" if self.variant else self.name


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """What the way from the start of a process to its first answer took."""

    duration_ns: int
    peak_memory_kib: int
    modules: int
    watched: tuple[str, ...]
    entities: int

    def __post_init__(self) -> None:
        """Refuse numbers that no process has."""
        if min(self.duration_ns, self.peak_memory_kib, self.modules) <= 0 or self.entities < 0:
            message = f"durations, memory and module counts are above 0, not {self}"
            raise ValueError(message)

    @property
    def duration_ms(self) -> float:
        """Process start to first answer."""
        return self.duration_ns / _NS_PER_MS

    @property
    def peak_memory_mib(self) -> float:
        """Peak resident set."""
        return self.peak_memory_kib / _KIB_PER_MIB


def first_answer(
    way: Way, query: str, clock: Clock, *, program: Sequence[str] = PROGRAM, timeout_s: float = TIMEOUT_S
) -> FirstAnswer:
    """Start a process, ask it one query, and wait for its answer.

    Raises:
        FreshProcessError: it crashed, hung, or reported nothing that can be read.
    """
    request = {"way": way.name, "folder": str(way.folder.resolve()), "variant": way.variant, "query": query}
    with tempfile.TemporaryFile("w+", encoding="ascii") as question, tempfile.TemporaryFile() as complaints:
        question.write(f"{json.dumps(request)}\n")
        question.seek(0)
        begin = clock.now_ns()
        with subprocess.Popen(  # noqa: S603  # our own program
            program,
            stdin=question,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=_offline(),
            encoding="utf-8",
            errors="replace",  # the report is ASCII; what else a process prints is its own affair
        ) as process:
            line, hung = _report_of(process, timeout_s)
            duration_ns = clock.now_ns() - begin
        if line is None:
            how = f"gave no answer within {timeout_s:g} s" if hung else _ending(process.returncode, complaints)
            message = f"the fresh process for {way} {how}. Try it by hand: harness extract {way.folder}."
            raise FreshProcessError(message)
    return parse_report(line, duration_ns, str(way))


def _offline() -> dict[str, str]:
    # No way may spend its time, or find its files, on the network.
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def _report_of(process: subprocess.Popen[str], timeout_s: float) -> tuple[str | None, bool]:
    """Wait for the report, and tell whether the wait was ended by the time-out."""
    expired = threading.Event()

    def give_up() -> None:
        expired.set()
        process.kill()

    watchdog = threading.Timer(timeout_s, give_up)
    watchdog.start()
    try:
        return report_line(process.stdout or ()), expired.is_set()
    except BaseException:
        process.kill()
        raise
    finally:
        watchdog.cancel()


def report_line(output: Iterable[str]) -> str | None:
    """Find the report in what a process prints; whatever other packages print is passed over."""
    return next((line.removeprefix(MARK) for line in output if line.startswith(MARK)), None)


def parse_report(line: str, duration_ns: int, way: str) -> FirstAnswer:
    """Read the report of a process.

    Raises:
        FreshProcessError: it is not what `first_answer.py` prints.
    """
    try:
        report = json.loads(line)
        watched = tuple(name for name in WATCHED if name in report["watched"])
        return FirstAnswer(
            duration_ns, int(report["peak_memory_kib"]), int(report["modules"]), watched, int(report["entities"])
        )
    except (ValueError, KeyError, TypeError) as err:
        message = (
            f"the fresh process for {way} reported {one_line(line, 120)!r}, which cannot be read ({one_line(err)})."
        )
        raise FreshProcessError(message) from err


def _ending(returncode: int, complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
    how = f"was ended by signal {-returncode}" if returncode < 0 else f"ended with exit code {returncode}"
    return f"{how} before it answered: {one_line(lines[-1]) if lines else 'it said nothing'}"
