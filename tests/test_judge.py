"""Judging in a process of its own: each way of getting by without being judged leads to anything but ACCEPTED.

The suites are a third party's, installed with entry points; nothing of the process is simulated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
from typing import NamedTuple

import pytest
from third_party import GOOD, ThirdParty, rewrite

from harness import cli
from harness import judge as judge_module
from harness.evidence import EVIDENCE_VERSION, Evidence, MeasureKey, Result, Unit, read_evidence
from harness.judge import EVIDENCE_FILE, LOG_FILE, judge
from harness.suite import Promise
from harness.verdict import Decision, Limit, Policy, decide

# Sessions take a second; the limit is only there so that a broken guard fails instead of hanging.
PATIENCE_S = 50
MEASURE = 'record_measure("worst", 0.5, unit=Unit.LOGIT)'


def limits_of(names):
    return Policy({MeasureKey(name, "release", "worst"): Limit(maximum=1) for name in names})


def promises_of(names):
    return {MeasureKey(name, "release", "worst"): Promise("worst", Unit.LOGIT) for name in names}


def verdict_on(party, evidence):
    return decide(limits_of(party.names), party.question().promised(), evidence)


@pytest.fixture
def party(tmp_path):
    return ThirdParty.make(tmp_path / "acme")


@pytest.fixture
def judged(party, tmp_path):
    """Judge by one suite with these tests; returns the evidence and the verdict on it."""

    def run(tests=GOOD, *, environment=None, time_limit_s=PATIENCE_S, **installation):
        if "acme_suite" not in party.names:
            party.install("acme_suite", tests, **installation)
        evidence = judge(
            party.question(),
            tmp_path / "run",
            time_limit_s=time_limit_s,
            environment=party.environment(**(environment or {})),
        )
        return evidence, verdict_on(party, evidence)

    return run


def assert_nothing_known(evidence, verdict, *problems):
    """The session left nothing to judge by, and says why."""
    assert verdict.decision is Decision.INCOMPLETE
    assert evidence.measures == ()
    assert evidence.outcomes == ()
    for problem in problems:
        assert any(problem in found for found in evidence.problems), evidence.problems


# -- an honest suite -------------------------------------------------------------------------------------------------


def test_a_good_candidate(judged, party, tmp_path):
    """A suite that measures what it promised, within the limit, accepts; the evidence and the log are kept."""
    evidence, verdict = judged()
    assert verdict.decision is Decision.ACCEPTED
    assert evidence.problems == ()
    assert (evidence.collected, evidence.deselected) == (1, 0)
    assert evidence.suites == ("acme_suite",)
    assert evidence.variants == ("fp32",)
    assert [(str(found.key), found.value) for found in evidence.measures] == [("acme_suite.release.worst", 0.5)]
    assert not (tmp_path / "run" / "workplace").exists()
    assert "1 passed" in (tmp_path / "run" / LOG_FILE).read_text(encoding="utf-8")
    assert sorted(path.name for path in party.candidate.iterdir()) == ["config.json", "model.onnx", "tokenizer.json"]


def test_a_bad_candidate(judged):
    """A measure beyond its limit fails its test and rejects; nothing is a problem."""
    evidence, verdict = judged('def test_bad(record_measure):\n    record_measure("worst", 2, unit=Unit.LOGIT)\n')
    assert verdict.decision is Decision.REJECTED
    assert [str(finding) for finding in verdict.broken] == ["acme_suite.release.worst = 2 logit, limit ≤ 1"]
    assert [(found.result, found.limit_broken) for found in evidence.outcomes] == [(Result.FAILED, True)]
    assert verdict.problems == ()


@pytest.mark.parametrize(
    ("interval", "decision"),
    [("(0.4, 0.9)", Decision.ACCEPTED), ("(0.4, 1.2)", Decision.INCOMPLETE), ("(1.01, 2.5)", Decision.REJECTED)],
)
def test_an_interval_decides(judged, interval, decision):
    """A measure is judged by its whole interval; one that cannot be told from its limit fails its test and leaves one problem."""
    low, high = eval(interval)
    test = f'record_measure("worst", {(low + high) / 2}, unit=Unit.LOGIT, interval={interval})'
    evidence, verdict = judged(f"def test_timed(record_measure):\n    {test}\n")
    assert verdict.decision is decision
    assert evidence.measures[0].interval == (low, high)
    kept = decision is Decision.ACCEPTED
    assert [(found.result is Result.PASSED, found.limit_broken) for found in evidence.outcomes] == [(kept, not kept)]
    assert len(verdict.problems) == (decision is Decision.INCOMPLETE)
    assert all("it cannot be told which side of the limit it is on" in problem for problem in verdict.problems)


@pytest.mark.parametrize("interval", ["(0.6, 0.7)", "(0.4, float('nan'))", "(0.4, float('inf'))"])
def test_an_interval_that_is_none(judged, interval):
    """An interval that does not hold its value, or has no end, counts as no measure."""
    test = f'record_measure("worst", 0.5, unit=Unit.LOGIT, interval={interval})'
    evidence, verdict = judged(f"def test_timed(record_measure):\n    {test}\n")
    assert verdict.decision is Decision.INCOMPLETE
    assert evidence.measures == ()


def test_the_limit_is_told_to_those_who_measure(judged):
    """A suite can ask for the limit of its own measures; what has none has no bounds."""
    _, verdict = judged(
        "def test_asks(record_measure, limit_of):\n"
        '    assert (limit_of("best").minimum, limit_of("best").maximum) == (None, None)\n'
        '    assert limit_of("worst").maximum == 1\n'
        f"    {MEASURE}\n"
    )
    assert verdict.decision is Decision.ACCEPTED, verdict.problems


def test_the_release_that_is_served(party, tmp_path):
    """A suite gets the release that the candidate is compared with, and must measure it; without one it gets none."""
    tests = (
        "def test_compare(record_measure, baseline, candidate):\n"
        "    served = baseline is not None and baseline.folder != candidate.folder\n"
        '    record_measure("worst", 0.25 if served else 0.75, unit=Unit.LOGIT)\n'
    )
    party.install("acme_suite", tests)
    served = shutil.copytree(party.candidate, tmp_path / "served")
    for question, value in (
        (party.question(), 0.75),
        (dataclasses.replace(party.question(), baseline=served), 0.25),
    ):
        evidence = judge(question, tmp_path / "run", time_limit_s=PATIENCE_S, environment=party.environment())
        assert [found.value for found in evidence.measures] == [value]


def test_progress(party, tmp_path):
    """Whoever waits is told which test runs, and of how many; the log is not cluttered with it."""
    said = []

    class Listener:
        def line(self, text):
            raise AssertionError(text)

        def now(self, text):
            said.append(text)

    party.install("acme_suite", GOOD + "def test_second():\n    print('\\x1eharness nonsense')\n")
    judge(party.question(), tmp_path / "run", progress=Listener(), environment=party.environment())
    assert said == ["judge 1/2: test_acme_suite.py::test_good", "judge 2/2: test_acme_suite.py::test_second"]
    assert "\x1e" not in (tmp_path / "run" / LOG_FILE).read_text(encoding="utf-8")


def test_whoever_waits_has_gone(party, tmp_path):
    """Where progress can no longer be told, the session is ended and the reason raised: nobody is left hanging."""

    class ClosedPipe:
        def line(self, text):
            raise BrokenPipeError

        def now(self, text):
            raise BrokenPipeError

    party.install("acme_suite", GOOD + "def test_hang():\n    while True:\n        signal.pause()\n")
    with pytest.raises(BrokenPipeError):
        judge(
            party.question(),
            tmp_path / "run",
            time_limit_s=PATIENCE_S,
            progress=ClosedPipe(),
            environment=party.environment(),
        )


# -- tests that do not judge: many suites in one session, each looked at alone ---------------------------------------


class Cheat(NamedTuple):
    """A suite's tests, how many there are, and what the verdict on them has to say."""

    tests: str
    says: str
    decision: Decision = Decision.INCOMPLETE
    collected: int = 1


