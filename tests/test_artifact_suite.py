"""The `artifact` suite's measures: each is broken by what it guards against, and by nothing else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harness.artifact import CONFIG, ID2LABEL, MANIFEST, TOKENIZER, TOKENIZER_CONFIG, Variant, open_artifact
from harness.candidate import Candidate
from harness.errors import ArtifactError
from harness.evidence import Measure, MeasureKey
from harness.manifest import write_manifest
from harness.policy import load_policy
from harness.saturation import saturating_products
from harness.serving import Runtime, ServingSettings, VariantEntry
from harness.suite import discover
from harness.timing import SystemClock
from harness.verdict import compare
from suites.artifact import SUITE, model_file, test_files, test_models

FP32, INT8 = (variant.file_name for variant in Variant)


@pytest.fixture(scope="module")
def policy():
    """The default limits."""
    promised = {
        key for found in discover().values() for key in found.suite.promised(["fp32", "int8"], ["fp32", "int8"])
    }
    return load_policy(None, promised, SystemClock().utc().date())


@pytest.fixture
def export(tiny_quantized, tmp_path):
    """A copy of the export with both variants and its manifest."""
    return shutil.copytree(tiny_quantized, tmp_path / "onnx")


@pytest.fixture(scope="module")
def broken_by_the_intact(tiny_quantized, reference, policy):
    """What the export breaks undamaged: so small a model is not a third of its size in INT8."""
    return broken(measured(tiny_quantized, reference), policy)


def measured(folder, reference):
    """Run the suite's tests as functions; returns each measure by `scope.name`, without those that raised."""
    candidate = open_artifact(folder)
    found = {}

    def recorder(scope):
        def record(name, value, *, unit, details=None):
            json.dumps(details)
            found[f"{scope}.{name}"] = Measure(MeasureKey("artifact", scope, name), float(value), unit, details or {})

        return record

    release = recorder("release")
    test_files.test_files_are_complete(candidate, release)
    test_files.test_nothing_else_could_be_served(candidate, reference, release)
    test_files.test_manifest(candidate, release)
    test_files.test_serving(candidate, release)
    test_files.test_labels(candidate, reference, release)
    test_files.test_tokenizer(candidate, reference, release)
    test_files.test_lengths(candidate, reference, release)
    for variant in candidate.variants:
        record = recorder(variant.value)
        test_models.test_loads_and_runs(candidate, variant.value, Runtime.ONNXRUNTIME, record)
        test_models.test_size(candidate, variant.value, reference, record)
        try:
            graph = model_file.read_graph(candidate.model_path(variant))
        except ArtifactError:
            continue
        test_models.test_checker(candidate, variant.value, graph, record)
        test_models.test_signature(graph, reference, record)
        test_models.test_versions(graph, record)
        test_models.test_precision(graph, record)
        test_models.test_saturation(candidate, variant.value, graph, record)
        test_models.test_scales(candidate, graph, record)
    return found


def broken(found, policy):
    """Name the measures that keep a candidate from being accepted."""
    return {name for name, measure in found.items() if compare(policy, measure).rejects}


def edit_json(path, **changes):
    """Change entries of a JSON file; None takes one out."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}), encoding="utf-8")


def edit_variants(folder, change, variants=tuple(Variant)):
    """Change what the manifest says about variants."""
    entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["variants"]
    changed = {variant.value: change(entries[variant.value]) for variant in variants}
    edit_json(folder / MANIFEST, variants={**entries, **changed})


def edit_model(path, change):
    """Change a model file in place."""
    model = onnx.load(str(path))
    change(model)
    onnx.save(model, str(path))


def renew_manifest(folder):
    """List the files as they are now, so that the manifest is not what tells of a change."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    names = ("reference_digest", "versions")
    write_manifest(
        folder,
        default_variant=Variant(manifest["default_variant"]),
        variants={Variant(name): VariantEntry.from_json(entry, name) for name, entry in manifest["variants"].items()},
        **{name: manifest[name] for name in names},
    )


