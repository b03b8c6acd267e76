"""Planting known defects and harmless changes into copies of a tiny export."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import files_of

from harness.artifact import Variant, open_artifact
from harness.candidate import session_options
from harness.defects import DEFECTS, HARMLESS, UNPLANTED, Defect, DefectNotApplicableError, Kind, Strength, plant
from harness.documents import read_json_object, write_json
from harness.errors import ArtifactError
from harness.manifest import changed_files

# the ids of the list of known defects
LISTED = [
    "random-head", "weight-noise", "noise-model", "no-entities", "saturation", "batch-dependent",
    "right-padding-only", "masked-nan", "frozen-length", "frozen-batch", "swapped-inputs", "ignored-mask",
    "surplus-input", "stale-sibling", "missing-external-data", "escaping-external-data", "labels-reset",
    "labels-permuted", "lost-begin", "subword-words", "foreign-tokenizer", "truncating-tokenizer", "lost-tail",
    "too-new", "basic-gate", "not-quantized", "slow-int8", "slowdown", "host-threads", "silent-provider",
    "warned-parity",
]  # fmt: skip
BY_NAME = {defect.name: defect for defect in (*DEFECTS, *HARMLESS)}

# What the tiny export has no place for: its graph carries no shapes of inner tensors before it is quantized.
NOT_APPLICABLE = {("without-shapes", Variant.FP32)}
# Loads in no runtime, or may not, depending on the runtime's age.
NEED_NOT_LOAD = {"too-new", "too-new-format", "foreign-operator"}
# Damage that is not in what the model answers on this machine.
ANSWERS_ALIKE = {"too-new", "too-new-format", "saturation"}

MODEL_KINDS = {Kind.GRAPH, Kind.WEIGHTS, Kind.INT8, Kind.SPEED}
MAPS = {"config.json", "id2label.json", "label2id.json"}


def plantings(defects):
    return [
        pytest.param(defect, variant, id=f"{defect.name}-{variant.value}" if variant else defect.name)
        for defect in defects
        for variant in defect.variants or (None,)
        if (defect.name, variant) not in NOT_APPLICABLE
    ]


def strongest(defect: Defect) -> float:
    return defect.strengths[0].value if defect.strengths else 0.0


@pytest.fixture
def planted(tiny_quantized, tiny_checkpoint, tmp_path):
    """Plant a defect by its name into a copy of the export, in a folder of its own."""

    def make(name, variant=None, strength=None, export=tiny_quantized):
        defect = BY_NAME[name]
        folder = tmp_path / f"planted{len(list(tmp_path.iterdir()))}"
        plant(defect, export, tiny_checkpoint, folder, variant, strongest(defect) if strength is None else strength)
        return folder

    return make


def kept(export: Path, defect: Defect, variant: Variant | None) -> dict[str, bytes]:
    """What a copy holds before it is damaged."""
    chosen = variant or Variant.INT8
    dropped = [] if defect.keeps_both else [other.file_name for other in Variant if other is not chosen]
    return {name: content for name, content in files_of(export).items() if name not in dropped}


def test_names_are_unique():
    """No two defects, changes or known omissions share a name."""
    names = [*(defect.name for defect in (*DEFECTS, *HARMLESS)), *(unplanted.name for unplanted in UNPLANTED)]
    assert len(names) == len(set(names))


def test_every_known_defect_is_planted_or_says_why_not():
    """Each id of the list of known defects is a defect of that name, or is named with a reason and a guard."""
    listed = [defect.name for defect in DEFECTS if defect.listed]
    assert sorted([*listed, *(unplanted.name for unplanted in UNPLANTED)]) == sorted(LISTED)
    assert all(unplanted.reason and unplanted.guard for unplanted in UNPLANTED)


def test_every_kind_is_planted():
    """There is a defect of each kind."""
    assert {defect.kind for defect in DEFECTS} == set(Kind)


@pytest.mark.parametrize("values", [(0.1, 0.5), (0.5, 0.5)])
def test_strengths_must_fall(values):
    """A defect whose strengths do not fall is refused."""
    strengths = tuple(Strength(value, "some") for value in values)
    with pytest.raises(ValueError, match="do not fall"):
        Defect("some-defect", Kind.GRAPH, "nothing", lambda _work, _strength: None, (), strengths=strengths)


@pytest.mark.parametrize("name", ["", "Two words", "trailing-", "under_score"])
def test_names_are_ids(name):
    """A name that is no id is refused."""
    with pytest.raises(ValueError, match="no name of a defect"):
        Defect(name, Kind.GRAPH, "nothing", lambda _work, _strength: None, ())


def test_what_does_not_apply_to_the_tiny_export_is_known(tiny_quantized, tiny_checkpoint, tmp_path):
    """A change that finds no place says so, and leaves nothing behind."""
    for name, variant in NOT_APPLICABLE:
        with pytest.raises(DefectNotApplicableError):
            plant(BY_NAME[name], tiny_quantized, tiny_checkpoint, tmp_path / "planted", variant)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("defect", "variant"), plantings((*DEFECTS, *HARMLESS)))
def test_planting_changes_the_copy_only_where_it_says(defect, variant, planted, tiny_quantized):
    """A copy differs from the export in the files of the defect's kind, at every strength, and the export stays."""
    before = files_of(tiny_quantized)
    for strength in (None, *(strength.value for strength in defect.strengths[-1:])):
        folder = planted(defect.name, variant, strength)
        expected = kept(tiny_quantized, defect, variant)
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink()}
        contents = files_of(folder)
        differing = found | {name for name in expected.keys() | contents if contents.get(name) != expected.get(name)}
        differing.discard("manifest.json")
        match defect.kind:
            case Kind.FILES:
                # basic-gate and absent-default are in the manifest itself
                assert differing or defect.name in {"basic-gate", "absent-default", "exported-again"}
            case Kind.LABELS:
                assert differing
                assert differing <= MAPS
            case Kind.TOKENIZER:
                assert differing
                assert differing <= {"tokenizer.json", "tokenizer_config.json"}
            case _ if defect.name == "saturation":  # the tiny export's weights have the full range already
                assert differing <= {Variant.INT8.file_name}
            case _:
                assert differing == {(variant or Variant.INT8).file_name}  # None: the one that is served
    assert files_of(tiny_quantized) == before


