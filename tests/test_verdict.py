"""Deciding: what rejects, what leaves the question open, and that nothing else is ever accepted."""

from __future__ import annotations

import dataclasses
import datetime
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.evidence import Evidence, Measure, MeasureKey, Outcome, Result, Unit
from harness.suite import Promise
from harness.verdict import Decision, Limit, Policy, Standing, Waiver, compare, decide

AGREEMENT = MeasureKey("parity", "fp32", "label_agreement")
DIFFERENCE = MeasureKey("parity", "fp32", "max_logit_difference")
SPEED = MeasureKey("latency", "fp32", "ratio")
SIZE = MeasureKey("latency", "fp32", "size")
STRANGER = MeasureKey("parity", "int8", "label_agreement")
UNITS = {AGREEMENT: Unit.SHARE, DIFFERENCE: Unit.LOGIT, SPEED: Unit.RATIO, SIZE: Unit.MEBIBYTE}
PROMISED = {key: Promise(key.name, unit) for key, unit in UNITS.items()}
LIMITS = {
    AGREEMENT: Limit(minimum=0.99),
    DIFFERENCE: Limit(maximum=0.001),
    SPEED: Limit(0.1, 0.9),
    SIZE: Limit(),
}
POLICY = Policy(LIMITS)
GOOD_VALUES = {AGREEMENT: 1.0, DIFFERENCE: 0.0, SPEED: 0.5, SIZE: 80.0}
BAD_VALUES = {AGREEMENT: 0.5, DIFFERENCE: 0.5, SPEED: 1.5}
OPEN_RESULTS = [result for result in Result if result not in {Result.PASSED, Result.FAILED}]
BADNESS = {Decision.ACCEPTED: 0, Decision.INCOMPLETE: 1, Decision.REJECTED: 2}

results = st.sampled_from(Result)
values = st.floats(-1e6, 1e6)
bounds = st.one_of(st.none(), st.floats(-1e6, 1e6))


def measure(key, value=None, unit=None):
    return Measure(key, GOOD_VALUES[key] if value is None else value, unit or UNITS[key])


def timed(value, low, high, key=SPEED):
    return Measure(key, value, UNITS[key], interval=(low, high))


def outcome(suite="parity", test="test_a", result=Result.PASSED, **more):
    return Outcome(suite, test, result, 0.1, **more)


def evidence(**changes):
    """Evidence that every limit is kept, with whatever is to be different about it."""
    outcomes = changes.pop("outcomes", (outcome(), outcome(test="test_b"), outcome("latency", "test_c")))
    good = {
        "run_id": "run",
        "candidate_digest": "sha256:0",
        "variants": ("fp32",),
        "suites": ("latency", "parity"),
        "collected": len(outcomes),
        "deselected": 0,
        "outcomes": outcomes,
        "measures": tuple(measure(key) for key in PROMISED),
        "problems": (),
        "environment": {},
    }
    return Evidence(**{**good, **changes})


def with_value(key, value):
    """Good evidence in which one measure came out differently."""
    return evidence(measures=tuple(measure(other, value if other == key else None) for other in PROMISED))


def verdict(found, policy=POLICY, promised=PROMISED):
    return decide(policy, promised, found)


def only_problem(found, **more):
    """The one problem for which a candidate is not accepted."""
    decided = verdict(found, **more)
    assert decided.decision is Decision.INCOMPLETE
    (problem,) = decided.problems
    return problem


@st.composite
def limits(draw):
    """Any limit that can be written: one bound, both, or none."""
    low, high = draw(bounds), draw(bounds)
    if low is not None and high is not None and low > high:
        low, high = high, low
    return Limit(low, high)


