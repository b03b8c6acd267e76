"""Run the suites over a candidate in one fresh pytest process and bring back what happened.

Trusts nothing of that process but a complete evidence file of this very run about this very
candidate. Exit codes are not enough: a test that calls `os._exit(0)` has one of 0.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.artifact import open_artifact
from harness.documents import write_text
from harness.errors import DocumentError, one_line
from harness.evidence import Evidence, MeasureKey, Unit, read_evidence
from harness.manifest import content_digest
from harness.progress import MARK, Progress, Silence
from harness.suite import FoundSuite

EVIDENCE_FILE = "evidence.json"
BENCHMARK_FILE = "benchmark.json"
LOG_FILE = "judge.log"
DEFAULT_TIME_LIMIT_S = 900
# How long the last output of a session that has ended is waited for.
_LAST_WORDS_S = 2
# The judging session's own configuration; the user's ini files are never read.
_INI = """\
[pytest]
addopts =
xfail_strict = true
consider_namespace_packages = true
python_files = test_*.py
filterwarnings =
    default
"""
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
class Question:
    """What is to be judged, against what, with which suites."""

    candidate: Path
    reference: Path
    data: tuple[Path, ...]
    policy: Path | None
    suites: Mapping[str, FoundSuite]
    state: Path

    def promised(self) -> dict[MeasureKey, Unit]:
        """Every measure that the evidence must hold."""
        variants = [variant.value for variant in open_artifact(self.candidate).variants]
        promised: dict[MeasureKey, Unit] = {}
        for found in self.suites.values():
            promised.update(found.suite.promised(variants))
        return promised


def judge(
    question: Question,
    run_folder: Path,
    *,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Progress | None = None,
    environment: Mapping[str, str] | None = None,
) -> Evidence:
    """Judge a candidate.

    Args:
        question: what to judge.
        run_folder: where evidence, benchmark data and the log of the session go.
        time_limit_s: after so many seconds the session is killed.
        progress: who is told which test runs.
        environment: the environment of the process; this one's by default. `PYTEST_*` is left out.

    Returns:
        What happened. If the session crashed, hung or wrote no valid evidence, evidence without
        measures whose `problems` say so.
    """
    run_id = uuid.uuid4().hex
    folder = run_folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    evidence_path = folder / EVIDENCE_FILE
    evidence_path.unlink(missing_ok=True)
    workplace = folder / "workplace"
    shutil.rmtree(workplace, ignore_errors=True)  # pytest would read a conftest.py that is left in it
    workplace.mkdir()
    write_text(workplace / "pytest.ini", _INI)
    digest = content_digest(question.candidate)
    process = _Session(
        _command(question, folder, workplace, run_id),
        _clean_environment(os.environ if environment is None else environment),
        workplace,
        folder / LOG_FILE,
    )
    try:
        ended = process.run(time_limit_s, progress or Silence())
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    problems = [] if ended is None else [f"{ended}; the last lines are in {run_folder / LOG_FILE}"]
    evidence = _read(evidence_path, run_id, digest, problems)
    if content_digest(question.candidate) != digest:
        evidence = replace(evidence, problems=(*evidence.problems, "the candidate's files changed while it was judged"))
    return replace(evidence, suites=tuple(sorted(set(evidence.suites) | set(question.suites))))


def _command(question: Question, folder: Path, workplace: Path, run_id: str) -> list[str]:
    command = [
        sys.executable, "-m", "pytest",
        "-c", str(workplace / "pytest.ini"), "--rootdir", str(workplace), "--confcutdir", str(workplace),
        "--disable-plugin-autoload", "-p", "no:cacheprovider", "-p", "harness.plugin", "-p", "pytest_benchmark.plugin",
        "--strict-markers", "-ra", "--tb=short", "--color=no",
        "--benchmark-json", str(folder / BENCHMARK_FILE), "--benchmark-disable-gc", "--benchmark-quiet",
        "--candidate", str(question.candidate.resolve()), "--reference", str(question.reference.resolve()),
        "--harness-evidence", str(folder / EVIDENCE_FILE), "--harness-run-id", run_id, "--harness-state", str(question.state.resolve()),
    ]  # fmt: skip
    for path in question.data:
        command += ["--harness-data", str(path.resolve())]
    if question.policy is not None:
        command += ["--harness-policy", str(question.policy.resolve())]
    return [*command, "--pyargs", *(found.package for found in question.suites.values())]


def _clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    # PYTHONOPTIMIZE takes the assertions out of a suite's helpers
    dropped = ("PYTEST_", "HYPOTHESIS_", "PYTHONOPTIMIZE")
    kept = {name: value for name, value in environment.items() if not name.startswith(dropped)}
    return {**kept, **_ENVIRONMENT}


def _read(path: Path, run_id: str, digest: str, problems: Sequence[str]) -> Evidence:
    try:
        evidence = read_evidence(path)
    except DocumentError as err:
        return _nothing(run_id, digest, [*problems, f"the judging session left no complete evidence: {err}"])
    if evidence.run_id != run_id:
        return _nothing(run_id, digest, [*problems, f"{path} is evidence of another run"])
    if evidence.candidate_digest != digest:
        problems = [*problems, "the evidence is about other files than the candidate's"]
    return replace(evidence, problems=(*problems, *evidence.problems))


def _nothing(run_id: str, digest: str, problems: Sequence[str]) -> Evidence:
    return Evidence(run_id, digest, (), (), 0, 0, (), (), tuple(problems), {})


class _Session:
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
            self._kill(process)
            # with a limit: a process that left the group may hold the pipe open for ever
            follower.join(_LAST_WORDS_S)
        if self._error is not None:
            raise self._error
        return self._complaint(code, time_limit_s)

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
            self._kill(process)

    def _stop(self, process: subprocess.Popen[str]) -> None:
        self._timed_out = True
        self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen[str]) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # the group is gone already

    def _complaint(self, code: int, time_limit_s: float) -> str | None:
        if self._timed_out:
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
