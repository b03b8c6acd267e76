"""Where a judging session runs: a fresh process, or a fork of one that has the reference loaded already.

Ends every session it starts, whatever that session does, and says how it ended. Reads no evidence
and decides nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.errors import CheckpointError, one_line
from harness.progress import MARK, Progress

# The plugin that holds the reference of a warm process.
WARM_REFERENCE = "harness-warm-reference"
# How long the last output of a session that has ended is waited for.
_LAST_WORDS_S = 2
# Threads and networks behave the same on every machine. One thread for PyTorch: on shared cores a second one
# mostly waits for the first (12.9 s of CPU against 4.2 s for 356 short queries, measured beside other work).
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, slots=True)
class SessionOrder:
    """One pytest session: its arguments, the folder it runs in, where its output goes, and how long it may take."""

    arguments: list[str]
    folder: Path
    log: Path
    time_limit_s: float


class Host(Protocol):
    """Something that runs judging sessions."""

    def run(self, order: SessionOrder, progress: Progress) -> str | None:
        """Run a session to its end; say what went wrong, if it did not end the way pytest does."""
        ...


class FreshProcess:
    """A new Python process for each session: what releases are judged in."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Take the environment of the process; this one's by default. `PYTEST_*` is left out."""
        self._environment = clean_environment(os.environ if environment is None else environment)

    def run(self, order: SessionOrder, progress: Progress) -> str | None:
        """See `Host`."""
        child = _Child([sys.executable, "-m", "pytest", *order.arguments], self._environment, order.folder, order.log)
        return child.run(order.time_limit_s, progress)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what would change how tests are chosen and run, and set what must be the same on every machine."""
    # PYTHONOPTIMIZE takes the assertions out of a suite's helpers
    dropped = ("PYTEST_", "HYPOTHESIS_", "PYTHONOPTIMIZE")
    kept = {name: value for name, value in environment.items() if not name.startswith(dropped)}
    return {**kept, **_ENVIRONMENT}


class WarmProcess:
    """A process with the reference loaded that forks itself for each session; see `harness.warm`.

    One session at a time. Use it as a context; at its end the process is gone.
    """

    def __init__(self, reference: Path, log: Path, environment: Mapping[str, str] | None = None) -> None:
        """Say which checkpoint to load, where the process may write what it has to say, and its environment."""
        self._environment = clean_environment(os.environ if environment is None else environment)
        self._reference = reference
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._save: Path | None = None

    def __enter__(self) -> WarmProcess:  # noqa: PYI034  # typing.Self came with Python 3.11
        """Start the process; it loads while others are started.

        Raises:
            OSError: it cannot be started.
        """
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own command line, no shell
                [sys.executable, "-m", "harness.warm", str(self._reference.resolve())],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                text=True,
                encoding="utf-8",
            )
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, and a session that is still running."""
        if self._process is not None:
            self._process.terminate()  # it ends its session, which is in a group of its own
            try:
                self._process.wait(_LAST_WORDS_S)
            except subprocess.TimeoutExpired:
                _kill_group(self._process.pid)
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(OSError):  # what was not sent yet has no reader any more
                        stream.close()
            self._process.wait()

    def wait_until_ready(self) -> None:
        """Wait until the reference is loaded.

        Raises:
            CheckpointError: it cannot be.
        """
        answer = self._receive()
        if "ready" not in answer:
            message = (
                answer.get("failed") or f"the judging process ended while it loaded {self._reference}; see {self._log}"
            )
            raise CheckpointError(str(message))

    def save_answers(self, path: Path) -> None:
        """Have the next session write every answer of the reference to a file."""
        self._save = path

    def load_answers(self, path: Path) -> None:
        """Take over the answers that another process's reference gave."""
        self._ask({"load": str(path.resolve())})

    def run(self, order: SessionOrder, progress: Progress) -> str | None:  # noqa: ARG002  # nobody watches one of many
        """See `Host`."""
        request: dict[str, object] = {
            "arguments": order.arguments,
            "folder": str(order.folder),
            "log": str(order.log),
            "time_limit_s": order.time_limit_s,
        }
        if self._save is not None:
            request["save"] = str(self._save.resolve())
            self._save = None
        answer = self._ask(request)
        if "code" not in answer:
            return f"the judging process itself ended; see {self._log}"
        return complaint(int(answer["code"]), order.time_limit_s, timed_out=bool(answer["timed_out"]))

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        if self._process is None or self._process.stdin is None:
            return {}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            return {}
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        """Read one answer; empty if there is nobody to give one."""
        if self._process is None or self._process.stdout is None:
            return {}
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        return answer


class _Child:
    """A child process in a process group of its own, so that nothing it starts outlives it."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
        self._command = command
        self._environment = environment
        self._folder = folder
        self._log = log
        self._timed_out = False
        self._error: BaseException | None = None

    def run(self, time_limit_s: float, progress: Progress) -> str | None:
        """Run to the end; say what went wrong, if it did not end the way pytest does."""
        process = subprocess.Popen(  # noqa: S603  # our own command line, no shell
            self._command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        watchdog = threading.Timer(time_limit_s, self._stop, [process])
        follower = threading.Thread(target=self._follow, args=[process, progress], daemon=True)
        watchdog.start()
        follower.start()
        try:
            code = process.wait()
        finally:
            watchdog.cancel()
            _kill_group(process.pid)
            # with a limit: a process that left the group may hold the pipe open for ever
            follower.join(_LAST_WORDS_S)
        if self._error is not None:
            raise self._error
        return complaint(code, time_limit_s, timed_out=self._timed_out)

    def _follow(self, process: subprocess.Popen[str], progress: Progress) -> None:
        """Keep the session's output until its last writer has gone; runs in a thread of its own."""
        try:
            if process.stdout is None:
                return
            with process.stdout as stream, self._log.open("w", encoding="utf-8") as log:
                for line in stream:
                    if line.startswith(MARK):
                        _show(line[len(MARK) :], progress)
                    else:
                        log.write(line)
        except BaseException as err:  # a full disk, or a screen that has gone: nobody reads the session any more
            self._error = err
            _kill_group(process.pid)

    def _stop(self, process: subprocess.Popen[str]) -> None:
        self._timed_out = True
        _kill_group(process.pid)


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # the group is gone already


def complaint(code: int, time_limit_s: float, *, timed_out: bool) -> str | None:
    """Say what was wrong with the way a session ended; nothing if pytest ended it."""
    if timed_out:
        return f"the judging session was killed at its time limit of {time_limit_s:g} s"
    if code < 0:
        names = {int(number): number.name for number in signal.Signals}
        return f"the judging session died of signal {names.get(-code, -code)}"
    # 0 and 1 are pytest's own words for "all passed" and "some failed"; the evidence says which
    return None if code in {0, 1} else f"the judging session ended with exit status {code}"


def _show(text: str, progress: Progress) -> None:
    try:
        state = json.loads(text)
        progress.now(f"judge {state['done'] + 1}/{state['of']}: {one_line(state['test'], 70)}")
    except (ValueError, KeyError, TypeError):
        return  # a line that only looks like progress; it decides nothing
