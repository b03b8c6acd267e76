"""A release answered and judged through OpenVINO: by a stand-in everywhere, by the real one where it is installed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fake_openvino import FakeOpenVino
from third_party import ThirdParty

from harness import cli, plugin
from harness.artifact import Variant, open_artifact
from harness.candidate import Candidate
from harness.errors import ArtifactError, MissingPackageError, UsageError
from harness.evidence import read_evidence
from harness.inference import BusNERInference, NERInference
from harness.installed import InstalledSize
from harness.judge import EVIDENCE_FILE, judge
from harness.openvino_session import OpenVinoSession
from harness.serving import Runtime
from harness.tagging import pad, tag
from suites.artifact import test_files, test_models
from suites.latency import first_answer, test_calls, test_first_answer, test_sizes
from suites.parity import test_labelled_queries, test_optimization
from suites.queries.fresh_replay import FreshReplay, Group, ReplayError

OPENVINO = Runtime.OPENVINO
_PATIENCE_S = 50
_BARRIER_S = 10


@pytest.fixture
def openvino(monkeypatch):
    """The stand-in, in the place of the package."""
    fake = FakeOpenVino()
    monkeypatch.setitem(sys.modules, "openvino", fake)
    return fake


@pytest.fixture
def missing(monkeypatch):
    """An environment without the package."""
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.fixture
def served(openvino, tiny_export):
    """The export as OpenVINO serves it."""
    return Candidate(open_artifact(tiny_export), Variant.FP32, runtime=OPENVINO)


@pytest.fixture
def by_onnxruntime(tiny_export):
    """The export as it is served by default."""
    return Candidate(open_artifact(tiny_export), Variant.FP32)


class Records(dict):
    """Stands in for `record_measure`: each measure's value and details."""

    def __call__(self, name, value, *, unit, details=None, interval=None):
        json.dumps(details)
        self[name] = (value, details)


# -- answers ---------------------------------------------------------------------------------------------------------


def test_the_same_answers(openvino, tiny_export, tiny_queries):
    """The same release answers through OpenVINO, one by one and many together; tokens and decoding are the same code."""
    expected = NERInference(tiny_export)
    ner = BusNERInference(tiny_export, runtime="openvino")
    assert [ner.extract(query) for query in tiny_queries] == expected.batch_extract(tiny_queries)
    assert ner.batch_extract_detailed(tiny_queries) == expected.batch_extract_detailed(tiny_queries)
    assert isinstance(ner._model.session, OpenVinoSession)
    assert openvino.feeds


@pytest.mark.parametrize(("threads", "named"), [(None, 1), (3, 3), (0, None)])
def test_how_it_is_compiled(openvino, tiny_export, threads, named):
    """One stream, as many threads as the settings say, in FP32 whatever the CPU offers, tied to no core."""
    NERInference(tiny_export, threads=threads, runtime="openvino")
    ((device, options),) = openvino.compiled
    assert device == "CPU"
    assert options == {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "ENABLE_CPU_PINNING": False,
        **({} if named is None else {"INFERENCE_NUM_THREADS": named}),
    }


def test_the_threads_that_it_says(served):
    """The session says how many threads OpenVINO gave it; the manifest's other settings are onnxruntime's."""
    assert served.session.threads == 1
    with pytest.raises(TypeError, match="onnxruntime's, and openvino runs this model"):
        _ = served.opened_with


def test_inputs_come_in_the_type_of_the_graph(openvino, tiny_export, monkeypatch):
    """A graph that takes int32 is fed int32: OpenVINO converts in silence or fails, by version."""
    import fake_openvino

    monkeypatch.setitem(fake_openvino.TYPES, "tensor(int64)", "i32")
    monkeypatch.setattr(fake_openvino._Request, "infer", lambda self, feed, **_: openvino.feeds.append(feed))
    monkeypatch.setattr(
        fake_openvino._Request, "get_tensor", lambda *_: SimpleNamespace(data=np.zeros((1, 4, 7), np.float32))
    )
    served = Candidate(open_artifact(tiny_export), Variant.FP32, runtime=OPENVINO)
    served.logits(pad(served.encode(["bus goa"])[0].windows, 0))
    (feed,) = openvino.feeds
    assert {values.dtype for values in feed.values()} == {np.dtype(np.int32)}


