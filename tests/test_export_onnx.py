"""From the tiny checkpoint to an export, and every way in which that must leave what was there as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_LABELS, files_of, names_in

from harness import export_onnx
from harness.artifact import Variant, open_artifact
from harness.errors import ArtifactError, CheckpointError, HarnessError, UsageError
from harness.export_onnx import export_to_onnx, verify_onnx_model
from harness.manifest import changed_files

BOTH = {"model.onnx", "model_quantized.onnx"}


class Told:
    """A progress that remembers its lines."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def now(self, text):
        pass


def refused(error, model, output, **options) -> str:
    """An export that must fail in one line, leaving nothing new beside, at or in the output."""
    parent = output.parent
    beside = names_in(parent) if parent.is_dir() else None
    inside = files_of(output) if output.is_dir() else None
    with pytest.raises(error) as caught:
        export_to_onnx(model, output, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert beside == (names_in(parent) if parent.is_dir() else None)
    assert inside == (files_of(output) if output.is_dir() else None)
    return message


def test_four_steps_are_announced_in_order(tiny_checkpoint, tmp_path):
    """Tokenizer, export, save, labels: a person reads what is done, then that nothing has judged it."""
    told = Told()
    output = export_to_onnx(tiny_checkpoint, tmp_path / "new" / "deep" / "onnx", progress=told)
    assert [line[:5] for line in told.lines[:4]] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    for line, said in zip(told.lines, ("tokenizer", "optimum", "model.onnx", "7 labels", "unjudged"), strict=True):
        assert said in line
    assert output == tmp_path / "new" / "deep" / "onnx"
    assert names_in(output.parent) == ["onnx"]
    assert open_artifact(output).variants == (Variant.FP32,)


def test_files_of_an_export(tiny_export):
    """An export has what serving needs, and no weights of PyTorch's, no pickle, no code."""
    names = set(names_in(tiny_export))
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"label2id.json", "id2label.json", "manifest.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".safetensors", ".py", ".pkl"))]


def test_labels_are_the_checkpoints(tiny_export):
    """Every place that names labels names the checkpoint's, in its order."""
    by_id = {str(index): label for index, label in enumerate(TINY_LABELS)}
    by_label = {label: index for index, label in enumerate(TINY_LABELS)}
    config = json.loads((tiny_export / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == by_id
    assert config["label2id"] == by_label
    assert json.loads((tiny_export / "id2label.json").read_text(encoding="utf-8")) == by_id
    assert json.loads((tiny_export / "label2id.json").read_text(encoding="utf-8")) == by_label


def test_the_manifest_says_unjudged(tiny_export, tiny_checkpoint):
    """An export's manifest claims no verdict, and lists every other file."""
    from harness.checkpoint import open_checkpoint

    manifest = open_artifact(tiny_export).manifest
    assert manifest["decision"] == "UNJUDGED"
    assert manifest["verdict_digest"] is None
    assert manifest["default_variant"] == "fp32"
    assert list(manifest["variants"]) == ["fp32"]
    assert "recipe" not in manifest["variants"]["fp32"]
    assert manifest["reference_digest"] == open_checkpoint(tiny_checkpoint).digest()
    assert set(manifest["files"]) == set(names_in(tiny_export)) - {"manifest.json"}
    assert changed_files(open_artifact(tiny_export)) == []


def test_truncation_and_padding_do_not_travel(checkpoint_copy, tmp_path):
    """A checkpoint whose tokenizer.json cuts and pads by itself is exported with one that does neither."""
    path = checkpoint_copy / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    path.write_text(json.dumps(content), encoding="utf-8")
    output = export_to_onnx(checkpoint_copy, tmp_path / "onnx")
    written = json.loads((output / "tokenizer.json").read_text(encoding="utf-8"))
    assert written["truncation"] is None
    assert written["padding"] is None


def test_both_variants(tiny_quantized, tiny_export):
    """With quantize=True both models are there; INT8 is the smaller one and the one that is served."""
    artifact = open_artifact(tiny_quantized)
    assert artifact.variants == (Variant.FP32, Variant.INT8)
    assert artifact.default_variant is Variant.INT8
    assert (tiny_quantized / "model.onnx").read_bytes() == (tiny_export / "model.onnx").read_bytes()
    recipe = artifact.manifest["variants"]["int8"]["recipe"]
    assert recipe["calibration_queries"] == 24
    assert recipe["recipe"]["name"] == "qdq"
    assert artifact.manifest["decision"] == "UNJUDGED"
    assert changed_files(artifact) == []


def test_weights_are_really_8_bit(tiny_quantized):
    """The INT8 model's matrices and its word table are 8-bit numbers."""
    import onnx

    graph = onnx.load(str(tiny_quantized / "model_quantized.onnx")).graph
    eight = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    sizes = {tensor.name: (tensor.data_type in eight, len(tensor.raw_data)) for tensor in graph.initializer}
    in_eight = sum(size for is_eight, size in sizes.values() if is_eight)
    elsewhere = sum(size for is_eight, size in sizes.values() if not is_eight)
    assert in_eight > elsewhere


def test_again_over_an_existing_export(tiny_checkpoint, tmp_path, tiny_queries):
    """A second export over a first, quantized one, and a third that quantizes again, each replace it as a whole."""
    output = tmp_path / "onnx"
    options = {"quantize": True, "calibration": tiny_queries[:8]}
    export_to_onnx(tiny_checkpoint, output, **options)
    first = files_of(output)
    assert set(first) >= BOTH
    export_to_onnx(tiny_checkpoint, output)  # finds two .onnx files where it goes
    assert "model_quantized.onnx" not in names_in(output)
    (output / "model_quantized.onnx").write_bytes(b"left by hand")
    (output / "notes.txt").write_text("left by hand", encoding="utf-8")
    export_to_onnx(tiny_checkpoint, output, **options)
    assert files_of(output) == first  # and the same bytes: exporting is repeatable
    assert names_in(tmp_path) == ["onnx"]


def test_an_unknown_target(tiny_checkpoint, tmp_path, monkeypatch):
    """A target that does not exist is refused, with those that do, before any work is done."""
    monkeypatch.setattr(export_onnx, "write_export", None)
    message = refused(UsageError, tiny_checkpoint, tmp_path / "onnx", quantize=True, target="sse9")
    assert "'sse9'" in message
    assert "avx512_vnni" in message


def test_output_is_the_model(tiny_checkpoint):
    """The checkpoint's own folder is never written to."""
    assert "--output" in refused(UsageError, tiny_checkpoint, tiny_checkpoint)


def test_output_in_or_around_the_model(tiny_checkpoint):
    """Nor a folder in it, nor one that holds it, by whatever path they are named."""
    refused(UsageError, tiny_checkpoint, tiny_checkpoint / "onnx")
    refused(UsageError, tiny_checkpoint, tiny_checkpoint.parent)
    refused(UsageError, tiny_checkpoint, tiny_checkpoint / "x" / ".." / "onnx")


def test_output_is_the_model_by_a_link(checkpoint_copy, tmp_path):
    """A link to the checkpoint is the checkpoint."""
    link = tmp_path / "link"
    link.symlink_to(checkpoint_copy)
    refused(UsageError, checkpoint_copy, link)
    refused(UsageError, link, checkpoint_copy)


def test_output_is_a_file(tiny_checkpoint, tmp_path):
    """A file is not replaced by a folder."""
    path = tmp_path / "model.onnx"
    path.write_text("mine", encoding="utf-8")
    assert "is a file" in refused(ArtifactError, tiny_checkpoint, path)
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden", "model.onnx", "manifest.json"])
def test_output_is_somebody_elses(tiny_checkpoint, tmp_path, name):
    """A folder with files that no export left there is not replaced, not even if one is called manifest.json."""
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / name).write_text('{"manifest_version": 3, "name": "an extension"}', encoding="utf-8")
    assert "documents" in refused(ArtifactError, tiny_checkpoint, folder)


def test_output_is_empty(tiny_checkpoint, tmp_path, fast_export):
    """An empty folder is as good as none."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    export_to_onnx(tiny_checkpoint, folder)
    assert changed_files(open_artifact(folder)) == []
    assert names_in(tmp_path) == ["onnx"]


def test_output_is_an_accepted_release(tiny_checkpoint, export_copy):
    """What was judged and accepted is not replaced by what nobody has judged."""
    path = export_copy / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace("UNJUDGED", "ACCEPTED"), encoding="utf-8")
    assert "accepted" in refused(UsageError, tiny_checkpoint, export_copy)


def test_output_cannot_be_written(tiny_checkpoint, tmp_path):
    """A place below a file, where even root cannot make a folder, is found out before any work is done."""
    path = tmp_path / "file"
    path.write_text("", encoding="utf-8")
    for output in (path / "onnx", path / "deep" / "onnx"):
        assert "not writable" in refused(ArtifactError, tiny_checkpoint, output)


def test_output_through_a_link(tiny_checkpoint, tmp_path, fast_export):
    """A link that a person made is followed: the folder behind it is replaced, the link stays."""
    behind = tmp_path / "disk" / "onnx"
    export_to_onnx(tiny_checkpoint, behind)
    (behind / "notes.txt").write_text("old", encoding="utf-8")
    link = tmp_path / "onnx"
    link.symlink_to(behind)
    export_to_onnx(tiny_checkpoint, link)
    assert link.is_symlink()
    assert "notes.txt" not in names_in(behind)
    assert names_in(tmp_path / "disk") == ["onnx"]


def test_an_export_that_fails_half_way(tiny_checkpoint, export_copy, monkeypatch):
    """When optimum breaks off, the export that was there stays byte for byte, and no staging folder is left."""

    def broken(*args, **kwargs):
        message = "no\nmemory"
        raise RuntimeError(message)

    monkeypatch.setattr("optimum.onnxruntime.ORTModelForTokenClassification.from_pretrained", broken)
    message = refused(CheckpointError, tiny_checkpoint, export_copy)
    assert "cannot be exported by optimum: no memory" in message
    refused(CheckpointError, tiny_checkpoint, export_copy.parent / "new")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("step", ["write_label_maps", "write_unjudged_manifest", "replace_folder"])
def test_nothing_is_left_of_a_broken_off_export(tiny_checkpoint, export_copy, monkeypatch, fast_export, step, error):
    """A full disk or Ctrl-C at any step leaves the old export, whole, and nothing beside it."""
    if step == "write_label_maps":
        step = "write_export"

    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(export_onnx, step, broken)
    before, beside = files_of(export_copy), names_in(export_copy.parent)
    with pytest.raises(type(error)):
        export_to_onnx(tiny_checkpoint, export_copy)
    assert files_of(export_copy) == before
    assert names_in(export_copy.parent) == beside


@pytest.mark.parametrize("error", [OSError(18, "Invalid cross-device link"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [1, 2])
def test_replacing_is_undone(tiny_checkpoint, export_copy, monkeypatch, fast_export, failing, error):
    """If the first or the second renaming fails, the old export is where it was, and nothing lies beside it."""
    real = Path.rename
    calls = []

    def rename(self, target):
        calls.append(self)
        if len(calls) == failing:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    before, beside = files_of(export_copy), names_in(export_copy.parent)
    with pytest.raises(ArtifactError if isinstance(error, OSError) else KeyboardInterrupt):
        export_to_onnx(tiny_checkpoint, export_copy)
    assert files_of(export_copy) == before
    assert names_in(export_copy.parent) == beside


def test_an_old_export_that_cannot_be_put_back_is_not_deleted(tiny_checkpoint, export_copy, monkeypatch, fast_export):
    """If even putting it back fails, the old export is still on the disk."""
    real = Path.rename
    calls = []

    def rename(self, target):
        calls.append(self)
        if len(calls) >= 2:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    before = files_of(export_copy)
    with pytest.raises(ArtifactError):
        export_to_onnx(tiny_checkpoint, export_copy)
    (kept,) = export_copy.parent.glob(".onnx.old-*/output")
    assert files_of(kept) == before


def test_weights_that_would_be_random_are_not_exported(checkpoint_copy, tmp_path):
    """A base model without its classifier is refused; optimum alone would export a random one."""
    from safetensors.torch import load_file, save_file

    path = checkpoint_copy / "model.safetensors"
    base = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("classifier")}
    save_file(base, path, metadata={"format": "pt"})
    assert "would be random" in refused(CheckpointError, checkpoint_copy, tmp_path / "out" / "onnx")


def test_a_tokenizer_that_does_not_load(checkpoint_copy, tmp_path):
    """A damaged tokenizer.json is named as such."""
    (checkpoint_copy / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "tokenizer" in refused(CheckpointError, checkpoint_copy, tmp_path / "onnx")


def test_a_model_that_cannot_be_quantized(tiny_checkpoint, tmp_path, monkeypatch, fast_export):
    """A quantizer that breaks off leaves nothing, and the message says what would work."""

    def broken(*args, **kwargs):
        message = "unsupported"
        raise NotImplementedError(message)

    monkeypatch.setattr("harness.recipes.workshop.quantize_qdq", broken)
    message = refused(ArtifactError, tiny_checkpoint, tmp_path / "onnx", quantize=True, calibration=["bus"])
    assert "by the recipe qdq: unsupported. Name another recipe" in message


def test_bad_checkpoints_are_refused_before_anything_is_made(tmp_path):
    """A missing model is a mistake that creates no folder."""
    refused(CheckpointError, tmp_path / "nowhere", tmp_path / "out" / "onnx")
    assert names_in(tmp_path) == []


def test_verify_a_good_export(tiny_export):
    """Sample queries are answered, no file differs, and the decision is the manifest's."""
    found = verify_onnx_model(tiny_export)
    assert found.decision == "UNJUDGED"
    assert found.problems == ()
    assert [answer["query"] for answer in found.answers] == list(export_onnx.SAMPLE_QUERIES)


def test_verify_asks_what_it_is_told(tiny_export):
    """The queries may be one's own."""
    (answer,) = verify_onnx_model(str(tiny_export), ["bus to goa"]).answers
    assert answer["query"] == "bus to goa"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "vocab.txt").unlink(), "vocab.txt is missing"),
        (lambda folder: (folder / "vocab.txt").write_text("x", encoding="utf-8"), "vocab.txt was changed"),
        (lambda folder: (folder / "extra.bin").write_bytes(b""), "extra.bin was added"),
        (lambda folder: (folder / "label2id.json").write_text("{}", encoding="utf-8"), "label2id.json was changed"),
        (lambda folder: os.truncate(folder / "model.onnx", 1000), "model.onnx was changed"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}", encoding="utf-8"), "tokenizer.json was changed"),
    ],
)
def test_verify_finds_what_changed(export_copy, damage, problem):
    """A file that is missing, changed or new is named, also where the release does not run any more because of it."""
    damage(export_copy)
    assert any(line.startswith(problem) for line in verify_onnx_model(export_copy).problems)


