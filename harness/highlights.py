"""What of a run a person has to read first: the decision in a sentence, what to do, how near the limits are.

Words and an order, for every form of report; escapes nothing and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.account import Account
from harness.evidence import RELEASE_SCOPE, Unit
from harness.report import reason
from harness.verdict import Decision, Finding, Limit, Standing

# The measures that most questions are about, with what people call them; each is shown if it was measured.
_HEADLINES = {
    ("quality", "f1_micro"): "Entity F1",
    ("quality", "f1_micro_loss_bound"): "F1 lost to PyTorch, at most",
    ("parity", "entity_agreement"): "Queries with the same entities",
    ("parity", "label_agreement"): "Words with the same label",
    ("parity", "largest_flipped_margin"): "Surest label that flips",
    ("parity", "max_logit_difference"): "Largest logit difference",
    ("queries", "failed_queries"): "Generated queries that fail",
    ("latency", "single_query_ratio_to_reference"): "Time a query, PyTorch = 1",
    ("latency", "p50_ms"): "Median time a query",
    ("latency", "peak_memory_mib"): "Peak memory",
    ("artifact", "file_size"): "File size",
}
_UNIT_SUFFIXES = {Unit.COUNT: "", Unit.SHARE: "", Unit.F1: "", Unit.RATIO: " ×"}  # noqa: RUF001  # the sign is meant
_NEAREST = 5
_MOST_OVER = 1e6


@dataclass(frozen=True, slots=True)
class Gauge:
    """How much of its limit a measure uses, 0 to 1, and that in words; without a limit `used` is None."""

    used: float | None
    text: str


def gauge(finding: Finding) -> Gauge:
    """Tell how near a measure is to its limit."""
    match finding.standing:
        case Standing.NO_LIMIT:
            return Gauge(None, "the policy has no limit")
        case Standing.REPORTED:
            return Gauge(None, "reported only")
        case Standing.KEPT:
            return _gauge_of_kept(finding)
        case Standing.BROKEN | Standing.WAIVED:
            return Gauge(1.0, _over(finding))


def _gauge_of_kept(finding: Finding) -> Gauge:
    limit = finding.limit or Limit()
    if limit.maximum == 0 and finding.measure.unit is Unit.COUNT:
        return Gauge(0.0, "none, as it must be")
    if limit.minimum is not None and limit.maximum is not None:
        used = _used_between(finding.measure.value, limit.minimum, limit.maximum)
    else:
        # a value that is its bound of 0 exactly has an infinite ratio to it
        used = min(max(finding.excess, 0.0), 1.0)
    return Gauge(used, f"{_share(used)} of the limit")


def _used_between(value: float, minimum: float, maximum: float) -> float:
    """Tell how far from the middle of its two bounds a value is."""
    half = (maximum - minimum) / 2
    return min(abs(value - (minimum + maximum) / 2) / half, 1.0) if half else 1.0


def _share(used: float) -> str:
    if 0 < used < 0.005:
        return "under 1 %"
    # only what is at the limit reads 100 %
    return f"{min(math.floor(used * 100 + 0.5), 99) if used < 1 else 100} %"


def _over(finding: Finding) -> str:
    limit = finding.limit or Limit()
    if limit.maximum == 0 and finding.measure.unit is Unit.COUNT:
        return f"{finding.measure.value:,.0f} too many"
    times = finding.excess
    if times >= _MOST_OVER:
        return "far beyond the limit"
    # what is over by less than a thousandth is over all the same
    shown = f"{times:,.0f}" if times >= 100 else f"{max(times, 1.001):.3g}"
    return f"{shown} times the limit" if float(shown.replace(",", "")) > 1 else "just over the limit"


def value_text(finding: Finding) -> str:
    """Write a value with its unit, rounded, but not across its limit."""
    return f"{_number(finding)}{unit_suffix(finding.measure.unit)}"


def _number(finding: Finding) -> str:
    value, limit = finding.measure.value, finding.limit or Limit()
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    texts = (f"{value:.{digits}g}" for digits in (4, 6, 9))
    return next((text for text in texts if limit.allows(float(text)) == limit.allows(value)), repr(value))


def unit_suffix(unit: Unit) -> str:
    """Write a unit as it stands behind a number; counts, shares and F1 have none."""
    return _UNIT_SUFFIXES.get(unit, f" {unit.value}")


def limit_text(finding: Finding) -> str:
    """Write the limit of a measure; a dash where it has none."""
    return "—" if finding.limit is None or finding.limit.reported_only else str(finding.limit)


def sentence(account: Account) -> str:
    """Say in one sentence why the decision is what it is."""
    total, broken, problems = len(account.findings), len(account.broken), len(account.problems)
    waived = sum(finding.standing is Standing.WAIVED for finding in account.findings)
    match account.decision:
        case Decision.ACCEPTED if waived:
            return f"{_counted(total, 'measure')}; {waived} over the limit under a waiver, every other limit is kept."
        case Decision.ACCEPTED:
            limited = sum(finding.standing is Standing.KEPT for finding in account.findings)
            return f"All {_counted(limited, 'limit')} are kept, of {_counted(total, 'measure')}."
        case Decision.REJECTED:
            also = f", and {_counted(problems, 'problem')} came up" if problems else ""
            are = "is" if broken == 1 else "are"
            return f"{_counted(broken, 'limit')} of {total} measures {are} broken{also}."
        case Decision.INCOMPLETE:
            seen = f"no limit is broken among {_counted(total, 'measure')}" if total else "nothing was measured"
            return f"It could not be judged: {_counted(problems, 'problem')}; {seen}."


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort broken limits: the most broken first, equals by name."""
    return sorted(findings, key=lambda finding: (-finding.excess, str(finding.measure.key)))


