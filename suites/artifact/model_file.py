"""Read an ONNX file without running it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from harness.errors import ArtifactError, one_line
from harness.onnx_values import constants, producers

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
_LOGITS = "logits"


def read_graph(path: Path) -> onnx.ModelProto:
    """Read the graph; weights in other files are not followed.

    Raises:
        ArtifactError: the file is no ONNX model, or an empty one.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as err:  # protobuf's own errors, or the system's
        message = f"{path} cannot be read as ONNX: {one_line(err)}. Export it again."
        raise ArtifactError(message) from err
    if not model.graph.node:  # what an empty file is read as
        message = f"{path} holds no ONNX graph. Export it again."
        raise ArtifactError(message)
    return model


def every_node(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Walk nodes, and those of the graphs inside them, such as the branches of an If."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from every_node(graph.node)


def stored_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Walk everything in the model that may hold numbers: initializers, and what attributes hold, at any depth."""
    yield from _initializers(model.graph)
    for node in every_node([*model.graph.node, *(node for function in model.functions for node in function.node)]):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _initializers(graph)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def external_data_problems(model: onnx.ModelProto, folder: Path) -> list[str]:
    """List weights that lie in other files which are missing, too short, or out of the model's folder."""
    problems = []
    for tensor in _external(model):
        try:
            problem = _external_problem(tensor, folder)
        except ValueError as err:  # an offset that is no number, a name that no file can have
            problem = f"is not readable ({one_line(err, 80)})"
        if problem:
            problems.append(f"{tensor.name}: {_location(tensor)!r} {problem}")
    return problems


def _external_problem(tensor: onnx.TensorProto, folder: Path) -> str | None:
    entry = {item.key: item.value for item in tensor.external_data}
    location = _location(tensor)
    path = folder / location
    if Path(location).is_absolute() or folder.resolve() not in path.resolve().parents or path.is_symlink():
        return "is out of the folder"
    if not path.is_file():
        return "is missing"
    if path.stat().st_size < int(entry.get("offset", 0)) + int(entry.get("length", 0)):
        return "is cut short"
    return None


def _external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in stored_tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]


def _location(tensor: onnx.TensorProto) -> str:
    return next((item.value for item in tensor.external_data if item.key == "location"), "")


def external_files(model: onnx.ModelProto) -> set[str]:
    """Name the files, relative to the model's own folder, that hold weights of this model."""
    return {_location(tensor) for tensor in _external(model)} - {""}


def stored_bytes(path: Path) -> int:
    """Add up the sizes of a model file and of the files that hold its weights, those that are there."""
    try:
        names = external_files(read_graph(path))
    except ArtifactError:
        names = set()  # what cannot be read is counted by load_failures; its size is still its size
    files = [path, *(path.parent / name for name in sorted(names))]
    return sum(file.stat().st_size for file in files if file.is_file())


def frozen_axes(model: onnx.ModelProto) -> list[str]:
    """List inputs, and the output that is served, whose batch or token axis has a fixed size."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = list(model.graph.output)
    # of several outputs only the logits are served: attention maps and pooled states have other axes there
    served = [value for value in outputs if value.name == _LOGITS] or (outputs if len(outputs) == 1 else [])
    found = []
    for value in [*inputs, *served]:
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim[:2]):
            if dimension.HasField("dim_value"):
                found.append(f"{value.name} axis {axis} is {dimension.dim_value}")
    return found


def foreign_operators(model: onnx.ModelProto) -> list[str]:
    """List operators that no plain onnxruntime has; the model's own functions are looked into."""
    own = {(function.domain, function.name) for function in model.functions}
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node in every_node(nodes)
            if node.domain not in STANDARD_DOMAINS and (node.domain, node.op_type) not in own
        }
    )


def quantized_weight_share(model: onnx.ModelProto) -> float:
    """Tell which share of the weights of matrix products and embeddings, counted in numbers, is stored in 8 bits or fewer."""
    tensors = constants(model)
    made_by = producers(model)
    quantized = total = 0
    seen: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in _WEIGHT_OPERATORS:
            continue
        for name in _weights(node, tensors, made_by):
            if name in seen or len(tensors[name].dims) < 2:
                continue
            seen.add(name)
            size = 1
            for dimension in tensors[name].dims:
                size *= dimension
            total += size
            quantized += size if tensors[name].data_type in _QUANTIZED_TYPES else 0
    return quantized / total if total else 0.0


def _weights(
    node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], made_by: dict[str, onnx.NodeProto]
) -> Iterator[str]:
    for name in node.input:
        current = name
        while current in made_by and made_by[current].op_type in _TRANSPARENT:
            current = made_by[current].input[0]
        if current in tensors:
            yield current


def counted_tables(model: onnx.ModelProto) -> set[int]:
    """Give the numbers of rows of the tables from which something else than an input of the graph picks rows.

    Words are picked by an input, positions by what the graph counts itself; segments by either. Empty where
    positions are relative, rotary, or folded away.
    """
    tensors = constants(model)
    made_by = producers(model)
    inputs = {value.name for value in model.graph.input}
    return {
        tensors[name].dims[0]
        for node in model.graph.node
        if node.op_type == "Gather" and _source(node.input[1], made_by) not in inputs
        for name in _weights(node, tensors, made_by)
        if len(tensors[name].dims) == 2
    }


def _source(name: str, made_by: dict[str, onnx.NodeProto]) -> str:
    while name in made_by and made_by[name].op_type in _TRANSPARENT:
        name = made_by[name].input[0]
    return name
