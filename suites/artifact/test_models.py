"""Each model file: does it load, is it well formed, and is it what its name says?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import pytest

from harness.artifact import Artifact, Variant
from harness.candidate import Candidate
from harness.errors import ArtifactError, one_line
from harness.evidence import Unit
from harness.instruction_sets import entry_of_target
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.saturation import certify
from harness.serving import Runtime
from harness.tagging import tag

from .model_file import (
    external_data_problems,
    foreign_operators,
    frozen_axes,
    quantized_weight_share,
    read_graph,
    stored_bytes,
)
from .scales import unusable_scales

_MEBIBYTE = 1 << 20
# Without these two a model cannot tell queries apart, or not from their padding.
_INDISPENSABLE = frozenset({"input_ids", "attention_mask"})


@pytest.fixture(scope="session")
def graph(candidate: Artifact, variant: str) -> onnx.ModelProto:
    """The variant's graph, weights in other files not followed."""
    try:
        return read_graph(candidate.model_path(Variant(variant)))
    except ArtifactError as err:
        pytest.fail(str(err), pytrace=False)  # in one line; load_failures counts it


def test_loads_and_runs(candidate: Artifact, variant: str, runtime: Runtime, record_measure: RecordMeasure) -> None:
    """The variant loads in the runtime with the settings it is served with, and answers."""
    failures = []
    try:
        tag(Candidate(candidate, Variant(variant), runtime=runtime), ["one two three"])
    except ArtifactError as err:
        failures.append(str(err))
    record_measure("load_failures", len(failures), unit=Unit.COUNT, details={"failures": failures})


def test_checker(candidate: Artifact, variant: str, graph: onnx.ModelProto, record_measure: RecordMeasure) -> None:
    """ONNX's own checker has nothing to say, and external data are whole and inside the folder."""
    outside = external_data_problems(graph, candidate.model_folder)
    record_measure("external_data_problems", len(outside), unit=Unit.COUNT, details={"problems": outside[:10]})
    failures = []
    if not outside:
        try:
            onnx.checker.check_model(str(candidate.model_path(Variant(variant))))
        except Exception as err:  # the checker's own errors, protobuf's, and its C++ code's
            failures.append(one_line(err))
    record_measure("checker_failures", len(failures), unit=Unit.COUNT, details={"failures": failures})


def test_signature(graph: onnx.ModelProto, reference: Reference, record_measure: RecordMeasure) -> None:
    """Batch and token axes are free, and the inputs are those that the tokenizer produces."""
    frozen = frozen_axes(graph)
    record_measure("frozen_axes", len(frozen), unit=Unit.COUNT, details={"axes": frozen})
    differing, not_taken = _input_differences(graph, set(reference.tokenizer.model_input_names))
    details = {"inputs": differing, "not_taken": not_taken}
    record_measure("input_differences", len(differing), unit=Unit.COUNT, details=details)


def _input_differences(graph: onnx.ModelProto, produced: set[str]) -> tuple[list[str], list[str]]:
    """List inputs that make the model unusable as it is, and those of the tokenizer that it does without.

    A model without token_type_ids is right where they are always 0; parity compares what it answers.
    """
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = {value.name for value in graph.graph.input} - weights
    lacking = (produced & _INDISPENSABLE) - inputs
    differing = [f"{name}: the model wants it, the tokenizer does not make it" for name in sorted(inputs - produced)]
    differing += [f"{name}: the tokenizer makes it, the model does not take it" for name in sorted(lacking)]
    return differing, sorted(produced - inputs - lacking)


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


def test_saturation(candidate: Artifact, variant: str, graph: onnx.ModelProto, record_measure: RecordMeasure) -> None:
    """No product clamps in 16 bits on the CPUs that the manifest promises; where nothing says which, on any."""
    certificate = certify(graph, candidate.model_folder)
    promised = _promised_cpus(candidate, variant)
    counted = certificate.broken_promises(promised)
    details = {
        "problems": [_remedy(promised), *counted[:10]] if counted else [],
        "promised": dict(promised),
        "found": len(certificate.problems),
        "certificate": certificate.entry(),
    }
    record_measure("saturating_products", len(counted), unit=Unit.COUNT, details=details)


def test_scales(candidate: Artifact, graph: onnx.ModelProto, record_measure: RecordMeasure) -> None:
    """Every stored scale is a finite number above zero."""
    found = unusable_scales(graph, candidate.model_folder)
    record_measure("unusable_scales", len(found), unit=Unit.COUNT, details={"problems": found[:10]})


def _promised_cpus(candidate: Artifact, variant: str) -> Mapping[str, Any]:
    """Find what the manifest says about CPUs: the variant's entry, else what its `--target` stood for."""
    entries = (candidate.manifest or {}).get("variants")
    entry = entries.get(variant) if isinstance(entries, dict) else None
    cpu = entry.get("cpu") if isinstance(entry, dict) else None
    if isinstance(cpu, dict) and cpu:
        return cpu
    recipe = candidate.recipe(Variant(variant))
    return entry_of_target(recipe.get("target")) if recipe is not None else {}


def _remedy(promised: Mapping[str, Any]) -> str:
    if not promised:
        where = "nothing says which CPUs the model is for; without VNNI these clamp"
    elif promised.get("safe_on_every") is False:
        where = "the manifest names CPUs on which these clamp"
    else:
        where = "the manifest says that every CPU will do, and these clamp without VNNI"
    return f"{where}: quantize with reduce_range, or release with --target, or waive it if every CPU has VNNI"


def test_size(candidate: Artifact, variant: str, reference: Reference, record_measure: RecordMeasure) -> None:
    """The size of the file and of its external data, and its ratio to the reference's weights."""
    size = stored_bytes(candidate.model_path(Variant(variant)))
    weights = sum(path.stat().st_size for path in reference.checkpoint.folder.glob("*.safetensors"))
    record_measure("file_size", size / _MEBIBYTE, unit=Unit.MEBIBYTE)
    record_measure("size_ratio_to_reference", size / weights, unit=Unit.RATIO)