def test_every_measure_is_promised_and_recorded(export, reference):
    """What the suite's tests record is exactly what the suite promises."""
    assert set(measured(export, reference)) == {
        f"{key.scope}.{key.name}" for key in SUITE.promised([variant.value for variant in Variant])
    }


def set_entry(name, **changes):
    """Plant changed entries of a JSON file."""
    return lambda folder: edit_json(folder / name, **changes)


def put(name, content=b"x"):
    """Plant a file."""

    def plant(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return plant


def link_model(folder):
    outside = folder.parent / "outside.onnx"
    (folder / FP32).rename(outside)
    (folder / FP32).symlink_to(outside)


def stale_sibling(folder):
    (folder / "onnx").mkdir()
    shutil.copy(folder / FP32, folder / "onnx" / FP32)


def swap_labels(folder):
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    id2label = {**config["id2label"], "1": config["id2label"]["2"], "2": config["id2label"]["1"]}
    edit_json(folder / CONFIG, id2label=id2label)


def cased_in_tokenizer_json(folder):
    content = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    edit_json(folder / TOKENIZER, normalizer={**content["normalizer"], "lowercase": False})


def truncate(folder):
    rule = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    edit_json(folder / TOKENIZER, truncation=rule)


def pad_always(folder):
    rule = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    edit_json(folder / TOKENIZER, padding={**rule, "pad_token": "[PAD]"})


def freeze(folder):
    def change(model):
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 9

    edit_model(folder / FP32, change)


def freeze_output(folder):
    def change(model):
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1

    edit_model(folder / FP32, change)


def foreign_domain_in_a_branch(folder):
    """An operator of nobody's domain in the branch of an If."""

    def change(model):
        inner = helper.make_node("Anything", [], ["inner"], domain="com.example")
        branch = helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("inner", 1, [1])])
        model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
        model.graph.node.append(helper.make_node("If", ["yes"], ["nothing"], then_branch=branch, else_branch=branch))
        model.opset_import.append(helper.make_opsetid("com.example", 1))

    edit_model(folder / FP32, change)


def no_mask(folder):
    """A model that makes its own mask and takes none."""

    def change(model):
        kept = [value for value in model.graph.input if value.name != "attention_mask"]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        made = [
            helper.make_node("Shape", ["input_ids"], ["shape_of_ids"]),
            helper.make_node("Expand", ["one"], ["attention_mask"], name="makes_the_mask"),
        ]
        made[1].input.append("shape_of_ids")
        model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "one"))
        for node in reversed(made):
            model.graph.node.insert(0, node)

    edit_model(folder / FP32, change)


def version(**changes):
    def change(model):
        if "opset" in changes:
            next(entry for entry in model.opset_import if not entry.domain).version = changes["opset"]
        model.ir_version = changes.get("ir", model.ir_version)

    return lambda folder: edit_model(folder / FP32, change)


def full_range_for_avx2(folder, target="avx2"):
    """The INT8 file that is right for VNNI, promised to CPUs without it by a manifest that names only its target."""
    edit_model(folder / INT8, full_range_weights)
    edit_variants(
        folder, lambda entry: {**entry, "cpu": {}, "recipe": {**entry["recipe"], "target": target}}, [Variant.INT8]
    )


def full_range_weights(model):
    """Let two neighbouring weights of a column be as large as they can."""
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.int8 and value.ndim == 2 and "word" not in tensor.name:
            full = value.copy()
            full[:2, 0] = 127
            tensor.CopyFrom(numpy_helper.from_array(full, tensor.name))