# As little address space as is in use, and a little more, for as long as the block lasts.
SCARCE = """\
import contextlib, resource

@contextlib.contextmanager
def scarce_memory():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

"""
CHEATS = {
    "skip": Cheat('def test_a():\n    pytest.skip("no time")\n', "ended as skipped"),
    "skip_mark": Cheat(f"@pytest.mark.skip\ndef test_a(record_measure):\n    {MEASURE}\n", "ended as skipped"),
    "skip_late": Cheat(f'def test_a(record_measure):\n    {MEASURE}\n    pytest.skip("no time")\n', "ended as skipped"),
    "no_cases": Cheat(
        f'@pytest.mark.parametrize("case", [])\ndef test_a(case, record_measure):\n    {MEASURE}\n', "ended as skipped"
    ),
    "xfail": Cheat(
        f"@pytest.mark.xfail\ndef test_a(record_measure):\n    {MEASURE}\n    assert False\n", "ended as xfailed"
    ),
    "xfail_call": Cheat(f"def test_a(record_measure):\n    {MEASURE}\n    pytest.xfail()\n", "ended as xfailed"),
    "xfail_not_run": Cheat(
        f"@pytest.mark.xfail(run=False)\ndef test_a(record_measure):\n    {MEASURE}\n", "ended as xfailed"
    ),
    "xpass": Cheat(
        f"@pytest.mark.xfail(strict=False)\ndef test_a(record_measure):\n    {MEASURE}\n", "ended as xpassed"
    ),
    "xpass_strict": Cheat(f"@pytest.mark.xfail\ndef test_a(record_measure):\n    {MEASURE}\n", "failed without"),
    "xfail_broken": Cheat(
        '@pytest.mark.xfail\ndef test_a(record_measure):\n    record_measure("worst", 9, unit=Unit.LOGIT)\n    assert False\n',
        "ended as xfailed",
        Decision.REJECTED,
    ),
    "skip_broken": Cheat(
        'def test_a(record_measure):\n    record_measure("worst", 9, unit=Unit.LOGIT)\n    pytest.skip()\n',
        "ended as skipped",
        Decision.REJECTED,
    ),
    "missing": Cheat("def test_a():\n    pass\n", "missing.release.worst is missing"),
    "twice": Cheat(f"def test_a(record_measure):\n    {MEASURE}\n    {MEASURE}\n", "recorded 2 times"),
    "nan": Cheat(
        'def test_a(record_measure):\n    record_measure("worst", float("nan"), unit=Unit.LOGIT)\n',
        "nan.release.worst is nan, which is no number",
    ),
    "infinite": Cheat(
        'def test_a(record_measure):\n    record_measure("worst", -float("inf"), unit=Unit.LOGIT)\n',
        "infinite.release.worst is -inf, which is no number",
    ),
    "nan_swallowed": Cheat(
        'def test_a(record_measure):\n    try:\n        record_measure("worst", float("nan"), unit=Unit.LOGIT)\n'
        "    except BaseException:\n        pass\n",
        "nan_swallowed.release.worst is missing",
    ),
    "not_a_number": Cheat(
        'def test_a(record_measure):\n    record_measure("worst", None, unit=Unit.LOGIT)\n', "TypeError"
    ),
    "wrong_unit": Cheat(
        'def test_a(record_measure):\n    record_measure("worst", 0.5, unit=Unit.COUNT)\n', "promised in logit"
    ),
    "unpromised": Cheat(
        f'def test_a(record_measure):\n    {MEASURE}\n    record_measure("wurst", 0.5, unit=Unit.LOGIT)\n',
        "no suite promises it",
        Decision.REJECTED,
    ),
    "details": Cheat(
        'def test_a(record_measure):\n    record_measure("worst", 0.5, unit=Unit.LOGIT, details={"of": {1, 2}})\n',
        "failed without breaking a limit",
    ),
    "late": Cheat(
        f"@pytest.fixture\ndef late(record_measure):\n    yield\n    {MEASURE}\ndef test_a(late):\n    pass\n",
        "late.release.worst is missing",
    ),
    "assertion": Cheat(f"def test_a(record_measure):\n    {MEASURE}\n    assert 1 == 2\n", "assert 1 == 2"),
    "set_up": Cheat(
        "@pytest.fixture\ndef broken():\n    raise OSError\ndef test_a(broken, record_measure):\n    pass\n",
        "ended as error",
    ),
    "tear_down": Cheat(
        f"@pytest.fixture\ndef broken():\n    yield\n    raise OSError\ndef test_a(broken, record_measure):\n    {MEASURE}\n",
        "ended as error",
    ),
    "subtests": Cheat(
        f"def test_a(subtests, record_measure):\n    {MEASURE}\n    with subtests.test('x'):\n        assert False\n",
        "reported a result",
    ),
    "unit_test": Cheat(
        "class TestA(unittest.TestCase):\n    def test_a(self):\n        self.skipTest('no time')\n",
        "ended as skipped",
    ),
    "empty": Cheat("def check_nothing():\n    pass\n", "no test of the suite empty ran", collected=0),
    "module_skip": Cheat(
        'pytest.skip("not here", allow_module_level=True)\n', "test_module_skip.py could not be collected", collected=0
    ),
    # records what was promised in another module, so that only the one left out would have told
    "half_skip": Cheat(
        'pytest.importorskip("no_such_module")\ndef test_a():\n    assert False\n',
        "test_half_skip.py could not be collected",
    ),
    "memory": Cheat(
        f"{SCARCE}def test_a(record_measure):\n    {MEASURE}\n    with scarce_memory():\n        bytearray(1 << 34)\n",
        "failed without breaking a limit: MemoryError",
    ),
    "memory_set_up": Cheat(
        f"{SCARCE}@pytest.fixture\ndef large():\n    with scarce_memory():\n        return bytearray(1 << 34)\n"
        f"def test_a(large, record_measure):\n    {MEASURE}\n",
        "ended as error: MemoryError",
    ),
    "rerun": Cheat(
        "runs = []\ndef test_a(record_measure):\n"
        f"    runs.append(1)\n    if len(runs) == 1:\n        assert False\n    {MEASURE}\n",
        "1 tests were collected, 2 reported a result",
    ),
}
MORE_FILES = {
    "half_skip": {"test_other_half": GOOD},
    # what pytest-rerunfailures does
    "rerun": {
        "conftest": "from _pytest.runner import runtestprotocol\ndef pytest_runtest_protocol(item, nextitem):\n"
        "    if 'test_rerun.py' not in item.nodeid:\n        return None\n"
        "    for _ in range(2):\n        item._initrequest()\n        runtestprotocol(item, nextitem=nextitem, log=True)\n"
        "    return True\n"
    },
}


