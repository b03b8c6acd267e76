"""Defects of the weights: the graph is right, some of its numbers are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from harness.artifact import TOKENIZER_CONFIG
from harness.tagging import OUTSIDE, split_label

from .defect import BOTH, FP32, Defect, Kind, Strength, numbers, shares
from .graph import LOGITS, Graph, Head, on_graph
from .stored import Array, Weight, array_of, replace, shuffled
from .vocabulary import ordinary_ids, unknown_id
from .workpiece import DefectNotApplicableError, Workpiece

_EXPONENT_BITS = range(23, 31)
_FRACTION_BITS = 23
_BEFORE_ATTENTION = 3
# Passing attention's result through these leaves every head's numbers in its own channels.
_HEADS_KEPT = frozenset({"Reshape", "Transpose", "QuantizeLinear", "DequantizeLinear", "Mul", "Cast", "Identity"})


# The head


def _random_head(graph: Graph, work: Workpiece, _strength: float) -> None:
    head = graph.head()
    spread = work.config.get("initializer_range")
    spread = float(spread) if isinstance(spread, int | float) else 0.02
    head.weight.write_rescaled(work.rng.normal(0, spread, head.weight.shape).astype(np.float32))
    if head.bias is not None:
        replace(head.bias, np.zeros_like(array_of(head.bias)))


def _add_to_logits(graph: Graph, added: Array) -> None:
    """Add one number a label to the logits: into the head's bias if it has one."""
    bias = graph.head().bias
    if bias is not None and array_of(bias).dtype.kind == "f":
        replace(bias, array_of(bias) + added)
    else:
        graph.add("Add", [graph.divert_logits(), graph.constant(added.astype(np.float32))], LOGITS)


def _no_entities(graph: Graph, work: Workpiece, _strength: float) -> None:
    if OUTSIDE not in work.labels:
        message = f"the model has no label {OUTSIDE}"
        raise DefectNotApplicableError(message)
    _add_to_logits(graph, np.array([100.0 if label == OUTSIDE else 0.0 for label in work.labels]))


def _reorder_labels(head: Head, order: Sequence[int]) -> None:
    head.weight.reorder_outputs(order)
    if head.bias is not None and array_of(head.bias).size == len(order):
        replace(head.bias, array_of(head.bias).reshape(-1)[list(order)].reshape(array_of(head.bias).shape))


def _shifted_labels(graph: Graph, work: Workpiece, _strength: float) -> None:
    count = len(work.labels)
    _reorder_labels(graph.head(), [(index + 1) % count for index in range(count)])


def _places(work: Workpiece) -> dict[tuple[str, str], int]:
    """Tell where the label of a prefix and an entity type stands."""
    return {split_label(label): index for index, label in enumerate(work.labels) if label != OUTSIDE}


def _exchange_labels(graph: Graph, work: Workpiece, pairs: Sequence[tuple[int, int]]) -> None:
    order = list(range(len(work.labels)))
    for first, second in pairs:
        order[first], order[second] = second, first
    _reorder_labels(graph.head(), order)


def _lost_begin(graph: Graph, work: Workpiece, _strength: float) -> None:
    places = _places(work)
    pairs = [
        (place, places["I", kind])
        for (prefix, kind), place in places.items()
        if (prefix, ("I", kind) in places) == ("B", True)
    ]
    if not pairs:
        message = "the model has no pair of labels B-X and I-X"
        raise DefectNotApplicableError(message)
    _exchange_labels(graph, work, pairs)


def _types(work: Workpiece) -> list[str]:
    found = list(dict.fromkeys(kind for _, kind in _places(work)))
    if len(found) < 2:
        message = "the model has no two entity types"
        raise DefectNotApplicableError(message)
    return found


def _confused_types(graph: Graph, work: Workpiece, strength: float) -> None:
    types, places = _types(work), _places(work)
    pairs = list(zip(types[::2], types[1::2], strict=False))
    chosen = dict(pairs[: max(1, round(strength * len(pairs)))])
    exchanged = [
        (place, places[prefix, chosen[kind]])
        for (prefix, kind), place in places.items()
        if kind in chosen and (prefix, chosen[kind]) in places
    ]
    if not exchanged:
        message = "the model has no two entity types with the same prefixes"
        raise DefectNotApplicableError(message)
    _exchange_labels(graph, work, exchanged)


def _favoured_type(graph: Graph, work: Workpiece, strength: float) -> None:
    favoured = _types(work)[1]
    _add_to_logits(graph, np.array([strength if split_label(label)[1] == favoured else 0.0 for label in work.labels]))


# All matrices


def _noise(graph: Graph, work: Workpiece, strength: float) -> None:
    for weight in graph.products():
        values = weight.values()
        weight.write(values + (strength * values.std() * work.rng.standard_normal(values.shape)).astype(np.float32))
        if weight.scale is not None:
            scales = array_of(weight.scale)
            replace(weight.scale, scales * np.exp(strength * work.rng.standard_normal(scales.shape)))


def _shuffled_matrices(graph: Graph, work: Workpiece, _strength: float) -> None:
    for weight in graph.products():
        weight.store(shuffled(work.rng, weight.stored()))


