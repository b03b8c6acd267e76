"""Building recipes: what each step keeps as it was, what rounding costs, and what a graph of another shape becomes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import TINY_LABELS, TINY_MAXIMUM, tiny_vocabulary
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from harness.errors import ArtifactError, UsageError
from harness.instruction_sets import WeightRange
from harness.onnx_run import answers, inner_values
from harness.pair_limits import LARGEST_PAIR, fit_weights
from harness.recipes import dynamic, fusion, workshop
from harness.recipes.compensation import compensated
from harness.recipes.fusion import computes_the_same, fused, masked
from harness.recipes.observation import Observation, Range, observe
from harness.recipes.operators import _Writer, quantize_operators
from harness.recipes.positions import allows_folding, fold_positions, prune
from harness.recipes.qdq import _divide_before, smooth
from harness.recipes.recipe import (
    FAST,
    FUSED_DYNAMIC,
    MIGRATION,
    NAMED,
    PLAIN_FUSIONS,
    QDQ,
    SMOOTHED,
    STATIC,
    USUAL,
    Calibration,
    Embeddings,
    Form,
    Fusion,
    Recipe,
)
from harness.recipes.rounding import Rounder, round_columns, round_weights
from harness.recipes.sites import find_sites, name_nodes, stored, values_of
from harness.recipes.smoothing import divisors
from harness.recipes.workshop import Workshop
from harness.saturation import certify
from harness.serving import ServingSettings
from harness.tagging import pad

BUILT = {name: recipe for name, recipe in NAMED.items() if recipe.form is not Form.BLOCKS}
FINAL = ServingSettings(graph_optimization_level=STATIC.serving.graph_optimization_level)
ARCHITECTURES = ("bert", "distilbert", "roberta", "electra")
FLOATS = np.float32


# -- exports -----------------------------------------------------------------------------------------------------------


def another_model(architecture):
    """A token classifier of another architecture, of two layers with random weights."""
    import transformers

    labels = {"id2label": dict(enumerate(TINY_LABELS)), "label2id": {name: at for at, name in enumerate(TINY_LABELS)}}
    common = {"vocab_size": len(tiny_vocabulary()), "initializer_range": 0.1, **labels}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    match architecture:
        case "distilbert":
            config = transformers.DistilBertConfig(
                dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=TINY_MAXIMUM, **common
            )
            return transformers.DistilBertForTokenClassification(config)
        case "roberta":
            config = transformers.RobertaConfig(
                max_position_embeddings=TINY_MAXIMUM + 2, type_vocab_size=1, pad_token_id=0, **sizes, **common
            )
            return transformers.RobertaForTokenClassification(config)
        case _:
            config = transformers.ElectraConfig(
                embedding_size=16, max_position_embeddings=TINY_MAXIMUM, **sizes, **common
            )
            return transformers.ElectraForTokenClassification(config)


def make_export(architecture, tiny_checkpoint, folder) -> Path:
    import torch

    from harness.export_onnx import export_to_onnx

    ignored = shutil.ignore_patterns("*.safetensors", "config.json")
    checkpoint = shutil.copytree(tiny_checkpoint, folder / "checkpoint", ignore=ignored)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20261123)
        another_model(architecture).save_pretrained(checkpoint)
    path = checkpoint / "tokenizer_config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(content), encoding="utf-8")
    return export_to_onnx(checkpoint, folder / "onnx")


@pytest.fixture(scope="session")
def texts(tiny_queries):
    """Real queries of several lengths."""
    return tiny_queries[:40]


@pytest.fixture(scope="session")
def shop(tiny_export, texts) -> Workshop:
    """The tiny BERT's."""
    return Workshop(tiny_export, texts)


@pytest.fixture(scope="session")
def shops(shop, tiny_checkpoint, texts, tmp_path_factory) -> dict[str, Workshop]:
    """One for each architecture."""
    folder = tmp_path_factory.mktemp("architectures")
    others = {
        name: Workshop(make_export(name, tiny_checkpoint, folder / name), texts[:20]) for name in ARCHITECTURES[1:]
    }
    return {"bert": shop, **others}


def operators_of(model) -> list[str]:
    return [node.op_type for node in model.graph.node]


def inputs_of(model) -> list[str]:
    return [entry.name for entry in model.graph.input]


def difference(model, other, feeds, settings=None, other_settings=None) -> float:
    """The largest logit difference."""
    pairs = zip(answers(model, feeds, settings), answers(other, feeds, other_settings), strict=True)
    return max(float(np.abs(one - two).max()) for one, two in pairs)


def error(model, other, feeds, settings=None) -> float:
    """The mean logit difference of a quantized graph."""
    pairs = zip(answers(model, feeds), answers(other, feeds, settings), strict=True)
    return float(np.mean([np.abs(one - two).mean() for one, two in pairs]))


def in_front(feed, count):
    """Padding in front, as another tokenizer might put it."""
    return {name: np.pad(value, ((0, 0), (count, 0))) for name, value in feed.items()}


# -- small graphs ------------------------------------------------------------------------------------------------------


def graph(nodes, tensors, *, inputs=("input_ids",), outputs=("logits",), kind=TensorProto.INT64, opset=18):
    """A graph of integers in, floats out."""
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, kind, ["b", "n"]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8)


def table_of(rows, channels=6, seed=3):
    return np.random.default_rng(seed).normal(size=(rows, channels)).astype(FLOATS)


def product(*, words=None, weight=None, bias=None, **options):
    """Look up, multiply, add."""
    words = table_of(12) if words is None else words
    weight = table_of(6, 4, seed=4) if weight is None else weight
    bias = np.array([0.5, -1, 0, 2], FLOATS) if bias is None else bias
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["x"], "lookup"),
        helper.make_node("MatMul", ["x", "weight"], ["y"], "product"),
        helper.make_node("Add", ["y", "bias"], ["logits"], "add"),
    ]
    return graph(nodes, {"words": words, "weight": weight, "bias": bias}, **options)


def ids(*rows):
    return [{"input_ids": np.array([row], np.int64)} for row in rows]


ALL_WORDS = ids(range(6), range(6, 12), [3])
IN_FLOAT = Recipe("small", Form.OPERATORS, embeddings=Embeddings.FLOAT)


def quantized(model, recipe=IN_FLOAT, feeds=ALL_WORDS):
    names = [site.activation for site in find_sites(model)]
    return quantize_operators(model, recipe, observe(model, names, feeds), Rounder())


# -- fusing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fused_graphs_compute_the_same(shops, architecture):
    """Attention, Gelu and their kin say what the export says: alone, padded on either side, and with all masked."""
    shop = shops[architecture]
    model = fused(shop._path, shop.candidate.artifact.config, PLAIN_FUSIONS)
    operators = operators_of(model)
    assert [operators.count(name) for name in ("Attention", "Gelu", "LayerNormalization")] == [2, 2, 5]
    assert "SkipLayerNormalization" not in operators
    feeds = [in_front(feed, 4) for feed in shop.feeds[:4]] + [masked(shop.feeds[0], 64, 0), *shop.feeds]
    assert difference(shop.plain, model, feeds) < 1e-5
    assert computes_the_same(shop.plain, model, shop.feeds)
    assert operators_of(shop.prepared(STATIC)).count("Attention") == 2


