"""What is said first about a run is true: how near a limit is, what is worst, what to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_reports import document, finding, findings_of, made_run, open_finding, open_problem

from harness.account import read_account
from harness.errors import DocumentError
from harness.evidence import Measure, MeasureKey, Unit
from harness.highlights import gauge, interval_text, nearest, next_steps, sentence, value_text, worst_first
from harness.verdict import Finding, Limit, Standing
from harness.visible import visible

numbers = st.floats(allow_nan=False, allow_infinity=False)


def judged(value, minimum=None, maximum=None, unit=Unit.SHARE, standing=None):
    """A finding as `compare` would make it."""
    limit = Limit(minimum, maximum)
    standing = standing or (Standing.KEPT if limit.allows(value) else Standing.BROKEN)
    return Finding(Measure(MeasureKey("s", "int8", "m"), value, unit), limit, standing)


@pytest.mark.parametrize(
    ("value", "bounds", "unit", "used", "text"),
    [
        (0.5, (None, 2), Unit.LOGIT, 0.25, "25 % of the limit"),
        (2.0, (None, 2), Unit.LOGIT, 1.0, "100 % of the limit"),
        (1.9999, (None, 2), Unit.LOGIT, 0.99995, "99 % of the limit"),
        (0.998, (0.99, None), Unit.SHARE, 0.2, "20 % of the limit"),
        (1.0, (0.99, None), Unit.SHARE, 0.0, "0 % of the limit"),
        (20_000, (100, None), Unit.COUNT, 0.005, "1 % of the limit"),
        (18, (14, 21), Unit.COUNT, 1 / 7, "14 % of the limit"),
        (14, (14, 21), Unit.COUNT, 1.0, "100 % of the limit"),
        (5, (5, 5), Unit.COUNT, 1.0, "100 % of the limit"),
        (0, (None, 0), Unit.COUNT, 0.0, "none, as it must be"),
        (0, (0, None), Unit.F1, 1.0, "100 % of the limit"),
        (0, (0, None), Unit.COUNT, 1.0, "100 % of the limit"),
        (-0.01, (None, 0.005), Unit.F1, 0.0, "0 % of the limit"),
        (31, (None, 0), Unit.COUNT, 1.0, "31 too many"),
        (0.3, (None, 0.001), Unit.LOGIT, 1.0, "300 times the limit"),
        (2.0001, (None, 2), Unit.LOGIT, 1.0, "just over the limit"),
        (1e300, (None, 2), Unit.LOGIT, 1.0, "far beyond the limit"),
        (0.9, (0.99, None), Unit.SHARE, 1.0, "10 times the limit"),
        (1.001, (None, 1.1), Unit.RATIO, 0.01, "+0.1 %, +10 % allowed"),
        (1.21, (None, 1.1), Unit.RATIO, 1.0, "+21 %, +10 % allowed"),
        (0.27, (None, 0.5), Unit.RATIO, 0.54, "54 % of the limit"),
    ],
)
def test_how_near_a_limit_is(value, bounds, unit, used, text):
    """A gauge says how much of the limit is used, and never 100 % of what is not at the limit."""
    found = gauge(judged(value, *bounds, unit=unit))
    assert found.used == pytest.approx(used, abs=1e-9)
    assert found.text == text


def measured(value, interval, minimum=None, maximum=None, unit=Unit.MILLISECOND, standing=None):
    """A finding about a value with an interval, as `compare` would make it."""
    limit = Limit(minimum, maximum)
    measure = Measure(MeasureKey("s", "int8", "m"), value, unit, {}, interval)
    standings = {True: Standing.KEPT, False: Standing.BROKEN, None: Standing.UNDECIDED}
    return Finding(measure, limit, standing or standings[limit.holds(*measure.ends)])


@pytest.mark.parametrize(
    ("found", "used", "ends", "text"),
    [
        (measured(0.5, (0.4, 0.6), maximum=2), 0.25, (0.2, 0.3), "25 % of the limit, 30 % at worst"),
        (measured(1.9, (1.8, 1.9999), maximum=2), 0.95, (0.9, 0.99995), "95 % of the limit, 99 % at worst"),
        (measured(10, (8, 16), minimum=5), 0.5, (0.3125, 0.625), "50 % of the limit, 63 % at worst"),
        (measured(1.08, (1.03, 1.17), maximum=1.1), 1.08 / 1.1, (1.03 / 1.1, 1.17 / 1.1), "93.6 % to 106.4 % of the limit"),
        (measured(1.12, (1.0999, 1.17), maximum=1.1), 1.0, (1.0999 / 1.1, 1.17 / 1.1), "just under 100 % to 106.4 % of the limit"),
        (measured(2.2, (2.1, 2.4), maximum=2), 1.0, (1.05, 1.2), "1.1 times the limit"),
        (measured(1.2, (0.9, 90), maximum=1), 1.0, (None, None), "on either side of the limit"),
        (measured(1.02, (0.98, 1.05), maximum=1.1, unit=Unit.RATIO), 0.2, (0, 0.5), "-2 % to +5 %, +10 % allowed"),
        (measured(0.4, (0.3, 0.5), maximum=1.2, unit=Unit.RATIO), 0.0, (0, 0), "-70 % to -50 %, +20 % allowed"),
        (measured(0.4, (0.3, 0.5), maximum=0.8, unit=Unit.RATIO), 0.5, (0.375, 0.625), "50 % of the limit, 63 % at worst"),
        (measured(1.08, (1.03, 1.17), maximum=1.1, unit=Unit.RATIO), 0.8, (0.3, 1.7), "+3 % to +17 %, +10 % allowed"),
        (measured(1.08, (1.03, 1.10001), maximum=1.1, unit=Unit.RATIO), 0.8, (0.3, 1.0001), "+3 % to +10.001 %, +10 % allowed"),
        (measured(1.2, (1.15, 1.25), maximum=1.1, unit=Unit.RATIO), 1.0, (1.5, 2.5), "+15 % to +25 %, +10 % allowed"),
        (measured(3.3, (3.2, 3.4), maximum=1.1, unit=Unit.RATIO), 1.0, (None, None), "3 times the limit"),
        (measured(2.2, (1.9, 2.4), maximum=2, standing=Standing.WAIVED), 1.0, (0.95, 1.2), "95 % to 120 % of the limit"),
        (measured(1.9, (1.8, 2.4), maximum=2, standing=Standing.WARNED), 0.95, (0.9, 1.2), "90 % to 120 % of the limit"),
    ],
)  # fmt: skip
def test_how_near_a_limit_an_interval_is(found, used, ends, text):
    """A gauge says which part of the limit the interval takes, and rounds neither end onto the limit."""
    drawn = gauge(found)
    assert drawn.used == pytest.approx(used)
    assert (drawn.low, drawn.high) == (pytest.approx(ends) if ends[0] is not None else ends)
    assert drawn.text == text


def test_the_worse_end_makes_a_limit_near(tmp_path):
    """Of two kept limits the nearer is the one whose interval reaches further, whatever the values are."""
    findings = [
        finding("a.int8.exact", 0.8, "ratio", (None, 1)),
        finding("a.int8.wide", 0.7, "ratio", (None, 1), interval=[0.6, 0.9]),
    ]
    account = read_account(made_run(tmp_path, document(findings)))
    assert [found.measure.key.name for found in nearest(account)] == ["wide", "exact"]


@given(numbers, numbers, numbers)
def test_no_end_is_rounded_across_the_limit(one, other, maximum):
    """Law: the ends of an interval are shown on the sides of the limit that they are on."""
    found = measured(one, (min(one, other), max(one, other)), maximum=maximum)
    shown = [float(end.replace(",", "")) for end in interval_text(found).split(" to ")]
    assert [end <= maximum for end in shown] == [end <= maximum for end in found.measure.interval]


@given(numbers, numbers, st.sampled_from(Unit))
def test_a_gauge_stays_within_its_bar(value, limit, unit):
    """Law: what is kept uses 0 to 1 of its limit, what is broken all of it."""
    for bound in ("minimum", "maximum"):
        found = judged(value, unit=unit, **{bound: limit})
        used = gauge(found).used
        assert used is not None
        assert 0 <= used <= 1
        assert used == 1 or found.standing is Standing.KEPT


@given(numbers, numbers)
def test_no_value_is_rounded_across_its_limit(value, minimum):
    """Law: what is shown keeps the limit if, and only if, the value does."""
    found = judged(value, minimum=minimum, unit=Unit.F1)
    assert (float(value_text(found).replace(",", "")) >= minimum) == (value >= minimum)


def test_the_most_broken_limit_comes_first():
    """Broken limits are sorted by how far they are broken."""
    slight, far = judged(2.1, maximum=2, unit=Unit.LOGIT), judged(1.0, maximum=0.001, unit=Unit.LOGIT)
    unlimited = Finding(slight.measure, None, Standing.NO_LIMIT)
    assert worst_first([slight, far, unlimited]) == [unlimited, far, slight]


def test_what_is_nearest(tmp_path):
    """The kept limits of which most is used are named, the nearest first; unused and broken ones are not."""
    findings = [
        finding("a.int8.unused", 0.0, "logit", (None, 1)),
        finding("a.int8.half", 0.5, "logit", (None, 1)),
        finding("a.int8.most", 0.9, "logit", (None, 1)),
        finding("a.int8.over", 9.0, "logit", (None, 1), "broken"),
    ]
    account = read_account(made_run(tmp_path, document(findings)))
    assert [found.measure.key.name for found in nearest(account)] == ["most", "half"]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (document(findings_of()), "All 19 limits are kept, of 23 measures."),
        (document(findings_of(flipped=3.0)), "1 limit of 23 measures is broken."),
        (document(findings_of(flipped=3.0), ["x", "y"]), "1 limit of 23 measures is broken, and 2 problems came up."),
        (
            document([*findings_of(flipped=3.0), open_finding()], [open_problem(), "x"]),
            "1 limit of 24 measures is broken, 1 cannot be told from the limit, and 1 problem came up.",
        ),
        (document([], ["the session was killed"]), "It could not be judged: 1 problem; nothing was measured."),
        (document(findings_of(), ["x"]), "It could not be judged: 1 problem; no limit is broken among 23 measures."),
        (
            document([*findings_of(), open_finding()], [open_problem()]),
            "Neither accepted nor refused: no limit is broken, but for 1 of 24 measures it cannot be told whether the limit is kept.",
        ),
        (
            document([*findings_of(), open_finding()], [open_problem(), "x"]),
            "It could not be judged: 1 problem; no limit is broken among 24 measures, and 1 that cannot be told from the limit.",
        ),
        (
            document([*findings_of(), open_finding("warning")]),
            "24 measures; 1 that cannot be told from the limit, which the policy takes as a warning, every other limit is kept.",
        ),
    ],
)
def test_the_sentence_behind_the_decision(verdict, said, tmp_path):
    """One sentence says why the decision is what it is, in figures that are the document's."""
    assert sentence(read_account(made_run(tmp_path, verdict))) == said