@pytest.mark.parametrize(("defect", "variant"), plantings((*DEFECTS, *HARMLESS)))
def test_planting_twice_gives_the_same_bytes(defect, variant, planted):
    """A defect is the same defect every time it is planted."""
    first, second = planted(defect.name, variant), planted(defect.name, variant)
    assert files_of(first) == files_of(second)


def that_open(defects):
    return [defect for defect in defects if defect.name not in {"model-folder", "cut-config"}]


@pytest.mark.parametrize(("defect", "variant"), plantings(that_open((*DEFECTS, *HARMLESS))))
def test_the_manifest_is_right_unless_it_is_the_defect(defect, variant, planted):
    """The manifest lists the damaged files, so that it is not what catches the defect."""
    folder = planted(defect.name, variant)
    if defect.name == "absent-default":
        with pytest.raises(ArtifactError, match="default_variant"):
            open_artifact(folder)
        return
    artifact = open_artifact(folder)
    assert bool(changed_files(artifact)) == defect.about_manifest
    assert artifact.default_variant is (variant or Variant.INT8)
    assert artifact.manifest["decision"] == "UNJUDGED"
    assert set(artifact.variants) == (set(Variant) if defect.keeps_both else {variant or Variant.INT8})


def probes(maximum: int) -> list[dict[str, np.ndarray]]:
    """Model input of some shapes and masks: a full row, padding on either side, a row masked as a whole, several rows."""
    draw = np.random.default_rng(7)
    found = []
    for rows, tokens in ((1, 5), (1, 6), (3, 12), (2, maximum)):
        mask = np.ones((rows, tokens), np.int64)
        if rows == 3:
            mask[0, -4:] = mask[1, :4] = mask[2, :] = 0
        ids = draw.integers(5, 60, (rows, tokens))
        found.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)})
    return found


