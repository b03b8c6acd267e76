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
    ("latency", "ratio_to_last_release"): "Time a query, last release = 1",
    ("latency", "p50_ms"): "Median time a query",
    ("latency", "peak_memory_mib"): "Peak memory",
    ("artifact", "file_size"): "File size",
}
_UNIT_SUFFIXES = {Unit.COUNT: "", Unit.SHARE: "", Unit.F1: "", Unit.RATIO: " ×"}  # noqa: RUF001  # the sign is meant
_NEAREST = 5
_MOST_OVER = 1e6
_SEVERAL = 3.0
# An interval that ends beyond so many times its limit is not drawn: the limit would be at the very left.
_MOST_SHOWN = 20.0


@dataclass(frozen=True, slots=True)
class Gauge:
    """How much of its limit a measure uses, 0 to 1, and that in words; without a limit `used` is None.

    A measure with an interval uses `low` to `high` of it, where 1 is the limit, which either may lie beyond.
    """

    used: float | None
    text: str
    low: float | None = None
    high: float | None = None

    @property
    def at_worst(self) -> float | None:
        """How much of the limit the worse end of the interval uses; without an interval, what the value does."""
        return self.used if self.high is None else min(self.high, 1.0)


def gauge(finding: Finding) -> Gauge:
    """Tell how near a measure is to its limit."""
    match finding.standing:
        case Standing.NO_LIMIT:
            return Gauge(None, "the policy has no limit")
        case Standing.REPORTED:
            return Gauge(None, "reported only")
        case Standing.KEPT:
            return _gauge_of_kept(finding)
        case Standing.UNDECIDED | Standing.WARNED:
            return _gauge_of_open(finding)
        case Standing.WAIVED if finding.limit and finding.limit.holds(*finding.measure.ends) is None:
            return _gauge_of_open(finding)
        case Standing.BROKEN | Standing.WAIVED:
            return _gauge_of_broken(finding)


def _gauge_of_broken(finding: Finding) -> Gauge:
    limit = finding.limit or Limit()
    low, high = _span(finding)
    # what is several times as much is said so
    growth = _is_growth(limit, finding.measure.unit) and finding.measure.value < _SEVERAL
    return Gauge(1.0, _growth_text(finding, limit) if growth else _over(finding), low, high)


def _gauge_of_kept(finding: Finding) -> Gauge:
    limit = finding.limit or Limit()
    if limit.maximum == 0 and finding.measure.unit is Unit.COUNT:
        return Gauge(0.0, "none, as it must be")
    # a value that is its bound of 0 exactly has an infinite ratio to it
    used = min(_used(finding, finding.measure.value), 1.0)
    low, high = _span(finding)
    if _is_growth(limit, finding.measure.unit):
        return Gauge(used, _growth_text(finding, limit), low, high)
    worst = f", {_share(min(high, 1.0))} at worst" if high is not None else ""
    return Gauge(used, f"{_share(used)} of the limit{worst}", low, high)


def _gauge_of_open(finding: Finding) -> Gauge:
    """Say from where to where around its limit a measure lies that cannot be told from it."""
    low, high = _span(finding)
    used = min(_used(finding, finding.measure.value), 1.0)
    limit = finding.limit or Limit()
    if _is_growth(limit, finding.measure.unit):
        return Gauge(used, _growth_text(finding, limit), low, high)
    if low is None or high is None:
        return Gauge(used, "on either side of the limit")
    return Gauge(used, f"{_share_around(low)} to {_share_around(high)} of the limit", low, high)


def _span(finding: Finding) -> tuple[float, float] | tuple[None, None]:
    """Tell from where to where a measure uses its limit; nothing where it has no interval, or that has no share."""
    if finding.measure.interval is None:
        return None, None
    low, high = sorted(_used(finding, end) for end in finding.measure.interval)
    return (low, high) if high < _MOST_SHOWN else (None, None)


def _used(finding: Finding, value: float) -> float:
    """Tell how much of its limit a value uses: 0 or more, and more than 1 beyond it."""
    limit, unit = finding.limit or Limit(), finding.measure.unit
    if limit.maximum is not None and _is_growth(limit, unit):
        return max((value - 1) / (limit.maximum - 1), 0.0)
    if limit.minimum is not None and limit.maximum is not None:
        # how far from the middle of its two bounds it is
        half = (limit.maximum - limit.minimum) / 2
        return abs(value - (limit.minimum + limit.maximum) / 2) / half if half else 1.0
    return max(limit.excess(value, of_one=unit in {Unit.SHARE, Unit.F1}), 0.0)


def _share(used: float) -> str:
    if 0 < used < 0.005:
        return "under 1 %"
    # only what is at the limit reads 100 %
    return f"{min(math.floor(used * 100 + 0.5), 99) if used < 1 else 100} %"


def _is_growth(limit: Limit, unit: Unit) -> bool:
    """Tell whether a limit allows something to be so much more than what it is compared with: then 1 is no change."""
    return unit is Unit.RATIO and limit.minimum is None and limit.maximum is not None and limit.maximum > 1


def _growth_text(finding: Finding, limit: Limit) -> str:
    """Write a ratio as the change that it is, beside the change that its limit allows."""
    ends = finding.measure.interval or (finding.measure.value,)
    changes = " to ".join(_change(end, limit) for end in ends)
    return f"{changes}, {_change(limit.maximum or 1.0, limit)} allowed"