def test_a_mask_of_one_number_for_a_row_is_found_out(shop, monkeypatch):
    """The optimizer's usual mask is wrong where padding stands in front, so such a graph does not compute the same."""
    from onnxruntime.transformers.fusion_options import FusionOptions

    usual = FusionOptions.use_raw_attention_mask
    monkeypatch.setattr(FusionOptions, "use_raw_attention_mask", lambda self, **_: usual(self, use_raw_mask=False))
    model = fused(shop._path, shop.candidate.artifact.config, PLAIN_FUSIONS)
    assert "Attention" in operators_of(model)
    assert difference(shop.plain, model, shop.feeds) < 1e-5
    assert difference(shop.plain, model, [in_front(feed, 4) for feed in shop.feeds[:4]]) > 0.1
    assert not computes_the_same(shop.plain, model, shop.feeds)


def damaged(model, name):
    tensor = stored(model)[name]
    tensor.CopyFrom(numpy_helper.from_array(values_of(tensor) * FLOATS(1.2), name))
    return model


@pytest.mark.parametrize("only_with", [{Fusion.ATTENTION}, set()])
def test_a_fusion_that_changes_answers_is_not_used(tiny_export, texts, monkeypatch, only_with):
    """Without its attention if that is what is wrong, else as it was exported: never with other answers."""

    def wrong(path, config, fusions):
        model = fused(path, config, fusions)
        return damaged(model, find_sites(model)[-1].weight) if only_with <= set(fusions) else model

    monkeypatch.setattr(workshop, "fused", wrong)
    shop = Workshop(tiny_export, texts)
    operators = operators_of(shop.prepared(STATIC))
    assert "Attention" not in operators
    assert operators.count("Gelu") == (2 if only_with else 0)
    assert difference(shop.plain, shop.prepared(STATIC), shop.feeds) < 1e-4


def test_a_graph_that_does_not_run_does_not_compute_the_same(shop):
    """A rewritten graph that onnxruntime refuses is no reason to stop; the export is, if it does not run itself."""
    broken = onnx.ModelProto()
    broken.CopyFrom(shop.plain)
    broken.graph.node[-1].op_type = "NoSuchOperator"
    assert not computes_the_same(shop.plain, broken, shop.feeds)
    with pytest.raises(Exception, match="NoSuchOperator"):
        computes_the_same(broken, shop.plain, shop.feeds)


def test_answers_that_are_no_numbers_are_not_the_same(shop):
    """A graph that answers with NaN is not near anything."""
    broken = onnx.ModelProto()
    broken.CopyFrom(shop.plain)
    name = find_sites(broken)[-1].weight
    tensor = stored(broken)[name]
    tensor.CopyFrom(numpy_helper.from_array(values_of(tensor) * FLOATS("nan"), name))
    assert not computes_the_same(shop.plain, broken, shop.feeds)


def test_queries_as_long_as_the_model_reads(tiny_export, texts):
    """Calibrating on queries of full length makes no row that the model cannot read."""
    long = Workshop(tiny_export, [" ".join(["bus"] * (TINY_MAXIMUM - 2))] * 2)
    assert {feed["input_ids"].shape[1] for feed in long.feeds} == {TINY_MAXIMUM}
    assert "Attention" in operators_of(long.prepared(STATIC))


def test_an_approximate_gelu_is_another_operator(shop):
    """FastGelu stands in Gelu's place, a little off; a recipe has it by name only."""
    operators = operators_of(shop.prepared(FAST))
    assert (operators.count("FastGelu"), operators.count("Gelu")) == (2, 0)
    assert 0 < difference(shop.prepared(SMOOTHED), shop.prepared(FAST), shop.feeds) < 0.05


# -- positions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_positions_compute_the_same(shops, architecture):
    """Positions that count from the left become rows of one table; RoBERTa's count real tokens, and stay."""
    shop = shops[architecture]
    model = fused(shop._path, shop.candidate.artifact.config, PLAIN_FUSIONS)
    folded = fold_positions(model)
    assert ("Slice" in {node.op_type for node in folded.graph.node if "folded" in node.name}) == (
        architecture != "roberta"
    )
    longest = {name: np.resize(value, (2, TINY_MAXIMUM)) for name, value in shop.feeds[0].items()}
    feeds = [longest, *(in_front(feed, 4) for feed in shop.feeds[:4]), *shop.feeds]
    feeds = [{**feed, "token_type_ids": np.zeros_like(feed["input_ids"])} for feed in feeds]
    assert difference(model, folded, feeds) < 1e-5
    assert inputs_of(folded) == ["input_ids", "attention_mask"]


def test_token_types_stay_where_the_tokenizer_gives_others(tiny_export, texts):
    """Only where every token has type 0 does the input go: a model that is fed another type must see it."""
    shop = Workshop(tiny_export, texts)
    shop.feeds[-1]["token_type_ids"][0, -1] = 1  # beyond those that graphs are compared on
    assert not allows_folding(shop.feeds)
    assert inputs_of(shop.prepared(STATIC)) == ["input_ids", "attention_mask", "token_type_ids"]
    assert difference(shop.plain, shop.prepared(STATIC), shop.feeds) < 1e-4


def test_a_folding_that_changes_answers_is_not_used(tiny_export, texts, monkeypatch):
    """Folding is compared with the graph before it, like a fusion."""
    monkeypatch.setattr(
        workshop, "fold_positions", lambda model: damaged(fold_positions(model), find_sites(model)[-1].weight)
    )
    shop = Workshop(tiny_export, texts)
    assert inputs_of(shop.prepared(STATIC)) == ["input_ids", "attention_mask", "token_type_ids"]


