"""The settings a variant is served with: how they are written, read, followed and guarded."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.artifact import MANIFEST, Variant, open_artifact
from harness.candidate import Candidate
from harness.errors import ArtifactError
from harness.inference import NERInference
from harness.manifest import content_digest, write_manifest
from harness.serving import OptimizationLevel, Provider, ServingSettings, VariantEntry
from harness.tagging import tag

SETTINGS = st.builds(
    ServingSettings,
    threads=st.integers(0, 64),
    graph_optimization_level=st.sampled_from(OptimizationLevel),
    disabled_optimizers=st.lists(st.from_regex(r"[A-Za-z]{1,20}", fullmatch=True), unique=True).map(tuple),
    provider=st.sampled_from(Provider),
)
OBJECTS = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3)


@given(SETTINGS)
def test_settings_survive_the_manifest(settings):
    """from_json(to_json(settings)) == settings, through JSON text."""
    assert ServingSettings.from_json(json.loads(json.dumps(settings.to_json())), "x") == settings


@given(st.builds(VariantEntry, SETTINGS, OBJECTS, st.none() | OBJECTS))
def test_entries_survive_the_manifest(entry):
    """from_json(to_json(entry)) == entry, through JSON text."""
    assert VariantEntry.from_json(json.loads(json.dumps(entry.to_json())), "x") == entry


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"intra_op_num_threads": True}, "threads"),
        ({"intra_op_num_threads": 1.0}, "threads"),
        ({"intra_op_num_threads": -1}, "threads"),
        ({"graph_optimization_level": "ORT_ENABLE_EVERYTHING"}, "ORT_ENABLE_EVERYTHING"),
        ({"graph_optimization_level": None}, "None"),
        ({"disabled_optimizers": "SkipLayerNormFusion"}, "not a list"),
        ({"disabled_optimizers": [1]}, "not a list"),
        ({"disabled_optimizers": ["Twice", "Twice"]}, "Twice"),
        ({"disabled_optimizers": [""]}, "disabled_optimizers"),
        ({"provider": "CUDAExecutionProvider"}, "CUDAExecutionProvider"),
        ({"arena": False}, "serving.arena is no setting"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(changes, said):
    """A value that a setting cannot have, or a setting that nobody applies, is refused in one line that names it."""
    with pytest.raises(ArtifactError, match=said) as caught:
        ServingSettings.from_json({**ServingSettings().to_json(), **changes}, "here")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("here")


@pytest.mark.parametrize("name", ["intra_op_num_threads", "graph_optimization_level", "provider"])
def test_a_setting_left_out_is_refused(name):
    """A missing setting is not guessed."""
    entry = ServingSettings().to_json()
    del entry[name]
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        ServingSettings.from_json(entry, "here")


@pytest.mark.parametrize("entry", [None, [], "int8", {}, {"serving": {}}, {"cpu": [], "serving": {}}])
def test_an_entry_that_is_none(entry):
    """What is no entry of a variant is refused in one line."""
    with pytest.raises(ArtifactError, match="Release again") as caught:
        VariantEntry.from_json(entry, "here")
    assert "\n" not in str(caught.value)


def served_with(folder, *, settings=None, **entry):
    """Have the manifest name other settings, or other entries, for every variant."""
    artifact = open_artifact(folder)
    settings = settings or ServingSettings()
    variants = {variant: VariantEntry(settings, **entry) for variant in artifact.variants}
    write_manifest(
        folder, default_variant=artifact.default_variant, reference_digest="", versions={}, variants=variants
    )
    return folder


@pytest.mark.parametrize("level", OptimizationLevel)
def test_a_variant_is_opened_as_its_entry_says(export_copy, tiny_queries, level):
    """The session reports the level and the threads of the manifest; answers are those of any level."""
    settings = ServingSettings(2, level, ("SkipLayerNormFusion",))
    candidate = Candidate(open_artifact(served_with(export_copy, settings=settings)), Variant.FP32)
    assert candidate.settings == candidate.opened_with == settings
    options = candidate._session.get_session_options()
    assert (options.intra_op_num_threads, options.graph_optimization_level.name) == (2, level.value)
    plain = Candidate(open_artifact(export_copy), Variant.FP32, threads=1)
    for left, right in zip(tag(candidate, tiny_queries), tag(plain, tiny_queries), strict=True):
        assert np.allclose(left.logits, right.logits, atol=1e-4)


def test_disabled_optimizers_reach_onnxruntime(export_copy, tmp_path, monkeypatch):
    """With a fusion disabled, the graph that onnxruntime runs has no operator of that fusion."""
    original = ServingSettings.session_options

    def saving(settings):
        options = original(settings)
        options.optimized_model_filepath = str(tmp_path / f"{len(settings.disabled_optimizers)}.onnx")
        return options

    monkeypatch.setattr(ServingSettings, "session_options", saving)
    for names in ((), ("BiasGeluFusion",)):
        ServingSettings(disabled_optimizers=names).open_session(export_copy / "model.onnx")
    fused, apart = ({node.op_type for node in onnx.load(tmp_path / f"{count}.onnx").graph.node} for count in (0, 1))
    assert "BiasGelu" in fused
    assert "BiasGelu" not in apart


def test_threads_override_nothing_else(export_copy):
    """An explicit number of threads changes the threads alone."""
    settings = ServingSettings(1, OptimizationLevel.EXTENDED, ("SkipLayerNormFusion",))
    folder = served_with(export_copy, settings=settings)
    assert NERInference(folder)._model.settings == settings
    assert NERInference(folder, threads=3)._model.settings == ServingSettings(
        3, OptimizationLevel.EXTENDED, ("SkipLayerNormFusion",)
    )


def test_reopened_sessions_have_the_same_settings(export_copy):
    """A second session of a candidate is opened as the first was."""
    settings = ServingSettings(2, OptimizationLevel.BASIC)
    candidate = Candidate(open_artifact(served_with(export_copy, settings=settings)), Variant.FP32)
    again = candidate.reopened()
    assert again.opened_with == settings
    assert again.session is not candidate.session
    assert again._tokenizer is candidate._tokenizer


def version_1(folder, **changes):
    """Turn the manifest into one of version 1."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["variants"]
    entries = {"version": 1, "serving": {**ServingSettings().to_json(), **changes}, "quantization": {"target": "avx2"}}
    del entries["serving"]["disabled_optimizers"]
    path.write_text(json.dumps({**manifest, **entries}), encoding="utf-8")
    return open_artifact(folder)


