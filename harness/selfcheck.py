"""Plant known defects into a good export, judge each, and say which of them the gate would stop.

The judging is the gate's own: the same suites, policy and decision. Only the reference is loaded once
for all of them, and each defect meets the suites it needs. Nothing here knows how a defect is caught.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, product
from pathlib import Path

from harness.artifact import Variant, open_artifact
from harness.checkpoint import Checkpoint
from harness.defects import DEFECTS, HARMLESS, UNPLANTED, Defect, DefectNotApplicableError, Strength, Unplanted, plant
from harness.errors import ArtifactError, UsageError, one_line
from harness.evidence import VERSIONED_PACKAGES, machine_and_versions
from harness.judge import Question, judge
from harness.machine import usable_cpus
from harness.manifest import content_digest
from harness.pipeline import (
    CANDIDATE_FOLDER,
    DEFAULT_MODEL,
    DEFAULT_RESULTS,
    Rules,
    Wanted,
    make_candidate,
    read_data,
    read_rules,
    reference_at,
)
from harness.progress import Progress, Silence, stage
from harness.results import Run, new_run
from harness.session import Host, WarmProcess
from harness.suite import FoundSuite
from harness.timing import SystemClock
from harness.verdict import Decision, Finding, Verdict, decide

# One session of one defect; the good export's takes a tenth of it.
_TIME_LIMIT_S = 300.0
_MOST_PROCESSES = 4
_LATENCY = "latency"
_LOGGED_EVERY = 20


class Outcome(Enum):
    """What came of a planted change."""

    CAUGHT = "caught"
    MISSED = "missed"
    PASSED = "passed"  # harmless, and accepted
    FALSE_ALARM = "false alarm"  # harmless, and refused
    UNDECIDED = "undecided"  # INCOMPLETE: refused, but not by a measure
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Trial:
    """One defect of one strength in one variant."""

    defect: Defect
    variant: Variant
    strength: Strength | None
    harmless: bool

    def __str__(self) -> str:
        """Write it as a person would."""
        strength = f", {self.strength.text}" if self.strength else ""
        return f"{self.defect.name} ({self.variant.value}{strength})"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What the gate said about a trial.

    `broken` are the limits that it broke, the one broken by the most first; `reason` is what was said
    where no limit was.
    """

    trial: Trial
    outcome: Outcome
    broken: tuple[Finding, ...] = ()
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The whole check: the good export's own verdict, and what came of every planted change."""

    run: Run
    baseline: Verdict
    results: tuple[TrialResult, ...]
    unplanted: tuple[Unplanted, ...]
    facts: dict[str, object]
    stages_s: dict[str, float] = field(default_factory=dict)

    def of(self, *outcomes: Outcome) -> list[TrialResult]:
        """List the results with these outcomes."""
        return [result for result in self.results if result.outcome in outcomes]

    @property
    def heads(self) -> list[TrialResult]:
        """The strongest trial that was made of each defect in each variant, those that do not apply left out."""
        first: dict[tuple[str, Variant], TrialResult] = {}
        for result in self.results:
            if not result.trial.harmless and result.outcome is not Outcome.NOT_APPLICABLE:
                first.setdefault((result.trial.defect.name, result.trial.variant), result)
        return list(first.values())

    @property
    def caught(self) -> int:
        """How many defects, each at its strongest, a measure or a check of the files caught."""
        return sum(result.outcome is Outcome.CAUGHT for result in self.heads)

    @property
    def decision(self) -> Decision:
        """ACCEPTED if every defect was caught and every harmless change accepted; the gate's own words for the rest."""
        if self.baseline.decision is not Decision.ACCEPTED:
            return self.baseline.decision
        missed = any(result.outcome is Outcome.MISSED for result in self.heads)
        if missed or self.of(Outcome.FALSE_ALARM):
            return Decision.REJECTED
        return Decision.INCOMPLETE if self.of(Outcome.UNDECIDED) else Decision.ACCEPTED


