"""The pytest plugin by hand: what a person sees who runs suites without the gate, and who runs none."""

from __future__ import annotations

from importlib.metadata import distributions

import pytest
from third_party import GOOD, SUITE, ThirdParty

from harness.errors import SuiteError
from harness.evidence import MeasureKey, Unit, read_evidence
from harness.suite import GROUP, FoundSuite, Promise, Suite, choose, discover
from harness.verdict import Decision, Limit, Policy, decide

pytest_plugins = ["pytester"]

# Other plugins only take time here; the sessions that are not the plugin's business have them all.
ALONE = ("--disable-plugin-autoload", "-p", "harness.plugin", "-p", "no:cacheprovider")
BAD = 'def test_bad(record_measure):\n    record_measure("worst", 2, unit=Unit.LOGIT)\n'
POLICY = Policy({MeasureKey("acme_suite", "release", "worst"): Limit(maximum=1)})


@pytest.fixture
def party(tmp_path, pytester, monkeypatch):
    """A third party whose suites are on the path of every process that pytester starts."""
    party = ThirdParty.make(tmp_path / "acme")
    monkeypatch.setenv("PYTHONPATH", party.python_path())
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return party


@pytest.fixture
def by_hand(party, pytester):
    """Run the third party's suites as a person would; returns what pytest said, the evidence and its verdict."""

    def run(*arguments):
        path = pytester.path / "evidence.json"
        said = pytester.runpytest_subprocess(*ALONE, *party.options(), "--harness-evidence", path, *arguments)
        evidence = read_evidence(path)
        return said, evidence, decide(POLICY, party.question().promised(), evidence)

    return run


# -- sessions that are none of its business --------------------------------------------------------------------------


def test_a_session_without_suites_is_untouched(pytester):
    """Tests that are no suite's run as if the plugin were not there, even where they use its words."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def candidate():
            return "mine"

        @pytest.mark.parametrize("variant", ["a", "b"])
        def test_mine(candidate, variant):
            assert candidate == "mine"

        @pytest.mark.xfail
        def test_xfail():
            assert False

        @pytest.mark.skip
        def test_skip():
            pass
        """
    )
    before = {path.name for path in pytester.path.iterdir()}
    said = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")
    said.assert_outcomes(passed=2, xfailed=1, skipped=1)
    assert said.ret == 0
    said.stdout.no_fnmatch_line("*judging*")
    # what pytester and pytest-benchmark leave behind is not ours
    others = {"stdout", "stderr", "__pycache__", ".benchmarks"}
    after = {path.name for path in pytester.path.iterdir() if not path.name.startswith("runpytest-")}
    assert after - before <= others


def test_failures_of_other_tests_are_left_alone(pytester):
    """A failing test of somebody else's fails in its own words."""
    pytester.makepyfile("def test_mine():\n    assert 1 == 2\n")
    said = pytester.runpytest_subprocess()
    said.assert_outcomes(failed=1)
    said.stdout.fnmatch_lines(["E       assert 1 == 2"])


def test_evidence_without_suites_accepts_nothing(pytester):
    """Somebody else's tests, however well they pass, make no evidence to accept a candidate by."""
    pytester.makepyfile("def test_mine():\n    pass\n")
    path = pytester.path / "evidence.json"
    pytester.runpytest_subprocess(*ALONE, "--harness-evidence", path).assert_outcomes(passed=1)
    evidence = read_evidence(path)
    assert (evidence.suites, evidence.measures, evidence.outcomes) == ((), (), ())
    assert decide(POLICY, {}, evidence).decision is Decision.INCOMPLETE


