"""The steps in their order: load, export, quantize, judge, decide, accept.

Nothing is written where releases are served from before the verdict says ACCEPTED.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.accept import accept
from harness.artifact import Variant, file_digest, open_artifact
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.documents import Json
from harness.errors import ArtifactError, DocumentError, HarnessError, UsageError, one_line
from harness.evidence import Evidence
from harness.export_onnx import check_output, check_writable, write_export, write_unjudged_manifest
from harness.history import RunKind
from harness.judge import DEFAULT_TIME_LIMIT_S, Question, judge
from harness.judging_data import default_data, split_for_calibration, without, write_labelled_set
from harness.labelled_data import read_labelled_set
from harness.manifest import changed_files, content_digest
from harness.openvino_session import installed_openvino
from harness.policy import load_policy
from harness.progress import Progress, Silence, stage
from harness.recording import Circumstances, memory_gib, record_run
from harness.reporting import write_reports
from harness.results import Run, new_run, write_verdict
from harness.revision import revision_of
from harness.serving import Runtime
from harness.suite import FoundSuite, choose, discover
from harness.tagging import LabelledSet
from harness.timing import SystemClock
from harness.verdict import Decision, Policy, Verdict, decide

if TYPE_CHECKING:
    from harness.quantize import Int8Order
    from harness.serving import VariantEntry
    from harness.training import TrainingReport

DEFAULT_MODEL = Path("models/bus_ner_transformer")
DEFAULT_OUTPUT = Path("models/bus_ner_onnx")
DEFAULT_RESULTS = Path("results")
STATE_FOLDER = "state"
SEARCH_FOLDER = "search"
# One folder's name on any system, with nothing in it that a shell or a path would read otherwise.
_LINE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
CANDIDATE_FOLDER = "candidate"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came out of a run: the decision, what it rests on, and where that is."""

    verdict: Verdict
    evidence: Evidence
    run: Run
    document: Json
    stages_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a run judges by: its suites and its policy."""

    suites: dict[str, FoundSuite]
    policy_path: Path | None
    policy: Policy


def read_rules(policy: Path | None, suites: Sequence[str], variants: Sequence[Variant]) -> Rules:
    """Read policy and suites before any work starts, so that a mistake in them costs seconds.

    Raises:
        PolicyError, SuiteError, UsageError: naming what is wrong.
    """
    found = discover()
    chosen = choose(found, suites)
    all_variants = [variant.value for variant in Variant]
    every = {key for suite in found.values() for key in suite.suite.promised(all_variants, all_variants)}
    loaded = load_policy(policy, every, SystemClock().utc().date())
    names = [variant.value for variant in variants]
    judged = {key for suite in chosen.values() for key in suite.suite.promised(names, names)}
    for waiver in loaded.waivers:
        if waiver.key not in judged:
            message = f"the waiver for {waiver.key} matches no measure of this run. Delete it from the policy."
            raise UsageError(message)
    return Rules(chosen, policy, loaded)


def state_of_line(results: Path, line: str | None, model: Path, progress: Progress) -> Path:
    """Say where a release line keeps what later runs of it must see again; nothing is written.

    Args:
        results: where runs are kept.
        line: its name; by default the name of the checkpoint's folder.
        model: the checkpoint's folder.
        progress: who is told of saved queries that belong to no line yet.

    Raises:
        UsageError: the name cannot be that of a folder.
    """
    folder = model.resolve() if model.name in {"", ".."} else model
    name = folder.name if line is None else line
    if not _LINE.fullmatch(name):
        whose = "--line" if line is not None else f"{model}: the name of the folder"
        message = (
            f"{whose} {one_line(name, 60)!r} cannot name a release line: up to 100 letters, digits, dots, dashes and "
            "underscores, no dot first. Name it with --line NAME."
        )
        raise UsageError(message)
    former = results / STATE_FOLDER / "queries.jsonl"
    if former.is_file():
        progress.line(f"note: {former} is of no release line and is not replayed; move it to {former.parent}/{name}/")
    return results / STATE_FOLDER / name


@dataclass(frozen=True, slots=True)
class Data:
    """The labelled queries of a run, and the files that they come from."""

    paths: tuple[Path, ...]
    labelled: LabelledSet


def read_data(checkpoint: Checkpoint, paths: Sequence[Path], progress: Progress) -> Data:
    """Read labelled queries, the bundled bus queries by default.

    Raises:
        DataError, UsageError: naming what is wrong.
    """
    paths = tuple(paths) or _default_data(checkpoint)
    labelled = read_labelled_set(paths, labels=checkpoint.labels)
    for note in labelled.notes:
        progress.line(f"note: {note}")
    return Data(paths, labelled)


def _default_data(checkpoint: Checkpoint) -> tuple[Path, ...]:
    bundled = default_data()
    if set(checkpoint.entity_types) != set(read_labelled_set(bundled).entity_types):
        message = (
            f"{checkpoint.folder} has other labels than the bus queries that are the default data. "
            "Name labelled queries of your own: --data FILE."
        )
        raise UsageError(message)
    return bundled


def release(
    model: str | Path = DEFAULT_MODEL,
    output: str | Path = DEFAULT_OUTPUT,
    *,
    quantize: bool | str = False,
    target: str | None = None,
    search_budget_s: float | None = None,
    calibration: Path | None = None,
    data: Sequence[Path] = (),
    policy: Path | None = None,
    results: Path = DEFAULT_RESULTS,
    line: str | None = None,
    baseline: Path | None = None,
    compare_with_served: bool = True,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Progress | None = None,
) -> Judgement:
    """Export, quantize if asked, judge, and accept what passes.

    Args:
        model: the checkpoint's folder. Where the default one is not there, it is trained first.
        output: where an accepted release is served from.
        quantize: also make, judge and serve an INT8 variant: True, a recipe's name, `auto`, or the path of a manifest.
        target: which CPUs the INT8 variant is for.
        search_budget_s: for `auto`: after so many seconds no measurement is begun.
        calibration: queries that the INT8 variant is made with; by default bus training data, or a part of `data`.
        data: labelled queries; the bundled bus queries by default.
        policy: limits that differ from the defaults.
        results: where the run's folder is made.
        line: the release line, whose saved queries are replayed; by default the name of the checkpoint's folder.
        baseline: the release that the new one may not be slower than; by default the accepted one in `output`.
        compare_with_served: whether there is such a default.
        time_limit_s: of the judging session.
        progress: who is told what happens.

    Returns:
        The judgement; `output` is replaced if, and only if, its decision is ACCEPTED.

    Raises:
        HarnessError: something the user has to mend; nothing was accepted.
    """
    progress = progress or Silence()
    took: dict[str, float] = {}
    model, output = Path(model), Path(output)
    check_output(output, model)
    check_writable(results)
    state = state_of_line(results, line, model, progress)
    if baseline is None and compare_with_served:
        baseline = _served_release(output)
    elif baseline is not None:
        open_artifact(baseline)
    order = _int8_order(quantize, target, search_budget_s, calibration, own_data=bool(data))
    rules = read_rules(policy, (), tuple(Variant) if quantize else (Variant.FP32,))
    checkpoint = reference_at(model, data, took, progress)
    queries = read_data(checkpoint, data, progress)
    run = new_run(results)
    try:
        judged_with = make_candidate(
            checkpoint, queries, run.folder, order, took, progress, notebook=state / SEARCH_FOLDER
        )
    except BaseException:
        shutil.rmtree(run.folder)
        raise
    candidate = run.folder / CANDIDATE_FOLDER
    question = Question(candidate, model, judged_with, policy, rules.suites, state, baseline)
    judgement = _judge(question, rules.policy, run, took, time_limit_s, progress)
    served = None
    try:
        if judgement.verdict.decision is Decision.ACCEPTED:
            with stage(progress, "accept", took):
                accept(
                    candidate,
                    output,
                    judged_digest=judgement.evidence.candidate_digest,
                    run_id=run.name,
                    verdict_digest=file_digest(run.verdict_path),
                    contract=_contract(rules, judgement),
                )
            served = output
            shutil.rmtree(candidate)
    finally:
        _record(judgement, RunKind.RELEASE, served, progress)
        _report(judgement, progress)
    return judgement


def _served_release(output: Path) -> Path | None:
    """Find the release that is served now: an accepted one, in the folder that it stays in when it is replaced.

    Raises:
        UsageError: there is one, but it cannot be opened, or is no longer what was accepted.
    """
    if not output.exists():
        return None
    try:
        artifact = open_artifact(output)
        if artifact.manifest is None or artifact.manifest.get("decision") != Decision.ACCEPTED.value:
            return None
        changed = changed_files(artifact)
    except (ArtifactError, DocumentError) as err:
        message = (
            f"{output}, the release that is served now, cannot be compared with: {err} Or release with --no-baseline."
        )
        raise UsageError(message) from err
    if changed:
        message = (
            f"{output}, the release that is served now, cannot be compared with: {changed[0]}. Restore it, or release with "
            "--no-baseline."
        )
        raise UsageError(message)
    return output.resolve()


def _contract(rules: Rules, judgement: Judgement) -> dict[str, Json]:
    """Collect the measures that the suites want in the manifest, each with the limit that it keeps."""
    variants = judgement.evidence.variants
    promised = {
        key: promise for found in rules.suites.values() for key, promise in found.suite.promised(variants).items()
    }
    return {
        str(finding.measure.key): {
            "value": finding.measure.value,
            "unit": finding.measure.unit.value,
            "limit": str(finding.limit),
        }
        for finding in judgement.verdict.findings
        if (promise := promised.get(finding.measure.key)) and promise.in_manifest
    }


def reference_at(model: Path, data: Sequence[Path], took: dict[str, float], progress: Progress) -> Checkpoint:
    """Open a checkpoint; where the default one is not there, train it first.

    Raises:
        HarnessError: it cannot be used.
    """
    if model == DEFAULT_MODEL and not model.exists():
        if data:
            read_labelled_set(tuple(data))  # a mistake in them should not show after minutes of training
        _train_default(model, took, progress)
    return open_checkpoint(model)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The INT8 variant that is wanted, whether the user brought the data, and what it is to be made with."""

    order: Int8Order
    own_data: bool
    calibration: LabelledSet | None = None


