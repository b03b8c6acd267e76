"""Put the page together: values from the account, the template beside this file, escaping switched on."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from harness.account import Account
from harness.documents import write_text
from harness.highlights import (
    Gauge,
    Headline,
    Step,
    gauge,
    headlines,
    interval_text,
    limit_text,
    nearest,
    next_steps,
    sentence,
    value_text,
    variants,
    worst_first,
)
from harness.report import reason
from harness.verdict import Decision, Finding, Standing
from harness.visible import visible

from .plots import HistoryLine, Plot, plots_of
from .queries import LONGEST_QUERY, Case, cases_of

REPORT_FILE = "report.html"
_TEMPLATE, _STYLE, _SCRIPT = "report.html.j2", "report.css", "report.js"
# One value of untrusted text may be as long as it likes; the page shows so much of it.
_LONGEST_VALUE = 1200
_MOST_PROBLEMS = 200
_NEAR = 0.8
# A bar goes on a little beyond the interval on it, and the interval never gets too thin to see.
_AIR, _THINNEST = 1.08, 1.5
_SYMBOLS = {
    Standing.KEPT: "✔",
    Standing.BROKEN: "✖",
    Standing.NO_LIMIT: "✖",
    Standing.UNDECIDED: "?",
    Standing.WARNED: "!",
    Standing.WAIVED: "◐",
    Standing.REPORTED: "·",
}
_TONES = {
    Standing.BROKEN: "bad",
    Standing.NO_LIMIT: "bad",
    Standing.WAIVED: "bad",
    Standing.UNDECIDED: "open",
    Standing.WARNED: "open",
}
_DECISION_SYMBOLS = {Decision.ACCEPTED: "✔", Decision.REJECTED: "✖", Decision.INCOMPLETE: "▲"}
_MACHINE = ("processor", "cpus", "cpu_quota", "usable_cpus", "machine", "system")


@dataclass(frozen=True, slots=True)
class Range:
    """An interval on a bar, and the limit there, in percent of the bar."""

    left: float
    width: float
    limit: float


@dataclass(frozen=True, slots=True)
class Row:
    """A finding as the page shows it."""

    name: str
    suite: str
    scope: str
    value: str
    interval: str
    limit: str
    gauge: Gauge
    standing: str
    symbol: str
    tone: str
    reason: str

    @property
    def percent(self) -> int:
        """How much of the bar is filled."""
        return round(100 * (self.gauge.used or 0.0))

    @property
    def near(self) -> bool:
        """Whether most of the limit is used."""
        return (self.gauge.at_worst or 0.0) >= _NEAR

    @property
    def range(self) -> Range | None:
        """Where on its bar the interval lies; None where there is none."""
        if self.gauge.low is None or self.gauge.high is None:
            return None
        # the limit stands at the end of the bar, or within it where the interval reaches beyond
        whole = max(1.0, self.gauge.high * _AIR)
        left, right = (round(100 * end / whole, 1) for end in (self.gauge.low, self.gauge.high))
        return Range(left, max(right - left, _THINNEST), round(100 / whole, 1))


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """A headline measure with a cell for each variant; None where a variant has none."""

    title: str
    name: str
    cells: tuple[Row | None, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The measures of one suite about one variant."""

    suite: str
    scope: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and what it stands for."""

    name: str
    value: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the template writes."""

    account: Account
    decision: str
    symbol: str
    sentence: str
    steps: tuple[Step, ...]
    variants: tuple[str, ...]
    headlines: tuple[HeadlineRow, ...]
    broken: tuple[Row, ...]
    undecided: tuple[Row, ...]
    problems: tuple[str, ...]
    problems_left_out: int
    nearest: tuple[Row, ...]
    plots: tuple[Plot, ...]
    cases: tuple[Case, ...]
    groups: tuple[Group, ...]
    compared: tuple[Fact, ...]
    machine: tuple[Fact, ...]
    versions: tuple[Fact, ...]
    style: Markup
    script: Markup
    script_digest: str


