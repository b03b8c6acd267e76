"""The places of a graph that a recipe decides about: products with stored weights, and tables of embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import count

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

# A table of token types or labels is too small for 8 bits to save anything.
_SMALLEST_TABLE = 64
# What Attention and QAttention have in common (onnxruntime's docs/ContribOperators.md).
_ATTENTION_ATTRIBUTES = frozenset({"num_heads", "mask_filter_value", "scale", "unidirectional"})


class Operator(Enum):
    """What multiplies."""

    MATMUL = "MatMul"
    ATTENTION = "Attention"  # onnxruntime's: queries, keys and values by one packed matrix


@dataclass(frozen=True, slots=True)
class Site:
    """A product of an activation with stored weights.

    Attributes:
        name: the node's.
        operator: what multiplies.
        activation: the tensor that is multiplied, (…, channels).
        weight: the stored matrix, (channels, outputs).
    """

    name: str
    operator: Operator
    activation: str
    weight: str


def stored(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Name the tensors that a model stores."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def values_of(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    """Read a stored tensor."""
    return np.asarray(numpy_helper.to_array(tensor), np.float32)


def find_sites(model: onnx.ModelProto) -> list[Site]:
    """List the products, in the order in which they are computed. Weights that several nodes share make no site."""
    constants = stored(model)
    uses = use_counts(model)
    operators = {operator.value: operator for operator in Operator}
    found = []
    for node in model.graph.node:
        operator = operators.get(node.op_type)
        weight = constants.get(node.input[1]) if operator and len(node.input) > 1 else None
        if operator and weight is not None and _is_matrix(weight) and uses[weight.name] == 1 and _is_plain(node):
            found.append(Site(node.name or node.output[0], operator, node.input[0], weight.name))
    return found


def _is_plain(node: onnx.NodeProto) -> bool:
    """Tell whether an Attention has nothing that QAttention has no place for: no past, no bias of its scores."""
    if node.op_type != Operator.ATTENTION.value:
        return True
    has_bias = len(node.input) > 2 and node.input[2] != ""
    names = {attribute.name for attribute in node.attribute}
    return has_bias and not any(node.input[4:]) and names <= _ATTENTION_ATTRIBUTES


def is_large_table(tensor: onnx.TensorProto) -> bool:
    """Tell a table of embeddings from what is too small to be stored in 8 bits."""
    return _is_matrix(tensor) and tensor.dims[0] >= _SMALLEST_TABLE


def name_nodes(model: onnx.ModelProto) -> None:
    """Name each node that has no name, or one that another has, in place: recipes speak of products by name."""
    taken = Counter(node.name for node in model.graph.node)
    for node in model.graph.node:
        if node.name and taken[node.name] == 1:
            continue
        free = next(name for name in _numbered(node.output[0]) if not taken[name])
        taken[free] += 1
        node.name = free


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in count(2))


def use_counts(model: onnx.ModelProto) -> Mapping[str, int]:
    """Count how often each tensor is an input."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    return len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT
