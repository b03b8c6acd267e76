"""Tests of the quantizing step: what can be asked for, what is written, and that it can be made again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import onnx
import pytest
from conftest import files_of

from harness import export_onnx, pipeline, quantize
from harness.artifact import Variant, open_artifact
from harness.checkpoint import open_checkpoint
from harness.cli import main
from harness.errors import ArtifactError, DocumentError, UsageError
from harness.export_onnx import export_to_onnx
from harness.instruction_sets import PRESETS, WeightRange, preset_for, this_cpu
from harness.pair_limits import LARGEST_PAIR
from harness.pipeline import Wanted, make_candidate, read_data
from harness.progress import Silence
from harness.quantize import (
    DEFAULT_RECIPE,
    SEARCH_BUDGET_S,
    RecipeData,
    calibration_texts,
    default_recipe_data,
    order_int8,
    quantize_model,
    recipe_data,
)
from harness.recipes.recipe import NAMED, QDQ, SMOOTHED, USUAL, Form, Recipe, recipe_named
from harness.search import bench
from harness.search.measurements import NOTEBOOK_FILE, Latency
from harness.tagging import LabelledQuery, LabelledSet

TARGETS = tuple(preset.name for preset in PRESETS)
INT8 = Variant.INT8.file_name
INT8_TYPE = onnx.TensorProto.INT8
FEW = 24


class Told:
    """A progress that remembers its lines."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def now(self, text):
        pass


@pytest.fixture
def folder(tiny_export, tmp_path):
    """An export as the quantizing step finds it: its manifest is written afterwards."""
    return shutil.copytree(tiny_export, tmp_path / "fresh", ignore=shutil.ignore_patterns("manifest.json"))


@pytest.fixture
def texts(tiny_queries):
    """Queries to calibrate on."""
    return RecipeData(tuple(tiny_queries[:FEW]), LabelledSet("none", ()))


@pytest.fixture
def timed(monkeypatch):
    """Searches that do not depend on how fast this machine is: each recipe takes what its name says."""
    asked = []

    def latency(self, recipe):
        asked.append(recipe)
        ratio = 0.6 + 0.01 * len(recipe.row_sites) + (0.3 if recipe.form is Form.QDQ else 0)
        return Latency(ratio, ratio, ratio, 12)

    monkeypatch.setattr(bench.Bench, "latency", latency)
    return asked


LONG = 1e6  # seconds that no search takes


