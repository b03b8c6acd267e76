"""The one place where a candidate is accepted or not: limits, and the pure function that applies them.

Everything that is not plainly good is not accepted: a limit broken is REJECTED; anything missing,
skipped, crashed or out of order is INCOMPLETE.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from harness.evidence import Evidence, Measure, MeasureKey, Result, Unit
from harness.suite import Promise


class Decision(Enum):
    """May the candidate go live?"""

    ACCEPTED = "ACCEPTED"
    REJECTED = "REJECTED"
    INCOMPLETE = "INCOMPLETE"


@dataclass(frozen=True, slots=True)
class Limit:
    """What a measure must keep to. With neither bound, the policy says that the measure is only reported.

    With `warn_undecided`, a measure that could not be told from the limit is a warning and not an open question.
    """

    minimum: float | None = None
    maximum: float | None = None
    warn_undecided: bool = False

    def __post_init__(self) -> None:
        """Refuse limits that nothing can keep, and infinite ones, which everything keeps."""
        for name, bound in (("min", self.minimum), ("max", self.maximum)):
            if bound is not None and not math.isfinite(bound):
                message = f"{name} is {bound}, which is no number to judge by"
                raise ValueError(message)
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            message = f"min {self.minimum:g} is above max {self.maximum:g}"
            raise ValueError(message)

    @property
    def reported_only(self) -> bool:
        """Whether no value breaks it."""
        return self.minimum is None and self.maximum is None

    def allows(self, value: float) -> bool:
        """Compare; a bound itself is allowed."""
        above = self.minimum is None or value >= self.minimum
        below = self.maximum is None or value <= self.maximum
        return above and below

    def holds(self, low: float, high: float) -> bool | None:
        """Tell whether what lies between two values keeps the limit; None if it cannot be told.

        It keeps it only if all of the interval does, and breaks it only if no value in the interval keeps it.
        """
        if self.allows(low) and self.allows(high):
            return True
        beyond = (self.maximum is not None and low > self.maximum) or (self.minimum is not None and high < self.minimum)
        return False if beyond else None

    def excess(self, value: float, *, of_one: bool = False) -> float:
        """Tell by how many times a value breaks the limit; 1 or less if it keeps it.

        Args:
            value: what was measured.
            of_one: whether 1 is the best value there is, as of shares and F1: then what is lacking to 1 is
                compared, so that .90 breaks a limit of .99 ten times.
        """
        ratios = [0.0]
        if self.maximum is not None:
            # of a limit of 0, each count is one too many
            ratios.append(value / self.maximum if self.maximum > 0 else value - self.maximum)
        if self.minimum is not None and of_one and self.minimum < 1:
            ratios.append((1 - value) / (1 - self.minimum))
        elif self.minimum is not None:
            ratios.append(self.minimum / value if value > 0 else math.inf)
        return max(ratios)

    def __str__(self) -> str:
        """Write it as a person would: `≥ 0.9`."""
        if self.reported_only:
            return "reported"
        bounds = []
        if self.minimum is not None:
            bounds.append(f"≥ {self.minimum:g}")
        if self.maximum is not None:
            bounds.append(f"≤ {self.maximum:g}")
        return " and ".join(bounds)


@dataclass(frozen=True, slots=True)
class Waiver:
    """A limit that may be broken until a day, and why."""

    key: MeasureKey
    reason: str
    expires: datetime.date


@dataclass(frozen=True, slots=True)
class Policy:
    """The limit of every measure, and the waivers."""

    limits: Mapping[MeasureKey, Limit]
    waivers: tuple[Waiver, ...] = ()

    def waiver(self, key: MeasureKey) -> Waiver | None:
        """Find the waiver for a measure."""
        return next((waiver for waiver in self.waivers if waiver.key == key), None)


class Standing(Enum):
    """How a measure stands to its limit."""

    KEPT = "kept"
    BROKEN = "broken"
    UNDECIDED = "undecided"
    WARNED = "warning"
    WAIVED = "waived"
    REPORTED = "reported"
    NO_LIMIT = "no limit"


_REJECTING = frozenset({Standing.BROKEN, Standing.NO_LIMIT})
_SETTLE = 'judge again on a quieter machine, or say undecided = "warn" beside the limit in the policy'


@dataclass(frozen=True, slots=True)
class Finding:
    """A measure beside its limit."""

    measure: Measure
    limit: Limit | None
    standing: Standing

    @property
    def rejects(self) -> bool:
        """Whether it decides against the candidate."""
        return self.standing in _REJECTING

    @property
    def open(self) -> bool:
        """Whether it leaves the question open, so that the candidate is not accepted either."""
        return self.standing is Standing.UNDECIDED

    @property
    def excess(self) -> float:
        """By how many times the limit is broken; see `Limit.excess`. Without a limit, beyond all."""
        if self.limit is None:
            return math.inf
        return self.limit.excess(self.measure.value, of_one=self.measure.unit in {Unit.SHARE, Unit.F1})

    def __str__(self) -> str:
        """Write it as one line: `parity.fp32.… = 0.05 logit, limit ≤ 0.001`."""
        unit = "" if self.measure.unit in {Unit.COUNT, Unit.SHARE, Unit.F1} else f" {self.measure.unit.value}"
        limit = "no limit in the policy" if self.limit is None else f"limit {self.limit}"
        return f"{self.measure.key} = {self._rounded(self.measure.value)}{unit}{self._interval()}, {limit}"

    def _interval(self) -> str:
        if self.measure.interval is None:
            return ""
        low, high = map(self._rounded, self.measure.interval)
        return f" ({low} to {high})"

    def _rounded(self, value: float) -> str:
        """Round a value, but not across the limit: 0.98999 does not read 0.99 beside `≥ 0.99`."""
        limit = self.limit or Limit()
        texts = (f"{value:.{digits}g}" for digits in (4, 6, 9))
        return next((text for text in texts if limit.allows(float(text)) == limit.allows(value)), repr(value))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, what it rests on, and why it is not better."""

    decision: Decision
    findings: tuple[Finding, ...]
    problems: tuple[str, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings that reject the candidate."""
        return tuple(finding for finding in self.findings if finding.rejects)

    @property
    def undecided(self) -> tuple[Finding, ...]:
        """The findings that leave open whether a limit is kept."""
        return tuple(finding for finding in self.findings if finding.open)


def compare(policy: Policy, measure: Measure) -> Finding:
    """Hold one measure against the policy. A measure without a limit is as bad as a broken one."""
    limit = policy.limits.get(measure.key)
    if limit is None:
        return Finding(measure, None, Standing.NO_LIMIT)
    if limit.reported_only:
        return Finding(measure, limit, Standing.REPORTED)
    return Finding(measure, limit, _standing(limit, measure, waived=policy.waiver(measure.key) is not None))


def _standing(limit: Limit, measure: Measure, *, waived: bool) -> Standing:
    kept = limit.holds(*measure.ends)
    if kept:
        return Standing.KEPT
    if waived:
        return Standing.WAIVED
    if kept is False:
        return Standing.BROKEN
    return Standing.WARNED if limit.warn_undecided else Standing.UNDECIDED


def decide(policy: Policy, promised: Mapping[MeasureKey, Promise], evidence: Evidence) -> Verdict:
    """Decide about a candidate.

    Args:
        policy: the limits.
        promised: every measure that must be there exactly once; of those that are optional, those that the policy limits.
        evidence: what happened.

    Returns:
        REJECTED if a limit is broken; else INCOMPLETE if anything is missing, did not run to its end,
        or cannot be told from its limit; else ACCEPTED. The order of outcomes and measures in the evidence never matters.
    """
    measures = sorted(evidence.measures, key=lambda measure: (measure.key, measure.value, measure.unit.value))
    findings = tuple(compare(policy, measure) for measure in measures)
    some_broken = any(finding.rejects for finding in findings)
    undecided = [finding for finding in findings if finding.open]
    required = {key for key, promise in promised.items() if not (promise.optional and _reported_only(policy, key))}
    problems = (
        *evidence.problems,
        *_session_problems(evidence),
        *_outcome_problems(evidence, explained=some_broken or bool(undecided)),
        *_measure_problems(promised, required, evidence),
        *(f"{finding}: it cannot be told which side of the limit it is on; {_SETTLE}" for finding in undecided),
    )
    if some_broken:
        return Verdict(Decision.REJECTED, findings, problems)
    if problems:
        return Verdict(Decision.INCOMPLETE, findings, problems)
    return Verdict(Decision.ACCEPTED, findings, problems)


def _session_problems(evidence: Evidence) -> list[str]:
    problems = []
    if evidence.deselected:
        problems.append(f"{evidence.deselected} tests were deselected; every test of a suite has to run")
    if evidence.collected == 0:
        problems.append("no test was collected")
    if len(evidence.outcomes) != evidence.collected:
        problems.append(f"{evidence.collected} tests were collected, {len(evidence.outcomes)} reported a result")
    quiet = sorted(set(evidence.suites) - {outcome.suite for outcome in evidence.outcomes})
    problems.extend(f"no test of the suite {name} ran" for name in quiet)
    return problems


def _outcome_problems(evidence: Evidence, *, explained: bool) -> list[str]:
    problems = []
    for outcome in sorted(evidence.outcomes, key=lambda one: (one.suite, one.test, one.result.value, one.reason)):
        match outcome.result:
            case Result.PASSED:
                continue
            case Result.FAILED if outcome.limit_broken and explained:
                continue  # the limit that is not kept speaks for it
            case Result.FAILED:
                problems.append(f"{outcome.test} failed without breaking a limit: {outcome.reason}")
            case Result.ERROR | Result.SKIPPED | Result.XFAILED | Result.XPASSED | Result.RERUN:
                problems.append(f"{outcome.test} ended as {outcome.result.value}: {outcome.reason}")
    return problems


def _reported_only(policy: Policy, key: MeasureKey) -> bool:
    limit = policy.limits.get(key)
    return limit is not None and limit.reported_only


def _measure_problems(
    promised: Mapping[MeasureKey, Promise], required: Collection[MeasureKey], evidence: Evidence
) -> list[str]:
    counts = Counter(measure.key for measure in evidence.measures)
    problems = [f"the promised measure {key} is missing" for key in sorted(required) if key not in counts]
    problems.extend(
        f"the measure {key} was recorded {count} times" for key, count in sorted(counts.items()) if count > 1
    )
    problems.extend(
        f"the measure {key} was recorded but no suite promises it" for key in sorted(counts) if key not in promised
    )
    for measure in evidence.measures:
        promise = promised.get(measure.key)
        if promise is not None and promise.unit is not measure.unit:
            problems.append(f"the measure {measure.key} came in {measure.unit.value}, promised in {promise.unit.value}")
    return sorted(problems)
