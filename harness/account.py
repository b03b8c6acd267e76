"""What a run left in its folder, read back as values: for everything that tells people about a run.

Reads the verdict strictly, since nothing can be told without it; evidence and benchmark data that are missing or damaged
become a note. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.documents import Json, read_document, read_json_object
from harness.errors import DocumentError, one_line
from harness.evidence import measure_from_json, read_evidence
from harness.results import OLDEST_VERDICT, VERDICT_FILE, VERDICT_SCHEMA, VERDICT_VERSION
from harness.verdict import Decision, Finding, Limit, Standing

EVIDENCE_FILE = "evidence.json"
BENCHMARK_FILE = "benchmark.json"


@dataclass(frozen=True, slots=True)
class Subject:
    """What was judged, against what, by which rules.

    Data and policy are digests by path, a policy of none the default. Without a baseline, the release that was served
    when the run began, its path and its digest are empty.
    """

    candidate: str
    candidate_digest: str
    reference: str
    reference_digest: str
    data: Mapping[str, str]
    policy: Mapping[str, str]
    suites: tuple[str, ...]
    line: str
    stages_s: Mapping[str, float]
    baseline: str = ""
    baseline_digest: str = ""


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of one benchmark, ns; without a baseline the subject was timed alone.

    `control_ns` is of work that was the same in every turn, so what varies in it came from outside. What older runs did
    not note is empty, or 0.
    """

    name: str
    variant: str
    subject_ns: tuple[float, ...]
    baseline_ns: tuple[float, ...]
    control_ns: tuple[float, ...] = ()
    pairs_per_round: int = 0
    baseline_name: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """Everything that a run left, and in `notes` what of it could not be read."""

    run: str
    decision: Decision
    findings: tuple[Finding, ...]
    problems: tuple[str, ...]
    subject: Subject
    environment: Mapping[str, str]
    evidence_digest: str | None
    timings: tuple[Timings, ...]
    suite_seconds: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings that reject the candidate."""
        return tuple(finding for finding in self.findings if finding.rejects)

    @property
    def undecided(self) -> tuple[Finding, ...]:
        """The findings that leave open whether a limit is kept."""
        return tuple(finding for finding in self.findings if finding.open)

    @property
    def other_problems(self) -> tuple[str, ...]:
        """The problems that are more than the open findings said once again."""
        said = tuple(f"{finding}: " for finding in self.undecided)
        return tuple(problem for problem in self.problems if not (said and problem.startswith(said)))

    @property
    def scopes(self) -> tuple[str, ...]:
        """What was measured: the variants, and the release as a whole."""
        return tuple(dict.fromkeys(finding.measure.key.scope for finding in self.findings))

    def finding(self, suite: str, scope: str, name: str) -> Finding | None:
        """Find one measure's finding."""
        keys = (suite, scope, name)
        found = (one for one in self.findings if (one.measure.key.suite, one.measure.key.scope) == keys[:2])
        return next((one for one in found if one.measure.key.name == name), None)

    @property
    def was_released(self) -> bool:
        """Whether `harness release` made the candidate, in the run's own folder; `harness judge` accepts nothing."""
        candidate = Path(self.subject.candidate)
        return candidate.name == "candidate" and candidate.parent.name == self.run


def read_account(folder: Path) -> Account:
    """Read a run's folder.

    Raises:
        DocumentError: its verdict is missing, damaged or of another version.
    """
    path = folder / VERDICT_FILE
    document = read_document(path, VERDICT_SCHEMA, VERDICT_VERSION, oldest=OLDEST_VERDICT)
    notes: list[str] = []
    timings = _timings(folder / BENCHMARK_FILE, notes)
    seconds = _suite_seconds(folder / EVIDENCE_FILE, notes)
    try:
        return _account(document, timings, seconds, tuple(notes))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as err:
        message = f"{path} is damaged ({type(err).__name__}: {one_line(err)}). Judge again, or restore it."
        raise DocumentError(message) from err


def _account(
    document: Json, timings: tuple[Timings, ...], seconds: Mapping[str, float], notes: tuple[str, ...]
) -> Account:
    return Account(
        run=document["run"],
        decision=Decision(document["decision"]),
        findings=tuple(_finding(entry) for entry in document["findings"]),
        problems=tuple(map(str, document["problems"])),
        subject=_subject(document["subject"]),
        environment={str(name): str(fact) for name, fact in document["environment"].items()},
        evidence_digest=document["evidence_digest"],
        timings=timings,
        suite_seconds=seconds,
        notes=notes,
    )


def _finding(entry: Json) -> Finding:
    bounds = entry["limit"]
    limit = None if bounds is None else Limit(bounds["min"], bounds["max"], bounds.get("undecided") == "warn")
    return Finding(measure_from_json(entry), limit, Standing(entry["standing"]))


def _subject(entry: Json) -> Subject:
    policy = entry["policy"]
    return Subject(
        candidate=str(entry["candidate"]),
        candidate_digest=str(entry["candidate_digest"]),
        reference=str(entry["reference"]),
        reference_digest=str(entry["reference_digest"]),
        data=dict(entry["data"]),
        policy=dict(policy) if isinstance(policy, dict) else {},
        suites=tuple(entry["suites"]),
        line=str(entry.get("line", "")),  # runs from before there were release lines have none
        stages_s={name: float(seconds) for name, seconds in entry["stages_s"].items()},
        baseline=str(entry.get("baseline") or ""),
        baseline_digest=str(entry.get("baseline_digest") or ""),
    )


def _timings(path: Path, notes: list[str]) -> tuple[Timings, ...]:
    """Read the benchmark data; a run without the latency suite has none, or an empty file."""
    if not path.is_file() or not path.stat().st_size:
        return ()
    try:
        return tuple(_timing(benchmark) for benchmark in read_json_object(path)["benchmarks"])
    except (DocumentError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as err:
        notes.append(f"{path.name} is left out, it cannot be read: {one_line(err)}")
        return ()


def _timing(benchmark: Mapping[str, Any]) -> Timings:
    stored = benchmark["extra_info"]
    alone = [seconds * 1e9 for seconds in benchmark["stats"].get("data", ())]
    return Timings(
        name=str(benchmark["name"]).partition("[")[0].removeprefix("test_"),
        variant=str((benchmark["params"] or {}).get("variant", "")),
        subject_ns=_durations(stored.get("subject_ns", alone)),
        baseline_ns=_durations(stored.get("baseline_ns", ())),
        control_ns=_durations(stored.get("control_ns") or ()),
        pairs_per_round=int(stored.get("pairs_per_round") or 0),
        baseline_name=str(stored.get("baseline_name") or ""),
    )


def _durations(values: Any) -> tuple[float, ...]:
    return tuple(duration for value in values if (duration := float(value)) > 0)


def _suite_seconds(path: Path, notes: list[str]) -> dict[str, float]:
    try:
        evidence = read_evidence(path)
    except DocumentError as err:
        notes.append(str(err))
        return {}
    seconds = dict.fromkeys(evidence.suites, 0.0)
    for outcome in evidence.outcomes:
        seconds[outcome.suite] = seconds.get(outcome.suite, 0.0) + outcome.duration_s
    return seconds
