"""What happened while a candidate was judged: measures, outcomes of tests, the machine.

Plain values and their JSON form. Nothing here knows what is good or bad.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from harness.documents import Json, read_document, write_json
from harness.errors import DocumentError, one_line
from harness.machine import machine_facts

EVIDENCE_SCHEMA = "harness-evidence"
# 1 (2026-11): first. 2 (2026-11): measures have intervals.
EVIDENCE_VERSION = 2
OLDEST_EVIDENCE = 1
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
    """One finite number, with whatever explains it (worst queries, values per type) in `details`.

    A number that comes out differently when it is measured again, as times do, has an `interval` that it lies in;
    what has none is taken as exact.
    """

    key: MeasureKey
    value: float
    unit: Unit
    details: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse NaN and infinity, which compare with no limit, and an interval that does not hold the value."""
        if not all(map(math.isfinite, (self.value, *(self.interval or ())))):
            message = f"measure {self.key} is {self._text()}, which is no number to judge by"
            raise ValueError(message)
        if self.interval is not None and not self.interval[0] <= self.value <= self.interval[1]:
            message = f"measure {self.key} is {self._text()}: the interval does not hold the value"
            raise ValueError(message)

    @property
    def ends(self) -> tuple[float, float]:
        """The interval that it lies in; what is exact lies at its value alone."""
        return self.interval or (self.value, self.value)

    def _text(self) -> str:
        return f"{self.value}" if self.interval is None else f"{self.value} ({self.interval[0]} to {self.interval[1]})"


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
        """Read what `to_json` wrote; raises KeyError, TypeError, ValueError or OverflowError on anything else."""
        environment = _take(content, "environment", dict)
        return cls(
            run_id=_take(content, "run_id", str),
            candidate_digest=_take(content, "candidate_digest", str),
            variants=_take_texts(content, "variants"),
            suites=_take_texts(content, "suites"),
            collected=_take(content, "collected", int),
            deselected=_take(content, "deselected", int),
            outcomes=tuple(_outcome_from_json(entry) for entry in _take(content, "outcomes", list)),
            measures=tuple(measure_from_json(entry) for entry in _take(content, "measures", list)),
            problems=_take_texts(content, "problems"),
            environment={name: _take(environment, name, str) for name in environment},
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
        "interval": None if measure.interval is None else list(measure.interval),
    }


def measure_from_json(content: Mapping[str, Any]) -> Measure:
    """See `measure_to_json`."""
    key = MeasureKey(*(_take(content, part, str) for part in ("suite", "scope", "name")))
    details = _take(content, "details", dict)
    return Measure(key, _take_number(content, "value"), Unit(content["unit"]), details, _interval_from_json(content))


def _interval_from_json(content: Mapping[str, Any]) -> tuple[float, float] | None:
    # format version 1 had none
    if content.get("interval") is None:
        return None
    low, high = ({"interval": end} for end in _take(content, "interval", list))
    return _take_number(low, "interval"), _take_number(high, "interval")


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
        _take(content, "suite", str),
        _take(content, "test", str),
        Result(content["result"]),
        _take_number(content, "duration_s"),
        _take(content, "reason", str),
        _take(content, "limit_broken", bool),
    )


_Kind = TypeVar("_Kind")


def _take(content: Mapping[str, Any], key: str, kind: type[_Kind]) -> _Kind:
    """Take a value of exactly this type: what only resembles it, such as null for 0, is damage."""
    value = content[key]
    if type(value) is not kind:
        message = f"{key} is a {type(value).__name__}, not a {kind.__name__}"
        raise TypeError(message)
    return value


def _take_number(content: Mapping[str, Any], key: str) -> float:
    return float(content[key]) if type(content[key]) is int else _take(content, key, float)


def _take_texts(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(_take({key: entry}, key, str) for entry in _take(content, key, list))


def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write evidence, whole or not at all."""
    write_json(path, evidence.to_json())


def read_evidence(path: Path) -> Evidence:
    """Read evidence.

    Raises:
        DocumentError: the file is missing, damaged, or not evidence of a version that is known.
    """
    content = read_document(path, EVIDENCE_SCHEMA, EVIDENCE_VERSION, oldest=OLDEST_EVIDENCE)
    try:
        return Evidence.from_json(content)
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        message = f"{path} is damaged ({type(err).__name__}: {one_line(err)}). Judge again."
        raise DocumentError(message) from err


def machine_and_versions(packages: Sequence[str]) -> dict[str, str]:
    """Say on what machine and with which versions this process runs."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    facts = {**machine_facts(), "python": platform.python_version()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts
