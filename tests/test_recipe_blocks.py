"""`harness.recipes.blocks` and its rounding: what is stored is what onnxruntime computes with, and it is small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harness.onnx_run import answers, session_of
from harness.onnx_values import constants
from harness.recipes.block_rounding import Rounded, pack, round_compensated, round_nearest
from harness.recipes.blocks import Blocks, observe_moments, quantize_blocks, size_blocks, weight_nodes

VOCABULARY, CHANNELS, HEADS, LABELS = 80, 64, 2, 5
BLOCKS = Blocks(bits=4, block_size=32, embedding_bits=4, embedding_block=16)


def a_model(*, channels=CHANNELS, rows=VOCABULARY):
    """Lookup, LayerNormalization, onnxruntime's Attention, two products and a classifier, weights from a seed."""
    draw = np.random.default_rng(5)

    def stored(name, *shape):
        return numpy_helper.from_array(draw.normal(size=shape, scale=shape[0] ** -0.5).astype(np.float32), name)

    tensors = [
        # words differ in few directions, as those of trained models do
        numpy_helper.from_array(
            (draw.normal(size=(rows, 12)) @ draw.normal(size=(12, channels)) / 4).astype(np.float32), "words"
        ),
        numpy_helper.from_array(np.ones(channels, np.float32), "gamma"),
        stored("qkv", channels, 3 * channels),
        stored("qkv_bias", 3 * channels),
        stored("up", channels, 2 * channels),
        stored("down", 2 * channels, channels),
        stored("out", channels, LABELS),
    ]
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["looked_up"], name="lookup"),
        helper.make_node("LayerNormalization", ["looked_up", "gamma"], ["x"], axis=-1),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.INT32),
        helper.make_node(
            "Attention", ["x", "qkv", "qkv_bias", "mask"], ["attended"], "attention", domain="com.microsoft",
            num_heads=HEADS, mask_filter_value=-10000.0,
        ),
        helper.make_node("MatMul", ["attended", "up"], ["raised"], name="up"),
        helper.make_node("Relu", ["raised"], ["active"]),
        helper.make_node("MatMul", ["active", "down"], ["lowered"]),
        helper.make_node("Add", ["lowered", "x"], ["sum"]),
        helper.make_node("MatMul", ["sum", "out"], ["logits"], name="classifier"),
    ]  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "n"]) for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "n", LABELS])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def some_feeds(count=24, seed=6):
    draw = np.random.default_rng(seed)
    rows = [draw.integers(0, VOCABULARY, (1, int(draw.integers(3, 9)))) for _ in range(count)]
    return [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows]


@pytest.fixture(scope="module")
def model():
    return a_model()


@pytest.fixture(scope="module")
def feeds():
    return some_feeds()