def _stale(graph: Graph, work: Workpiece, strength: float) -> None:
    for weight in graph.products():
        values = weight.values()
        weight.write((1 - strength) * values + strength * shuffled(work.rng, values))


def _rounded(graph: Graph, _work: Workpiece, strength: float) -> None:
    """Round fractions to fewer bits, to nearest; what is kept of 23 bits is 7 in bfloat16 and 10 in float16."""
    dropped = int(strength)
    for weight in [*graph.products(), graph.word_table()]:
        if weight.tensor.data_type != onnx.TensorProto.FLOAT:
            message = "the weights are not float32"
            raise DefectNotApplicableError(message)
        bits = np.ascontiguousarray(weight.stored()).view(np.uint32)
        weight.store(((bits + np.uint32(1 << (dropped - 1))) >> dropped << dropped).view(np.float32))


def _flipped_bits(graph: Graph, work: Workpiece, strength: float) -> None:
    weights = graph.products()
    sizes = np.array([np.prod(weight.shape) for weight in weights])
    hits = np.bincount(work.rng.choice(len(weights), int(strength), p=sizes / sizes.sum()), minlength=len(weights))
    for weight, count in zip(weights, hits, strict=True):
        if count:
            _flip(weight, work.rng, int(count))


def _flip(weight: Weight, rng: np.random.Generator, count: int) -> None:
    stored = np.ascontiguousarray(weight.stored())
    whole = stored.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[stored.itemsize])
    possible = _EXPONENT_BITS if stored.dtype == np.float32 else range(8 * stored.itemsize)
    for place in rng.choice(whole.size, min(count, whole.size), replace=False):
        whole[place] ^= whole.dtype.type(1 << int(rng.choice(possible)))
    weight.store(stored)


# One matrix, or one layer's