def test_importing_the_plugin_is_cheap(pytester):
    """The plugin is loaded by every pytest session of the machine, so it must not import models or numbers."""
    pytester.makepyfile(
        """
        import sys

        def test_modules():
            heavy = {"torch", "transformers", "onnx", "onnxruntime", "tokenizers", "numpy", "seqeval"}
            assert "harness.plugin" in sys.modules
            assert not heavy & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "no:hypothesispytest", "-p", "no:benchmark").assert_outcomes(passed=1)


# -- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("missing", "names"), [("--candidate", "--candidate DIR"), ("--reference", "--reference DIR")])
def test_what_is_judged_has_to_be_named(party, pytester, missing, names):
    """A suite run without --candidate or --reference is a usage error that names the option; nothing is skipped."""
    party.install("acme_suite")
    options = party.options()
    place = options.index(missing)
    del options[place : place + 2]
    said = pytester.runpytest_subprocess(*ALONE, *options)
    assert said.ret == pytest.ExitCode.USAGE_ERROR
    said.stderr.fnmatch_lines([f"ERROR: judging suites need {names}"])
    said.assert_outcomes()


def test_a_built_in_suite_without_a_candidate(pytester):
    """`pytest --pyargs suites.parity` alone is a usage error that names the option."""
    said = pytester.runpytest_subprocess(*ALONE, "--pyargs", "suites.parity")
    assert said.ret == pytest.ExitCode.USAGE_ERROR
    said.stderr.fnmatch_lines(["ERROR: judging suites need --candidate DIR"])
    said.assert_outcomes()


def test_a_candidate_that_is_none(party, pytester):
    """A folder without a model is a usage error in the harness's words."""
    party.install("acme_suite")
    (party.candidate / "model.onnx").unlink()
    said = pytester.runpytest_subprocess(*ALONE, *party.options())
    assert said.ret == pytest.ExitCode.USAGE_ERROR
    said.stderr.fnmatch_lines([f"ERROR: {party.candidate} has no model.onnx or model_quantized.onnx*"])


def test_a_policy_that_is_none(party, pytester):
    """A mistake in the policy is a usage error with file, line and key."""
    party.install("acme_suite")
    party.policy.write_text("[limits.acme_suite.release]\nworst = { max = nan }\n", encoding="utf-8")
    said = pytester.runpytest_subprocess(*ALONE, *party.options())
    assert said.ret == pytest.ExitCode.USAGE_ERROR
    said.stderr.fnmatch_lines([f"ERROR: {party.policy} line 2, limits.acme_suite.release.worst: max must be*"])


def test_record_measure_outside_a_suite(pytester):
    """A measure that a test of no suite records belongs nowhere; the error says so."""
    pytester.makepyfile("def test_mine(record_measure):\n    pass\n")
    said = pytester.runpytest_subprocess(*ALONE)
    said.assert_outcomes(errors=1)
    said.stdout.fnmatch_lines(["*UsageError: record_measure is for tests of judging suites*"])


# -- suites by hand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "ret", "decision"),
    [
        (GOOD, 0, Decision.ACCEPTED),
        (BAD, 1, Decision.REJECTED),
        (BAD + "def test_more():\n    assert False\n", 1, Decision.REJECTED),
        (f"@pytest.mark.xfail\n{BAD}    assert False\n", 1, Decision.REJECTED),
        (f"@pytest.mark.xfail(strict=False)\n{BAD}", 1, Decision.REJECTED),
        (f"{BAD}    pytest.skip()\n", 1, Decision.REJECTED),
        (GOOD + "def test_more():\n    assert False\n", 1, Decision.INCOMPLETE),
    ],
)
def test_pytest_and_the_gate_agree(party, by_hand, tests, ret, decision):
    """Whatever breaks a limit or fails ends a person's session badly; whatever is accepted ends it well."""
    party.install("acme_suite", tests)
    said, evidence, verdict = by_hand()
    assert said.ret == ret
    assert verdict.decision is decision
    assert evidence.run_id == "by-hand"
    if verdict.broken:
        said.stdout.fnmatch_lines(["acme_suite.release.worst = 2 logit, limit ≤ 1"])


def test_a_waived_limit_by_hand(party, by_hand):
    """A waiver in the policy lets the test pass by hand too."""
    party.install("acme_suite", BAD)
    party.policy.write_text(
        "[limits.acme_suite.release]\nworst = { max = 1 }\n"
        '[[waivers]]\nmeasure = "acme_suite.release.worst"\nreason = "tried out"\nexpires = 9999-12-31\n',
        encoding="utf-8",
    )
    said, _, _ = by_hand()
    said.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "deselected"),
    [
        (["-k", "nothing"], 2),
        (["--deselect", "acme_suite/test_acme_suite.py::test_more"], 1),
        (["-m", "not acme_suite"], 2),
    ],
)
def test_deselecting_by_hand(party, by_hand, monkeypatch, arguments, deselected):
    """Tests may be left out by hand, and the evidence of such a session accepts nothing."""
    party.install("acme_suite", GOOD + "def test_more():\n    pass\n")
    if "--deselect" in arguments:
        monkeypatch.chdir(party.site)
        arguments = [*arguments, f"--rootdir={party.site}"]
    _, evidence, verdict = by_hand(*arguments)
    assert (evidence.collected, evidence.deselected) == (2, deselected)
    assert verdict.decision is Decision.INCOMPLETE
    assert f"{deselected} tests were deselected; every test of a suite has to run" in verdict.problems