def test_names_and_sizes(openvino, served):
    """Inputs go by the names of the file, not those that OpenVINO adds; the logits by theirs; free sizes are None."""
    session = served.session
    assert {entry.name for entry in session.get_inputs()} == {"input_ids", "attention_mask", "token_type_ids"}
    assert {(entry.type, *entry.shape) for entry in session.get_inputs()} == {("tensor(int64)", None, None)}
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("logits", "tensor(float)", [None, None, 7])
    openvino.output_names = ["scores", "before"]
    assert OpenVinoSession(served.artifact.model_path(Variant.FP32), 1).get_outputs()[0].name == "scores"


def test_a_type_that_no_classifier_has(openvino, tiny_export, monkeypatch):
    """Inputs of another type are refused with the type's name, as they are with onnxruntime."""
    import fake_openvino

    monkeypatch.setitem(fake_openvino.TYPES, "tensor(int64)", "string")
    with pytest.raises(ArtifactError, match=r"wants .* as string, where token classifiers take int64 or int32"):
        Candidate(open_artifact(tiny_export), Variant.FP32, runtime=OPENVINO)


def test_an_answer_outlives_the_next_run(served):
    """What was answered stays what it was when the same request's memory is written again."""
    rows = [pad(query.windows, 0) for query in served.encode(["bus from goa", "ac to mumbai"])]
    first = served.logits(rows[0])
    before = first.copy()
    served.logits(rows[1])
    assert np.array_equal(first, before)


def test_two_runs_at_a_time_have_a_request_each(openvino, served):
    """A second thread's run gets memory of its own; requests are used again, so there are no more than runs at a time."""
    (query,) = served.encode(["bus from goa to mumbai"])
    together = threading.Barrier(2, timeout=_BARRIER_S)
    openvino.meanwhile = together.wait
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: served.logits(pad(query.windows, 0)), range(8)))
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert openvino.requests == 2


def test_one_run_at_a_time(openvino, tiny_export, monkeypatch):
    """OpenVINO has runs of one session wait for each other, so `batch_extract` starts no second one."""
    monkeypatch.setattr("harness.machine.usable_cpus", lambda: 4)
    assert NERInference(tiny_export, runtime="openvino")._crew._workers == 1
    assert NERInference(tiny_export)._crew._workers == 4


def test_a_forked_child_is_refused(openvino, served, monkeypatch):
    """OpenVINO hangs in forked children, so neither what the parent opened is used there nor anything new opened."""
    kept = served._session
    child = os.getpid() + 1
    monkeypatch.setattr("os.getpid", lambda: child)
    served.after_fork()
    (query,) = served.encode(["bus goa"])
    for attempt in (lambda: served.logits(pad(query.windows, 0)), served.reopened):
        with pytest.raises(
            ArtifactError, match=r"forked from one that uses it: it may hang\. Start processes by spawn"
        ):
            attempt()
    assert kept is not None


def test_what_is_opened_again_is_opened_alike(openvino, served):
    """Reopened, sent to another process, or opened anew in this one: it is OpenVINO that answers afterwards."""
    served._session = None
    for candidate in (served, served.reopened(), pickle.loads(pickle.dumps(served))):
        assert isinstance(candidate.session, OpenVinoSession)
        assert candidate.runtime is OPENVINO


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("summary", "named"),
    [
        ("-- No conversion rule found for operations: com.microsoft.QAttention\n-- Conversion is failed for: QuantizeLinear-18",
         "com.microsoft.QAttention"),
        ("OpenVINO does not support the following ONNX operations: com.microsoft.A\nErrors during ONNX translation:", "com.microsoft.A"),
        ("-- No conversion rule found for operations: com.microsoft.A, my.B", "com.microsoft.A, my.B"),
        ("-- Conversion is failed for: QuantizeLinear-18, com.microsoft.X", "QuantizeLinear-18, com.microsoft.X"),
    ],
)  # fmt: skip
def test_operators_that_it_does_not_know(openvino, tiny_export, summary, named):
    """A graph in onnxruntime's own operators is refused in one line: which, and which recipe OpenVINO can run."""
    openvino.summary = summary
    with pytest.raises(ArtifactError) as caught:
        NERInference(tiny_export, runtime="openvino")
    text = str(caught.value)
    assert (
        f"model.onnx cannot be loaded by OpenVINO 2026.4.1: it cannot run the operator {named}. Release it with" in text
    )
    assert "--quantize qdq" in text
    assert "\n" not in text


def test_a_file_that_it_cannot_read(openvino, tiny_export):
    """Anything else that goes wrong at load is told in one line, without advice that is about operators."""
    openvino.failure = "Unable to read the model:\n\n   nonsense"
    with pytest.raises(
        ArtifactError, match=r"by OpenVINO 2026\.4\.1: Unable to read the model: nonsense\. Export again"
    ):
        NERInference(tiny_export, runtime="openvino")


