"""`harness.saturation`: what is certified of the stored weights, and which promises of a manifest they keep.

Which graphs hold products that clamp is in test_artifact_suite.py.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from harness.errors import ArtifactError
from harness.instruction_sets import PRESETS, Cpu, InstructionSet, check_cpu, entry_of_target
from harness.saturation import Certificate, certify, saturating_products

VNNI = {"safe_on_every": False, "needs_one_of": ["avx512_vnni", "avx_vnni", "arm64"]}
EVERY = {"safe_on_every": True, "needs_one_of": []}


def model_of(*weights, activations=np.uint8):
    """A graph with one MatMulInteger for each matrix."""
    nodes, stored = [], []
    for number, values in enumerate(weights):
        stored.append(numpy_helper.from_array(values, f"w{number}"))
        source = "x"
        if activations is np.int8:
            stored.append(numpy_helper.from_array(np.zeros((), np.int8), f"z{number}"))
            stored.append(numpy_helper.from_array(np.ones((), np.float32), f"s{number}"))
            source = f"q{number}"
            nodes.append(helper.make_node("QuantizeLinear", ["f", f"s{number}", f"z{number}"], [source]))
        nodes.append(helper.make_node("MatMulInteger", [source, f"w{number}"], [f"y{number}"], name=f"product{number}"))
    inputs = [helper.make_tensor_value_info("x", 2, [1, None]), helper.make_tensor_value_info("f", 1, [1, None])]
    return helper.make_model(helper.make_graph(nodes, "products", inputs, [], stored))


def column(*values):
    return np.array([values], np.int8).T


def test_a_certificate_counts_and_sizes(tmp_path):
    """Products, pairs, the largest sum of one sign and the largest sum of sizes are those of all products together."""
    found = certify(model_of(column(60, 60, -127, 100), np.full((3, 5), 9, np.int8)), tmp_path)
    assert found == Certificate(products=2, pairs=3 + 2 * 5, largest_pair=120, largest_sizes=227)
    assert found.entry() == {**EVERY, "largest_pair": 120, "why": found.why}


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_pairs_count_wherever_they_begin(position, tmp_path):
    """Kernels pair rows 0 and 1; another may begin elsewhere, so each two neighbours count."""
    values = [1] * 5
    values[position : position + 2] = [100, 29]
    found = certify(model_of(column(*values)), tmp_path)
    assert found.largest_pair == 129
    assert not found.safe_on_every
    assert found.problems == ("product0: two neighbouring weights add up to 129",)


def test_a_vector_is_a_column(tmp_path):
    """Weights of one dimension are summed along it."""
    assert certify(model_of(np.array([100, 29], np.int8)), tmp_path).largest_pair == 129


def test_a_graph_without_products(tmp_path):
    """Nothing to clamp is safe on every CPU, and says so."""
    assert certify(model_of(), tmp_path).entry() == {**EVERY, "largest_pair": None, "why": Certificate().why}


def test_the_lowest_weight_twice(tmp_path):
    """-128 twice in a column overflows ARM64's kernels without the dot product, whatever the activations' sign."""
    apart = column(-128, 0, 0, 0, 0, 0, 0, 0, -128)
    for activations in (np.uint8, np.int8):
        found = certify(model_of(apart, activations=activations), tmp_path)
        assert not found.safe_on_every
        check_cpu(found.entry(), "INT8", Cpu("x86_64", frozenset({InstructionSet.AVX2})))
        check_cpu(found.entry(), "INT8", Cpu("arm64", frozenset({InstructionSet.ARM64, InstructionSet.ARM64_DOTPROD})))
        with pytest.raises(ArtifactError, match="dot product"):
            check_cpu(found.entry(), "INT8", Cpu("arm64", frozenset({InstructionSet.ARM64})))
    assert certify(model_of(column(-128, 0, -127)), tmp_path).safe_on_every
    both = certify(model_of(column(-128, -128)), tmp_path)
    assert [name.value for name in both.needs_one_of] == ["avx512_vnni", "avx_vnni", "arm64_dotprod", "arm64_i8mm"]


def test_weights_that_cannot_be_read_are_not_certified(tmp_path):
    """A file that is missing makes no product safe."""
    model = model_of(column(1, 2))
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="gone", size_threshold=0)
    read = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    assert certify(read, tmp_path).safe_on_every
    (tmp_path / "gone").unlink()
    found = certify(read, tmp_path)
    assert not found.safe_on_every
    assert "cannot be read" in found.problems[0]
    assert "cannot be read" in found.why
    assert saturating_products(read, tmp_path) == list(found.problems)


def test_what_is_certified_is_what_a_cpu_is_let_through_for(tmp_path):
    """The certificate of clamping weights keeps CPUs away that clamp, that of others keeps nobody away."""
    clamping, safe = (certify(model_of(column(100, last)), tmp_path).entry() for last in (29, 28))
    haswell = Cpu("x86_64", frozenset({InstructionSet.AVX2}))
    check_cpu(safe, "INT8", haswell)
    with pytest.raises(ArtifactError, match="add up to 129"):
        check_cpu(clamping, "INT8", haswell)
    for preset in PRESETS:
        for name in preset.needs:
            check_cpu(clamping, "INT8", Cpu("any", frozenset({name})))


CLAMPING = Certificate(products=2, pairs=9, largest_pair=129, largest_sizes=200, problems=("a: 129",))
SAFE = Certificate(products=2, pairs=9, largest_pair=128, largest_sizes=200)
LOWEST = Certificate(products=2, pairs=9, largest_pair=128, largest_sizes=200, lowest_twice=True)


@pytest.mark.parametrize(
    ("certificate", "entry", "broken"),
    [
        (CLAMPING, {}, 1),
        (CLAMPING, EVERY, 1),
        (CLAMPING, VNNI, 0),
        (CLAMPING, {**VNNI, "needs_one_of": ["avx512_vnni", "amx_int8", "arm64_dotprod"]}, 0),
        (CLAMPING, {**VNNI, "needs_one_of": ["avx512_vnni", "avx2"]}, 1),
        (CLAMPING, {**VNNI, "needs_one_of": ["avx1024"]}, 1),
        (CLAMPING, {**VNNI, "largest_pair": 129}, 0),
        (CLAMPING, {**VNNI, "largest_pair": 128}, 1),
        (CLAMPING, {**EVERY, "largest_pair": 128}, 2),
        (CLAMPING, {"safe_on_every": "no"}, 1),
        (CLAMPING, entry_of_target("avx2"), 1),
        (CLAMPING, entry_of_target("avx512_vnni"), 0),
        (SAFE, {}, 0),
        (SAFE, EVERY, 0),
        (SAFE, VNNI, 0),
        (SAFE, {**EVERY, "largest_pair": 128}, 0),
        (SAFE, {**EVERY, "largest_pair": None}, 1),
        (LOWEST, EVERY, 1),
        (LOWEST, VNNI, 1),
        (LOWEST, {**VNNI, "needs_one_of": ["avx2", "arm64_dotprod"]}, 0),
    ],
)
def test_promises_are_held_against_the_weights(certificate, entry, broken):
    """An entry that promises a CPU on which weights clamp is broken, and so is one with another figure."""
    assert len(certificate.broken_promises(entry)) == broken


def test_a_certificates_own_entry_is_never_broken():
    """What a certificate writes into a manifest, it finds kept."""
    for certificate in (CLAMPING, SAFE, LOWEST, Certificate()):
        assert certificate.broken_promises(certificate.entry()) == []
        assert "\n" not in certificate.why
