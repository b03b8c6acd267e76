"""A smaller graph: weights in 4 or 8 bits, in blocks that share a scale, activations in float between the products.

Products with constant weights become MatMulNBits, attention nodes are parted into such a product and the attention
itself, and tables of embeddings become GatherBlockQuantized (onnxruntime's contributed operators, docs/ContribOperators.md
in microsoft/onnxruntime). A product scales its inputs by row and block, never by batch, so batch mates and padding
cannot change an answer. It neither fuses a graph nor judges the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from harness.onnx_run import Feed, answers, inner_values
from harness.onnx_values import constants, integer_attribute, producers
from harness.recipes.block_rounding import Rounded, pack, round_compensated, round_nearest

Moments = Mapping[str, NDArray[np.float32]]

_DOMAIN = "com.microsoft"
# MatMulNBits, attribute accuracy_level: inputs are rounded to 8 bits by row and block, the fastest on CPUs.
_EIGHT_BIT_INPUTS = 4
# Sums are taken over the rows of so many queries at a time: one by one takes twenty times as long.
_FEEDS_AT_ONCE = 100
# What `--target size` asks for, and the blocks of tables that are tried for it, the most exact first.
SIZE_SHARE = 0.16
_SIZE_TABLE_BLOCKS = (32, 64, 128)
# The largest block of 4 bits whose kernel gives a row the same answer to the last bit whatever rows stand beside it
# (onnxruntime 1.32 on AVX-512). With blocks of 64 it differs by 1e-6, which rounding inputs to 8 bits makes .09 in
# the logits of a six-layer model.
_INVARIANT_BLOCK = 32
_BITS = (4, 8)
# What both operators take; MatMulNBits has no fast kernel for larger ones.
_BLOCK_SIZES = (16, 32, 64, 128)
# A table of token types is too small to save anything.
_FEWEST_ROWS = 64
# Inputs x, weights, bias and mask; the others hold a past or biases of their own.
_PLAIN_ATTENTION_INPUTS = 4
_ATTENTION_ATTRIBUTES = frozenset({"num_heads", "mask_filter_value", "scale", "unidirectional"})


@dataclass(frozen=True, slots=True)
class Blocks:
    """In how many bits, and in which blocks, a graph stores its weights.

    Attributes:
        bits: of a weight of a product: 4 or 8.
        block_size: input channels of a product that share a scale: a power of two from 16.
        embedding_bits: of a value of a table: 4 or 8.
        embedding_block: columns of a table that share a scale.
        eight_bit_nodes: products and lookups that are stored in 8 bits whatever `bits` says.
        float_nodes: products and lookups that stay in FP32.
    """

    bits: int
    block_size: int
    embedding_bits: int
    embedding_block: int
    eight_bit_nodes: tuple[str, ...] = ()
    float_nodes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what the operators cannot read."""
        for bits in (self.bits, self.embedding_bits):
            if bits not in _BITS:
                message = f"weights cannot be stored in {bits} bits. Take one of {_BITS}."
                raise ValueError(message)
        for size in (self.block_size, self.embedding_block):
            if size not in _BLOCK_SIZES:
                message = f"there are no blocks of {size}. Take one of {_BLOCK_SIZES}."
                raise ValueError(message)


