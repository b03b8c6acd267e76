"""Defects of quantization: the INT8 file is not quantized, not as it should be, or with wrong scales."""

from __future__ import annotations

import numpy as np
import onnx

from harness.artifact import MANIFEST, Variant
from harness.quiet import quiet_libraries
from harness.saturation import saturating_products

from .defect import INT8, Defect, Kind, numbers, shares
from .graph import Graph, on_graph
from .stored import Weight, array_of, replace
from .workpiece import DefectNotApplicableError, Workpiece

_WITHOUT_VNNI = "avx2"
# The largest weight of 7 bits, onnxruntime's "reduce range".
_SEVEN_BITS = 64


def _not_quantized(work: Workpiece, _strength: float) -> None:
    work.save(onnx.load(str(work.source_path(Variant.FP32))))


def _quantize_dynamically(work: Workpiece, operators: list[str] | None) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # loaded here: given a path, the quantizer writes files of its own beside the good export
    model = onnx.load(str(work.source_path(Variant.FP32)))
    with quiet_libraries():
        quantize_dynamic(model, str(work.model_path), op_types_to_quantize=operators, weight_type=QuantType.QInt8)


def _dynamic(work: Workpiece, _strength: float) -> None:
    _quantize_dynamically(work, None)


def _word_table_only(work: Workpiece, _strength: float) -> None:
    _quantize_dynamically(work, ["Gather"])


def _quantized_products(graph: Graph) -> list[Weight]:
    found = [weight for weight in graph.products() if weight.is_quantized]
    if not found:
        message = "the INT8 graph has no product with a matrix of integers"
        raise DefectNotApplicableError(message)
    return found


def _saturating(work: Workpiece, _strength: float) -> None:
    manifest = work.json(MANIFEST)
    entry = (manifest.get("variants") or {}).get(work.variant.value) or {}
    recipe = entry.get("recipe")
    if not isinstance(recipe, dict) or "target" not in recipe:
        message = "the manifest names no instruction set that the INT8 model is for"
        raise DefectNotApplicableError(message)
    model = work.model()
    weights = _signed(Graph(model))
    for weight in weights:
        _use_full_range(weight)
    if not saturating_products(model, work.folder):
        _exceed_a_pair(weights[0])
    work.save(model)
    right_anywhere = {"safe_on_every": True, "needs_one_of": []}
    promised = {**entry, "cpu": right_anywhere, "recipe": {**recipe, "target": _WITHOUT_VNNI}}
    work.write(MANIFEST, {**manifest, "variants": {**manifest["variants"], work.variant.value: promised}})


def _signed(graph: Graph) -> list[Weight]:
    """List the matrices of signed integers that are multiplied with unsigned activations."""
    types = {
        onnx.TensorProto.UINT8 for tensor in _activation_zeros(graph) if tensor.data_type == onnx.TensorProto.UINT8
    }
    found = [weight for weight in _quantized_products(graph) if weight.tensor.data_type == onnx.TensorProto.INT8]
    if not types or not found:
        message = "the INT8 model does not multiply unsigned activations with signed weights"
        raise DefectNotApplicableError(message)
    return found


def _use_full_range(weight: Weight) -> None:
    """Double the integers of a matrix that was kept in 7 bits, and halve its scales: the same matrix."""
    stored = weight.stored().astype(np.int16)
    if np.abs(stored).max() <= _SEVEN_BITS and weight.scale is not None:
        weight.store(np.clip(2 * stored, -128, 127))
        replace(weight.scale, array_of(weight.scale) / 2)


def _exceed_a_pair(weight: Weight) -> None:
    """Make a weight's neighbour as large as itself, where pairs were kept within the limit one by one."""
    stored = weight.stored().astype(np.int16)
    row, column = np.unravel_index(int(np.abs(stored).argmax()), stored.shape)
    neighbour = row + 1 if row + 1 < len(stored) else row - 1
    stored[neighbour, column] = stored[row, column]
    weight.store(stored)


def _activation_nodes(graph: Graph) -> list[onnx.NodeProto]:
    """List the nodes that round an activation with a stored scale."""
    found = [node for node in graph.graph.node if node.op_type == "QuantizeLinear" and graph.stored(node.input[1])]
    if not found:
        message = "the INT8 graph rounds no activation with a stored scale"
        raise DefectNotApplicableError(message)
    return found


