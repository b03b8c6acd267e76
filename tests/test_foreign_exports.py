"""Exports of other tools: judged as they will be served, or refused in one line that says what to do."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from harness.artifact import CONFIG, MANIFEST, TOKENIZER, Variant, open_artifact
from harness.candidate import Candidate
from harness.cli import ExitCode, main
from harness.errors import ArtifactError
from harness.inference import NERInference
from harness.pipeline import judge_candidate
from harness.tagging import pad, tag

MODEL = Variant.FP32.file_name
NAMES = ["input_ids", "attention_mask", "token_type_ids"]
TEXTS = ["bus from goa to mumbai", "ac sleeper", "tomorrow"]
# No model so small is as small as its weights.
SIZE = "artifact.fp32.size_ratio_to_reference"


@pytest.fixture
def foreign(tiny_export, tmp_path):
    """A folder as optimum writes it: no manifest, no label maps as files."""
    folder = shutil.copytree(tiny_export, tmp_path / "foreign")
    for name in (MANIFEST, "id2label.json", "label2id.json"):
        (folder / name).unlink()
    return folder


@pytest.fixture(scope="module")
def exported(reference, tmp_path_factory):
    """Make exports with torch.onnx.export, each once."""
    made = {}

    def export(**options):
        key = json.dumps(options, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("torch") / MODEL
            _export(reference, made[key], options)
        return made[key]

    return export


def _export(reference, path, options):
    import torch

    class Logits(torch.nn.Module):
        """Positional inputs, and a tuple instead of transformers' own class of answers."""

        def __init__(self):
            super().__init__()
            self.model = reference.model

        def forward(self, input_ids, attention_mask, token_type_ids):
            return (
                self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits,
            )

    batch = dict(reference.tokenizer(TEXTS, return_tensors="pt", padding="longest"))
    reference.tokenizer.backend_tokenizer.no_padding()
    axes = {
        name: {0: "rows", 1: "tokens"} for name in (*options.get("input_names", ()), *options.get("output_names", ()))
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits().eval(),
            tuple(batch[name] for name in NAMES),
            str(path),
            dynamo=False,
            dynamic_axes=axes if options.pop("dynamic", True) else None,
            **options,
        )


def rename(**names):
    """Rename inputs and outputs."""

    def change(model):
        for value in [*model.graph.input, *model.graph.output]:
            value.name = names.get(value.name, value.name)
        for node in model.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]

    return change


def retype(kind, *names):
    """Let the graph take inputs in another type."""

    def change(model):
        for value in model.graph.input:
            if value.name in names:
                value.type.tensor_type.elem_type = kind
                rename(**{value.name: f"{value.name}_64"})(model)
                value.name = value.name.removesuffix("_64")
                model.graph.node.insert(
                    0, helper.make_node("Cast", [value.name], [f"{value.name}_64"], to=TensorProto.INT64)
                )

    return change


def answer_in(kind):
    """Let the graph answer in another type."""

    def change(model):
        rename(logits="logits_32")(model)
        model.graph.node.append(helper.make_node("Cast", ["logits_32"], ["logits"], to=kind))
        model.graph.output[0].name = "logits"
        model.graph.output[0].type.tensor_type.elem_type = kind

    return change


def add_output(model):
    """Show a hidden state before the logits."""
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["rows", "tokens", 32])
    last = next(node for node in reversed(model.graph.node) if node.op_type == "LayerNormalization")
    model.graph.node.append(helper.make_node("Identity", [last.output[0]], ["hidden"]))
    model.graph.output.insert(0, hidden)


def two_unnamed(model):
    add_output(model)
    rename(logits="1234")(model)


def drop_segments(model):
    """Take no token_type_ids; they are all 0."""
    kept = [value for value in model.graph.input if value.name != "token_type_ids"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    zeros = [
        helper.make_node("Shape", ["input_ids"], ["ids_shape"]),
        helper.make_node(
            "ConstantOfShape",
            ["ids_shape"],
            ["token_type_ids"],
            value=helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
        ),
    ]
    for node in reversed(zeros):
        model.graph.node.insert(0, node)


def want_positions(model):
    model.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["rows", "tokens"]))


def forget_the_shape(model):
    model.graph.output[0].type.tensor_type.ClearField("shape")


def edit(folder, change):
    model = onnx.load(str(folder / MODEL))
    change(model)
    onnx.save(model, str(folder / MODEL))


JUDGED = {
    "as it is": lambda model: None,
    "int32 inputs": retype(TensorProto.INT32, *NAMES),
    "one int32 input": retype(TensorProto.INT32, "attention_mask"),
    "logits in 64 bits": answer_in(TensorProto.DOUBLE),
    "logits in 16 bits": answer_in(TensorProto.FLOAT16),
    "the only output under another name": rename(logits="1234"),
    "the only output, of unknown shape": lambda model: (rename(logits="output_0")(model), forget_the_shape(model)),
    "another output beside the logits": add_output,
    "no token_type_ids": drop_segments,
}