@pytest.fixture(scope="module")
def cheated(tmp_path_factory):
    """The evidence of one session with all the cheating suites, and an honest one among them."""
    party = ThirdParty.make(tmp_path_factory.mktemp("cheats"))
    for name, cheat in CHEATS.items():
        party.install(name, cheat.tests, **MORE_FILES.get(name, {}))
    party.install("honest")
    run_folder = tmp_path_factory.mktemp("run")
    return judge(party.question(), run_folder, time_limit_s=PATIENCE_S, environment=party.environment())


def alone(evidence: Evidence, name: str, collected: int) -> Evidence:
    """What the evidence would be if only one of the suites had been asked."""
    return dataclasses.replace(
        evidence,
        suites=(name,),
        collected=collected,
        outcomes=tuple(entry for entry in evidence.outcomes if entry.suite == name),
        measures=tuple(entry for entry in evidence.measures if entry.key.suite == name),
        problems=tuple(problem for problem in evidence.problems if f"test_{name}.py" in problem),
    )


@pytest.mark.parametrize("name", list(CHEATS))
def test_a_suite_that_does_not_judge(cheated, name):
    """Whatever a test does instead of measuring and passing, the candidate is not accepted, and the verdict says why."""
    cheat = CHEATS[name]
    verdict = decide(limits_of([name]), promises_of([name]), alone(cheated, name, cheat.collected))
    assert verdict.decision is cheat.decision
    assert any(cheat.says in problem for problem in verdict.problems), verdict.problems