def weight_nodes(model: onnx.ModelProto) -> list[str]:
    """Name the products and lookups that `quantize_blocks` can store in blocks, in order of the graph."""
    known = constants(model)
    return [_name(node) for node in model.graph.node if _is_product(node, known) or _is_lookup(node, known)]


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _is_product(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node multiplies an activation with constant weights."""
    weights = known.get(node.input[1]) if len(node.input) > 1 else None
    if weights is None or len(weights.dims) != 2 or weights.data_type != TensorProto.FLOAT:
        return False
    return node.op_type == "MatMul" or (node.op_type == "Attention" and _is_plain_attention(node))


def _is_plain_attention(node: onnx.NodeProto) -> bool:
    """Whether inputs and attributes of an Attention node mean to MultiHeadAttention what they mean to it."""
    plain = len([name for name in node.input if name]) == len(node.input) <= _PLAIN_ATTENTION_INPUTS
    kept = all(attribute.name in _ATTENTION_ATTRIBUTES for attribute in node.attribute)
    return node.domain == _DOMAIN and plain and kept and len(node.output) == 1


def _is_lookup(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node takes rows of a constant table that is worth storing otherwise."""
    table = known.get(node.input[0]) if node.op_type == "Gather" else None
    if table is None or len(table.dims) != 2 or table.data_type != TensorProto.FLOAT:
        return False
    return integer_attribute(node, "axis") == 0 and table.dims[0] >= _FEWEST_ROWS


def observe_moments(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, NDArray[np.float32]]:
    """Run an FP32 graph on real queries and add up X^T X of every product's inputs X.

    Args:
        model: an FP32 graph with its weights inside.
        feeds: model input of real queries, one query each, so that no padding is counted.

    Returns:
        By name of the input: float32, (channels, channels).
    """
    known = constants(model)
    names = list(dict.fromkeys(node.input[0] for node in model.graph.node if _is_product(node, known)))
    moments: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(feeds), _FEEDS_AT_ONCE):
        seen = list(inner_values(model, names, feeds[start : start + _FEEDS_AT_ONCE]))
        for name in names:
            rows = np.concatenate([values[name].reshape(-1, values[name].shape[-1]) for values in seen])
            moments[name] = moments.get(name, np.float32(0)) + rows.T @ rows
    return moments


def quantize_blocks(model: onnx.ModelProto, blocks: Blocks, moments: Moments | None = None) -> onnx.ModelProto:
    """Write a graph whose weights are stored in blocks.

    A product or table that is narrower than a block is left as it is.

    Args:
        model: an FP32 graph with its weights inside, plain or fused by onnxruntime's transformers optimizer.
        blocks: how weights are stored.
        moments: see `observe_moments`; with them, weights are rounded so that a product's outputs change least.
            They cost nothing at run time.

    Returns:
        A new model; `model` is not changed.

    Raises:
        ValueError: `blocks` names a node that the graph does not have, or has and cannot store in blocks.
    """
    _check_names(model, blocks)
    writer = _Writer(model, blocks, moments or {})
    nodes = [made for node in model.graph.node for made in writer.replace(node)]
    return _with_nodes(model, nodes, writer.tensors)


def _check_names(model: onnx.ModelProto, blocks: Blocks) -> None:
    unknown = {*blocks.eight_bit_nodes, *blocks.float_nodes} - set(weight_nodes(model))
    if unknown:
        message = f"the graph has no product or table named {min(unknown)!r}. Take names from weight_nodes."
        raise ValueError(message)


