"""The steps in their order, on the tiny checkpoint; all but one test with made-up evidence instead of a judging process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import files_of, names_in

from harness import pipeline
from harness.artifact import Variant, file_digest, open_artifact
from harness.errors import (
    AcceptanceError,
    ArtifactError,
    CheckpointError,
    DataError,
    HarnessError,
    PolicyError,
    SuiteError,
    UsageError,
)
from harness.evidence import MeasureKey
from harness.labelled_data import read_labelled_set
from harness.manifest import changed_files, content_digest
from harness.verdict import Decision


@pytest.fixture
def place(tmp_path):
    """An empty folder to release in."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def run_release(tiny_checkpoint, tiny_data, place, fake_judge, fast_export):
    """Release the tiny checkpoint as most tests do; options of their own win."""

    def run(**options):
        chosen = {"output": place / "models" / "onnx", "results": place / "results", "data": [tiny_data], **options}
        return pipeline.release(chosen.pop("model", tiny_checkpoint), **chosen)

    return run


def runs_in(place):
    """The folders of the runs."""
    found = (path for path in (place / "results").iterdir() if path.is_dir())
    return sorted(path for path in found if path.name != pipeline.STATE_FOLDER)


def test_what_passes_is_accepted(run_release, place, fake_judge):
    """An accepted candidate is served, says so, names its verdict, and is exactly what was judged."""
    judgement = run_release()
    assert judgement.verdict.decision is Decision.ACCEPTED
    output = place / "models" / "onnx"
    artifact = open_artifact(output)
    assert artifact.manifest["decision"] == "ACCEPTED"
    assert artifact.manifest["verdict_digest"] == file_digest(judgement.run.verdict_path)
    assert changed_files(artifact) == []
    (judged,) = fake_judge.candidates
    released = files_of(output)
    assert {name: released[name] for name in released if name != "manifest.json"} == {
        name: judged[name] for name in judged if name != "manifest.json"
    }


def test_what_programs_may_rely_on_is_in_the_manifest(run_release, place, fake_judge):
    """How little padding and batch mates change is written into the manifest as it was measured, beside its limit."""
    fake_judge.values["parity.fp32.batch_logit_difference"] = 0.0004
    run_release()
    contract = open_artifact(place / "models" / "onnx").manifest["contract"]
    assert contract["parity.fp32.batch_logit_difference"] == {"value": 0.0004, "unit": "logit", "limit": "≤ 0.001"}
    assert all(entry.startswith("parity.fp32.") for entry in contract)


def test_what_an_accepted_run_leaves(run_release, place):
    """Verdict and evidence stay in results; the candidate, which is served now, does not lie there twice."""
    judgement = run_release()
    assert runs_in(place) == [judgement.run.folder]
    assert {"evidence.json", "verdict.json", "history-line.json"} <= set(names_in(judgement.run.folder))
    assert "candidate" not in names_in(judgement.run.folder)
    document = json.loads(judgement.run.verdict_path.read_text(encoding="utf-8"))
    assert document == judgement.document
    assert document["decision"] == "ACCEPTED"
    assert names_in(place / "models") == [".onnx.releases", "onnx"]


def test_the_verdict_names_what_it_is_about(run_release, place, tiny_checkpoint, tiny_data):
    """Candidate, reference, data and policy are in the verdict with their digests."""
    from harness.checkpoint import open_checkpoint

    policy = place / "policy.toml"
    policy.write_text("[limits.parity.fp32]\nlabel_agreement = { min = 0.5 }\n", encoding="utf-8")
    subject = run_release(policy=policy).document["subject"]
    assert subject["reference_digest"] == open_checkpoint(tiny_checkpoint).digest()
    assert subject["data"] == {str(tiny_data): file_digest(tiny_data)}
    assert subject["policy"] == {str(policy): file_digest(policy)}
    assert set(subject["suites"]) >= {"artifact", "parity", "quality", "queries", "latency"}
    assert list(subject["stages_s"]) == ["export", "judge"]


def test_the_first_release_is_compared_with_none(run_release, place, fake_judge):
    """Where nothing is served yet there is nothing to be slower than, and no such measure is due."""
    judgement = run_release()
    assert fake_judge.questions[0].baseline is None
    assert judgement.document["subject"]["baseline"] is None
    names = {finding.measure.key.name for finding in judgement.verdict.findings}
    assert "single_query_ratio_to_reference" in names
    assert "ratio_to_last_release" not in names


