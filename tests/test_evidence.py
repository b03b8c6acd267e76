"""Evidence: what was written is what is read, and nothing damaged is read at all."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.documents import to_json
from harness.errors import DocumentError
from harness.evidence import (
    EVIDENCE_VERSION,
    OLDEST_EVIDENCE,
    Evidence,
    Measure,
    MeasureKey,
    Outcome,
    Result,
    Unit,
    machine_and_versions,
    measure_from_json,
    measure_to_json,
    read_evidence,
    write_evidence,
)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
details = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def measured(draw):
    low, value, high = sorted(draw(st.tuples(finite, finite, finite)))
    key = draw(st.builds(MeasureKey, names, names, names))
    interval = draw(st.sampled_from([None, (low, high)]))
    return Measure(key, value, draw(st.sampled_from(Unit)), draw(st.dictionaries(names, details, max_size=3)), interval)


measures = measured()
outcomes = st.builds(Outcome, names, names, st.sampled_from(Result), finite, names, st.booleans())
evidences = st.builds(
    Evidence,
    run_id=names,
    candidate_digest=names,
    variants=st.lists(names, max_size=2).map(tuple),
    suites=st.lists(names, max_size=2).map(tuple),
    collected=st.integers(0),
    deselected=st.integers(0),
    outcomes=st.lists(outcomes, max_size=3).map(tuple),
    measures=st.lists(measures, max_size=3).map(tuple),
    problems=st.lists(names, max_size=2).map(tuple),
    environment=st.dictionaries(names, names, max_size=3),
)

KEY = MeasureKey("parity", "fp32", "label_agreement")
EXAMPLE = Evidence(
    run_id="run",
    candidate_digest="sha256:0",
    variants=("fp32",),
    suites=("parity",),
    collected=1,
    deselected=0,
    outcomes=(Outcome("parity", "test_a", Result.FAILED, 0.25, "AssertionError", limit_broken=True),),
    measures=(Measure(KEY, 0.5, Unit.SHARE, {"worst": ["é", 3]}),),
    problems=("something",),
    environment={"python": "3.11"},
)
# Version 1 as it was first written. Never edit it: it shows that today's harness reads yesterday's files.
VERSION_1 = """\
{
  "schema": "harness-evidence",
  "version": 1,
  "run_id": "run",
  "candidate_digest": "sha256:0",
  "variants": ["fp32"],
  "suites": ["parity"],
  "collected": 1,
  "deselected": 0,
  "outcomes": [
    {"suite": "parity", "test": "test_a", "result": "failed", "duration_s": 0.25, "reason": "AssertionError",
     "limit_broken": true}
  ],
  "measures": [
    {"suite": "parity", "scope": "fp32", "name": "label_agreement", "value": 0.5, "unit": "share",
     "details": {"worst": ["é", 3]}}
  ],
  "problems": ["something"],
  "environment": {"python": "3.11"}
}
"""
# Version 2, which has intervals, as it was first written. Never edit it either.
VERSION_2 = """\
{
  "schema": "harness-evidence",
  "version": 2,
  "run_id": "run",
  "candidate_digest": "sha256:0",
  "variants": ["fp32"],
  "suites": ["parity"],
  "collected": 1,
  "deselected": 0,
  "outcomes": [
    {"suite": "parity", "test": "test_a", "result": "failed", "duration_s": 0.25, "reason": "AssertionError",
     "limit_broken": true}
  ],
  "measures": [
    {"suite": "parity", "scope": "fp32", "name": "label_agreement", "value": 0.5, "unit": "share",
     "details": {"worst": ["é", 3]}, "interval": [0.25, 1]}
  ],
  "problems": ["something"],
  "environment": {"python": "3.11"}
}
"""
REMOVED = object()


def refusal(path):
    with pytest.raises(DocumentError) as caught:
        read_evidence(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.endswith(".")
    assert str(path) in message
    return message


def damaged(place, value):
    """The example's document with one value changed, or removed."""
    document = json.loads(VERSION_1)
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    if value is REMOVED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return document


def every_place():
    """Where a value stands in the example, but for what a measure's details hold and the schema."""
    document = EXAMPLE.to_json()
    for key in document:
        if key not in {"schema", "version"}:
            yield (key,)
    for group in ("outcomes", "measures"):
        for key in document[group][0]:
            yield (group, 0, key)


# -- there and back --------------------------------------------------------------------------------------------------


@given(evidences)
def test_round_trip_through_json(evidence):
    """`Evidence.from_json(evidence.to_json()) == evidence`."""
    assert Evidence.from_json(evidence.to_json()) == evidence


@given(evidences)
def test_round_trip_through_a_file(tmp_path_factory, evidence):
    """What is read from a file equals what was written to it, to the last digit."""
    path = tmp_path_factory.getbasetemp() / "evidence.json"
    write_evidence(path, evidence)
    assert read_evidence(path) == evidence


@given(measures)
def test_round_trip_of_a_measure(measure):
    """`measure_from_json(measure_to_json(m)) == m`."""
    assert measure_from_json(measure_to_json(measure)) == measure


def test_version_1(tmp_path):
    """A file as version 1 was first written is read: its measures have no intervals."""
    path = tmp_path / "evidence.json"
    path.write_text(VERSION_1, encoding="utf-8")
    assert read_evidence(path) == EXAMPLE


def test_version_2(tmp_path):
    """A file as version 2 was first written is read, and is what is written."""
    path = tmp_path / "evidence.json"
    path.write_text(VERSION_2, encoding="utf-8")
    measure = dataclasses.replace(EXAMPLE.measures[0], interval=(0.25, 1.0))
    example = dataclasses.replace(EXAMPLE, measures=(measure,))
    assert read_evidence(path) == example
    assert example.to_json() == json.loads(VERSION_2)