def write_webreport(folder: Path, account: Account, history: Sequence[HistoryLine] = ()) -> Path:
    """Write the page into a run's folder.

    Args:
        folder: the run's.
        account: what the run left there.
        history: measures over the runs of the release line; left out where there are none.

    Raises:
        OSError: the file system refuses.
    """
    path = folder / REPORT_FILE
    write_text(path, render(account, history))
    return path


def render(account: Account, history: Sequence[HistoryLine] = ()) -> str:
    """Write the page of a run."""
    return _template().render(page=_page(account, history))


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    environment.filters["shortened"] = lambda text: visible(text, LONGEST_QUERY)
    return environment.from_string(_resource(_TEMPLATE))


def _finalize(value: object) -> object:
    """Make every text visible before jinja2 escapes it; only what this package wrote as markup stays as it is."""
    return visible(value, _LONGEST_VALUE) if isinstance(value, str) and not isinstance(value, Markup) else value


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _page(account: Account, history: Sequence[HistoryLine]) -> Page:
    script = _resource(_SCRIPT)
    problems = account.other_problems[:_MOST_PROBLEMS]
    return Page(
        account=account,
        decision=account.decision.value,
        symbol=_DECISION_SYMBOLS[account.decision],
        sentence=sentence(account),
        steps=tuple(next_steps(account)),
        variants=tuple(variants(account)),
        headlines=tuple(_headline_row(one, variants(account)) for one in headlines(account)),
        broken=tuple(map(_row, worst_first(account.broken))),
        undecided=tuple(map(_row, worst_first(account.undecided))),
        problems=problems,
        problems_left_out=len(account.other_problems) - len(problems),
        nearest=tuple(map(_row, nearest(account))),
        plots=tuple(plots_of(account, history)),
        cases=tuple(cases_of(account)),
        groups=tuple(_groups(account.findings)),
        compared=tuple(_compared(account)),
        machine=tuple(Fact(name, account.environment[name]) for name in _MACHINE if name in account.environment),
        versions=tuple(Fact(*pair) for pair in account.environment.items() if pair[0] not in _MACHINE),
        style=Markup(_resource(_STYLE)),  # noqa: S704  # this package's own files, nobody's text in them
        script=Markup(script),  # noqa: S704
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _headline_row(headline: Headline, scopes: Sequence[str]) -> HeadlineRow:
    cells = tuple(_row(headline.findings[scope]) if scope in headline.findings else None for scope in scopes)
    return HeadlineRow(headline.title, headline.name, cells)


def _row(finding: Finding) -> Row:
    key = finding.measure.key
    return Row(
        key.name,
        key.suite,
        key.scope,
        value_text(finding),
        interval_text(finding),
        limit_text(finding),
        gauge(finding),
        finding.standing.value,
        _SYMBOLS[finding.standing],
        _TONES.get(finding.standing, ""),
        reason(finding) if finding.rejects or finding.standing is Standing.WAIVED else "",
    )


def _groups(findings: Sequence[Finding]) -> list[Group]:
    rows = sorted(map(_row, findings), key=lambda row: (row.suite, row.scope))
    return [Group(*key, tuple(group)) for key, group in groupby(rows, key=lambda row: (row.suite, row.scope))]


def _compared(account: Account) -> list[Fact]:
    subject = account.subject
    facts = [
        Fact("candidate", subject.candidate, subject.candidate_digest),
        Fact("reference (PyTorch)", subject.reference, subject.reference_digest),
    ]
    if subject.baseline:
        facts.append(Fact("last release", subject.baseline, subject.baseline_digest))
    facts += [Fact("labelled queries", path, digest) for path, digest in subject.data.items()]
    facts += [Fact("policy", path, digest) for path, digest in subject.policy.items()]
    if not subject.policy:
        facts.append(Fact("policy", "the defaults of the harness"))
    facts.append(Fact("suites", ", ".join(subject.suites) or "none"))
    if subject.line:
        facts.append(Fact("release line", subject.line))
    facts.append(Fact("stages", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in subject.stages_s.items())))
    facts.append(Fact("evidence", account.evidence_digest or "none was left"))
    return facts
