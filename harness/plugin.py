"""The pytest plugin: hands suites what they judge, and writes down what they measured.

Inert in every session that collects no suite. Nothing else in the package imports pytest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.artifact import Artifact, Variant, open_artifact
from harness.documents import to_json
from harness.errors import HarnessError, one_line
from harness.evidence import (
    RELEASE_SCOPE,
    VERSIONED_PACKAGES,
    Evidence,
    Measure,
    MeasureKey,
    Outcome,
    Result,
    Unit,
    machine_and_versions,
    measure_from_json,
    measure_to_json,
    write_evidence,
)
from harness.manifest import content_digest
from harness.progress import MARK
from harness.serving import Runtime
from harness.session import WARM_REFERENCE
from harness.suite import discover
from harness.timing import Clock, SystemClock
from harness.verdict import Finding, Limit, Policy, compare

if TYPE_CHECKING:
    from harness.candidate import Candidate
    from harness.reference import Reference
    from harness.tagging import LabelledSet, TaggedQuery

_MEASURE = "harness-measure"
_RUNTIME_HELP = "what runs the candidate's models (default: %(default)s)"
_SUITE_OF_ITEM = pytest.StashKey[str]()
_SESSION = pytest.StashKey["JudgingSession"]()

RecordMeasure = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say what is judged."""
    # the plugin is loaded in every project of the environment: only the two options that people type go without a prefix
    group = parser.getgroup("harness", "judging an ONNX export")
    group.addoption("--candidate", type=Path, metavar="DIR", help="the export to judge")
    group.addoption("--reference", type=Path, metavar="DIR", help="the PyTorch checkpoint it was made from")
    group.addoption(
        "--harness-data", type=Path, action="append", metavar="FILE", help="labelled queries; may be repeated"
    )
    group.addoption("--harness-baseline", type=Path, metavar="DIR", help="the release that is served now")
    runtimes = [one.value for one in Runtime]
    group.addoption("--harness-runtime", choices=runtimes, default=runtimes[0], help=_RUNTIME_HELP)
    group.addoption("--harness-policy", type=Path, metavar="FILE", help="limits that differ from the defaults")
    state_help = "where failing queries are kept between runs; the folder's name is the release line"
    group.addoption("--harness-state", type=Path, metavar="DIR", help=state_help)
    group.addoption("--harness-evidence", type=Path, metavar="FILE", help="write the evidence here at the end")
    group.addoption("--harness-stop-when-rejected", action="store_true", help="end the session once a limit is broken")
    group.addoption("--harness-run-id", default="by-hand", help="the run that the evidence belongs to")


