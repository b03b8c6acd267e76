"""The folder as a whole: files, manifest, labels, tokenizer, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from harness.artifact import CONFIG, ID2LABEL, LABEL2ID, TOKENIZER, TOKENIZER_CONFIG, Artifact, Variant, file_digest
from harness.candidate import Candidate
from harness.errors import ArtifactError, one_line
from harness.evidence import Unit
from harness.manifest import changed_files
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.serving import JUDGED_THREADS, OptimizationLevel, Runtime, ServingSettings

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

# onnxruntime fuses, and pairs integers with their scales, from EXTENDED on; a graph that was never fused is up to
# 17 times slower below it.
_LEVELS_THAT_FUSE_NOTHING = frozenset({OptimizationLevel.NONE, OptimizationLevel.BASIC})


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
    """Each variant is opened with the settings that its manifest entry names, no others (onnxruntime#11576), and they suit it.

    They are onnxruntime's, so it is asked whatever runs the models in this session, and the details say so.
    """
    places = []
    if candidate.manifest is not None:
        places = [place for variant in candidate.variants for place in _serving_differences(candidate, variant)]
    details = {"places": places, "opened_by": Runtime.ONNXRUNTIME.value}
    record_measure("serving_differences", len(places), unit=Unit.COUNT, details=details)


def _serving_differences(candidate: Artifact, variant: Variant) -> list[str]:
    """Say what is wrong with the settings of a variant: they cannot be followed, are not followed, or do not suit it."""
    try:
        promised = candidate.serving(variant)
    except ArtifactError as err:
        return [one_line(err)]
    manifest = candidate.manifest or {}
    if manifest.get("version") == 1 and not manifest.get("serving"):
        return [f"manifest.json has no serving entry for {variant.value}"]
    return [f"{variant.value}: {problem}" for problem in _problems(candidate, variant, promised)]


def _problems(candidate: Artifact, variant: Variant, promised: ServingSettings) -> Iterator[str]:
    if promised.threads != JUDGED_THREADS:
        yield f"intra_op_num_threads is {promised.threads}, releases are judged and served with {JUDGED_THREADS}"
    try:
        judged = Candidate(candidate, variant).opened_with.to_json()
        graph = read_graph(candidate.model_path(variant))
    except ArtifactError:  # counted by load_failures
        return
    for name, value in promised.to_json().items():
        if judged[name] != value:
            yield f"{name} is {value}, judged with {judged[name]}"
    level = promised.graph_optimization_level
    if level in _LEVELS_THAT_FUSE_NOTHING and not any(node.domain for node in graph.graph.node):
        yield f"graph_optimization_level is {level.value}, but nothing in the graph was fused before it was shipped"


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