@pytest.mark.parametrize(("numbers", "start"), [([2, 3, 4, 5], 0), ([0, 1, 3, 2], 0), ([0, 1, 2, 3], 1)])
def test_positions_that_do_not_count_from_0(numbers, start):
    """A table that is read in another order, or from another place on, is no table to cut rows from."""
    tensors = {
        "words": table_of(12), "rows": table_of(8, seed=5), "numbers": np.array([numbers]), "start": np.array([start]),
        "end": np.array([3]), "axis": np.array([1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["numbers", "start", "end", "axis"], ["places"]),
        helper.make_node("Gather", ["rows", "places"], ["positions"]),
        helper.make_node("Gather", ["words", "input_ids"], ["x"]),
        helper.make_node("Add", ["x", "positions"], ["logits"]),
    ]
    model = graph(nodes, tensors)
    assert operators_of(fold_positions(model)) == operators_of(model)


def test_an_old_operator_set_is_not_folded(shop):
    """Shape cannot give one size alone before version 15, so such a graph stays as it is."""
    model = fused(shop._path, shop.candidate.artifact.config, PLAIN_FUSIONS)
    for entry in model.opset_import:
        entry.version = 14 if entry.domain == "" else entry.version
    assert operators_of(fold_positions(model)) == operators_of(model)


def test_what_graphs_inside_nodes_read_is_kept():
    """Cleaning up keeps what a branch of an If reads, and drops what nobody does, absent outputs or not."""

    def branch(operator):
        node = helper.make_node(operator, ["x", "inner"], ["out"])
        return helper.make_graph([node], operator, [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["x"]),
        helper.make_node("If", ["which"], ["logits"], then_branch=branch("Add"), else_branch=branch("Mul")),
        helper.make_node("Identity", ["words"], ["idle"]),
        helper.make_node("Dropout", ["idle"], ["", "unread"]),
        helper.make_node("Clip", ["logits", "", "top"], ["clipped"]),
    ]
    tensors = {
        "words": table_of(4), "which": np.bool_(1), "inner": np.ones(6, FLOATS), "top": FLOATS(1),
        "idle_too": np.ones(3, FLOATS),
    }  # fmt: skip
    model = graph(nodes, tensors, outputs=("clipped",), inputs=("input_ids", "attention_mask"))
    prune(model)
    assert operators_of(model) == ["Gather", "If", "Clip"]
    assert set(stored(model)) == {"words", "which", "inner", "top"}
    assert inputs_of(model) == ["input_ids"]
    assert np.isfinite(answers(model, ids([0, 1]))[0]).all()


# -- what calibration sees ---------------------------------------------------------------------------------------------


def test_an_observation_is_of_all_tokens_of_all_queries():
    """Extremes and moments are over every token, whatever the lengths; no padding is counted."""
    draw = np.random.default_rng(8)
    words = table_of(700)
    feeds = ids(*(draw.integers(0, 700, int(draw.integers(1, 30))) for _ in range(90)))
    (seen,) = observe(product(words=words), ["x"], feeds).values()
    rows = words[np.concatenate([feed["input_ids"][0] for feed in feeds])]
    assert len(rows) > 1024
    assert np.array_equal(seen.low, rows.min(axis=0))
    assert np.array_equal(seen.high, rows.max(axis=0))
    assert np.allclose(seen.moments, rows.T @ rows / len(rows), atol=1e-4)
    assert np.array_equal(seen.sample, rows[:512])


def seen_in(values) -> Observation:
    values = np.asarray(values, FLOATS).reshape(-1, 1)
    return Observation(values.min(axis=0), values.max(axis=0), values, values.T @ values / len(values))


def cost(values, chosen: Range) -> float:
    scale = max((chosen.high - chosen.low) / 255, 1e-30)
    clipped = np.clip(values, chosen.low, chosen.high)
    return float(np.square(np.rint(clipped / scale) * scale - values).mean())


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60), st.sampled_from(Calibration))
def test_every_calibration_stays_within_what_was_seen(values, calibration):
    """A range holds 0, is finite, and is no wider than what was seen."""
    chosen = seen_in(values).range(calibration)
    assert np.isfinite([chosen.low, chosen.high]).all()
    assert min(*values, 0) - 1e-5 <= chosen.low <= 0 <= chosen.high <= max(*values, 0) + 1e-5


@pytest.mark.parametrize("constant", [0.0, 3.0, -3.0, 1e-20])
@pytest.mark.parametrize("calibration", Calibration)
def test_constant_tensors(constant, calibration):
    """A tensor that never changes is rounded to itself."""
    chosen = seen_in([constant] * 50).range(calibration)
    assert cost(np.full(50, constant), chosen) < 1e-6


def test_a_sample_that_says_nothing():
    """Where the first tokens all have one value, the extremes of all tokens are the range."""
    one = np.array([5], FLOATS)
    seen = Observation(one * 0, one, np.zeros((9, 1), FLOATS), np.eye(1, dtype=FLOATS))
    assert seen.range(Calibration.PERCENTILE) == Range(0.0, 5.0)


@pytest.mark.parametrize("calibration", [Calibration.PERCENTILE, Calibration.ENTROPY, Calibration.ERROR])
def test_an_outlier_is_cut_off(calibration):
    """Two values in 200,000 that are larger than all others do not take their levels; min-max keeps them."""
    values = np.random.default_rng(2).normal(size=200_000).astype(FLOATS)
    values[:2] = -10, 10
    seen = seen_in(values)
    assert seen.range(Calibration.MIN_MAX) == Range(-10.0, 10.0)
    chosen = seen.range(calibration)
    assert -8 < chosen.low < -2
    assert 2 < chosen.high < 8


def test_the_least_error_is_least():
    """No method that was tried leaves a smaller squared error than the one named for it."""
    values = np.random.default_rng(2).laplace(size=5_000).astype(FLOATS)
    costs = {name: cost(values, seen_in(values).range(name)) for name in Calibration}
    assert costs[Calibration.ERROR] <= min(costs.values()) * 1.0001


def test_divisors_count_in_a_range():
    """What a channel is divided by before it is rounded is in its range."""
    seen = Observation(
        np.array([-8, -1], FLOATS),
        np.array([4, 2], FLOATS),
        np.array([[-8, 2], [4, -1]], FLOATS),
        np.eye(2, dtype=FLOATS),
    )
    assert np.array_equal(seen.largest, [8, 2])
    for calibration in (Calibration.MIN_MAX, Calibration.PERCENTILE):
        found = seen.range(calibration, np.array([8, 1], FLOATS))
        assert np.allclose([found.low, found.high], [-1, 2], atol=1e-2)


@pytest.mark.parametrize("calibration", Calibration)
def test_calibrated_recipes_answer(shop, calibration):
    """Queries of every length calibrate by every method, and the answers stay near.

    Entropy, which weighs no value by its size, cuts off much where it sees as few tokens as here.
    """
    recipe = replace(STATIC, calibration=calibration, compensated=False)
    assert len({feed["input_ids"].shape for feed in shop.feeds}) > 3
    assert error(shop.plain, shop.build(recipe), shop.feeds, FINAL) < (
        0.1 if calibration is not Calibration.ENTROPY else 1
    )


def test_values_that_are_no_numbers_set_no_range():
    """A model that calculates with NaN or infinity is not quantized to noise; the tensor is named."""
    for value in ("nan", "inf"):
        words = table_of(12)
        words[3, 2] = FLOATS(value)
        with pytest.raises(ArtifactError, match="x has infinite values or none"):
            observe(product(words=words), ["x"], ALL_WORDS)


def test_inputs_of_32_bits():
    """A graph that takes its ids in 32 bits is fed so, in calibration and after it."""
    model, other = product(kind=TensorProto.INT32), product()
    assert difference(model, other, ALL_WORDS) == 0
    assert difference(quantized(model), quantized(other), ALL_WORDS) == 0


