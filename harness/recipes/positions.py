"""Fold what embeddings add that does not depend on the words: positions counted from 0, and the first token type.

Where every row has token type 0, as in queries of one sentence, and positions count from the left, both are one table
whose first rows are cut off; ten small operators go. The graph then has no input token_type_ids: nobody can feed it
what it would ignore.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from harness.onnx_run import Feed
from harness.onnx_values import constants, opset_of, producers
from harness.recipes.sites import stored, use_counts, values_of

_TOKEN_TYPES = "token_type_ids"  # noqa: S105  # no password
_FIRST_INPUT = "input_ids"
# Since this version of onnx's operators, Shape can give one size alone.
_SHAPES_IN_PART = 15


def allows_folding(feeds: Sequence[Feed]) -> bool:
    """Tell whether the tokenizer gives every token of real queries the type 0."""
    return all(not feed[_TOKEN_TYPES].any() for feed in feeds if _TOKEN_TYPES in feed)


def fold_positions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold where the graph has the shape of it; a graph of another shape comes back as it was."""
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    table = _positions(folded)
    if table is None or opset_of(model) < _SHAPES_IN_PART:
        return folded
    types = _token_types(folded)
    rows = values_of(stored(folded)[table.input[0]])
    if types is not None and (total := _sum_with(folded, types)) is not None:
        rows = rows + values_of(stored(folded)[types.input[0]])[0]
        word = next(name for name in total.input if name != types.output[0])
        _redirect(folded, total.output[0], word)
    _cut_rows(folded, table, rows)
    prune(folded)
    return folded


def _positions(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """Find the look-up of a table by 0, 1, 2, …: by a slice of stored numbers that count so, from its beginning."""
    makers, known = producers(model), constants(model)
    nodes: list[onnx.NodeProto] = list(model.graph.node)
    for node in nodes:
        if node.op_type != "Gather" or node.input[0] not in stored(model):
            continue
        maker = makers.get(node.input[1])
        if maker is None or maker.op_type != "Slice" or maker.input[0] not in known:
            continue
        numbers = numpy_helper.to_array(known[maker.input[0]]).ravel()
        start = known.get(maker.input[1])
        from_first = start is not None and not numpy_helper.to_array(start).any()
        if from_first and np.array_equal(numbers, np.arange(len(numbers))):
            return node
    return None


def _token_types(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """Find the look-up of token types, if nothing else reads them."""
    users: list[onnx.NodeProto] = [node for node in model.graph.node if _TOKEN_TYPES in node.input]
    if len(users) == 1 and users[0].op_type == "Gather" and users[0].input[0] in stored(model):
        return users[0]
    return None


def _sum_with(model: onnx.ModelProto, types: onnx.NodeProto) -> onnx.NodeProto | None:
    """Find the sum that the token types go into, if they go nowhere else."""
    if use_counts(model).get(types.output[0]) != 1:
        return None
    users: list[onnx.NodeProto] = [node for node in model.graph.node if types.output[0] in node.input]
    return users[0] if users[0].op_type == "Add" else None


def _redirect(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _cut_rows(model: onnx.ModelProto, table: onnx.NodeProto, rows: NDArray[np.float32]) -> None:
    """Put a slice of the table, (tokens, channels), in the place of its look-up."""
    graph, name = model.graph, f"{table.input[0]}.folded"
    graph.initializer.append(numpy_helper.from_array(rows.astype(np.float32), name))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), f"{name}.first"))
    length = helper.make_node("Shape", [_FIRST_INPUT], [f"{name}.length"], f"{name}/Shape", start=1, end=2)
    first = f"{name}.first"
    cut = helper.make_node("Slice", [name, first, f"{name}.length", first], list(table.output), f"{name}/Slice")
    place = list(graph.node).index(table)
    graph.node.remove(table)
    for node in (cut, length):
        graph.node.insert(place, node)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Name what a node reads, graphs inside it too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)
            yield from (output.name for output in graph.output)


def prune(model: onnx.ModelProto) -> None:
    """Take out nodes, stored tensors and inputs that no output depends on, in place."""
    makers = producers(model)
    wanted, waiting = set[str](), [output.name for output in model.graph.output]
    while waiting:
        name = waiting.pop()
        if name and name not in wanted:
            wanted.add(name)
            waiting.extend(_read_by(makers[name]) if name in makers else ())
    graph = model.graph
    kept = [node for node in graph.node if wanted & set(node.output)]
    tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    inputs = [entry for entry in graph.input if entry.name in wanted]
    for place, content in ((graph.node, kept), (graph.initializer, tensors), (graph.input, inputs)):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in content]
        del place[:]
        place.extend(copies)
    del graph.value_info[:]
