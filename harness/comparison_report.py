"""Turn a comparison of two runs into what a person reads, and into a document. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.comparison import Bound, Change, Compared, Comparison, Kind, Method, totals
from harness.documents import Json
from harness.history import Entry, Recorded

COMPARISON_SCHEMA = "harness-comparison"
# 1 (2026-11): first.
COMPARISON_VERSION = 1

_STYLES = {
    Change.BETTER: "green",
    Change.WORSE: "bold red",
    Change.SAME: "dim",
    Change.DIFFERS: "yellow",
    Change.CANNOT_TELL: "yellow",
    Change.NOT_COMPARABLE: "dim",
}
_PLAIN_WIDTH = 150


def print_comparison(comparison: Comparison) -> None:
    """Print every measure, what was compared, what differs around it, and what it comes to."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    if comparison.measures:
        console.print(_table(comparison.measures))
    for line in _summary(comparison):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _table(measures: Sequence[Compared]) -> Table:
    table = Table()
    table.add_column("measure", overflow="fold")
    for title in ("baseline", "subject", "change", "99 % bound"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for one in measures:
        verdict = f"[{_STYLES[one.change]}]{one.change.value}[/]"
        reason = f" ({escape(one.reason)})" if one.reason else ""
        cells = (_value(one.baseline), _value(one.subject), _change(one), _bound(one.bound))
        table.add_row(escape(str(one.key)), *cells, verdict + reason)
    return table


def _value(measure: Recorded | None) -> str:
    return "—" if measure is None else f"{number(measure.value)} {measure.unit.value}"


def number(value: float) -> str:
    """Write a value with four digits, whole numbers as such."""
    return str(int(value)) if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def _change(one: Compared) -> str:
    if one.subject is None or one.baseline is None:
        return "—"
    if one.kind in {Kind.TIME, Kind.SIZE}:
        return "—" if one.ratio is None else f"× {one.ratio:.3f}"  # noqa: RUF001  # times
    difference = one.subject.value - one.baseline.value
    return "0" if difference == 0 else f"{'+' if difference > 0 else '−'}{number(abs(difference))}"  # noqa: RUF001  # a minus sign


def _bound(bound: Bound | None) -> str:
    if bound is None:
        return ""
    mark = "" if bound.method is Method.SHIFT else " *"
    return f"{bound.low:.3f}–{bound.high:.3f}{mark}"  # noqa: RUF001  # from … to


def _summary(comparison: Comparison) -> list[str]:
    lines = [f"subject:  {_described(comparison.subject)}", f"baseline: {_described(comparison.baseline)}"]
    lines += [f"  differs: {difference}" for difference in comparison.differences]
    if any(one.bound and one.bound.method is Method.INTERVALS for one in comparison.measures):
        lines.append(f"* {Method.INTERVALS.value}")
    counts = ", ".join(f"{count} {change.value}" for change, count in totals(comparison).items() if count)
    lines.append(f"measures: {counts}")
    lines += [f"  better: {_line(one)}" for one in comparison.of(Change.BETTER)]
    lines += [
        f"  {'worse' if one.regression else 'worse, not counted'}: {_line(one)}" for one in comparison.of(Change.WORSE)
    ]
    if hidden := _hindered(comparison):
        lines.append(hidden)
    lines.append(f"regressions: {len(comparison.regressions)}")
    return lines


def _hindered(comparison: Comparison) -> str:
    reasons = [one.reason for one in comparison.of(Change.NOT_COMPARABLE)]
    if not reasons:
        return ""
    counted = ", ".join(f"{reasons.count(reason)} because {reason}" for reason in sorted(set(reasons)))
    hint = "; --across-machines compares times all the same" if "machines differ" in reasons else ""
    return f"not compared, and not counted: {counted}{hint}"


def _line(one: Compared) -> str:
    bound = f", {_bound(one.bound)}" if one.bound else ""
    reason = f" ({one.reason})" if one.reason else ""
    return f"{one.key}: {_value(one.baseline)} → {_value(one.subject)} ({_change(one)}{bound}){reason}"


def _described(entry: Entry) -> str:
    revision = f", revision {entry.revision}" if entry.revision else ""
    return f"{entry.run} {entry.decision.value}, line {entry.line}{revision}, machine {entry.machine}"


def to_json(comparison: Comparison) -> Json:
    """Write everything down."""
    return {
        "schema": COMPARISON_SCHEMA,
        "version": COMPARISON_VERSION,
        "subject": run_to_json(comparison.subject),
        "baseline": run_to_json(comparison.baseline),
        "differences": list(comparison.differences),
        "totals": {change.value: count for change, count in totals(comparison).items()},
        "regressions": [str(one.key) for one in comparison.regressions],
        "measures": [_compared_to_json(one) for one in comparison.measures],
    }


def run_to_json(entry: Entry) -> Json:
    """Write down what a run is told by."""
    return {
        "run": entry.run,
        "time": entry.time.isoformat(timespec="milliseconds"),
        "kind": entry.kind.value,
        "line": entry.line,
        "decision": entry.decision.value,
        "machine": entry.machine.id,
        "revision": entry.revision.commit if entry.revision else None,
        "output": entry.output,
    }


def _compared_to_json(one: Compared) -> Json:
    bound = one.bound
    unit = next(measure.unit for measure in (one.subject, one.baseline) if measure is not None)
    return {
        "measure": str(one.key),
        "unit": unit.value,
        "kind": one.kind.value,
        "baseline": one.baseline.value if one.baseline else None,
        "subject": one.subject.value if one.subject else None,
        "ratio": one.ratio,
        "bound": None if bound is None else {"low": bound.low, "high": bound.high, "method": bound.method.value},
        "change": one.change.value,
        "regression": one.regression,
        "reason": one.reason,
    }