class JudgingSession:
    """What one pytest session has seen so far."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.process = os.getpid()
        self.suites = discover()
        self.artifact: Artifact | None = None
        self.policy: Policy | None = None
        self.chosen: set[str] = set()
        self.collected = 0
        self.deselected = 0
        self.outcomes: list[Outcome] = []
        self.measures: list[Measure] = []
        self.problems: list[str] = []

    def open(self) -> None:
        """Read the candidate and the policy; called once a suite's test is seen."""
        if self.artifact is not None:
            return
        for option in ("candidate", "reference"):
            if self.config.getoption(option) is None:
                message = f"judging suites need --{option} DIR"
                raise pytest.UsageError(message)
        from harness.policy import load_policy

        try:
            self.artifact = open_artifact(self.config.getoption("candidate"))
            every = [variant.value for variant in Variant]
            promised = {key for found in self.suites.values() for key in found.suite.promised(every, every)}
            self.policy = load_policy(self.config.getoption("harness_policy"), promised, SystemClock().utc().date())
        except HarnessError as err:
            raise pytest.UsageError(str(err)) from err

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that the candidate has."""
        return tuple(variant.value for variant in self.artifact.variants) if self.artifact else ()

    def suite_of(self, module: str) -> str | None:
        """Name the suite to whose package a module belongs."""
        for name, found in self.suites.items():
            if module == found.package or module.startswith(f"{found.package}."):
                return name
        return None


def pytest_configure(config: pytest.Config) -> None:
    """Register a marker for each suite."""
    try:
        session = JudgingSession(config)
    except HarnessError as err:
        raise pytest.UsageError(str(err)) from err
    config.stash[_SESSION] = session
    for name in session.suites:
        config.addinivalue_line("markers", f"{name}: a test of the judging suite {name}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `variant` once for each variant of the candidate."""
    session = metafunc.config.stash[_SESSION]
    if "variant" not in metafunc.fixturenames or session.suite_of(metafunc.module.__name__) is None:
        return
    try:
        session.open()
    except pytest.UsageError:
        # a traceback of the collection here; pytest_collection_modifyitems says it again, in one line
        metafunc.parametrize("variant", (), scope="session")
        return
    metafunc.parametrize("variant", session.variants, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test of a suite, and count them before anyone can deselect one."""
    session = config.stash[_SESSION]
    for item in items:
        module = getattr(item, "module", None)
        suite = session.suite_of(module.__name__) if module else None
        if suite is not None:
            session.open()
            session.chosen.add(suite)
            item.stash[_SUITE_OF_ITEM] = suite
            item.add_marker(suite)
    session.collected = len(items)
    if config.getoption("harness_stop_when_rejected"):
        _likely_ones_first(items, session.artifact.default_variant.value if session.artifact else "")


def _likely_ones_first(items: list[pytest.Item], default_variant: str) -> None:
    """Let a suite's tests of the default variant come first, and those that need the answer to every labelled query last.

    The suites stay in order.
    """
    suites = list(dict.fromkeys(item.stash.get(_SUITE_OF_ITEM, "") for item in items))

    def place(item: pytest.Item) -> tuple[int, bool, bool]:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return (
            suites.index(item.stash.get(_SUITE_OF_ITEM, "")),
            "answers" in getattr(item, "fixturenames", ()),
            params.get("variant", default_variant) != default_variant,
        )

    items.sort(key=place)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what will not run."""
    if items:
        items[0].config.stash[_SESSION].deselected += len(items)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Keep collection errors, and modules that skip themselves; a suite that does not import judges nothing."""
    if not report.passed and _current is not None:
        _current.problems.append(
            f"{report.nodeid or 'the session'} could not be collected: {_last_line(report.longreprtext)}"
        )


_current: JudgingSession | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember the session for the hooks that pytest calls without a config."""
    global _current  # noqa: PLW0603  # pytest_collectreport has no other way to the session
    _current = session.config.stash[_SESSION]


def pytest_runtest_logstart(nodeid: str) -> None:
    """Tell the judging process what runs now."""
    if _current is not None and _current.config.getoption("harness_evidence"):
        _print_progress({"test": nodeid, "done": len(_current.outcomes), "of": _current.collected})


def _print_progress(state: Mapping[str, object]) -> None:
    print(f"\n{MARK}{json.dumps(state)}", flush=True)  # noqa: T201  # the judging process reads it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose measures break a limit, and note how each test ended."""
    report = yield
    session = item.config.stash[_SESSION]
    suite = item.stash.get(_SUITE_OF_ITEM, None)
    if suite is None or session.policy is None:
        return report
    recorded: list[tuple[str, Any]] = item.user_properties
    measures = [measure_from_json(value) for name, value in recorded if name == _MEASURE]
    findings = [compare(session.policy, measure) for measure in measures]
    broken = [finding for finding in findings if finding.rejects]
    not_kept = [*broken, *(finding for finding in findings if finding.open)]
    if report.when == "call":
        session.measures.extend(measures)
        if not_kept and report.passed:
            _fail(report, not_kept)
        if broken and item.config.getoption("harness_stop_when_rejected"):
            item.session.shouldstop = "a limit is broken, so the candidate is rejected"
    _note_outcome(session, suite, report, limit_broken=bool(not_kept))
    if not_kept and report.when == "call" and report.skipped:
        _fail(report, not_kept)  # the evidence says xfailed or skipped; nor may the session end well for a person
    return report


def _fail(report: pytest.TestReport, broken: Sequence[Finding]) -> None:
    report.outcome = "failed"
    report.longrepr = "\n".join(map(str, broken))
    vars(report).pop("wasxfail", None)


def _note_outcome(session: JudgingSession, suite: str, report: pytest.TestReport, *, limit_broken: bool) -> None:
    """Note the outcome of a test: its call, or the set-up or tear-down that went wrong."""
    result = _result(report)
    if report.when != "call" and result is Result.PASSED:
        return
    if report.when == "teardown":
        # a tear-down that fails takes back what the call said; under --pyargs suites can share a node id
        key = (suite, report.nodeid)
        session.outcomes = [outcome for outcome in session.outcomes if (outcome.suite, outcome.test) != key]
    reason = "" if result is Result.PASSED else _last_line(report.longreprtext)
    session.outcomes.append(Outcome(suite, report.nodeid, result, round(report.duration, 3), reason, limit_broken))


def _result(report: pytest.TestReport) -> Result:
    if hasattr(report, "wasxfail"):
        return Result.XFAILED if report.skipped else Result.XPASSED
    if str(report.outcome) == "rerun":  # pytest-rerunfailures' own
        return Result.RERUN
    if report.skipped:
        return Result.SKIPPED
    if report.failed:
        return Result.FAILED if report.when == "call" else Result.ERROR
    return Result.PASSED


def _last_line(text: str) -> str:
    """Pick the line of a failure report that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return one_line(errors[0] if errors else (lines[-1] if lines else "no reason given"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the evidence; nothing is written if the session does not get here."""
    judging = session.config.stash[_SESSION]
    path = session.config.getoption("harness_evidence")
    # a child that a test forked and let run on does not speak for the session
    if path is None or os.getpid() != judging.process:
        return
    if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        name = next((f" ({code.name})" for code in pytest.ExitCode if code == exitstatus), "")
        judging.problems.append(f"pytest ended with exit status {int(exitstatus)}{name}")
    folder = judging.artifact.folder if judging.artifact else None
    write_evidence(
        path,
        Evidence(
            run_id=session.config.getoption("harness_run_id"),
            candidate_digest=content_digest(folder) if folder else "",
            variants=judging.variants,
            suites=tuple(sorted(judging.chosen)),
            collected=judging.collected,
            deselected=judging.deselected,
            outcomes=tuple(judging.outcomes),
            measures=tuple(judging.measures),
            problems=tuple(judging.problems),
            environment=_environment(_runtime_of(session.config)),
        ),
    )


def _runtime_of(config: pytest.Config) -> Runtime:
    return Runtime(config.getoption("harness_runtime"))


def _environment(runtime: Runtime) -> dict[str, str]:
    """Tell the machine and the versions; and what ran the models, where it was not what runs them by default."""
    facts = machine_and_versions(VERSIONED_PACKAGES)
    if runtime is Runtime.ONNXRUNTIME:
        return facts
    return {**facts, **machine_and_versions((runtime.value,)), "runtime": runtime.value}


@pytest.fixture(scope="session")
def clock() -> Clock:
    """The clock that latency is measured with."""
    return SystemClock()


@pytest.fixture(scope="session")
def candidate(pytestconfig: pytest.Config) -> Artifact:
    """The export that is judged, as files; nothing of it is loaded yet."""
    artifact = pytestconfig.stash[_SESSION].artifact
    if artifact is None:
        message = "judging suites need --candidate DIR"
        raise pytest.UsageError(message)
    return artifact


@pytest.fixture(scope="session")
def runtime(pytestconfig: pytest.Config) -> Runtime:
    """What runs the candidate's models: a suite that opens one itself opens it with this."""
    return _runtime_of(pytestconfig)


@pytest.fixture(scope="session")
def baseline(pytestconfig: pytest.Config) -> Artifact | None:
    """The release that is served now, as files, if there is one."""
    folder: Path | None = pytestconfig.getoption("harness_baseline")
    return open_artifact(folder) if folder else None


@pytest.fixture(scope="session")
def reference(pytestconfig: pytest.Config) -> Reference:
    """The PyTorch model; the one that this process had loaded before, if it is a warm one."""
    from harness.reference import Reference

    folder = pytestconfig.getoption("reference")
    warm = pytestconfig.pluginmanager.get_plugin(WARM_REFERENCE)
    if warm is not None and warm.reference.checkpoint.folder.resolve() == folder.resolve():
        loaded: Reference = warm.reference
        return loaded
    return Reference(folder)


@pytest.fixture(scope="session")
def labelled_set(pytestconfig: pytest.Config, reference: Reference) -> LabelledSet:
    """The labelled queries to judge with."""
    from harness.judging_data import default_data
    from harness.labelled_data import read_labelled_set

    return read_labelled_set(pytestconfig.getoption("harness_data") or default_data(), labels=reference.labels)


@pytest.fixture(scope="session")
def reference_answers(reference: Reference, labelled_set: LabelledSet) -> list[TaggedQuery]:
    """What the reference says about each labelled query."""
    from harness.tagging import tag

    return tag(reference, labelled_set.texts)


@pytest.fixture(scope="session")
def model(candidate: Artifact, variant: str, runtime: Runtime) -> Candidate:
    """One variant of the candidate, opened as it will be served."""
    from harness.candidate import Candidate

    return Candidate(candidate, Variant(variant), runtime=runtime)


@pytest.fixture(scope="session")
def answers(model: Candidate, labelled_set: LabelledSet) -> list[TaggedQuery]:
    """What one variant says about each labelled query; as it is served, on every core at once."""
    from harness.machine import usable_cpus
    from harness.tagging import tag

    return tag(model, labelled_set.texts, workers=usable_cpus())


@pytest.fixture(scope="session")
def state_folder(pytestconfig: pytest.Config) -> Path | None:
    """Where a suite keeps what later runs must see again, if this session was given a place."""
    folder: Path | None = pytestconfig.getoption("harness_state")
    return folder


def _place(request: pytest.FixtureRequest, what: str) -> tuple[str, str]:
    """Tell the suite of a test, and what its measures are about: its variant, or the release as a whole."""
    suite = request.node.stash.get(_SUITE_OF_ITEM, None)
    if suite is None:
        message = f"{what} is for tests of judging suites"
        raise pytest.UsageError(message)
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    return suite, params.get("variant", RELEASE_SCOPE)


@pytest.fixture
def limit_of(request: pytest.FixtureRequest) -> Callable[[str], Limit]:
    """A function that tells the limit of a measure of this test, so that measuring ends once it is clear which side it is on.

    It is for how long to measure alone: what the measure is, and whether it keeps the limit, must not depend on it.
    """
    suite, scope = _place(request, "limit_of")
    policy = request.config.stash[_SESSION].policy

    def limit(name: str) -> Limit:
        found = policy.limits.get(MeasureKey(suite, scope, name)) if policy else None
        return found or Limit()

    return limit


@pytest.fixture
def record_measure(request: pytest.FixtureRequest) -> RecordMeasure:
    """A function `record_measure(name, value, *, unit, details={}, interval=None)`.

    In a test that runs per variant the measure belongs to that variant, else to the release as a
    whole. NaN, infinity and details that JSON cannot hold fail the test without counting as a measure.
    """
    suite, scope = _place(request, "record_measure")

    def record(
        name: str,
        value: float,
        *,
        unit: Unit,
        details: Mapping[str, Any] | None = None,
        interval: tuple[float, float] | None = None,
    ) -> None:
        number = float(value)
        ends = None if interval is None else (float(interval[0]), float(interval[1]))
        try:
            measure = Measure(MeasureKey(suite, scope, name), number, unit, details or {}, ends)
        except ValueError as err:
            pytest.fail(str(err), pytrace=False)
        try:
            to_json(measure_to_json(measure)).encode()
        except (TypeError, ValueError, RecursionError) as err:
            pytest.fail(f"the details of {measure.key} are no JSON: {one_line(err)}", pytrace=False)
        request.node.user_properties.append((_MEASURE, measure_to_json(measure)))

    return record
