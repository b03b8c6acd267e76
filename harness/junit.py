"""`junit.xml`: one run as the test report that CI systems read: a test case for each measure and for each problem.

The elements and attributes are those of the schema that Jenkins' xUnit plugin checks by (junit-10.xsd), which GitLab and
others read too. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree as ET

from harness.account import Account
from harness.documents import write_text
from harness.highlights import gauge
from harness.report import reason
from harness.verdict import Decision, Finding, Standing
from harness.visible import visible

JUNIT_FILE = "junit.xml"
_PROBLEMS = "problems"
_LONGEST_TEXT = 2000


def write_junit(folder: Path, account: Account) -> Path:
    """Write the test report into a run's folder.

    Raises:
        OSError: the file system refuses.
    """
    path = folder / JUNIT_FILE
    write_text(path, render(account))
    return path


def render(account: Account) -> str:
    """Write the test report; whatever is not ACCEPTED has a failure or an error in it."""
    root = ET.Element("testsuites", name="harness")
    names = dict.fromkeys((*account.subject.suites, *(finding.measure.key.suite for finding in account.findings)))
    for name in names:
        cases = [_measure_case(finding) for finding in account.findings if finding.measure.key.suite == name]
        _add_suite(root, account, name, cases)
    _add_suite(root, account, _PROBLEMS, _problem_cases(account))
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _add_suite(root: ET.Element, account: Account, name: str, cases: list[ET.Element]) -> None:
    suite = ET.SubElement(root, "testsuite", name=_text(name), tests=str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("time", f"{account.suite_seconds.get(name, 0.0):.3f}")
    properties = ET.SubElement(suite, "properties")
    for key, value in _properties(account):
        ET.SubElement(properties, "property", name=key, value=_text(value))
    suite.extend(cases)


def _properties(account: Account) -> Iterable[tuple[str, str]]:
    subject = account.subject
    yield "run", account.run
    yield "decision", account.decision.value
    yield "candidate", subject.candidate
    yield "candidate_digest", subject.candidate_digest
    yield "reference_digest", subject.reference_digest


def _measure_case(finding: Finding) -> ET.Element:
    key = finding.measure.key
    case = ET.Element("testcase", classname=_text(f"{key.suite}.{key.scope}"), name=_text(key.name), time="0")
    said = f"{finding} ({gauge(finding).text})"
    match finding.standing:
        case Standing.BROKEN | Standing.NO_LIMIT:
            why = reason(finding)
            failure = ET.SubElement(case, "failure", message=_text(str(finding)), type=finding.standing.value)
            failure.text = _text(f"{said}: {why}" if why else said)
        case Standing.UNDECIDED:
            error = ET.SubElement(case, "error", message=_text(str(finding)), type=finding.standing.value)
            error.text = _text(said)
        case Standing.WAIVED:
            ET.SubElement(case, "skipped", message=_text(f"waived: {finding}"))
        case Standing.WARNED:
            ET.SubElement(case, "system-out").text = _text(f"warning: {said}")
        case Standing.KEPT | Standing.REPORTED:
            ET.SubElement(case, "system-out").text = _text(said)
    return case


def _problem_cases(account: Account) -> list[ET.Element]:
    """Make a case of each problem; where there is none, one that says so, so that the suite is never empty.

    A measure that could not be told from its limit is an error already.
    """
    cases = []
    for place, problem in enumerate(account.other_problems, 1):
        case = ET.Element("testcase", classname=_PROBLEMS, name=f"problem {place}: {_text(problem, 100)}", time="0")
        ET.SubElement(case, "error", message=_text(problem), type="problem")
        cases.append(case)
    if not cases:
        cases.append(ET.Element("testcase", classname=_PROBLEMS, name="none", time="0"))
        # a verdict names what is missing; if it did not, this is no pass
        if account.decision is Decision.INCOMPLETE and not account.undecided:
            ET.SubElement(cases[0], "error", message="INCOMPLETE without a reason", type="problem")
    return cases


def _text(text: str, limit: int = _LONGEST_TEXT) -> str:
    return visible(text, limit)
