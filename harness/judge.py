"""Run the suites over a candidate in one fresh pytest process and bring back what happened.

Trusts nothing of that process but a complete evidence file of this very run about this very
candidate. Exit codes are not enough: a test that calls `os._exit(0)` has one of 0.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.artifact import open_artifact
from harness.documents import write_text
from harness.errors import DocumentError
from harness.evidence import Evidence, MeasureKey, read_evidence
from harness.manifest import content_digest
from harness.progress import Progress, Silence
from harness.serving import Runtime
from harness.session import FreshProcess, Host, SessionOrder
from harness.suite import FoundSuite, Promise

EVIDENCE_FILE = "evidence.json"
BENCHMARK_FILE = "benchmark.json"
LOG_FILE = "judge.log"
DEFAULT_TIME_LIMIT_S = 900
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


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be judged, against what, with which suites.

    `baseline` is the release that is served now, which the candidate may not be slower than; None where there is none.
    `runtime` is what runs the models of both.
    """

    candidate: Path
    reference: Path
    data: tuple[Path, ...]
    policy: Path | None
    suites: Mapping[str, FoundSuite]
    state: Path
    baseline: Path | None = None
    runtime: Runtime = Runtime.ONNXRUNTIME

    def promised(self) -> dict[MeasureKey, Promise]:
        """Every measure that the evidence must hold."""
        variants = _variants(self.candidate)
        baseline = _variants(self.baseline) if self.baseline else ()
        promised: dict[MeasureKey, Promise] = {}
        for found in self.suites.values():
            promised.update(found.suite.promised(variants, baseline))
        return promised


def _variants(folder: Path) -> tuple[str, ...]:
    return tuple(variant.value for variant in open_artifact(folder).variants)


def judge(
    question: Question,
    run_folder: Path,
    *,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Progress | None = None,
    environment: Mapping[str, str] | None = None,
    host: Host | None = None,
    stop_when_rejected: bool = False,
) -> Evidence:
    """Judge a candidate.

    Args:
        question: what to judge.
        run_folder: where evidence, benchmark data and the log of the session go.
        time_limit_s: after so many seconds the session is killed.
        progress: who is told which test runs.
        environment: the environment of the process; this one's by default. `PYTEST_*` is left out.
        host: where the session runs; a fresh process by default.
        stop_when_rejected: end the session at the first broken limit, after which the rest decides nothing.

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
    arguments = _arguments(question, folder, workplace, run_id)
    if stop_when_rejected:
        arguments.insert(0, "--harness-stop-when-rejected")
    order = SessionOrder(arguments, workplace, folder / LOG_FILE, time_limit_s)
    try:
        ended = (host or FreshProcess(environment)).run(order, progress or Silence())
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    problems = [] if ended is None else [f"{ended}; the last lines are in {run_folder / LOG_FILE}"]
    evidence = _read(evidence_path, run_id, digest, problems)
    if content_digest(question.candidate) != digest:
        evidence = replace(evidence, problems=(*evidence.problems, "the candidate's files changed while it was judged"))
    return replace(evidence, suites=tuple(sorted(set(evidence.suites) | set(question.suites))))


def _arguments(question: Question, folder: Path, workplace: Path, run_id: str) -> list[str]:
    command = [
        "-c", str(workplace / "pytest.ini"), "--rootdir", str(workplace), "--confcutdir", str(workplace),
        "--disable-plugin-autoload", "-p", "no:cacheprovider", "-p", "harness.plugin", "-p", "pytest_benchmark.plugin",
        "--strict-markers", "-ra", "--tb=short", "--color=no",
        "--benchmark-json", str(folder / BENCHMARK_FILE), "--benchmark-disable-gc", "--benchmark-quiet",
        "--candidate", str(question.candidate.resolve()), "--reference", str(question.reference.resolve()),
        "--harness-evidence", str(folder / EVIDENCE_FILE), "--harness-run-id", run_id, "--harness-state", str(question.state.resolve()),
        "--harness-runtime", question.runtime.value,
    ]  # fmt: skip
    for path in question.data:
        command += ["--harness-data", str(path.resolve())]
    if question.baseline is not None:
        command += ["--harness-baseline", str(question.baseline.resolve())]
    if question.policy is not None:
        command += ["--harness-policy", str(question.policy.resolve())]
    return [*command, "--pyargs", *(found.package for found in question.suites.values())]


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