def manifest(path, recipe=None, **changed):
    """Write a manifest.json with the recipe entry of an INT8 variant; give its path."""
    facts = {"recipe": SMOOTHED.to_json(), "target": "every", **(recipe or {})}
    content = {"schema": "ner-release-manifest", "version": 2, "variants": {"int8": {"recipe": facts}}, **changed}
    content["schema"] = changed.get("schema", quantize.MANIFEST_SCHEMA)
    path.mkdir(exist_ok=True)
    (path / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return str(path / "manifest.json")


# -- orders ------------------------------------------------------------------------------------------------------------


def test_the_default():
    """`--quantize` alone is the default recipe for this machine's CPU, whose weights lose nothing there."""
    order = order_int8(quantize=True, target=None)
    assert order.recipe == DEFAULT_RECIPE
    assert order.preset == preset_for(this_cpu())
    assert not order.preset.needs or this_cpu().has & set(order.preset.needs)
    assert (order.budget_s, order.parted, order.calibrated_on) == (SEARCH_BUDGET_S, False, "")


@pytest.mark.parametrize("name", NAMED)
def test_named_recipes(name):
    """Each name is its recipe; what is not optimum's form is for every CPU unless a target is named."""
    order = order_int8(name, None)
    assert order.recipe == NAMED[name]
    assert order.preset.name == "every" or name == "qdq"
    assert order.fitted.name == name


def test_auto():
    """`auto` names no recipe, is for every CPU, and keeps queries from calibration to validate on."""
    order = order_int8("auto", None, 42.0)
    assert (order.recipe, order.preset.name, order.budget_s, order.parted) == (None, "every", 42.0, True)


@pytest.mark.parametrize("target", TARGETS)
def test_targets_land_in_the_recipe(target):
    """The recipe has the target's weights and activations; what has neither, or is only compared with, stays as it is."""
    preset = next(preset for preset in PRESETS if preset.name == target)
    for name in ("qdq", "static", "smoothed", "fast"):
        fitted = order_int8(name, target).fitted
        assert fitted.weight_range is preset.weights
        assert fitted.activations == ("QInt8" if preset.signed_activations else "QUInt8")
        assert replace(fitted, weight_range=NAMED[name].weight_range, activations="QUInt8") == NAMED[name]
    for name in ("usual", "fused-dynamic", "blocks-8"):
        assert order_int8(name, target).fitted == NAMED[name]


@pytest.mark.parametrize("name", ["nosuch", "", "Auto", "../model", "\x1b[31m\n"])
def test_unknown_recipes(name):
    """A name that there is not is refused with those that there are."""
    with pytest.raises(UsageError, match=r"no recipe .*Known: qdq, static.*auto"):
        order_int8(name, None)


def test_an_unknown_target():
    """As is a target."""
    with pytest.raises(UsageError, match=r"'sse9'.*every, avx2"):
        order_int8("smoothed", "sse9")


@pytest.mark.parametrize("name", [True, "smoothed"])
def test_a_budget_for_no_search(name):
    """A budget says nothing about a recipe that is named."""
    with pytest.raises(UsageError, match="--search-budget"):
        order_int8(name, None, 10.0)


def test_a_recipe_of_a_manifest(tmp_path):
    """It is the manifest's, with its target and what it was calibrated on; another target fits it anew."""
    recipe = replace(SMOOTHED, name="found", row_sites=("a",), weight_range=WeightRange.FULL)
    facts = {"recipe": recipe.to_json(), "target": "avx512_vnni", "parted": True, "calibration_digest": "sha256:1"}
    path = manifest(tmp_path, facts)
    order = order_int8(path, None)
    assert order.fitted == order.recipe == recipe
    assert (order.preset.name, order.parted, order.calibrated_on) == ("avx512_vnni", True, "sha256:1")
    assert order_int8(path, "avx2").fitted == replace(recipe, weight_range=WeightRange.REDUCED)
    with pytest.raises(UsageError, match="--search-budget"):
        order_int8(path, None, 10.0)


def test_a_small_file():
    """The target size chooses a recipe itself: nothing is searched, all queries calibrate, and no recipe may be named."""
    for asked in (True, "auto"):
        order = order_int8(asked, "size")
        assert (order.target, order.parted, order.recipe is None) == ("size", False, False)
    with pytest.raises(UsageError, match="'smoothed' names another"):
        order_int8("smoothed", "size")
    with pytest.raises(UsageError, match="--search-budget"):
        order_int8("auto", "size", 10.0)


def test_a_recipe_of_a_small_release(tmp_path):
    """Its manifest's target chooses nothing any more: the recipe is in the manifest."""
    path = manifest(tmp_path, {"recipe": NAMED["blocks-8"].to_json(), "target": "size"})
    assert order_int8(path, None).fitted == NAMED["blocks-8"]
    assert order_int8(path, None).target is None
    with pytest.raises(UsageError, match="names another"):
        order_int8(path, "size")


NEWER = {**SMOOTHED.to_json(), "sparsity": 0.5}
BAD_MANIFESTS = {
    "no recipe": lambda at: manifest(at, variants={"fp32": {}, "int8": {"serving": {}}}),
    "version 1": lambda at: manifest(at, version=1, variants=None, quantization={"target": "avx2"}),
    "variants of another kind": lambda at: manifest(at, variants=["int8"]),
    "of another tool": lambda at: manifest(at, schema="chrome-extension"),
    "a choice of a newer harness": lambda at: manifest(at, {"recipe": NEWER}),
    "a value of a newer harness": lambda at: manifest(at, {"recipe": {**SMOOTHED.to_json(), "form": "ternary"}}),
    "a recipe of another type": lambda at: manifest(at, {"recipe": "smoothed"}),
    "a target of a newer harness": lambda at: manifest(at, {"target": "avx1024"}),
    "not there": lambda at: str(at / "manifest.json"),
    "a folder": lambda at: str(at.with_suffix(".json").mkdir() or at.with_suffix(".json")),
    "no JSON": lambda at: str((at / "x.json").write_text("{", encoding="utf-8") and at / "x.json"),
    "a list": lambda at: str((at / "x.json").write_text("[]", encoding="utf-8") and at / "x.json"),
}


@pytest.mark.parametrize("bad", BAD_MANIFESTS)
def test_manifests_that_name_no_recipe(tmp_path, bad):
    """Each is refused in one line that names the file, or what is wrong in it."""
    (tmp_path / "m").mkdir()
    with pytest.raises((UsageError, DocumentError)) as caught:
        order_int8(BAD_MANIFESTS[bad](tmp_path / "m"), None)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message or "avx1024" in message


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def idle(monkeypatch, tmp_path):
    """A place in which no export can be begun: whoever tries fails."""
    monkeypatch.chdir(tmp_path)
    for module in (export_onnx, pipeline):
        monkeypatch.setattr(module, "write_export", None)
    return tmp_path


@pytest.mark.parametrize("command", ["release", "export"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--quantize", "nosuch"], "no recipe 'nosuch'"),
        (["--quantize", ""], "no recipe ''"),
        (["--quantize", "nowhere/manifest.json"], "nowhere/manifest.json"),
        (["--quantize", "--search-budget", "10"], "--search-budget"),
        (["--quantize", "smoothed", "--search-budget", "10"], "--search-budget"),
        (["--search-budget", "10"], "Add --quantize"),
        (["--target", "avx2"], "Add --quantize"),
    ],
)
def test_refused_before_any_work(capsys, idle, tiny_checkpoint, tiny_data, command, options, said):
    """What was asked for and makes no sense: exit code 2, one line, nothing written."""
    data = ["--data", str(tiny_data)] if command == "release" else []
    code = main([command, "--model", str(tiny_checkpoint), "--output", "onnx", *data, *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert said in line
    assert files_of(idle) == {}


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], (False, None)),
        (["--quantize"], (True, None)),
        (["--quantize", "auto", "--search-budget", "9.5"], ("auto", 9.5)),
        (["--quantize=smoothed"], ("smoothed", None)),
        (["--quantize", "old/manifest.json"], ("old/manifest.json", None)),
    ],
)
def test_options(monkeypatch, options, asked):
    """An option after --quantize is none of its recipes."""
    seen = {}

    def release(*args, **named):
        seen.update(named, args=args)
        raise UsageError("enough")  # noqa: EM101

    monkeypatch.setattr(pipeline, "release", release)
    assert main(["release", *options, "--model", "elsewhere"]) == 2
    assert (seen["quantize"], seen["search_budget_s"]) == asked
    assert str(seen["args"][0]) == "elsewhere"


