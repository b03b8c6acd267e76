"""The self-check counts what the gate says about planted changes, and never takes a crash for a catch."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

from harness import selfcheck as module
from harness.artifact import Variant
from harness.defects import Defect, DefectNotApplicableError, Kind, Strength, Unplanted
from harness.defects.defect import BOTH, FP32, WHOLE
from harness.errors import ArtifactError, UsageError
from harness.evidence import Evidence, Measure, Result
from harness.evidence import Outcome as Ended
from harness.policy import load_policy
from harness.selfcheck import Outcome, selfcheck
from harness.selfcheck_report import (
    DOCUMENT,
    FIGURES,
    graded,
    largest_passed,
    print_selfcheck,
    smallest_caught,
    to_json,
    write_selfcheck,
)
from harness.suite import discover
from harness.verdict import Decision

MARK = "planted.txt"


def marking(says):
    """Plant a file that tells the fake judge what to say."""

    def plant(work, strength):
        (work.folder / MARK).write_text(f"{says} {strength}", encoding="utf-8")

    return plant


def refusing(work, _strength):
    """Plant what leaves nothing to open."""
    work.model_path.unlink()


def lacking(_work, _strength):
    msg = "the export has no such thing"
    raise DefectNotApplicableError(msg)


def defect(name, plant, variants=FP32, **more):
    return Defect(
        name, Kind.WEIGHTS, f"{name} is planted", plant, variants, **{"suites": ("artifact", "parity"), **more}
    )


STRENGTHS = tuple(Strength(value, f"{value} of it") for value in (0.4, 0.3, 0.2, 0.1))


class FakeJudge:
    """Judges by the mark that was planted; keeps what it was asked."""

    def __init__(self):
        self.asked = []
        self.catches_from = 0.25
        self.good = "fine"

    def __call__(self, question, folder, *, time_limit_s, host, stop_when_rejected):
        mark = question.candidate / MARK
        says, _, strength = (mark.read_text(encoding="utf-8") if mark.exists() else self.good).partition(" ")
        self.asked.append((says, strength, tuple(question.suites), host))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evidence.json").write_text("{}", encoding="utf-8")
        broken = says == "bad" or (says == "graded" and float(strength) > self.catches_from)
        import datetime

        every = {
            key for found in discover().values() for key in found.suite.promised(["fp32", "int8"], ["fp32", "int8"])
        }
        limits = load_policy(None, every, datetime.date(2026, 1, 1)).limits
        measures = []
        for key, promise in question.promised().items():
            bounds = [bound for bound in (limits[key].minimum, limits[key].maximum) if bound is not None]
            value = 9.0 if broken and key.name == "max_logit_difference" else [*bounds, 0.0][0]
            measures.append(Measure(key, float(value), promise.unit))
        problems = ("it crashed",) if says == "crash" else ()
        outcomes = tuple(Ended(name, f"test_{name}", Result.PASSED, 0.1) for name in question.suites)
        names = tuple(question.suites)
        return Evidence("fake", "", ("fp32",), names, len(outcomes), 0, outcomes, tuple(measures), problems, {})


class FakeHost:
    """Stands for a warm process."""

    def wait_until_ready(self):
        pass

    def save_answers(self, path):
        self.saved = path

    def load_answers(self, path):
        pass


@pytest.fixture
def judged(monkeypatch):
    fake = FakeJudge()

    @contextmanager
    def hosts(_reference, _folder):
        yield [FakeHost(), FakeHost()]

    monkeypatch.setattr(module, "judge", fake)
    monkeypatch.setattr(module, "_warm_processes", hosts)
    monkeypatch.setattr(module, "UNPLANTED", (Unplanted("elsewhere", "it is no file.", "a test"),))
    return fake


@pytest.fixture
def check(judged, monkeypatch, tiny_checkpoint, tiny_export, tiny_data, tmp_path):
    """Run the self-check with these defects and harmless changes."""

    def run(defects=(), harmless=(), **more):
        monkeypatch.setattr(module, "DEFECTS", tuple(defects))
        monkeypatch.setattr(module, "HARMLESS", tuple(harmless))
        options = {"candidate": tiny_export, "data": [tiny_data], "results": tmp_path / "results", **more}
        return selfcheck(tiny_checkpoint, **options)

    return run


def outcomes(found):
    return {str(result.trial): result.outcome for result in found.results}


def test_each_outcome(check):
    """A broken limit is caught, an accepted defect missed, a crash undecided; a refused folder is caught, too."""
    found = check(
        [
            defect("bad", marking("bad")),
            defect("subtle", marking("fine")),
            defect("crash", marking("crash")),
            defect("refused", refusing),
            defect("elsewhere", lacking),
        ]
    )
    assert outcomes(found) == {
        "bad (fp32)": Outcome.CAUGHT,
        "subtle (fp32)": Outcome.MISSED,
        "crash (fp32)": Outcome.UNDECIDED,
        "refused (fp32)": Outcome.CAUGHT,
        "elsewhere (fp32)": Outcome.NOT_APPLICABLE,
    }
    assert (found.caught, len(found.heads)) == (2, 4)
    assert found.decision is Decision.REJECTED


def test_harmless_changes(check):
    """A harmless change that is accepted passes; one that is refused is a false alarm and fails the check."""
    found = check(harmless=[defect("renamed", marking("fine")), defect("other", marking("bad"))])
    assert outcomes(found) == {"renamed (fp32)": Outcome.PASSED, "other (fp32)": Outcome.FALSE_ALARM}
    assert found.heads == []
    assert found.decision is Decision.REJECTED


def test_a_refused_harmless_change_is_a_false_alarm(check):
    """A harmless change that cannot even be opened is a false alarm, not a catch."""
    assert outcomes(check(harmless=[defect("renamed", refusing)])) == {"renamed (fp32)": Outcome.FALSE_ALARM}


@pytest.mark.parametrize(
    ("says", "decision"), [("bad", Decision.ACCEPTED), ("fine", Decision.REJECTED), ("crash", Decision.INCOMPLETE)]
)
def test_the_decision(check, says, decision):
    """All caught is fine, one missed is a rejection, one that could not be judged leaves the question open."""
    assert check([defect("one", marking("bad")), defect("other", marking(says))]).decision is decision


def test_strengths_rise_until_one_is_caught(check, judged):
    """From the weakest on, strengths rise to the first that is caught; both ends of the line are named."""
    found = check([defect("graded", marking("graded"), strengths=STRENGTHS)])
    assert [strength for says, strength, _, _ in judged.asked if says == "graded"] == ["0.1", "0.2", "0.3"]
    (results,) = graded(found)
    assert smallest_caught(results).trial.strength.value == 0.3
    assert largest_passed(results).trial.strength.value == 0.2
    assert (found.caught, len(found.heads)) == (1, 1)
    assert found.decision is Decision.ACCEPTED


def test_a_graded_defect_that_is_never_caught_is_missed(check, judged):
    """A graded defect counts by its strongest trial."""
    judged.catches_from = 1.0
    found = check([defect("graded", marking("graded"), strengths=STRENGTHS)])
    assert (found.caught, len(found.heads)) == (0, 1)
    assert [str(result.trial) for result in found.heads] == ["graded (fp32, 0.4 of it)"]
    assert smallest_caught(graded(found)[0]) is None
    assert found.decision is Decision.REJECTED


def test_a_graded_defect_that_is_always_caught(check, judged):
    """Where even the weakest is caught, nothing passed and nothing stronger is tried."""
    judged.catches_from = 0.0
    found = check([defect("graded", marking("graded"), strengths=STRENGTHS)])
    assert [strength for says, strength, _, _ in judged.asked if says == "graded"] == ["0.1"]
    assert largest_passed(graded(found)[0]) is None
    assert (found.caught, len(found.heads)) == (1, 1)


@pytest.mark.parametrize(("good", "decision"), [("bad", Decision.REJECTED), ("crash", Decision.INCOMPLETE)])
def test_an_export_that_is_not_good(check, judged, good, decision, capsys):
    """Where the export itself is not accepted nothing is planted, and what is printed is its own verdict."""
    judged.good = good
    found = check([defect("one", marking("bad"))])
    assert found.results == ()
    assert found.decision is decision
    print_selfcheck(found)
    assert decision.value in capsys.readouterr().out


def test_only_the_suites_that_are_needed(check, judged):
    """A defect meets its own suites, in a warm process; one of speed meets a fresh one, for memory would answer for PyTorch."""
    check(
        [
            defect("one", marking("bad"), suites=("quality", "parity")),
            defect("slow", marking("bad"), suites=("latency",)),
        ]
    )
    asked = {suites: host for _, _, suites, host in judged.asked}
    assert isinstance(asked["parity", "quality"], FakeHost)
    assert asked["latency",] is None
    assert {("artifact",), ("parity",), ("quality",), ("queries",)} <= set(asked)  # the good export


def test_variants_that_the_export_lacks(check):
    """A defect of INT8 has no trial where there is no INT8; one of the folder is tried on what is served."""
    found = check([defect("both", marking("bad"), BOTH), defect("whole", marking("bad"), WHOLE)])
    assert [(result.trial.defect.name, result.trial.variant) for result in found.results] == [
        ("both", Variant.FP32),
        ("whole", Variant.FP32),
    ]


def test_what_stays_behind(check, tmp_path):
    """Evidence of what was not caught is kept in the run's folder; of what was, none; no copy of a model stays."""
    found = check([defect("bad", marking("bad")), defect("subtle", marking("fine"))])
    assert (found.run.folder / "subtle-fp32" / "evidence.json").is_file()
    assert not (found.run.folder / "bad-fp32").exists()
    assert list(tmp_path.rglob("*.onnx")) == []