@st.composite
def sessions(draw):
    """Evidence of all kinds: as often good as bad in one or several ways."""
    found = evidence()
    for change in draw(
        st.lists(st.sampled_from(("value", "drop", "outcome", "problem", "count", "again")), max_size=3)
    ):
        if change == "value":
            place = draw(st.integers(0, len(found.measures) - 1)) if found.measures else None
            if place is not None:
                new = dataclasses.replace(found.measures[place], value=draw(values))
                found = dataclasses.replace(
                    found, measures=(*found.measures[:place], new, *found.measures[place + 1 :])
                )
        elif change == "drop":
            found = dataclasses.replace(found, measures=found.measures[1:])
        elif change == "outcome":
            extra = outcome(
                draw(st.sampled_from(("parity", "latency"))),
                draw(st.sampled_from(("test_a", "test_z"))),
                draw(results),
                reason=draw(st.sampled_from(("", "because"))),
                limit_broken=draw(st.booleans()),
            )
            found = dataclasses.replace(found, outcomes=(*found.outcomes, extra), collected=found.collected + 1)
        elif change == "problem":
            found = dataclasses.replace(found, problems=(*found.problems, "something happened"))
        elif change == "count":
            found = dataclasses.replace(found, collected=draw(st.integers(0, 5)), deselected=draw(st.integers(0, 2)))
        else:
            key = draw(st.sampled_from((*PROMISED, STRANGER)))
            extra_measure = Measure(key, draw(values), draw(st.sampled_from(Unit)))
            found = dataclasses.replace(found, measures=(*found.measures, extra_measure))
    return found


# -- limits ----------------------------------------------------------------------------------------------------------


@given(limits(), values)
def test_a_bound_is_allowed_and_nothing_beyond_it(limit, value):
    """A limit allows its own bounds and every value between them, and no other."""
    inside = (limit.minimum is None or value >= limit.minimum) and (limit.maximum is None or value <= limit.maximum)
    assert limit.allows(value) == inside
    for bound in (limit.minimum, limit.maximum):
        if bound is not None:
            assert limit.allows(bound)
    if limit.minimum is not None:
        assert not limit.allows(math.nextafter(limit.minimum, -math.inf))
    if limit.maximum is not None:
        assert not limit.allows(math.nextafter(limit.maximum, math.inf))


@pytest.mark.parametrize(
    ("limit", "value", "of_one", "times"),
    [
        (Limit(maximum=0.05), 0.5, False, 10),
        (Limit(maximum=0.05), 0.025, False, 0.5),
        (Limit(maximum=0), 3, False, 3),
        (Limit(maximum=0), 0, False, 0),
        (Limit(minimum=0.99), 0.9, True, 10),
        (Limit(minimum=0.99), 0.995, True, 0.5),
        (Limit(minimum=200), 50, False, 4),
        (Limit(minimum=200), 0, False, math.inf),
        (Limit(minimum=7, maximum=10), 20, False, 2),
        (Limit(minimum=1), 0.5, True, 2),
        (Limit(), 5, False, 0),
    ],
)
def test_by_how_much_a_limit_is_broken(limit, value, of_one, times):
    """The excess says how many times a value breaks the limit; a share is compared by what it lacks to 1."""
    assert limit.excess(value, of_one=of_one) == pytest.approx(times)


@given(st.floats(-100, 100), st.floats(0.01, 100))
def test_only_what_is_broken_exceeds(value, bound):
    """A value that a limit allows exceeds it once at most, one that it does not, once at least."""
    for limit in (Limit(maximum=bound), Limit(minimum=bound)):
        times = limit.excess(value)
        assert times <= 1 if limit.allows(value) else times >= 1


@pytest.mark.parametrize(
    "arguments",
    [(1.0, 0.5), (math.nan, None), (None, math.nan), (math.inf, None), (None, -math.inf), (None, math.inf)],
)
def test_limits_that_mean_nothing_cannot_exist(arguments):
    """A minimum above the maximum, NaN and infinity are no limits."""
    with pytest.raises(ValueError, match=r"^m(in|ax) "):
        Limit(*arguments)


