"""Runs for tests of the history, made up: no model, no judging."""

from __future__ import annotations

import datetime

from harness.evidence import MeasureKey, Unit
from harness.history import (
    Body,
    Digests,
    Entry,
    Machine,
    Recorded,
    RunKind,
    Samples,
    append_line,
    entry_line,
    read_line,
)
from harness.verdict import Decision, Limit

MACHINE = Machine("AMD EPYC", "2", "16", "Linux", "x86_64")
OTHER_MACHINE = Machine("Neoverse-N1", "4", "32", "Linux", "aarch64")
START = datetime.datetime(2026, 11, 1, tzinfo=datetime.timezone.utc)
F1 = MeasureKey("quality", "int8", "f1_micro")
RATIO = MeasureKey("latency", "int8", "single_query_ratio_to_reference")
P50 = MeasureKey("latency", "int8", "p50_ms")


def key(text) -> MeasureKey:
    """`suite.scope.name` as a key."""
    return MeasureKey(*text.split("."))


def name_of(number) -> str:
    """The name of the n-th run: one an hour."""
    moment = START + datetime.timedelta(hours=number)
    return f"{moment:%Y%m%dT%H%M%S}.000Z-{number:06x}"


def f1(value, limit=None) -> Recorded:
    """An F1 of at least .8, or with another limit."""
    return Recorded(value, Unit.F1, limit or Limit(minimum=0.8))


def line_of(
    number=0, measures=None, samples=None, *, machine=MACHINE, line="bus", decision=Decision.ACCEPTED, data="d",
    versions=None, revision=None, verdict=None, reference="r", policy="default", kind=RunKind.RELEASE, output=None,
    suites=("latency", "quality"),
) -> bytes:  # fmt: skip
    """A line of the history."""
    entry = Entry(
        run=name_of(number),
        time=START + datetime.timedelta(hours=number),
        kind=kind,
        line=line,
        suites=suites,
        decision=decision,
        machine=machine,
        versions=versions or {"onnxruntime": "1.32.0"},
        digests=Digests(
            "sha256:c", f"sha256:{reference}", f"sha256:{data}", policy, verdict or f"sha256:{number:064x}"
        ),
        revision=revision,
        stages_s={"judge": 1.5},
        folder=name_of(number),
        output=output,
        body=Body(),
    )
    return entry_line(entry, {F1: f1(0.95)} if measures is None else measures, samples or {})


def run(number=0, measures=None, samples=None, **facts) -> Entry:
    """A run, as the history gives it back."""
    return read_line(line_of(number, measures, samples, **facts))


def ratio_run(number, value, ratios=(), **facts) -> Entry:
    """A run with one paired ratio of time, and the log ratios of its blocks."""
    measures = {RATIO: Recorded(value, Unit.RATIO, Limit(maximum=0.9))}
    return run(number, measures, {RATIO: Samples(tuple(ratios))} if ratios else {}, **facts)


def write_runs(results, lines) -> None:
    """A history with these lines."""
    results.mkdir(parents=True, exist_ok=True)
    for line in lines:
        append_line(results, line)
