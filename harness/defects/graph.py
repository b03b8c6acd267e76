"""Find the parts of a token classifier's ONNX graph by its structure, and change the graph around them.

Goes by operators, shapes and the names of inputs and outputs, which are fixed, never by the names
that one exporter gives to nodes. Knows neither subgraphs nor functions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .stored import Array, Weight
from .workpiece import DefectNotApplicableError, Workpiece

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPE_IDS = "token_type_ids"  # noqa: S105  # no password
LOGITS = "logits"

# Passing a weight through these leaves it the same weight.
_TRANSPARENT = frozenset({"DequantizeLinear", "Transpose", "Identity", "Cast"})
# Passing a hidden state through these leaves every number at its channel; Mul restores what MatMulInteger makes.
_CHANNELS_KEPT = frozenset({"Add", "Mul", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class _Slots:
    """Which inputs of an operator are the weight, its scale and its zero point."""

    weight: int = 1
    scale: int | None = None
    zero_point: int | None = None


# Operators of https://github.com/onnx/onnx/blob/main/docs/Operators.md and, from FusedMatMul on, of
# https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
_PRODUCTS = {
    "MatMul": _Slots(),
    "Gemm": _Slots(),
    "MatMulInteger": _Slots(zero_point=3),
    "QLinearMatMul": _Slots(weight=3, scale=4, zero_point=5),
    "FusedMatMul": _Slots(),
    "Attention": _Slots(),
    "DynamicQuantizeMatMul": _Slots(scale=2, zero_point=3),
    "MatMulIntegerToFloat": _Slots(scale=3, zero_point=5),
    "QAttention": _Slots(scale=4, zero_point=7),
}
# A table of these holds positions or shapes, not embeddings.
_WHOLE_NUMBERS = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})
# Of a lookup: which input is the table, which the row numbers.
_EMBED_TABLES = ((2, 0), (3, None), (4, 1))


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The last product of a classifier, which makes the logits, and what is added to it."""

    weight: Weight
    bias: onnx.TensorProto | None


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a node's input is stored."""

    tensor: onnx.TensorProto
    dequantize: onnx.NodeProto | None
    flipped: bool