def test_limits_as_text():
    """A limit reads as a person would write it."""
    texts = [str(limit) for limit in (Limit(0.5), Limit(None, 2.0), Limit(0.5, 2.0), Limit())]
    assert texts == ["≥ 0.5", "≤ 2", "≥ 0.5 and ≤ 2", "reported"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_measures_that_are_no_number_cannot_exist(value):
    """NaN and infinity never become a measure, so they are never compared."""
    with pytest.raises(ValueError, match=r"parity\.fp32\.label_agreement is (nan|inf|-inf)"):
        Measure(AGREEMENT, value, Unit.SHARE)


# -- compare ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "standing"),
    [
        (AGREEMENT, 0.99, Standing.KEPT),
        (AGREEMENT, 0.98, Standing.BROKEN),
        (DIFFERENCE, 0.001, Standing.KEPT),
        (DIFFERENCE, 0.002, Standing.BROKEN),
        (SPEED, 0.05, Standing.BROKEN),
        (SPEED, 0.95, Standing.BROKEN),
        (SIZE, 1e9, Standing.REPORTED),
    ],
)
def test_standing(key, value, standing):
    """A measure within its limit is kept, one outside is broken, one without bounds is only reported."""
    assert compare(POLICY, measure(key, value)).standing is standing


@pytest.mark.parametrize(
    ("limit", "low", "high", "standing"),
    [
        (Limit(maximum=0.9), 0.7, 0.9, Standing.KEPT),
        (Limit(maximum=0.9), 0.7, 0.91, Standing.UNDECIDED),
        (Limit(maximum=0.9), 0.9, 1.1, Standing.UNDECIDED),
        (Limit(maximum=0.9), 0.91, 1.1, Standing.BROKEN),
        (Limit(minimum=0.5), 0.5, 0.9, Standing.KEPT),
        (Limit(minimum=0.5), 0.4, 0.9, Standing.UNDECIDED),
        (Limit(minimum=0.5), 0.4, 0.49, Standing.BROKEN),
        (Limit(0.5, 0.9), 0.4, 1.0, Standing.UNDECIDED),
        (Limit(0.5, 0.9), 0.91, 1.0, Standing.BROKEN),
        (Limit(0.5, 0.9), 0.5, 0.9, Standing.KEPT),
        (Limit(maximum=0.9, warn_undecided=True), 0.7, 0.91, Standing.WARNED),
        (Limit(maximum=0.9, warn_undecided=True), 0.91, 1.1, Standing.BROKEN),
        (Limit(warn_undecided=True), 0.7, 0.91, Standing.REPORTED),
    ],
)
def test_standing_of_an_interval(limit, low, high, standing):
    """A limit is kept only if the whole interval keeps it, and broken only if nothing in the interval does."""
    policy = Policy({SPEED: limit})
    assert compare(policy, timed((low + high) / 2, low, high)).standing is standing


@pytest.mark.parametrize("value", [0.7, 0.8, 0.95, 1.0])
def test_the_estimate_itself_decides_nothing(value):
    """Where between the ends of its interval a measure lies makes no difference."""
    assert compare(POLICY, timed(value, 0.7, 1.0)).standing is Standing.UNDECIDED


def test_what_cannot_be_told_is_incomplete():
    """A measure that cannot be told from its limit is neither accepted nor rejected, and the verdict says what to do."""
    found = evidence(measures=(*(measure(key) for key in UNITS if key != SPEED), timed(0.9, 0.85, 0.95)))
    assert only_problem(found) == (
        "latency.fp32.ratio = 0.9 ratio (0.85 to 0.95), limit ≥ 0.1 and ≤ 0.9: it cannot be told which side of the limit "
        'it is on; judge again on a quieter machine, or say undecided = "warn" beside the limit in the policy'
    )


def test_what_cannot_be_told_fails_its_test_once():
    """The test that the plugin fails for it is not told of a second time."""
    measures = (*(measure(key) for key in UNITS if key != SPEED), timed(0.9, 0.85, 0.95))
    failed = outcome("latency", "test_c", Result.FAILED, limit_broken=True)
    decided = verdict(evidence(measures=measures, outcomes=(outcome(), failed)))
    assert decided.decision is Decision.INCOMPLETE
    assert len(decided.problems) == 1
    assert [finding.measure.key for finding in decided.undecided] == [SPEED]


def test_what_cannot_be_told_may_be_a_warning():
    """A policy may say that it is a warning; what is plainly broken still rejects."""
    policy = Policy({**LIMITS, SPEED: Limit(maximum=0.9, warn_undecided=True)})
    others = [measure(key) for key in UNITS if key != SPEED]
    assert verdict(evidence(measures=(*others, timed(0.9, 0.85, 0.95))), policy).decision is Decision.ACCEPTED
    assert verdict(evidence(measures=(*others, timed(1, 0.95, 1.1))), policy).decision is Decision.REJECTED


