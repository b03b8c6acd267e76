"""From `model.onnx` to an INT8 `model_quantized.onnx` beside it, through optimum's ORTQuantizer.

Static scales, not dynamic ones: with a dynamic scale the other queries of a batch, and even padding,
change a query's answer (onnxruntime#8625), so the INT8 model would not be one function. The ranges
come from real queries, after outliers were moved into the weights. Weights are symmetric, per
channel; what a product returns stays in float.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.artifact import Variant
from harness.errors import ArtifactError, UsageError, one_line
from harness.progress import Progress
from harness.quiet import quiet_libraries
from harness.tagging import pad, split_label

if TYPE_CHECKING:
    import onnx

_CALIBRATION_QUERIES = 400


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is quantized, for which instruction set."""

    target: str
    activations: str
    weights: str
    per_channel: bool
    reduce_range: bool
    operators: tuple[str, ...]

    @property
    def saturates_without_vnni(self) -> bool:
        """Whether pairs of products may overflow 16 bits on CPUs without VNNI (onnxruntime#6004)."""
        return self.activations == "QUInt8" and self.weights == "QInt8" and not self.reduce_range


# onnxruntime's guide to the instruction sets: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
# "reduce range" keeps weights in 7 bits: AVX2 and AVX-512 without VNNI add pairs of products in 16 bits, which overflow.
_RECIPES = {
    target: Recipe(target, activations, "QInt8", per_channel=True, reduce_range=reduced, operators=("MatMul", "Gather"))
    for target, activations, reduced in (
        ("avx2", "QUInt8", True),
        ("avx512", "QUInt8", True),
        ("avx512_vnni", "QUInt8", False),
        ("arm64", "QInt8", False),
    )
}


def default_target() -> str:
    """Name the target that this machine's CPU is."""
    if platform.machine().lower() in {"aarch64", "arm64"}:
        return "arm64"
    flags = _cpu_flags()
    if flags & {"avx512_vnni", "avx_vnni"}:
        return "avx512_vnni"
    return "avx512" if "avx512f" in flags else "avx2"


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def recipe_for(target: str | None) -> Recipe:
    """Look up the recipe of a target, this machine's by default.

    Raises:
        UsageError: there is no such target.
    """
    name = target or default_target()
    if name not in _RECIPES:
        message = f"there is no target {name!r}. Known: {', '.join(_RECIPES)}."
        raise UsageError(message)
    return _RECIPES[name]


def default_calibration(labels: Sequence[str], progress: Progress) -> list[str]:
    """Take bus training queries; say so where the model is of another domain."""
    from harness.labelled_data import bundled_bus_queries, read_labelled_set

    train = read_labelled_set(bundled_bus_queries("train"))
    if not set(train.entity_types) <= {split_label(label)[1] for label in labels}:
        progress.line(
            "note: INT8 ranges are set on bus queries; name queries of your own domain with --calibration FILE"
        )
    step = max(1, len(train.queries) // _CALIBRATION_QUERIES)
    return train.texts[::step][:_CALIBRATION_QUERIES]


def quantize_model(folder: Path, texts: Sequence[str], *, target: str | None, progress: Progress) -> dict[str, Any]:
    """Write `model_quantized.onnx` beside the `model.onnx` of an export.

    Args:
        folder: the export.
        texts: real queries; the ranges of activations are taken from what the model does with them.
        target: see `recipe_for`.
        progress: who is told.

    Returns:
        The recipe, for the manifest.

    Raises:
        UsageError: no such target.
        ArtifactError: onnxruntime's quantizer cannot quantize this model.
    """
    recipe = recipe_for(target)
    progress.line(f"INT8 for {recipe.target}: static scales from {len(texts)} queries, weights per channel")
    with tempfile.TemporaryDirectory(prefix="harness-quantize-") as temporary, quiet_libraries():
        workplace = Path(temporary)
        try:
            made = _quantize(folder, texts, recipe, workplace)
        except Exception as err:  # onnxruntime's tools raise whatever they like
            message = (
                f"{folder / Variant.FP32.file_name} cannot be quantized: {one_line(err)}. Release without --quantize."
            )
            raise ArtifactError(message) from err
        shutil.copyfile(made, folder / Variant.INT8.file_name)
    from harness.smoothing import MIGRATION

    return {
        **asdict(recipe),
        "method": "static, QDQ, min-max, smoothed",
        "migration": MIGRATION,
        "calibration_queries": len(texts),
    }


def _quantize(folder: Path, texts: Sequence[str], recipe: Recipe, workplace: Path) -> Path:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantizationMode, QuantType
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import CalibrationConfig, QuantizationConfig
    from transformers import AutoConfig

    from harness.smoothing import smooth

    rows = _rows(folder, texts)
    model = onnx.load(str(folder / Variant.FP32.file_name))
    smooth(model, [{name: np.asarray([value]) for name, value in row.items()} for row in rows])
    source = workplace / Variant.FP32.file_name
    onnx.save(model, str(source))
    quantizer = ORTQuantizer(source, config=AutoConfig.from_pretrained(folder, local_files_only=True))
    operators = list(recipe.operators)
    calibration = CalibrationConfig(
        dataset_name="queries", dataset_config_name="", dataset_split="", dataset_num_samples=len(texts),
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
        reduce_range=recipe.reduce_range,
        operators_to_quantize=operators,
        nodes_to_exclude=_products_of_activations(model),
    )
    quantizer.quantize(settings, save_dir=workplace, file_suffix="quantized", calibration_tensors_range=ranges)
    made = workplace / Variant.INT8.file_name
    quantized = onnx.load(str(made))
    _keep_results_in_float(quantized)
    onnx.save(quantized, str(made))
    return made


def _products_of_activations(model: onnx.ModelProto) -> list[str]:
    """List the MatMul nodes that multiply two activations: attention scores and their sums.

    They hold no weights, cost little at a query's length, and lose the most when rounded.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
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

    def __init__(self, rows: list[dict[str, list[int]]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._rows[index]

    def __iter__(self) -> Iterator[Mapping[str, list[int]]]:
        return iter(self._rows)


def _rows(folder: Path, texts: Sequence[str]) -> _Rows:
    """Encode queries, one a row: rows of one length would need padding, which would count as real."""
    from harness.artifact import open_artifact
    from harness.candidate import Candidate

    candidate = Candidate(open_artifact(folder), Variant.FP32)
    windows = [window for query in candidate.encode(list(texts)) for window in query.windows]
    rows = []
    for window in windows:
        batch = pad([window], candidate.pad_token_id)
        rows.append({name: value[0].tolist() for name, value in batch._asdict().items() if name in candidate.inputs})
    return _Rows(rows)