def unpacked(packed, bits):
    places = [(packed >> np.uint8(bits * place)) & np.uint8(2**bits - 1) for place in range(8 // bits)]
    return np.stack(places, axis=-1).reshape(*packed.shape[:-1], -1)


def restored(quantized, name, channels):
    """Read a tensor back by the operators' specification, not by the code under test: (rows, channels)."""
    values = {key: numpy_helper.to_array(tensor) for key, tensor in constants(quantized).items()}
    bits = int(name[-5])
    codes = unpacked(values[name], bits).reshape(len(values[name]), -1)
    scales = values[f"{name}_scales"].astype(np.float32)
    zeros = unpacked(values[f"{name}_zero_points"], bits)[:, : scales.shape[1]]
    size = -(-codes.shape[1] // scales.shape[1])
    wide = [np.repeat(part.astype(np.float32), size, axis=1)[:, :channels] for part in (scales, zeros)]
    return (codes[:, :channels].astype(np.float32) - wide[1]) * wide[0]


def with_restored(model, quantized):
    """The FP32 graph, computing with what the quantized one stores."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    stored = set(constants(quantized))
    for tensor in changed.graph.initializer:
        for name in (f"{tensor.name}_4bits", f"{tensor.name}_8bits"):
            if name in stored:
                is_table = tensor.name == "words"
                values = restored(quantized, name, tensor.dims[1 if is_table else 0])
                tensor.CopyFrom(
                    numpy_helper.from_array(np.ascontiguousarray(values if is_table else values.T), tensor.name)
                )
    return changed


def spread(model, other, feeds):
    """The root mean square of the differences, as a share of what the first says."""
    first, second = (np.concatenate([found[0] for found in answers(one, feeds)]) for one in (model, other))
    return float(np.sqrt(np.square(first - second).mean() / np.square(first).mean()))


def moments_loss(rows, rounded, moments):
    error = rows - rounded.values()
    return float(((error @ moments) * error).sum())


def operators_of(model):
    return {node.name or node.output[0]: node.op_type for node in model.graph.node}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_onnxruntime_computes_with_what_is_stored(model, feeds, bits, block_size):
    """Weights read back from the file, put into the FP32 graph, give onnxruntime's own answers but for 8-bit inputs."""
    quantized = quantize_blocks(model, Blocks(bits, block_size, bits, block_size))
    names = operators_of(quantized)
    assert names["attention"] == names["up"] == names["lowered"] == names["classifier"] == "MatMulNBits"
    assert names["lookup"] == "GatherBlockQuantized"
    assert spread(with_restored(model, quantized), quantized, feeds) < 0.02
    assert spread(model, quantized, feeds) < (0.3 if bits == 4 else 0.03)


def test_a_lookup_returns_the_stored_rows(model):
    """GatherBlockQuantized reads codes, half-precision scales and zero points as they were written."""
    quantized = quantize_blocks(model, replace(BLOCKS, embedding_block=32, float_nodes=("attention",)))
    quantized.graph.output.append(helper.make_empty_tensor_value_info("looked_up"))
    ids = np.arange(VOCABULARY)[None]
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found = session_of(quantized).run(["looked_up"], feed)[0][0]
    np.testing.assert_allclose(found, restored(quantized, "words_4bits", CHANNELS), atol=2e-3)


def test_batch_mates_and_padding_change_no_answer(model, feeds):
    """A row of a padded batch of queries says what it says alone, within 1e-4."""
    quantized = quantize_blocks(model, BLOCKS)
    longest = max(feed["input_ids"].shape[1] for feed in feeds)
    together = {
        name: np.concatenate([np.pad(feed[name], ((0, 0), (0, longest - feed[name].shape[1]))) for feed in feeds])
        for name in feeds[0]
    }
    (batch,) = answers(quantized, [together])
    for row, (feed, alone) in zip(batch, zip(feeds, answers(quantized, feeds), strict=True), strict=True):
        np.testing.assert_allclose(row[: feed["input_ids"].shape[1]], alone[0], atol=1e-4)


def test_left_padding_is_kept_where_the_mask_is_full(model, feeds):
    """Parting Attention loses no mask: padding on the left, too, changes no answer."""
    quantized = quantize_blocks(model, BLOCKS)
    padded = [{name: np.pad(values, ((0, 0), (3, 0))) for name, values in feed.items()} for feed in feeds]
    for left, alone in zip(answers(quantized, padded), answers(quantized, feeds), strict=True):
        np.testing.assert_allclose(left[:, 3:], alone, atol=1e-4)


def test_the_given_model_stays_as_it_is(model):
    before = model.SerializeToString(deterministic=True)
    quantize_blocks(model, BLOCKS)
    assert model.SerializeToString(deterministic=True) == before


def test_the_file_is_the_size_of_its_codes(model):
    """4 bits in blocks of 32, scales and zero points: below .19 of FP32 for the stored weights."""
    quantized = quantize_blocks(model, Blocks(4, 32, 4, 32))
    weights = {name for name, tensor in constants(model).items() if len(tensor.dims) == 2}
    full = sum(constants(model)[name].ByteSize() for name in weights)
    small = sum(tensor.ByteSize() for name, tensor in constants(quantized).items() if "bits" in name)
    assert not weights & set(constants(quantized))
    assert small < 0.19 * full


def test_named_nodes_are_stored_otherwise(model):
    """A node in `float_nodes` keeps its weights, one in `eight_bit_nodes` has eight bits; unnamed nodes have names too."""
    quantized = quantize_blocks(model, replace(BLOCKS, float_nodes=("classifier",), eight_bit_nodes=("up", "lookup")))
    stored = set(constants(quantized))
    assert {"out", "up_8bits", "words_8bits", "down_4bits"} <= stored
    assert not {"up_4bits", "out_4bits"} & stored
    assert weight_nodes(model) == ["lookup", "attention", "up", "lowered", "classifier"]


@pytest.mark.parametrize("field", ["float_nodes", "eight_bit_nodes"])
def test_an_unknown_node_is_an_error(model, field):
    with pytest.raises(ValueError, match="no product or table named 'elsewhere'"):
        quantize_blocks(model, replace(BLOCKS, **{field: ("elsewhere",)}))


@pytest.mark.parametrize(("bits", "size"), [(3, 32), (16, 32), (4, 24), (4, 8), (4, 256)])
def test_what_no_operator_reads_is_refused(bits, size):
    with pytest.raises(ValueError, match="Take one of"):
        Blocks(bits, size, 4, 32)
    with pytest.raises(ValueError, match="Take one of"):
        Blocks(4, 32, bits, size)


def test_what_is_narrower_than_a_block_is_left_alone(model, feeds):
    """Blocks of 128 fit none but the widest product of this model."""
    quantized = quantize_blocks(model, Blocks(4, 128, 4, 128))
    found = operators_of(quantized)
    assert found["lowered"] == "MatMulNBits"
    assert (found["lookup"], found["attention"], found["up"]) == ("Gather", "Attention", "MatMul")
    assert spread(with_restored(model, quantized), quantized, feeds) < 0.02


def test_a_table_of_few_rows_is_left_alone():
    """Token types are too few to save anything."""
    assert "lookup" not in weight_nodes(a_model(rows=2))


def test_channels_need_not_fill_the_last_block():
    """A width of 48 in blocks of 32 is stored and read right."""
    model = a_model(channels=48)
    quantized = quantize_blocks(model, Blocks(8, 32, 8, 32))
    assert operators_of(quantized)["lookup"] == "GatherBlockQuantized"
    assert spread(model, quantized, some_feeds()) < 0.03


def test_an_attention_with_other_inputs_stays():
    """What MultiHeadAttention would read otherwise is not parted."""
    model = a_model()
    (attention,) = (node for node in model.graph.node if node.op_type == "Attention")
    attention.attribute.append(helper.make_attribute("qkv_hidden_sizes", [CHANNELS] * 3))
    assert "attention" not in weight_nodes(model)


def test_moments_are_sums_over_all_tokens(model, feeds):
    """X^T X of a product's input, whatever the number of queries at a time."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.append(helper.make_empty_tensor_value_info("attended"))
    session = session_of(watched)
    rows = np.concatenate([session.run(["attended"], feed)[0][0] for feed in feeds])
    np.testing.assert_allclose(observe_moments(model, feeds)["attended"], rows.T @ rows, rtol=1e-3, atol=1e-3)


def test_moments_of_many_queries_are_added_up(model, monkeypatch):
    monkeypatch.setattr("harness.recipes.blocks._FEEDS_AT_ONCE", 5)
    parted = observe_moments(model, some_feeds())
    monkeypatch.undo()
    for name, whole in observe_moments(model, some_feeds()).items():
        np.testing.assert_allclose(parted[name], whole, rtol=1e-3, atol=1e-3)


def test_compensation_reduces_what_correlated_inputs_make_of_the_error():
    """With inputs of few directions, most of the error of rounding can be turned away from them."""
    draw = np.random.default_rng(7)
    inputs = draw.normal(size=(500, 12)) @ draw.normal(size=(12, 96)) + 0.1 * draw.normal(size=(500, 96))
    moments = (inputs.T @ inputs).astype(np.float32)
    rows = draw.normal(size=(40, 96)).astype(np.float32)
    nearest, compensated = round_nearest(rows, 4, 32), round_compensated(rows, moments, 4, 32)
    assert moments_loss(rows, compensated, moments) < 0.3 * moments_loss(rows, nearest, moments)


def test_corrections_reach_every_later_channel(monkeypatch):
    """How many channels are corrected at once changes the speed, not what is stored."""
    draw = np.random.default_rng(12)
    inputs = draw.normal(size=(500, 12)) @ draw.normal(size=(12, 96)) + draw.normal(size=(500, 96))
    moments = (inputs.T @ inputs).astype(np.float32)
    rows = draw.normal(size=(10, 96)).astype(np.float32)
    found = []
    for at_once in (7, 64, 96):
        monkeypatch.setattr("harness.recipes.block_rounding._CHANNELS_AT_ONCE", at_once)
        found.append(moments_loss(rows, round_compensated(rows, moments, 4, 32), moments))
    assert max(found) < 1.02 * min(found)


def test_compensation_serves_the_graph(model, feeds):
    """On queries that it has not seen, too, the answers are nearer to FP32."""
    fresh = some_feeds(60, seed=8)
    moments = observe_moments(model, feeds)
    alone = replace(BLOCKS, float_nodes=("lookup",))
    assert spread(model, quantize_blocks(model, alone, moments), fresh) < 0.9 * spread(
        model, quantize_blocks(model, alone), fresh
    )


def test_channels_that_are_never_used_are_rounded_all_the_same():
    """Moments of zero, for one channel or all, are no division by zero, and leave the weights near what they were."""
    rows = np.random.default_rng(9).normal(size=(8, 64)).astype(np.float32)
    moments = np.eye(64, dtype=np.float32)
    moments[3, 3] = 0
    for seen in (moments, np.zeros_like(moments)):
        assert np.abs(round_compensated(rows, seen, 8, 32).values() - rows).max() < 0.05


def test_the_scale_is_no_worse_than_that_of_the_whole_range():
    """Giving up outer values is tried, not imposed: the error is at most what the plain scale makes."""
    rows = np.random.default_rng(10).standard_t(3, size=(200, 64)).astype(np.float32)
    blocks = rows.reshape(200, 2, 32)
    lowest, highest = (np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0))
    scale = ((highest - lowest) / 15)[..., None]
    zero = np.rint(-lowest[..., None] / scale)
    plain = (np.clip(np.rint(blocks / scale) + zero, 0, 15) - zero) * scale
    found = round_nearest(rows, 4, 32).values().reshape(blocks.shape)
    losses, plain_losses = (np.square(values - blocks).sum(axis=2) for values in (found, plain))
    assert (losses <= plain_losses * 1.0001).all()
    assert np.median(losses / plain_losses) < 0.95


def test_zero_and_constant_blocks_are_kept():
    """A block of zeros stays zero; one of a single value, of either sign, stays that value."""
    rows = np.zeros((3, 32), np.float32)
    rows[1], rows[2] = 2.5, -0.125
    np.testing.assert_allclose(round_nearest(rows, 4, 32).values(), rows, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_block_far_from_zero_is_kept(sign):
    """All values on one side of zero: the codes reach from zero to the farthest."""
    rows = (sign * np.random.default_rng(13).uniform(2, 3, (50, 32))).astype(np.float32)
    assert np.abs(round_nearest(rows, 4, 32).values() - rows).max() < 0.2


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_keeps_every_code(bits):
    codes = np.random.default_rng(11).integers(0, 2**bits, (3, 7)).astype(np.uint8)
    assert (unpacked(pack(codes, bits), bits)[:, :7] == codes).all()


def test_values_of_codes():
    """By hand: (code - zero point) * scale."""
    rounded = Rounded(
        np.array([[8, 9, 0, 3]], np.uint8), np.array([[0.5, 2.0]], np.float32), np.array([[8, 1]], np.uint8), 4, 3
    )
    assert rounded.values().tolist() == [[0.0, 0.5, -2.0]]


def test_size_blocks_keeps_the_budget_and_spends_it(model, feeds):
    """More room is more nodes of eight bits, always within the budget; the classifier stays in FP32."""
    shares = (0.24, 0.3)
    chosen = [size_blocks(model, feeds, budget_share=share) for share in shares]
    assert len(chosen[0].eight_bit_nodes) < len(chosen[1].eight_bit_nodes)
    for blocks, share in zip(chosen, shares, strict=True):
        assert blocks.float_nodes == ("classifier",)
        assert quantize_blocks(model, blocks).ByteSize() <= share * model.ByteSize()


def test_size_blocks_takes_the_most_sensitive_first(feeds):
    """Products that hardly reach the answers wait, though more of them would fit."""
    model = a_model()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors["up"].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensors["up"]) * np.float32(1e-3), "up"))
    smallest = quantize_blocks(model, Blocks(4, 32, 4, 32, float_nodes=("classifier",))).ByteSize()
    blocks = size_blocks(model, feeds, budget_share=(smallest + 6600) / model.ByteSize())
    assert blocks.eight_bit_nodes
    assert set(blocks.eight_bit_nodes) <= {"lookup", "attention"}


def test_size_blocks_measures_what_will_be_stored(model, feeds, monkeypatch):
    """With moments, the rounding that is measured is the one that will be written."""
    measured = []

    def watched(rows, moments, bits, block_size):
        measured.append(rows.shape)
        return round_compensated(rows, moments, bits, block_size)

    monkeypatch.setattr("harness.recipes.blocks.round_compensated", watched)
    moments = observe_moments(model, feeds)
    blocks = size_blocks(model, feeds, moments, 0.3)
    assert set(measured) == {(3 * CHANNELS, CHANNELS), (2 * CHANNELS, CHANNELS), (CHANNELS, 2 * CHANNELS)}
    assert quantize_blocks(model, blocks, moments).ByteSize() <= 0.3 * model.ByteSize()


def test_a_budget_that_nothing_fits_is_an_error(model, feeds):
    with pytest.raises(ValueError, match=r"cannot be stored in 0\.050 of its size\. Allow 0\.\d+"):
        size_blocks(model, feeds, budget_share=0.05)