def test_a_release_is_compared_with_the_one_that_is_served(run_release, place, fake_judge):
    """The accepted release in the output folder is the baseline, in the folder that it keeps when it is replaced."""
    run_release()
    served = (place / "models" / "onnx").resolve()
    judgement = run_release()
    question = fake_judge.questions[1]
    assert question.baseline == served != (place / "models" / "onnx").resolve()
    assert MeasureKey("latency", "fp32", "ratio_to_last_release") in {
        finding.measure.key for finding in judgement.verdict.findings
    }
    subject = judgement.document["subject"]
    assert (subject["baseline"], subject["baseline_digest"]) == (str(served), content_digest(served))


def test_a_release_that_became_slower_is_not_accepted(run_release, place, fake_judge):
    """A candidate slower than the served release by more than the limit is rejected, and the served one stays."""
    run_release()
    served = (place / "models" / "onnx").resolve()
    fake_judge.values["latency.fp32.ratio_to_last_release"] = 1.2
    assert run_release().verdict.decision is Decision.REJECTED
    assert (place / "models" / "onnx").resolve() == served
    assert run_release(compare_with_served=False).verdict.decision is Decision.ACCEPTED


def test_another_release_to_compare_with(run_release, place, fake_judge, tiny_export):
    """A person may name what to compare with; an export that nobody accepted is not taken by itself."""
    run_release(baseline=tiny_export)
    assert fake_judge.questions[0].baseline == tiny_export
    unjudged = shutil.copytree(tiny_export, place / "unjudged")
    run_release(output=unjudged)
    assert fake_judge.questions[1].baseline is None


@pytest.mark.parametrize("damaged", ["config.json", "tokenizer.json"])
def test_a_served_release_that_cannot_be_opened(run_release, place, fake_judge, damaged):
    """It is said before any work, with both ways out; nothing is silently left uncompared."""
    run_release()
    (place / "models" / "onnx" / damaged).write_text("{", encoding="utf-8")
    runs = len(runs_in(place))
    says = rf"that is served now, cannot be compared with: .*{damaged}.* --no-baseline\.$"
    with pytest.raises(UsageError, match=says):
        run_release()
    with pytest.raises(ArtifactError):
        run_release(baseline=place / "nowhere")
    assert len(runs_in(place)) == runs
    assert run_release(compare_with_served=False).verdict.decision is Decision.ACCEPTED


NOT_ACCEPTED = {
    "rejected": (Decision.REJECTED, lambda judge: judge.values.update({"parity.fp32.label_agreement": 0.5})),
    "a measure is missing": (
        Decision.INCOMPLETE,
        lambda judge: setattr(judge, "missing", {"parity.fp32.label_agreement"}),
    ),
    "the session crashed": (Decision.INCOMPLETE, lambda judge: setattr(judge, "problems", ("it died",))),
}


@pytest.mark.parametrize("case", NOT_ACCEPTED)
def test_what_does_not_pass_changes_nothing_served(run_release, place, fake_judge, case):
    """A rejected or incomplete run leaves the earlier release byte for byte, and keeps its candidate to look at."""
    decision, spoil = NOT_ACCEPTED[case]
    run_release()
    before = files_of(place / "models")
    link = (place / "models" / "onnx").readlink()
    spoil(fake_judge)
    judgement = run_release()
    assert judgement.verdict.decision is decision
    assert files_of(place / "models") == before
    assert (place / "models" / "onnx").readlink() == link
    candidate = judgement.run.folder / pipeline.CANDIDATE_FOLDER
    assert files_of(candidate) == fake_judge.candidates[-1]
    assert open_artifact(candidate).manifest["decision"] == "UNJUDGED"
    assert judgement.document["decision"] == decision.value


@pytest.mark.parametrize("case", NOT_ACCEPTED)
def test_a_first_release_that_does_not_pass_is_not_served(run_release, place, fake_judge, case):
    """Where nothing was served, nothing is."""
    NOT_ACCEPTED[case][1](fake_judge)
    run_release()
    assert not (place / "models").exists()