# -- queries -----------------------------------------------------------------------------------------------------------


def some_queries(count, repeat=1):
    """Labelled queries, each so many times."""
    return LabelledSet("some", tuple(LabelledQuery(f"bus {n}", ()) for n in range(count) for _ in range(repeat)))


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_a_search_validates_on_other_queries(repeat):
    """Every second text calibrates and the others validate; a text that occurs twice is not on both sides."""
    data = recipe_data(some_queries(10, repeat), parted=True)
    assert data.calibration == tuple(f"bus {n}" for n in range(0, 10, 2))
    assert set(data.validation.texts) == {f"bus {n}" for n in range(1, 10, 2)}


def test_without_a_search_all_calibrate():
    """A named recipe is calibrated on all of them."""
    queries = some_queries(5, 2)
    data = recipe_data(queries, parted=False)
    assert data.calibration == tuple(queries.texts)
    assert data.validation.queries == ()


def test_texts_are_parted_as_queries_are():
    """Whether labels are known makes no difference to what calibrates: a recipe is made again from texts alone."""
    queries = some_queries(9, 2)
    for parted in (False, True):
        assert calibration_texts(queries.texts, parted=parted) == recipe_data(queries, parted=parted).calibration


def test_bundled_queries():
    """By default bus training queries calibrate, bus validation queries validate, and none of them judges."""
    from harness.judging_data import default_data
    from harness.labelled_data import read_labelled_set

    told = Told()
    data = default_recipe_data(("O", "B-SRC"), told)
    assert len(told.lines) == 1
    assert "--calibration" in told.lines[0]
    assert len(data.calibration) == len(data.validation.queries) == 400
    sides = [set(data.calibration), set(data.validation.texts), set(read_labelled_set(default_data()).texts)]
    assert sum(map(len, sides)) == len(set.union(*sides))