@pytest.mark.parametrize("name", JUDGED)
def test_judged(name, foreign, reference):
    """A candidate that needs no guess opens, answers as the reference does in float32, and serves."""
    edit(foreign, JUDGED[name])
    candidate = Candidate(open_artifact(foreign), Variant.FP32)
    (query,) = candidate.encode(TEXTS[:1])
    assert candidate.logits(pad(query.windows, candidate.pad_token_id)).dtype == np.float32
    for found, expected in zip(tag(candidate, TEXTS), tag(reference, TEXTS), strict=True):
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-2 if "16 bits" in name else 1e-4)
    assert NERInference(foreign).extract(TEXTS[0]).keys()


REFUSED = {
    "BERT's own names": (
        rename(attention_mask="input_mask", token_type_ids="segment_ids"),
        r"wants the input 'input_mask'.*\(its inputs: input_ids, input_mask, segment_ids\)\. Rename or remove it",
    ),
    "a number behind the name": (
        rename(input_ids="input_ids.1"),
        r"wants the input 'input_ids\.1'.*Rename or remove it",
    ),
    "one more input": (want_positions, r"wants the input 'position_ids'.*Rename or remove it"),
    "a mask of floats": (
        retype(TensorProto.FLOAT, "attention_mask"),
        r"wants attention_mask as tensor\(float\).*int32",
    ),
    "two outputs, none named logits": (two_unnamed, r"no output named logits \(it has: hidden, 1234\).*rename"),
    "logits that are whole numbers": (answer_in(TensorProto.INT64), r"logits is tensor\(int64\) of shape .*Export"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name, foreign):
    """A candidate that would have to be guessed at is refused in one line that names what was found and what to do."""
    change, message = REFUSED[name]
    edit(foreign, change)
    with pytest.raises(ArtifactError, match=message) as caught:
        Candidate(open_artifact(foreign), Variant.FP32)
    assert "\n" not in str(caught.value)


def test_torch_without_output_names(exported, foreign, reference):
    """torch.onnx.export calls its only output by a number; it is taken for the logits."""
    shutil.copy(exported(input_names=NAMES), foreign / MODEL)
    candidate = Candidate(open_artifact(foreign), Variant.FP32)
    (found,), (expected,) = tag(candidate, TEXTS[:1]), tag(reference, TEXTS[:1])
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)


def test_torch_without_input_names(exported, foreign):
    """torch.onnx.export without names tells inputs apart by nothing, so they are not guessed."""
    shutil.copy(exported(), foreign / MODEL)
    with pytest.raises(ArtifactError, match=r"wants the input 'input\.1'.*attention_mask, input\.3\)"):
        Candidate(open_artifact(foreign), Variant.FP32)


def test_the_guides_way_to_rename(exported, foreign, reference, monkeypatch):
    """What docs/judging-other-exports.md says makes such an export a candidate."""
    guide = Path(__file__).parents[1] / "docs" / "judging-other-exports.md"
    code = re.search(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)[1]
    shutil.copy(exported(), foreign / MODEL)
    output = onnx.load(str(foreign / MODEL)).graph.output[0].name
    monkeypatch.chdir(foreign)
    exec(compile(code.replace("572", output), str(guide), "exec"), {})
    model = onnx.load(MODEL)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == [*NAMES, "logits"]
    assert Candidate(open_artifact(foreign), Variant.FP32).inputs == set(NAMES)


def test_models_in_the_onnx_folder(foreign, reference):
    """The layout of transformers.js is judged and served where it lies, also with external data."""
    (foreign / "onnx").mkdir()
    model = onnx.load(str(foreign / MODEL))
    (foreign / MODEL).unlink()
    onnx.save(
        model, str(foreign / "onnx" / MODEL), save_as_external_data=True, location="model.onnx_data", size_threshold=64
    )
    artifact = open_artifact(foreign)
    assert artifact.model_path(Variant.FP32) == foreign / "onnx" / MODEL
    assert tag(Candidate(artifact, Variant.FP32), TEXTS[:1])[0].words


def only(name):
    """Leave nothing but the model, under a name."""

    def change(folder):
        for path in folder.iterdir():
            if path.name != MODEL:
                path.unlink()
        (folder / MODEL).rename(folder / name)

    return change


def folder_instead(folder):
    (folder / MODEL).unlink()
    (folder / MODEL).mkdir()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def set_config(**changes):
    def change(folder):
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps({**content, **changes}), encoding="utf-8")

    return change


