"""Find scales of a quantized model that no quantizer writes: zero, below zero, or no number.

A scale of zero erases its channel, a negative one turns it round. With one channel of many the answers move by
less than INT8's own rounding, so logits do not tell; the stored number does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from harness.errors import one_line
from harness.onnx_values import constants

from .model_file import every_node

# Which inputs of an operator are scales (onnx's Operators.md, onnxruntime's ContribOperators.md).
_SCALES = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "QLinearMatMul": (1, 4, 6),
    "QGemm": (1, 4, 7),
    "QAttention": (3, 4),
    "MatMulIntegerToFloat": (2, 3),
    "DynamicQuantizeMatMul": (2,),
    "MatMulNBits": (2,),
    "GatherBlockQuantized": (2,),
}


def unusable_scales(model: onnx.ModelProto, folder: Path) -> list[str]:
    """List stored scales with an entry that is not a finite number above zero, each scale once.

    Args:
        model: the graph; weights in other files need not be loaded.
        folder: where weights in other files lie.
    """
    stored = constants(model)
    names = [
        node.input[index]
        for node in every_node(model.graph.node)
        for index in _SCALES.get(node.op_type, ())
        if index < len(node.input)
    ]
    problems = (_problem(stored[name], folder) for name in dict.fromkeys(names) if name in stored)
    return [problem for problem in problems if problem]


def _problem(tensor: onnx.TensorProto, folder: Path) -> str | None:
    try:
        values = numpy_helper.to_array(tensor, str(folder)).astype(np.float64)
    except Exception as err:  # external_data_problems says more about a file that is missing or cut short
        return f"the scale {tensor.name} cannot be read ({one_line(err, 80)})"
    bad = values[~(np.isfinite(values) & (values > 0))]
    return f"{bad.size} of {values.size} entries of the scale {tensor.name} are like {bad[0]:g}" if bad.size else None