def test_the_logits_are_found_by_name():
    """Of several outputs, the one named logits is the answer."""
    model = product(outputs=("x", "logits"))
    assert answers(model, ALL_WORDS)[0].shape == (1, 6, 4)


def test_nothing_to_look_at():
    """A graph without products needs no values, and no session."""
    assert list(inner_values(product(), [], ALL_WORDS)) == []


# -- smoothing ---------------------------------------------------------------------------------------------------------


def test_smoothing_computes_the_same(shop):
    """Moving outliers into the weights changes the graph, not what it computes."""
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(shop.plain)
    smooth(smoothed, shop.observed(QDQ), MIGRATION)
    assert len(smoothed.graph.node) > len(shop.plain.graph.node)
    assert difference(shop.plain, smoothed, shop.feeds) < 1e-4
    moved = [site.weight for site in find_sites(shop.plain)]
    assert all(
        not np.array_equal(values_of(stored(shop.plain)[name]), values_of(stored(smoothed)[name])) for name in moved
    )


def test_what_is_rounded_between_float_operators(shop):
    """QuantizeLinear stands before products with weights only: neither behind one nor before attention's scores."""
    model = shop.build(QDQ)
    makers = {name: node for node in model.graph.node for name in node.output}

    def maker(name):
        return makers[name].op_type if name in makers else "stored"

    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    weights = [node for node in products if maker(node.input[1]) == "DequantizeLinear"]
    assert (len(products), len(weights)) == (17, 13)
    assert all(maker(node.input[0]) == "DequantizeLinear" for node in weights)
    assert all(maker(node.input[0]) != "DequantizeLinear" for node in products if node not in weights)
    assert not [
        node for node in model.graph.node if node.op_type == "QuantizeLinear" and maker(node.input[0]) == "MatMul"
    ]


def test_smoothing_evens_out_channels():
    """With all of it moved, channels are equally large; a channel that is never used is not blown up."""
    largest = np.array([300, 2, 0.05, 0], FLOATS)
    weights = [np.ones((4, 3), FLOATS), np.full((4, 2), 0.5, FLOATS)]
    found = divisors(largest[:3], [matrix[:3] for matrix in weights], 1.0)
    assert np.allclose(largest[:3] / found, (largest[:3] / found)[0], rtol=1e-4)
    assert np.isclose(np.log(found).mean(), 0, atol=1e-5)
    unused = divisors(largest, weights, 0.8)
    assert ((unused >= 0.01) & (unused <= 100)).all()
    silent = divisors(largest, [np.zeros((4, 3), FLOATS)], 0.8)
    assert np.isfinite(silent).all()


def before_rounding(model, recipe, observed):
    """The float graph with the weights, biases and divisors that the writer is about to round."""
    writer = _Writer(model, recipe, observed, Rounder())
    writer._smooth()
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensors = stored(made)
    for site in find_sites(model):
        tensors[site.weight].CopyFrom(numpy_helper.from_array(writer._weights[site.name], site.weight))
    for node in made.graph.node:
        if node.name in writer._biases:
            made.graph.initializer.append(numpy_helper.from_array(writer._biases[node.name], f"{node.name}.new_bias"))
            node.input[2] = f"{node.name}.new_bias"
    for name, by in writer._divisors.items():
        if name not in writer._divided_before:
            made.graph.initializer.append(numpy_helper.from_array((1 / by).astype(FLOATS), f"{name}.by"))
            users = {site.name for site in find_sites(model) if site.activation == name}
            _divide_before(made, name, f"{name}.by", f"{name}.divided", users)
    return made, writer._divided_before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_are_divided_through_the_weights_of_attention(shops, architecture):
    """What attention returns is divided in the weights of its values, at no operator; the function stays the same."""
    shop = shops[architecture]
    model = onnx.ModelProto()
    model.CopyFrom(shop.prepared(SMOOTHED))
    draw = np.random.default_rng(1)
    for node in model.graph.node:
        if node.op_type == "Attention":  # a model that nobody trained has biases of 0
            bias = draw.normal(size=96).astype(FLOATS)
            stored(model)[node.input[2]].CopyFrom(numpy_helper.from_array(bias, node.input[2]))
    observed = observe(model, [site.activation for site in find_sites(model)], shop.feeds)
    made, divided_before = before_rounding(model, SMOOTHED, observed)
    attentions = {node.output[0] for node in model.graph.node if node.op_type == "Attention"}
    assert divided_before == attentions
    assert difference(model, made, shop.feeds) < 1e-4
    operators = operators_of(shop.build(SMOOTHED))
    quantizers = operators.count("QuantizeLinear")
    rows = operators_of(shop.build(replace(SMOOTHED, migration=0.0))).count("Mul")
    assert operators.count("Mul") - rows == quantizers - len(attentions)


def test_moments_are_of_what_is_rounded():
    """Compensation weighs errors by the inputs as they are when they are rounded: divided."""
    model = product()
    seen = observe(model, ["x"], ALL_WORDS)
    writer = _Writer(model, replace(IN_FLOAT, migration=0.7, compensated=True), seen, Rounder())
    writer._smooth()
    divided = seen["x"].sample / writer._divisors["x"]
    assert np.allclose(writer._moments("x"), divided.T @ divided / len(divided), atol=1e-4)
    assert not np.allclose(writer._moments("x"), seen["x"].moments, atol=1e-2)


def test_values_that_others_read_are_not_divided(shop):
    """Where something else reads what attention returns, or it is an answer itself, it is divided after attention."""
    model = onnx.ModelProto()
    model.CopyFrom(shop.prepared(SMOOTHED))
    first, second = (node.output[0] for node in model.graph.node if node.op_type == "Attention")
    model.graph.output.append(helper.make_tensor_value_info(first, TensorProto.FLOAT, None))
    model.graph.node.append(helper.make_node("Identity", [second], ["seen"], "see"))
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, None))
    made, divided_before = before_rounding(model, SMOOTHED, shop.observed(SMOOTHED))
    assert divided_before == set()
    for one, other in zip(
        inner_values(model, [first, "seen"], shop.feeds[:3]),
        inner_values(made, [first, "seen"], shop.feeds[:3]),
        strict=True,
    ):
        assert all(np.allclose(one[name], other[name], atol=1e-4) for name in one)


# -- weights -----------------------------------------------------------------------------------------------------------


def pairs_of(values) -> int:
    wide = values.astype(int)
    return int(np.abs(wide[1:] + wide[:-1]).max())


@pytest.mark.parametrize("weight_range", WeightRange)
@pytest.mark.parametrize("per_channel", [True, False])
def test_rounded_weights_are_near(weight_range, per_channel):
    """Within half a step where no pair is too large, one channel of zeros or not."""
    weights = table_of(40, 8, seed=6)
    weights[:, 3] = 0
    rounded = round_weights(weights, weight_range, per_channel=per_channel)
    assert rounded.scales.shape == ((8,) if per_channel else ())
    assert np.isfinite(rounded.scales).all()
    assert (rounded.scales > 0).all()
    steps = np.abs(rounded.values * rounded.scales - weights) / rounded.scales
    assert (steps[:, 3] == 0).all()
    assert steps.mean() < 0.5 if weight_range is WeightRange.PAIRS else steps.max() <= 0.5001
    assert weight_range is WeightRange.FULL or pairs_of(rounded.values) <= LARGEST_PAIR