@pytest.mark.parametrize("interval", [[], [0.5], [0.1, 0.5, 0.6], [0.6, 0.7], ["0", "1"], {"0": 1}, True, [None, 1]])
def test_intervals_that_evidence_never_holds(tmp_path, interval):
    """An interval has two ends that hold the value; anything else is damage."""
    path = tmp_path / "evidence.json"
    content = json.loads(VERSION_2)
    content["measures"][0]["interval"] = interval
    path.write_text(json.dumps(content), encoding="utf-8")
    assert "is damaged" in refusal(path)


# -- what is not read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "advice"), [(EVIDENCE_VERSION + 1, "Update the harness."), (OLDEST_EVIDENCE - 1, "Release again.")]
)
def test_other_versions(tmp_path, version, advice):
    """Evidence of an older or newer format is not guessed at."""
    path = tmp_path / "evidence.json"
    path.write_text(to_json(damaged(("version",), version)), encoding="utf-8")
    assert refusal(path).endswith(advice)


def test_another_document(tmp_path):
    """A verdict is no evidence."""
    path = tmp_path / "evidence.json"
    path.write_text(to_json(damaged(("schema",), "harness-verdict")), encoding="utf-8")
    assert "is no harness-evidence document" in refusal(path)


@given(st.integers(0, len(VERSION_1.strip().encode()) - 1))
def test_evidence_cut_short(tmp_path_factory, length):
    """Evidence that ends too early is an error wherever it was cut."""
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_bytes(VERSION_1.encode()[:length])
    refusal(path)


@pytest.mark.parametrize("place", [place for place in every_place() if place[-1] != "interval"], ids=str)
def test_a_missing_key(tmp_path, place):
    """Evidence that lacks any of its keys is damaged; nothing is filled in."""
    path = tmp_path / "evidence.json"
    path.write_text(to_json(damaged(place, REMOVED)), encoding="utf-8")
    assert refusal(path) == f"{path} is damaged (KeyError: '{place[-1]}'). Judge again."


@pytest.mark.parametrize("place", list(every_place()), ids=str)
def test_a_value_of_another_type(tmp_path, place):
    """A value of another type than was written is damage, never read as something like it."""
    path = tmp_path / "evidence.json"
    original = EXAMPLE.to_json()
    for step in place:
        original = original[step]
    number = (int, float) if isinstance(original, float) else type(original)
    for value in (None, 5, 5.5, "5", True, [5], {"5": 5}):
        if isinstance(original, bool) != isinstance(value, bool) or not isinstance(value, number):
            path.write_text(to_json(damaged(place, value)), encoding="utf-8")
            assert "is damaged (" in refusal(path), value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("variants",), [5]),
        (("suites",), [None]),
        (("problems",), [["x"]]),
        (("environment",), {"python": 3.11}),
        (("outcomes",), {"0": {}}),
        (("outcomes", 0, "result"), "fine"),
        (("measures", 0, "unit"), "furlong"),
        (("measures", 0, "unit"), ["share"]),
    ],
    ids=str,
)
def test_values_that_evidence_never_holds(tmp_path, place, value):
    """Lists hold texts, and results and units are those that the harness knows."""
    path = tmp_path / "evidence.json"
    path.write_text(to_json(damaged(place, value)), encoding="utf-8")
    assert "is damaged (" in refusal(path)


@pytest.mark.parametrize("group", ["outcomes", "measures"])
@pytest.mark.parametrize("entry", [None, [], "x", 5])
def test_entries_that_are_no_objects(tmp_path, group, entry):
    """An outcome or measure that is no object is damage."""
    path = tmp_path / "evidence.json"
    path.write_text(to_json(damaged((group, 0), entry)), encoding="utf-8")
    assert "is damaged (" in refusal(path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "-1e999", "1" + "0" * 400])
def test_numbers_that_are_none(tmp_path, value):
    """No spelling of NaN or infinity, nor an integer beyond every float, comes in as a measure."""
    path = tmp_path / "evidence.json"
    path.write_text(VERSION_1.replace('"value": 0.5', f'"value": {value}'), encoding="utf-8")
    refusal(path)


# -- what is not written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"x"])
def test_details_that_are_no_json(tmp_path, value):
    """Details that JSON cannot hold stop the writing; the old file stays."""
    path = tmp_path / "evidence.json"
    write_evidence(path, EXAMPLE)
    measure = Measure(KEY, 0.5, Unit.SHARE, {"worst": value})
    with pytest.raises((ValueError, TypeError)):
        write_evidence(path, Evidence.from_json({**EXAMPLE.to_json(), "measures": [measure_to_json(measure)]}))
    assert read_evidence(path) == EXAMPLE
    assert [entry.name for entry in tmp_path.iterdir()] == ["evidence.json"]


# -- the machine -----------------------------------------------------------------------------------------------------


def test_the_machine_and_its_packages():
    """Every package asked for is named, installed or not, and every value is text."""
    facts = machine_and_versions(("pytest", "no-such-package"))
    assert facts["pytest"] == pytest.__version__
    assert facts["no-such-package"] == "not installed"
    assert {"machine", "processor", "system", "usable_cpus", "python"} <= facts.keys()
    assert all(isinstance(value, str) and value for value in facts.values())


def test_keys_as_text():
    """A measure is named as policies name it."""
    assert str(KEY) == "parity.fp32.label_agreement"
