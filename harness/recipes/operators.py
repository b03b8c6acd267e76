"""Write a quantized graph in onnxruntime's own integer operators, with static scales.

QuantizeLinear once for each activation, then MatMulIntegerToFloat or QAttention, which give floats back: nothing is
left for a session to fuse when it loads the file. With scales that are stored, a query's answer does not depend on its
batch. What an activation is divided by before it is rounded costs an operator, except between attention and the
product after it: there it goes into the values' weights.

A product may scale its activations row by row instead: by the token's own largest value, so again by nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from harness.instruction_sets import WeightRange
from harness.onnx_values import integer_attribute, opset_of, producers
from harness.recipes.fusion import CONTRIBUTED
from harness.recipes.observation import Observation, Range
from harness.recipes.positions import prune
from harness.recipes.recipe import Embeddings, Recipe
from harness.recipes.rounding import RoundedWeights, Rounder, round_columns
from harness.recipes.sites import (
    Operator,
    Site,
    find_sites,
    is_large_table,
    name_nodes,
    stored,
    use_counts,
    values_of,
)
from harness.recipes.smoothing import divisors

_SMALLEST_SCALE = 1e-8
# Of 255 levels, those for negative values in rows that are hardly negative (what Gelu returns).
_NEGATIVE_LEVELS = 37
_MIDDLE = 128
_SIGNED, _UNSIGNED = "QInt8", "QUInt8"
_LEVELS = 255
# The least value that an operator can give, rounded down. Gelu's is -.16997, and -.17004 by the tanh approximation.
_LEAST_GIVEN = {"Gelu": -0.1701, "BiasGelu": -0.1701, "FastGelu": -0.1701, "Relu": 0.0}
# Since this version of onnx's operators, ReduceMax takes its axes as an input.
_AXES_AS_INPUT = 18


def quantize_operators(
    model: onnx.ModelProto, recipe: Recipe, observed: Mapping[str, Observation], rounder: Rounder
) -> onnx.ModelProto:
    """Quantize a fused FP32 graph.

    Args:
        model: the graph.
        recipe: how; of the form `Form.OPERATORS`.
        observed: what calibration queries do with the input of each product; see `observe`.
        rounder: rounds the weights, and remembers those of the recipes before.

    Returns:
        A graph of its own.
    """
    return _Writer(model, recipe, observed, rounder).written()


class _Writer:
    """The graph that is being written."""

    def __init__(
        self, model: onnx.ModelProto, recipe: Recipe, observed: Mapping[str, Observation], rounder: Rounder
    ) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        name_nodes(self._model)
        self._recipe = recipe
        self._observed = observed
        self._rounder = rounder
        self._stored = stored(self._model)
        self._uses = use_counts(self._model)
        self._makers = producers(self._model)
        self._outputs = {output.name for output in self._model.graph.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in self._model.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._sites = {site.name: site for site in find_sites(self._model) if site.name not in recipe.float_sites}
        self._weights = {site.name: values_of(self._stored[site.weight]) for site in self._sites.values()}
        self._biases: dict[str, NDArray[np.float32]] = {}
        self._divisors: dict[str, NDArray[np.float32]] = {}
        self._divided_before: set[str] = set()
        self._quantized: dict[tuple[str, str], tuple[str, str, str]] = {}
        self._smoothed: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._absorbed: set[str] = set()

    def written(self) -> onnx.ModelProto:
        self._smooth()
        for node in list(self._model.graph.node):
            self._write(node)
        graph = self._model.graph
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
        del graph.node[:]
        graph.node.extend(nodes)
        prune(self._model)
        if all(entry.domain != CONTRIBUTED for entry in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
        return self._model

    # -- smoothing -----------------------------------------------------------------------------------------------------

    def _smooth(self) -> None:
        """Choose what each activation is divided by, and multiply the weights by it."""
        if not self._recipe.migration:
            return
        for activation, sites in self._by_activation().items():
            if any(site.name in self._recipe.row_sites for site in sites):
                continue
            largest = self._observed[activation].largest
            found = divisors(largest, [self._weights[site.name] for site in sites], self._recipe.migration)
            self._divisors[activation] = found
            for site in sites:
                self._weights[site.name] = self._weights[site.name] * found[:, None]
            self._divide_values(activation, found, len(sites))

    def _by_activation(self) -> dict[str, list[Site]]:
        found: dict[str, list[Site]] = {}
        for site in self._sites.values():
            found.setdefault(site.activation, []).append(site)
        return found

    def _divide_values(self, activation: str, by: NDArray[np.float32], uses: int) -> None:
        """Divide what attention returns where it costs nothing: in the weights of its values, whose order it keeps."""
        maker = self._makers.get(activation)
        if maker is None or maker.name not in self._sites or self._is_read_elsewhere(activation, uses):
            return
        if self._sites[maker.name].operator is not Operator.ATTENTION or maker.input[2] not in self._stored:
            return
        weights, bias = self._weights[maker.name], values_of(self._stored[maker.input[2]])
        if weights.shape[1] != 3 * len(by):
            return
        packed = np.concatenate([np.ones(2 * len(by), np.float32), 1 / by])
        self._weights[maker.name] = weights * packed
        self._biases[maker.name] = bias * packed
        self._divided_before.add(activation)

    def _is_read_elsewhere(self, name: str, uses: int) -> bool:
        return self._uses[name] != uses or name in self._outputs

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _write(self, node: onnx.NodeProto) -> None:
        site = self._sites.get(node.name)
        if node.output[0] in self._absorbed:
            return
        if site is None:
            self._write_unquantized(node)
        elif site.name in self._recipe.row_sites and site.operator is Operator.MATMUL:
            self._write_rows(node, site)
        elif site.operator is Operator.ATTENTION:
            self._write_attention(node, site)
        else:
            self._write_product(node, site)

    def _write_unquantized(self, node: onnx.NodeProto) -> None:
        table = self._stored.get(node.input[0]) if node.op_type in {"Gather", "Slice"} else None
        if table is not None and self._recipe.embeddings is not Embeddings.FLOAT and self._gives_rows(node, table):
            self._write_table(node, values_of(table))
        else:
            self._nodes.append(node)

    def _gives_rows(self, node: onnx.NodeProto, table: onnx.TensorProto) -> bool:
        """Tell whether a node takes whole rows out of a large table that nothing else reads."""
        if not is_large_table(table) or self._uses[table.name] != 1:
            return False
        if node.op_type == "Gather":
            return integer_attribute(node, "axis") == 0
        axes = self._stored.get(node.input[3]) if len(node.input) > 3 else None
        return axes is not None and not numpy_helper.to_array(axes).any()

    def _write_product(self, node: onnx.NodeProto, site: Site) -> None:
        values, scale, zero_point = self._activation(site.activation, self._recipe.activations)
        weights, scales, weights_zero = self._stored_weights(site)
        bias, output = self._bias_after(node)
        inputs = [values, weights, scale, scales, zero_point, weights_zero, bias]
        self._add("MatMulIntegerToFloat", _trimmed(inputs), output, site.name, domain=CONTRIBUTED)

    def _write_attention(self, node: onnx.NodeProto, site: Site) -> None:
        # onnxruntime's QAttention for CPUs takes no signed activations
        values, scale, zero_point = self._activation(site.activation, _UNSIGNED)
        weights, scales, weights_zero = self._stored_weights(site)
        bias = (
            self._constant(f"{site.name}.bias", self._biases[site.name]) if site.name in self._biases else node.input[2]
        )
        mask = node.input[3] if len(node.input) > 3 else ""
        inputs = [values, weights, bias, scale, scales, mask, zero_point, weights_zero]
        self._add("QAttention", _trimmed(inputs), node.output[0], site.name, domain=CONTRIBUTED)
        self._nodes[-1].attribute.extend(node.attribute)

    def _write_rows(self, node: onnx.NodeProto, site: Site) -> None:
        """Scale each token by its own largest value, multiply, and scale back.

        What Gelu returns is never below -.17, whatever was seen of it, so such rows need no levels for as much below 0
        as above; the divisor is never so small that -.17 would be cut off.
        """
        name = site.name
        least_given = self._least_given(site.activation)
        zero = _MIDDLE if least_given is None else _NEGATIVE_LEVELS
        floor = -(least_given or 0.0) * (_LEVELS - zero) / zero
        divisor = self._row_divisor(site, max(floor, _SMALLEST_SCALE), signed=least_given is None)
        divided = self._add("Div", [site.activation, divisor], f"{name}.divided", f"{name}/Div")
        scale = self._constant(f"{name}.row_scale", np.float32(1 / (_LEVELS - zero)))
        zero_point = self._constant(f"{name}.row_zero_point", np.uint8(zero))
        values = self._add("QuantizeLinear", [divided, scale, zero_point], f"{name}.rounded", f"{name}/Quantize")
        weights, scales, weights_zero = self._stored_weights(site)
        inputs = _trimmed([values, weights, scale, scales, zero_point, weights_zero])
        product = self._add("MatMulIntegerToFloat", inputs, f"{name}.product", name, domain=CONTRIBUTED)
        self._add("Mul", [product, divisor], node.output[0], f"{name}/Mul")

    def _least_given(self, activation: str) -> float | None:
        """Tell the least value that a tensor can have, if its operator sets one that is small beside what was seen."""
        maker = self._makers.get(activation)
        least = None if maker is None else _LEAST_GIVEN.get(maker.op_type)
        seen = self._observed[activation].range(self._recipe.calibration)
        return least if least is not None and -least < seen.high * _NEGATIVE_LEVELS / _LEVELS else None

    def _row_divisor(self, site: Site, floor: float, *, signed: bool) -> str:
        """Write the largest value of each row, or the largest size where values may be as far below 0."""
        name, sized = site.name, site.activation
        if signed:
            sized = self._add("Abs", [sized], f"{name}.sizes", f"{name}/Abs")
        if opset_of(self._model) < _AXES_AS_INPUT:
            largest = self._add("ReduceMax", [sized], f"{name}.largest", f"{name}/ReduceMax", keepdims=1, axes=[-1])
        else:
            axes = self._constant(f"{name}.last", np.array([-1], np.int64))
            largest = self._add("ReduceMax", [sized, axes], f"{name}.largest", f"{name}/ReduceMax", keepdims=1)
        least = self._constant(f"{name}.least", np.float32(floor))
        return self._add("Max", [largest, least], f"{name}.divisor", f"{name}/Max")

    def _write_table(self, node: onnx.NodeProto, table: NDArray[np.float32]) -> None:
        per_channel = self._recipe.embeddings is Embeddings.COLUMNS
        rounded = round_columns(table, per_channel=per_channel)
        name = node.input[0]
        inputs = [self._constant(f"{name}.values", rounded.values), *node.input[1:]]
        looked_up = self._add(node.op_type, inputs, f"{node.output[0]}.values", node.name or f"{name}/{node.op_type}")
        self._nodes[-1].attribute.extend(node.attribute)
        scales = self._constant(f"{name}.scales", rounded.scales)
        if per_channel:
            # DequantizeLinear takes scales along the last axis one value at a time
            cast = self._add("Cast", [looked_up], f"{node.output[0]}.floats", f"{name}/Cast", to=onnx.TensorProto.FLOAT)
            self._add("Mul", [cast, scales], node.output[0], f"{name}/Mul")
        else:
            zero_point = self._constant(f"{name}.zero_point", np.int8(0))
            self._add("DequantizeLinear", [looked_up, scales, zero_point], node.output[0], f"{name}/Dequantize")

    # -- their parts ---------------------------------------------------------------------------------------------------

    def _activation(self, name: str, kind: str) -> tuple[str, str, str]:
        """Round an activation, once for all products that it goes into; name it, its scale and its zero point."""
        if (name, kind) not in self._quantized:
            self._quantized[name, kind] = self._round_activation(name, kind)
        return self._quantized[name, kind]

    def _round_activation(self, name: str, kind: str) -> tuple[str, str, str]:
        source, by = name, self._divisors.get(name)
        if by is not None and name not in self._divided_before:
            factors = self._constant(f"{name}.smoothing", (1 / by).astype(np.float32))
            source = f"{name}.smoothed"
            if source not in self._smoothed:
                self._smoothed.add(self._add("Mul", [name, factors], source, f"{name}/Smooth"))
        scale, zero_point = _levels(self._observed[name].range(self._recipe.calibration, by), kind)
        # an activation may go into products that take it signed, and into others that do not
        scaled = f"{name}.{kind}"
        inputs = [source, self._constant(f"{scaled}.scale", scale), self._constant(f"{scaled}.zero_point", zero_point)]
        return self._add("QuantizeLinear", inputs, scaled, f"{name}/{kind}"), inputs[1], inputs[2]

    def _stored_weights(self, site: Site) -> tuple[str, str, str]:
        rounded = self._rounded(site)
        weights = self._constant(f"{site.name}.weight", rounded.values)
        scales = self._constant(f"{site.name}.weight_scale", rounded.scales)
        if rounded.zero_point == 0:
            return weights, scales, ""
        return weights, scales, self._constant(f"{site.name}.weight_zero_point", np.uint8(rounded.zero_point))

    def _rounded(self, site: Site) -> RoundedWeights:
        unsigned = self._recipe.weights == _UNSIGNED
        # unsigned weights meet kernels that widen before they multiply; there is nothing to keep in range
        weight_range = WeightRange.FULL if unsigned else self._recipe.weight_range
        return self._rounder(
            self._weights[site.name],
            weight_range,
            per_channel=self._recipe.per_channel,
            unsigned=unsigned,
            moments=self._moments(site.activation) if self._recipe.compensated else None,
        )

    def _moments(self, activation: str) -> NDArray[np.float32]:
        moments, by = self._observed[activation].moments, self._divisors.get(activation)
        return moments if by is None else np.asarray(moments / np.outer(by, by), np.float32)

    def _bias_after(self, node: onnx.NodeProto) -> tuple[str, str]:
        """Take in the addition of a bias that follows; give the bias and the name of the sum."""
        users = self._users.get(node.output[0], [])
        if len(users) == 1 and users[0].op_type == "Add" and node.output[0] not in self._outputs:
            size = self._stored[node.input[1]].dims[1]
            for name in users[0].input:
                if name in self._stored and list(self._stored[name].dims) == [size]:
                    self._absorbed.add(users[0].output[0])
                    return name, users[0].output[0]
        return "", node.output[0]

    def _add(self, operator: str, inputs: Sequence[str], output: str, name: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(operator, list(inputs), [output], name, **attributes))  # type: ignore[arg-type]
        return output

    def _constant(self, name: str, value: object) -> str:
        """Store a value under a name of its own, even if the graph stores something else under it."""
        tensor = numpy_helper.from_array(np.asarray(value), name)
        if name in self._stored:
            if self._stored[name] == tensor:
                return name
            return self._constant(f"{name}_", value)
        self._model.graph.initializer.append(tensor)
        self._stored[name] = tensor
        return name


def _levels(seen: Range, kind: str) -> tuple[np.float32, np.uint8 | np.int8]:
    """Spread 8 bits over a range: give the scale and the zero point."""
    if kind == _SIGNED:
        size = max(-seen.low, seen.high)
        return np.float32(max(size / (_MIDDLE - 1), _SMALLEST_SCALE)), np.int8(0)
    scale = max((seen.high - seen.low) / _LEVELS, _SMALLEST_SCALE)
    return np.float32(scale), np.uint8(np.clip(round(-seen.low / scale), 0, _LEVELS))


def _trimmed(inputs: Sequence[str]) -> list[str]:
    """Leave out absent inputs at the end."""
    kept = list(inputs)
    while kept and not kept[-1]:
        kept.pop()
    return kept