@given(st.integers(0, 1000), st.sampled_from([1, 2, 7, 64, 65, 130]), st.booleans())
def test_compensated_weights_keep_the_limit_of_pairs(seed, channels, per_channel):
    """Whatever the moments, no two neighbours add up to more than 128, across blocks of channels too."""
    draw = np.random.default_rng(seed)
    weights = draw.standard_t(2, size=(channels, 3)).astype(FLOATS)
    inputs = draw.normal(size=(channels // 2 + 1, channels)).astype(FLOATS)
    scales = round_weights(weights, WeightRange.FULL, per_channel=per_channel).scales
    moments = (inputs.T @ inputs).astype(FLOATS)
    values = compensated(weights, scales, moments, pairs=True, top=127)
    assert np.abs(values.astype(int)).max() <= 127
    assert channels == 1 or pairs_of(values) <= LARGEST_PAIR
    assert np.abs(compensated(weights, scales, moments, pairs=False, top=64).astype(int)).max() <= 64


@pytest.mark.parametrize("weight_range", WeightRange)
@pytest.mark.parametrize("channels", [48, 96])
def test_compensation_lowers_the_error_of_results(weight_range, channels):
    """On inputs whose channels go together, what a product returns is nearer than with the nearest weights."""
    draw = np.random.default_rng(channels)
    inputs = draw.normal(size=(500, 8)) @ draw.normal(size=(8, channels)) + 0.05 * draw.normal(size=(500, channels))
    inputs = inputs.astype(FLOATS)
    weights = draw.normal(size=(channels, 16)).astype(FLOATS)
    moments = (inputs.T @ inputs / len(inputs)).astype(FLOATS)
    rounder = Rounder()
    plain, made_up = (rounder(weights, weight_range, per_channel=True, moments=known) for known in (None, moments))
    errors = [np.square(inputs @ (found.values * found.scales) - inputs @ weights).mean() for found in (plain, made_up)]
    assert errors[1] < 0.6 * errors[0]


def test_moments_of_nothing():
    """Inputs that are always 0 make compensation plain rounding, not an error."""
    weights = table_of(8, 4)
    found = round_weights(weights, WeightRange.FULL, per_channel=True)
    values = compensated(weights, found.scales, np.zeros((8, 8), FLOATS), pairs=False, top=127)
    assert np.array_equal(values, found.values)


def test_a_rounder_confuses_nothing():
    """What is remembered is told apart by shape, range, type and moments, not by bytes alone."""
    rounder, ones = Rounder(), np.ones((4, 8), FLOATS)
    assert rounder(ones, WeightRange.FULL, per_channel=True).values.shape == (4, 8)
    assert rounder(ones.reshape(8, 4), WeightRange.FULL, per_channel=True).values.shape == (8, 4)
    assert rounder(ones, WeightRange.FULL, per_channel=False).scales.shape == ()
    assert rounder(ones, WeightRange.REDUCED, per_channel=True).values.max() == 64
    assert rounder(ones, WeightRange.FULL, per_channel=True, unsigned=True).values.min() == 255
    weights = table_of(8, 4)
    moments = table_of(8, 8).T @ table_of(8, 8)
    first = rounder(weights, WeightRange.FULL, per_channel=True)
    second = rounder(weights, WeightRange.FULL, per_channel=True, moments=moments)
    assert not np.array_equal(first.values, second.values)
    assert rounder(weights, WeightRange.FULL, per_channel=True) is first


@pytest.mark.parametrize("weight_range", WeightRange)
@pytest.mark.parametrize("compensates", [True, False])
def test_shipped_weights_are_certified(shop, weight_range, compensates):
    """The file's own bytes clamp on no CPU with pairs limited or the range reduced; with the full range they can."""
    model = shop.build(replace(STATIC, weight_range=weight_range, compensated=compensates))
    found = certify(model, Path())
    assert found.products == 9
    assert found.safe_on_every == (weight_range is not WeightRange.FULL)
    weight = np.full((6, 4), 0.7, FLOATS)
    recipe = replace(IN_FLOAT, weight_range=weight_range, compensated=compensates)
    largest = certify(quantized(product(weight=weight), recipe), Path()).largest_pair
    if weight_range is WeightRange.FULL:
        assert largest > 200
    else:
        assert largest <= LARGEST_PAIR


def test_embeddings_by_column_are_nearer(shop):
    """A scale for each channel loses less than one for the table, and more than none."""
    float_sites = shop.products(STATIC).all
    recipes = [replace(STATIC, embeddings=kind, float_sites=float_sites) for kind in Embeddings]
    errors = {recipe.embeddings: error(shop.plain, shop.build(recipe), shop.feeds, FINAL) for recipe in recipes}
    assert errors[Embeddings.FLOAT] < 1e-5 < errors[Embeddings.COLUMNS] < errors[Embeddings.TENSOR]
    sizes = {recipe.embeddings: shop.build(recipe).ByteSize() for recipe in recipes}
    assert sizes[Embeddings.FLOAT] > max(sizes[Embeddings.COLUMNS], sizes[Embeddings.TENSOR])


def test_columns_of_unlike_size():
    """A channel a hundred times as large as the others leaves them their levels."""
    table = table_of(80)
    table[:, 2] *= 100
    errors = []
    for per_channel in (True, False):
        rounded = round_columns(table, per_channel=per_channel)
        errors.append(np.abs(rounded.values * rounded.scales - table)[:, [0, 1, 3, 4, 5]].mean())
    assert errors[0] < errors[1] / 20


def test_unsigned_weights_give_the_same_answers(shop):
    """Weights moved by 128, with a zero point, are the same numbers."""
    signed = replace(STATIC, weight_range=WeightRange.FULL)
    unsigned = replace(signed, weights="QUInt8")
    models = [shop.build(recipe) for recipe in (signed, unsigned)]
    sites = [f"{name}.weight" for name in shop.products(STATIC).all]
    kinds = [{stored(model)[name].data_type for name in sites} for model in models]
    assert kinds == [{TensorProto.INT8}, {TensorProto.UINT8}]
    assert difference(*models, shop.feeds, FINAL, FINAL) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_signed_activations(shops, architecture):
    """Recipes for ARM64 run too, though onnxruntime's QAttention takes unsigned activations only."""
    shop = shops[architecture]
    model = shop.build(replace(SMOOTHED, activations="QInt8"))
    points = {values.ndim == 0 and values.dtype.name for values in map(numpy_helper.to_array, stored(model).values())}
    assert {"int8", "uint8"} <= points
    assert error(shop.plain, model, shop.feeds, FINAL) < 0.1


# -- the graph of operators --------------------------------------------------------------------------------------------


def by_hand(model, recipe, feed, *, signed=False):
    """What the quantized product of `product()` is to say, in numpy's integers."""
    tensors = {name: values_of(tensor) for name, tensor in stored(model).items()}
    words = np.concatenate([tensors["words"][row["input_ids"][0]] for row in ALL_WORDS])
    low, high = min(words.min(), 0), max(words.max(), 0)
    if signed:
        scale, zero, least, most = FLOATS(max(-low, high) / 127), 0, -128, 127
    else:
        scale = FLOATS((float(high) - float(low)) / 255)
        zero, least, most = round(float(-low / scale)), 0, 255
    weights = fit_weights(tensors["weight"])
    values = tensors["words"][feed["input_ids"][0]]
    steps = np.clip(np.rint(values / scale) + zero, least, most).astype(np.int32) - zero
    return (steps @ weights.values.astype(np.int32)) * (scale * weights.scales) + tensors["bias"]


@pytest.mark.parametrize("activations", ["QUInt8", "QInt8"])
@pytest.mark.parametrize("swapped", [False, True])
def test_the_arithmetic(activations, swapped):
    """The graph computes integers times scales plus the bias, in whichever order the bias is added."""
    model = product()
    recipe = replace(IN_FLOAT, activations=activations)
    if swapped:
        model.graph.node[-1].input[:] = ["bias", "y"]
    made = quantized(model, recipe)
    assert operators_of(made) == ["Gather", "QuantizeLinear", "MatMulIntegerToFloat"]
    for feed, found in zip(ALL_WORDS, answers(made, ALL_WORDS, FINAL), strict=True):
        expected = by_hand(model, recipe, feed, signed=activations == "QInt8")
        assert np.allclose(found[0], expected, atol=1e-5)
    assert error(model, made, ALL_WORDS) < 0.05


def test_a_product_that_is_also_an_answer():
    """A bias is not taken into a product that something else reads: no output vanishes or changes."""
    model = product(outputs=("logits", "y"))
    made = quantized(model)
    assert [output.name for output in made.graph.output] == ["logits", "y"]
    (found,) = inner_values(made, ["logits", "y"], ALL_WORDS[:1])
    assert np.allclose(found["logits"], found["y"] + values_of(stored(model)["bias"]), atol=1e-6)
    assert error(model, made, ALL_WORDS) < 0.05


def test_a_product_that_something_else_reads():
    """Nor is it taken into a product that another node reads without it."""
    model = product(outputs=("logits", "size"))
    model.graph.node.append(helper.make_node("Abs", ["y"], ["size"], "abs"))
    made = quantized(model)
    (found,) = inner_values(made, ["logits", "size"], ALL_WORDS[:1])
    (expected,) = inner_values(model, ["logits", "size"], ALL_WORDS[:1])
    assert all(np.allclose(found[name], expected[name], atol=0.1) for name in found)


@pytest.mark.parametrize("bias", [np.array([3.0], FLOATS), np.array([[1, 2, 3, 4]], FLOATS), FLOATS(2)])
def test_a_bias_of_another_shape(bias):
    """What is added to all outputs alike is no bias of a product, and is added as it was."""
    model = product(bias=bias)
    assert error(model, quantized(model), ALL_WORDS) < 0.05


def test_a_sum_of_two_products():
    """A product that is added to another, or to itself, stays what it is."""
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["x"], "lookup"),
        helper.make_node("MatMul", ["x", "one"], ["y"], "first"),
        helper.make_node("MatMul", ["x", "two"], ["z"], "second"),
        helper.make_node("Add", ["y", "z"], ["sum"]),
        helper.make_node("Add", ["sum", "sum"], ["logits"]),
    ]
    model = graph(nodes, {"words": table_of(12), "one": table_of(6, 4), "two": table_of(6, 4, seed=5)})
    made = quantized(model)
    assert operators_of(made).count("QuantizeLinear") == 1  # one rounding for both
    assert error(model, made, ALL_WORDS) < 0.1


