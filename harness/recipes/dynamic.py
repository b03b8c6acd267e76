"""Write a quantized graph with dynamic scales, through onnxruntime's quantizer: what most people ship.

A dynamic scale is taken over the whole batch, so the other queries of a batch change a query's answer
(onnxruntime#8625). The recipe is here to be compared with, and for those who only ever send one query at a time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from harness.artifact import Variant
from harness.instruction_sets import WeightRange
from harness.recipes.recipe import Embeddings, Recipe
from harness.serving import ServingSettings


def quantize_dynamically(model: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """Quantize a graph, fused or plain."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="harness-dynamic-") as temporary:
        source, made = (Path(temporary) / variant.file_name for variant in (Variant.FP32, Variant.INT8))
        onnx.save(model, str(source))
        quantize_dynamic(
            source,
            made,
            per_channel=recipe.per_channel,
            reduce_range=recipe.weight_range is not WeightRange.FULL,
            weight_type=getattr(QuantType, recipe.weights),
            nodes_to_exclude=[*recipe.float_sites, *_tables_left(model, recipe)],
            # after a fusion no type can be inferred for some tensors
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "WeightSymmetric": True},
        )
        return _optimized(made) if recipe.optimized else onnx.load(str(made))


def _tables_left(model: onnx.ModelProto, recipe: Recipe) -> list[str]:
    """Name the look-ups whose tables stay in FP32."""
    if recipe.embeddings is not Embeddings.FLOAT:
        return []
    return [node.name for node in model.graph.node if node.op_type == "Gather"]


def _optimized(path: Path) -> onnx.ModelProto:
    """Let a session optimize the file and write what it made of it, without what slows it down.

    Up to the extended level no rewrite depends on the CPU it is made on
    (https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html, "Extended graph optimizations").
    """
    import onnxruntime

    result = path.with_suffix(".optimized.onnx")
    options = ServingSettings().session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(result)
    onnxruntime.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion", "BiasSkipLayerNormFusion"],
    )
    return onnx.load(str(result))