def test_what_is_broken_comes_before_what_cannot_be_told():
    """A broken limit rejects, whatever else is open."""
    measures = (measure(AGREEMENT, 0.5), measure(DIFFERENCE), measure(SIZE), timed(0.9, 0.85, 0.95))
    assert verdict(evidence(measures=measures)).decision is Decision.REJECTED


def test_a_waiver_covers_what_cannot_be_told():
    """What may be broken may be undecided, too."""
    policy = Policy(LIMITS, (Waiver(SPEED, "the machine is being moved", datetime.date(2027, 1, 1)),))
    measures = (*(measure(key) for key in UNITS if key != SPEED), timed(0.9, 0.85, 0.95))
    decided = verdict(evidence(measures=measures), policy)
    assert decided.decision is Decision.ACCEPTED
    assert Standing.WAIVED in {finding.standing for finding in decided.findings}


def test_an_optional_measure_may_be_missing_only_without_a_limit():
    """What a run cannot always say may be missing where nobody relies on it; a limit on it makes it due."""
    optional = {**PROMISED, SIZE: Promise(SIZE.name, UNITS[SIZE], optional=True)}
    found = evidence(measures=tuple(measure(key) for key in UNITS if key != SIZE))
    assert decide(POLICY, optional, found).decision is Decision.ACCEPTED
    limited = Policy({**LIMITS, SIZE: Limit(maximum=100)})
    unnamed = Policy({key: limit for key, limit in LIMITS.items() if key != SIZE})
    for policy in (limited, unnamed):
        decided = decide(policy, optional, found)
        assert decided.decision is Decision.INCOMPLETE
        assert decided.problems == (f"the promised measure {SIZE} is missing",)


@pytest.mark.parametrize("interval", [(0.6, 0.7), (0.3, 0.4), (math.nan, 0.7), (0.3, math.inf), (0.7, 0.3)])
def test_intervals_that_are_none(interval):
    """An interval is finite and holds its value."""
    with pytest.raises(ValueError, match=r"measure latency\.fp32\.ratio is 0\.5 \("):
        Measure(SPEED, 0.5, Unit.RATIO, interval=interval)


def test_a_measure_without_a_limit():
    """What the policy does not name has no standing to be accepted on."""
    assert compare(POLICY, Measure(STRANGER, 1.0, Unit.SHARE)).standing is Standing.NO_LIMIT


@pytest.mark.parametrize(
    ("finding", "text"),
    [
        (measure(DIFFERENCE, 0.05), "parity.fp32.max_logit_difference = 0.05 logit, limit ≤ 0.001"),
        (measure(AGREEMENT, 0.5), "parity.fp32.label_agreement = 0.5, limit ≥ 0.99"),
        (measure(AGREEMENT, 0.989996), "parity.fp32.label_agreement = 0.989996, limit ≥ 0.99"),
        (Measure(STRANGER, 0.5, Unit.SHARE), "parity.int8.label_agreement = 0.5, no limit in the policy"),
        (measure(SIZE, 80.5), "latency.fp32.size = 80.5 MiB, limit reported"),
        (timed(0.85, 0.812, 0.90004), "latency.fp32.ratio = 0.85 ratio (0.812 to 0.90004), limit ≥ 0.1 and ≤ 0.9"),
    ],
)
def test_findings_as_text(finding, text):
    """A finding names the measure, its value with the unit, and the limit; a near miss does not look like a hit."""
    assert str(compare(POLICY, finding)) == text


# -- what is accepted ------------------------------------------------------------------------------------------------


def test_good_evidence_is_accepted():
    """With every promise kept and every test passed, the candidate is accepted and nothing is held against it."""
    decided = verdict(evidence())
    assert decided.decision is Decision.ACCEPTED
    assert decided.problems == ()
    assert decided.broken == ()
    assert [finding.measure.key for finding in decided.findings] == sorted(PROMISED)