def chain(*names, gelu=False, **options):
    """Two products, one behind the other, with something between or nothing."""
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["x"], names[0]),
        helper.make_node("MatMul", ["x", "one"], ["h"], names[1]),
        helper.make_node("MatMul", ["a" if gelu else "h", "two"], ["logits"], names[2]),
    ]
    if gelu:
        nodes.insert(2, helper.make_node("Gelu", ["h"], ["a"], "gelu", domain="com.microsoft"))
    return graph(nodes, {"words": table_of(12), "one": table_of(6, 5), "two": table_of(5, 4, seed=5)}, **options)


@pytest.mark.parametrize("names", [("", "", ""), ("same", "same", "same"), ("x", "h", "logits"), ("h", "logits", "x")])
@pytest.mark.parametrize("by_row", [(), (0,), (1,), (0, 1)])
def test_names_do_not_matter(names, by_row):
    """Nodes without names, of one name, or named like tensors give what well named ones give."""
    found = []
    for chosen in (("lookup", "first", "second"), names):
        model = chain(*chosen)
        name_nodes(model)
        sites = [site.name for site in find_sites(model)]
        assert len(set(sites)) == 2
        recipe = replace(IN_FLOAT, row_sites=tuple(sites[place] for place in by_row), migration=0.5)
        found.append(quantized(model, recipe))
    assert difference(*found, ALL_WORDS, FINAL, FINAL) == 0
    assert error(chain("lookup", "first", "second"), found[1], ALL_WORDS) < 0.2


def test_names_that_the_graph_has_already():
    """A tensor of the model's own that has a name of ours keeps its value."""
    model = product()
    model.graph.initializer.append(numpy_helper.from_array(np.array([9.0] * 4, FLOATS), "product.weight"))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Add", ["before", "product.weight"], ["logits"], "more"))
    assert error(model, quantized(model), ALL_WORDS) < 0.05


def test_nodes_are_named_once():
    """Names that were there stay; the others are called after what they make."""
    model = chain("", "h", "h")
    name_nodes(model)
    assert [node.name for node in model.graph.node] == ["x", "h_2", "logits"]
    before = model.SerializeToString()
    name_nodes(model)
    assert model.SerializeToString() == before


def attention(**options):
    """Look-up and onnxruntime's Attention."""
    inputs = options.pop("inputs", ["x", "packed", "packed_bias", "mask"])
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["x"], "lookup"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], "cast", to=TensorProto.INT32),
        helper.make_node("Attention", inputs, ["logits"], "attention", domain="com.microsoft", num_heads=2, **options),
    ]
    tensors = {
        "words": table_of(12), "packed": table_of(6, 18, seed=9), "packed_bias": table_of(1, 18)[0],
        "scores": np.full((1, 2, 1, 1), 3, FLOATS),
    }  # fmt: skip
    return graph(nodes, tensors, inputs=("input_ids", "attention_mask"))