def test_a_run_that_fails(openvino, served):
    """OpenVINO's error while it runs becomes one line with the shape of the batch."""

    def fail():
        message = "ParameterMismatch:\nCan not clone"
        raise RuntimeError(message)

    openvino.meanwhile = fail
    with pytest.raises(ArtifactError, match="fails on a batch of 1 by 4 tokens: ParameterMismatch: Can not clone"):
        served.logits(pad(served.encode(["bus goa"])[0].windows, 0))


@pytest.mark.usefixtures("missing")
def test_without_the_package(tiny_export):
    """Asked for and not installed: one line that names the extra. Not asked for: nothing is missing."""
    with pytest.raises(MissingPackageError, match=r"needs the package openvino .*'ner-release-harness\[openvino\]'"):
        NERInference(tiny_export, runtime="openvino")
    assert NERInference(tiny_export).extract("bus to goa")


def test_no_such_runtime(tiny_export):
    """A name that is none is refused, and those that are are named."""
    with pytest.raises(UsageError, match=r"there is no runtime 'tpu'\. Ask for onnxruntime or openvino"):
        NERInference(tiny_export, runtime="tpu")


def test_nothing_of_it_is_loaded_unasked(tiny_export, tmp_path):
    """A process that answers the usual way has loaded neither the package nor the module that uses it."""
    program = (
        "import sys\nfrom harness.inference import NERInference\n"
        "NERInference(sys.argv[1]).batch_extract(['bus to goa', 'ac'])\n"
        "print([name for name in sys.modules if 'openvino' in name])\n"
    )
    command = [sys.executable, "-c", program, tiny_export]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=_PATIENCE_S)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# -- judging ---------------------------------------------------------------------------------------------------------

_JUDGED_WITH = """\
def test_runtime(runtime, record_measure):
    record_measure("worst", 0.5, unit=Unit.LOGIT, details={"runtime": runtime.value})
"""


@pytest.mark.parametrize("runtime", Runtime)
def test_a_session_is_told_the_runtime(tmp_path, runtime):
    """The suites get the runtime that the question names, and evidence of another than the usual one says which."""
    party = ThirdParty.make(tmp_path / "acme")
    party.install("acme_suite", _JUDGED_WITH)
    (party.site / "openvino.py").touch()
    question = replace(party.question(), runtime=runtime)
    judge(question, tmp_path / "run", environment=party.environment(), time_limit_s=_PATIENCE_S)
    evidence = read_evidence(tmp_path / "run" / EVIDENCE_FILE)
    assert evidence.problems == ()
    assert [measure.details for measure in evidence.measures] == [{"runtime": runtime.value}]
    said = {name: evidence.environment.get(name) for name in ("runtime", "openvino")}
    usual = {"runtime": None, "openvino": None}
    assert said == (usual if runtime is Runtime.ONNXRUNTIME else {"runtime": "openvino", "openvino": said["openvino"]})
    assert (said["openvino"] is None) == (runtime is Runtime.ONNXRUNTIME)


def test_suites_judge_what_openvino_answers(openvino, tiny_export):
    """The model that suites are handed is opened with the session's runtime."""
    artifact = open_artifact(tiny_export)
    opened = plugin.model.__wrapped__ if hasattr(plugin.model, "__wrapped__") else plugin.model._get_wrapped_function()
    assert isinstance(opened(artifact, "fp32", OPENVINO).session, OpenVinoSession)
    assert openvino.compiled


def test_what_does_not_load_is_a_load_failure(openvino, tiny_export):
    """The artifact suite opens the files with the runtime; an operator that it lacks is counted and named."""
    openvino.summary = "-- No conversion rule found for operations: com.microsoft.QAttention"
    records = Records()
    test_models.test_loads_and_runs(open_artifact(tiny_export), "fp32", OPENVINO, records)
    value, details = records["load_failures"]
    assert value == 1
    assert "com.microsoft.QAttention" in details["failures"][0]


def test_what_is_about_onnxruntime_says_so(served, reference, labelled, tiny_export):
    """Settings are asked of onnxruntime, and inner values are its own; the details say so, whatever ran the models."""
    records = Records()
    test_files.test_serving(open_artifact(tiny_export), records)
    assert records["serving_differences"] == (0, {"places": [], "opened_by": "onnxruntime"})
    expected, answers = (tag(model, labelled.texts) for model in (reference, served))
    test_labelled_queries.test_logits(reference, served, expected, answers, records)
    assert records["max_logit_difference"][1]["first_divergence"]["graph_run_by"] == "onnxruntime"


