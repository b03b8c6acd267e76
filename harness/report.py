"""Turn a verdict into what a person reads on the screen. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.errors import one_line
from harness.verdict import Decision, Finding, Standing, Verdict

_STYLES = {
    Standing.KEPT: "green",
    Standing.BROKEN: "bold red",
    Standing.NO_LIMIT: "bold red",
    Standing.UNDECIDED: "bold yellow",
    Standing.WARNED: "yellow",
    Standing.WAIVED: "yellow",
    Standing.REPORTED: "dim",
}
_DECISION_STYLES = {Decision.ACCEPTED: "bold green", Decision.REJECTED: "bold red", Decision.INCOMPLETE: "bold yellow"}
_PLAIN_WIDTH = 120
# Under these names suites list what they found, the worst first.
_LISTS = (
    "failures", "problems", "files", "places", "sections", "axes", "inputs", "operators", "products", "differences",
    "worst", "queries",
)  # fmt: skip
_LONGEST_REASON = 240
_PROBLEMS_OF_A_REJECTION = 2


def print_verdict(verdict: Verdict, evidence_folder: Path, *, subject: str, report: Path | None = None) -> None:
    """Print the table of measures, then the decision, its reasons, and where the evidence is.

    Args:
        verdict: what was decided.
        evidence_folder: where its evidence lies.
        subject: what was judged against what.
        report: the page for people, which is named if it was written.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    if verdict.findings:
        console.print(_table(verdict.findings))
    decision = f"[{_DECISION_STYLES[verdict.decision]}]{verdict.decision.value}[/]"
    console.print(f"{decision}  {escape(subject)}", highlight=False, soft_wrap=True)
    for finding in verdict.broken:
        console.print(f"  broken: {escape(str(finding))}", highlight=False, soft_wrap=True)
        if why := reason(finding):
            console.print(f"          {escape(why)}", highlight=False, soft_wrap=True, style="dim")
    for problem in problems_to_show(verdict):
        kind = "undecided" if any(problem.startswith(f"{finding}: ") for finding in verdict.undecided) else "problem"
        console.print(f"  {kind}: {escape(problem)}", highlight=False, soft_wrap=True)
    for finding in verdict.findings:
        if finding.standing in {Standing.WAIVED, Standing.WARNED}:
            console.print(f"  {finding.standing.value}: {escape(str(finding))}", highlight=False, soft_wrap=True)
    if report is not None and report.is_file():
        console.print(f"report: {escape(str(report))}", highlight=False, soft_wrap=True)
    console.print(f"evidence: {escape(str(evidence_folder))}", highlight=False, soft_wrap=True)


def problems_to_show(verdict: Verdict) -> list[str]:
    """Pick the problems that a person has to read: all of them, unless broken limits have decided already.

    A model that cannot be loaded fails most tests; the limit that says so comes first, not the wreckage behind it.
    """
    problems = list(verdict.problems)
    if verdict.decision is not Decision.REJECTED or len(problems) <= _PROBLEMS_OF_A_REJECTION:
        return problems
    more = len(problems) - _PROBLEMS_OF_A_REJECTION
    return [*problems[:_PROBLEMS_OF_A_REJECTION], f"{more} more; see verdict.json"]


def reason(finding: Finding) -> str:
    """Say what lies behind a measure, from its details: the first thing that a suite listed there."""
    details = finding.measure.details
    for key in _LISTS:
        listed = details.get(key)
        if isinstance(listed, list) and listed:
            more = f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""
            return one_line(_shown(listed[0]), _LONGEST_REASON) + more
    return ""


def _shown(entry: object) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    return ", ".join(f"{name}: {value}" for name, value in entry.items())


def _table(findings: tuple[Finding, ...]) -> Table:
    table = Table(show_lines=False)
    for title in ("suite", "of", "measure"):
        table.add_column(title, overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    some_vary = any(finding.measure.interval for finding in findings)
    if some_vary:
        table.add_column("interval", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for finding in findings:
        key = finding.measure.key
        value = f"{_number(finding.measure.value)} {finding.measure.unit.value}"
        style = _STYLES[finding.standing]
        limit = "none" if finding.limit is None else str(finding.limit)
        interval = (_interval(finding),) if some_vary else ()
        outcome = f"[{style}]{finding.standing.value}[/]"
        table.add_row(key.suite, key.scope, escape(key.name), value, *interval, limit, outcome)
    return table


def _interval(finding: Finding) -> str:
    return "" if finding.measure.interval is None else " to ".join(map(_number, finding.measure.interval))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"
