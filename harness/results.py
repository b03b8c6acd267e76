"""What a run leaves behind in `results/<run>/`: verdict, evidence, benchmark data, log.

Writes and reads the verdict document; decides nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.artifact import file_digest
from harness.documents import Json, write_json
from harness.evidence import Evidence, measure_to_json
from harness.timing import Clock, SystemClock
from harness.verdict import Finding, Limit, Verdict

VERDICT_SCHEMA = "harness-verdict"
# 1 (2026-11): first. 2 (2026-11): findings have intervals, and may be undecided.
VERDICT_VERSION = 2
OLDEST_VERDICT = 1
VERDICT_FILE = "verdict.json"


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its name, which sorts by time, and its folder."""

    name: str
    folder: Path

    @property
    def verdict_path(self) -> Path:
        """Where the verdict is."""
        return self.folder / VERDICT_FILE


def new_run(results: Path, clock: Clock | None = None) -> Run:
    """Make the folder of a new run."""
    moment = (clock or SystemClock()).utc()
    milliseconds = moment.microsecond // 1000
    name = f"{moment:%Y%m%dT%H%M%S}.{milliseconds:03d}Z-{uuid.uuid4().hex[:6]}"
    folder = results / name
    folder.mkdir(parents=True)
    return Run(name, folder)


def write_verdict(run: Run, verdict: Verdict, evidence: Evidence, subject: Mapping[str, Any]) -> Json:
    """Write the verdict beside its evidence and return the document.

    Args:
        run: where it goes.
        verdict: the decision.
        evidence: what it rests on.
        subject: what was judged: paths, digests, data, policy, how long each stage took.
    """
    evidence_path = run.folder / "evidence.json"
    document: Json = {
        "schema": VERDICT_SCHEMA,
        "version": VERDICT_VERSION,
        "run": run.name,
        "decision": verdict.decision.value,
        "broken": [str(finding) for finding in verdict.broken],
        "problems": list(verdict.problems),
        "subject": dict(subject),
        "evidence_digest": file_digest(evidence_path) if evidence_path.is_file() else None,
        "findings": [_finding_to_json(finding) for finding in verdict.findings],
        "environment": dict(evidence.environment),
    }
    write_json(run.verdict_path, document)
    return document


def _finding_to_json(finding: Finding) -> Json:
    return {
        **measure_to_json(finding.measure),
        "limit": _limit_to_json(finding.limit),
        "standing": finding.standing.value,
    }


def _limit_to_json(limit: Limit | None) -> Json | None:
    if limit is None:
        return None
    choice = {"undecided": "warn"} if limit.warn_undecided else {}
    return {"min": limit.minimum, "max": limit.maximum, **choice}
