"""Read an ONNX file without running it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

_WEIGHT_OPERATORS = {
    "Gemm",
    "MatMul",
    "MatMulInteger",
    "MatMulNBits",
    "QLinearMatMul",
    "Gather",
    "Attention",
    "FusedMatMul",
}
_WEIGHT_OPERATORS |= {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention", "QGemm", "GatherBlockQuantized"}
_QUANTIZED_TYPES = {
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT4,
    onnx.TensorProto.UINT4,
}
# Passing a weight through these leaves it the same weight.
_TRANSPARENT = {"DequantizeLinear", "Transpose", "Reshape", "Cast", "Identity"}
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


def read_graph(path: Path) -> onnx.ModelProto:
    """Read the graph; weights in other files are not followed."""
    return onnx.load(str(path), load_external_data=False)


def external_data_problems(model: onnx.ModelProto, folder: Path) -> list[str]:
    """List weights that lie in other files which are missing, too short, or out of the folder."""
    problems = []
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entry = {item.key: item.value for item in tensor.external_data}
        location = entry.get("location", "")
        path = folder / location
        if Path(location).is_absolute() or folder.resolve() not in path.resolve().parents or path.is_symlink():
            problems.append(f"{tensor.name}: {location!r} is out of the folder")
        elif not path.is_file():
            problems.append(f"{tensor.name}: {location!r} is missing")
        elif path.stat().st_size < int(entry.get("offset", 0)) + int(entry.get("length", 0)):
            problems.append(f"{tensor.name}: {location!r} is cut short")
    return problems


def external_files(model: onnx.ModelProto) -> set[str]:
    """Name the files that hold weights of this model."""
    return {
        item.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for item in tensor.external_data
        if item.key == "location"
    }


def frozen_axes(model: onnx.ModelProto) -> list[str]:
    """List inputs and outputs whose batch or token axis has a fixed size."""
    found = []
    for value in [*model.graph.input, *model.graph.output]:
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim[:2]):
            if dimension.HasField("dim_value"):
                found.append(f"{value.name} axis {axis} is {dimension.dim_value}")
    return found


def foreign_operators(model: onnx.ModelProto) -> list[str]:
    """List operators that no plain onnxruntime has."""
    return sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in STANDARD_DOMAINS})


def quantized_weight_share(model: onnx.ModelProto) -> float:
    """Tell which share of the weights of matrix products and embeddings, counted in numbers, is stored in 8 bits or fewer."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    quantized = total = 0
    seen: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in _WEIGHT_OPERATORS:
            continue
        for tensor in _weights(node, tensors, producers):
            if tensor.name in seen or len(tensor.dims) < 2:
                continue
            seen.add(tensor.name)
            size = 1
            for dimension in tensor.dims:
                size *= dimension
            total += size
            quantized += size if tensor.data_type in _QUANTIZED_TYPES else 0
    return quantized / total if total else 0.0


def _weights(
    node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto]
) -> Iterator[onnx.TensorProto]:
    for name in node.input:
        current = name
        while current in producers and producers[current].op_type in _TRANSPARENT:
            current = producers[current].input[0]
        if current in tensors:
            yield tensors[current]