def nearest(account: Account) -> list[Finding]:
    """Pick the kept limits that are nearest to breaking; one that nothing is used of is not near."""
    kept = [
        (used, finding)
        for finding in account.findings
        if finding.standing is Standing.KEPT and (used := gauge(finding).used)
    ]
    return [finding for _, finding in sorted(kept, key=lambda pair: (-pair[0], str(pair[1].measure.key)))][:_NEAREST]


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do, in our words, and what it quotes from a run: that may be anybody's text."""

    says: str
    quotes: str = ""


def next_steps(account: Account) -> list[Step]:
    """Say what to do now."""
    match account.decision:
        case Decision.ACCEPTED:
            return _steps_of_accepted(account)
        case Decision.REJECTED:
            return _steps_of_rejected(account)
        case Decision.INCOMPLETE:
            return [
                Step("Nothing was decided and nothing accepted; what was served before still is."),
                Step("Mend this first; judge.log in the run's folder has all that was printed", *account.problems[:1]),
                Step("Then run the same command again."),
            ]


def _steps_of_accepted(account: Account) -> list[Step]:
    if account.was_released:
        steps = [Step("It is in place once harness release has ended with exit code 0; nothing is left to do.")]
    else:
        steps = [Step("harness judge puts nothing in place: these files may be shipped as they are, byte for byte.")]
    if close := nearest(account)[:1]:
        steps.append(Step(f"Nearest to its limit is {close[0].measure.key}, {gauge(close[0]).text}."))
    if any(finding.standing is Standing.WAIVED for finding in account.findings):
        steps.append(Step("Waived limits are still broken: mend them before the waivers expire."))
    return steps


def _steps_of_rejected(account: Account) -> list[Step]:
    worst = worst_first(account.broken)
    steps = [Step("Nothing was accepted; what was served before still is.")]
    if worst:
        steps.append(Step(f"Start with {worst[0].measure.key}, {gauge(worst[0]).text}", reason(worst[0])))
    broken_scopes = {one.measure.key.scope for one in worst if one.measure.key.suite in {"parity", "queries"}}
    parted = {scope: parting(account, scope) for scope in sorted(broken_scopes)}
    steps += [Step(f"{scope} and PyTorch part first here", where) for scope, where in parted.items() if where]
    steps.append(Step("A limit that is wrong for this model is changed in a policy file, with its reason."))
    return steps


def parting(account: Account, scope: str) -> str:
    """Say where a variant leaves PyTorch, if its details do."""
    finding = account.finding("parity", scope, "max_logit_difference")
    divergence = mapping(finding.measure.details.get("first_divergence")) if finding else {}
    first = mapping(divergence.get("first"))
    if not first:
        return ""
    node = f", at the node {first['node']}" if first.get("node") else ""
    return f"{first.get('module')} ({first.get('kind')}){node}"


def mapping(value: object) -> Mapping[str, Any]:
    """Take a JSON object out of details that any suite may have written; anything else is an empty one."""
    return value if isinstance(value, Mapping) else {}


def listing(value: object) -> Sequence[Any]:
    """Take a JSON list, likewise."""
    return value if isinstance(value, (list, tuple)) else ()


def number(value: object) -> float | None:
    """Take a finite number, likewise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


@dataclass(frozen=True, slots=True)
class Headline:
    """One of the measures that most questions are about, for each variant that has it."""

    title: str
    name: str
    findings: Mapping[str, Finding]


def variants(account: Account) -> list[str]:
    """List what was measured apart from the release as a whole."""
    return [scope for scope in account.scopes if scope != RELEASE_SCOPE]


def headlines(account: Account) -> list[Headline]:
    """Collect the measures that most questions are about."""
    rows = []
    for (suite, name), title in _HEADLINES.items():
        found = {scope: one for scope in variants(account) if (one := account.finding(suite, scope, name))}
        if found:
            rows.append(Headline(title, f"{suite}.{name}", found))
    return rows


def words_of(name: str) -> str:
    """Write a measure's or a benchmark's name as words."""
    return name.replace("_", " ").strip()
