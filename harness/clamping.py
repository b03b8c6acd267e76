"""Compute what an INT8 model answers on a CPU that clamps, on any CPU.

onnxruntime's kernels for AVX2 and for AVX-512 without VNNI multiply four activations with four weights at a time:
VPMADDUBSW adds the products of rows 0 and 1, and of 2 and 3, in 16 bits and clamps each sum; VPMADDWD with ones adds
the two in 32 bits (core/mlas/lib/amd64/QgemmU8X8KernelAvx2.asm). Here the model's products are computed so in numpy,
and everything between them by onnxruntime: the graph is cut in front of each product and after it. With clamping
switched off, the same program gives what every other CPU answers.

For measuring only, some ten times slower than the model itself: nothing is served by it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from harness.errors import ArtifactError, one_line
from harness.onnx_values import constants
from harness.pair_limits import LARGEST_PAIR
from harness.saturation import clamping_products
from harness.serving import OptimizationLevel, ServingSettings

_SMALLEST, _LARGEST = np.iinfo(np.int16).min, np.iinfo(np.int16).max
# 512 · 255 · 128 is below 2 ** 24, so float32 adds so many products without rounding, whatever their order.
_EXACT_DEPTH = 512
_MICROSOFT = "com.microsoft"
_ERRORS_ONLY = 3
_TYPES = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(int64)": onnx.TensorProto.INT64,
    "tensor(int32)": onnx.TensorProto.INT32,
    "tensor(uint8)": onnx.TensorProto.UINT8,
    "tensor(int8)": onnx.TensorProto.INT8,
    "tensor(bool)": onnx.TensorProto.BOOL,
}


def clamped_product(activations: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """Multiply as VPMADDUBSW and VPMADDWD do: the definition, in so many words.

    Args:
        activations: uint8, (rows, depth).
        weights: int8, (depth, columns).

    Returns:
        int32, (rows, columns); an odd depth is filled up with zeros.
    """
    odd = activations.shape[1] % 2
    left = np.pad(activations, [(0, 0), (0, odd)]).astype(np.int32)
    right = np.pad(weights, [(0, odd), (0, 0)]).astype(np.int32)
    pairs = left[:, 0::2, None] * right[None, 0::2] + left[:, 1::2, None] * right[None, 1::2]
    sums: NDArray[np.int32] = np.clip(pairs, _SMALLEST, _LARGEST).sum(axis=1, dtype=np.int32)
    return sums


class ClampingWeights:
    """Weights that products are computed with: exactly, or as `clamped_product` does, which takes hardly longer.

    Only pairs of weights that add up to more than 128 can clamp, so these alone are looked at one by one.
    """

    def __init__(self, weights: NDArray[np.int8]) -> None:
        """Take int8 weights, (depth, columns), and find the pairs that can clamp."""
        padded = np.pad(weights, [(0, len(weights) % 2), (0, 0)]).astype(np.float32)
        sums = padded[0::2] + padded[1::2]
        columns, pairs = np.nonzero((np.abs(sums) > LARGEST_PAIR).T)
        self._depth = len(weights)
        self._exact = padded
        self._pairs, self._columns = pairs, columns
        self._upper, self._lower = padded[2 * pairs, columns], padded[2 * pairs + 1, columns]
        self.sums: NDArray[np.float64] = padded.sum(axis=0, dtype=np.float64)

    def product(self, activations: NDArray[np.uint8], *, clamps: bool) -> tuple[NDArray[np.int32], int]:
        """Multiply; see `clamped_product`.

        Returns:
            int32, (rows, columns), and how many sums of two were clamped.
        """
        left = np.pad(activations, [(0, 0), (0, self._depth % 2)]).astype(np.float32)
        parts = [slice(first, first + _EXACT_DEPTH) for first in range(0, self._depth, _EXACT_DEPTH)]
        sums_of_parts = np.stack([left[:, part] @ self._exact[part] for part in parts])
        result: NDArray[np.int32] = sums_of_parts.sum(axis=0, dtype=np.int32)
        clamped = 0
        if clamps and len(self._pairs):
            sums = left[:, 2 * self._pairs] * self._upper + left[:, 2 * self._pairs + 1] * self._lower
            lost = np.clip(sums, _SMALLEST, _LARGEST) - sums
            clamped = int(np.count_nonzero(lost))
            np.add.at(result.T, self._columns, lost.T.astype(np.int32))
        return result, clamped


@dataclass(slots=True)
class Clamped:
    """What was counted while a model ran: sums of two products, and those of them that clamped."""

    sums: int = 0
    clamped: int = 0
    by_node: dict[str, int] = field(default_factory=dict)


class _Product:
    """A MatMulInteger or MatMulIntegerToFloat with stored weights, computed in numpy."""

    def __init__(self, node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> None:
        self.node = node
        names = [*node.input, *[""] * 7]
        to_float = node.op_type == "MatMulIntegerToFloat"
        order = ("scale", "weight_scale", "zero", "weight_zero", "bias") if to_float else ("zero", "weight_zero")
        self._names = dict(zip(order, names[2:], strict=False))
        self._stored = {
            name: numpy_helper.to_array(stored[name]) for name in self._names.values() if name and name in stored
        }
        weights = numpy_helper.to_array(stored[node.input[1]])
        if weights.ndim != 2:
            message = f"{node.name}: its weights have {weights.ndim} dimensions, where 2 can be computed"
            raise ArtifactError(message)
        self._depth, self._weights = len(weights), ClampingWeights(weights)

    @property
    def needs(self) -> list[str]:
        """The values that it is computed from, but for stored ones."""
        return [self.node.input[0], *(name for name in self._names.values() if name and name not in self._stored)]

    def run(self, values: Mapping[str, NDArray[Any]], counted: Clamped, *, clamps: bool) -> NDArray[Any]:
        """Compute what onnxruntime's operator does; the order of float operations is its own, too."""
        given = {**values, **self._stored}
        activations = given[self.node.input[0]]
        rows = activations.reshape(-1, self._depth)
        result, clamped = self._weights.product(rows, clamps=clamps)
        counted.sums += len(rows) * ((self._depth + 1) // 2) * result.shape[1]
        counted.clamped += clamped
        counted.by_node[self.node.name] = counted.by_node.get(self.node.name, 0) + clamped
        find = {role: given[name] for role, name in self._names.items() if name}
        exact = self._without_zero_points(result, rows, find)
        if self.node.op_type == "MatMulIntegerToFloat":
            exact = exact.astype(np.float32) * (find["scale"] * find["weight_scale"]).astype(np.float32)
            exact = exact + find["bias"] if "bias" in find else exact
        return exact.reshape(*activations.shape[:-1], result.shape[1])

    def _without_zero_points(
        self, result: NDArray[np.int32], rows: NDArray[np.uint8], find: Mapping[str, NDArray[Any]]
    ) -> NDArray[Any]:
        zero = np.asarray(find.get("zero", 0), np.float64).reshape(-1)[:, None]
        weight_zero = np.asarray(find.get("weight_zero", 0), np.float64).reshape(1, -1)
        sums = rows.sum(axis=1, dtype=np.float64)[:, None]
        exact = result - zero * self._weights.sums - weight_zero * sums + self._depth * zero * weight_zero
        return np.asarray(exact, np.int32)


class ClampingModel:
    """A model whose products of unsigned activations and signed weights are computed with clamping, or without.

    Attributes:
        counted: what clamped since it was made, with clamping on.
    """

    def __init__(self, path: Path, settings: ServingSettings | None = None) -> None:
        """Rewrite the model as onnxruntime does when it serves it, and cut it at its products.

        Args:
            path: the INT8 model.
            settings: what it is served with, the defaults if none are given.

        Raises:
            ArtifactError: onnxruntime cannot load it, or it multiplies by an operator that is not known here.
        """
        self.counted = Clamped()
        model = _plain(_optimized(path, settings or ServingSettings()))
        stored = constants(model)
        nodes = {node.output[0]: node for node, _ in clamping_products(model)}
        if unknown := sorted({node.op_type for node in nodes.values()} - {"MatMulInteger", "MatMulIntegerToFloat"}):
            message = f"{path}: the products of {', '.join(unknown)} cannot be computed with clamping"
            raise ArtifactError(message)
        self._products = {name: _Product(node, stored) for name, node in nodes.items()}
        self._outputs = [value.name for value in model.graph.output]
        self._steps = list(_steps(model, self._products))

    @property
    def products(self) -> int:
        """How many products are computed here."""
        return len(self._products)

    def run(self, feed: Mapping[str, NDArray[Any]], *, clamps: bool) -> dict[str, NDArray[Any]]:
        """Answer with the graph's outputs by name, computed as a CPU that clamps would, or as one that does not."""
        values: dict[str, NDArray[Any]] = dict(feed)
        counted = self.counted if clamps else Clamped()
        for step in self._steps:
            if step.session is not None:
                fed = {name: values[name] for name in step.inputs}
                values |= zip(step.outputs, step.session.run(list(step.outputs), fed), strict=True)
            for product in step.products:
                values[product.node.output[0]] = product.run(values, counted, clamps=clamps)
        return {name: values[name] for name in self._outputs}


def _optimized(path: Path, settings: ServingSettings) -> onnx.ModelProto:
    """Let onnxruntime rewrite a model as it does at load, up to what is the same for every CPU."""
    level = settings.graph_optimization_level
    if level in {OptimizationLevel.LAYOUT, OptimizationLevel.ALL}:
        level = OptimizationLevel.EXTENDED
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.__members__[level.value]
    options.log_severity_level = _ERRORS_ONLY
    with tempfile.TemporaryDirectory(prefix="harness-clamping-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            onnxruntime.InferenceSession(
                str(path),
                sess_options=options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(settings.disabled_optimizers) or None,
            )
            return onnx.load(options.optimized_model_filepath)
        except Exception as err:
            message = f"{path} cannot be rewritten by onnxruntime {onnxruntime.__version__}: {one_line(err)}"
            raise ArtifactError(message) from err


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write operators that hide a product as that product and what is done with it."""
    nodes = [made for number, node in enumerate(model.graph.node) for made in _written_out(node, number)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if not any(entry.domain == _MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    return model


def _written_out(node: onnx.NodeProto, number: int) -> list[onnx.NodeProto]:
    names = [*node.input, *[""] * 9]
    own = f"{node.name or node.op_type}_{number}_clamping"
    match node.op_type:
        case "DynamicQuantizeMatMul":
            activations, weights, scale, zero, bias = names[:5]
            made = [f"{own}_quantized", f"{own}_scale", f"{own}_zero"]
            factors = [made[0], weights, made[1], scale, made[2], zero, bias]
            return [
                helper.make_node("DynamicQuantizeLinear", [activations], made, name=f"{own}_quantize"),
                _to_float(factors, node.output[0], node.name),
            ]
        case "QLinearMatMul":
            factors = [names[0], names[3], names[1], names[4], names[2], names[5]]
            rounding = [own, names[6], names[7]]
            return [
                _to_float(factors, own, node.name),
                helper.make_node("QuantizeLinear", rounding, node.output, name=f"{own}_quantize"),
            ]
        case "QAttention":
            return _attention(node, names, own)
        case _:
            return [node]


def _attention(node: onnx.NodeProto, names: Sequence[str], own: str) -> list[onnx.NodeProto]:
    """Write QAttention as its product and MultiHeadAttention, which does what it does with the product."""
    factors = [names[0], names[1], names[3], names[4], names[6], names[7], names[2]]
    if names[8]:
        message = f"{node.name}: attention to earlier tokens cannot be computed with clamping"
        raise ArtifactError(message)
    parts = [f"{own}_{part}" for part in ("query", "key", "value")]
    kept = {"num_heads", "mask_filter_value", "unidirectional", "scale"}
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute if entry.name in kept}
    return [
        _to_float(factors, f"{own}_product", node.name),
        helper.make_node("Split", [f"{own}_product"], parts, name=f"{own}_split", axis=-1, num_outputs=3),
        helper.make_node(
            "MultiHeadAttention",
            [*parts, "", names[5]],
            node.output[:1],
            name=f"{own}_heads",
            domain=_MICROSOFT,
            **attributes,
        ),
    ]


def _to_float(factors: Sequence[str], output: str, name: str) -> onnx.NodeProto:
    while factors and not factors[-1]:
        factors = factors[:-1]
    return helper.make_node("MatMulIntegerToFloat", list(factors), [output], name=name, domain=_MICROSOFT)


@dataclass(frozen=True, slots=True)
class _Step:
    """A piece of the graph, run by onnxruntime, and the products that come next."""

    session: onnxruntime.InferenceSession | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    products: tuple[_Product, ...]


def _steps(model: onnx.ModelProto, products: Mapping[str, _Product]) -> Iterator[_Step]:
    """Cut a graph into pieces: the first holds what no product is needed for, the next what only that and products are."""
    levels = _levels(model, products)
    pieces = range(max(levels, default=0) + 1)
    nodes = list(zip(model.graph.node, levels, strict=True))
    inner = [[node for node, level in nodes if level == piece and node.output[0] not in products] for piece in pieces]
    made = {name: piece for piece in pieces for node in inner[piece] for name in node.output if name}
    own = [
        [products[node.output[0]] for node, level in nodes if level == piece and node.output[0] in products]
        for piece in pieces
    ]
    wanted = {value.name for value in model.graph.output}
    wanted |= {name for piece in own for product in piece for name in product.needs}
    wanted |= {
        name for piece in pieces for node in inner[piece] for name in node.input if made.get(name, piece) != piece
    }
    types = _types(model, sorted(wanted & set(made)))
    types |= {product.node.output[0]: _result_type(product) for product in products.values()}
    for piece in pieces:
        yield _step(model, inner[piece], own[piece], wanted, types)


def _levels(model: onnx.ModelProto, products: Mapping[str, _Product]) -> list[int]:
    """Count, for each node, the products that must be computed before it, one after another."""
    reached: dict[str, int] = {}
    levels = []
    for node in model.graph.node:
        level = max((reached.get(name, 0) for name in node.input), default=0)
        levels.append(level)
        reached |= dict.fromkeys(node.output, level + (node.output[0] in products))
    return levels


def _result_type(product: _Product) -> int:
    return int(onnx.TensorProto.FLOAT if product.node.op_type == "MatMulIntegerToFloat" else onnx.TensorProto.INT32)


def _types(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, int]:
    """Ask onnxruntime for the types of values, and of the graph's inputs."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = _session(watched)
    return {entry.name: _TYPES[entry.type] for entry in [*session.get_inputs(), *session.get_outputs()]}


def _step(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    products: Sequence[_Product],
    wanted: set[str],
    types: Mapping[str, int],
) -> _Step:
    if not nodes:
        return _Step(None, (), (), tuple(products))
    made = {name for node in nodes for name in node.output}
    used = {name for node in nodes for name in node.input}
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = sorted((used & set(types)) - made - stored)
    outputs = sorted(made & wanted)
    graph = helper.make_graph(
        list(nodes),
        "piece",
        [helper.make_tensor_value_info(name, types[name], None) for name in inputs],
        [helper.make_tensor_value_info(name, types[name], None) for name in outputs],
        [tensor for tensor in model.graph.initializer if tensor.name in used],
    )
    piece = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return _Step(_session(piece), tuple(inputs), tuple(outputs), tuple(products))


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Open a graph as it is: what onnxruntime rewrites, it has rewritten."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