def test_nothing_is_served_while_it_is_judged(run_release, place, fake_judge, monkeypatch):
    """The output stays as it was until the verdict has been made."""
    output = place / "models" / "onnx"

    def looking(question, run_folder, **options):
        assert not output.exists()
        return fake_judge(question, run_folder, **options)

    monkeypatch.setattr(pipeline, "judge", looking)
    run_release()
    assert output.exists()


def test_a_judge_that_breaks_off(run_release, place, monkeypatch):
    """Ctrl-C while judging accepts nothing."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_release()
    assert not (place / "models").exists()


def test_an_acceptance_that_fails(run_release, place, fake_judge, monkeypatch):
    """When the file system refuses, the error says so, the old release is served and the candidate is kept."""
    run_release()
    before = files_of(place / "models")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    monkeypatch.setattr(pipeline, "write_export", lambda checkpoint, folder, progress: _copy(fake_judge, folder))
    with pytest.raises(AcceptanceError, match="No space left"):
        run_release()
    assert files_of(place / "models") == before
    (candidate,) = (place / "results").glob(f"*/{pipeline.CANDIDATE_FOLDER}")
    assert (candidate / "model.onnx").exists()


def _copy(fake_judge, folder):
    for name, content in fake_judge.candidates[0].items():
        if name != "manifest.json":
            (folder / name).write_bytes(content)


def write(path: Path, text: str) -> Path:
    """Write a file and name it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


UNKNOWN = "[limits.parity.fp32]\nlabel_agrement = { min = 1 }\n"
WAIVER = '[[waivers]]\nmeasure = "latency.int8.cold_start_ratio"\nreason = "r"\nexpires = 2999-01-01\n'


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (CheckpointError, lambda at, model: {"model": at / "nowhere"}),
        (UsageError, lambda at, model: {"output": model}),
        (UsageError, lambda at, model: {"output": model / "onnx"}),
        (ArtifactError, lambda at, model: {"output": write(at / "file", "")}),
        (ArtifactError, lambda at, model: {"output": write(at / "file", "") / "onnx"}),
        (ArtifactError, lambda at, model: {"output": write(at / "documents" / "thesis.tex", "").parent}),
        (ArtifactError, lambda at, model: {"results": write(at / "file", "") / "results"}),
        (DataError, lambda at, model: {"data": [at / "nowhere.jsonl"]}),
        (DataError, lambda at, model: {"data": [write(at / "empty.jsonl", "")]}),
        (DataError, lambda at, model: {"data": [write(at / "bad.jsonl", '{"text": "a", "spans": [[0, 9, "SRC"]]}\n')]}),
        (DataError, lambda at, model: {"data": [write(at / "bad.jsonl", '{"text": "a", "spans": [[0, 1, "OPERA"]]}\n')]}),
        (UsageError, lambda at, model: {"data": []}),  # the default data have other labels
        (PolicyError, lambda at, model: {"policy": at / "nowhere.toml"}),
        (PolicyError, lambda at, model: {"policy": write(at / "policy.toml", "[limits\n")}),
        (PolicyError, lambda at, model: {"policy": write(at / "policy.toml", UNKNOWN)}),
        (UsageError, lambda at, model: {"policy": write(at / "policy.toml", WAIVER)}),  # nothing INT8 is judged
    ],
)  # fmt: skip
def test_bad_input_is_found_before_anything_is_written(run_release, place, tiny_checkpoint, fake_judge, error, options):
    """A mistake in any input is one line, and costs neither an export nor a folder in results."""
    chosen = options(place, tiny_checkpoint)
    before, checkpoint = sorted(place.rglob("*")), files_of(tiny_checkpoint)
    with pytest.raises(error) as caught:
        run_release(**chosen)
    assert "\n" not in str(caught.value)
    assert sorted(place.rglob("*")) == before
    assert files_of(tiny_checkpoint) == checkpoint
    assert fake_judge.questions == []


def test_an_export_that_fails_leaves_no_run(run_release, place, monkeypatch):
    """A run that could not even make its candidate leaves no folder that looks like one."""

    def broken(*args):
        message = "optimum said no"
        raise CheckpointError(message)

    monkeypatch.setattr(pipeline, "write_export", broken)
    with pytest.raises(CheckpointError):
        run_release()
    assert runs_in(place) == []
    assert not (place / "models").exists()


