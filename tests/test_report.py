"""What a person reads about a verdict says why, in one line each, and lets no query draw on the screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.evidence import Measure, MeasureKey, Unit
from harness.report import print_verdict, problems_to_show, reason
from harness.verdict import Decision, Finding, Limit, Standing, Verdict


def unsure(standing):
    limit = Limit(maximum=1.1, warn_undecided=standing is Standing.WARNED)
    measure = Measure(MeasureKey("latency", "int8", "ratio"), 1.08, Unit.RATIO, {}, (1.03, 1.17))
    return Finding(measure, limit, standing)


def finding(details, value=1.0):
    measure = Measure(MeasureKey("artifact", "fp32", "load_failures"), value, Unit.COUNT, details)
    return Finding(measure, Limit(maximum=0), Standing.BROKEN)


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ({"failures": ["model.onnx cannot be loaded"]}, "model.onnx cannot be loaded"),
        ({"files": ["a", "b", "c"]}, "a (and 2 more)"),
        ({"worst": [{"query": "to Goa", "margin": 3.5}]}, "query: to Goa, margin: 3.5"),
        ({"failures": [], "queries": ["x\ny"]}, "x y"),
        ({"failures": []}, ""),
        ({"other": ["x"]}, ""),
        ({"failures": "not a list"}, ""),
        ({}, ""),
    ],
)
def test_the_reason_behind_a_measure(details, said):
    """The first thing that a suite listed is the reason, on one line; where nothing is listed there is none."""
    assert reason(finding(details)) == said


def test_a_long_reason_is_shortened():
    """A reason stays readable however long what it quotes is."""
    assert len(reason(finding({"failures": ["x" * 9999, "y"]}))) < 300


def test_a_broken_limit_is_printed_with_its_reason(capsys):
    """Below each broken limit stands why; markup in it is shown, not obeyed."""
    verdict = Verdict(Decision.REJECTED, (finding({"failures": ["[bold]odd[/bold] file"]}),), ())
    print_verdict(verdict, Path("results/run"), subject="a against b")
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if "broken: artifact.fp32.load_failures = 1" in line)
    assert lines[place + 1].strip() == "[bold]odd[/bold] file"


@pytest.mark.parametrize(("decision", "shown"), [(Decision.REJECTED, 3), (Decision.INCOMPLETE, 9)])
def test_problems_behind_a_rejection(decision, shown):
    """Of a rejected candidate the broken limits speak; of one that could not be judged every problem does."""
    verdict = Verdict(decision, (finding({}),), tuple(f"problem {number}" for number in range(9)))
    lines = problems_to_show(verdict)
    assert len(lines) == shown
    assert (lines[-1] == "7 more; see verdict.json") == (shown < 9)


@pytest.mark.parametrize("standing", [Standing.UNDECIDED, Standing.WARNED])
def test_what_cannot_be_told_is_printed_as_such(standing, capsys):
    """The table has the interval, and a line below says that it is undecided, or a warning, and no problem."""
    one = unsure(standing)
    said = "latency.int8.ratio = 1.08 ratio (1.03 to 1.17), limit ≤ 1.1"
    problems = (f"{one}: it cannot be told",) if one.open else ()
    verdict = Verdict(Decision.INCOMPLETE if one.open else Decision.ACCEPTED, (one, finding({})), problems)
    print_verdict(verdict, Path("results/run"), subject="a against b")
    out = capsys.readouterr().out
    assert "1.03 to 1.17 │" in out
    assert f"  {standing.value}: {said}" in out
    assert "problem:" not in out


def test_the_report_is_named_if_it_was_written(tmp_path, capsys):
    """A person is told where the page is, and never of one that is not there."""
    verdict, page = Verdict(Decision.ACCEPTED, (), ()), tmp_path / "report.html"
    print_verdict(verdict, tmp_path, subject="a against b", report=page)
    assert "report" not in capsys.readouterr().out.replace(str(tmp_path), "")
    page.write_text("", encoding="utf-8")
    print_verdict(verdict, tmp_path, subject="a against b", report=page)
    assert f"report: {page}\n" in capsys.readouterr().out
