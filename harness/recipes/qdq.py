"""Write a quantized graph with QuantizeLinear and DequantizeLinear around float operators, through optimum's ORTQuantizer.

Static scales, so that a query's answer does not depend on its batch (onnxruntime#8625). The ranges come from real
queries, after outliers were moved into the weights. What a product returns stays in float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from harness.artifact import Variant
from harness.instruction_sets import WeightRange
from harness.onnx_run import Feed
from harness.recipes.observation import Observation
from harness.recipes.recipe import Embeddings, Recipe
from harness.recipes.sites import Site, find_sites, name_nodes, stored, values_of
from harness.recipes.smoothing import divisors


def smooth(model: onnx.ModelProto, observed: Mapping[str, Observation], migration: float) -> None:
    """Divide activations and multiply weights, in place; the graph computes what it did.

    Args:
        model: an FP32 graph with its weights inside.
        observed: what real queries do with the input of each product.
        migration: see `divisors`.
    """
    name_nodes(model)
    constants = stored(model)
    by_activation: dict[str, list[Site]] = {}
    for site in find_sites(model):
        by_activation.setdefault(site.activation, []).append(site)
    for number, (activation, sites) in enumerate(by_activation.items()):
        tensors = [constants[site.weight] for site in sites]
        found = divisors(observed[activation].largest, [values_of(tensor) for tensor in tensors], migration)
        for tensor in tensors:
            scaled = values_of(tensor) * found[:, None]
            tensor.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), tensor.name))
        constant, output = f"smoothing_{number}", f"{activation}_smoothed_{number}"
        model.graph.initializer.append(numpy_helper.from_array((1 / found).astype(np.float32), constant))
        _divide_before(model, activation, constant, output, {site.name for site in sites})


def _divide_before(model: onnx.ModelProto, activation: str, constant: str, output: str, users: set[str]) -> None:
    nodes = model.graph.node
    place = len(nodes)
    for index, node in enumerate(nodes):
        if node.name in users:
            place = min(place, index)
            node.input[0] = output
    nodes.insert(place, helper.make_node("Mul", [activation, constant], [output], name=f"/{output}/Mul"))


def quantize_qdq(
    model: onnx.ModelProto,
    recipe: Recipe,
    observed: Mapping[str, Observation],
    feeds: Sequence[Feed],
    config_folder: Path,
) -> onnx.ModelProto:
    """Quantize a plain FP32 graph.

    Args:
        model: the graph; changed.
        recipe: how.
        observed: what calibration queries do with the input of each product.
        feeds: calibration queries, from which optimum takes its own ranges.
        config_folder: where `config.json` lies.
    """
    if recipe.migration:
        smooth(model, observed, recipe.migration)
    with tempfile.TemporaryDirectory(prefix="harness-qdq-") as temporary:
        rows = _Rows(feeds, [entry.name for entry in model.graph.input])
        made = _through_optimum(model, recipe, rows, config_folder, Path(temporary))
    _keep_results_in_float(made)
    return made


def _through_optimum(
    model: onnx.ModelProto, recipe: Recipe, rows: _Rows, config_folder: Path, workplace: Path
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantizationMode, QuantType
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import CalibrationConfig, QuantizationConfig
    from transformers import AutoConfig

    source = workplace / Variant.FP32.file_name
    onnx.save(model, str(source))
    quantizer = ORTQuantizer(source, config=AutoConfig.from_pretrained(config_folder, local_files_only=True))
    operators = ["MatMul"] if recipe.embeddings is Embeddings.FLOAT else ["MatMul", "Gather"]
    calibration = CalibrationConfig(
        dataset_name="queries", dataset_config_name="", dataset_split="", dataset_num_samples=len(rows),
        method=CalibrationMethod.MinMax,
    )  # fmt: skip
    ranges = quantizer.fit(
        rows,
        calibration,
        onnx_augmented_model_name=str(workplace / "augmented.onnx"),
        operators_to_quantize=operators,
    )
    settings = QuantizationConfig(
        is_static=True,
        format=QuantFormat.QDQ,
        mode=QuantizationMode.QLinearOps,
        activations_dtype=getattr(QuantType, recipe.activations),
        activations_symmetric=recipe.activations == "QInt8",
        weights_dtype=getattr(QuantType, recipe.weights),
        weights_symmetric=True,
        per_channel=recipe.per_channel,
        reduce_range=recipe.weight_range is not WeightRange.FULL,
        operators_to_quantize=operators,
        nodes_to_exclude=[*_products_of_activations(model), *recipe.float_sites],
    )
    quantizer.quantize(settings, save_dir=workplace, file_suffix="quantized", calibration_tensors_range=ranges)
    return onnx.load(str(workplace / Variant.INT8.file_name))


def _products_of_activations(model: onnx.ModelProto) -> list[str]:
    """List the MatMul nodes that multiply two activations: attention scores and their sums.

    They hold no weights, cost little at a query's length, and lose the most when rounded.
    """
    weights = set(stored(model))
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    return [node.name for node in products if not weights & set(node.input)]


def _keep_results_in_float(model: onnx.ModelProto) -> None:
    """Take out the rounding of what a MatMul returns, which gains no speed and doubles the error.

    onnxruntime's quantizer has an option for it, OpTypesToExcludeOutputQuantization, which optimum
    does not pass on.
    """
    nodes = model.graph.node
    results = {node.output[0] for node in nodes if node.op_type == "MatMul"}
    rounding = {node.output[0]: node for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] in results}
    restoring = [node for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in rounding]
    exact = {node.output[0]: rounding[node.input[0]].input[0] for node in restoring}
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = exact.get(name, name)
    for node in [*rounding.values(), *restoring]:
        nodes.remove(node)
    outputs = {output.name for output in model.graph.output}
    for node in nodes:  # a result that is also the graph's output keeps the output's name
        for index, name in enumerate(node.output):
            renamed = next((old for old, new in exact.items() if new == name and old in outputs), None)
            if renamed is not None:
                node.output[index] = renamed


class _Rows:
    """Calibration rows in the two forms that optimum asks for: indexed, with a length."""

    def __init__(self, feeds: Sequence[Feed], wanted: Sequence[str]) -> None:
        self._rows = [{name: feed[name][0].tolist() for name in wanted} for feed in feeds]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._rows[index]

    def __iter__(self) -> Iterator[Mapping[str, list[int]]]:
        return iter(self._rows)
