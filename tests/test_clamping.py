"""`harness.clamping`: sums of two products in 16 bits, alone and inside a model, beside onnxruntime's own exact ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper, numpy_helper

from harness.artifact import Variant, open_artifact
from harness.candidate import Candidate
from harness.clamping import ClampingModel, ClampingWeights, clamped_product
from harness.errors import ArtifactError
from harness.pair_limits import limit_pairs
from harness.saturation import certify, clamping_products
from harness.tagging import pad

INT8 = Variant.INT8.file_name


@pytest.mark.parametrize(
    ("activations", "weights", "expected"),
    [
        # 255 · 127 · 2 = 64770, clamped to 32767
        ([255, 255], [127, 127], 32767),
        # -255 · 128 · 2 = -65280, clamped to -32768
        ([255, 255], [-128, -128], -32768),
        # 255 · 128 is the most that fits
        ([255, 255], [64, 64], 32640),
        ([255, 255], [100, 29], 32767),
        ([254, 254], [100, 29], 32766),
        # unlike signs never clamp
        ([255, 255], [127, -128], -255),
        # the second pair is clamped by itself and then added in 32 bits
        ([1, 2, 255, 255], [3, 4, 127, 127], 11 + 32767),
        ([255, 255, 255, 255], [127, 127, -128, -128], -1),
        # rows 1 and 2 are no pair; the last row is alone with a zero
        ([0, 255, 255, 0], [0, 127, 127, 0], 64770),
        ([255, 255, 255], [127, 0, 127], 64770),
    ],
)
def test_known_sums(activations, weights, expected):
    """Sums that were worked out by hand."""
    row, column = np.array([activations], np.uint8), np.array([weights], np.int8).T
    assert clamped_product(row, column).tolist() == [[expected]]
    result, clamped = ClampingWeights(column).product(row, clamps=True)
    assert result.tolist() == [[expected]]
    pairs = zip(activations[::2], weights[::2], [*activations[1::2], 0], [*weights[1::2], 0], strict=False)
    assert clamped == sum(not -32768 <= a * v + b * w <= 32767 for a, v, b, w in pairs)


@given(st.data(), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4))
def test_the_fast_way_is_the_definition(data, rows, depth, columns):
    """Looking at dangerous pairs alone gives what the definition gives, and without clamping the exact product."""
    extreme = st.sampled_from([0, 1, 127, 128, 254, 255])
    activations = data.draw(arrays.arrays(np.uint8, (rows, depth), elements=extreme | st.integers(0, 255)))
    signed = st.sampled_from([-128, -127, -64, 0, 64, 65, 127]) | st.integers(-128, 127)
    weights = data.draw(arrays.arrays(np.int8, (depth, columns), elements=signed))
    exact = activations.astype(np.int64) @ weights.astype(np.int64)
    fast = ClampingWeights(weights)
    result, clamped = fast.product(activations, clamps=True)
    assert (result == clamped_product(activations, weights)).all()
    assert (fast.product(activations, clamps=False)[0] == exact).all()
    assert clamped or (result == exact).all()
    limited = limit_pairs(weights, 0)
    assert (clamped_product(activations, limited) == activations.astype(np.int64) @ limited.astype(np.int64)).all()


def test_deep_products_are_exact():
    """However many products are added, and as large as they can be, none is rounded."""
    random = np.random.default_rng(20261123)
    activations = random.integers(250, 256, (3, 1537)).astype(np.uint8)
    for weights in (np.full((1537, 2), 127, np.int8), random.integers(-128, -120, (1537, 2)).astype(np.int8)):
        exact, _ = ClampingWeights(weights).product(activations, clamps=False)
        assert (exact == activations.astype(np.int64) @ weights.astype(np.int64)).all()
        assert (
            ClampingWeights(weights).product(activations, clamps=True)[0] == clamped_product(activations, weights)
        ).all()


FORMS = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QDQ", "QAttention")
HIDDEN = 8


def stored(random, name, dtype, *shape):
    if dtype == np.float32:
        return numpy_helper.from_array(random.uniform(0.01, 0.05, shape).astype(dtype), name)
    low, high = (np.iinfo(dtype).min + (dtype == np.int8), np.iinfo(dtype).max + 1)
    return numpy_helper.from_array(random.integers(low, high, shape).astype(dtype), name)


def one_product(form):
    """Build a graph of one product with weights of full range, in the form that a tool writes."""
    random = np.random.default_rng(20261123)
    width = 3 * HIDDEN
    keep = [
        stored(random, "w", np.int8, HIDDEN, width),
        numpy_helper.from_array(np.float32(0.02), "s"),
        numpy_helper.from_array(np.uint8(120), "z"),
        stored(random, "ws", np.float32, width),
        numpy_helper.from_array(np.zeros(width, np.int8), "wz"),
        stored(random, "bias", np.float32, width),
        numpy_helper.from_array(np.float32(0.9), "ys"),
    ]
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    microsoft = {"domain": "com.microsoft"}
    nodes = {
        "MatMulInteger": [quantize, helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["i"]),
                          helper.make_node("Cast", ["i"], ["y"], to=1)],
        "MatMulIntegerToFloat": [
            quantize,
            helper.make_node("MatMulIntegerToFloat", ["q", "w", "s", "ws", "z", "wz", "bias"], ["y"], **microsoft),
        ],
        "DynamicQuantizeMatMul": [
            helper.make_node("DynamicQuantizeMatMul", ["x", "w", "ws", "", "bias"], ["y"], **microsoft)
        ],
        "QLinearMatMul": [
            quantize,
            helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "ws", "wz", "ys", "z"], ["qy"]),
            helper.make_node("DequantizeLinear", ["qy", "ys", "z"], ["y"]),
        ],
        "QDQ": [
            quantize,
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["b"], axis=1),
            helper.make_node("MatMul", ["a", "b"], ["y"]),
        ],
        "QAttention": [
            quantize,
            helper.make_node(
                "QAttention", ["q", "w", "bias", "s", "ws", "mask", "z", "wz"], ["y"], num_heads=2, **microsoft
            ),
        ],
    }[form]  # fmt: skip
    used = {name for node in nodes for name in node.input}
    inputs = [helper.make_tensor_value_info("x", 1, ["batch", "tokens", HIDDEN])]
    inputs += [helper.make_tensor_value_info("mask", 6, ["batch", "tokens"])] if form == "QAttention" else []
    graph = helper.make_graph(
        nodes, "product", inputs, [helper.make_tensor_value_info("y", 1, None)], [t for t in keep if t.name in used]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def product_feed(form):
    random = np.random.default_rng(7)
    values = random.standard_normal((2, 5, HIDDEN)).astype(np.float32) * 2
    feed = {"x": values}
    if form == "QAttention":
        feed["mask"] = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    return feed


def run_by_onnxruntime(path, feed):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("form", FORMS)
def test_exact_products_are_onnxruntimes(form, tmp_path):
    """Without clamping, every form gives what onnxruntime gives, here with weights that no CPU may clamp."""
    model = one_product(form)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    tensor.CopyFrom(numpy_helper.from_array(limit_pairs(numpy_helper.to_array(tensor), 0), "w"))
    onnx.save(model, path := tmp_path / "m.onnx")
    emulated = ClampingModel(path)
    assert emulated.products == 1
    (expected,) = run_by_onnxruntime(path, product_feed(form))
    for clamps in (False, True):
        np.testing.assert_allclose(emulated.run(product_feed(form), clamps=clamps)["y"], expected, rtol=1e-5, atol=1e-5)
    assert emulated.counted.clamped == 0
    assert emulated.counted.sums == 2 * 5 * (HIDDEN // 2) * 3 * HIDDEN


@pytest.mark.parametrize("form", FORMS)
def test_full_range_products_clamp_in_every_form(form, tmp_path):
    """With weights of full range, clamping changes what every form answers."""
    onnx.save(one_product(form), path := tmp_path / "m.onnx")
    emulated = ClampingModel(path)
    exact, clamped = (emulated.run(product_feed(form), clamps=clamps)["y"] for clamps in (False, True))
    assert emulated.counted.clamped > 0
    assert not np.allclose(exact, clamped, atol=1e-3)


def test_a_form_that_is_not_known_is_refused(tmp_path):
    """A product that cannot be computed here is named; nothing is measured without it."""
    model = one_product("QLinearMatMul")
    node = model.graph.node[1]
    node.op_type, node.domain = "QGemm", "com.microsoft"
    del node.input[:]
    node.input.extend(["q2", "s", "z", "w", "ws", "wz", "", "ys", "z"])
    flat = helper.make_node("Reshape", ["q", "flat"], ["q2"])
    model.graph.node.insert(1, flat)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, HIDDEN]), "flat"))
    onnx.save(model, path := tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="QGemm"):
        ClampingModel(path)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="cannot be rewritten"):
        ClampingModel(tmp_path / "broken.onnx")


@pytest.fixture(scope="module")
def full_range(tiny_checkpoint, tiny_queries, tmp_path_factory):
    """The tiny export for VNNI, two of whose neighbours in every product are as large as they can be."""
    from harness.export_onnx import export_to_onnx

    folder = export_to_onnx(
        tiny_checkpoint,
        tmp_path_factory.mktemp("clamping") / "onnx",
        quantize=True,
        target="avx512_vnni",
        calibration=tiny_queries[:24],
    )
    model = onnx.load(str(folder / INT8))
    for _, weight in clamping_products(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight.name)
        values = numpy_helper.to_array(tensor).copy()
        values[:8] = np.where(values[:8] >= 0, 127, -127)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(folder / INT8))
    return open_artifact(folder)


def feeds(export, texts):
    candidate = Candidate(export, Variant.INT8)
    batches = [pad([query.windows[0]], candidate.pad_token_id) for query in candidate.encode(texts)]
    return [{name: value for name, value in batch._asdict().items() if name in candidate.inputs} for batch in batches]


def test_full_range_changes_logits_and_certified_weights_change_none(full_range, tiny_queries, tmp_path):
    """On a whole model: what is not certified answers otherwise where sums clamp; certified, the same to the bit."""
    path = full_range.model_path(Variant.INT8)
    limited = onnx.load(str(path))
    for tensor in limited.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.int8 and values.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(limit_pairs(values, 0), tensor.name))
    onnx.save(limited, safe := tmp_path / INT8)
    assert not certify(onnx.load(str(path)), path.parent).safe_on_every
    assert certify(limited, tmp_path).safe_on_every
    largest = {}
    for name in (path, safe):
        model = ClampingModel(name)
        found = []
        for feed in feeds(full_range, tiny_queries[:20]):
            exact, clamped = (model.run(feed, clamps=clamps)["logits"] for clamps in (False, True))
            found.append(np.abs(exact - clamped).max())
        largest[name] = max(found)
        assert (model.counted.clamped > 0) is (name is path)
    assert largest[path] > 0.05
    assert largest[safe] == 0


def test_a_model_without_clamping_is_onnxruntimes(full_range, tiny_queries):
    """The pieces with exact products answer as onnxruntime's own session does on a CPU that adds in 32 bits.

    On another, onnxruntime is told not to clamp (session.x64quantprecision).
    """
    path = full_range.model_path(Variant.INT8)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = ClampingModel(path)
    for feed in feeds(full_range, tiny_queries[:20]):
        (expected,) = session.run(["logits"], feed)
        np.testing.assert_allclose(model.run(feed, clamps=False)["logits"], expected, atol=1e-4)