class _Writer:
    """Writes the nodes that stand for one, and keeps what they store."""

    def __init__(self, model: onnx.ModelProto, blocks: Blocks, moments: Moments) -> None:
        self._known = constants(model)
        self._blocks = blocks
        self._moments = moments
        self.tensors: dict[str, onnx.TensorProto] = {}

    def replace(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Write what stands for a node: the node itself where it stays in FP32."""
        if _name(node) in self._blocks.float_nodes:
            return [node]
        if _is_lookup(node, self._known):
            return self._lookup(node)
        if not _is_product(node, self._known):
            return [node]
        return self._attention(node) if node.op_type == "Attention" else self._product(node)

    def _lookup(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        table = self._known[node.input[0]]
        bits = 8 if _name(node) in self._blocks.eight_bit_nodes else self._blocks.embedding_bits
        size = self._blocks.embedding_block
        if table.dims[1] < size or table.dims[1] % (8 // bits):
            return [node]
        name = f"{table.name}_{bits}bits"
        if name not in self.tensors:
            rounded = round_nearest(numpy_helper.to_array(table), bits, size)
            # a table's codes are as wide as the table, without what fills the last block
            self._store(name, pack(rounded.codes[:, : rounded.channels], bits))
            self._store_scales(name, rounded, np.float16)
        half = f"{node.output[0]}_half"
        return [
            helper.make_node(
                "GatherBlockQuantized",
                [name, node.input[1], f"{name}_scales", f"{name}_zero_points"],
                [half],
                name=_name(node),
                domain=_DOMAIN,
                bits=bits,
                block_size=size,
                gather_axis=0,
                quantize_axis=1,
            ),
            helper.make_node("Cast", [half], list(node.output), name=f"{_name(node)}/Cast", to=TensorProto.FLOAT),
        ]

    def _product(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if self._known[node.input[1]].dims[0] < self._blocks.block_size:
            return [node]
        return [self._matmul(node, node.output[0], "")]

    def _attention(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Part an attention into the product that makes queries, keys and values, and what it does with them."""
        weights = self._known[node.input[1]]
        if weights.dims[0] < self._blocks.block_size:
            return [node]
        packed, parts = f"{node.output[0]}_qkv", [f"{node.output[0]}_{part}" for part in ("query", "key", "value")]
        sizes = f"{_name(node)}_sizes"
        self._store(sizes, np.full(len(parts), weights.dims[1] // len(parts), np.int64))
        attention = helper.make_node(
            "MultiHeadAttention",
            [*parts, "", *node.input[3:]],
            list(node.output),
            name=f"{_name(node)}/MultiHeadAttention",
            domain=_DOMAIN,
        )
        attention.attribute.extend(node.attribute)
        return [
            self._matmul(node, packed, node.input[2]),
            helper.make_node("Split", [packed, sizes], parts, name=f"{_name(node)}/Split", axis=-1),
            attention,
        ]

    def _matmul(self, node: onnx.NodeProto, output: str, bias: str) -> onnx.NodeProto:
        weights = self._known[node.input[1]]
        bits = 8 if _name(node) in self._blocks.eight_bit_nodes else self._blocks.bits
        stored = f"{weights.name}_{bits}bits"
        if stored not in self.tensors:
            rounded = self._rounded(numpy_helper.to_array(weights).T, self._moments.get(node.input[0]), bits)
            codes = rounded.codes.reshape(len(rounded.codes), -1, rounded.block_size)
            self._store(stored, pack(codes, bits))
            self._store_scales(stored, rounded, np.float32)
        inputs = [node.input[0], stored, f"{stored}_scales", f"{stored}_zero_points", *(["", bias] if bias else [])]
        return helper.make_node(
            "MatMulNBits",
            inputs,
            [output],
            name=_name(node),
            domain=_DOMAIN,
            K=weights.dims[0],
            N=weights.dims[1],
            bits=bits,
            block_size=self._blocks.block_size,
            accuracy_level=_EIGHT_BIT_INPUTS,
        )

    def _rounded(self, rows: NDArray[np.float32], moments: NDArray[np.float32] | None, bits: int) -> Rounded:
        if moments is None:
            return round_nearest(rows, bits, self._blocks.block_size)
        return round_compensated(rows, moments, bits, self._blocks.block_size)

    def _store_scales(self, name: str, rounded: Rounded, kind: type[np.floating]) -> None:
        self._store(f"{name}_scales", rounded.scales.astype(kind))
        self._store(f"{name}_zero_points", pack(rounded.zero_points, rounded.bits))

    def _store(self, name: str, values: NDArray[Any]) -> None:
        self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)


def _with_nodes(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, onnx.TensorProto]
) -> onnx.ModelProto:
    """Write a model with other nodes, and of all stored tensors those that they use."""
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = helper.make_graph(
        nodes, model.graph.name, model.graph.input, model.graph.output, [*kept, *tensors.values()]
    )
    made = helper.make_model(graph, opset_imports=_opsets(model), ir_version=model.ir_version)
    made.producer_name = model.producer_name
    return made


def _opsets(model: onnx.ModelProto) -> list[onnx.OperatorSetIdProto]:
    given = list(model.opset_import)
    return given if any(entry.domain == _DOMAIN for entry in given) else [*given, helper.make_opsetid(_DOMAIN, 1)]


def size_blocks(
    model: onnx.ModelProto, feeds: Sequence[Feed], moments: Moments | None = None, budget_share: float = SIZE_SHARE
) -> Blocks:
    """Choose blocks for a small file: 4 bits everywhere, and 8 where they help the answers most, while the budget lasts.

    The products that make the answers stay in FP32. How much 8 bits help a product is measured: the squared change of
    the logits when it alone is stored in 4 bits.

    Args:
        model: an FP32 graph with its weights inside.
        feeds: model input of real queries, one query each; a hundred do.
        moments: those with which the weights will be rounded; the products that profit from 8 bits are others with them.
        budget_share: size of the file, as a share of the FP32 file's.

    Raises:
        ValueError: not even the largest blocks fit.
    """
    full = model.ByteSize()
    answering = _answering_products(model)
    for size in _SIZE_TABLE_BLOCKS:
        blocks = Blocks(4, _INVARIANT_BLOCK, 4, size, float_nodes=answering)
        needed = quantize_blocks(model, blocks).ByteSize()
        left = int(budget_share * full) - needed
        if left >= 0:
            return replace(blocks, eight_bit_nodes=_worth_eight_bits(model, feeds, moments, blocks, left))
    message = f"the model cannot be stored in {budget_share:.3f} of its size. Allow {math.ceil(needed / full * 1000) / 1000:.3f}."
    raise ValueError(message)


def _worth_eight_bits(
    model: onnx.ModelProto, feeds: Sequence[Feed], moments: Moments | None, blocks: Blocks, left: int
) -> tuple[str, ...]:
    """Take nodes by what 8 bits change for the better in the answers, per byte, as long as they fit."""
    extra = {name: size for name, size in _extra_bytes(model, blocks).items() if size <= left}
    true = answers(model, feeds)
    gains = {}
    for name, size in extra.items():
        found = answers(quantize_blocks(model, _only(model, blocks, name), moments), feeds)
        changes = [np.square(one - other).mean() for one, other in zip(found, true, strict=True)]
        gains[name] = float(np.mean(changes)) / size
    chosen = []
    for name in sorted(extra, key=lambda name: (-gains[name], name)):
        if extra[name] <= left:
            chosen.append(name)
            left -= extra[name]
    return tuple(chosen)


def _extra_bytes(model: onnx.ModelProto, blocks: Blocks) -> dict[str, int]:
    """Count what each node takes more in 8 bits than in 4: half a byte for each weight and each zero point."""
    known = constants(model)
    extra = {}
    for node in model.graph.node:
        product = _is_product(node, known)
        if _name(node) in blocks.float_nodes or not (product or _is_lookup(node, known)):
            continue
        channels, rows = known[node.input[1]].dims if product else reversed(known[node.input[0]].dims)
        size = blocks.block_size if product else blocks.embedding_block
        if channels >= size:
            extra[_name(node)] = rows * (size + 1) * -(-channels // size) // 2 + rows
    return extra


def _only(model: onnx.ModelProto, blocks: Blocks, name: str) -> Blocks:
    """Store one node alone in blocks."""
    return replace(blocks, float_nodes=tuple(other for other in weight_nodes(model) if other != name))


def _answering_products(model: onnx.ModelProto) -> tuple[str, ...]:
    """Name the last product before each output of the graph."""
    made_by, known = producers(model), constants(model)
    found: list[str] = []
    waiting = [output.name for output in model.graph.output]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = made_by.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if _is_product(node, known):
            found.append(_name(node))
        else:
            waiting += node.input
    return tuple(dict.fromkeys(found))