@pytest.mark.parametrize("named", ["auto", "smoothed"])
def test_own_queries_are_on_one_side(
    monkeypatch, fast_export, tiny_checkpoint, tiny_data, tmp_path, named, timed
):  # fmt: skip
    """Of the user's queries some calibrate, for a search some validate, the others judge; no text does two of these."""
    from harness.labelled_data import read_labelled_set

    seen = []
    real = quantize.quantize_model

    def noted(folder, data, order, **options):
        seen.append(data)
        return real(folder, data, order, **options)

    monkeypatch.setattr(quantize, "quantize_model", noted)
    twice = tmp_path / "twice.jsonl"
    twice.write_text(2 * tiny_data.read_text(encoding="utf-8"), encoding="utf-8")
    judged = candidate(tiny_checkpoint, twice, tmp_path / "run", order_int8(named, None))
    (data,) = seen
    sides = [set(data.calibration), set(data.validation.texts), set(read_labelled_set(judged).texts)]
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert set.union(*sides) == set(read_labelled_set(tiny_data).texts)
    assert bool(sides[1]) == (named == "auto")


def candidate(model, data, folder, order, budget_s=LONG, **options):
    """Make a candidate in a run's folder; give the files that judge."""
    checkpoint = open_checkpoint(model)
    folder.mkdir()
    queries = read_data(checkpoint, [data], Silence())
    order = replace(order, budget_s=budget_s)
    return make_candidate(checkpoint, queries, folder, Wanted(order, own_data=True), {}, Silence(), **options)


# -- what is written ---------------------------------------------------------------------------------------------------


def largest_weight(path):
    """The largest 8-bit weight, as a size, of the matrices that are multiplied; tables are looked up, not multiplied."""
    graph = onnx.load(str(path)).graph
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in graph.node if node.op_type in {"MatMul", "MatMulIntegerToFloat", "QAttention"}]
    multiplied = {sources.get(node.input[1], node.input[1]) for node in products}
    matrices = [tensor for tensor in graph.initializer if tensor.name in multiplied and tensor.data_type == INT8_TYPE]
    return max(abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() for tensor in matrices)


@pytest.mark.parametrize("recipe", ["qdq", "smoothed"])
@pytest.mark.parametrize("target", TARGETS)
def test_targets(folder, tiny_checkpoint, tiny_queries, texts, monkeypatch, target, recipe):
    """INT8 for every kind of CPU is written on any machine, says whom it is for, runs, and answers nearly as FP32 does."""
    from harness.inference import NERInference

    made = quantize_model(folder, texts, order_int8(recipe, target), progress=Silence())
    preset = next(preset for preset in PRESETS if preset.name == target)
    entry = made.entry.to_json()
    assert entry["recipe"]["target"] == target
    assert entry["recipe"]["recipe"]["weight_range"] == preset.weights.value
    assert entry["recipe"]["recipe"]["activations"] == ("QInt8" if preset.signed_activations else "QUInt8")
    if preset.weights is not WeightRange.FULL:
        assert entry["cpu"]["safe_on_every"] is True
        assert entry["cpu"]["largest_pair"] <= LARGEST_PAIR
    assert set(entry["cpu"]["needs_one_of"]) <= {name.value for name in preset.needs}
    if preset.weights is not WeightRange.PAIRS:
        assert largest_weight(folder / INT8) == (64 if preset.weights is WeightRange.REDUCED else 127)
    monkeypatch.setenv("HARNESS_CPU", "avx512_vnni")
    export_onnx.write_unjudged_manifest(folder, open_checkpoint(tiny_checkpoint), made.entry)
    fp32, int8 = (NERInference(folder, variant=name).batch_extract(tiny_queries) for name in ("fp32", "int8"))
    assert sum(a == b for a, b in zip(fp32, int8, strict=True)) > 0.6 * len(tiny_queries)


@pytest.mark.parametrize("recipe", ["qdq", "static", "smoothed", "usual"])
def test_quantizing_adds_the_variant_only(folder, texts, tmp_path, recipe, monkeypatch):
    """model.onnx and all else keep their bytes, and no working file stays, neither there nor in the temporary folder."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = files_of(folder)
    quantize_model(folder, texts, order_int8(recipe, None), progress=Silence())
    after = files_of(folder)
    apart = {f"{INT8}_data"} if recipe_named(recipe).stored_apart else set()
    assert set(after) - set(before) == {INT8} | apart
    assert {name: after[name] for name in before} == before
    assert files_of(temporary) == {}


@pytest.mark.parametrize("recipe", ["qdq", "smoothed", "usual"])
def test_the_manifest_entry(folder, tiny_checkpoint, texts, recipe):
    """The manifest names recipe, CPUs and settings, and the suite finds the variant opened with these settings."""
    from suites.artifact.test_files import _serving_differences

    made = quantize_model(folder, texts, order_int8(recipe, None), progress=Silence())
    export_onnx.write_unjudged_manifest(folder, open_checkpoint(tiny_checkpoint), made.entry)
    artifact = open_artifact(folder)
    entry = artifact.manifest["variants"]["int8"]
    fitted = order_int8(recipe, None).fitted
    assert Recipe.from_json(entry["recipe"]["recipe"], "manifest") == fitted
    assert entry["recipe"]["calibration_queries"] == FEW
    assert entry["recipe"]["calibration_digest"].startswith("sha256:")
    assert artifact.serving(Variant.INT8) == fitted.serving
    assert set(entry["cpu"]) >= {"safe_on_every", "needs_one_of", "largest_pair", "why"}
    assert _serving_differences(artifact, Variant.INT8) == []
    assert artifact.default_variant is Variant.INT8


def test_the_usual_recipe_is_for_some_cpus(folder, texts):
    """Whatever target was named: the certificate is read from the stored weights, and full ones clamp without VNNI."""
    cpu = quantize_model(folder, texts, order_int8("usual", None), progress=Silence()).entry.cpu
    assert cpu["safe_on_every"] is False
    assert "avx512_vnni" in cpu["needs_one_of"]


def test_a_quantizer_that_breaks_off(folder, texts, monkeypatch):
    """One line that names model and recipe, and no INT8 file."""

    def broken(*args):
        message = "un\nsupported"
        raise NotImplementedError(message)

    monkeypatch.setattr("harness.recipes.workshop.quantize_operators", broken)
    with pytest.raises(ArtifactError, match=r"model\.onnx .* smoothed: un supported") as caught:
        quantize_model(folder, texts, order_int8("smoothed", None), progress=Silence())
    assert "\n" not in str(caught.value)
    assert INT8 not in files_of(folder)


# -- searching, and making it again ------------------------------------------------------------------------------------


def test_a_search_and_the_same_again(tiny_checkpoint, fast_export, tiny_data, tmp_path, timed, labelled):
    """`auto` finds a recipe; its manifest then makes the same bytes from the same queries without a search."""
    options = {"search_budget_s": LONG, "calibration": labelled}
    found = export_to_onnx(tiny_checkpoint, tmp_path / "found", "auto", **options)
    assert timed
    entry = open_artifact(found).manifest["variants"]["int8"]["recipe"]
    assert "the most faithful" in entry["reason"]
    timed.clear()
    path = str(found / "manifest.json")
    for name, queries in (("labelled", labelled), ("texts", labelled.texts)):
        again = export_to_onnx(tiny_checkpoint, tmp_path / name, path, calibration=queries)
        assert (again / INT8).read_bytes() == (found / INT8).read_bytes()
        third = export_to_onnx(
            tiny_checkpoint, tmp_path / f"{name} again", str(again / "manifest.json"), calibration=queries
        )
        assert (third / INT8).read_bytes() == (found / INT8).read_bytes()
    assert timed == []


def test_a_release_made_again(fast_export, tiny_checkpoint, tiny_data, tmp_path, timed):
    """As in a release, whose judging data are parted first: the candidate's INT8 file has the same bytes."""
    state = tmp_path / "state"
    first, second = tmp_path / "first", tmp_path / "second"
    candidate(tiny_checkpoint, tiny_data, first, order_int8("auto", None), notebook=state)
    assert (state / NOTEBOOK_FILE).is_file()
    assert {"search.json", "search.svg", "judged.jsonl"} <= set(files_of(first))
    made = first / pipeline.CANDIDATE_FOLDER
    order = order_int8(str(made / "manifest.json"), None)
    candidate(tiny_checkpoint, tiny_data, second, order)
    assert (second / pipeline.CANDIDATE_FOLDER / INT8).read_bytes() == (made / INT8).read_bytes()
    assert not {"search.json", "search.svg"} & set(files_of(second))


def test_a_search_of_the_same_release_goes_on(fast_export, tiny_checkpoint, tiny_data, tmp_path, timed, monkeypatch):
    """A second search of the same export, queries and machine finds all in the notebook; with another machine nothing."""
    state = tmp_path / "state"
    for name in ("first", "second"):
        candidate(tiny_checkpoint, tiny_data, tmp_path / name, order_int8("auto", None), notebook=state)
    assert len(timed) == len(set(timed)) > 0
    facts = quantize.machine_and_versions(())
    monkeypatch.setattr(quantize, "machine_and_versions", lambda packages: {**facts, "processor": "another"})
    timed.clear()
    candidate(tiny_checkpoint, tiny_data, tmp_path / "third", order_int8("auto", None), notebook=state)
    assert timed


