"""Turn a self-check into what a person reads, a document and a figure. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.defects import Kind
from harness.documents import Json, write_json
from harness.evidence import measure_to_json
from harness.report import print_verdict
from harness.selfcheck import Outcome, SelfCheck, TrialResult, explained
from harness.verdict import Decision, Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SELFCHECK_SCHEMA = "harness-selfcheck"
# 1 (2026-11): first.
SELFCHECK_VERSION = 1
DOCUMENT = "selfcheck.json"
FIGURES = ("selfcheck.svg", "selfcheck.png")

_STYLES = {
    Outcome.CAUGHT: "green",
    Outcome.PASSED: "green",
    Outcome.MISSED: "bold red",
    Outcome.FALSE_ALARM: "bold red",
    Outcome.UNDECIDED: "bold yellow",
    Outcome.NOT_APPLICABLE: "dim",
}
_PLAIN_WIDTH = 150
_SHOWN_FINDINGS = 5


def to_json(check: SelfCheck) -> Json:
    """Write everything down: totals, each trial, and for graded defects the smallest damage that was caught."""
    heads = check.heads
    harmless = [result for result in check.results if result.trial.harmless]
    alarms = check.of(Outcome.FALSE_ALARM)
    tried = [result for result in harmless if result.outcome is not Outcome.NOT_APPLICABLE]
    return {
        "schema": SELFCHECK_SCHEMA,
        "version": SELFCHECK_VERSION,
        "run": check.run.name,
        "decision": check.decision.value,
        "good_export": {
            "decision": check.baseline.decision.value,
            "broken": [str(one) for one in check.baseline.broken],
        },
        "defects": {
            "planted": len(heads),
            "caught": check.caught,
            "kill_rate": check.caught / len(heads) if heads else None,
            "missed": [str(result.trial) for result in heads if result.outcome is Outcome.MISSED],
            "undecided": [str(result.trial) for result in heads if result.outcome is Outcome.UNDECIDED],
        },
        "harmless": {
            "planted": len(tried),
            "false_alarms": [str(result.trial) for result in alarms],
            "false_alarm_rate": len(alarms) / len(tried) if tried else None,
        },
        "trials": [_trial_to_json(result) for result in check.results],
        "sensitivity": [_grades_to_json(results) for results in graded(check)],
        "not_planted": [{"name": one.name, "why": one.reason, "guarded_by": one.guard} for one in check.unplanted],
        "stages_s": check.stages_s,
        **check.facts,
    }


def _trial_to_json(result: TrialResult) -> Json:
    trial = result.trial
    return {
        "name": trial.defect.name,
        "kind": trial.defect.kind.value,
        "summary": trial.defect.summary,
        "seen_in": trial.defect.seen_in,
        "listed": trial.defect.listed,
        "harmless": trial.harmless,
        "variant": trial.variant.value,
        "strength": _strength_to_json(result),
        "suites": list(trial.defect.suites),
        "outcome": result.outcome.value,
        "caught_by": [_finding_to_json(finding) for finding in result.broken[:_SHOWN_FINDINGS]],
        "reason": result.reason,
        "seconds": result.seconds,
    }


def _finding_to_json(finding: Finding) -> Json:
    measure = {**measure_to_json(finding.measure), "details": {}}
    excess = finding.excess
    return {**measure, "limit": str(finding.limit), "times_the_limit": excess if excess < 1e12 else None}


def graded(check: SelfCheck) -> list[list[TrialResult]]:
    """Group the trials of each graded defect, strongest first."""
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for result in check.results:
        if result.trial.strength is not None and result.outcome is not Outcome.NOT_APPLICABLE:
            groups.setdefault((result.trial.defect.name, result.trial.variant.value), []).append(result)
    return list(groups.values())


def _grades_to_json(results: Sequence[TrialResult]) -> Json:
    trial = results[0].trial
    return {
        "name": trial.defect.name,
        "variant": trial.variant.value,
        "smallest_caught": _strength_to_json(smallest_caught(results)),
        "largest_passed": _strength_to_json(largest_passed(results)),
        "strengths": [one.value for one in trial.defect.strengths],
    }


def _strength_to_json(result: TrialResult | None) -> Json | None:
    if result is None or result.trial.strength is None:
        return None
    return {"value": result.trial.strength.value, "text": result.trial.strength.text}


def smallest_caught(results: Sequence[TrialResult]) -> TrialResult | None:
    """Find the weakest damage that was caught."""
    return next((result for result in reversed(results) if result.outcome is Outcome.CAUGHT), None)


def largest_passed(results: Sequence[TrialResult]) -> TrialResult | None:
    """Find the strongest damage that was not caught."""
    return next((result for result in results if result.outcome is not Outcome.CAUGHT), None)


def print_selfcheck(check: SelfCheck) -> None:
    """Print the tables, then the totals, what was missed, and where the rest is."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    if check.baseline.decision is not Decision.ACCEPTED:
        print_verdict(
            check.baseline, check.run.folder / "good", subject="the export itself, so there is nothing to damage"
        )
        return
    console.print(_table("defects", [result for result in check.heads if not result.trial.harmless]))
    if groups := graded(check):
        console.print(_sensitivity_table(groups))
    if harmless := [result for result in check.results if result.trial.harmless]:
        console.print(_table("harmless changes", harmless))
    for line in _summary(check):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _table(title: str, results: Sequence[TrialResult]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("what", "of", "kind"):
        table.add_column(name, no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("by what", overflow="fold")
    for result in results:
        trial = result.trial
        outcome = f"[{_STYLES[result.outcome]}]{result.outcome.value}[/]"
        table.add_row(
            trial.defect.name, trial.variant.value, trial.defect.kind.value, outcome, escape(explained(result))
        )
    return table


def _sensitivity_table(groups: Sequence[Sequence[TrialResult]]) -> Table:
    table = Table(title="the smallest damage that is caught", title_justify="left")
    for name in ("what", "of"):
        table.add_column(name, no_wrap=True)
    for name in ("smallest caught", "largest that passed", "by what"):
        table.add_column(name, overflow="fold")
    for results in groups:
        trial = results[0].trial
        caught, passed = smallest_caught(results), largest_passed(results)
        texts = [
            result.trial.strength.text if result and result.trial.strength else "none" for result in (caught, passed)
        ]
        table.add_row(
            trial.defect.name, trial.variant.value, *map(escape, texts), escape(explained(caught)) if caught else ""
        )
    return table


def _summary(check: SelfCheck) -> list[str]:
    heads = check.heads
    harmless = [
        result for result in check.results if result.trial.harmless and result.outcome is not Outcome.NOT_APPLICABLE
    ]
    alarms = check.of(Outcome.FALSE_ALARM)
    lines = [f"kill rate: {check.caught} of {len(heads)} planted defects caught"]
    lines += [
        f"  {result.outcome.value}: {result.trial} {explained(result)}"
        for result in heads
        if result.outcome is not Outcome.CAUGHT
    ]
    lines.append(f"false alarms: {len(alarms)} of {len(harmless)} harmless changes refused")
    lines += [f"  refused: {result.trial} {explained(result)}" for result in alarms]
    lines += [
        f"  {result.outcome.value}: {result.trial} {explained(result)}"
        for result in harmless
        if result.outcome is Outcome.UNDECIDED
    ]
    skipped = check.of(Outcome.NOT_APPLICABLE)
    lines += [f"not applicable: {result.trial}: {result.reason}" for result in skipped]
    lines += [f"not planted: {one.name}: {one.reason} Guarded by {one.guard}." for one in check.unplanted]
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in check.stages_s.items())
    return [*lines, f"stages: {took}", f"document and figure: {check.run.folder}"]


def write_selfcheck(check: SelfCheck) -> Json:
    """Write document and figure into the run's folder and return the document."""
    document = to_json(check)
    write_json(check.run.folder / DOCUMENT, document)
    if check.results:
        draw(check, [check.run.folder / name for name in FIGURES])
    return document


def draw(check: SelfCheck, paths: Sequence[Path]) -> None:
    """Draw what was caught of each kind, and how small a damage of each graded defect is still caught."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    groups = graded(check)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(14, max(4.0, 0.28 * len(groups) + 1.5)), width_ratios=(1, 1.6), layout="constrained"
    )
    try:
        _draw_kinds(left, check)
        _draw_grades(right, groups)
        for path in paths:
            figure.savefig(path, dpi=110)
    finally:
        pyplot.close(figure)


# Okabe and Ito's palette, which people with any colour vision tell apart (https://jfly.uni-koeln.de/color/).
_GOOD, _BAD, _OPEN, _GREY = "#009E73", "#D55E00", "#E69F00", "#BBBBBB"


def _draw_kinds(axes: Axes, check: SelfCheck) -> None:
    rows = [(kind.value, [result for result in check.heads if result.trial.defect.kind is kind]) for kind in Kind]
    rows.append(("harmless", [result for result in check.results if result.trial.harmless]))
    rows = [(name, results) for name, results in rows if results]
    parts = (
        ("as it should", {Outcome.CAUGHT, Outcome.PASSED}, _GOOD),
        ("missed, or false alarm", {Outcome.MISSED, Outcome.FALSE_ALARM}, _BAD),
        ("undecided", {Outcome.UNDECIDED}, _OPEN),
    )
    places = range(len(rows))
    begin = [0] * len(rows)
    for label, outcomes, colour in parts:
        counts = [sum(result.outcome in outcomes for result in results) for _, results in rows]
        axes.barh(places, counts, left=begin, color=colour, label=label)
        begin = [one + other for one, other in zip(begin, counts, strict=True)]
    axes.set_yticks(places, [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("planted")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{check.caught} of {len(check.heads)} defects caught", loc="left")
    axes.legend(loc="lower right", frameon=False)


def _draw_grades(axes: Axes, groups: Sequence[Sequence[TrialResult]]) -> None:
    """Draw a row of marks for each graded defect, the strongest damage at the left, and in words the smallest caught."""
    most = max((len(results[0].trial.defect.strengths) for results in groups), default=0)
    for row, results in enumerate(groups):
        tried = {result.trial.strength: result for result in results}
        for place, strength in enumerate(results[0].trial.defect.strengths):
            mark, colour = _mark(tried.get(strength))
            axes.plot(place, row, marker=mark, color=colour, linestyle="none")
        smallest = smallest_caught(results)
        text = smallest.trial.strength.text if smallest and smallest.trial.strength else "nothing"
        axes.annotate(text, (most - 0.4, row), va="center", fontsize=8, annotation_clip=False)
    names = [f"{results[0].trial.defect.name} ({results[0].trial.variant.value})" for results in groups]
    axes.set_yticks(range(len(groups)), names, fontsize=8)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(-0.5, most + 3.5)  # room for the words
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(
        "damage, falling →   ● caught   x passed   · not tried   and the smallest that is caught", loc="left"
    )


def _mark(result: TrialResult | None) -> tuple[str, str]:
    if result is None:
        return ".", _GREY
    return ("o", _GOOD) if result.outcome is Outcome.CAUGHT else ("x", _BAD)