@given(sessions())
def test_only_evidence_without_a_fault_is_accepted(found):
    """ACCEPTED means exactly this: all collected tests passed, each promise was kept once, each limit was kept."""
    counts = {key: sum(entry.key == key for entry in found.measures) for key in PROMISED}
    faultless = (
        not found.problems
        and found.deselected == 0
        and found.collected == len(found.outcomes) > 0
        and all(entry.result is Result.PASSED for entry in found.outcomes)
        and {entry.suite for entry in found.outcomes} >= set(found.suites)
        and set(counts.values()) == {1}
        and all(entry.key in PROMISED and UNITS[entry.key] is entry.unit for entry in found.measures)
        and all(LIMITS[entry.key].allows(entry.value) for entry in found.measures)
    )
    assert (verdict(found).decision is Decision.ACCEPTED) == faultless


@given(sessions(), st.sampled_from([*OPEN_RESULTS, Result.FAILED]), st.booleans())
def test_an_outcome_that_is_no_pass_is_never_accepted(found, result, limit_broken):
    """Whatever else happened, one test that did not pass is enough not to accept."""
    extra = outcome(test="test_extra", result=result, limit_broken=limit_broken)
    more = dataclasses.replace(found, outcomes=(*found.outcomes, extra), collected=found.collected + 1)
    assert verdict(more).decision is not Decision.ACCEPTED


# -- what is rejected ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", list(BAD_VALUES))
def test_a_broken_limit_rejects(key):
    """One limit broken rejects the candidate, and the verdict names it."""
    decided = verdict(with_value(key, BAD_VALUES[key]))
    assert decided.decision is Decision.REJECTED
    assert [finding.measure.key for finding in decided.broken] == [key]
    assert decided.problems == ()


def test_a_failed_test_is_explained_by_its_broken_limit():
    """The test that failed because of a limit is no problem of its own beside the finding."""
    bad = dataclasses.replace(
        with_value(DIFFERENCE, 1.0),
        outcomes=(outcome(result=Result.FAILED, limit_broken=True), outcome("latency")),
        collected=2,
    )
    decided = verdict(bad)
    assert decided.decision is Decision.REJECTED
    assert decided.problems == ()


@pytest.mark.parametrize(
    "problem",
    [
        {"problems": ("the judging session died of signal SIGKILL",)},
        {"deselected": 1},
        {"collected": 99},
        {"outcomes": (outcome(result=Result.SKIPPED), outcome("latency"))},
        {"suites": ("latency", "parity", "quality")},
        {"measures": (measure(DIFFERENCE, 0.5),)},
    ],
)
def test_a_broken_limit_rejects_even_where_something_is_missing(problem):
    """What is known to be bad stays bad, however little else is known; the problems are still told."""
    found = dataclasses.replace(with_value(DIFFERENCE, 0.5), **problem)
    decided = verdict(found)
    assert decided.decision is Decision.REJECTED
    assert decided.problems


def test_a_promised_measure_without_a_limit_rejects():
    """A measure that the policy forgot does not slip through."""
    policy = Policy({key: limit for key, limit in LIMITS.items() if key != SIZE})
    decided = verdict(evidence(), policy=policy)
    assert decided.decision is Decision.REJECTED
    assert [str(finding) for finding in decided.broken] == ["latency.fp32.size = 80 MiB, no limit in the policy"]


@given(sessions(), limits(), st.data())
def test_worse_never_looks_better(found, limit, data):
    """Moving a measure further out of its limit never improves the decision: no REJECTED becomes ACCEPTED."""
    assume(found.measures)
    place = data.draw(st.integers(0, len(found.measures) - 1))
    old = found.measures[place]
    policy = Policy({**LIMITS, old.key: limit})
    if limit.maximum is None and limit.minimum is None:
        value = data.draw(values)  # no value is worse than another, and none may change anything
    elif limit.minimum is None or (limit.maximum is not None and old.value > limit.minimum):
        value = old.value + data.draw(st.floats(0, 1e6))
        assume(limit.minimum is None or old.value >= limit.minimum)
    else:
        value = old.value - data.draw(st.floats(0, 1e6))
    new = dataclasses.replace(old, value=value)
    worse = dataclasses.replace(found, measures=(*found.measures[:place], new, *found.measures[place + 1 :]))
    assert BADNESS[verdict(worse, policy=policy).decision] >= BADNESS[verdict(found, policy=policy).decision]