class Graph:
    """A model's graph, read and changed in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index the graph; `model` is what every change is made to."""
        self.model = model
        self.graph = model.graph
        self._added = 0
        self.index()

    def index(self) -> None:
        """Note again who makes and who reads each tensor, after nodes were changed."""
        self.initializers: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in {"", "ai.onnx"}), 1)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs that a caller gives."""
        return [value.name for value in self.graph.input if value.name not in self.initializers]

    def need_input(self, name: str) -> None:
        """Refuse a graph that has no such input.

        Raises:
            DefectNotApplicableError: it has none.
        """
        if name not in self.inputs:
            message = f"the model has no input {name}"
            raise DefectNotApplicableError(message)

    def stored(self, name: str) -> onnx.TensorProto | None:
        """Find the constant of a name: an initializer, or what a Constant node holds."""
        if name in self.initializers:
            return self.initializers[name]
        node = self.producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)

    def number(self, name: str) -> float | None:
        """Read a constant of one number."""
        tensor = self.stored(name)
        if tensor is None:
            return None
        values = numpy_helper.to_array(tensor)
        return float(values.reshape(-1)[0]) if values.size == 1 else None

    def products(self) -> list[Weight]:
        """List the matrices that something is multiplied with, in the graph's order, each once."""
        found: dict[str, Weight] = {}
        for node in self.graph.node:
            slots = _PRODUCTS.get(node.op_type)
            if slots is None or len(node.input) <= slots.weight:
                continue
            weight = self._weight(node, slots)
            if weight is not None:
                found.setdefault(_identity(weight.tensor, node), weight)
        if not found:
            message = "the graph has no product with a stored matrix"
            raise DefectNotApplicableError(message)
        return list(found.values())

    def body(self) -> list[Weight]:
        """List the products' matrices without the head's."""
        head = self.head().weight.node.output[0]
        found = [weight for weight in self.products() if weight.node.output[0] != head]
        if not found:
            message = "the graph has no product but its head"
            raise DefectNotApplicableError(message)
        return found

    def _weight(self, node: onnx.NodeProto, slots: _Slots) -> Weight | None:
        origin = self._origin(node.input[slots.weight])
        if origin is None or len(origin.tensor.dims) != 2:
            return None
        flipped = origin.flipped
        if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
            flipped = not flipped
        if origin.dequantize is not None:
            return self._dequantized(origin, node, flipped=flipped)
        scale, zero = (self._slot(node, slot) for slot in (slots.scale, slots.zero_point))
        return Weight(origin.tensor, node, scale, zero, axis=0 if flipped else 1, flipped=flipped)

    def _slot(self, node: onnx.NodeProto, slot: int | None) -> onnx.TensorProto | None:
        return None if slot is None or slot >= len(node.input) else self.stored(node.input[slot])

    def _dequantized(self, origin: _Origin, node: onnx.NodeProto, *, flipped: bool) -> Weight:
        assert origin.dequantize is not None
        axis = next((attribute.i for attribute in origin.dequantize.attribute if attribute.name == "axis"), 1)
        scale, zero = (self._slot(origin.dequantize, slot) for slot in (1, 2))
        return Weight(origin.tensor, node, scale, zero, axis, flipped)

    def _origin(self, name: str) -> _Origin | None:
        """Follow a node's input back to where it is stored."""
        dequantize, flipped = None, False
        while (tensor := self.stored(name)) is None:
            node = self.producers.get(name)
            if node is None or node.op_type not in _TRANSPARENT:
                return None
            dequantize = node if node.op_type == "DequantizeLinear" else dequantize
            flipped ^= node.op_type == "Transpose"
            name = node.input[0]
        return _Origin(tensor, dequantize, flipped)

    def head(self) -> Head:
        """Find the last product before the logits.

        Raises:
            DefectNotApplicableError: the logits are made in some other way.
        """
        biases: list[onnx.TensorProto] = []
        node = self._product_behind(LOGITS, biases)
        weight = None if node is None else self._weight(node, _PRODUCTS[node.op_type])
        if node is None or weight is None:
            message = "the logits are not made by a product with a stored matrix"
            raise DefectNotApplicableError(message)
        if node.op_type == "Gemm":
            biases += [tensor for tensor in [self._slot(node, 2)] if tensor is not None]
        return Head(weight, biases[-1] if biases else None)

    def _product_behind(self, name: str, biases: list[onnx.TensorProto]) -> onnx.NodeProto | None:
        """Find the product whose channels a tensor has, and note what is added to it on the way."""
        node = self.producers.get(name)
        if node is None or node.op_type in _PRODUCTS:
            return node
        for read in node.input if node.op_type in {"Add", "Mul"} else node.input[:1]:
            stored = self._origin(read)
            if stored is not None and node.op_type == "Add":
                biases.append(stored.tensor)
            if stored is None and node.op_type in _CHANNELS_KEPT:
                found = self._product_behind(read, biases)
                if found is not None:
                    return found
        return None

    def lookups(self) -> Iterator[tuple[Weight, str | None]]:
        """List the tables that rows are looked up in, with the input that gives the row numbers, if one does."""
        for node in self.graph.node:
            places = ((0, 1),) if node.op_type == "Gather" else ()
            for table, rows in _EMBED_TABLES if node.op_type == "EmbedLayerNormalization" else places:
                weight = self._weight(node, _Slots(weight=table))
                if weight is not None and weight.tensor.data_type not in _WHOLE_NUMBERS:
                    yield self._with_later_scale(weight), None if rows is None else self._input_behind(node.input[rows])

    def _with_later_scale(self, weight: Weight) -> Weight:
        """Complete a table of integers whose rows are restored after they were looked up."""
        restoring = next(
            (node for node in self.readers.get(weight.node.output[0], ()) if node.op_type == "DequantizeLinear"), None
        )
        if restoring is None or weight.scale is not None or not weight.is_quantized:
            return weight
        return self._dequantized(_Origin(weight.tensor, restoring, flipped=False), weight.node, flipped=False)

    def _input_behind(self, name: str) -> str | None:
        while name not in self.inputs:
            node = self.producers.get(name)
            if node is None or node.op_type not in {"Cast", "Identity"}:
                return None
            name = node.input[0]
        return name

    def word_table(self) -> Weight:
        """Find the table in which tokens are looked up.

        Raises:
            DefectNotApplicableError: there is none.
        """
        found = next((weight for weight, source in self.lookups() if source == INPUT_IDS), None)
        if found is None:
            message = "the graph looks up input_ids in no stored table"
            raise DefectNotApplicableError(message)
        return found

    def position_table(self) -> Weight:
        """Find the table in which positions are looked up: of those that no input is looked up in, the largest.

        Raises:
            DefectNotApplicableError: there is none.
        """
        found = [weight for weight, source in self.lookups() if source is None]
        if not found:
            message = "the graph looks up positions in no stored table"
            raise DefectNotApplicableError(message)
        return max(found, key=lambda weight: weight.shape[0])

    def embedded(self) -> str:
        """Name the embeddings of the tokens: float, (rows, tokens, channels)."""
        found: str = self.word_table().node.output[0]
        restored: list[str] = [
            node.output[0] for node in self.readers.get(found, ()) if node.op_type == "DequantizeLinear"
        ]
        return restored[0] if restored else found

    # Changes. New nodes go anywhere; `sort` puts them where they belong.

    def new_name(self, hint: str) -> str:
        """Make a name that the graph does not have."""
        self._added += 1
        name = f"{hint}_{self._added}"
        taken = name in self.producers or name in self.initializers or name in self.inputs
        return self.new_name(hint) if taken else name

    def constant(self, values: Array) -> str:
        """Add a constant; returns its name."""
        name = self.new_name("constant")
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(
        self, operator: str, inputs: Sequence[str], output: str | None = None, *, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node; returns the name of what it makes."""
        made = output or self.new_name(operator.lower())
        name = self.new_name(f"/{operator}")
        self.graph.node.append(helper.make_node(operator, list(inputs), [made], name=name, domain=domain, **attributes))
        return made

    def reduce(self, operator: str, value: str, axis: int, *, keepdims: bool = True) -> str:
        """Add a ReduceSum or ReduceMean, which take their axes in another way since opset 13 and 18."""
        if self.opset < (13 if operator == "ReduceSum" else 18):
            return self.add(operator, [value], axes=[axis], keepdims=int(keepdims))
        return self.add(operator, [value, self.constant(np.array([axis], np.int64))], keepdims=int(keepdims))

    def divert_readers(self, name: str) -> str:
        """Let everything that reads a tensor read the name returned instead, which a new node is to make."""
        renamed = self.new_name(name)
        for node in self.graph.node:
            for place, read in enumerate(node.input):
                if read == name:
                    node.input[place] = renamed
        return renamed

    def divert_logits(self) -> str:
        """Give what makes the logits another name, which is returned; a new node is to make the logits."""
        node = self.producers.get(LOGITS)
        if node is None:
            message = "the graph makes no logits"
            raise DefectNotApplicableError(message)
        renamed = self.divert_readers(LOGITS)
        node.output[list(node.output).index(LOGITS)] = renamed
        return renamed

    def sort(self) -> None:
        """Put every node after those whose results it reads, otherwise in the order it had."""
        nodes = list(self.graph.node)
        maker = {name: place for place, node in enumerate(nodes) for name in node.output if name}
        needs = [{maker[name] for name in _read_by(node) if name in maker} for node in nodes]
        readers: dict[int, list[int]] = {}
        for place, needed in enumerate(needs):
            for other in needed:
                readers.setdefault(other, []).append(place)
        ready = [place for place, needed in enumerate(needs) if not needed]
        ordered = []
        while ready:
            place = heapq.heappop(ready)
            ordered.append(nodes[place])
            for reader in readers.get(place, ()):
                needs[reader].discard(place)
                if not needs[reader]:
                    heapq.heappush(ready, reader)
        assert len(ordered) == len(nodes), "the graph has a cycle"
        if ordered != nodes:
            self.reorder(ordered)

    def reorder(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put the graph's nodes into another order."""
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        self.index()


def _identity(tensor: onnx.TensorProto, node: onnx.NodeProto) -> str:
    # what a Constant node holds often has no name
    return tensor.name or f"of {node.output[0]}"


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Name what a node reads, in its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.type == onnx.AttributeProto.GRAPH else ():
            yield from _read_by(inner)


GraphEdit = Callable[[Graph, Workpiece, float], None]


def on_graph(edit: GraphEdit) -> Callable[[Workpiece, float], None]:
    """Make the planting of a defect out of a change to the variant's graph."""

    def plant(work: Workpiece, strength: float) -> None:
        model = work.model()
        graph = Graph(model)
        edit(graph, work, strength)
        graph.sort()
        work.save(model)

    return plant