def test_optimizations_are_those_of_what_serves(openvino, served, reference, labelled, monkeypatch):
    """OpenVINO's answers are held against the file as it is written; answers that leave it are a difference."""
    records = Records()
    test_optimization.test_optimization(reference, served, labelled, records)
    value, details = records["optimization_logit_difference"]
    assert value < 1e-3
    assert details["served_by"] == "openvino"
    run = OpenVinoSession.run
    monkeypatch.setattr(OpenVinoSession, "run", lambda *given: [answer + 1 for answer in run(*given)])
    test_optimization.test_optimization(reference, served, labelled, records)
    assert records["optimization_logit_difference"][0] == pytest.approx(1, abs=1e-3)


def test_the_other_models_are_run_alike(openvino, served, by_onnxruntime, tiny_quantized, monkeypatch):
    """FP32 beside INT8, the last release and more threads: both sides of a ratio are run by the same runtime."""
    opened = []
    bench = SimpleNamespace(hold=lambda subject, baseline, *rest: opened.append((subject, baseline)))
    monkeypatch.setattr(test_calls, "fresh", lambda model: model.runtime)
    monkeypatch.setattr(test_calls, "usable_cpus", lambda: 2)
    artifact = open_artifact(tiny_quantized)
    for model in (served, by_onnxruntime):
        test_calls.test_single_queries_against_fp32(bench, model, artifact, "int8", None)
        test_calls.test_single_queries_against_the_last_release(bench, model, artifact, "fp32", None)
        test_calls.test_all_threads(bench, model, None)
    assert opened == [(OPENVINO, OPENVINO)] * 3 + [(Runtime.ONNXRUNTIME, Runtime.ONNXRUNTIME)] * 3


@pytest.mark.parametrize(("runtime", "way"), [(Runtime.ONNXRUNTIME, "lean"), (OPENVINO, "openvino")])
def test_a_fresh_process_answers_with_the_runtime(openvino, tiny_export, runtime, way):
    """The way whose start is measured is the runtime's own."""
    assert test_first_answer._WAYS[runtime] == way
    assert isinstance(first_answer.WAYS[way](str(tiny_export), "fp32", "bus from goa to mumbai"), list)
    assert bool(openvino.compiled) == (runtime is OPENVINO)


def test_the_extra_is_weighed(monkeypatch):
    """What is served through OpenVINO weighs what OpenVINO weighs."""
    asked = []
    empty = InstalledSize((SimpleNamespace(name="x", size_bytes=1, mib=1.0),), ())
    monkeypatch.setattr(test_sizes, "runtime_install", lambda *extras: asked.append(extras) or empty)
    monkeypatch.setattr(test_sizes, "pytorch_install", lambda: empty)
    for runtime in Runtime:
        test_sizes.test_sizes_of_installs(runtime, Records())
    assert asked == [(), ("openvino",)]


_TELLING = """
import json, sys
from pathlib import Path
place = Path(sys.argv[1])
sys.exit(json.loads((place / "request.json").read_text())["runtime"])
"""


def test_replays_are_run_alike(tiny_export):
    """The process that replays is asked to answer with the same runtime."""
    program = (sys.executable, "-c", _TELLING)
    groups = [Group(("bus",), 1)]
    for runtime in Runtime:
        process = FreshReplay(tiny_export, "fp32", groups, program=program, runtime=runtime)
        with process, pytest.raises(ReplayError, match=f"it had answered: {runtime.value}$"):
            process.answers(_PATIENCE_S)


# -- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def judged_through(fake_judge, tiny_checkpoint, tiny_export, tiny_data, tmp_path, capsys):
    """Run `harness judge` with these options; returns its exit code, what it printed, and the verdict document."""

    def run(*options):
        where = ("--reference", tiny_checkpoint, "--candidate", tiny_export, "--data", tiny_data)
        code = cli.main([str(word) for word in ("judge", *where, "--results", tmp_path / "results", *options)])
        (path,) = [*(tmp_path / "results").glob("*/verdict.json"), None][:1]
        return code, capsys.readouterr(), json.loads(path.read_text(encoding="utf-8")) if path else None

    return run


@pytest.mark.parametrize(
    ("options", "runtime", "line"),
    [
        ((), "onnxruntime", "checkpoint"),
        (("--runtime", "openvino"), "openvino", "checkpoint-openvino"),
        (("--runtime", "openvino", "--line", "mine"), "openvino", "mine"),
    ],
)
@pytest.mark.usefixtures("openvino")
def test_the_verdict_names_the_runtime(judged_through, fake_judge, options, runtime, line):
    """The session is asked for it, the verdict and the screen say it, and the line's history is kept apart by it."""
    code, said, verdict = judged_through(*options)
    assert code == 0
    assert fake_judge.questions[0].runtime.value == verdict["subject"]["runtime"] == runtime
    assert verdict["subject"]["line"] == fake_judge.questions[0].state.name == line
    assert ("through openvino" in said.out) == (runtime == "openvino")