def test_own_data_are_split_when_quantizing(run_release, place, fake_judge, tiny_data):
    """With --quantize, a part of the user's queries sets the INT8 ranges, and only the others judge."""
    judgement = run_release(quantize=True)
    assert judgement.verdict.decision is Decision.ACCEPTED
    (question,) = fake_judge.questions
    (judged,) = question.data
    every = read_labelled_set(tiny_data).queries
    kept = read_labelled_set(judged).queries
    assert 0 < len(kept) < len(every)
    assert {(query.text, query.spans) for query in kept} < {(query.text, query.spans) for query in every}
    artifact = open_artifact(place / "models" / "onnx")
    assert artifact.variants == (Variant.FP32, Variant.INT8)
    assert artifact.manifest["variants"]["int8"]["recipe"]["calibration_queries"] == len(every) - len(kept)
    assert judgement.document["subject"]["data"] == {str(judged): file_digest(judged)}


def test_own_data_judge_whole_without_quantizing(run_release, fake_judge, tiny_data):
    """An FP32 release is judged on every query."""
    run_release()
    assert fake_judge.questions[0].data == (tiny_data,)


def test_calibration_sees_no_query_that_judges(run_release, fake_judge, monkeypatch):
    """The texts that set the ranges and the texts that judge have none in common."""
    from harness import quantize

    seen = []
    real = quantize.quantize_model

    def noted(folder, data, order, **options):
        seen.extend([*data.calibration, *data.validation.texts])
        return real(folder, data, order, **options)

    monkeypatch.setattr(quantize, "quantize_model", noted)
    run_release(quantize=True)
    judged = set(read_labelled_set(fake_judge.questions[0].data).texts)
    assert seen
    assert not judged & set(seen)


def test_too_few_queries_to_split(run_release, place, tiny_data):
    """Too little data for both is an error that says what would work, and leaves no run."""
    lines = tiny_data.read_text(encoding="utf-8").splitlines()[:5]
    few = write(place / "few.jsonl", "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="without --quantize"):
        run_release(quantize=True, data=[few])
    assert not (place / "results").exists() or runs_in(place) == []
    assert run_release(data=[few]).verdict.decision is Decision.ACCEPTED


def test_data_in_several_files(run_release, fake_judge, tiny_data, place):
    """--data may be repeated: the queries of all files judge."""
    other = shutil.copy(tiny_data, place / "other.jsonl")
    run_release(data=[tiny_data, Path(other)])
    assert fake_judge.questions[0].data == (tiny_data, Path(other))


def test_notes_about_the_data_are_told(run_release, place):
    """What was read in the reader's own way, such as an orphan I-, is said."""
    conll = write(place / "queries.conll", "goa I-SRC\n")
    told = []

    class Told:
        def line(self, text):
            told.append(text)

        def now(self, text):
            pass

    run_release(data=[conll], progress=Told())
    assert any(text.startswith("note:") and "I-" in text for text in told)


def test_judging_alone_accepts_nothing(tiny_checkpoint, tiny_export, tiny_data, place, fake_judge):
    """`judge_candidate` gives a verdict and writes nothing but results."""
    before = files_of(tiny_export)
    judgement = pipeline.judge_candidate(tiny_checkpoint, tiny_export, data=[tiny_data], results=place / "results")
    assert judgement.verdict.decision is Decision.ACCEPTED
    assert names_in(place) == ["results"]
    assert files_of(tiny_export) == before


def test_judging_by_some_suites(tiny_checkpoint, tiny_export, tiny_data, place, fake_judge):
    """Only the suites asked for judge, and only their measures are promised."""
    judgement = pipeline.judge_candidate(
        tiny_checkpoint, tiny_export, data=[tiny_data], suites=["parity"], results=place / "results"
    )
    assert {finding.measure.key.suite for finding in judgement.verdict.findings} == {"parity"}


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ArtifactError, lambda at, model: {"candidate": at / "nowhere"}),
        (ArtifactError, lambda at, model: {"candidate": model}),
        (CheckpointError, lambda at, model: {"reference": at / "nowhere"}),
        (SuiteError, lambda at, model: {"suites": ["beauty"]}),
        (DataError, lambda at, model: {"data": [at / "nowhere.jsonl"]}),
        (PolicyError, lambda at, model: {"policy": at / "nowhere.toml"}),
        (UsageError, lambda at, model: {"data": []}),
    ],
)
def test_bad_input_of_judging_alone(tiny_checkpoint, tiny_export, tiny_data, place, fake_judge, error, options):
    """Mistakes are found before a run is begun."""
    chosen = {"reference": tiny_checkpoint, "candidate": tiny_export, "data": [tiny_data], "results": place / "results"}
    chosen.update(options(place, tiny_checkpoint))
    with pytest.raises(error) as caught:
        pipeline.judge_candidate(**chosen)
    assert "\n" not in str(caught.value)
    assert names_in(place) == []
    assert fake_judge.questions == []