def spoiled_scale(value):
    """Give the last channel of one weight another scale."""

    def spoil(model):
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        names = [node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"]
        tensor = next(tensors[name] for name in names if numpy_helper.to_array(tensors[name]).ndim == 1)
        scales = numpy_helper.to_array(tensor).copy()
        scales[-1] = value
        tensor.CopyFrom(numpy_helper.from_array(scales, tensor.name))

    return lambda folder: edit_model(folder / INT8, spoil)


def serve_otherwise(**changes):
    return lambda folder: edit_variants(folder, lambda entry: {**entry, "serving": {**entry["serving"], **changes}})


def external(folder, location="model.onnx_data"):
    model = onnx.load(str(folder / FP32))
    (folder / FP32).unlink()
    onnx.save(model, str(folder / FP32), save_as_external_data=True, location=location, size_threshold=64)


def external_missing(folder):
    external(folder)
    (folder / "model.onnx_data").unlink()


def external_cut(folder):
    external(folder)
    content = (folder / "model.onnx_data").read_bytes()
    (folder / "model.onnx_data").write_bytes(content[: len(content) // 2])


def external_outside(folder):
    external(folder)
    (folder / "model.onnx_data").rename(folder.parent / "weights")

    def change(model):
        for tensor in model.graph.initializer:
            for item in tensor.external_data:
                if item.key == "location":
                    item.value = "../weights"

    model = onnx.load(str(folder / FP32), load_external_data=False)
    change(model)
    (folder / FP32).write_bytes(model.SerializeToString())


def shorten_positions(folder):
    """The position table has lost its second half, and the configuration does not say so."""

    def change(model):
        for tensor in model.graph.initializer:
            if "position_embeddings" in tensor.name and tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:32], tensor.name))

    edit_model(folder / FP32, change)