def test_an_honest_suite_among_them(cheated):
    """The other suites of the session do not touch an honest one: alone, it would accept."""
    verdict = decide(limits_of(["honest"]), promises_of(["honest"]), alone(cheated, "honest", 1))
    assert verdict.decision is Decision.ACCEPTED


def test_all_of_them_together(cheated):
    """No problem gets lost among many: each cheat is told of in the verdict on the whole session."""
    names = [*CHEATS, "honest"]
    problems = decide(limits_of(names), promises_of(names), cheated).problems
    lost = [name for name, cheat in CHEATS.items() if "reported a result" not in cheat.says]
    assert [name for name in lost if not any(CHEATS[name].says in problem for problem in problems)] == []


# -- sessions that do not get to their end ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("os._exit(0)", "left no complete evidence"),
        ("os._exit(7)", "the judging session ended with exit status 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the judging session died of signal SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the judging session died of signal SIGSEGV"),
        ("os.abort()", "the judging session died of signal SIGABRT"),  # what C++ does where memory ends
        ("os.kill(os.getpid(), 40)", "the judging session died of signal 40"),
        ("os.killpg(0, signal.SIGTERM)", "the judging session died of signal SIGTERM"),
    ],
)
def test_a_session_that_dies(judged, end, says):
    """A process that ends in the middle of a test has judged nothing, whatever its exit status."""
    tests = GOOD.replace("test_good", "test_a") + f"def test_b():\n    {end}\n"
    assert_nothing_known(*judged(tests), says, "left no complete evidence")


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ('pytest.exit("enough", returncode=0)', "tests were collected"),
        ('pytest.exit("enough", returncode=42)', "pytest ended with exit status 42"),
        ("raise KeyboardInterrupt", "pytest ended with exit status 2 (INTERRUPTED)"),
        ("raise SystemExit(0)", "failed without breaking a limit: SystemExit: 0"),
    ],
)
def test_a_session_that_stops_early(judged, end, says):
    """A test that ends the session in an orderly way leaves evidence, and it is not enough."""
    _, verdict = judged(f"{GOOD}def test_last():\n    {end}\n")
    assert verdict.decision is Decision.INCOMPLETE
    assert any(says in problem for problem in verdict.problems), verdict.problems


# -- suites that cannot be collected ---------------------------------------------------------------------------------


def test_a_test_module_that_does_not_import(judged):
    """A collection error is a problem that names the module and the reason; no other test makes up for it."""
    evidence, verdict = judged(test_broken="import no_such_module\n")
    assert verdict.decision is Decision.INCOMPLETE
    assert any(
        "test_broken.py could not be collected: ModuleNotFoundError: No module named 'no_such_module'" in problem
        for problem in evidence.problems
    ), evidence.problems


def test_a_mark_that_asks_for_reruns(judged):
    """A test marked as pytest-rerunfailures has it is not run once instead: the mark is unknown, and an error."""
    evidence, verdict = judged(f"@pytest.mark.flaky(reruns=2)\ndef test_a(record_measure):\n    {MEASURE}\n")
    assert verdict.decision is Decision.INCOMPLETE
    assert any("'flaky' not found in `markers`" in problem for problem in evidence.problems), evidence.problems


@pytest.mark.parametrize("end", ["raise OSError", "raise SystemExit(0)", "import os; os._exit(0)"])
def test_a_suite_that_does_not_import(judged, end):
    """A suite whose own package raises, or ends the process, judges nothing."""
    assert_nothing_known(*judged(declaration=f"{end}\n"), "left no complete evidence")