@pytest.mark.usefixtures("missing")
def test_judging_without_the_package(judged_through, fake_judge):
    """`judge --runtime openvino` without it ends at once with 2 and the extra's name; nothing is written."""
    code, said, verdict = judged_through("--runtime", "openvino")
    assert (code, verdict, fake_judge.questions) == (2, None, [])
    assert "'ner-release-harness[openvino]'" in said.err


def test_extract_through_openvino(openvino, tiny_export, capsys):
    """`extract --runtime openvino` answers through it, and without the option does not."""
    answers = []
    for options, compiled in (((), 0), (("--runtime", "openvino"), 1)):
        assert cli.main(["extract", str(tiny_export), "bus from goa to mumbai", *options]) == 0
        answers.append(capsys.readouterr().out)
        assert len(openvino.compiled) == compiled
    assert answers[0] == answers[1] != ""


# -- the real one ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """OpenVINO itself; without it, what follows says nothing."""
    return pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tiny_queries, tmp_path_factory):
    """An export whose INT8 variant is in ONNX's own operators, and one in onnxruntime's."""
    from harness.export_onnx import export_to_onnx

    folder = tmp_path_factory.mktemp("openvino")
    exports = {
        recipe: export_to_onnx(tiny_checkpoint, folder / recipe, quantize=recipe, calibration=tiny_queries[:24])
        for recipe in ("qdq", "static")
    }
    return SimpleNamespace(**exports)


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(("variant", "largest"), [(Variant.FP32, 1e-3), (Variant.INT8, 0.5)])
def test_real_answers_agree(made, tiny_queries, variant, largest):
    """FP32 answers as onnxruntime does but for rounding; INT8 within steps of its scales; alone and in batches."""
    artifact = open_artifact(made.qdq)
    theirs, ours = (Candidate(artifact, variant, runtime=runtime) for runtime in (OPENVINO, Runtime.ONNXRUNTIME))
    for size in (1, 8):
        pairs = list(zip(tag(theirs, tiny_queries, size), tag(ours, tiny_queries, size), strict=True))
        assert max(np.abs(left.logits - right.logits).max() for left, right in pairs) <= largest
        same = np.concatenate([left.label_ids == right.label_ids for left, right in pairs])
        assert same.mean() >= (1 if variant is Variant.FP32 else 0.98)


@pytest.mark.usefixtures("real")
def test_real_refusal(made):
    """OpenVINO has no QAttention, and says which recipe it can run instead."""
    with pytest.raises(ArtifactError, match=r"cannot run the operator .*QAttention.* --quantize qdq"):
        NERInference(made.static, variant="int8", runtime="openvino")
    (made.static / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match="cannot be loaded by OpenVINO"):
        NERInference(made.static, variant="fp32", runtime="openvino")


@pytest.mark.usefixtures("real")
def test_real_settings(made):
    """OpenVINO confirms what it was asked for: threads, one stream, FP32 arithmetic."""
    session = NERInference(made.qdq, runtime="openvino", threads=1)._model.session
    said = {name: session._compiled.get_property(name) for name in ("NUM_STREAMS", "INFERENCE_PRECISION_HINT")}
    assert session.threads == 1
    assert said["NUM_STREAMS"] == 1
    assert said["INFERENCE_PRECISION_HINT"].get_type_name() == "f32"


@pytest.mark.usefixtures("real")
def test_real_threads_share_one_session(made, tiny_queries):
    """Eight threads that ask one instance get the answers of one thread."""
    ner = NERInference(made.qdq, runtime="openvino")
    expected = [ner.extract(query) for query in tiny_queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ner.extract, tiny_queries * 3)) == expected * 3


_FORKING = """
import os, sys
from harness.errors import ArtifactError
from harness.inference import NERInference

ner = NERInference(sys.argv[1], runtime="openvino")
expected = ner.extract("bus from goa to mumbai")
child = os.fork()
if child == 0:
    try:
        ner.extract("bus from goa to mumbai")
    except ArtifactError as err:
        print(err, flush=True)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert ner.extract("bus from goa to mumbai") == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.usefixtures("real")
def test_real_fork(made, tmp_path):
    """A forked child is refused instead of left hanging, and its parent answers on."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKING, made.qdq]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=_PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "Start processes by spawn" in done.stdout
