"""The test report says of every measure and every problem whether it passed, in the form that CI systems read."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from made_reports import HOSTILE, document, finding, findings_of, hostile_document, made_run, open_finding, open_problem

from harness.account import read_account
from harness.junit import write_junit

# What junit-10.xsd of Jenkins' xUnit plugin allows: the attributes of each element, the required ones marked.
ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {"name!", "tests!", "failures!", "errors!", "group", "time", "skipped", "timestamp", "hostname", "id",
                  "package", "file", "log", "url"},
    "testcase": {"name!", "time", "classname", "group"},
    "properties": set(),
    "property": {"name!", "value!"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "skipped": {"type", "message"},
    "system-out": set(),
    "system-err": set(),
}  # fmt: skip
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testsuite", "properties", "testcase", "system-out", "system-err"},
    "testcase": {"skipped", "error", "failure", "system-out", "system-err"},
    "properties": {"property"},
}


def report_of(folder, verdict) -> ET.Element:
    """Write a report and read it back, checked against the schema's rules."""
    folder = made_run(folder, verdict)
    root = ET.fromstring(write_junit(folder, read_account(folder)).read_bytes())
    assert root.tag == "testsuites"
    for element in root.iter():
        allowed = ATTRIBUTES[element.tag]
        assert set(element.attrib) <= {name.rstrip("!") for name in allowed}
        assert {name[:-1] for name in allowed if name.endswith("!")} <= set(element.attrib)
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
    for suite in root.iter("testsuite"):
        cases = suite.findall("testcase")
        counts = {"tests": len(cases)}
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            counts[name] = sum(case.find(tag) is not None for case in cases)
        assert {name: int(suite.get(name)) for name in counts} == counts
    return root


def failed(root) -> set[str]:
    """The cases that a CI system shows as failed."""
    return {case.get("name") for case in root.iter("testcase") if {child.tag for child in case} & {"failure", "error"}}


def test_an_accepted_run_has_no_failure(tmp_path):
    """Every measure is a case that passed, and its suite says how long it took."""
    root = report_of(tmp_path, document(findings_of()))
    assert failed(root) == set()
    assert root.get("tests") == "24"
    assert {suite.get("name"): suite.get("time") for suite in root}["parity"] == "1.000"


def test_a_broken_limit_is_a_failure(tmp_path):
    """A broken limit and a measure without one fail with the line that people read; a waived one is skipped."""
    findings = [
        finding("a.int8.kept", 1.0, "logit", (None, 2)),
        finding("a.int8.over", 3.0, "logit", (None, 2), "broken", worst=[{"query": "to Goa"}]),
        finding("a.int8.unlimited", 3.0, "logit", None, "no limit"),
        finding("a.int8.waived", 3.0, "logit", (None, 2), "waived"),
    ]
    root = report_of(tmp_path, document(findings))
    assert failed(root) == {"over", "unlimited"}
    failure = next(root.iter("failure"))
    assert failure.get("message") == "a.int8.over = 3 logit, limit ≤ 2"
    assert "query: to Goa" in failure.text
    assert root.find(".//testcase[@name='waived']/skipped") is not None


@pytest.mark.parametrize("problems", [["the session was killed"], []])
def test_an_incomplete_run_never_passes(problems, tmp_path):
    """A run that could not be judged has an error, even if nothing says why."""
    root = report_of(tmp_path, document([], problems, "INCOMPLETE"))
    assert len(failed(root)) == 1


def test_what_cannot_be_told_is_one_error(tmp_path):
    """A measure that cannot be told from its limit is an error of its own, and its problem is not a second one."""
    root = report_of(tmp_path, document([*findings_of(), open_finding()], [open_problem()]))
    assert failed(root) == {"ratio_to_last_release"}
    (error,) = root.iter("error")
    assert error.get("type") == "undecided"
    assert error.get("message") == "latency.int8.ratio_to_last_release = 1.08 ratio (1.03 to 1.17), limit ≤ 1.1"
    assert "+3 % to +17 %, +10 % allowed" in error.text


def test_other_problems_stand_beside_it(tmp_path):
    """What else kept the run from a judgement is not taken for the open measure's own problem."""
    verdict = document([*findings_of(), open_finding()], [open_problem(), "the session was killed"])
    assert failed(report_of(tmp_path, verdict)) == {"ratio_to_last_release", "problem 1: the session was killed"}


def test_a_warning_passes(tmp_path):
    """Where the policy takes it as a warning, the case passes and says so."""
    root = report_of(tmp_path, document([*findings_of(), open_finding("warning")]))
    assert failed(root) == set()
    said = root.find(".//testcase[@name='ratio_to_last_release']/system-out").text
    assert said.startswith("warning: latency.int8.ratio_to_last_release = 1.08")


def test_a_hostile_run_is_valid(tmp_path):
    """Markup and control characters of quoted texts are escaped or made visible."""
    root = report_of(tmp_path, hostile_document())
    messages = [element.get("message") for element in root.iter("error")]
    assert len(messages) == len(HOSTILE)
    assert "<script>window.pwned=1</script>" in messages
    assert all(len(message) < 3000 for message in messages)