NOT_OPENED = {
    "a bare model": (only(MODEL), r"has no config\.json and no tokenizer\.json\. Copy"),
    "an optimised model": (
        lambda folder: (folder / MODEL).rename(folder / "model_optimized.onnx"),
        r"\.onnx files in it: model_optimized\.onnx\)\. Rename its FP32 model to model\.onnx",
    ),
    "no model": (lambda folder: (folder / MODEL).unlink(), r"\.onnx files in it: none"),
    "a folder named model.onnx": (folder_instead, r"model\.onnx is a folder, not a model file"),
    "a configuration in Latin-1": (write(CONFIG, b'{"a": "\xe9"}'), r"config\.json is not UTF-8"),
    "a configuration that is a list": (write(CONFIG, b"[]"), r"holds a JSON list"),
    "a padding token in words": (set_config(pad_token_id="[PAD]"), r"pad_token_id is '\[PAD\]', not a token id"),
    "a list of model types": (set_config(model_type=["bert"]), r"model_type is \['bert'\], not a text"),
    "a manifest of nonsense": (
        write(MANIFEST, b'{"schema": "harness-release-manifest", "version": 1, "default_variant": ["fp32"]}'),
        r"default_variant names no model file",
    ),
}


@pytest.mark.parametrize("name", NOT_OPENED)
def test_not_opened(name, foreign, tiny_checkpoint, tmp_path, capsys):
    """What is no export is exit code 2 and one line."""
    change, message = NOT_OPENED[name]
    change(foreign)
    arguments = ["--reference", tiny_checkpoint, "--candidate", foreign, "--results", tmp_path / "results"]
    assert main(["judge", *map(str, arguments)]) == ExitCode.BAD_INPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert re.search(message, line)


def test_the_path_of_the_file(foreign, tiny_checkpoint, tmp_path, capsys):
    """The path of the .onnx file is refused with the advice to name its folder."""
    arguments = ["--reference", tiny_checkpoint, "--candidate", foreign / MODEL, "--results", tmp_path / "results"]
    assert main(["judge", *map(str, arguments)]) == ExitCode.BAD_INPUT
    assert "is not a folder. Name the folder of an ONNX export, not a file in it." in capsys.readouterr().err


DAMAGED = {
    "an empty file": write(MODEL, b""),
    "random bytes": write(MODEL, np.random.default_rng(0).bytes(4096)),
    "half a file": lambda folder: (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:5000]),
    "no labels": set_config(id2label={}),
    "too few labels": set_config(id2label={"0": "O"}),
    "a gap in the labels": set_config(id2label={"0": "O", "2": "B-SRC"}),
    "a tokenizer of another format": write(TOKENIZER, b'{"model": {"type": "Unigram"}, "vocab": []}'),
    "a tokenizer that is no JSON": write(TOKENIZER, b"\x00\x01"),
    "a tokenizer without its unknown token": write(
        TOKENIZER,
        b'{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": {"type": "WordPiece", '
        b'"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"a": 0}}}',
    ),
}


def test_a_panic_of_the_tokenizer_is_our_error(foreign):
    """A panic of tokenizers' Rust code, which is no Exception, does not get past the candidate."""
    content = json.loads((foreign / TOKENIZER).read_text(encoding="utf-8"))
    rule = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "B", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    (foreign / TOKENIZER).write_text(json.dumps({**content, "post_processor": rule}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"cannot cut a text: .*Copy tokenizer\.json"):
        tag(Candidate(open_artifact(foreign), Variant.FP32), TEXTS)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_export_is_our_error(name, foreign):
    """Whatever is damaged, opening and running it raises the one error that the session counts, in one line."""
    DAMAGED[name](foreign)
    with pytest.raises(ArtifactError) as caught:
        tag(Candidate(open_artifact(foreign), Variant.FP32), TEXTS)
    assert "\n" not in str(caught.value)


def _judged(foreign, tiny_checkpoint, tiny_data, tmp_path, suites):
    judgement = judge_candidate(tiny_checkpoint, foreign, data=[tiny_data], suites=suites, results=tmp_path / "results")
    return judgement.verdict


@pytest.mark.end_to_end
def test_a_foreign_export_end_to_end(exported, foreign, tiny_checkpoint, tiny_data, tmp_path):
    """torch.onnx.export's file, its output without a name, breaks nothing but the size of a model so small."""
    shutil.copy(exported(input_names=NAMES), foreign / MODEL)
    verdict = _judged(foreign, tiny_checkpoint, tiny_data, tmp_path, ["artifact", "parity"])
    assert {str(finding.measure.key) for finding in verdict.broken} <= {SIZE}
    assert verdict.problems == ()


@pytest.mark.end_to_end
@pytest.mark.parametrize("damage", ["half a file", "other names"])
def test_a_broken_foreign_export_end_to_end(damage, foreign, tiny_checkpoint, tiny_data, tmp_path):
    """What cannot be opened is REJECTED, and the first thing said is why."""
    if damage == "half a file":
        DAMAGED[damage](foreign)
    else:
        edit(foreign, REFUSED["BERT's own names"][0])
    verdict = _judged(foreign, tiny_checkpoint, tiny_data, tmp_path, ["artifact"])
    assert verdict.decision.value == "REJECTED"
    first = {str(finding.measure.key): finding.measure.details for finding in verdict.broken}
    (failure,) = first["artifact.fp32.load_failures"]["failures"]
    assert "cannot be loaded" in failure or "wants the input 'input_mask'" in failure
