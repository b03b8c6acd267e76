"""Defects of the files: missing, cut short, ambiguous, or leading out of the folder."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper

from harness.artifact import CONFIG, ID2LABEL, MANIFEST, TOKENIZER, Variant

from .defect import BOTH, WHOLE, Defect, Kind
from .workpiece import DefectNotApplicableError, Workpiece

_LEAST_NUMBERS = 16


def _sibling(work: Workpiece, _strength: float) -> None:
    (work.folder / "model_optimized.onnx").write_bytes(work.model_path.read_bytes())


def _sibling_below(work: Workpiece, _strength: float) -> None:
    (work.folder / "onnx").mkdir()
    (work.folder / "onnx" / work.variant.file_name).write_bytes(work.model_path.read_bytes())


def _lost_weights(work: Workpiece, _strength: float) -> None:
    location = f"{work.variant.file_name}_data"
    onnx.save(
        work.model(), str(work.model_path), save_as_external_data=True, location=location, size_threshold=_LEAST_NUMBERS
    )
    (work.folder / location).unlink()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the checkpoint stores a weight of the graph, byte for byte."""

    file: Path
    offset: int


def _weights_in_checkpoint(work: Workpiece, model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, _Place]]:
    files = sorted(work.reference.glob("*.safetensors"))
    vectors = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 1]
    for file in files:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for tensor in vectors:
                if tensor.dims[0] < _LEAST_NUMBERS or tensor.data_type != onnx.TensorProto.FLOAT:
                    continue
                offset = content.find(numpy_helper.to_array(tensor).tobytes())
                if offset >= 0:
                    yield tensor, _Place(file, offset)


