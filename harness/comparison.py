"""Hold two runs against each other, measure by measure: better, worse, the same, or nothing to be said.

What cannot be compared fairly, because machine or data differ, is marked so and decides nothing. Prints nothing; which
two runs these are is for `harness.selection`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from harness.errors import UsageError, one_line
from harness.evidence import MeasureKey, Unit
from harness.history import Entry, Recorded, Samples
from harness.shift import Shift, shift

# What the suites that come with the harness say about time and about the files alone. Measures of other suites are taken
# to be of the data, and of time if their unit is.
_TIMED_SUITE = "latency"
_FILES_SUITE = "artifact"


class Kind(Enum):
    """What a measure is about, which settles when a difference counts."""

    TIME = "time"
    SIZE = "size"
    SCORE = "score"
    CLOSENESS = "closeness"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What is left to noise and to taste: a measure is worse only beyond this.

    Attributes:
        time: of ratios of time, milliseconds and queries a second; a share of the baseline's value.
        size: of memory and files; a share of the baseline's value.
        score: of F1 and shares, such as label agreement; absolute.
        closeness: of differences of logits and other ratios; a share of the measure's limit.
        count: of counts that have a lower limit, such as how many queries were compared; a share of the baseline's value.
            Counts with an upper limit count things that must not be, and have no tolerance.
    """

    time: float = 0.10
    size: float = 0.10
    score: float = 0.005
    closeness: float = 0.10
    count: float = 0.10

    def __post_init__(self) -> None:
        """Refuse tolerances that are none."""
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                message = (
                    f"the tolerance for {name} is {value}, which is no share from 0 up. Write it as in {name}=0.1."
                )
                raise UsageError(message)


class Change(Enum):
    """What became of a measure."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    DIFFERS = "differs"  # and nothing says which way is good
    CANNOT_TELL = "cannot tell"
    NOT_COMPARABLE = "not comparable"


class Method(Enum):
    """Where a bound comes from."""

    SHIFT = "99 % interval of the Hodges-Lehmann shift of the paired log ratios"
    INTERVALS = "ends of the 95 % intervals, or of the few values, of either run"


@dataclass(frozen=True, slots=True)
class Bound:
    """Where the ratio of the subject's to the baseline's value lies."""

    low: float
    high: float
    method: Method


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure of two runs. `ratio` is subject over baseline, for what is compared by ratio; else there is a difference.

    `counts` says whether it being worse is a regression: absolute times of two runs are shown, but say more about what
    else the machine did.
    """

    key: MeasureKey
    subject: Recorded | None
    baseline: Recorded | None
    change: Change
    kind: Kind
    ratio: float | None = None
    bound: Bound | None = None
    reason: str = ""
    counts: bool = True

    @property
    def regression(self) -> bool:
        """Whether it is worse, and that is to be held against the subject."""
        return self.change is Change.WORSE and self.counts