def _int8_order(
    quantize: bool | str,  # noqa: FBT001  # as of `release`
    target: str | None,
    search_budget_s: float | None,
    calibration: Path | None,
    *,
    own_data: bool,
) -> Wanted | None:
    """Check what was asked about INT8 before any work."""
    if quantize is not False:
        from harness.quantize import order_int8

        order = order_int8(quantize, target, search_budget_s)
        return Wanted(order, own_data, None if calibration is None else read_labelled_set(calibration))
    if calibration is not None:
        message = f"{calibration} is for the INT8 variant, which was not asked for. Add --quantize."
        raise UsageError(message)
    if target is not None:
        message = f"the target {target} is for the INT8 variant, which was not asked for. Add --quantize."
        raise UsageError(message)
    if search_budget_s is not None:
        message = "a search budget is for the search of an INT8 recipe, which was not asked for. Add --quantize auto."
        raise UsageError(message)
    return None


def make_candidate(
    checkpoint: Checkpoint,
    queries: Data,
    folder: Path,
    wanted: Wanted | None,
    took: dict[str, float],
    progress: Progress,
    *,
    notebook: Path | None = None,
) -> tuple[Path, ...]:
    """Export and, if asked, quantize into `folder / CANDIDATE_FOLDER`; return the files that are left to judge with."""
    candidate = folder / CANDIDATE_FOLDER
    candidate.mkdir()
    with stage(progress, "export", took):
        write_export(checkpoint, candidate, progress)
    int8 = None
    judged_with = queries.paths
    if wanted is not None:
        with stage(progress, "quantize", took):
            int8, judged_with = _quantize(checkpoint, queries, folder, wanted, progress, notebook)
    write_unjudged_manifest(candidate, checkpoint, int8)
    return judged_with