def _activation_zeros(graph: Graph) -> list[onnx.TensorProto]:
    found = [graph.stored(node.input[2]) for node in _activation_nodes(graph) if len(node.input) > 2]
    return [tensor for tensor in found if tensor is not None]


def _restoring(graph: Graph, rounding: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [node for node in graph.readers.get(rounding.output[0], ()) if node.op_type == "DequantizeLinear"]


def _clipped_activations(graph: Graph, _work: Workpiece, strength: float) -> None:
    nodes = _activation_nodes(graph)
    scales = {name for node in nodes for pair in (node, *_restoring(graph, node)) for name in [pair.input[1]]}
    for name in sorted(scales):
        tensor = graph.stored(name)
        if tensor is not None:
            replace(tensor, array_of(tensor) * (1 - strength))


def _wrong_zero_point(graph: Graph, _work: Workpiece, strength: float) -> None:
    pairs = [
        (node, restoring) for node in _activation_nodes(graph) for restoring in [_restoring(graph, node)] if restoring
    ]
    pairs = [pair for pair in pairs if len(pair[0].input) > 2 and graph.stored(pair[0].input[2]) is not None]
    if not pairs:
        message = "the INT8 graph restores no activation with a stored zero point"
        raise DefectNotApplicableError(message)
    rounding, restoring = pairs[len(pairs) // 2]
    zero = graph.stored(rounding.input[2])
    assert zero is not None
    values = array_of(zero)
    bounds = np.iinfo(values.dtype)
    shifted = values.astype(np.int64) + int(strength)
    name = graph.constant(np.where(shifted > bounds.max, values - int(strength), shifted).astype(values.dtype))
    for node in restoring:
        node.input[2] = name


def _scaled_by_channel(graph: Graph) -> list[tuple[Weight, onnx.TensorProto]]:
    found = [
        (weight, weight.scale)
        for weight in _quantized_products(graph)
        if weight.scale is not None and array_of(weight.scale).size > 1
    ]
    if not found:
        message = "the INT8 matrices have no scales per channel"
        raise DefectNotApplicableError(message)
    return found


def _permuted_scales(graph: Graph, work: Workpiece, _strength: float) -> None:
    for _, scale in _scaled_by_channel(graph):
        replace(scale, work.rng.permutation(array_of(scale)))


def _zero_scale(graph: Graph, _work: Workpiece, _strength: float) -> None:
    found = _scaled_by_channel(graph)
    _, scale = found[len(found) // 2]
    scales = array_of(scale)
    scales[scales.argmax()] = 0
    replace(scale, scales)


INT8S = (
    Defect(
        "batch-dependent", Kind.INT8, "onnxruntime's dynamic quantization, one scale a matrix, made the INT8 model",
        _dynamic, INT8, ("artifact", "parity", "queries"), listed=True, seen_in="onnxruntime#8625, #10111",
    ),
    Defect(
        "saturation", Kind.INT8, f"full-range weights in a model that the manifest promises to {_WITHOUT_VNNI}",
        _saturating, INT8, ("artifact",), listed=True, seen_in="onnxruntime#6004, #5849, #14642",
    ),
    Defect("not-quantized", Kind.INT8, "the FP32 model has the INT8 model's name", _not_quantized, INT8, listed=True),
    Defect("half-quantized", Kind.INT8, "only the tables of the INT8 model are quantized", _word_table_only, INT8),
    Defect(
        "clipped-activations", Kind.INT8, "the scales of activations are too small", on_graph(_clipped_activations), INT8,
        strengths=shares(0.9, 0.5, 0.3, 0.1, 0.05, of="by {}"),
    ),
    Defect(
        "wrong-zero-point", Kind.INT8, "an activation is restored with another zero point than it was rounded with",
        on_graph(_wrong_zero_point), INT8, strengths=numbers(32, 8, 2, 1, of="{} off"),
    ),
    Defect(
        "permuted-scales", Kind.INT8, "the channels' scales of every matrix are shuffled", on_graph(_permuted_scales), INT8
    ),
    Defect("zero-scale", Kind.INT8, "one channel of a matrix has the scale 0", on_graph(_zero_scale), INT8),
)  # fmt: skip