def answers(path: Path, maximum: int = 64) -> list[np.ndarray | str]:
    """What a model says about the probes; where it fails, that."""
    options = session_options(1)
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = []
    for probe in probes(maximum):
        try:
            (logits,) = session.run(["logits"], probe)
        except Exception as err:  # onnxruntime raises a class of its own for every status
            found.append(type(err).__name__)
        else:
            found.append(logits)
    return found


def alike(one: list[np.ndarray | str], other: list[np.ndarray | str], tolerance: float) -> bool:
    if any(isinstance(first, str) or isinstance(second, str) for first, second in zip(one, other, strict=True)):
        return False
    return all(
        first.shape == second.shape and np.allclose(first, second, rtol=0, atol=tolerance)
        for first, second in zip(one, other, strict=True)
    )


@pytest.fixture(scope="session")
def good_answers(tiny_quantized):
    """What the good export says, by variant."""
    return {variant: answers(tiny_quantized / variant.file_name) for variant in Variant}


def in_the_model(defects):
    return plantings([defect for defect in defects if defect.kind in MODEL_KINDS])


@pytest.mark.parametrize(("defect", "variant"), in_the_model(DEFECTS))
def test_a_damaged_model_answers_otherwise(defect, variant, planted, good_answers):
    """A defect of graph, weights or INT8 loads, and changes what is answered to some input."""
    folder = planted(defect.name, variant)
    if defect.name in NEED_NOT_LOAD:
        return
    found = answers(folder / variant.file_name)
    same = alike(good_answers[variant], found, 1e-5)
    assert same == (defect.kind is Kind.SPEED or defect.name in ANSWERS_ALIKE)


@pytest.mark.parametrize(("defect", "variant"), plantings(HARMLESS))
def test_a_harmless_change_keeps_the_answers(defect, variant, planted, good_answers):
    """A harmless change loads and answers as the export did; INT8 may be rounded elsewhere."""
    folder = planted(defect.name, variant)
    chosen = variant or Variant.INT8
    tolerance = 1e-4 if chosen is Variant.FP32 else 0.1
    assert alike(good_answers[chosen], answers(folder / chosen.file_name), tolerance)


@pytest.mark.parametrize(
    "name", ["random-head", "weight-noise", "scaled-matrix", "pruned-vocabulary", "lost-positions"]
)
@pytest.mark.parametrize("change", ["renamed-nodes", "constant-nodes", "optimized-offline", "external-data"])
@pytest.mark.parametrize("variant", Variant)
def test_weights_are_found_in_other_forms_of_the_graph(name, change, variant, planted):
    """Weights are found by structure: whatever the nodes are called, fused or not, wherever the weights are."""
    other = planted(change, variant)
    folder = planted(name, variant, export=other)
    assert not alike(answers(other / variant.file_name), answers(folder / variant.file_name), 1e-5)
    assert len(list(folder.iterdir())) == len(list(other.iterdir())) - (change == "external-data")


@pytest.mark.parametrize("name", ["random-head", "zeroed-matrix", "flipped-bits", "shifted-labels", "scaled-matrix"])
def test_weights_are_found_in_dynamically_quantized_graphs(name, planted):
    """Matrices of integers are found where their scale comes later in the graph."""
    other = planted("batch-dependent", Variant.INT8)
    folder = planted(name, Variant.INT8, export=other)
    assert not alike(answers(other / "model_quantized.onnx"), answers(folder / "model_quantized.onnx"), 1e-5)