def _quantize(
    checkpoint: Checkpoint, queries: Data, folder: Path, wanted: Wanted, progress: Progress, notebook: Path | None
) -> tuple[VariantEntry, tuple[Path, ...]]:
    """Quantize on queries that the judging never sees: bus training data, or a part of the user's file."""
    from harness.quantize import default_recipe_data, quantize_model, recipe_data

    candidate, judged_with = folder / CANDIDATE_FOLDER, queries.paths
    if wanted.calibration is not None:
        unseen = without(wanted.calibration, queries.labelled)
        progress.line(f"{len(unseen.queries)} queries make the INT8 variant; none of them judges")
        data = recipe_data(unseen, parted=wanted.order.parted)
    elif wanted.own_data:
        own, judged = split_for_calibration(queries.labelled)
        judged_with = (folder / "judged.jsonl",)
        write_labelled_set(judged_with[0], judged)
        progress.line(f"{len(own.queries)} queries make the INT8 variant, the other {len(judged.queries)} judge")
        data = recipe_data(own, parted=wanted.order.parted)
    else:
        data = default_recipe_data(checkpoint.labels, progress)
    made = quantize_model(candidate, data, wanted.order, progress=progress, notebook=notebook)
    if made.outcome is not None:
        from harness.search.report import print_search, write_search

        print_search(made.outcome)
        write_search(made.outcome, folder)
    return made.entry, judged_with


def train_reference(
    output: Path, *, data: Path | None = None, validation: Path | None = None, base: str | None = None, **knobs: Any
) -> TrainingReport:
    """Fine-tune a checkpoint on files of labelled queries, the bundled bus queries by default.

    Raises:
        HarnessError: data, base or output cannot be used.
    """
    from harness.training import TrainingData, bundled_training_data, train

    if data is None:
        if validation is not None:
            message = "--validation needs --data: the bundled training queries have validation queries of their own."
            raise UsageError(message)
        return train(bundled_training_data(), output, base=base, **knobs)
    labelled = read_labelled_set(data)
    if validation is None:
        return train(labelled, output, base=base, **knobs)
    return train(TrainingData(labelled, read_labelled_set(validation)), output, base=base, **knobs)