# What no runtime of ours follows, it refuses to serve.
NOT_SERVED = {"release.serving_differences", "fp32.load_failures", "int8.load_failures"}
DAMAGES = {
    "a required file is missing": (
        lambda folder: (folder / ID2LABEL).unlink(),
        {"release.missing_files"},
    ),
    "another model": (put("model_fp16.onnx"), {"release.unexpected_files"}),
    "another model in a subfolder, under the same name": (stale_sibling, {"release.unexpected_files"}),
    "a pickle": (put("optimizer.pt"), {"release.unexpected_files"}),
    "weights of another framework": (put("tf_model.h5"), {"release.unexpected_files"}),
    "weights that no model names": (put("model.onnx.data"), {"release.unexpected_files"}),
    "safetensors": (put("model.safetensors"), {"release.unexpected_files"}),
    "code": (put("modeling.py"), {"release.unexpected_files"}),
    "a link out of the folder": (link_model, {"release.unexpected_files"}),
    "serving: another optimization level": (
        serve_otherwise(graph_optimization_level="ORT_ENABLE_BASIC"),
        {"release.serving_differences"},
    ),
    "serving: other threads": (serve_otherwise(intra_op_num_threads=4), {"release.serving_differences"}),
    "serving: another provider": (serve_otherwise(provider="CUDAExecutionProvider"), NOT_SERVED),
    "serving: a setting nobody applies": (serve_otherwise(use_arena=True), NOT_SERVED),
    "serving: no entry": (
        lambda folder: edit_variants(folder, lambda entry: {**entry, "serving": None}),
        NOT_SERVED,
    ),
    "labels: one exchanged": (swap_labels, {"release.label_differences"}),
    "labels: label2id disagrees": (set_entry(CONFIG, label2id={"O": 0}), {"release.label_differences"}),
    "labels: num_labels disagrees": (set_entry(CONFIG, num_labels=2), {"release.label_differences"}),
    "labels: id2label.json is no JSON": (put(ID2LABEL, b"{"), {"release.label_differences"}),
    "tokenizer.json: cased": (cased_in_tokenizer_json, {"release.tokenizer_differences"}),
    "tokenizer.json: truncates": (truncate, {"release.tokenizer_differences"}),
    "tokenizer.json: pads": (pad_always, {"release.tokenizer_differences"}),
    "tokenizer_config.json: cased": (
        set_entry(TOKENIZER_CONFIG, do_lower_case=False),
        {"release.tokenizer_differences"},
    ),
    "tokenizer_config.json: strips accents": (
        set_entry(TOKENIZER_CONFIG, strip_accents=True),
        {"release.tokenizer_differences"},
    ),
    "tokenizer_config.json: pads left": (
        set_entry(TOKENIZER_CONFIG, padding_side="left"),
        {"release.tokenizer_differences"},
    ),
    "tokenizer_config.json: another special token": (
        set_entry(TOKENIZER_CONFIG, sep_token="[MASK]"),
        {"release.tokenizer_differences"},
    ),
    "tokenizer_config.json: code of its own": (
        set_entry(TOKENIZER_CONFIG, auto_map={"AutoTokenizer": ["x.Y", None]}, tokenizer_class="Y"),
        {"release.tokenizer_differences"},
    ),
    "length: model_max_length": (set_entry(TOKENIZER_CONFIG, model_max_length=16), {"release.length_differences"}),
    "length: positions that the graph has not": (
        set_entry(CONFIG, max_position_embeddings=128),
        {"release.length_differences"},
    ),
    "length: fewer positions": (set_entry(CONFIG, max_position_embeddings=32), {"release.length_differences"}),
    "length: a shorter table": (shorten_positions, {"release.length_differences"}),
    "length: another pad token": (set_entry(CONFIG, pad_token_id=3), {"release.length_differences"}),
    "the model is empty": (put(FP32, b""), {"fp32.load_failures"}),
    "the model is no ONNX": (put(FP32, b"<html>not found</html>"), {"fp32.load_failures"}),
    "external data are missing": (external_missing, {"fp32.load_failures", "fp32.external_data_problems"}),
    "external data are cut": (external_cut, {"fp32.load_failures", "fp32.external_data_problems"}),
    "external data lie outside": (external_outside, {"fp32.load_failures", "fp32.external_data_problems"}),
    "the token axis is frozen": (freeze, {"fp32.frozen_axes", "fp32.load_failures"}),
    "the output's batch axis is frozen": (freeze_output, {"fp32.frozen_axes"}),
    "an operator of nobody's": (
        foreign_domain_in_a_branch,
        {"fp32.foreign_operators", "fp32.load_failures", "fp32.checker_failures"},
    ),
    "no attention mask": (no_mask, {"fp32.input_differences"}),
    "too new an opset": (version(opset=23), {"fp32.opset_version", "fp32.load_failures", "fp32.checker_failures"}),
    "too new a format": (version(ir=11), {"fp32.ir_version"}),
    "INT8 under the FP32 name": (
        lambda folder: shutil.copy(folder / INT8, folder / FP32),
        {"fp32.quantized_weight_share"},
    ),
    "FP32 under the INT8 name": (
        lambda folder: shutil.copy(folder / FP32, folder / INT8),
        {"int8.quantized_weight_share", "int8.saturating_products"},  # the manifest's largest pair is not in the file
    ),
    "a channel's scale is zero": (spoiled_scale(0.0), {"int8.unusable_scales"}),
    "a channel's scale is negative": (spoiled_scale(-0.5), {"int8.unusable_scales"}),
    "a channel's scale is no number": (spoiled_scale(float("nan")), {"int8.unusable_scales"}),
    "weights that clamp on the target": (full_range_for_avx2, {"int8.saturating_products"}),
}
# What ONNX's checker or this onnxruntime says of a version is theirs to change; which weights are written by default is
# a matter of the machine's CPU.
NOT_OURS = {
    "INT8 under the FP32 name": {"fp32.saturating_products"},
    "too new an opset": {"fp32.load_failures", "fp32.checker_failures"},
    "an operator of nobody's": {"fp32.checker_failures"},
    "the output's batch axis is frozen": {"fp32.checker_failures"},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_breaks_what_guards_against_it(name, export, reference, policy, broken_by_the_intact):
    """A damaged export breaks the limits that guard against the damage, and no other."""
    damage, expected = DAMAGES[name]
    damage(export)
    if not name.startswith("serving"):
        renew_manifest(export)  # so that not the digests tell of the damage
    found = measured(export, reference)
    extra = NOT_OURS.get(name, set()) | broken_by_the_intact
    assert broken(found, policy) - extra - {"release.manifest_differences"} == expected - extra
    for key in expected & set(found):
        lists = [value for value in found[key].details.values() if isinstance(value, list)]
        assert all(isinstance(text, str) and "\n" not in text and len(text) < 600 for value in lists for text in value)


def test_the_intact_export_breaks_only_its_size(broken_by_the_intact):
    """Nothing but the size of so small a file is wrong with the export that the damages are made on."""
    assert broken_by_the_intact <= {"int8.size_ratio_to_reference", "fp32.size_ratio_to_reference"}


def test_a_manifest_that_lists_no_files(export, reference, policy):
    """A manifest without its list of files counts, instead of ending the session."""
    edit_json(export / MANIFEST, files=None)
    assert "release.manifest_differences" in broken(measured(export, reference), policy)


def test_label2id_may_be_left_out_but_not_wrong(export, reference):
    """An export of another tool needs no label2id; one that it has must agree. A release has one."""
    edit_json(export / CONFIG, label2id=None)
    assert measured(export, reference)["release.label_differences"].value == 1
    (export / MANIFEST).unlink()
    assert measured(export, reference)["release.label_differences"].value == 0
    edit_json(export / CONFIG, label2id={"O": 1})
    assert measured(export, reference)["release.label_differences"].value == 1


def test_the_settings_of_the_manifest():
    """What an export's manifest promises about serving; a program elsewhere may rely on these words."""
    assert ServingSettings().to_json() == {
        "intra_op_num_threads": 1,
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "disabled_optimizers": [],
        "provider": "CPUExecutionProvider",
    }


def test_whole_external_data_count_as_the_model(export, reference, policy, broken_by_the_intact):
    """Weights in another file inside the folder break nothing, and count in the size."""
    before = measured(export, reference)["fp32.file_size"].value
    external(export)
    renew_manifest(export)
    found = measured(export, reference)
    assert broken(found, policy) <= broken_by_the_intact
    assert found["fp32.file_size"].value == pytest.approx(before, rel=0.05)


def test_the_references_own_weights_may_lie_beside(export, reference, policy, tiny_checkpoint, broken_by_the_intact):
    """An export made into the checkpoint's folder is not refused for the checkpoint, only for other weights."""
    shutil.copy(tiny_checkpoint / "model.safetensors", export)
    renew_manifest(export)
    assert broken(measured(export, reference), policy) <= broken_by_the_intact


def test_weights_in_constant_nodes_count(export):
    """A model whose initializers became Constant nodes has the same share of quantized weights, and the same positions."""

    def change(model):
        for tensor in list(model.graph.initializer):
            node = helper.make_node("Constant", [], [tensor.name], value=tensor)
            model.graph.node.insert(0, node)
        del model.graph.initializer[:]

    before = model_file.read_graph(export / INT8)
    edit_model(export / INT8, change)
    after = model_file.read_graph(export / INT8)
    assert model_file.quantized_weight_share(after) == model_file.quantized_weight_share(before) >= 0.95
    assert model_file.counted_tables(after) == model_file.counted_tables(before)


def test_functions_of_the_model_are_no_foreign_operators(export):
    """A domain that the file itself defines is not foreign; what its function uses may be."""
    model = onnx.load(str(export / FP32))
    node = helper.make_node("Identity", ["x"], ["y"])
    function = helper.make_function("pkg.mine", "Wrap", ["x"], ["y"], [node], [helper.make_opsetid("", 18)])
    model.functions.append(function)
    model.graph.node.append(helper.make_node("Wrap", [model.graph.output[0].name], ["copy"], domain="pkg.mine"))
    assert model_file.foreign_operators(model) == []
    model.functions[0].node[0].domain = "com.example"
    assert model_file.foreign_operators(model) == ["com.example.Identity"]


def test_other_outputs_may_have_fixed_axes(export):
    """An attention map beside the logits has a fixed number of heads, which is no frozen batch or length."""

    def change(model):
        model.graph.output.append(
            helper.make_tensor_value_info("attentions", TensorProto.FLOAT, ["batch", 2, None, None])
        )

    model = onnx.load(str(export / FP32))
    change(model)
    assert model_file.frozen_axes(model) == []


# One product of 8-bit numbers in each form that tools write.
SAFE = np.tile(np.array([[64], [-64], [63], [-128]], np.int8), (1, 3))
LARGE = np.tile(np.array([[1], [100], [29], [-5]], np.int8), (1, 3))
LIMIT = np.tile(np.array([[1], [100], [28], [-5]], np.int8), (1, 3))
OPPOSITE = np.tile(np.array([[127], [-128], [127], [-128]], np.int8), (1, 3))


def product(form, weights, activations=np.uint8, *, transposed=False):
    """Build a graph of one product."""
    zero = numpy_helper.from_array(np.zeros((), activations), "zero")
    zero_w = numpy_helper.from_array(np.zeros((), weights.dtype), "zero_w")
    one = numpy_helper.from_array(np.ones((), np.float32), "one")
    stored = np.ascontiguousarray(weights.T) if transposed else weights
    quantize = helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"])
    restore = [
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero_w"], ["b"]),
    ]
    gemm = {"transB": 1} if transposed else {}
    nodes = {
        "MatMulInteger": [quantize, helper.make_node("MatMulInteger", ["q", "w", "zero"], ["y"])],
        "MatMulIntegerToFloat": [
            quantize,
            helper.make_node("MatMulIntegerToFloat", ["q", "w", "one", "one"], ["y"], domain="com.microsoft"),
        ],
        "QLinearMatMul": [
            helper.make_node("QLinearMatMul", ["x8", "one", "zero", "w", "one", "zero_w", "one", "zero"], ["y"])
        ],
        "QGemm": [
            helper.make_node(
                "QGemm", ["x8", "one", "zero", "w", "one", "zero_w"], ["y"], domain="com.microsoft", **gemm
            )
        ],
        "DynamicQuantizeMatMul": [
            helper.make_node("DynamicQuantizeMatMul", ["x", "w", "one"], ["y"], domain="com.microsoft")
        ],
        "QDQ MatMul": [quantize, *restore, helper.make_node("MatMul", ["a", "b"], ["y"])],
        "QDQ Gemm": [quantize, *restore, helper.make_node("Gemm", ["a", "b"], ["y"], **gemm)],
        "QDQ Transpose": [
            quantize,
            *restore,
            helper.make_node("Transpose", ["b"], ["bt"], perm=[1, 0]),
            helper.make_node("MatMul", ["a", "bt"], ["y"]),
        ],
        "weights alone": [restore[1], helper.make_node("MatMul", ["x", "b"], ["y"])],
    }[form]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", 1, [1, 4]), helper.make_tensor_value_info("x8", 2, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 3])],
        [zero, zero_w, one, numpy_helper.from_array(stored, "w")],
    )
    return helper.make_model(graph)


