"""Each model file: does it load, is it well formed, and is it what its name says?"""

from __future__ import annotations

import onnx
import pytest

from harness.artifact import Artifact, Variant
from harness.candidate import Candidate
from harness.errors import ArtifactError, one_line
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.tagging import tag

from .model_file import (
    external_data_problems,
    foreign_operators,
    frozen_axes,
    quantized_weight_share,
    read_graph,
)

_MEBIBYTE = 1 << 20


@pytest.fixture(scope="session")
def graph(candidate: Artifact, variant: str) -> onnx.ModelProto:
    """The variant's graph, weights in other files not followed."""
    return read_graph(candidate.model_path(Variant(variant)))


def test_loads_and_runs(candidate: Artifact, variant: str, record_measure: RecordMeasure) -> None:
    """The variant loads in the runtime with the settings it is served with, and answers."""
    failures = []
    try:
        tag(Candidate(candidate, Variant(variant)), ["one two three"])
    except ArtifactError as err:
        failures.append(str(err))
    record_measure("load_failures", len(failures), unit=Unit.COUNT, details={"failures": failures})


def test_checker(candidate: Artifact, variant: str, graph: onnx.ModelProto, record_measure: RecordMeasure) -> None:
    """ONNX's own checker has nothing to say, and external data are whole and inside the folder."""
    outside = external_data_problems(graph, candidate.folder)
    record_measure("external_data_problems", len(outside), unit=Unit.COUNT, details={"problems": outside[:10]})
    failures = []
    if not outside:
        try:
            onnx.checker.check_model(str(candidate.model_path(Variant(variant))))
        except onnx.checker.ValidationError as err:
            failures.append(one_line(err))
    record_measure("checker_failures", len(failures), unit=Unit.COUNT, details={"failures": failures})


def test_signature(graph: onnx.ModelProto, reference: Reference, record_measure: RecordMeasure) -> None:
    """Batch and token axes are free, and the inputs are those that the tokenizer produces."""
    frozen = frozen_axes(graph)
    record_measure("frozen_axes", len(frozen), unit=Unit.COUNT, details={"axes": frozen})
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = {value.name for value in graph.graph.input} - weights
    differing = sorted(inputs ^ set(reference.tokenizer.model_input_names))
    record_measure("input_differences", len(differing), unit=Unit.COUNT, details={"inputs": differing})


def test_versions(graph: onnx.ModelProto, record_measure: RecordMeasure) -> None:
    """Operators and format are ones that an older runtime still knows."""
    foreign = foreign_operators(graph)
    record_measure("foreign_operators", len(foreign), unit=Unit.COUNT, details={"operators": foreign})
    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    record_measure(
        "opset_version", opsets.get("", opsets.get("ai.onnx", 0)), unit=Unit.COUNT, details={"opsets": opsets}
    )
    record_measure("ir_version", graph.ir_version, unit=Unit.COUNT)


def test_precision(graph: onnx.ModelProto, record_measure: RecordMeasure) -> None:
    """An FP32 file holds FP32 weights, an INT8 file 8-bit ones."""
    record_measure("quantized_weight_share", quantized_weight_share(graph), unit=Unit.SHARE)


def test_size(candidate: Artifact, variant: str, reference: Reference, record_measure: RecordMeasure) -> None:
    """The file's size, and its ratio to the reference's weights."""
    size = candidate.model_path(Variant(variant)).stat().st_size
    names = ("*.safetensors",)
    weights = sum(path.stat().st_size for name in names for path in reference.checkpoint.folder.glob(name))
    record_measure("file_size", size / _MEBIBYTE, unit=Unit.MEBIBYTE)
    record_measure("size_ratio_to_reference", size / weights, unit=Unit.RATIO)