def test_a_suite_that_is_not_there(judged, party):
    """A package that was uninstalled since is a problem."""
    party.names.append("acme_suite")
    party.policy.write_text("", encoding="utf-8")
    assert_nothing_known(*judged(), "the judging session ended with exit status")


def test_a_package_without_an_init_file(judged, party):
    """A suite inside a namespace package is recognized like any other."""
    inner = party.site / "acme" / "inner"
    inner.mkdir(parents=True)
    party.install("acme_suite")
    for path in (party.site / "acme_suite").iterdir():
        if path.is_file():
            path.rename(inner / path.name)
    (party.site / "acme-1.0.dist-info" / "entry_points.txt").write_text(
        "[harness.suites]\nacme_suite = acme.inner:SUITE\n", encoding="utf-8"
    )
    found = party.suites()["acme_suite"]
    party.suites = lambda: {"acme_suite": dataclasses.replace(found, package="acme.inner")}
    evidence, verdict = judged()
    assert verdict.problems == ()
    assert verdict.decision is Decision.ACCEPTED
    assert evidence.collected == 1


# -- what the user's environment may not change ----------------------------------------------------------------------


TWO_TESTS = GOOD + "def test_bad():\n    assert False\n"
DESELECTING = "def pytest_collection_modifyitems(items):\n    items[:] = items[:1]\n"


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTEST_ADDOPTS": "-k nothing"},
        {"PYTEST_ADDOPTS": "--deselect test_acme_suite.py::test_bad"},
        {"PYTEST_PLUGINS": "acme_deselecting"},
        {"PYTHONOPTIMIZE": "2"},
    ],
    ids=lambda variables: " ".join(variables.values()),
)
def test_variables_that_leave_tests_out(judged, party, variables):
    """No variable of the environment takes a failing test out of the session, or its assertion out of the test."""
    (party.site / "acme_deselecting.py").write_text(DESELECTING, encoding="utf-8")
    helper = "def check():\n    assert False\n"
    tests = TWO_TESTS.replace("    assert False", "    from acme_suite.helper import check\n    check()")
    evidence, verdict = judged(tests, environment=variables, helper=helper)
    assert [entry.result for entry in evidence.outcomes] == [Result.PASSED, Result.FAILED]
    assert (evidence.collected, evidence.deselected) == (2, 0)
    assert verdict.decision is Decision.INCOMPLETE


PLUGIN = """\
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    for _ in range(2):
        item._initrequest()
        reports = runtestprotocol(item, nextitem=nextitem, log=True)
        if not any(report.failed for report in reports):
            break
    return True
"""


def test_plugins_of_the_environment_are_not_loaded(judged, party):
    """A plugin that is installed, such as one that runs failing tests again, has no part in the session."""
    (party.site / "acme_rerun.py").write_text(PLUGIN, encoding="utf-8")
    folder = party.site / "acme_rerun-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: acme_rerun\nVersion: 1.0\n", encoding="utf-8")
    (folder / "entry_points.txt").write_text("[pytest11]\nrerun = acme_rerun\n", encoding="utf-8")
    tests = f"runs = []\ndef test_a(record_measure):\n    {MEASURE}\n    runs.append(1)\n    assert len(runs) > 1\n"
    evidence, verdict = judged(tests)
    assert [entry.result for entry in evidence.outcomes] == [Result.FAILED]
    assert verdict.decision is Decision.INCOMPLETE