FORMS = (
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QLinearMatMul",
    "QGemm",
    "DynamicQuantizeMatMul",
    "QDQ MatMul",
    "QDQ Gemm",
)


@pytest.mark.parametrize("form", FORMS)
def test_products_that_clamp(form, tmp_path):
    """Neighbours along the summed axis that add up to 129 clamp in every form; 128, and unlike signs, do not."""
    assert len(saturating_products(product(form, LARGE), tmp_path)) == 1
    for weights in (SAFE, LIMIT, OPPOSITE):
        assert saturating_products(product(form, weights), tmp_path) == []


@pytest.mark.parametrize("form", ["QGemm", "QDQ Gemm", "QDQ Transpose"])
def test_products_of_transposed_weights(form, tmp_path):
    """The summed axis is followed through transposition."""
    assert len(saturating_products(product(form, LARGE, transposed=True), tmp_path)) == 1
    assert saturating_products(product(form, SAFE, transposed=True), tmp_path) == []


@pytest.mark.parametrize("form", FORMS)
def test_unsigned_weights_never_clamp(form, tmp_path):
    """U8U8 has kernels that widen before they multiply."""
    assert saturating_products(product(form, np.full((4, 3), 255, np.uint8)), tmp_path) == []


def test_signed_activations(tmp_path):
    """S8S8 clamps where onnxruntime makes it U8S8 on x86, which it does with QDQ models only."""
    for form in ("QDQ MatMul", "QDQ Gemm"):
        assert len(saturating_products(product(form, LARGE, np.int8), tmp_path)) == 1
    for form in ("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm"):
        assert saturating_products(product(form, LARGE, np.int8), tmp_path) == []


