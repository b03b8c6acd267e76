"""What happened while a candidate was judged: measures, outcomes of tests, the machine.

Plain values and their JSON form. Nothing here knows what is good or bad.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from harness.documents import Json, read_document, write_json
from harness.errors import DocumentError, one_line

EVIDENCE_SCHEMA = "harness-evidence"
# 1 (2026-11): first.
EVIDENCE_VERSION = 1
VERSIONED_PACKAGES = (
    "ner-release-harness",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "numpy",
    "seqeval",
    "hypothesis",
    "pytest",
    "pytest-benchmark",
)


class Unit(Enum):
    """What a measure counts."""

    COUNT = "count"
    LOGIT = "logit"
    SHARE = "share"
    RATIO = "ratio"
    F1 = "F1"
    MEBIBYTE = "MiB"
    MILLISECOND = "ms"
    QUERIES_PER_SECOND = "queries/s"


RELEASE_SCOPE = "release"


@dataclass(frozen=True, slots=True, order=True)
class MeasureKey:
    """Which measure of which suite, and of what: a variant (`fp32`, `int8`) or the whole `release`."""

    suite: str
    scope: str
    name: str

    def __str__(self) -> str:
        """Write it as people and policies do: `parity.int8.label_agreement`."""
        return f"{self.suite}.{self.scope}.{self.name}"


@dataclass(frozen=True, slots=True)
class Measure:
    """One finite number, with whatever explains it (worst queries, values per type) in `details`."""

    key: MeasureKey
    value: float
    unit: Unit
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse NaN and infinity: they compare with no limit."""
        if not math.isfinite(self.value):
            message = f"measure {self.key} is {self.value}, which is no number to judge by"
            raise ValueError(message)


class Result(Enum):
    """How a test ended. Only `PASSED` and `FAILED` are judgements; the rest leave the question open."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    XPASSED = "xpassed"
    RERUN = "rerun"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test of one suite ended, and what it measured."""

    suite: str
    test: str
    result: Result
    duration_s: float
    reason: str = ""
    limit_broken: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """The whole of one judging session."""

    run_id: str
    candidate_digest: str
    variants: tuple[str, ...]
    suites: tuple[str, ...]
    collected: int
    deselected: int
    outcomes: tuple[Outcome, ...]
    measures: tuple[Measure, ...]
    problems: tuple[str, ...]
    environment: Mapping[str, str]

    def to_json(self) -> Json:
        """Law: `Evidence.from_json(evidence.to_json()) == evidence`."""
        return {
            "schema": EVIDENCE_SCHEMA,
            "version": EVIDENCE_VERSION,
            "run_id": self.run_id,
            "candidate_digest": self.candidate_digest,
            "variants": list(self.variants),
            "suites": list(self.suites),
            "collected": self.collected,
            "deselected": self.deselected,
            "outcomes": [_outcome_to_json(outcome) for outcome in self.outcomes],
            "measures": [measure_to_json(measure) for measure in self.measures],
            "problems": list(self.problems),
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evidence:
        """Read what `to_json` wrote; raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            run_id=content["run_id"],
            candidate_digest=content["candidate_digest"],
            variants=tuple(content["variants"]),
            suites=tuple(content["suites"]),
            collected=content["collected"],
            deselected=content["deselected"],
            outcomes=tuple(_outcome_from_json(entry) for entry in content["outcomes"]),
            measures=tuple(measure_from_json(entry) for entry in content["measures"]),
            problems=tuple(content["problems"]),
            environment=content["environment"],
        )


def measure_to_json(measure: Measure) -> Json:
    """Law: `measure_from_json(measure_to_json(m)) == m`."""
    key = measure.key
    return {
        "suite": key.suite,
        "scope": key.scope,
        "name": key.name,
        "value": measure.value,
        "unit": measure.unit.value,
        "details": dict(measure.details),
    }


def measure_from_json(content: Mapping[str, Any]) -> Measure:
    """See `measure_to_json`."""
    key = MeasureKey(content["suite"], content["scope"], content["name"])
    return Measure(key, float(content["value"]), Unit(content["unit"]), content["details"])


def _outcome_to_json(outcome: Outcome) -> Json:
    return {
        "suite": outcome.suite,
        "test": outcome.test,
        "result": outcome.result.value,
        "duration_s": outcome.duration_s,
        "reason": outcome.reason,
        "limit_broken": outcome.limit_broken,
    }


def _outcome_from_json(content: Mapping[str, Any]) -> Outcome:
    return Outcome(
        content["suite"],
        content["test"],
        Result(content["result"]),
        float(content["duration_s"]),
        content["reason"],
        content["limit_broken"],
    )


def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write evidence, whole or not at all."""
    write_json(path, evidence.to_json())


def read_evidence(path: Path) -> Evidence:
    """Read evidence.

    Raises:
        DocumentError: the file is missing, damaged, or not evidence of this version.
    """
    content = read_document(path, EVIDENCE_SCHEMA, EVIDENCE_VERSION)
    try:
        return Evidence.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        message = f"{path} is damaged ({type(err).__name__}: {one_line(err)}). Judge again."
        raise DocumentError(message) from err


def machine_and_versions(packages: Sequence[str]) -> dict[str, str]:
    """Say on what machine and with which versions this process runs."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    facts = {
        "machine": platform.machine(),
        "processor": _processor(),
        "system": platform.platform(),
        "usable_cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "python": platform.python_version(),
    }
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    import platform

    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