def selfcheck(
    model: Path = DEFAULT_MODEL,
    *,
    candidate: Path | None = None,
    data: Sequence[Path] = (),
    policy: Path | None = None,
    only: Sequence[str] = (),
    results: Path = DEFAULT_RESULTS,
    progress: Progress | None = None,
) -> SelfCheck:
    """Check what this policy and these data would catch.

    Args:
        model: the checkpoint. Where the default one is not there, it is trained first.
        candidate: a good export of it; made, with both variants, if none is named.
        data: labelled queries; the bundled bus queries by default.
        policy: limits that differ from the defaults.
        only: names of the defects and harmless changes to plant; all by default.
        results: where the run's folder is made.
        progress: who is told what happens.

    Raises:
        HarnessError: something the user has to mend.
    """
    progress = progress or Silence()
    chosen = _chosen(only)
    took: dict[str, float] = {}
    checkpoint = reference_at(model, data, took, progress)
    queries = read_data(checkpoint, data, progress)
    run = new_run(results)
    with tempfile.TemporaryDirectory(prefix="harness-selfcheck-") as temporary:
        workplace = Path(temporary)
        judged_with = queries.paths
        if candidate is None:
            from harness.quantize import order_int8

            wanted = Wanted(order_int8(quantize=True, target=None), own_data=bool(data))
            judged_with = make_candidate(checkpoint, queries, workplace, wanted, took, progress)
            candidate = workplace / CANDIDATE_FOLDER
        variants = open_artifact(candidate).variants
        rules = read_rules(policy, (), variants)
        check = _Check(checkpoint, candidate, judged_with, rules, run, workplace, progress)
        return check.carry_out(_chains(chosen, variants, open_artifact(candidate).default_variant), took)


def _chosen(only: Sequence[str]) -> list[tuple[Defect, bool]]:
    """Pick what to plant, each with whether it is harmless."""
    every = [*((defect, False) for defect in DEFECTS), *((change, True) for change in HARMLESS)]
    known = {defect.name for defect, _ in every}
    for name in only:
        if name not in known:
            message = f"there is no defect {name!r}. Known: {', '.join(sorted(known))}."
            raise UsageError(message)
    return [(defect, harmless) for defect, harmless in every if not only or defect.name in only]


def _chains(chosen: Sequence[tuple[Defect, bool]], variants: Sequence[Variant], default: Variant) -> list[list[Trial]]:
    """List what to try: for each defect and variant its strengths, falling."""
    chains = []
    for defect, harmless in chosen:
        for variant in defect.variants or (default,):
            strengths: tuple[Strength | None, ...] = defect.strengths or (None,)
            if variant in variants:
                chains.append([Trial(defect, variant, strength, harmless) for strength in strengths])
    return chains