def test_a_missing_default_model_is_trained_first(
    place, monkeypatch, tiny_checkpoint, tiny_data, fake_judge, fast_export
):
    """Where the default checkpoint is not there, it is trained, which is said; a policy error is found before that."""
    trained, told = [], []

    def train(model, *args):
        trained.append(model)
        shutil.copytree(tiny_checkpoint, model)

    class Told:
        def line(self, text):
            told.append(text)

        def now(self, text):
            pass

    monkeypatch.setattr(pipeline, "_train_default", train)
    monkeypatch.chdir(place)
    with pytest.raises(PolicyError):
        pipeline.release(data=[tiny_data], policy=place / "nowhere.toml")
    with pytest.raises(DataError):
        pipeline.release(data=[place / "nowhere.jsonl"])
    assert trained == []
    assert pipeline.release(data=[tiny_data], progress=Told()).verdict.decision is Decision.ACCEPTED
    assert trained == [pipeline.DEFAULT_MODEL]
    assert (place / "models" / "bus_ner_onnx" / "model.onnx").is_file()


def test_another_missing_model_is_not_trained(run_release, place, monkeypatch):
    """Only the default checkpoint is made; any other path that is not there is a mistake."""
    monkeypatch.setattr(pipeline, "_train_default", None)
    with pytest.raises(CheckpointError, match="does not exist"):
        run_release(model=place / "models" / "mine")


# What a model of 100 kB cannot keep: the graph weighs as much as the weights, and times of microseconds say nothing.
LOOSE = """
[limits.artifact.fp32]
size_ratio_to_reference = "reported"

[limits.latency.fp32]
single_query_ratio_to_reference = "reported"
batch_ratio_to_reference = "reported"
cold_start_ratio = "reported"
peak_memory_ratio = "reported"
"""


@pytest.mark.end_to_end
def test_a_real_release(tiny_checkpoint, tiny_data, place):
    """END TO END, nothing faked: export, every suite in a judging process of its own, verdict, acceptance."""
    policy = write(place / "policy.toml", LOOSE)
    try:
        judgement = pipeline.release(
            tiny_checkpoint, place / "models" / "onnx", data=[tiny_data], policy=policy, results=place / "results"
        )
    except HarnessError as err:
        pytest.fail(str(err))
    log = judgement.run.folder / "judge.log"
    assert judgement.verdict.broken == ()
    assert judgement.verdict.problems == (), log.read_text(encoding="utf-8")[-3000:]
    assert judgement.verdict.decision is Decision.ACCEPTED
    by_name = {str(finding.measure.key): finding.measure.value for finding in judgement.verdict.findings}
    assert by_name["quality.fp32.f1_micro"] == 1.0
    artifact = open_artifact(place / "models" / "onnx")
    assert artifact.manifest["decision"] == "ACCEPTED"
    assert changed_files(artifact) == []


class Lines:
    """Keeps what progress says."""

    def __init__(self):
        self.said = []

    def line(self, text):
        self.said.append(text)

    def now(self, text):
        pass


def test_a_cache_that_cannot_be_written(tiny_checkpoint, tmp_path):
    """A trained model that cannot be cached is used all the same, and a note says why it was not kept."""
    file = write(tmp_path / "file", "")
    lines = Lines()
    pipeline._keep_for_other_clones(tiny_checkpoint, file / "cache" / "digest", lines)
    assert lines.said[0].startswith("note: the trained model is not kept in ")
    assert names_in(tmp_path) == ["file"]


def test_a_cache_that_can_be_written(tiny_checkpoint, tmp_path):
    """The cached copy is the model, whole, and nothing lies beside it."""
    cached = tmp_path / "cache" / "digest"
    pipeline._keep_for_other_clones(tiny_checkpoint, cached, Lines())
    assert files_of(cached) == files_of(tiny_checkpoint)
    assert [path.name for path in cached.parent.iterdir()] == ["digest"]