@given(sessions(), st.randoms(use_true_random=False))
def test_order_never_matters(found, random):
    """Outcomes and measures in any order give the same decision, the same findings and the same problems."""
    outcomes, measures, suites = list(found.outcomes), list(found.measures), list(found.suites)
    for entries in (outcomes, measures, suites):
        random.shuffle(entries)
    shuffled = dataclasses.replace(found, outcomes=tuple(outcomes), measures=tuple(measures), suites=tuple(suites))
    assert verdict(shuffled) == verdict(found)


def test_order_does_not_matter_among_likes():
    """Nor does the order of two records of one measure, or of one test, that differ in nothing but what they say."""
    measures = (*map(measure, PROMISED), measure(AGREEMENT, unit=Unit.RATIO))
    outcomes = (
        outcome(result=Result.SKIPPED, reason="once"),
        outcome(result=Result.ERROR),
        outcome(result=Result.SKIPPED, reason="again"),
    )
    found = evidence(measures=measures, outcomes=outcomes)
    backwards = evidence(measures=measures[::-1], outcomes=outcomes[::-1])
    assert verdict(backwards) == verdict(found)


# -- what stays open -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", list(PROMISED))
def test_a_missing_measure(key):
    """A promised measure that nobody recorded leaves the question open."""
    found = evidence(measures=tuple(measure(other) for other in PROMISED if other != key))
    assert only_problem(found) == f"the promised measure {key} is missing"


def test_no_measures_at_all():
    """Passing tests alone, with nothing measured, prove nothing."""
    decided = verdict(evidence(measures=()))
    assert decided.decision is Decision.INCOMPLETE
    assert len(decided.problems) == len(PROMISED)


@pytest.mark.parametrize("second", [GOOD_VALUES[AGREEMENT], 0.995])
def test_a_measure_recorded_twice(second):
    """Of two values, equal or not, nobody knows which one counts."""
    found = evidence(measures=(*map(measure, PROMISED), measure(AGREEMENT, second)))
    assert only_problem(found) == f"the measure {AGREEMENT} was recorded 2 times"


def test_the_better_of_two_values_does_not_hide_the_worse():
    """A broken value rejects although a second one keeps the limit."""
    found = evidence(measures=(*map(measure, PROMISED), measure(AGREEMENT, 0.5)))
    assert verdict(found).decision is Decision.REJECTED


def test_an_unpromised_measure():
    """A measure that no suite promises, though it has a limit and keeps it, is out of order."""
    policy = Policy({**LIMITS, STRANGER: Limit(minimum=0.5)})
    found = evidence(measures=(*map(measure, PROMISED), Measure(STRANGER, 1.0, Unit.SHARE)))
    assert only_problem(found, policy=policy) == f"the measure {STRANGER} was recorded but no suite promises it"


def test_a_wrong_unit():
    """0.5 milliseconds are not 0.5 mebibytes."""
    found = evidence(measures=tuple(measure(key, unit=Unit.RATIO if key == SIZE else None) for key in PROMISED))
    assert only_problem(found) == f"the measure {SIZE} came in ratio, promised in MiB"


@pytest.mark.parametrize("result", OPEN_RESULTS, ids=lambda result: result.value)
def test_outcomes_that_judge_nothing(result):
    """A test that was skipped, expected to fail, run again, or never got to its end leaves the question open."""
    found = evidence(outcomes=(outcome(), outcome("latency", "test_c", result, reason="so it was")))
    assert only_problem(found) == f"test_c ended as {result.value}: so it was"


@pytest.mark.parametrize("limit_broken", [False, True])
def test_a_failure_without_a_broken_limit(limit_broken):
    """A test that failed on its own account, or whose broken measure got lost, leaves the question open."""
    failed = outcome("latency", "test_c", Result.FAILED, reason="KeyError: 'x'", limit_broken=limit_broken)
    assert (
        only_problem(evidence(outcomes=(outcome(), failed))) == "test_c failed without breaking a limit: KeyError: 'x'"
    )