def _train_default(model: Path, took: dict[str, float], progress: Progress) -> None:
    """Train the bus model, or take it from the cache if it was trained from the very same things before."""
    from harness.training import bundled_training_data, training_digest

    cached = _cache() / training_digest(bundled_training_data()).replace(":", "-")
    if cached.is_dir():
        progress.line(f"{model} is not there yet: taking the reference model trained before from {cached}")
        copy = model.with_name(f".{model.name}.copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(cached, copy)
        copy.rename(model)
        return
    progress.line(f"{model} is not there yet: training the reference model first.")
    with stage(progress, "train", took):
        train_reference(model)
    _keep_for_other_clones(model, cached, progress)


def _keep_for_other_clones(model: Path, cached: Path, progress: Progress) -> None:
    """Copy a trained model into the cache; a cache that cannot be written costs time later, not this release."""
    fresh = cached.with_name(f".{cached.name}.{os.getpid()}")
    try:
        shutil.copytree(model, fresh)
        fresh.rename(cached)
    except OSError as err:
        shutil.rmtree(fresh, ignore_errors=True)
        progress.line(f"note: the trained model is not kept in {cached} ({err.strerror or one_line(err)})")


def _cache() -> Path:
    """Where trained reference models are kept between clones: HARNESS_CACHE, or the user's cache folder."""
    place = os.environ.get("HARNESS_CACHE")
    if place:
        return Path(place)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ner-release-harness"


def judge_candidate(
    reference: Path,
    candidate: Path,
    *,
    data: Sequence[Path] = (),
    policy: Path | None = None,
    suites: Sequence[str] = (),
    results: Path = DEFAULT_RESULTS,
    line: str | None = None,
    baseline: Path | None = None,
    runtime: str = Runtime.ONNXRUNTIME.value,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Progress | None = None,
) -> Judgement:
    """Judge an export that any tool made; accepts nothing, changes nothing but `results`.

    Through another `runtime` it is another program, so the run is of a release line of its own: `NAME-openvino`.

    Raises:
        HarnessError: something the user has to mend.
    """
    progress = progress or Silence()
    run_by = Runtime.named(runtime)
    if run_by is Runtime.OPENVINO:
        installed_openvino()  # else the judging session would find that out
    artifact = open_artifact(candidate)
    if baseline is not None:
        open_artifact(baseline)
    checkpoint = open_checkpoint(reference)
    check_writable(results)
    state = state_of_line(results, line, reference, progress)
    if line is None and run_by is not Runtime.ONNXRUNTIME:
        state = state.with_name(f"{state.name}-{run_by.value}")
    rules = read_rules(policy, suites, artifact.variants)
    queries = read_data(checkpoint, data, progress)
    run = new_run(results)
    question = Question(candidate, reference, queries.paths, policy, rules.suites, state, baseline, run_by)
    judgement = _judge(question, rules.policy, run, {}, time_limit_s, progress)
    _record(judgement, RunKind.JUDGE, None, progress)
    _report(judgement, progress)
    return judgement


def _record(judgement: Judgement, kind: RunKind, served: Path | None, progress: Progress) -> None:
    """Append the run to the history. The verdict stands without it, so what hinders it is said and no more."""
    folder = judgement.run.folder
    circumstances = Circumstances(kind, served, memory_gib(), revision_of(Path()), judgement.stages_s)
    try:
        record_run(folder.parent, folder.name, circumstances)
    except HarnessError as err:
        progress.line(f"note: the run is not in the history: {one_line(err)}")


def _report(judgement: Judgement, progress: Progress) -> None:
    """Write what tells people about the run. The verdict stands without it, so what hinders it is said and no more."""
    folder = judgement.run.folder
    for note in write_reports(folder, folder.parent):
        progress.line(f"note: {note}")


def _judge(
    question: Question, policy: Policy, run: Run, took: dict[str, float], time_limit_s: float, progress: Progress
) -> Judgement:
    promised = question.promised()
    with stage(progress, "judge", took):
        evidence = judge(question, run.folder, time_limit_s=time_limit_s, progress=progress)
    verdict = decide(policy, promised, evidence)
    subject: Json = {
        "candidate": str(question.candidate),
        "candidate_digest": evidence.candidate_digest,
        "reference": str(question.reference),
        "reference_digest": open_checkpoint(question.reference).digest(),
        "data": {str(path): file_digest(path) for path in question.data},
        "policy": {str(question.policy): file_digest(question.policy)} if question.policy else "default",
        "suites": list(question.suites),
        "baseline": str(question.baseline) if question.baseline else None,
        "baseline_digest": content_digest(question.baseline) if question.baseline else None,
        "line": question.state.name,
        "runtime": question.runtime.value,
        "stages_s": dict(took),
    }
    return Judgement(verdict, evidence, run, write_verdict(run, verdict, evidence, subject), took)
