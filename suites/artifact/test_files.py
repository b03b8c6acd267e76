"""The folder as a whole: files, manifest, labels, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.artifact import CONFIG, ID2LABEL, LABEL2ID, TOKENIZER, TOKENIZER_CONFIG, Artifact, Variant
from harness.documents import read_json_object
from harness.errors import DocumentError
from harness.evidence import Unit
from harness.manifest import changed_files
from harness.plugin import RecordMeasure
from harness.reference import Reference

from .model_file import external_files, read_graph

_REQUIRED = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, ID2LABEL, LABEL2ID)
_MODEL_SUFFIXES = {".onnx", ".ort", ".onnx_data", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".safetensors", ".py"}


def test_files_are_complete(candidate: Artifact, record_measure: RecordMeasure) -> None:
    """Every file that serving needs is there."""
    missing = [name for name in _REQUIRED if not (candidate.folder / name).is_file()]
    record_measure("missing_files", len(missing), unit=Unit.COUNT, details={"files": missing})


def test_nothing_else_could_be_served(candidate: Artifact, record_measure: RecordMeasure) -> None:
    """No second model, no pickle, no code and no link out of the folder lies beside the models."""
    expected = {variant.file_name for variant in Variant}
    for variant in candidate.variants:
        expected |= _external_files(candidate.model_path(variant))
    surplus = [
        path.relative_to(candidate.folder).as_posix()
        for path in sorted(candidate.folder.rglob("*"))
        if path.is_symlink() or (path.suffix in _MODEL_SUFFIXES and path.name not in expected)
    ]
    record_measure("unexpected_files", len(surplus), unit=Unit.COUNT, details={"files": surplus[:20]})


def _external_files(path: Path) -> set[str]:
    try:
        return external_files(read_graph(path))
    except Exception:  # a file that cannot be parsed is counted by load_failures
        return set()


def test_manifest(candidate: Artifact, record_measure: RecordMeasure) -> None:
    """The files are those that the manifest lists, where there is one."""
    changed = changed_files(candidate) if candidate.manifest is not None else []
    record_measure("manifest_differences", len(changed), unit=Unit.COUNT, details={"files": changed[:20]})


def test_labels(candidate: Artifact, reference: Reference, record_measure: RecordMeasure) -> None:
    """Every place that names labels names the reference's, in the reference's order."""
    id2label = {str(index): label for index, label in enumerate(reference.labels)}
    label2id = {label: index for index, label in enumerate(reference.labels)}
    places: list[tuple[str, object, object]] = [
        ("config.json id2label", candidate.config.get("id2label"), id2label),
        ("config.json label2id", candidate.config.get("label2id"), label2id),
    ]
    for name, expected in ((ID2LABEL, id2label), (LABEL2ID, label2id)):
        if (candidate.folder / name).is_file():
            places.append((name, _content(candidate.folder / name), expected))
    wrong = [place for place, found, expected in places if found != expected]
    record_measure("label_differences", len(wrong), unit=Unit.COUNT, details={"places": wrong})


def _content(path: Path) -> dict[str, Any] | str:
    try:
        return read_json_object(path)
    except DocumentError as err:
        return str(err)


def test_tokenizer(candidate: Artifact, reference: Reference, record_measure: RecordMeasure) -> None:
    """tokenizer.json is the reference's own, and neither cuts nor pads by itself.

    Compared section by section; parity and queries compare what it does to texts.
    """
    found = _content(candidate.folder / TOKENIZER)
    expected = _content_of(reference)
    if isinstance(found, str):
        differing = [found]
    else:
        sections = sorted({*found, *expected} - {"version"})
        differing = [section for section in sections if found.get(section) != expected.get(section)]
    record_measure("tokenizer_differences", len(differing), unit=Unit.COUNT, details={"sections": differing})


def _content_of(reference: Reference) -> dict[str, Any]:
    import json

    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(reference.tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    content: dict[str, Any] = json.loads(copy.to_str())
    return content