def test_waived_limits_are_not_said_to_be_kept(tmp_path):
    """An accepted run with a waiver says so."""
    findings = [*findings_of(), finding("a.int8.m", 2.0, "logit", (None, 1), "waived")]
    account = read_account(made_run(tmp_path, document(findings)))
    assert "1 over the limit under a waiver" in sentence(account)
    assert any("waivers expire" in step.says for step in next_steps(account))


@pytest.mark.parametrize("calm", [True, False])
def test_the_steps_where_it_could_not_be_told(calm, tmp_path):
    """One learns that nothing was accepted, from where to where it lies, whether the machine was busy, and what to do."""
    verdict = document([*findings_of(), open_finding(control={"calm": calm})], [open_problem()])
    nothing, again, otherwise = (step.says for step in next_steps(read_account(made_run(tmp_path, verdict))))
    assert "Nothing was accepted" in nothing
    assert "latency.int8.ratio_to_last_release is somewhere from 1.03 to 1.17 ×, and its limit is ≤ 1.1" in again  # noqa: RUF001  # the sign is meant
    assert ("something else kept the machine busy" in again) is not calm
    assert 'undecided = "warn"' in otherwise


def test_a_problem_is_mended_before_an_open_limit(tmp_path):
    """Where a run also failed, the failure is what to mend first."""
    verdict = document([*findings_of(), open_finding()], [open_problem(), "the session was killed"])
    steps = next_steps(read_account(made_run(tmp_path, verdict)))
    assert [step.quotes for step in steps if step.quotes] == ["the session was killed"]


