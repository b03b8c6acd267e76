"""END TO END: exports that are broken in known ways are judged by the real suites, and rejected for the right reason."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from harness.artifact import CONFIG, ID2LABEL, LABEL2ID, MANIFEST, Variant
from harness.pipeline import judge_candidate
from harness.verdict import Decision


def _rewrite(path, change):
    """Change the first weight that `change` wants to change."""
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        changed = change(numpy_helper.to_array(tensor))
        if changed is not None:
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
            onnx.save(model, str(path))
            return
    message = "no weight to break"
    raise AssertionError(message)


def random_head(folder, labels):
    """The classifier's weights are drawn anew, as if the head had never been trained."""
    drawn = np.random.default_rng(0)
    _rewrite(
        folder / Variant.FP32.file_name,
        lambda value: (
            drawn.normal(0, 0.6, value.shape).astype(np.float32)
            if value.ndim == 2 and value.shape[-1] == labels
            else None
        ),
    )


def permuted_labels(folder, labels):
    """All label maps agree with each other, and are shifted by one."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    names = [config["id2label"][str(index)] for index in range(labels)]
    names = [names[0], *names[2:], names[1]]
    id2label = {str(index): name for index, name in enumerate(names)}
    label2id = {name: index for index, name in enumerate(names)}
    (folder / CONFIG).write_text(json.dumps({**config, "id2label": id2label, "label2id": label2id}), encoding="utf-8")
    (folder / ID2LABEL).write_text(json.dumps(id2label), encoding="utf-8")
    (folder / LABEL2ID).write_text(json.dumps(label2id), encoding="utf-8")


def corrupt_int8(folder, _labels):
    """One weight matrix of the INT8 file has its rows in another order."""
    drawn = np.random.default_rng(0)
    _rewrite(
        folder / Variant.INT8.file_name,
        lambda value: drawn.permutation(value) if value.ndim == 2 and value.dtype == np.int8 else None,
    )


EXPECTED = {
    random_head: {"parity.fp32.max_logit_difference", "parity.fp32.label_agreement"},
    permuted_labels: {"artifact.release.label_differences", "parity.fp32.label_agreement"},
    corrupt_int8: {"parity.int8.mean_logit_difference", "parity.int8.label_agreement"},
}


@pytest.fixture(scope="module")
def broken_by_the_intact(tiny_checkpoint, tiny_quantized, tiny_data, tmp_path_factory):
    """Name the limits that the export breaks without any damage: a model with random weights does not round well."""
    return _broken_by(tiny_checkpoint, tiny_quantized, tiny_data, tmp_path_factory.mktemp("intact"))


@pytest.mark.end_to_end
@pytest.mark.parametrize("damage", EXPECTED, ids=lambda damage: damage.__name__)
def test_a_broken_candidate(damage, broken_by_the_intact, tiny_checkpoint, tiny_quantized, tiny_data, tmp_path):
    """A broken export is REJECTED by the measures one would expect; the intact one breaks none of them."""
    candidate = tmp_path / "candidate"
    shutil.copytree(tiny_quantized, candidate)
    (candidate / MANIFEST).unlink()
    labels = len(json.loads((candidate / ID2LABEL).read_text(encoding="utf-8")))
    damage(candidate, labels)
    broken = _broken_by(tiny_checkpoint, candidate, tiny_data, tmp_path)
    assert EXPECTED[damage] <= broken
    assert not EXPECTED[damage] & broken_by_the_intact


def _broken_by(reference, candidate, data, results):
    judgement = judge_candidate(
        reference, candidate, data=[data], suites=["artifact", "parity"], results=results / "results"
    )
    broken = {str(finding.measure.key) for finding in judgement.verdict.broken}
    assert judgement.verdict.decision is (Decision.REJECTED if broken else Decision.ACCEPTED)
    return broken