def test_weights_alone_are_multiplied_as_floats(tmp_path):
    """Where only the weights are stored in 8 bits, nothing is added in 16."""
    assert saturating_products(product("weights alone", LARGE), tmp_path) == []


def test_the_arithmetic_of_a_pair():
    """The limit is where sums of two products leave 16 bits, tried on the worst activations."""
    weights = np.arange(-128, 128)
    first, second = np.meshgrid(weights, weights)
    worst = np.maximum(first, 0) * 255 + np.maximum(second, 0) * 255
    least = np.minimum(first, 0) * 255 + np.minimum(second, 0) * 255
    clamps = (worst > np.iinfo(np.int16).max) | (least < np.iinfo(np.int16).min)
    assert (clamps == (np.abs(first + second) > 128)).all()


@pytest.mark.parametrize(
    ("target", "counted"), [("avx2", True), ("avx512", True), ("sse9", True), ("avx512_vnni", False), ("arm64", False)]
)
def test_the_target_decides(target, counted, export, reference):
    """Clamping weights count unless the manifest names CPUs that do not clamp; without a manifest they do."""
    full_range_for_avx2(export, target)
    found = measured(export, reference)["int8.saturating_products"]
    assert (found.value > 0) is counted
    assert found.details["found"] > 0
    (export / MANIFEST).unlink()
    found = measured(export, reference)["int8.saturating_products"]
    assert found.value > 0
    assert "nothing says which CPUs" in found.details["problems"][0]