def test_attention_that_qattention_cannot_be():
    """An Attention without a bias, with a bias of its scores or with unequal heads stays in FP32; a plain one does not."""
    assert len(find_sites(attention())) == 1
    assert find_sites(attention(inputs=["x", "packed", "", "mask"])) == []
    assert find_sites(attention(inputs=["x", "packed", "packed_bias", "mask", "", "scores"])) == []
    assert find_sites(attention(qkv_hidden_sizes=[6, 6, 6])) == []
    feeds = [{**feed, "attention_mask": np.ones_like(feed["input_ids"])} for feed in ALL_WORDS]
    model = attention()
    made = quantized(model, feeds=feeds)
    assert operators_of(made) == ["Gather", "Cast", "QuantizeLinear", "QAttention"]
    assert error(model, made, feeds) < 0.05


def test_weights_that_are_shared():
    """A matrix that two products share is no matrix of one product's, and stays in FP32."""
    model = chain("lookup", "first", "second")
    model.graph.node[2].input[1] = "square"
    model.graph.node[1].input[1] = "square"
    model.graph.initializer.append(numpy_helper.from_array(table_of(6), "square"))
    assert find_sites(model) == []
    assert difference(model, quantized(model), ALL_WORDS) == 0


def test_columns_of_a_table():
    """Only whole rows of a table are looked up in 8 bits; a Gather along the channels stays in FP32."""
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["logits"], "lookup", axis=1)]
    model = graph(nodes, {"words": table_of(80)})
    made = quantize_operators(model, replace(IN_FLOAT, embeddings=Embeddings.COLUMNS), {}, Rounder())
    assert difference(model, made, ids([1, 0, 5])) == 0


def test_a_small_table_stays():
    """A table of a few rows, or one that is read twice, is left as it is; a large one is stored in 8 bits."""
    columns = replace(IN_FLOAT, embeddings=Embeddings.COLUMNS)
    kinds = []
    for rows in (12, 80):
        made = quantized(product(words=table_of(rows)), columns)
        kinds.append({tensor.data_type for tensor in made.graph.initializer if tensor.name.startswith("words")})
    assert kinds == [{TensorProto.FLOAT}, {TensorProto.INT8, TensorProto.FLOAT}]
    model = product(words=table_of(80))
    model.graph.node.append(helper.make_node("Gather", ["words", "input_ids"], ["again"], "again"))
    model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, None))
    assert "words" in stored(quantized(model, columns))


# -- row by row --------------------------------------------------------------------------------------------------------

BY_ROW = replace(IN_FLOAT, row_sites=("product",))


@pytest.mark.parametrize("opset", [14, 18])
def test_a_token_by_row_depends_on_itself_only(opset):
    """Whatever stands beside it in the row and in the batch, a token's result has the same bits."""
    made = quantized(product(opset=opset), BY_ROW)
    words = [{"input_ids": np.array(rows)} for rows in ([[3]], [[7, 3, 1], [3, 9, 9]])]
    alone, together = answers(made, words, FINAL)
    assert np.array_equal(alone[0, 0], together[0, 1])
    assert np.array_equal(alone[0, 0], together[1, 0])


def test_rows_of_zeros():
    """A token of zeros gives the bias, not NaN."""
    words = table_of(12)
    words[4] = 0
    (found,) = answers(quantized(product(words=words), BY_ROW), ids([4, 4]), FINAL)
    assert np.array_equal(found[0, 0], values_of(stored(product())["bias"]))


@pytest.mark.parametrize("factor", [1e-3, 50, -50])
@pytest.mark.parametrize("positive", [False, True])
def test_ranges_beyond_calibration_are_not_cut_off_by_row(factor, positive):
    """Tokens larger, smaller or of another sign than all that were seen are as near, relative to their size."""
    words = np.abs(table_of(12)) if positive else table_of(12)
    seen, unseen = product(words=words), product(words=words * FLOATS(factor), bias=np.zeros(4, FLOATS))
    observed = observe(seen, ["x"], ALL_WORDS)
    made = quantize_operators(unseen, BY_ROW, observed, Rounder())
    assert error(unseen, made, ALL_WORDS) < 0.03 * abs(factor)
    if abs(factor) > 1:
        static = quantize_operators(unseen, IN_FLOAT, observed, Rounder())
        assert error(unseen, static, ALL_WORDS) > 0.5 * abs(factor)


@pytest.mark.parametrize("size", [1.0, 0.01, 0.3, 30.0])
def test_rows_behind_gelu(size):
    """After Gelu few levels go to what is below 0, and its least value is kept even in a row of small ones."""
    model = chain("lookup", "first", "second", gelu=True)
    tensor = stored(model)["one"]
    recipe = replace(IN_FLOAT, row_sites=("second",), float_sites=("first",))
    observed = observe(model, ["x", "a"], ALL_WORDS)
    tensor.CopyFrom(numpy_helper.from_array(values_of(tensor) * FLOATS(size), "one"))
    made = quantize_operators(model, recipe, observed, Rounder())
    assert int(numpy_helper.to_array(stored(made)["second.row_zero_point"])) == 37
    assert "Abs" not in operators_of(made)
    assert error(model, made, ALL_WORDS) < 0.02 * max(size, 0.3)


def test_rows_of_small_values_behind_gelu():
    """Where Gelu returns nothing large beside its least value, its rows have as many levels below 0 as above."""
    model = chain("lookup", "first", "second", gelu=True)
    tensor = stored(model)["one"]
    tensor.CopyFrom(numpy_helper.from_array(values_of(tensor) * FLOATS(0.01), "one"))
    made = quantized(model, replace(IN_FLOAT, row_sites=("second",), float_sites=("first",)))
    assert int(numpy_helper.to_array(stored(made)["second.row_zero_point"])) == 128
    assert error(model, made, ALL_WORDS) < 1e-3


def test_only_an_operator_bounds_what_is_below_0():
    """Values that merely were not negative in calibration have levels below 0 all the same."""
    made = quantized(product(words=np.abs(table_of(12))), BY_ROW)
    assert int(numpy_helper.to_array(stored(made)["product.row_zero_point"])) == 128


# -- whole recipes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def windows(shop, texts):
    """One of each query."""
    return [window for query in shop.candidate.encode(texts) for window in query.windows]


def moved(model, recipe, windows, pad_token_id):
    """By how much batch mates, padding behind and padding in front move a row's logits."""
    wanted = inputs_of(model)
    batch = pad(windows[:12], pad_token_id)._asdict()
    alone = [pad([window], pad_token_id)._asdict() for window in windows[:12]]
    feeds = [{name: row[name] for name in wanted} for row in (batch, *alone)]
    together, *rows = answers(model, feeds, recipe.serving)
    return max(float(np.abs(row[0] - together[at, : row.shape[1]]).max()) for at, row in enumerate(rows))


@pytest.mark.parametrize("name", BUILT)
def test_batch_mates(shop, windows, name):
    """A static recipe is one function: who stands in the batch changes nothing; with dynamic scales it does."""
    recipe = BUILT[name]
    found = moved(shop.build(recipe), recipe, windows, shop.candidate.pad_token_id)
    assert found <= 1e-5 if recipe.is_one_function else found > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