@dataclass(frozen=True, slots=True)
class Rules:
    """How runs are compared."""

    tolerances: Tolerances = field(default_factory=Tolerances)
    across_machines: bool = False
    absolute_times: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, what differs around them, and what became of each measure."""

    subject: Entry
    baseline: Entry
    differences: tuple[str, ...]
    measures: tuple[Compared, ...]

    @property
    def regressions(self) -> tuple[Compared, ...]:
        """The measures that speak against the subject."""
        return tuple(one for one in self.measures if one.regression)

    @property
    def decided(self) -> bool:
        """Whether a single measure could be compared."""
        return any(one.change is not Change.NOT_COMPARABLE for one in self.measures)

    def of(self, change: Change) -> tuple[Compared, ...]:
        """The measures of which the same became."""
        return tuple(one for one in self.measures if one.change is change)


def compare_runs(subject: Entry, baseline: Entry, rules: Rules | None = None) -> Comparison:
    """Compare every measure that either run has.

    Args:
        subject: the run that is asked about.
        baseline: the run that it is held against.
        rules: tolerances, and whether times of two machines may be compared.
    """
    rules = rules or Rules()
    ours, theirs = subject.measures(), baseline.measures()
    our_samples, their_samples = subject.samples(), baseline.samples()
    measures = tuple(
        _compared(
            _Two(key, ours.get(key), theirs.get(key), our_samples.get(key), their_samples.get(key)),
            _obstacle(key, ours.get(key) or theirs[key], subject, baseline, rules),
            rules,
        )
        for key in sorted({*ours, *theirs})
    )
    return Comparison(subject, baseline, tuple(differences_between(subject, baseline)), measures)


def differences_between(subject: Entry, baseline: Entry) -> list[str]:
    """Name what differs between the runs besides their measures."""
    pairs: tuple[tuple[str, object, object], ...] = (
        ("line", subject.line, baseline.line),
        ("machine", subject.machine, baseline.machine),
        ("command", subject.kind.value, baseline.kind.value),
        ("data", subject.digests.data[:19], baseline.digests.data[:19]),
        ("reference", subject.digests.reference[:19], baseline.digests.reference[:19]),
        ("policy", subject.digests.policy[:19], baseline.digests.policy[:19]),
    )
    found = [f"{name}: {baseline} → {subject}" for name, subject, baseline in pairs if subject != baseline]
    for name in sorted({*subject.versions, *baseline.versions}):
        now, before = subject.versions.get(name, "not noted"), baseline.versions.get(name, "not noted")
        if now != before:
            found.append(f"version of {name}: {before} → {now}")
    return found


def _obstacle(key: MeasureKey, measure: Recorded, subject: Entry, baseline: Entry, rules: Rules) -> str:
    """Say why a measure of these runs cannot be compared; empty if it can."""
    if subject.digests.data != baseline.digests.data and key.suite != _FILES_SUITE:
        return "data differ"
    timed = key.suite == _TIMED_SUITE or _is_absolute_time(measure.unit)
    if timed and subject.machine != baseline.machine and not rules.across_machines:
        return "machines differ"
    return ""


def _is_absolute_time(unit: Unit) -> bool:
    return unit in {Unit.MILLISECOND, Unit.QUERIES_PER_SECOND}


@dataclass(frozen=True, slots=True)
class _Two:
    """What both runs say of a measure."""

    key: MeasureKey
    subject: Recorded | None
    baseline: Recorded | None
    subject_samples: Samples | None
    baseline_samples: Samples | None


def _compared(two: _Two, obstacle: str, rules: Rules) -> Compared:
    measure = two.subject or two.baseline
    assert measure is not None
    kind = kind_of(two.key, measure.unit)
    if two.subject is None or two.baseline is None:
        obstacle = "only in the subject" if two.baseline is None else "only in the baseline"
    elif two.subject.unit is not two.baseline.unit:
        obstacle = f"units differ ({two.baseline.unit.value} → {two.subject.unit.value})"
    if obstacle or two.subject is None or two.baseline is None:
        return Compared(two.key, two.subject, two.baseline, Change.NOT_COMPARABLE, kind, reason=obstacle)
    judge = _compare_by_ratio if kind in {Kind.TIME, Kind.SIZE} else _compare_by_difference
    found = judge(two, two.subject, two.baseline, kind, rules)
    return _crossed(found, two.subject, two.baseline, two.subject_samples)


def kind_of(key: MeasureKey, unit: Unit) -> Kind:
    """Say what a measure is about."""
    match unit:
        case Unit.MILLISECOND | Unit.QUERIES_PER_SECOND:
            return Kind.TIME
        case Unit.MEBIBYTE:
            return Kind.SIZE
        case Unit.F1 | Unit.SHARE:
            return Kind.SCORE
        case Unit.COUNT:
            return Kind.COUNT
        case Unit.LOGIT:
            return Kind.CLOSENESS
        case Unit.RATIO:
            return Kind.TIME if key.suite == _TIMED_SUITE else Kind.CLOSENESS


class _Better(Enum):
    """Which way is good."""

    LOWER = -1
    HIGHER = 1


def _better(subject: Recorded, baseline: Recorded, kind: Kind) -> _Better | None:
    """Tell which way is good: what the limit demands, the subject's first; for times and sizes else by the unit.

    None where nothing says it: without a limit a share may be of agreement or of failures.
    """
    for limit in (subject.limit, baseline.limit):
        if limit.minimum is None and limit.maximum is not None:
            return _Better.LOWER
        if limit.maximum is None and limit.minimum is not None:
            return _Better.HIGHER
        if not limit.reported_only:
            return None  # a range: neither way is good
    if kind in {Kind.TIME, Kind.SIZE}:
        return _Better.HIGHER if subject.unit is Unit.QUERIES_PER_SECOND else _Better.LOWER
    return None


def _compare_by_ratio(two: _Two, subject: Recorded, baseline: Recorded, kind: Kind, rules: Rules) -> Compared:
    """Compare times and sizes: worse is what is, with its whole bound, beyond the tolerance."""
    ratio, bound = _ratio(two, subject, baseline)
    tolerance = rules.tolerances.time if kind is Kind.TIME else rules.tolerances.size
    better = _better(subject, baseline, kind)
    change, reason = Change.CANNOT_TELL, ""
    if ratio is None:
        reason = "no ratio of values that are not above 0"
    elif bound is None and kind is Kind.TIME and _beyond(ratio, tolerance):
        reason = "no samples to tell it from noise"
    else:
        change = _verdict(bound or Bound(ratio, ratio, Method.INTERVALS), tolerance, better)
    counts = rules.absolute_times or not _is_absolute_time(subject.unit)
    if change is Change.WORSE and not counts:
        reason = "absolute time: shown, not counted"
    return Compared(two.key, subject, baseline, change, kind, ratio, bound, reason, counts)


def _ratio(two: _Two, subject: Recorded, baseline: Recorded) -> tuple[float | None, Bound | None]:
    ours, theirs = two.subject_samples, two.baseline_samples
    if ours and theirs and ours.log_ratios and theirs.log_ratios:
        found = shift(ours.log_ratios, theirs.log_ratios)
        return math.exp(found.estimate), _shift_bound(found)
    if min(subject.value, baseline.value) <= 0:
        return (1.0, None) if subject.value == baseline.value else (None, None)
    ratio = subject.value / baseline.value
    if ours and theirs and ours.interval and theirs.interval:
        (our_low, our_high), (their_low, their_high) = ours.interval, theirs.interval
        return ratio, Bound(our_low / their_high, our_high / their_low, Method.INTERVALS)
    return ratio, None


def _shift_bound(found: Shift) -> Bound | None:
    if found.low is None or found.high is None:
        return None
    return Bound(math.exp(found.low), math.exp(found.high), Method.SHIFT)


def _beyond(ratio: float, tolerance: float) -> bool:
    return not 1 / (1 + tolerance) <= ratio <= 1 + tolerance


def _verdict(bound: Bound, tolerance: float, better: _Better | None) -> Change:
    """Say only what holds for every value in the bound.

    That the bound does not hold 1 is not enough. It speaks for the calls of two sessions, and two sessions of one export
    differ by more than their calls do (Kalibera & Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013).
    """
    if not _beyond(bound.low, tolerance) and not _beyond(bound.high, tolerance):
        return Change.SAME
    slower, faster = bound.low > 1 + tolerance, bound.high < 1 / (1 + tolerance)
    if not slower and not faster:
        return Change.CANNOT_TELL
    if better is None:
        return Change.DIFFERS
    return Change.BETTER if slower is (better is _Better.HIGHER) else Change.WORSE


def _compare_by_difference(two: _Two, subject: Recorded, baseline: Recorded, kind: Kind, rules: Rules) -> Compared:
    """Compare what is counted or computed: the same files on the same data give the same values every time."""
    better = _better(subject, baseline, kind)
    difference = subject.value - baseline.value
    if abs(difference) <= _allowed(subject, baseline, kind, rules.tolerances) * (1 + 1e-9):
        change = Change.SAME
    elif better is None:
        change = Change.DIFFERS
    else:
        change = Change.BETTER if (difference > 0) is (better is _Better.HIGHER) else Change.WORSE
    return Compared(two.key, subject, baseline, change, kind)


def _allowed(subject: Recorded, baseline: Recorded, kind: Kind, tolerances: Tolerances) -> float:
    """Tell by how much a value may differ and still be the same."""
    limit = baseline.limit if subject.limit.reported_only else subject.limit
    if kind is Kind.SCORE:
        return tolerances.score
    if kind is Kind.COUNT:
        return tolerances.count * abs(baseline.value) if limit.minimum is not None and limit.maximum is None else 0.0
    bound = limit.maximum if limit.maximum is not None else limit.minimum
    return tolerances.closeness * abs(bound if bound is not None else baseline.value)


def _crossed(found: Compared, subject: Recorded, baseline: Recorded, samples: Samples | None) -> Compared:
    """Call worse what breaks the limit that the baseline kept to, by however little.

    What has an interval breaks it only where no value in the interval keeps it, as in the verdict.
    """
    limit = subject.limit
    ends = (*(samples.interval or ()), subject.value) if samples else (subject.value,)
    if limit.holds(min(ends), max(ends)) is not False or not limit.allows(baseline.value):
        return found
    reason = f"breaks the limit {limit}, which the baseline kept"
    return Compared(
        found.key, subject, baseline, Change.WORSE, found.kind, found.ratio, found.bound, reason, counts=True
    )


def tolerances_from(texts: list[str]) -> Tolerances:
    """Read tolerances as people type them: `time=0.15`.

    Raises:
        UsageError: a kind that there is not, or no number.
    """
    given: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in Tolerances.__dataclass_fields__:
            known = ", ".join(Tolerances.__dataclass_fields__)
            message = f"--tolerance {one_line(text, 60)}: write KIND=SHARE, as in time=0.15; the kinds are {known}."
            raise UsageError(message)
        try:
            given[name] = float(value)
        except ValueError as err:
            message = (
                f"--tolerance {one_line(text, 60)}: {one_line(value, 40)!r} is no number. Write it as in {name}=0.1."
            )
            raise UsageError(message) from err
    return Tolerances(**given)


def totals(comparison: Comparison) -> Mapping[Change, int]:
    """Count of how many measures the same became."""
    return {change: len(comparison.of(change)) for change in Change}