def test_releases_of_version_1_are_still_served(export_copy, tiny_queries, tiny_export):
    """A manifest of version 1 is read: its one entry applies to all variants, its recipe to INT8; answers stay."""
    artifact = version_1(export_copy, graph_optimization_level="ORT_ENABLE_EXTENDED")
    for variant in Variant:
        assert artifact.serving(variant) == ServingSettings(graph_optimization_level=OptimizationLevel.EXTENDED)
    assert artifact.entry(Variant.INT8).recipe == {"target": "avx2"}
    assert artifact.entry(Variant.FP32).recipe is None
    assert NERInference(export_copy).batch_extract(tiny_queries) == NERInference(tiny_export).batch_extract(
        tiny_queries
    )


def test_a_later_manifest_is_refused(export_copy):
    """A manifest of a version to come is not guessed at."""
    path = export_copy / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "version": 3}), encoding="utf-8")
    with pytest.raises(ArtifactError, match="Update the harness"):
        open_artifact(export_copy)


def test_a_foreign_export_has_the_defaults(export_copy):
    """Without a manifest, a variant is served with the defaults, and nothing is known of CPUs and recipes."""
    (export_copy / MANIFEST).unlink()
    assert open_artifact(export_copy).entry(Variant.FP32) == VariantEntry()


def test_a_variant_without_an_entry_is_refused(export_copy):
    """A manifest that is silent about a variant is not followed by defaults."""
    path = export_copy / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "variants": {}}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"variants\.fp32"):
        Candidate(open_artifact(export_copy), Variant.FP32)


def test_settings_are_judged_as_files_are(export_copy):
    """Other settings are other contents; a decision written into the manifest is not."""
    before = content_digest(export_copy)
    path = export_copy / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "decision": "ACCEPTED", "contract": {}}), encoding="utf-8")
    assert content_digest(export_copy) == before
    served_with(export_copy, settings=ServingSettings(graph_optimization_level=OptimizationLevel.BASIC))
    assert content_digest(export_copy) != before


def test_settings_are_read_without_onnxruntime(tmp_path):
    """`harness report` and its like read manifests without loading the runtime."""
    program = (
        "import sys, harness.artifact, harness.serving; print('onnxruntime' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["False", "False"]