@pytest.mark.parametrize(
    ("cpu", "counted"),
    [
        ({"safe_on_every": True, "needs_one_of": []}, True),
        ({"safe_on_every": False, "needs_one_of": ["avx512_vnni", "avx_vnni", "arm64"]}, False),
        ({"safe_on_every": False, "needs_one_of": ["avx512_vnni", "avx512"]}, True),
        ({"safe_on_every": False, "needs_one_of": ["avx512_vnni"], "largest_pair": 128}, True),
        ({"safe_on_every": False, "needs_one_of": ["avx512_vnni"], "largest_pair": 254}, False),
    ],
)
def test_the_manifests_claim_is_held_against_the_bytes(cpu, counted, export, reference, policy, broken_by_the_intact):
    """A manifest that promises CPUs on which these weights clamp, or another largest pair, is rejected; else not."""
    edit_model(export / INT8, full_range_weights)
    edit_variants(export, lambda entry: {**entry, "cpu": cpu, "recipe": {}}, [Variant.INT8])
    renew_manifest(export)
    found = measured(export, reference)
    assert (found["int8.saturating_products"].value > 0) is counted
    expected = {"int8.saturating_products"} if counted else set()
    assert broken(found, policy) - broken_by_the_intact == expected
    assert found["int8.saturating_products"].details["certificate"]["largest_pair"] == 254


@pytest.mark.parametrize("target", ["avx2", "avx512"])
def test_our_recipes_without_vnni_do_not_clamp(target, tiny_checkpoint, tiny_queries, tmp_path):
    """What `--target avx2` makes holds no pair of weights that clamps."""
    from harness.export_onnx import export_to_onnx

    folder = export_to_onnx(
        tiny_checkpoint, tmp_path / "onnx", quantize=True, target=target, calibration=tiny_queries[:8]
    )
    assert saturating_products(model_file.read_graph(folder / INT8), folder) == []


def test_dynamic_quantization_clamps(tiny_export, tmp_path):
    """The dynamic quantizer of onnxruntime makes weights that clamp, unless it is told to reduce their range."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for reduced in (False, True):
        path = tmp_path / f"{reduced}.onnx"
        quantize_dynamic(tiny_export / FP32, path, weight_type=QuantType.QInt8, reduce_range=reduced)
        assert bool(saturating_products(onnx.load(str(path)), tmp_path)) is not reduced


def test_candidates_still_open_beside_damages(export):
    """The table's damages that only concern words in files leave a model that opens."""
    swap_labels(export)
    assert Candidate(open_artifact(export), Variant.FP32).inputs