def _read_from(work: Workpiece, model: onnx.ModelProto, tensor: onnx.TensorProto, place: _Place, location: str) -> None:
    """Let the model read one of its weights from the checkpoint, under the location given."""
    length = 4 * tensor.dims[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(place.offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    # onnx.save would fetch what lies outside
    work.model_path.write_bytes(model.SerializeToString())


def _weight_outside(work: Workpiece) -> tuple[onnx.ModelProto, onnx.TensorProto, _Place]:
    model = work.model()
    for tensor, place in _weights_in_checkpoint(work, model):
        return model, tensor, place
    message = "the checkpoint stores no weight of the graph as the graph does"
    raise DefectNotApplicableError(message)


def _weights_above(work: Workpiece, _strength: float) -> None:
    model, tensor, place = _weight_outside(work)
    _read_from(work, model, tensor, place, os.path.relpath(place.file.resolve(), work.folder.resolve()))


def _weights_at_absolute_path(work: Workpiece, _strength: float) -> None:
    model, tensor, place = _weight_outside(work)
    _read_from(work, model, tensor, place, str(place.file.resolve()))


def _weights_behind_link(work: Workpiece, _strength: float) -> None:
    model, tensor, place = _weight_outside(work)
    location = f"{work.variant.file_name}_data"
    (work.folder / location).symlink_to(place.file.resolve())
    _read_from(work, model, tensor, place, location)


def _linked_model(work: Workpiece, _strength: float) -> None:
    work.model_path.unlink()
    work.model_path.symlink_to(work.source_path(work.variant).resolve())


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def _cut_model(work: Workpiece, _strength: float) -> None:
    _cut(work.model_path, 0.9)


def _empty_model(work: Workpiece, _strength: float) -> None:
    work.model_path.write_bytes(b"")


def _model_folder(work: Workpiece, _strength: float) -> None:
    content = work.model_path.read_bytes()
    work.model_path.unlink()
    work.model_path.mkdir()
    (work.model_path / work.variant.file_name).write_bytes(content)


def _cut_tokenizer(work: Workpiece, _strength: float) -> None:
    _cut(work.folder / TOKENIZER, 0.9)


def _cut_config(work: Workpiece, _strength: float) -> None:
    _cut(work.folder / CONFIG, 0.5)


def _lost_label(work: Workpiece, _strength: float) -> None:
    content = work.json(ID2LABEL)
    content.pop(max(content, key=int))
    work.write(ID2LABEL, content)


def _pickle(work: Workpiece, _strength: float) -> None:
    # the shortest pickle there is, None: nothing of it is ever opened
    (work.folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def _need_manifest(work: Workpiece) -> None:
    work.json(MANIFEST)


def _stale_manifest(work: Workpiece, _strength: float) -> None:
    _need_manifest(work)
    with (work.folder / CONFIG).open("ab") as stream:
        stream.write(b"\n")


def _absent_default(work: Workpiece, _strength: float) -> None:
    manifest = work.json(MANIFEST)
    other = next(variant for variant in Variant if variant is not work.variant)
    work.write(MANIFEST, {**manifest, "default_variant": other.value})


def _basic_gate(work: Workpiece, _strength: float) -> None:
    manifest = work.json(MANIFEST)
    entries = manifest.get("variants")
    if not isinstance(entries, dict) or not all(isinstance(entry.get("serving"), dict) for entry in entries.values()):
        message = "the manifest does not say how each variant is served"
        raise DefectNotApplicableError(message)
    served = {
        name: {**entry, "serving": {**entry["serving"], "graph_optimization_level": "ORT_ENABLE_BASIC"}}
        for name, entry in entries.items()
    }
    work.write(MANIFEST, {**manifest, "variants": served})


def _wrong_padding(work: Workpiece, _strength: float) -> None:
    config = work.config
    vocabulary = config.get("vocab_size")
    if not isinstance(vocabulary, int):
        message = "config.json does not say how large the vocabulary is"
        raise DefectNotApplicableError(message)
    work.write(CONFIG, {**config, "pad_token_id": vocabulary // 2})


def _positions(work: Workpiece, factor: float) -> None:
    config = work.config
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        message = "config.json names no max_position_embeddings"
        raise DefectNotApplicableError(message)
    work.write(CONFIG, {**config, "max_position_embeddings": int(positions * factor)})


def _fewer_positions(work: Workpiece, _strength: float) -> None:
    _positions(work, 0.25)


def _more_positions(work: Workpiece, _strength: float) -> None:
    _positions(work, 2)


_ESCAPES = "onnx#3991"

FILES = (
    Defect(
        "stale-sibling", Kind.FILES, "another model, model_optimized.onnx, lies beside the model", _sibling, WHOLE,
        ("artifact",), listed=True, seen_in="optimum#2246",
    ),
    Defect(
        "stale-sibling-below", Kind.FILES, "another model of the same name lies in the folder onnx/", _sibling_below,
        WHOLE, ("artifact",), seen_in="optimum#2246",
    ),
    Defect(
        "missing-external-data", Kind.FILES, "the weights are in a file of their own, which is lost", _lost_weights,
        BOTH, listed=True, seen_in="sentence-transformers#3913",
    ),
    Defect(
        "escaping-external-data", Kind.FILES, "a weight is read from the checkpoint by a path with ../", _weights_above,
        BOTH, listed=True, seen_in=_ESCAPES,
    ),
    Defect(
        "escaping-absolute-path", Kind.FILES, "a weight is read from the checkpoint by its absolute path",
        _weights_at_absolute_path, BOTH, seen_in=_ESCAPES,
    ),
    Defect(
        "escaping-link", Kind.FILES, "a weight is read from the checkpoint through a symbolic link",
        _weights_behind_link, BOTH, seen_in=_ESCAPES,
    ),
    Defect(
        "linked-model", Kind.FILES, "the model file is a symbolic link out of the folder", _linked_model, BOTH,
        ("artifact",),
    ),
    Defect("cut-model", Kind.FILES, "the last tenth of the model file is missing", _cut_model, BOTH),
    Defect("empty-model", Kind.FILES, "the model file is empty", _empty_model, BOTH),
    Defect("model-folder", Kind.FILES, "the model is a folder with the file in it", _model_folder, WHOLE),
    Defect("cut-tokenizer", Kind.FILES, "the last tenth of tokenizer.json is missing", _cut_tokenizer, WHOLE),
    Defect("cut-config", Kind.FILES, "the second half of config.json is missing", _cut_config, WHOLE),
    Defect("lost-label", Kind.FILES, "id2label.json lacks the last label", _lost_label, WHOLE, ("artifact",)),
    Defect("pickle-beside", Kind.FILES, "a pickle, pytorch_model.bin, lies in the folder", _pickle, WHOLE, ("artifact",)),
    Defect(
        "stale-manifest", Kind.FILES, "config.json was changed after the manifest was written", _stale_manifest, WHOLE,
        ("artifact",), about_manifest=True,
    ),
    Defect(
        "absent-default", Kind.FILES, "the manifest's default_variant is not in the folder", _absent_default, WHOLE,
        ("artifact",), about_manifest=True,
    ),
    Defect(
        "basic-gate", Kind.FILES, "the manifest asks for a level of optimisation that leaves the graph as slow as it was exported",
        _basic_gate, WHOLE, ("artifact",), listed=True, seen_in="onnxruntime#11576",
    ),
    Defect("wrong-padding-token", Kind.FILES, "pad_token_id of config.json is some word", _wrong_padding, WHOLE),
    Defect(
        "fewer-positions", Kind.FILES, "max_position_embeddings of config.json is a quarter of what the model has",
        _fewer_positions, WHOLE,
    ),
    Defect(
        "more-positions", Kind.FILES, "max_position_embeddings of config.json is twice what the model has",
        _more_positions, WHOLE,
    ),
)  # fmt: skip