def test_a_warning_is_said_of_an_accepted_run(tmp_path):
    """An accepted run whose limit may be broken says so."""
    account = read_account(made_run(tmp_path, document([*findings_of(), open_finding("warning")])))
    assert any("ratio_to_last_release may be over the limit" in step.says for step in next_steps(account))


def test_runs_of_version_1_are_read(tmp_path):
    """A verdict from before there were intervals, undecided limits and a baseline is told as any other."""
    verdict = document(findings_of()) | {"version": 1}
    for part in ("baseline", "baseline_digest"):
        del verdict["subject"][part]
    for one in verdict["findings"]:
        del one["interval"]
    account = read_account(made_run(tmp_path, verdict))
    assert account.subject.baseline == ""
    assert account.findings == read_account(made_run(tmp_path, document(findings_of()))).findings


def test_the_first_step_after_a_rejection(tmp_path):
    """What to do names the worst limit, and where the logits part if the details say so."""
    first = {"module": "bert.encoder.layer.1", "kind": "BertLayer", "node": "/layer.1/Add", "error": 0.5}
    findings = findings_of(flipped=3.0)
    next(one for one in findings if one["scope"] == "int8" and one["name"] == "max_logit_difference")["details"][
        "first_divergence"
    ]["first"] = first
    steps = next_steps(read_account(made_run(tmp_path, document(findings))))
    assert any("parity.int8.largest_flipped_margin" in step.says for step in steps)
    assert any(step.quotes == "bert.encoder.layer.1 (BertLayer), at the node /layer.1/Add" for step in steps)