def _change(ratio: float, limit: Limit) -> str:
    texts = (f"{(ratio - 1) * 100:+.{digits}g}" for digits in (3, 5, 8))
    shown = next((text for text in texts if limit.allows(1 + float(text) / 100) == limit.allows(ratio)), None)
    return f"{shown} %" if shown is not None else f"{'just under' if limit.allows(ratio) else 'just over'} the limit"


def _share_around(used: float) -> str:
    """Write a share that may be over 1, and round it to no limit that it is not at."""
    percent = math.floor(used * 1000 + 0.5) / 10
    if percent == 100 and used != 1:
        return "just under 100 %" if used < 1 else "just over 100 %"
    return f"{percent:.3g} %" if percent < 100 else f"{percent:.4g} %"


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
    return f"{_number(finding, finding.measure.value)}{unit_suffix(finding.measure.unit)}"


def interval_text(finding: Finding) -> str:
    """Write where a value lies when it is measured again, without the unit; empty where it is exact."""
    if finding.measure.interval is None:
        return ""
    return " to ".join(_number(finding, end) for end in finding.measure.interval)


def _number(finding: Finding, value: float) -> str:
    limit = finding.limit or Limit()
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
    match account.decision:
        case Decision.ACCEPTED:
            return _sentence_of_accepted(account)
        case Decision.REJECTED:
            return _sentence_of_rejected(account)
        case Decision.INCOMPLETE:
            return _sentence_of_incomplete(account)


def _sentence_of_accepted(account: Account) -> str:
    total = len(account.findings)
    kept, waived, warned = (_number_of(account, one) for one in (Standing.KEPT, Standing.WAIVED, Standing.WARNED))
    beside = [f"{waived} over the limit under a waiver"] if waived else []
    if warned:
        beside.append(f"{warned} that cannot be told from the limit, which the policy takes as a warning")
    if beside:
        return f"{_counted(total, 'measure')}; {', '.join(beside)}, every other limit is kept."
    return f"All {_counted(kept, 'limit')} are kept, of {_counted(total, 'measure')}."


def _sentence_of_rejected(account: Account) -> str:
    broken, undecided, problems = len(account.broken), len(account.undecided), len(account.other_problems)
    also = f", {undecided} cannot be told from the limit" if undecided else ""
    also += f", and {_counted(problems, 'problem')} came up" if problems else ""
    are = "is" if broken == 1 else "are"
    return f"{_counted(broken, 'limit')} of {len(account.findings)} measures {are} broken{also}."


def _sentence_of_incomplete(account: Account) -> str:
    total, undecided, problems = len(account.findings), len(account.undecided), len(account.other_problems)
    if undecided and not problems:
        of = f"{undecided} of {_counted(total, 'measure')}"
        return f"Neither accepted nor refused: no limit is broken, but for {of} it cannot be told whether the limit is kept."
    seen = f"no limit is broken among {_counted(total, 'measure')}" if total else "nothing was measured"
    also = f", and {undecided} that cannot be told from the limit" if undecided else ""
    return f"It could not be judged: {_counted(problems, 'problem')}; {seen}{also}."


def _number_of(account: Account, standing: Standing) -> int:
    return sum(finding.standing is standing for finding in account.findings)


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort limits that are not kept: the most broken first, equals by name."""
    return sorted(findings, key=lambda finding: (-finding.excess, str(finding.measure.key)))


def nearest(account: Account) -> list[Finding]:
    """Pick the kept limits that are nearest to breaking; one that nothing is used of is not near."""
    kept = [
        (used, finding)
        for finding in account.findings
        if finding.standing is Standing.KEPT and (used := gauge(finding).at_worst)
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
        case Decision.INCOMPLETE if account.undecided and not account.other_problems:
            return _steps_of_undecided(account)
        case Decision.INCOMPLETE:
            first = account.other_problems[:1]
            return [
                Step("Nothing was decided and nothing accepted; what was served before still is."),
                Step("Mend this first; judge.log in the run's folder has all that was printed", *first),
                Step("Then run the same command again."),
            ]


def was_disturbed(finding: Finding) -> bool:
    """Tell whether work that never changes took other times too while this was measured, so that it came from outside."""
    return mapping(finding.measure.details.get("control")).get("calm") is False


def _steps_of_undecided(account: Account) -> list[Step]:
    first = worst_first(account.undecided)[0]
    unit = unit_suffix(first.measure.unit)
    disturbed = "; something else kept the machine busy this time" if any(map(was_disturbed, account.undecided)) else ""
    return [
        Step("Nothing was accepted; what was served before still is."),
        Step(
            f"Run the same command again while the machine does nothing else: {first.measure.key} is somewhere from "
            f"{interval_text(first)}{unit}, and its limit is {limit_text(first)}{disturbed}."
        ),
        Step(
            "If it stays open, the export really is about at the limit: mend it, or change the limit in a policy "
            'file, with its reason; undecided = "warn" beside a limit accepts what cannot be told from it.'
        ),
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
    warned = [finding for finding in account.findings if finding.standing is Standing.WARNED]
    if warned:
        key, more = warned[0].measure.key, f" and {len(warned) - 1} more" if len(warned) > 1 else ""
        steps.append(Step(f"A warning: {key}{more} may be over the limit; judge again on a quieter machine to know."))
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