def test_each_suite_has_a_marker(party, by_hand):
    """`-m SUITE` chooses a suite's tests under --strict-markers, other tests beside it or not."""
    party.install("acme_suite")
    party.install("acme_other")
    said, evidence, _ = by_hand("-m", "acme_suite", "--strict-markers")
    said.assert_outcomes(passed=1, deselected=1)
    assert [entry.suite for entry in evidence.outcomes] == ["acme_suite"]


def test_the_variant_is_the_scope(party, by_hand):
    """A test that asks for `variant` runs for each one the candidate has, and records for that one; others for the release."""
    (party.candidate / "model_quantized.onnx").write_bytes(b"not opened")
    declaration = SUITE.replace('Promise("worst"', 'Promise("size", Unit.COUNT), Promise("worst"')
    tests = 'def test_size(variant, record_measure):\n    record_measure("size", len(variant), unit=Unit.COUNT)\n'
    party.install("acme_suite", GOOD + tests, declaration=declaration)
    with party.policy.open("a", encoding="utf-8") as stream:
        stream.write('[limits.acme_suite]\nfp32 = { size = "reported" }\nint8 = { size = "reported" }\n')
    said, evidence, _ = by_hand()
    said.assert_outcomes(passed=3)
    assert sorted(str(measure.key) for measure in evidence.measures) == [
        "acme_suite.fp32.size",
        "acme_suite.int8.size",
        "acme_suite.release.worst",
    ]


def test_two_suites_with_one_node_id(party, by_hand):
    """Tests of two suites that pytest names alike are kept apart, also where one's tear-down fails."""
    tear_down = "@pytest.fixture(autouse=True)\ndef broken():\n    yield\n    raise OSError\n"
    for name, more in (("acme_suite", ""), ("acme_other", tear_down)):
        party.install(name, "", test_same=more + GOOD)
    _, evidence, verdict = by_hand("--rootdir", party.candidate)
    assert len({outcome.test for outcome in evidence.outcomes}) == 1
    assert [(outcome.suite, outcome.result.value) for outcome in evidence.outcomes] == [
        ("acme_suite", "passed"),
        ("acme_other", "error"),
    ]
    assert verdict.decision is not Decision.ACCEPTED


# -- finding suites --------------------------------------------------------------------------------------------------


@pytest.fixture
def found(party, monkeypatch):
    """What `discover` makes of the distributions in the third party's folder."""
    monkeypatch.syspath_prepend(str(party.site))

    def find():
        entries = [
            entry
            for distribution in distributions(path=[str(party.site)])
            for entry in distribution.entry_points
            if entry.group == GROUP
        ]
        return discover(entries)

    return find


def test_suites_are_found_by_name(party, found):
    """Every announced suite is found, in the order of the names, with the package its tests are in."""
    party.install("zz_plugin_found", distribution="zz")
    party.install("aa_plugin_found")
    suites = found()
    assert list(suites) == ["aa_plugin_found", "zz_plugin_found"]
    promise = Promise("worst", Unit.LOGIT, per_variant=False)
    assert suites["zz_plugin_found"] == FoundSuite(Suite("zz_plugin_found", (promise,)), "zz_plugin_found")


def test_the_built_in_suites_come_through_the_same_door():
    """The harness's own suites are announced as everybody's are."""
    assert {"artifact", "latency", "parity", "quality", "queries"} <= set(discover())


