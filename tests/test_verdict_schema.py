"""The published schema of verdict.json holds for what the harness writes, and for little else."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from made_reports import document, finding, findings_of, hostile_document, open_finding, open_problem

from harness import pipeline
from harness.evidence import Unit
from harness.results import VERDICT_SCHEMA, VERDICT_VERSION
from harness.verdict import Decision, Standing

SCHEMA = json.loads((Path(__file__).parents[1] / "docs/schemas/verdict.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


def test_the_schema_is_one():
    """It is a valid schema, and is called what documents say of themselves."""
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"] == f"urn:{VERDICT_SCHEMA}:{VERDICT_VERSION}"
    assert SCHEMA["properties"]["schema"]["const"] == VERDICT_SCHEMA
    assert SCHEMA["properties"]["version"]["const"] == VERDICT_VERSION


def test_closed_sets_are_the_codes_own():
    """Decisions, standings and units are the ones that the harness knows."""
    finding_of = SCHEMA["$defs"]["finding"]["properties"]
    assert SCHEMA["properties"]["decision"]["enum"] == [one.value for one in Decision]
    assert set(finding_of["standing"]["enum"]) == {one.value for one in Standing}
    assert set(finding_of["unit"]["enum"]) == {one.value for one in Unit}


@pytest.mark.parametrize(
    ("values", "problems", "decision"),
    [
        ({}, (), Decision.ACCEPTED),
        ({"parity.fp32.label_agreement": 0.5}, ("a problem",), Decision.REJECTED),
        ({}, ("the session was killed",), Decision.INCOMPLETE),
    ],
)
def test_what_a_run_writes_keeps_it(
    values, problems, decision, tiny_checkpoint, tiny_data, tiny_export, fake_judge, tmp_path
):
    """The document of each decision, written by the pipeline itself, is valid."""
    fake_judge.values, fake_judge.problems = values, problems
    judgement = pipeline.judge_candidate(tiny_checkpoint, tiny_export, data=[tiny_data], results=tmp_path / "results")
    assert judgement.verdict.decision is decision
    written = json.loads(judgement.run.verdict_path.read_text(encoding="utf-8"))
    assert [error.message for error in VALIDATOR.iter_errors(written)] == []


@pytest.mark.parametrize(
    "verdict",
    [
        document(findings_of()),
        document([*findings_of(), open_finding("warning")]),
        document(findings_of(flipped=3.0)),
        document([*findings_of(flipped=3.0), open_finding()], [open_problem()]),
        document([], ["x"]),
        document([*findings_of(), open_finding()], [open_problem()]),
        hostile_document(),
    ],
    ids=["accepted", "warned", "rejected", "rejected and open", "incomplete", "undecided", "hostile"],
)
def test_the_runs_of_the_other_tests_keep_it(verdict):
    """What the tests of reports make up has the form of real documents."""
    assert [error.message for error in VALIDATOR.iter_errors(verdict)] == []


def broken_ones():
    """Documents with one thing wrong each."""
    good = document(findings_of())
    unsure = [*findings_of(), open_finding()]
    yield pytest.param(document(unsure, []), id="accepted with an open limit and no problem")
    yield pytest.param(document([*unsure, open_finding()], [], "INCOMPLETE"), id="incomplete without a problem")
    lenient = {**open_finding("warning"), "standing": "undecided"}
    yield pytest.param(document([lenient], ["x"], "INCOMPLETE"), id="undecided where the policy wants a warning")
    over = finding("a.int8.m", 3.0, "logit", (None, 2), "broken")
    yield pytest.param(document([over], ["x"], "INCOMPLETE") | {"broken": []}, id="incomplete with a broken limit")

    def changed(name, change):
        verdict = copy.deepcopy(good)
        change(verdict)
        return pytest.param(verdict, id=name)

    for part in SCHEMA["required"]:
        yield changed(f"without {part}", lambda verdict, part=part: verdict.pop(part))
    for part in SCHEMA["$defs"]["subject"]["required"]:
        yield changed(f"subject without {part}", lambda verdict, part=part: verdict["subject"].pop(part))
    for part in SCHEMA["$defs"]["finding"]["required"]:
        yield changed(f"finding without {part}", lambda verdict, part=part: verdict["findings"][0].pop(part))
    yield changed("another member", lambda verdict: verdict.update(extra=1))
    yield changed("another member of a finding", lambda verdict: verdict["findings"][0].update(extra=1))
    yield changed("another member of the subject", lambda verdict: verdict["subject"].update(extra=1))
    yield changed("another version", lambda verdict: verdict.update(version=1))
    yield changed("another decision", lambda verdict: verdict.update(decision="PASSED"))
    yield changed("accepted with a broken limit", lambda verdict: verdict["findings"][0].update(standing="broken"))
    yield changed("accepted with a problem", lambda verdict: verdict["problems"].append("x"))
    yield changed("accepted without a measure", lambda verdict: verdict.update(findings=[]))
    yield changed("accepted without evidence", lambda verdict: verdict.update(evidence_digest=None))
    yield changed("rejected without a reason", lambda verdict: verdict.update(decision="REJECTED"))
    yield changed("incomplete without a reason", lambda verdict: verdict.update(decision="INCOMPLETE"))
    yield changed("a digest that is none", lambda verdict: verdict["subject"].update(reference_digest="abc"))
    yield changed("a value that is no number", lambda verdict: verdict["findings"][0].update(value="1"))
    yield changed("an unknown unit", lambda verdict: verdict["findings"][0].update(unit="furlong"))
    unlimited = finding("a.int8.m", 1.0, limit=None, standing="kept")
    yield changed("kept without a limit", lambda verdict: verdict["findings"].append(unlimited))
    limited = finding("a.int8.m", 1.0, limit=(None, 1), standing="reported")
    yield changed("accepted with an open limit", lambda verdict: verdict["findings"].append(open_finding()))
    exact = {**open_finding("warning"), "interval": None}
    yield changed("a warning without an interval", lambda verdict: verdict["findings"].append(exact))
    strict = {**open_finding(), "standing": "warning"}
    yield changed("a warning that the policy does not want", lambda verdict: verdict["findings"].append(strict))
    odd = {**open_finding("warning"), "interval": [1, 2, 3]}
    yield changed("an interval of three ends", lambda verdict: verdict["findings"].append(odd))
    lenient = open_finding("warning")["limit"] | {"undecided": "ignore"}
    unknown = {**open_finding("warning"), "limit": lenient}
    yield changed("another choice about open limits", lambda verdict: verdict["findings"].append(unknown))
    yield changed("a baseline that is no path", lambda verdict: verdict["subject"].update(baseline=1))
    yield changed("reported with a limit", lambda verdict: verdict["findings"].append(limited))


@pytest.mark.parametrize("verdict", list(broken_ones()))
def test_what_is_broken_does_not_keep_it(verdict):
    """A document with a part missing, added, of another type, or at odds with its decision is not valid."""
    assert not VALIDATOR.is_valid(verdict)