def test_only(check, judged):
    """Named defects are planted alone; an unknown name is refused before any work."""
    defects = [defect("one", marking("bad")), defect("other", marking("bad"))]
    assert list(outcomes(check(defects, only=["other"]))) == ["other (fp32)"]
    judged.asked.clear()
    with pytest.raises(UsageError, match="there is no defect 'wrong'"):
        check(defects, only=["wrong"])
    assert judged.asked == []


def test_order_does_not_depend_on_the_processes(check):
    """Results come in the order of the list, however many processes share the work."""
    names = [f"d{number}" for number in range(20)]
    found = check([defect(name, marking("bad")) for name in names])
    assert [result.trial.defect.name for result in found.results] == names


def test_a_bug_while_planting_is_raised(check):
    """What goes wrong in planting is no catch."""

    def buggy(_work, _strength):
        msg = "oops"
        raise KeyError(msg)

    with pytest.raises(KeyError):
        check([defect("buggy", buggy), defect("bad", marking("bad"))])


def test_an_export_that_does_not_exist(check, tmp_path):
    """A candidate that is not there is refused in one line, before anything is judged."""
    with pytest.raises(ArtifactError, match="does not exist"):
        check([defect("bad", marking("bad"))], candidate=tmp_path / "nowhere")


@pytest.fixture
def mixed(check):
    return check(
        [
            defect("bad", marking("bad")),
            defect("subtle", marking("fine")),
            defect("graded", marking("graded"), strengths=STRENGTHS),
        ],
        [defect("renamed", marking("fine"))],
    )


