"""A model that answers right, and late."""

from __future__ import annotations

import math

import numpy as np
import onnx

from .defect import INT8, Defect, Kind
from .graph import INPUT_IDS, LOGITS, Graph, on_graph
from .workpiece import Workpiece

# Multiplications a token beside those with the model's own matrices, as a multiple of their number, in floating point:
# twice what the FP32 model does, so slower than it whatever the machine. Measured: twice as slow, on 32 queries 2.4 times.
_NEEDLESS = 2
_STEPS = 16
_FLOAT = onnx.TensorProto.FLOAT


def _needless_work(graph: Graph, _work: Workpiece, _strength: float) -> None:
    """Multiply a row of numbers a token with a matrix again and again, and add none of it.

    The matrix is made of the input while the model runs, so that no optimiser can work it out before
    and none of it counts as a weight; 0 · x is not folded, since x might be infinite.
    """
    own = sum(math.prod(weight.shape) for weight in graph.products())
    width = max(8, round(math.sqrt(_NEEDLESS * own / _STEPS)))
    numbers = graph.add("Cast", [INPUT_IDS], to=_FLOAT)
    small = graph.add("Sigmoid", [numbers])  # between 0 and 1, so that no product grows beyond all bounds
    row = graph.add("Reshape", [small, graph.constant(np.array([0, 0, 1], np.int64))])
    value = graph.add("Expand", [row, graph.constant(np.array([1, 1, width], np.int64))])
    matrix = _matrix(graph, row, width)
    for _ in range(_STEPS):
        value = graph.add("MatMul", [value, matrix])
    needless = graph.add("Mul", [graph.reduce("ReduceMean", value, 2), graph.constant(np.float32(0))])
    graph.add("Add", [graph.divert_logits(), needless], LOGITS)


def _matrix(graph: Graph, row: str, width: int) -> str:
    """Add a square matrix whose rows sum to at most 1: float, (width, width)."""
    first = graph.add("Reshape", [row, graph.constant(np.array([-1], np.int64))])
    number = graph.add("Gather", [first, graph.constant(np.array([[0]], np.int64))], axis=0)
    part = graph.add("Div", [number, graph.constant(np.float32(width))])
    return graph.add("Expand", [part, graph.constant(np.array([width, width], np.int64))])


SPEEDS = (
    Defect(
        "slow-int8", Kind.SPEED, "the INT8 model does needless work, which changes no answer", on_graph(_needless_work),
        INT8, ("latency",), listed=True, seen_in="onnxruntime#6732, #6695", keeps_both=True,
    ),
)  # fmt: skip
