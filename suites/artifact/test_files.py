"""The folder as a whole: files, manifest, labels, tokenizer, lengths."""

from __future__ import annotations

from pathlib import Path

import onnx

from harness.artifact import CONFIG, ID2LABEL, LABEL2ID, TOKENIZER, TOKENIZER_CONFIG, Artifact, Variant, file_digest
from harness.candidate import serving_settings
from harness.errors import ArtifactError, one_line
from harness.evidence import Unit
from harness.manifest import changed_files
from harness.plugin import RecordMeasure
from harness.reference import Reference

from .labels import label_differences
from .lengths import length_differences
from .model_file import external_files, read_graph
from .tokenizer_files import tokenizer_differences

_RELEASED = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, ID2LABEL, LABEL2ID)
_FOREIGN = (CONFIG, TOKENIZER)
# What usual tools load instead of the judged model, or run when they load it: models and weights of other runtimes,
# pickles, code and libraries of operators, and weights beside a model that the judged one does not use.
_MODEL_SUFFIXES = frozenset(
    {
        ".onnx", ".ort", ".onnx_data", ".data", ".safetensors", ".bin", ".h5", ".keras", ".msgpack", ".ot", ".npz", ".npy",
        ".tflite", ".gguf", ".pb", ".mlmodel", ".engine", ".plan", ".trt",
        ".pt", ".pth", ".pt2", ".pte", ".ckpt", ".pkl", ".pickle", ".joblib",
        ".py", ".pyc", ".so", ".dll", ".dylib",
    }
)  # fmt: skip


def test_files_are_complete(candidate: Artifact, record_measure: RecordMeasure) -> None:
    """Every file that serving needs is there; our own releases also have the label maps as files."""
    required = _FOREIGN if candidate.manifest is None else _RELEASED
    missing = [name for name in required if not (candidate.folder / name).is_file()]
    record_measure("missing_files", len(missing), unit=Unit.COUNT, details={"files": missing})


def test_nothing_else_could_be_served(candidate: Artifact, reference: Reference, record_measure: RecordMeasure) -> None:
    """No second model, no pickle, no code and no link out of the folder lies beside the models."""
    expected = {path for variant in candidate.variants for path in _files_of(candidate.model_path(variant))}
    surplus = []
    for path in sorted(candidate.folder.rglob("*")):
        name = path.relative_to(candidate.folder).as_posix()
        if path.is_symlink():
            surplus.append(f"{name} is a link: put the file itself there (cp -L)")
        elif path.suffix.lower() in _MODEL_SUFFIXES and path not in expected and not _is_reference(path, reference):
            surplus.append(f"{name} could be loaded instead of the judged model: remove it")
    record_measure("unexpected_files", len(surplus), unit=Unit.COUNT, details={"files": surplus[:20]})


def _files_of(model: Path) -> set[Path]:
    try:
        return {model, *(model.parent / name for name in external_files(read_graph(model)))}
    except ArtifactError:  # a file that cannot be read is counted by load_failures
        return {model}


def _is_reference(path: Path, reference: Reference) -> bool:
    """Tell whether a file is the reference's own weights, byte for byte: an export made into the checkpoint's folder."""
    original = reference.checkpoint.folder / path.name
    return path.suffix == ".safetensors" and original.is_file() and file_digest(original) == file_digest(path)


def test_manifest(candidate: Artifact, record_measure: RecordMeasure) -> None:
    """The files are those that the manifest lists, where there is one."""
    changed = []
    if candidate.manifest is not None:
        try:
            changed = changed_files(candidate)
        except ArtifactError as err:  # it lists no files at all
            changed = [str(err)]
    record_measure("manifest_differences", len(changed), unit=Unit.COUNT, details={"files": changed[:20]})


def test_serving(candidate: Artifact, record_measure: RecordMeasure) -> None:
    """The manifest names the settings that the candidate is judged and opened with, no others (onnxruntime#11576)."""
    places = [] if candidate.manifest is None else _other_settings(candidate.manifest.get("serving"))
    record_measure("serving_differences", len(places), unit=Unit.COUNT, details={"places": places})


def _other_settings(promised: object) -> list[str]:
    if not isinstance(promised, dict):
        return ["manifest.json has no serving entry"]
    judged = serving_settings()
    return [
        f"manifest.json serving {one_line(name, 60)}: {one_line(promised.get(name, 'missing'), 60)}, "
        f"judged with {judged.get(name, 'no such setting')}"
        for name in sorted({*promised, *judged})
        if promised.get(name) != judged.get(name)
        or name not in promised
        or type(promised[name]) is not type(judged[name])
    ]


def test_labels(candidate: Artifact, reference: Reference, record_measure: RecordMeasure) -> None:
    """Every place that names labels names the reference's, in the reference's order."""
    places = label_differences(candidate, reference.labels)
    record_measure("label_differences", len(places), unit=Unit.COUNT, details={"places": places})


def test_tokenizer(candidate: Artifact, reference: Reference, record_measure: RecordMeasure) -> None:
    """The tokenizer is the reference's own, in tokenizer.json and as transformers loads it; it neither cuts nor pads."""
    sections = tokenizer_differences(candidate.folder, reference)
    record_measure("tokenizer_differences", len(sections), unit=Unit.COUNT, details={"sections": sections})


def test_lengths(candidate: Artifact, reference: Reference, record_measure: RecordMeasure) -> None:
    """Rows are as long and as padded as the reference's, and no longer than the graphs' position tables."""
    problems = length_differences(candidate, reference, _readable_graphs(candidate))
    record_measure("length_differences", len(problems), unit=Unit.COUNT, details={"problems": problems})


def _readable_graphs(candidate: Artifact) -> list[onnx.ModelProto]:
    graphs = []
    for variant in candidate.variants:
        try:
            graphs.append(read_graph(candidate.model_path(Variant(variant))))
        except ArtifactError:  # counted by load_failures
            continue
    return graphs