def test_a_failure_of_its_own_beside_a_broken_limit():
    """A test that failed for another reason is told of although a limit rejects already."""
    bad = dataclasses.replace(
        with_value(DIFFERENCE, 1.0),
        outcomes=(
            outcome(result=Result.FAILED, limit_broken=True),
            outcome("latency", "test_c", Result.FAILED, reason="KeyError: 'x'"),
        ),
        collected=2,
    )
    assert verdict(bad).problems == ("test_c failed without breaking a limit: KeyError: 'x'",)


def test_deselected_tests():
    """A test that was left out cannot have passed."""
    assert only_problem(evidence(deselected=2)) == "2 tests were deselected; every test of a suite has to run"


@pytest.mark.parametrize("collected", [2, 4])
def test_collected_is_not_what_was_reported(collected):
    """A test that vanished, or reported twice, is noticed by the count."""
    assert only_problem(evidence(collected=collected)) == f"{collected} tests were collected, 3 reported a result"


def test_nothing_collected():
    """A session without a test accepts nothing, not even where nothing was promised."""
    found = evidence(outcomes=(), suites=(), measures=())
    assert only_problem(found, promised={}) == "no test was collected"


def test_a_suite_without_tests():
    """A suite that was asked for has to have run."""
    found = evidence(suites=("latency", "parity", "quality"))
    assert only_problem(found) == "no test of the suite quality ran"


def test_problems_of_the_session():
    """What went wrong around the tests is kept word for word."""
    assert only_problem(evidence(problems=("the session died",))) == "the session died"


# -- waivers ---------------------------------------------------------------------------------------------------------


def waiving(*keys):
    day = datetime.date(2026, 12, 31)
    return Policy(LIMITS, tuple(Waiver(key, "the disk is being replaced", day) for key in keys))


@pytest.mark.parametrize("key", list(BAD_VALUES))
def test_a_waiver_lets_its_measure_through(key):
    """A waived measure may break its limit, and is shown as waived."""
    decided = verdict(with_value(key, BAD_VALUES[key]), policy=waiving(key))
    assert decided.decision is Decision.ACCEPTED
    assert [finding.measure.key for finding in decided.findings if finding.standing is Standing.WAIVED] == [key]


@given(st.sets(st.sampled_from(sorted(BAD_VALUES))), st.sets(st.sampled_from(sorted(BAD_VALUES))))
def test_a_waiver_lets_no_other_measure_through(broken, waived):
    """Whatever is broken and not waived rejects; whatever is waived does not."""
    found = evidence(measures=tuple(measure(key, BAD_VALUES[key] if key in broken else None) for key in PROMISED))
    decided = verdict(found, policy=waiving(*waived))
    assert {finding.measure.key for finding in decided.broken} == broken - waived
    assert decided.decision is (Decision.REJECTED if broken - waived else Decision.ACCEPTED)


def test_a_waiver_is_for_one_variant():
    """A waiver for INT8 does not let the same measure of FP32 through."""
    assert verdict(with_value(AGREEMENT, 0.5), policy=waiving(STRANGER)).decision is Decision.REJECTED


def test_a_waiver_replaces_neither_the_measure_nor_its_limit():
    """A waived measure has to be there, once and in its unit, and to have a limit."""
    policy = waiving(AGREEMENT, STRANGER)
    missing = evidence(measures=tuple(measure(key) for key in PROMISED if key != AGREEMENT))
    assert only_problem(missing, policy=policy) == f"the promised measure {AGREEMENT} is missing"
    no_limit = evidence(measures=(*map(measure, PROMISED), Measure(STRANGER, 1.0, Unit.SHARE)))
    assert verdict(no_limit, policy=policy).decision is Decision.REJECTED


def test_a_kept_limit_needs_no_waiver():
    """A measure within its limit is kept, waived or not."""
    assert {finding.standing for finding in verdict(evidence(), policy=waiving(*BAD_VALUES)).findings} == {
        Standing.KEPT,
        Standing.REPORTED,
    }
