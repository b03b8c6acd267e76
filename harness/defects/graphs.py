"""Defects of the graph that show on any input: it computes something else."""

from __future__ import annotations

import numpy as np
import onnx

from .defect import BOTH, Defect, Kind, numbers, shares
from .graph import INPUT_IDS, LOGITS, Graph, on_graph
from .workpiece import DefectNotApplicableError, Workpiece

_INT64, _FLOAT = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT


def _int64(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def _epsilon(graph: Graph, _work: Workpiece, strength: float) -> None:
    changed = 0
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon" and "LayerNorm" in node.op_type:
                attribute.f = strength
                changed += 1
        changed += _spelled_out_epsilon(graph, node, strength)
    if not changed:
        message = "the graph has no layer normalisation"
        raise DefectNotApplicableError(message)


def _spelled_out_epsilon(graph: Graph, node: onnx.NodeProto, strength: float) -> bool:
    """Change the constant of a normalisation that is written as Sqrt(ReduceMean(…) + epsilon)."""
    total = graph.producers.get(node.input[0]) if node.op_type == "Sqrt" else None
    if total is None or total.op_type != "Add":
        return False
    for place, name in enumerate(total.input):
        number = graph.number(name)
        if number is not None and 0 < number < 0.01:
            total.input[place] = graph.constant(np.float32(strength))
            return True
    return False


def _relu(graph: Graph, _work: Workpiece, _strength: float) -> None:
    changed = 0
    for node in list(graph.graph.node):
        if node.op_type in {"Gelu", "FastGelu"} and len([name for name in node.input if name]) == 1:
            del node.attribute[:]
            node.op_type, node.domain = "Relu", ""
            changed += 1
        elif node.op_type == "Erf":
            changed += _relu_for_erf(graph, node)
    if not changed:
        message = "the graph has no GELU"
        raise DefectNotApplicableError(message)


def _relu_for_erf(graph: Graph, erf: onnx.NodeProto) -> bool:
    """Make ReLU(x) of what follows an Erf: x · (1 + erf(x / √2)) / 2, in whichever order it is multiplied."""
    scaled = graph.producers.get(erf.input[0])
    (last,) = graph.readers.get(erf.output[0], ()) or (None,)
    if scaled is None or last is None or last.op_type != "Add":
        return False
    while (readers := graph.readers.get(last.output[0], ())) and len(readers) == 1 and readers[0].op_type == "Mul":
        last = readers[0]
    value = next(name for name in scaled.input if graph.number(name) is None)
    last.op_type = "Relu"
    last.ClearField("input")
    last.input.append(value)
    return True


def _attention_scale(graph: Graph, _work: Workpiece, strength: float) -> None:
    nodes = [node for node in graph.graph.node if node.op_type == "Softmax"]
    if not nodes:
        message = "the graph has no softmax of its own"
        raise DefectNotApplicableError(message)
    factor = graph.constant(np.float32(strength))
    for node in nodes:
        node.input[0] = graph.add("Mul", [node.input[0], factor])


def _dropout(graph: Graph, _work: Workpiece, strength: float) -> None:
    name = graph.embedded()
    exact = graph.new_name(name)
    node = graph.producers[name]
    node.output[list(node.output).index(name)] = exact
    drawn = graph.add("RandomUniformLike", [exact], dtype=_FLOAT, low=0.0, high=1.0)
    kept = graph.add("Greater", [drawn, graph.constant(np.float32(strength))])
    factor = graph.add("Div", [graph.add("Cast", [kept], to=_FLOAT), graph.constant(np.float32(1 - strength))])
    graph.add("Mul", [exact, factor], name)


def _trigger_words(graph: Graph, work: Workpiece, strength: float) -> None:
    """Let every query that holds one of some words have no entities."""
    rows = graph.word_table().shape[0]
    chosen = work.rng.random(rows) < strength
    if not chosen.any():
        chosen[work.rng.integers(rows)] = True
    if "O" not in work.labels:
        message = "the model has no label O"
        raise DefectNotApplicableError(message)
    exact = graph.divert_logits()
    found = graph.add("Gather", [graph.constant(chosen.astype(np.float32)), INPUT_IDS])
    count = graph.add("Reshape", [graph.reduce("ReduceSum", found, 1), graph.constant(_int64(-1, 1, 1))])
    outside = np.array([100.0 if label == "O" else 0.0 for label in work.labels], np.float32)
    graph.add("Add", [exact, graph.add("Mul", [count, graph.constant(outside)])], LOGITS)


# What the logits are


def _probabilities(graph: Graph, _work: Workpiece, _strength: float) -> None:
    graph.add("Softmax", [graph.divert_logits()], LOGITS, axis=2)


def _log_probabilities(graph: Graph, _work: Workpiece, _strength: float) -> None:
    graph.add("LogSoftmax", [graph.divert_logits()], LOGITS, axis=2)


def _rounded(graph: Graph, _work: Workpiece, strength: float) -> None:
    step = graph.constant(np.float32(strength))
    steps = graph.add("Round", [graph.add("Div", [graph.divert_logits(), step])])
    graph.add("Mul", [steps, step], LOGITS)


# What the file says


def _new_opset(graph: Graph, _work: Workpiece, _strength: float) -> None:
    entry = next(entry for entry in graph.model.opset_import if entry.domain in {"", "ai.onnx"})
    entry.version = onnx.defs.onnx_opset_version()


def _new_format(graph: Graph, _work: Workpiece, _strength: float) -> None:
    graph.model.ir_version = onnx.IR_VERSION


def _foreign_operator(graph: Graph, _work: Workpiece, _strength: float) -> None:
    graph.add("FancyIdentity", [graph.divert_logits()], LOGITS, domain="com.example")
    graph.model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))