def test_the_key_of_measurements(folder, labelled):
    """It is the same from run to run, and another for other files of the export, other queries or other labels."""
    data = recipe_data(labelled, parted=True)
    key = quantize._key(folder, data)
    assert quantize._key(folder, data) == key
    (folder / INT8).write_bytes(b"what an earlier try left")
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    assert quantize._key(folder, data) == key
    fewer = replace(data, calibration=data.calibration[1:])
    first, *others = data.validation.queries
    unlabelled = LabelledSet("v", (replace(first, spans=()), *others))
    keys = {key, quantize._key(folder, fewer), quantize._key(folder, replace(data, validation=unlabelled))}
    for name in ("tokenizer.json", "config.json", "model.onnx"):
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        keys.add(quantize._key(folder, data))
    assert len(keys) == 6


def test_other_queries_are_told(folder, texts, tmp_path):
    """A recipe that is calibrated on other queries than its release was is another model, and it is said."""
    first = quantize_model(folder, texts, order_int8("smoothed", None), progress=Silence())
    path = manifest(tmp_path / "m", dict(first.entry.recipe))
    for data, notes in ((texts, 0), (replace(texts, calibration=texts.calibration[1:]), 1)):
        told = Told()
        quantize_model(folder, data, order_int8(path, None), progress=told)
        assert sum("other queries" in line for line in told.lines) == notes


def test_a_hostile_name(folder, texts, tmp_path):
    """A recipe of somebody's manifest is told in one printable line."""
    name = "\x1b[31mred\n" + 100 * "x"
    path = manifest(tmp_path / "m", {"recipe": SMOOTHED.called(name).to_json()})
    told = Told()
    quantize_model(folder, texts, order_int8(path, None), progress=told)
    assert all(line.isprintable() and len(line) < 200 for line in told.lines)


def test_a_search_without_time(folder, labelled):
    """Nothing measured, nothing taken: the error says to give it more time, and no INT8 file is left."""
    order = replace(order_int8("auto", None), budget_s=0.0)
    with pytest.raises(ArtifactError, match="--search-budget") as caught:
        quantize_model(folder, recipe_data(labelled, parted=True), order, progress=Silence())
    assert "\n" not in str(caught.value)
    assert INT8 not in files_of(folder)


def test_a_search_that_finds_nothing(folder, labelled, timed, monkeypatch):
    """Where no recipe can be taken the error names recipes with their reasons, and what to do instead."""
    monkeypatch.setattr("harness.search.front.MOST_F1_LOSS", -2.0)
    monkeypatch.setattr("harness.search.front.MOST_CHANGED_WORDS", 1.0)
    monkeypatch.setattr("harness.search.bench.CONFIDENT", 1e9)
    order = replace(order_int8("auto", None), budget_s=LONG)
    with pytest.raises(ArtifactError, match=r"qdq: loses .* F1.*Name a recipe") as caught:
        quantize_model(folder, recipe_data(labelled, parted=True), order, progress=Silence())
    assert "\n" not in str(caught.value)
    assert INT8 not in files_of(folder)


def test_a_search_without_labels(folder, texts):
    """Recipes are compared by labels: without labelled queries there is no search."""
    with pytest.raises(UsageError, match="labelled queries"):
        quantize_model(folder, texts, order_int8("auto", None), progress=Silence())


def test_an_architecture_that_cannot_be_fused(folder, labelled, timed, monkeypatch):
    """Where onnxruntime's optimizer gives up, the search goes on with the recipes that need none."""

    def broken(*args):
        message = "unknown architecture"
        raise ValueError(message)

    monkeypatch.setattr("harness.recipes.workshop.fused", broken)
    monkeypatch.setattr("harness.search.front.MOST_CHANGED_WORDS", 1.0)
    monkeypatch.setattr("harness.search.front.MOST_F1_LOSS", 1.0)
    order = replace(order_int8("auto", "avx2"), budget_s=LONG)
    made = quantize_model(folder, recipe_data(labelled, parted=True), order, progress=Silence())
    assert {"static", "fused-dynamic"} <= {name for name, _ in made.outcome.failed}
    assert made.entry.recipe["recipe"]["form"] == QDQ.form.value
    assert USUAL.name in {one.recipe.name for one in made.outcome.entries}