class _Check:
    """One self-check at work."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        candidate: Path,
        data: tuple[Path, ...],
        rules: Rules,
        run: Run,
        workplace: Path,
        progress: Progress,
    ) -> None:
        self._checkpoint = checkpoint
        self._candidate = candidate
        self._data = data
        self._rules = rules
        self._run = run
        self._workplace = workplace
        self._progress = progress
        self._done = 0

    def carry_out(self, chains: Sequence[list[Trial]], took: dict[str, float]) -> SelfCheck:
        timed = [chain for chain in chains if _LATENCY in chain[0].defect.suites]
        untimed = [chain for chain in chains if _LATENCY not in chain[0].defect.suites]
        found: list[TrialResult] = []
        with _warm_processes(self._checkpoint.folder, self._run.folder) as hosts:
            with stage(self._progress, "good export", took):
                baseline = self._baseline(hosts)
            if baseline.decision is Decision.ACCEPTED:
                with stage(self._progress, f"{len(untimed)} defects and harmless changes", took):
                    found += self._try_all(untimed, hosts, len(chains))
        if baseline.decision is Decision.ACCEPTED and timed:
            with stage(
                self._progress, f"{len(timed)} defects of speed", took
            ):  # alone, or they would slow each other down
                found += chain.from_iterable(self._try_chain(trials, None, len(chains)) for trials in timed)
        order = {id(trial): place for place, trial in enumerate(chain.from_iterable(chains))}
        found.sort(key=lambda result: order[id(result.trial)])
        return SelfCheck(self._run, baseline, tuple(found), UNPLANTED, self._facts(), took)

    def _facts(self) -> dict[str, object]:
        return {
            "candidate": str(self._candidate),
            "candidate_digest": content_digest(self._candidate),
            "reference": str(self._checkpoint.folder),
            "reference_digest": self._checkpoint.digest(),
            "data": [str(path) for path in self._data],
            "policy": str(self._rules.policy_path or "default"),
            "environment": machine_and_versions(VERSIONED_PACKAGES),
        }

    def _baseline(self, hosts: Sequence[WarmProcess]) -> Verdict:
        """Judge the good export, each suite by itself, and hand what the reference said to every process."""
        names = [name for name in self._rules.suites if name != _LATENCY]
        free: queue.SimpleQueue[WarmProcess] = queue.SimpleQueue()
        for host in hosts:
            host.wait_until_ready()
            free.put(host)

        def judged(name: str) -> Verdict:
            host = free.get()
            host.save_answers(self._answers(name))
            try:
                return self._judge(
                    self._candidate, {name: self._rules.suites[name]}, self._run.folder / "good" / name, host
                )
            finally:
                free.put(host)

        # the last suite, with its generated queries, takes longest
        with ThreadPoolExecutor(len(hosts)) as pool:
            verdicts = list(pool.map(judged, reversed(names)))
        for name, host in product(names, hosts):
            if self._answers(name).exists():
                host.load_answers(self._answers(name))
        return _together(verdicts)

    def _answers(self, suite: str) -> Path:
        return self._workplace / f"answers-{suite}.npz"

    def _try_all(self, chains: Sequence[list[Trial]], hosts: Sequence[WarmProcess], total: int) -> list[TrialResult]:
        free: queue.SimpleQueue[WarmProcess] = queue.SimpleQueue()
        for host in hosts:
            free.put(host)

        def on_a_free_one(trials: list[Trial]) -> list[TrialResult]:
            host = free.get()
            try:
                return self._try_chain(trials, host, total)
            finally:
                free.put(host)

        # what takes longest first, so that no process waits for another at the end
        longest_first = sorted(chains, key=lambda trials: -len(trials[0].defect.suites))
        with ThreadPoolExecutor(len(hosts)) as pool:
            try:
                return list(chain.from_iterable(pool.map(on_a_free_one, longest_first)))
            except BaseException:
                pool.shutdown(cancel_futures=True, wait=False)
                raise

    def _try_chain(self, trials: Sequence[Trial], host: Host | None, total: int) -> list[TrialResult]:
        results = self._rising(trials, host)
        self._tell(trials[0].defect.name, total)
        for result in results[:1]:
            if result.outcome in {Outcome.MISSED, Outcome.FALSE_ALARM, Outcome.UNDECIDED}:
                self._progress.line(f"{result.outcome.value}: {result.trial} {explained(result)}")
        return results

    def _rising(self, trials: Sequence[Trial], host: Host | None) -> list[TrialResult]:
        """Try the weakest strength, and stronger ones up to the first that is caught.

        Stronger damage is taken to be caught where weaker is: from the strongest down would find the same in more trials.
        """
        results: list[TrialResult] = []
        for trial in reversed(trials):
            results.insert(0, self._try(trial, host))
            if results[0].outcome is not Outcome.MISSED:
                break
        return results

    def _tell(self, name: str, total: int) -> None:
        """Say how far it is; every twentieth time on a line that stays, for a log shows no other."""
        self._done += 1
        tell = self._progress.line if self._done % _LOGGED_EVERY == 0 else self._progress.now
        tell(f"self-check {self._done}/{total}: {name}")

    def _try(self, trial: Trial, host: Host | None) -> TrialResult:
        clock = SystemClock()
        begin = clock.now_ns()
        folder = Path(tempfile.mkdtemp(prefix="trial-", dir=self._workplace))
        try:
            outcome, broken, reason = self._outcome(trial, folder, host)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return TrialResult(trial, outcome, broken, reason, round((clock.now_ns() - begin) / 1e9, 2))

    def _outcome(self, trial: Trial, folder: Path, host: Host | None) -> tuple[Outcome, tuple[Finding, ...], str]:
        candidate = folder / "candidate"
        strength = trial.strength.value if trial.strength else 0.0
        try:
            plant(trial.defect, self._candidate, self._checkpoint.folder, candidate, trial.variant, strength)
        except DefectNotApplicableError as err:
            return Outcome.NOT_APPLICABLE, (), one_line(err)
        suites = {name: found for name, found in self._rules.suites.items() if name in trial.defect.suites}
        try:
            verdict = self._judge(candidate, suites, folder / "run", host)
        except ArtifactError as err:  # what `harness judge` ends with before any suite runs
            refused = Outcome.FALSE_ALARM if trial.harmless else Outcome.CAUGHT
            return refused, (), one_line(str(err).replace(f"{candidate.resolve()}", "DIR"), 300)
        broken = tuple(sorted(verdict.broken, key=lambda finding: -finding.excess))
        outcome = _OUTCOMES[trial.harmless][verdict.decision]
        if outcome not in {Outcome.CAUGHT, Outcome.PASSED}:
            self._keep(trial, folder / "run")
        return outcome, broken, "; ".join(verdict.problems[:3])

    def _keep(self, trial: Trial, run: Path) -> None:
        """Keep evidence and log of what did not go as it should."""
        name = f"{trial.defect.name}-{trial.variant.value}" + (f"-{trial.strength.value:g}" if trial.strength else "")
        shutil.copytree(run, self._run.folder / name, dirs_exist_ok=True)

    def _judge(self, candidate: Path, suites: dict[str, FoundSuite], folder: Path, host: Host | None) -> Verdict:
        state = self._workplace / "state"  # empty: planted failures must not reach the queries that real runs replay
        question = Question(candidate, self._checkpoint.folder, self._data, self._rules.policy_path, suites, state)
        promised = question.promised()
        stops = candidate != self._candidate  # of the good export a person wants to see every limit that it breaks
        evidence = judge(question, folder, time_limit_s=_TIME_LIMIT_S, host=host, stop_when_rejected=stops)
        return decide(self._rules.policy, promised, evidence)


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    """Put verdicts on parts of the evidence together: the worst decision stands."""
    decisions = {verdict.decision for verdict in verdicts}
    worst = next(
        decision for decision in (Decision.REJECTED, Decision.INCOMPLETE, Decision.ACCEPTED) if decision in decisions
    )
    findings = chain.from_iterable(verdict.findings for verdict in verdicts)
    problems = chain.from_iterable(verdict.problems for verdict in verdicts)
    return Verdict(worst, tuple(sorted(findings, key=lambda finding: finding.measure.key)), tuple(problems))


_OUTCOMES = {
    False: {
        Decision.ACCEPTED: Outcome.MISSED,
        Decision.REJECTED: Outcome.CAUGHT,
        Decision.INCOMPLETE: Outcome.UNDECIDED,
    },
    True: {
        Decision.ACCEPTED: Outcome.PASSED,
        Decision.REJECTED: Outcome.FALSE_ALARM,
        Decision.INCOMPLETE: Outcome.UNDECIDED,
    },
}


@contextmanager
def _warm_processes(reference: Path, folder: Path) -> Iterator[list[WarmProcess]]:
    """Start as many as there are cores to run them."""
    with ExitStack() as stack:
        count = min(usable_cpus(), _MOST_PROCESSES)
        yield [stack.enter_context(WarmProcess(reference, folder / f"warm-{n}.log")) for n in range(count)]


def explained(result: TrialResult) -> str:
    """Say by what a trial was caught, or why it came out as it did."""
    if result.broken:
        return f"{result.broken[0]} ({over(result.broken[0])})"
    return result.reason


def over(finding: Finding) -> str:
    """Say by how much a limit is broken."""
    return f"{finding.excess:.3g} times the limit" if finding.excess < 1e6 else "beyond any limit"