def test_a_judged_export_is_not_said_to_be_in_place(tmp_path):
    """Only a run of `harness release`, whose candidate lies in its own folder, puts anything in place."""
    released = read_account(made_run(tmp_path / "a", document(findings_of())))
    judged_only = read_account(made_run(tmp_path / "b", document(findings_of(), candidate="some/export")))
    assert "in place once harness release has ended" in next_steps(released)[0].says
    assert "puts nothing in place" in next_steps(judged_only)[0].says


@pytest.mark.parametrize("name", ["evidence.json", "benchmark.json"])
def test_what_cannot_be_read_is_a_note(name, tmp_path):
    """A verdict is reported without evidence or benchmark data that are damaged, and the report says so."""
    folder = made_run(tmp_path, document(findings_of()), benchmark={})
    (folder / name).write_text('{"benchmarks": [1]}', encoding="utf-8")
    account = read_account(folder)
    assert len(account.findings) == 23
    assert any(name in note for note in account.notes)


@pytest.mark.parametrize(
    "damage", [{"findings": [{}]}, {"decision": "MAYBE"}, {"subject": {"suites": []}}, {"environment": 3}]
)
def test_a_damaged_verdict_is_an_error(damage, tmp_path):
    """Nothing is told of a run whose verdict does not make sense."""
    with pytest.raises(DocumentError, match=r"verdict\.json is damaged"):
        read_account(made_run(tmp_path, {**document(findings_of()), **damage} | {"evidence_digest": None}))


@given(st.text(st.characters(), max_size=60))
def test_nothing_hidden_is_left(text):
    """Law: what is shown can be written as UTF-8 and XML and holds no control, format or bidi character."""
    import unicodedata

    shown = visible(text)
    assert shown.encode().decode() == shown
    kinds = {unicodedata.category(character) for character in shown if character not in "\u200c\u200d"}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_long_texts_are_cut():
    """What is cut says how long it was; what is printable and short stays as it is."""
    assert visible("a" * 100_000, 3) == "aaa… (100,000 characters)"
    assert visible("\u202ea\n", 10) == "⟨U+202E⟩a⟨U+000A⟩"
    assert visible("to Goa, नमस्ते", 40) == "to Goa, नमस्ते"