def test_two_suites_of_one_name(party, found):
    """Two suites that claim one name are an error that names both and where they come from."""
    party.install("plugin_twice", distribution="acme")
    (party.site / "plugin_rival").mkdir()
    (party.site / "plugin_rival" / "__init__.py").write_text(SUITE.replace("{name}", "plugin_twice"), encoding="utf-8")
    party.announce("plugin_twice", "plugin_rival:SUITE", "rival")
    with pytest.raises(SuiteError) as caught:
        found()
    message = str(caught.value)
    assert message.startswith("two suites are named 'plugin_twice': ")
    assert "plugin_twice:SUITE from acme" in message
    assert "plugin_rival:SUITE from rival" in message


@pytest.mark.parametrize(
    ("declaration", "why"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise OSError('two\\nlines')\n", "OSError: two lines"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("SUITES = ()\n", "AttributeError: module"),
        ("syntax error\n", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
        ("import pytest\npytest.importorskip('no_such_module')\n", "Skipped: could not import 'no_such_module'"),
    ],
)
def test_a_suite_that_does_not_import(party, found, request, declaration, why):
    """An entry point that does not load is an error that names it, its distribution and the reason, in one line."""
    name = f"plugin_broken_{abs(hash(declaration))}"
    party.install(name, declaration=declaration, distribution="careless")
    with pytest.raises(SuiteError) as caught:
        found()
    message = str(caught.value)
    assert message.startswith(f"the suite '{name}' ({name}:SUITE from careless) does not import: {why}")
    assert message.endswith("Repair or uninstall it.")
    assert message.isprintable()


@pytest.mark.parametrize("declaration", ["SUITE = 5\n", SUITE.replace("{name}", "another")])
def test_an_entry_point_that_is_no_suite(party, found, declaration):
    """What is no Suite, or one of another name, is an error that names the entry point and its distribution."""
    name = f"plugin_none_{len(declaration)}"
    party.install(name, declaration=declaration, distribution="careless")
    with pytest.raises(SuiteError) as caught:
        found()
    assert str(caught.value) == (
        f"the entry point '{name}' ({name}:SUITE from careless) is no Suite of that name. Repair or uninstall it."
    )


def test_a_broken_suite_by_hand(party, pytester):
    """A session by hand ends with the same words, not with a traceback of the plugin."""
    party.install("acme_suite", declaration="raise OSError('unplugged')\n")
    said = pytester.runpytest_subprocess(*ALONE, *party.options())
    assert said.ret == pytest.ExitCode.USAGE_ERROR
    said.stderr.fnmatch_lines(
        ["ERROR: the suite 'acme_suite' (acme_suite:SUITE from acme) does not import: OSError: *"]
    )
    said.stderr.no_fnmatch_line("*Traceback*")


def test_no_suites_at_all():
    """A harness without any suite is not one that has nothing to object."""
    with pytest.raises(SuiteError, match="no suite is installed"):
        discover([])


def test_choosing_suites():
    """Suites are chosen by name, all of them if none is named; an unknown name is an error that lists them."""
    suites = {name: FoundSuite(Suite(name, ()), name) for name in ("a", "b", "c")}
    assert choose(suites, ()) == suites
    assert list(choose(suites, ["c", "a"])) == ["a", "c"]
    with pytest.raises(SuiteError, match=r"^there is no suite 'd'\. Installed: a, b, c\.$"):
        choose(suites, ["a", "d"])


def test_promises_per_variant():
    """A measure is promised once for each variant, or once for the release."""
    per_variant, per_release = Promise("x", Unit.COUNT), Promise("y", Unit.SHARE, per_variant=False)
    assert Suite("a", (per_variant, per_release)).promised(("fp32", "int8")) == {
        MeasureKey("a", "fp32", "x"): per_variant,
        MeasureKey("a", "int8", "x"): per_variant,
        MeasureKey("a", "release", "y"): per_release,
    }


def test_promises_against_the_served_release():
    """What is compared with the release that is served is promised for the variants that it has too, and for no other."""
    suite = Suite("a", (promise := Promise("x", Unit.RATIO, against_baseline=True),))
    assert suite.promised(("fp32", "int8")) == {}
    assert suite.promised(("fp32", "int8"), ("int8",)) == {MeasureKey("a", "int8", "x"): promise}
    assert suite.promised(("fp32",), ("int8",)) == {}