def test_files_that_leave_tests_out(judged, tmp_path, monkeypatch):
    """Nothing in the working folder, above the run's folder, or left in it by an earlier run configures the session."""
    workplace = tmp_path / "run" / "workplace"
    workplace.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "run", workplace):
        (folder / "conftest.py").write_text(DESELECTING, encoding="utf-8")
        for name in ("pytest.ini", "tox.ini", "setup.cfg"):
            section = "tool:pytest" if name == "setup.cfg" else "pytest"
            (folder / name).write_text(f"[{section}]\naddopts = -k nothing\n", encoding="utf-8")
        (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "-k nothing"\n', encoding="utf-8")
    # a package of the suite's name in the working folder, as in a clone of it, is not the one that is installed
    (tmp_path / "acme_suite").mkdir()
    (tmp_path / "acme_suite" / "__init__.py").write_text("raise OSError\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    evidence, verdict = judged(TWO_TESTS)
    assert [entry.result for entry in evidence.outcomes] == [Result.PASSED, Result.FAILED]
    assert verdict.decision is Decision.INCOMPLETE


@pytest.mark.parametrize(
    "hook",
    [
        DESELECTING,
        (
            "def pytest_collection_modifyitems(items, config):\n"
            "    config.hook.pytest_deselected(items=items[1:])\n    items[:] = items[:1]\n"
        ),
        "collect_ignore = ['test_other.py']\n",
    ],
)
def test_a_suites_own_conftest_that_leaves_tests_out(judged, hook):
    """A suite may have a conftest, but not one that drops tests: what it promised is then missing."""
    evidence, verdict = judged("def test_a():\n    pass\n", test_other=GOOD, conftest=hook)
    assert len(evidence.outcomes) == 1
    assert verdict.decision is Decision.INCOMPLETE


# -- evidence that is not this session's -----------------------------------------------------------------------------

# Puts another file where the evidence goes and ends the process before the real one is written.
FORGING = """\
def test_forge(pytestconfig):
    text = Path(os.environ["FORGERY"]).read_text(encoding="utf-8")
    text = text.replace("THIS RUN", pytestconfig.getoption("harness_run_id"))
    pytestconfig.getoption("harness_evidence").write_text(text, encoding="utf-8")
    os._exit(0)
"""


@pytest.fixture
def good_evidence(tmp_path_factory):
    """An evidence file of a candidate that was accepted, and the third party that did it."""
    party = ThirdParty.make(tmp_path_factory.mktemp("good"))
    party.install("acme_suite")
    folder = tmp_path_factory.mktemp("run")
    judge(party.question(), folder, environment=party.environment())
    return folder / EVIDENCE_FILE


def test_evidence_of_an_earlier_run_is_removed(judged, tmp_path, good_evidence):
    """A good evidence file that lies in the run's folder already is gone before the session starts."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / EVIDENCE_FILE).write_bytes(good_evidence.read_bytes())
    assert_nothing_known(*judged("def test_a():\n    os._exit(0)\n"), "left no complete evidence")
    assert not (tmp_path / "run" / EVIDENCE_FILE).exists()


def test_evidence_that_is_forged(judged, tmp_path, good_evidence, party):
    """Evidence of another run, of another candidate or cut short is no evidence; the same file in order would do."""
    this_run = rewrite(good_evidence, run_id="THIS RUN")
    forgeries = {
        rewrite(good_evidence): "is evidence of another run",
        rewrite(
            good_evidence, run_id="THIS RUN", candidate_digest="sha256:0"
        ): "about other files than the candidate's",
        rewrite(good_evidence, run_id="THIS RUN", version=EVIDENCE_VERSION + 1): "Update the harness",
        this_run[:-1]: "is not valid JSON",
        this_run[: len(this_run) // 2]: "is not valid JSON",
        "": "is not valid JSON",
    }
    for text, says in forgeries.items():
        (tmp_path / "forgery.json").write_text(text, encoding="utf-8")
        evidence, verdict = judged(FORGING, environment={"FORGERY": str(tmp_path / "forgery.json")})
        assert verdict.decision is Decision.INCOMPLETE
        assert any(says in problem for problem in evidence.problems), evidence.problems
    # the forging works: what stops it above is what is wrong with the files (suites are trusted, accidents are not)
    (tmp_path / "forgery.json").write_text(this_run, encoding="utf-8")
    assert judged(FORGING, environment={"FORGERY": str(tmp_path / "forgery.json")})[1].decision is Decision.ACCEPTED


def test_evidence_cut_short_anywhere(good_evidence, tmp_path):
    """An accepting evidence file of this run, cut at any place, is no evidence; only its last line end may lack."""
    whole = good_evidence.read_bytes()
    evidence = read_evidence(good_evidence)
    names = evidence.suites

    def decided(length):
        path = tmp_path / EVIDENCE_FILE
        path.write_bytes(whole[:length])
        read = judge_module._read(path, evidence.run_id, evidence.candidate_digest, [])
        return decide(limits_of(names), promises_of(names), dataclasses.replace(read, suites=names)).decision

    assert decided(len(whole)) is decided(len(whole) - 1) is Decision.ACCEPTED
    places = {*range(0, len(whole), 11), *range(len(whole) - 40, len(whole) - 1)} - {len(whole) - 1}
    assert {decided(length) for length in places} == {Decision.INCOMPLETE}


# A fork that a test forgot: the child, too, runs on to the end of the session.
FORKING = """\
def test_fork(record_measure):
    child = os.fork()
    record_measure("worst", {own} if child else {childs}, unit=Unit.LOGIT)
    if child:
        os.waitpid(child, 0)
        {then}
"""


@pytest.mark.parametrize(("own", "childs", "decision"), [(0.5, 9, Decision.ACCEPTED), (9, 0.5, Decision.REJECTED)])
def test_a_fork_does_not_speak_for_the_session(judged, own, childs, decision):
    """Of a test that forks and lets the child run on, only what the session's own process measured counts."""
    evidence, verdict = judged(FORKING.format(own=own, childs=childs, then="pass"))
    assert [measure.value for measure in evidence.measures] == [own]
    assert verdict.decision is decision


def test_a_fork_that_alone_runs_on(judged):
    """Where the session's own process ends early and only a fork ran to the end, nothing was judged."""
    tests = FORKING.format(own=9, childs=0.5, then="os._exit(0)")
    assert_nothing_known(*judged(tests), "left no complete evidence")


@pytest.mark.parametrize("end", ["sys.stdout.close()", "os.close(1)", "os.closerange(0, 3)"])
@pytest.mark.parametrize("value", [0.5, 9])
def test_a_test_that_closes_its_output(judged, end, value):
    """A session without output ends, and in nothing better than what it measured."""
    tests = f"def test_a(record_measure):\n    {MEASURE.replace('0.5', str(value))}\ndef test_b():\n    {end}\ndef test_c():\n    pass\n"
    evidence, verdict = judged(tests)
    better = {Decision.INCOMPLETE, Decision.ACCEPTED if value < 1 else Decision.REJECTED}
    assert verdict.decision in better
    assert {measure.value for measure in evidence.measures} <= {value}
    assert verdict.decision is not Decision.ACCEPTED or len(evidence.outcomes) == 3


@pytest.mark.parametrize(
    "change",
    [
        '(candidate.folder / "model.onnx").write_bytes(b"better")',
        '(candidate.folder / "model_quantized.onnx").write_bytes(b"new")',
        '(candidate.folder / "config.json").unlink()',
        '(candidate.folder / "model.onnx").unlink()',
    ],
)
def test_a_candidate_that_changes_while_it_is_judged(party, tmp_path, change):
    """What was judged has to be what is there afterwards."""
    party.install("acme_suite", f"{GOOD}def test_change(candidate):\n    {change}\n")
    promised = party.question().promised()
    evidence = judge(party.question(), tmp_path / "run", environment=party.environment())
    assert "the candidate's files changed while it was judged" in evidence.problems
    assert "the evidence is about other files than the candidate's" in evidence.problems
    assert decide(limits_of(party.names), promised, evidence).decision is Decision.INCOMPLETE


# -- what a session leaves behind ------------------------------------------------------------------------------------

LEAVING = {
    # the child that a suite forgot: it has the FIFO open as long as it lives
    "child": "subprocess.Popen(['sleep', '100'], stdout=os.open(fifo, os.O_WRONLY))",
    # a fork holds the pipe to judge as well, so that the pipe does not end with the session
    "fork": "os.open(fifo, os.O_WRONLY)\n    if os.fork() == 0:\n        signal.pause()",
}


@pytest.fixture
def fifo(tmp_path):
    """A FIFO and its reading end: at its end when no process has it open for writing any more."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


def is_gone(reader):
    """Whether all writers of a FIFO have gone, waiting a while for it."""
    readable, _, _ = select.select([reader], [], [], PATIENCE_S)
    return bool(readable) and os.read(reader, 1) == b""


@pytest.mark.parametrize("how", list(LEAVING))
def test_a_process_left_behind_is_killed(judged, fifo, how):
    """A process that a test started and forgot neither delays the verdict nor outlives the session."""
    path, reader = fifo
    tests = f"{GOOD}def test_leave():\n    fifo = {str(path)!r}\n    {LEAVING[how]}\n"
    _, verdict = judged(tests)
    assert verdict.problems == ()
    assert verdict.decision is Decision.ACCEPTED
    assert is_gone(reader)


def test_a_session_that_hangs(judged, fifo):
    """A test that never ends is killed at the time limit with all it started; what was measured before does not count."""
    path, reader = fifo
    tests = f"{GOOD}def test_hang():\n    fifo = {str(path)!r}\n    {LEAVING['child']}\n    while True:\n        signal.pause()\n"
    evidence, verdict = judged(tests, time_limit_s=3)
    assert_nothing_known(evidence, verdict, "the judging session was killed at its time limit of 3 s")
    assert is_gone(reader)


def test_a_process_that_left_the_group_does_not_delay_the_verdict(judged, tmp_path):
    """A daemon in a session of its own that holds the pipe is not waited for."""
    note = tmp_path / "pid"
    tests = (
        f"{GOOD}def test_leave():\n    if os.fork() == 0:\n        os.setsid()\n"
        f"        Path({str(note)!r}).write_text(str(os.getpid()))\n        signal.pause()\n        os._exit(0)\n"
        f"    while not Path({str(note)!r}).exists():\n        pass\n"
    )
    try:
        _, verdict = judged(tests, time_limit_s=15)
    finally:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int(note.read_text(encoding="utf-8")), signal.SIGKILL)
    assert verdict.decision is Decision.ACCEPTED


# -- the whole way: a command, its judging process, its exit code -----------------------------------------------------


@pytest.fixture
def command(party, tiny_checkpoint, tiny_export, tiny_data, tmp_path, monkeypatch, capsys):
    """`harness judge` by one third party's suite; returns exit code, standard output and standard error."""
    monkeypatch.syspath_prepend(str(party.site))
    monkeypatch.setenv("PYTHONPATH", party.python_path())
    monkeypatch.chdir(tmp_path)

    def run(name, tests, policy="", limit_s=PATIENCE_S, **installation):
        # a name of its own: this process imports the declaration, and keeps it
        party.install(name, tests, **installation)
        with party.policy.open("a", encoding="utf-8") as stream:
            stream.write(policy)
        code = cli.main(
            [
                "judge", "--reference", str(tiny_checkpoint), "--candidate", str(tiny_export), "--data", str(tiny_data),
                "--policy", str(party.policy), "--suite", name, "--time-limit", str(limit_s), "--results", "results",
            ]
        )  # fmt: skip
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


FAMILIES = {
    "exits": ("os._exit(0)", "left no complete evidence"),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "died of signal SIGSEGV"),
    "is_killed": ("os.kill(os.getpid(), signal.SIGKILL)", "died of signal SIGKILL"),
    "hangs": ("signal.pause()", "killed at its time limit of 4 s"),
    "lacks_memory": ("raise MemoryError", "failed without breaking a limit: MemoryError"),
    "skips": ("pytest.skip('no time')", "ended as skipped"),
    "fails_expectedly": ("pytest.xfail('known')", "ended as xfailed"),
    "is_not_collected": ("pass\nimport no_such_module", "could not be collected"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exit_code_of_what_could_not_be_judged(command, family):
    """Each way of not judging ends `harness judge` with 3, INCOMPLETE and the reason on standard output."""
    end, says = FAMILIES[family]
    tests = f"{GOOD}def test_last():\n    {end}\n"
    code, out, _ = command(f"acme_{family}", tests, limit_s=4 if family == "hangs" else PATIENCE_S)
    assert code == 3
    assert "INCOMPLETE" in out
    assert "ACCEPTED" not in out
    assert any(line.startswith("  problem: ") and says in line for line in out.splitlines()), out


@pytest.mark.parametrize(
    ("name", "measures", "says"),
    [
        ("acme_lacks", "pass", "the promised measure acme_lacks.release.worst is missing"),
        ("acme_repeats", f"{MEASURE}; {MEASURE}", "recorded 2 times"),
        ("acme_nan", MEASURE.replace("0.5", "float('nan')"), "is nan, which is no number"),
        ("acme_infinite", MEASURE.replace("0.5", "float('inf')"), "is inf, which is no number"),
    ],
)
def test_the_exit_code_of_measures_that_are_none(command, name, measures, says):
    """A measure that is missing, there twice, NaN or infinite ends with 3 and the reason."""
    code, out, _ = command(name, f"def test_a(record_measure):\n    {measures}\n")
    assert code == 3
    assert "INCOMPLETE" in out
    assert says in out


def test_the_exit_codes_of_what_was_judged(command):
    """The same way ends with 0 for a measure within its limit and with 1 for one beyond it."""
    assert command("acme_good", GOOD)[0] == 0
    code, out, _ = command("acme_bad", GOOD.replace("0.5", "2"))
    assert code == 1
    assert "broken: acme_bad.release.worst = 2 logit, limit ≤ 1" in out


def test_a_suite_that_does_not_import_ends_with_3(command):
    """A suite that is announced and does not load is named before anything is judged; nothing is accepted without it."""
    code, out, err = command("acme_broken", GOOD, declaration="raise OSError('unplugged')\n")
    assert (code, out) == (3, "")
    assert (
        "INCOMPLETE: the suite 'acme_broken' (acme_broken:SUITE from acme) does not import: OSError: unplugged" in err
    )


WAIVER = '[[waivers]]\nmeasure = "{name}.release.{measure}"\nreason = "{reason}"\nexpires = {expires}\n'


def waiver(name, measure="worst", reason="the old tokenizer, until 2.0", expires="9999-12-31"):
    return WAIVER.format(name=name, measure=measure, reason=reason, expires=expires)


def test_a_waived_measure_shows_as_waived(command, tmp_path):
    """A broken limit that is waived does not reject, and both the screen and the verdict say that it was waived."""
    code, out, _ = command("acme_waived", GOOD.replace("0.5", "2"), waiver("acme_waived"))
    assert code == 0
    assert "waived: acme_waived.release.worst = 2 logit, limit ≤ 1" in out
    (path,) = (tmp_path / "results").glob("*/verdict.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert [(finding["name"], finding["standing"]) for finding in document["findings"]] == [("worst", "waived")]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("acme_expired", {"expires": "2026-01-01"}, "expired on 2026-01-01"),
        ("acme_silent", {"reason": " "}, "gives no reason"),
        ("acme_nothing", {"measure": "wurst"}, "acme_nothing.release.wurst"),
        ("acme_undated", {"expires": '"soon"'}, "needs a date"),
    ],
)
def test_waivers_that_waive_nothing_end_with_2(command, tmp_path, name, changes, says):
    """A waiver that has expired, gives no reason or no date, or names no measure ends with 2; nothing is judged by it."""
    code, out, err = command(name, GOOD.replace("0.5", "2"), waiver(name, **changes))
    assert (code, out) == (2, "")
    assert says in err
    assert not (tmp_path / "results").exists()


def test_a_waiver_does_not_excuse_a_session_that_dies(command):
    """What is waived is a limit, not the judging: a crash is INCOMPLETE beside any waiver."""
    tests = GOOD.replace("0.5", "2") + "def test_last():\n    os._exit(0)\n"
    code, out, _ = command("acme_waived_crash", tests, waiver("acme_waived_crash"))
    assert code == 3
    assert "INCOMPLETE" in out