def test_verify_looks_into_subfolders(export_copy):
    """A file hidden in a folder counts as added."""
    (export_copy / "deep").mkdir()
    (export_copy / "deep" / "x").write_text("", encoding="utf-8")
    assert verify_onnx_model(export_copy).problems == ("deep/x was added after the release",)


def test_verify_without_a_manifest(export_copy):
    """A folder that nothing says anything about cannot be verified."""
    (export_copy / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no manifest"):
        verify_onnx_model(export_copy)


@pytest.mark.parametrize(
    "content", ['{"schema": "harness-release-manifest", "version": 99}', "{", '{"schema": "other"}']
)
def test_verify_a_manifest_of_another_kind(export_copy, content):
    """A manifest that is damaged or of another version is an error, not a list of differences."""
    (export_copy / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(HarnessError, match="manifest"):
        verify_onnx_model(export_copy)


def test_a_model_that_does_not_run_though_nothing_changed(export_copy):
    """A broken model whose manifest was made over it is an error."""
    (export_copy / "model.onnx").write_bytes(b"broken")
    path = export_copy / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    from harness.artifact import file_digest

    manifest["files"]["model.onnx"] = file_digest(export_copy / "model.onnx")
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        verify_onnx_model(export_copy)


def test_runs_as_a_module(tmp_path):
    """`python -m harness.export_onnx --help` describes the flags of `harness export`."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.export_onnx", "--help"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    for flag in ("--model", "--output", "--quantize", "--verify"):
        assert flag in done.stdout


def test_public_names():
    """The exporter's functions are the package's own names."""
    import harness

    assert harness.export_to_onnx is export_to_onnx
    assert harness.verify_onnx_model is verify_onnx_model