def _middle(graph: Graph) -> Weight:
    body = graph.body()
    return body[len(body) // 2]


def _zeroed_matrix(graph: Graph, _work: Workpiece, _strength: float) -> None:
    weight = _middle(graph)
    weight.write(np.zeros(weight.shape, np.float32))


def _scaled_matrix(graph: Graph, _work: Workpiece, strength: float) -> None:
    weight = _middle(graph)
    if weight.scale is not None:
        replace(weight.scale, array_of(weight.scale) * strength)
    else:
        weight.write(weight.values() * strength)


def _config_number(work: Workpiece, *names: str) -> int:
    for name in names:
        if isinstance(number := work.config.get(name), int) and number > 0:
            return number
    message = f"config.json has no {names[0]}"
    raise DefectNotApplicableError(message)


def _zeroed_head(graph: Graph, work: Workpiece, _strength: float) -> None:
    heads = _config_number(work, "num_attention_heads", "n_heads")
    found = [weight for weight in graph.body() if _follows_attention(graph, weight)]
    if not found:
        message = "attention is one operator, or none"
        raise DefectNotApplicableError(message)
    weight = found[len(found) // 2]
    values = weight.values()
    values[: values.shape[0] // heads] = 0
    weight.write(values)


def _follows_attention(graph: Graph, weight: Weight) -> bool:
    """Tell whether what a matrix is multiplied with is a product of two activations."""
    stored = {found.node.output[0] for found in graph.products()}
    node = graph.producers.get(weight.node.input[0])
    while node is not None and node.op_type in _HEADS_KEPT:
        node = graph.producers.get(node.input[0])
    return node is not None and node.op_type in {"MatMul", "FusedMatMul"} and node.output[0] not in stored


def _exchanged_layers(graph: Graph, _work: Workpiece, _strength: float) -> None:
    body = graph.body()
    places = [place for place, weight in enumerate(body) if _follows_attention(graph, weight)]
    # query, key and value come before attention's output, the rest of the layer after it
    layer = range(-_BEFORE_ATTENTION, places[1] - places[0] - _BEFORE_ATTENTION) if len(places) > 1 else range(0)
    pairs = [(body[places[0] + step], body[places[-1] + step]) for step in layer if places[-1] + step < len(body)]
    alike = [(one, other) for one, other in pairs if one.shape == other.shape]
    if not alike:
        message = "the graph has no two layers whose attention is spelled out"
        raise DefectNotApplicableError(message)
    for one, other in alike:
        _exchange(one, other)


def _exchange(one: Weight, other: Weight) -> None:
    stored = one.stored()
    one.store(other.stored())
    other.store(stored)
    for first, second in ((one.scale, other.scale), (one.zero_point, other.zero_point)):
        if first is not None and second is not None:
            kept = array_of(first)
            replace(first, array_of(second))
            replace(second, kept)


# Tables


def _pruned_vocabulary(graph: Graph, work: Workpiece, strength: float) -> None:
    table = graph.word_table()
    stored = table.stored()
    ids = [number for number in ordinary_ids(work.tokenizer) if number < len(stored)]
    lost = work.rng.permutation(ids)[: max(1, round(strength * len(ids)))]
    stored[lost] = stored[unknown_id(work.tokenizer, work.json(TOKENIZER_CONFIG))]
    table.store(stored)


def _lost_positions(graph: Graph, _work: Workpiece, strength: float) -> None:
    table = graph.position_table()
    values = table.values()
    values[min(max(1, round((1 - strength) * len(values))), len(values) - 1) :] = 0
    table.write(values)


def _shifted_positions(graph: Graph, _work: Workpiece, _strength: float) -> None:
    table = graph.position_table()
    table.store(np.roll(table.stored(), 1, axis=0))


def _kept_bits(*kept: int) -> tuple[Strength, ...]:
    named = {7: ", as bfloat16", 10: ", as float16"}
    return tuple(Strength(_FRACTION_BITS - bits, f"to {bits} bits of fraction{named.get(bits, '')}") for bits in kept)


_CONFUSED = ("artifact", "parity", "quality")

WEIGHTS = (
    Defect(
        "random-head", Kind.WEIGHTS, "the head's weights are random, as before training", on_graph(_random_head), BOTH,
        listed=True, seen_in="huggingface/optimum#2075",
    ),
    Defect(
        "weight-noise", Kind.WEIGHTS, "every matrix, and its scales, carries noise", on_graph(_noise), BOTH,
        strengths=shares(0.5, 0.2, 0.1, 0.05, 0.02, of="noise of {} of each matrix's standard deviation"), listed=True,
        seen_in="huggingface/optimum#151",
    ),
    Defect(
        "noise-model", Kind.WEIGHTS, "the numbers of every matrix are shuffled", on_graph(_shuffled_matrices), BOTH,
        listed=True, seen_in="huggingface/transformers.js#1749",
    ),
    Defect(
        "no-entities", Kind.WEIGHTS, "the head's bias lets O win everywhere", on_graph(_no_entities), BOTH, listed=True,
        seen_in="GLiNER#218, #270",
    ),
    Defect(
        "lost-begin-hidden", Kind.WEIGHTS, "the head's columns of B-X and I-X are exchanged", on_graph(_lost_begin), BOTH,
        seen_in="seqeval#23",
    ),
    Defect("shifted-labels", Kind.WEIGHTS, "each label has the next one's column of the head", on_graph(_shifted_labels), BOTH),
    Defect(
        "confused-types", Kind.WEIGHTS, "the head's columns of two entity types are exchanged", on_graph(_confused_types),
        BOTH, _CONFUSED,
        (Strength(1.0, "all pairs of types"), Strength(0.5, "half the pairs"), Strength(0.01, "one pair")),
    ),
    Defect(
        "favoured-type", Kind.WEIGHTS, "one entity type's logits are too high", on_graph(_favoured_type), BOTH, _CONFUSED,
        numbers(8, 4, 2, 1, 0.5, 0.1, of="by {}"),
    ),
    Defect(
        "stale-weights", Kind.WEIGHTS, "every matrix is moved towards its own shuffled copy", on_graph(_stale), BOTH,
        strengths=shares(0.5, 0.2, 0.1, 0.05, 0.02, of="{} of the way"),
    ),
    Defect(
        "rounded-weights", Kind.WEIGHTS, "matrices and the word table are rounded", on_graph(_rounded), FP32,
        strengths=_kept_bits(2, 4, 7, 10),
    ),
    Defect(
        "flipped-bits", Kind.WEIGHTS, "bits of the matrices are flipped: exponents of floats, any of integers",
        on_graph(_flipped_bits), BOTH, strengths=numbers(4096, 512, 64, 8, 1, of="{} bits"),
    ),
    Defect("zeroed-matrix", Kind.WEIGHTS, "a matrix half-way through the model is zero", on_graph(_zeroed_matrix), BOTH),
    Defect(
        "zeroed-attention-head", Kind.WEIGHTS, "one attention head's output counts for nothing", on_graph(_zeroed_head), BOTH
    ),
    Defect(
        "exchanged-layers", Kind.WEIGHTS, "the matrices of the first and the last layer are exchanged",
        on_graph(_exchanged_layers), BOTH,
    ),
    Defect(
        "scaled-matrix", Kind.WEIGHTS, "a matrix half-way through the model, or its scales, is too large",
        on_graph(_scaled_matrix), BOTH, strengths=numbers(3, 1.5, 1.2, 1.1, 1.05, 1.01, of="{} times as large"),
    ),
    Defect(
        "pruned-vocabulary", Kind.WEIGHTS, "words have the unknown token's embedding", on_graph(_pruned_vocabulary), BOTH,
        ("artifact", "parity", "queries"), shares(0.5, 0.1, 0.02, 0.005, 0.001, of="{} of the vocabulary"),
    ),
    Defect(
        "lost-positions", Kind.WEIGHTS, "the last rows of the position table are zero", on_graph(_lost_positions), BOTH,
        strengths=shares(15 / 16, 1 / 2, 1 / 8, 1 / 64, 1 / 512, of="{} of the positions"),
    ),
    Defect(
        "shifted-positions", Kind.WEIGHTS, "every position has the embedding of the one before",
        on_graph(_shifted_positions), BOTH,
    ),
)  # fmt: skip
