"""Defects of the graph that show only at some batches, lengths, masks or inputs."""

from __future__ import annotations

import numpy as np
import onnx

from .defect import BOTH, Defect, Kind, Strength, shares
from .graph import ATTENTION_MASK, INPUT_IDS, LOGITS, TOKEN_TYPE_IDS, Graph, on_graph
from .workpiece import DefectNotApplicableError, Workpiece

_BAKED_LENGTH = 16
_INT64, _FLOAT = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT


def _int64(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


# Batch and length


def _declare(graph: Graph, axis: int, size: int) -> None:
    for value in [*graph.graph.input, *graph.graph.output]:
        if value.name in graph.inputs or value.name == LOGITS:
            value.type.tensor_type.shape.dim[axis].dim_value = size


def _frozen_length(graph: Graph, _work: Workpiece, _strength: float) -> None:
    _declare(graph, 1, _BAKED_LENGTH)


def _frozen_batch(graph: Graph, _work: Workpiece, _strength: float) -> None:
    _declare(graph, 0, 1)


def _reshape_tokens(graph: Graph, rows: int, tokens: int) -> None:
    diverted = graph.divert_readers(INPUT_IDS)
    graph.add("Reshape", [INPUT_IDS, graph.constant(_int64(rows, tokens))], diverted)


def _hidden_length(graph: Graph, _work: Workpiece, _strength: float) -> None:
    _reshape_tokens(graph, -1, _BAKED_LENGTH)


def _hidden_batch(graph: Graph, _work: Workpiece, _strength: float) -> None:
    _reshape_tokens(graph, 1, -1)


def _batch_mean(graph: Graph, _work: Workpiece, strength: float) -> None:
    exact = graph.divert_logits()
    away = graph.add("Sub", [graph.reduce("ReduceMean", exact, 0), exact])
    part = graph.add("Mul", [away, graph.constant(np.float32(strength))])
    graph.add("Add", [exact, part], LOGITS)


def _exchanged_rows(graph: Graph, _work: Workpiece, _strength: float) -> None:
    exact = graph.divert_logits()
    # from the last row to the first, backwards
    bounds = [graph.constant(_int64(value)) for value in (-1, np.iinfo(np.int64).min + 1, 0, -1)]
    graph.add("Slice", [exact, *bounds], LOGITS)


# Mask and inputs


def _length(graph: Graph, name: str) -> str:
    """Add what tells how many tokens a row of an input has: int64, ()."""
    return graph.add("Gather", [graph.add("Shape", [name]), graph.constant(np.int64(1))], axis=0)


def _positions(graph: Graph, name: str) -> str:
    """Add the numbers from 0 to the length of an input's rows: int64, (tokens,)."""
    ends = [graph.constant(np.int64(0)), _length(graph, name), graph.constant(np.int64(1))]
    return graph.add("Range", ends)


def _right_padding(graph: Graph, _work: Workpiece, _strength: float) -> None:
    graph.need_input(ATTENTION_MASK)
    rebuilt = graph.divert_readers(ATTENTION_MASK)
    tokens = graph.reduce("ReduceSum", ATTENTION_MASK, 1)
    graph.add("Cast", [graph.add("Less", [_positions(graph, ATTENTION_MASK), tokens])], rebuilt, to=_INT64)


def _masked_nan(graph: Graph, _work: Workpiece, _strength: float) -> None:
    graph.need_input(ATTENTION_MASK)
    exact = graph.divert_logits()
    tokens = graph.reduce("ReduceSum", graph.add("Cast", [ATTENTION_MASK], to=_FLOAT), 1)
    # 1, or 0/0 in a row that is masked as a whole
    one = graph.add("Reshape", [graph.add("Div", [tokens, tokens]), graph.constant(_int64(-1, 1, 1))])
    graph.add("Mul", [exact, one], LOGITS)


def _ignored_mask(graph: Graph, _work: Workpiece, _strength: float) -> None:
    graph.need_input(ATTENTION_MASK)
    ones = graph.divert_readers(ATTENTION_MASK)
    value = onnx.helper.make_tensor("value", _INT64, [1], [1])
    graph.add("ConstantOfShape", [graph.add("Shape", [ATTENTION_MASK])], ones, value=value)


def _swapped_inputs(graph: Graph, _work: Workpiece, _strength: float) -> None:
    graph.need_input(TOKEN_TYPE_IDS)
    graph.need_input(ATTENTION_MASK)
    mask, types = graph.divert_readers(ATTENTION_MASK), graph.divert_readers(TOKEN_TYPE_IDS)
    graph.add("Identity", [TOKEN_TYPE_IDS], mask)
    graph.add("Identity", [ATTENTION_MASK], types)


def _surplus_input(graph: Graph, _work: Workpiece, _strength: float) -> None:
    if "position_ids" in graph.inputs:
        message = "the model has an input position_ids"
        raise DefectNotApplicableError(message)
    surplus = graph.graph.input.add()
    surplus.CopyFrom(next(value for value in graph.graph.input if value.name == INPUT_IDS))
    surplus.name = "position_ids"


def _lost_tail(graph: Graph, work: Workpiece, strength: float) -> None:
    kept = min(max(1, round((1 - strength) * work.maximum_tokens)), work.maximum_tokens - 1)
    exact = graph.divert_logits()
    inside = graph.add("Less", [_positions(graph, INPUT_IDS), graph.constant(np.int64(kept))])
    factors = graph.add("Cast", [inside], to=_FLOAT)
    graph.add("Mul", [exact, graph.add("Reshape", [factors, graph.constant(_int64(1, -1, 1))])], LOGITS)


def _kept_where(graph: Graph, condition: str) -> None:
    """Let logits be zero where a condition, one boolean, does not hold."""
    exact = graph.divert_logits()
    graph.add("Mul", [exact, graph.add("Cast", [condition], to=_FLOAT)], LOGITS)


def _large_batches(graph: Graph, _work: Workpiece, strength: float) -> None:
    rows = graph.add("Gather", [graph.add("Shape", [INPUT_IDS]), graph.constant(np.int64(0))], axis=0)
    _kept_where(graph, graph.add("Less", [rows, graph.constant(np.int64(round(1 / strength)))]))


def _some_lengths(graph: Graph, _work: Workpiece, strength: float) -> None:
    left_over = graph.add("Mod", [_length(graph, INPUT_IDS), graph.constant(np.int64(round(1 / strength)))])
    _kept_where(graph, graph.add("Greater", [left_over, graph.constant(np.int64(0))]))


_PADDED = ("artifact", "parity", "queries")
_BAKED = "transformers#47491, optimum#505"
_BAKED_BATCH = "pytorch#148886, #149065"

INPUTS = (
    Defect(
        "batch-dependent-mean", Kind.GRAPH, "logits are moved towards their mean over the batch", on_graph(_batch_mean),
        BOTH, _PADDED, shares(0.5, 0.1, 0.01, 0.001, of="{} of the way"), seen_in="onnxruntime#8625, #10111",
    ),
    Defect("exchanged-rows", Kind.GRAPH, "the answers of a batch come in reverse order", on_graph(_exchanged_rows), BOTH),
    Defect(
        "right-padding-only", Kind.GRAPH, "the mask is rebuilt from its sum, as if padding were always on the right",
        on_graph(_right_padding), BOTH, listed=True, seen_in="onnxruntime#18945",
    ),
    Defect(
        "masked-nan", Kind.GRAPH, "a row that is masked as a whole gives NaN", on_graph(_masked_nan), BOTH, listed=True,
        seen_in="onnxscript#2479, pytorch#159973",
    ),
    Defect(
        "frozen-length", Kind.GRAPH, f"inputs are declared {_BAKED_LENGTH} tokens long", on_graph(_frozen_length), BOTH,
        listed=True, seen_in=_BAKED,
    ),
    Defect(
        "frozen-length-hidden", Kind.GRAPH, f"a Reshape inside expects {_BAKED_LENGTH} tokens; the axes are declared free",
        on_graph(_hidden_length), BOTH, seen_in=_BAKED,
    ),
    Defect(
        "frozen-batch", Kind.GRAPH, "inputs are declared one row high", on_graph(_frozen_batch), BOTH, listed=True,
        seen_in=_BAKED_BATCH,
    ),
    Defect(
        "frozen-batch-hidden", Kind.GRAPH, "a Reshape inside expects one row; the axes are declared free",
        on_graph(_hidden_batch), BOTH, seen_in=_BAKED_BATCH,
    ),
    Defect(
        "swapped-inputs", Kind.GRAPH, "attention_mask and token_type_ids are exchanged", on_graph(_swapped_inputs), BOTH,
        listed=True, seen_in="transformers#4523",
    ),
    Defect(
        "ignored-mask", Kind.GRAPH, "every token is attended to, whatever the mask says", on_graph(_ignored_mask), BOTH,
        listed=True,
    ),
    Defect(
        "surplus-input", Kind.GRAPH, "the model wants position_ids, which no tokenizer makes", on_graph(_surplus_input),
        BOTH, listed=True, seen_in="optimum#1500, #1758",
    ),
    Defect(
        "lost-tail-hidden", Kind.GRAPH, "logits of the last tokens are zero", on_graph(_lost_tail), BOTH, _PADDED,
        shares(15 / 16, 1 / 2, 1 / 8, 1 / 64, 1 / 512, of="{} of the maximum's tokens"),
        seen_in="transformers#15177",
    ),
    Defect(
        "lost-batches", Kind.GRAPH, "logits of large batches are zero", on_graph(_large_batches), BOTH,
        strengths=tuple(Strength(1 / rows, f"from {rows} rows on") for rows in (2, 8, 32, 128)),
    ),
    Defect(
        "lost-lengths", Kind.GRAPH, "logits of rows of some lengths are zero", on_graph(_some_lengths), BOTH, _PADDED,
        tuple(Strength(1 / tokens, f"of every multiple of {tokens} tokens") for tokens in (2, 5, 16, 61)),
    ),
)  # fmt: skip