def test_a_variant_that_is_not_there_is_not_damaged(tiny_export, tiny_checkpoint, tmp_path):
    """A defect of INT8 does not apply to an export without INT8, and nothing is left of the attempt."""
    with pytest.raises(DefectNotApplicableError, match=r"no model_quantized\.onnx"):
        plant(BY_NAME["clipped-activations"], tiny_export, tiny_checkpoint, tmp_path / "planted", Variant.INT8, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_finds_no_place_leaves_nothing(export_copy, tiny_checkpoint, tmp_path):
    """A defect that cannot be planted takes its copy with it, and says what the export lacks."""
    (export_copy / "manifest.json").unlink()
    with pytest.raises(DefectNotApplicableError, match=r"no manifest\.json"):
        plant(BY_NAME["basic-gate"], export_copy, tiny_checkpoint, tmp_path / "planted")
    assert not (tmp_path / "planted").exists()


def test_an_export_without_manifest_stays_without(export_copy, tiny_checkpoint, tmp_path):
    """No manifest is made up for an export of another tool."""
    (export_copy / "manifest.json").unlink()
    plant(BY_NAME["random-head"], export_copy, tiny_checkpoint, tmp_path / "planted", Variant.FP32)
    assert open_artifact(tmp_path / "planted").manifest is None


def test_a_copy_of_a_release_says_unjudged(export_copy, tiny_checkpoint, tmp_path):
    """A damaged copy does not carry the verdict of the release that it was copied from."""
    manifest = read_json_object(export_copy / "manifest.json")
    write_json(export_copy / "manifest.json", {**manifest, "decision": "ACCEPTED", "verdict_digest": "sha256:0"})
    plant(BY_NAME["random-head"], export_copy, tiny_checkpoint, tmp_path / "planted", Variant.FP32)
    found = open_artifact(tmp_path / "planted").manifest
    assert (found["decision"], found["verdict_digest"]) == ("UNJUDGED", None)


def maps_of(folder: Path) -> list[dict[int, str]]:
    """Every place of a folder that names labels, as label by number."""
    config = read_json_object(folder / "config.json")
    by_id = [config["id2label"], read_json_object(folder / "id2label.json")]
    by_name = [config["label2id"], read_json_object(folder / "label2id.json")]
    return [
        *({int(key): label for key, label in entry.items()} for entry in by_id),
        *({number: label for label, number in entry.items()} for entry in by_name),
    ]


@pytest.mark.parametrize("name", ["labels-reset", "labels-permuted"])
def test_labels_are_renamed_everywhere_alike(name, planted, tiny_quantized):
    """No two maps disagree, so that only a comparison with the reference can tell."""
    first, *others = maps_of(planted(name))
    assert first != maps_of(tiny_quantized)[0]
    assert all(other == first for other in others)


def test_disagreeing_maps_are_label2id(planted, tiny_quantized):
    """id2label is as it was in both places, label2id is not in either."""
    good, found = maps_of(tiny_quantized), maps_of(planted("labels-disagree"))
    assert [one == other for one, other in zip(good, found, strict=True)] == [True, True, False, False]


def test_labels_without_entities_have_no_place_for_some_defects(export_copy, tiny_checkpoint, tmp_path):
    """Defects of B- and I- labels do not apply where there are none."""
    config = read_json_object(export_copy / "config.json")
    names = [f"kind{index}" for index in range(len(config["id2label"]))]
    write_json(export_copy / "config.json", {**config, "id2label": {str(i): name for i, name in enumerate(names)}})
    for name in ("lost-begin", "lost-begin-hidden", "no-entities"):
        variant = next(iter(BY_NAME[name].variants), None)
        with pytest.raises(DefectNotApplicableError):
            plant(BY_NAME[name], export_copy, tiny_checkpoint, tmp_path / "planted", variant)


def test_the_full_range_is_used_where_weights_had_seven_bits(tiny_quantized, planted, tmp_path):
    """Weights that were kept in 7 bits saturate after planting, and mean the same numbers."""
    import onnx

    from harness.defects.graph import Graph

    narrow = shutil.copytree(tiny_quantized, tmp_path / "narrow")
    model = onnx.load(narrow / "model_quantized.onnx")
    weight = Graph(model).products()[0]
    weight.write_rescaled(weight.values())
    assert np.abs(weight.stored().astype(int)).max() <= 64
    onnx.save(model, narrow / "model_quantized.onnx")
    folder = planted("saturation", Variant.INT8, export=narrow)
    widened = Graph(onnx.load(folder / "model_quantized.onnx")).products()[0]
    assert np.abs(widened.stored().astype(int)).max() > 64
    assert np.allclose(weight.values(), widened.values(), atol=float(widened.values().max()) / 64)
    assert read_json_object(folder / "manifest.json")["variants"]["int8"]["recipe"]["target"] == "avx2"


@pytest.mark.parametrize("variant", Variant)
def test_writing_a_matrix_back_keeps_it(tiny_quantized, variant):
    """write(values()) changes no stored number, whichever way the matrix is stored."""
    import onnx

    from harness.defects.graph import Graph

    model = onnx.load(tiny_quantized / variant.file_name)
    before = model.SerializeToString()
    graph = Graph(model)
    for weight in (*graph.products(), graph.word_table(), graph.position_table()):
        weight.write(weight.values())
    for stored, again in zip(onnx.load_from_string(before).graph.initializer, model.graph.initializer, strict=True):
        assert np.array_equal(onnx.numpy_helper.to_array(stored), onnx.numpy_helper.to_array(again))


def small_graph(form: str):
    """A model whose logits are its input times a stored matrix of 3 by 4, stored in one of several forms."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(3)
    across = form.endswith("flipped") or form == "gemm"
    integers = draw.integers(-100, 100, (4, 3) if across else (3, 4)).astype(np.int8)
    scales = {
        "tensor": np.float32(0.5),
        "channel": np.array([0.1, 1, 2, 3], np.float32),
        "row": np.array([0.1, 1, 2], np.float32),
    }.get(form.removesuffix("-flipped"))
    tensors, nodes = [], []
    if scales is None:
        tensors.append(numpy_helper.from_array(integers.astype(np.float32), "weight"))
    else:
        zeros = np.full(scales.shape, 3, np.int8)
        named = {"whole": integers, "scale": scales, "zero": zeros}
        tensors += [numpy_helper.from_array(np.asarray(values), name) for name, values in named.items()]
        nodes.append(
            helper.make_node("DequantizeLinear", list(named), ["weight"], axis=int(across == form.startswith("row")))
        )
    if form == "gemm":
        nodes.append(helper.make_node("Gemm", ["x", "weight"], ["logits"], transB=1))
    else:
        nodes += [helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0])] if across else []
        nodes.append(helper.make_node("MatMul", ["x", "turned" if across else "weight"], ["logits"]))
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", TensorProto.FLOAT, ["n", 3])], [value("logits", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def multiplied(model) -> np.ndarray:
    """The matrix that a small graph really multiplies with."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(1))
    (found,) = session.run(["logits"], {"x": np.eye(3, dtype=np.float32)})
    return found


FORMS = [
    "plain", "plain-flipped", "gemm", "tensor", "tensor-flipped", "channel", "channel-flipped", "row", "row-flipped",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_is_read_as_the_graph_multiplies_with_it(form):
    """values() is what the runtime multiplies with, however the matrix is stored."""
    from harness.defects.graph import Graph

    model = small_graph(form)
    assert np.allclose(Graph(model).head().weight.values(), multiplied(model), atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_is_written_as_the_graph_multiplies_with_it(form):
    """write_rescaled() lets the runtime multiply with what was written, within a step of 7 bits."""
    from harness.defects.graph import Graph

    model = small_graph(form)
    wanted = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
    Graph(model).head().weight.write_rescaled(wanted)
    assert np.allclose(multiplied(model), wanted, atol=float(np.abs(wanted).max()) / 63)


@pytest.mark.parametrize("form", FORMS)
def test_exchanged_columns_take_their_scales_with_them(form):
    """reorder_outputs() exchanges exactly the outputs."""
    from harness.defects.graph import Graph

    model = small_graph(form)
    before = multiplied(model)
    Graph(model).head().weight.reorder_outputs([1, 0, 3, 2])
    assert np.array_equal(multiplied(model), before[:, [1, 0, 3, 2]])