def test_the_document(mixed):
    """The document has the totals, every trial with the measure that caught it, and the smallest damage caught."""
    document = json.loads(json.dumps(to_json(mixed)))
    assert document["schema"] == "harness-selfcheck"
    assert document["decision"] == "REJECTED"
    assert document["defects"] == {
        "planted": 3,
        "caught": 2,
        "kill_rate": pytest.approx(2 / 3),
        "missed": ["subtle (fp32)"],
        "undecided": [],
    }
    assert document["harmless"] == {"planted": 1, "false_alarms": [], "false_alarm_rate": 0}
    (bad,) = [trial for trial in document["trials"] if trial["name"] == "bad"]
    assert bad["caught_by"][0]["name"] == "max_logit_difference"
    assert bad["caught_by"][0]["times_the_limit"] == pytest.approx(9 / 0.001)
    (sensitivity,) = document["sensitivity"]
    assert sensitivity["smallest_caught"] == {"value": 0.3, "text": "0.3 of it"}
    assert sensitivity["largest_passed"] == {"value": 0.2, "text": "0.2 of it"}
    assert document["not_planted"][0]["name"] == "elsewhere"


def test_the_files(mixed):
    """Document and figure lie in the run's folder, and the figure is drawn."""
    assert write_selfcheck(mixed) == json.loads((mixed.run.folder / DOCUMENT).read_text(encoding="utf-8"))
    svg, png = (mixed.run.folder / name for name in FIGURES)
    assert "2 of 3 defects caught" in svg.read_text(encoding="utf-8")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_screen(mixed, capsys):
    """What is printed ends with the kill rate, what was missed, and the false alarms."""
    print_selfcheck(mixed)
    printed = capsys.readouterr().out
    assert "kill rate: 2 of 3 planted defects caught" in printed
    assert "missed: subtle (fp32)" in printed
    assert "false alarms: 0 of 1 harmless changes refused" in printed
    assert "0.3 of it" in printed