def test_batch_mates_of_other_architectures(shops, windows, architecture):
    """So it is for other models, with rows scaled one by one too."""
    shop = shops[architecture]
    recipe = replace(SMOOTHED, row_sites=tuple(sorted(shop.products(SMOOTHED).by_row)))
    assert moved(shop.build(recipe), recipe, windows, shop.candidate.pad_token_id) <= 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_in_front(shops, architecture):
    """A masked token in front of a row changes as much as in FP32, and no more."""
    shop = shops[architecture]
    padded = [in_front(feed, 4) for feed in shop.feeds[:8]]
    plain, static = answers(shop.plain, padded), answers(shop.build(STATIC), padded, FINAL)
    differences = [np.abs(one - two)[:, 4:].mean() for one, two in zip(plain, static, strict=True)]
    assert np.mean(differences) < 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", BUILT)
def test_recipes_load_and_answer(shops, architecture, name):
    """Each recipe makes a file that loads with its own settings and answers nearly as FP32 does, on each architecture."""
    shop, recipe = shops[architecture], BUILT[name]
    model = shop.build(recipe)
    assert model.ByteSize() < shop.plain.ByteSize()
    feeds = shop.feeds[:10]
    assert {tuple(found.shape[1:]) for found in answers(model, feeds[:1], recipe.serving)} == {
        (feeds[0]["input_ids"].shape[1], len(TINY_LABELS))
    }
    assert error(shop.plain, model, feeds, recipe.serving) < 0.1


@pytest.mark.parametrize("name", BUILT)
def test_the_same_bytes(shop, tiny_export, texts, name):
    """The same recipe, export and queries make the same file, whatever was built before it."""
    again = Workshop(tiny_export, texts).build(BUILT[name])
    assert again.SerializeToString() == shop.build(BUILT[name]).SerializeToString()


def test_building_leaves_the_export_alone(shop):
    """No recipe changes the graphs that the next one starts from."""
    before = shop.plain.SerializeToString(), shop.prepared(STATIC).SerializeToString()
    for recipe in (STATIC, replace(QDQ, fusions=PLAIN_FUSIONS, folded_positions=True), USUAL):
        shop.build(recipe)
    assert (shop.plain.SerializeToString(), shop.prepared(STATIC).SerializeToString()) == before


@pytest.mark.parametrize("recipe", [STATIC, QDQ, USUAL], ids=lambda recipe: recipe.name)
def test_products_that_stay_in_float(shop, recipe):
    """Products that a recipe leaves in FP32 keep their float weights, and the others do not."""
    first, *others = [site for site in find_sites(shop.prepared(recipe)) if site.operator.value == "MatMul"]
    made = shop.build(replace(recipe, float_sites=(first.name,)))
    kept = [values.shape for values in map(numpy_helper.to_array, stored(made).values()) if values.dtype == FLOATS]
    shapes = [tuple(values_of(stored(shop.prepared(recipe))[site.weight]).shape) for site in (first, *others)]
    assert [shape for shape in kept if len(shape) == 2] == [shapes[0]]


@pytest.mark.parametrize("recipe", [QDQ, USUAL], ids=lambda recipe: recipe.name)
def test_tables_that_stay_in_float(shop, recipe):
    """Tables that are not to be quantized are not, in every form."""
    made = shop.build(replace(recipe, embeddings=Embeddings.FLOAT))
    shapes = [tuple(tensor.dims) for tensor in stored(made).values() if tensor.data_type == TensorProto.FLOAT]
    assert (len(tiny_vocabulary()), 32) in shapes


def test_an_optimized_graph_is_final(shop):
    """What a session would fuse is fused in the file, except SkipLayerNormalization, which is slower."""
    operators = operators_of(shop.build(FUSED_DYNAMIC))
    loose = operators_of(shop.build(replace(FUSED_DYNAMIC, optimized=False)))
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= set(loose)
    assert "MatMulInteger" not in operators
    assert "SkipLayerNormalization" not in operators


def test_products_that_the_model_does_not_have(shop):
    """A recipe of another model is refused by name: what it says about products would be passed over."""
    attention = shop.products(STATIC).all[0]
    assert attention not in shop.products(STATIC).by_row
    for recipe, named in (
        (replace(STATIC, float_sites=("elsewhere",)), "elsewhere"),
        (replace(STATIC, row_sites=("elsewhere",)), "elsewhere"),
        (replace(STATIC, row_sites=(attention,)), attention),
        (replace(QDQ, float_sites=(attention,)), attention),
    ):
        with pytest.raises(ArtifactError, match=named) as caught:
            shop.build(recipe)
        assert recipe.name in str(caught.value)


def test_products_of_a_model(shop):
    """Attention is a product, but not one that can be scaled by row; what has few outputs is small."""
    found = shop.products(STATIC)
    assert len(found.all) == 9
    assert len(found.by_row) == 7
    assert found.small == ()


@pytest.mark.parametrize(
    ("module", "step", "recipe"),
    [
        (workshop, "quantize_operators", STATIC),
        (workshop, "quantize_qdq", QDQ),
        (workshop, "quantize_dynamically", USUAL),
        (workshop, "observe", SMOOTHED),
        (workshop, "fused", FUSED_DYNAMIC),
        (workshop, "fold_positions", FAST),
        (dynamic, "_optimized", FUSED_DYNAMIC),
    ],
)
def test_a_model_that_cannot_be_quantized(tiny_export, texts, monkeypatch, module, step, recipe):
    """Whatever a tool raises becomes one line that names the file, the recipe and what to do."""

    def broken(*args, **kwargs):
        message = "no such\nluck"
        raise NotImplementedError(message)

    monkeypatch.setattr(module, step, broken)
    with pytest.raises(ArtifactError) as caught:
        Workshop(tiny_export, texts[:4]).build(recipe)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("model.onnx", f"recipe {recipe.name}:", "no such luck", "Name another recipe"):
        assert part in message


def test_products_of_a_model_that_cannot_be_fused(tiny_export, texts, monkeypatch):
    """A search asks for products first; it is told in one line, too."""

    def broken(*args, **kwargs):
        message = "lost"
        raise KeyError(message)

    monkeypatch.setattr(workshop, "fused", broken)
    with pytest.raises(ArtifactError, match="static"):
        Workshop(tiny_export, texts[:4]).products(STATIC)


def test_no_queries(tiny_export):
    """Ranges that no query sets are refused, not made up."""
    with pytest.raises(UsageError, match="--calibration"):
        Workshop(tiny_export, [])


def test_a_fusion_is_tried_once(tiny_export, texts, monkeypatch):
    """Recipes that share their fusions share what was made for them."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return fusion.fused(*arguments)

    monkeypatch.setattr(workshop, "fused", counted)
    shop = Workshop(tiny_export, texts[:8])
    for recipe in (STATIC, SMOOTHED, STATIC):
        shop.build(recipe)
    assert len(calls) == 1