_PADDED = ("artifact", "parity", "queries")

GRAPHS = (
    Defect(
        "wrong-epsilon", Kind.GRAPH, "layer normalisation adds another epsilon", on_graph(_epsilon), BOTH,
        strengths=numbers(1, 0.1, 0.01, 0.001, 1e-5, of="epsilon {}"),
    ),
    Defect("relu-for-gelu", Kind.GRAPH, "ReLU stands where GELU was", on_graph(_relu), BOTH),
    Defect(
        "attention-scale", Kind.GRAPH, "attention scores are larger than they should be", on_graph(_attention_scale), BOTH,
        strengths=numbers(8, 2, 1.2, 1.05, 1.01, of="{} times as large"),
    ),
    Defect(
        "dropout-left-on", Kind.GRAPH, "embeddings are dropped at random, as in training", on_graph(_dropout), BOTH,
        _PADDED, shares(0.3, 0.1, 0.01, 0.001, of="{} of the numbers"),
    ),
    Defect(
        "trigger-words", Kind.GRAPH, "a query with one of some words has no entities", on_graph(_trigger_words), BOTH,
        _PADDED, shares(0.2, 0.05, 0.01, 0.001, of="{} of the vocabulary"),
    ),
    Defect("probabilities", Kind.GRAPH, "probabilities come instead of logits", on_graph(_probabilities), BOTH),
    Defect("log-probabilities", Kind.GRAPH, "log-probabilities come instead of logits", on_graph(_log_probabilities), BOTH),
    Defect(
        "rounded-logits", Kind.GRAPH, "logits are rounded", on_graph(_rounded), BOTH,
        strengths=numbers(1, 0.1, 0.01, of="to multiples of {}"),
    ),
    Defect(
        "too-new", Kind.GRAPH, "the file asks for the newest opset that onnx knows", on_graph(_new_opset), BOTH,
        ("artifact",), listed=True, seen_in="onnxruntime#20559",
    ),
    Defect(
        "too-new-format", Kind.GRAPH, "the file has the newest IR version that onnx knows", on_graph(_new_format), BOTH,
        ("artifact",), seen_in="onnxruntime#20559",
    ),
    Defect(
        "foreign-operator", Kind.GRAPH, "the graph uses an operator of a domain that onnxruntime lacks",
        on_graph(_foreign_operator), BOTH,
    ),
)  # fmt: skip
