"""Find matrix products whose sums of two overflow 16 bits on CPUs without VNNI.

There onnxruntime multiplies unsigned activations with signed weights by VPMADDUBSW, which adds neighbouring
products in 16 bits and clamps the sum (onnxruntime's guide to quantization, "When and why do I need to try
U8U8?"; onnxruntime#6004, #5849, #14642). Whether the clamping happens is a matter of the stored weights alone,
so it is read from them, on any machine, without running anything.

What does not clamp, in onnxruntime's own library of kernels (core/mlas/lib): unsigned weights, whose kernels for
AVX2 and AVX-512 widen to 16 bits before they multiply (qgemm_kernel_avx2.cpp, MlasGemmU8U8CopyPackAAvx2), and
signed activations in operators such as MatMulInteger, for which x86 has a plain kernel only (qgemm.h,
MlasGemmQuantGetDispatch). In QuantizeLinear/DequantizeLinear form, signed activations are no way out: on x86
onnxruntime makes them unsigned when it loads the model (optimizer/qdq_transformer/qdq_s8_to_u8.h).
Convolutions are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from harness.errors import one_line

from .model_file import constants, producers

# 255 · 128 = 32640 fits into 16 bits, 255 · 129 = 32895 does not. Two weights of unlike sign never add up to more
# than one of them, so it is their sum that counts, not the sum of their sizes.
_LARGEST_PAIR = 128
_TRANSPARENT = frozenset({"Reshape", "Identity", "Squeeze", "Unsqueeze", "Transpose", "Flatten"})
_EIGHT_BITS = frozenset({onnx.TensorProto.UINT8, onnx.TensorProto.INT8})


@dataclass(frozen=True, slots=True)
class _Operands:
    """Where an operator of integers takes its factors from; `zero_point` is that of the activations, if it is an input."""

    weights: tuple[int, ...]
    activations: int | None
    zero_point: int | None = None


# Operators of onnx and onnxruntime that multiply integers; DynamicQuantize… make their activations unsigned themselves.
_INTEGER_PRODUCTS = {
    "MatMulInteger": _Operands((1,), 0),
    "MatMulIntegerToFloat": _Operands((1,), 0),
    "QLinearMatMul": _Operands((3,), 0, zero_point=2),
    "QGemm": _Operands((3,), 0, zero_point=2),
    "QAttention": _Operands((1,), 0, zero_point=6),
    "DynamicQuantizeMatMul": _Operands((1,), None),
    "DynamicQuantizeLSTM": _Operands((1, 2), None),
}
_FLOAT_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul"})


def saturating_products(model: onnx.ModelProto, folder: Path) -> list[str]:
    """List the products, by node and weight, that clamp on CPUs without VNNI.

    Args:
        model: the graph; weights in other files need not be loaded.
        folder: where weights in other files lie.
    """
    graph = _Graph(model, folder)
    found = []
    for node in model.graph.node:
        for weight, axis in graph.integer_weights(node):
            problem = graph.saturates(weight, axis)
            if problem:
                found.append(f"{node.name or node.op_type}: {problem}")
    return found


class _Graph:
    """A model's values by name."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._constants = constants(model)
        self._producers = producers(model)
        self._folder = folder

    def integer_weights(self, node: onnx.NodeProto) -> list[tuple[str, int]]:
        """Name the signed 8-bit weights that a node multiplies with unsigned activations, and the axis it sums along."""
        operands = _INTEGER_PRODUCTS.get(node.op_type)
        if operands is not None:
            if not self._unsigned(node, operands):
                return []
            axis = -1 if _attribute(node, "transB") else -2
            return [(node.input[index], axis) for index in operands.weights if self._is_int8(node.input[index])]
        if node.op_type in _FLOAT_PRODUCTS and self._is_quantized_activation(node.input[0]):
            weight, axis = self._behind_dequantization(node)
            return [(weight, axis)] if self._is_int8(weight) else []
        return []

    def saturates(self, weight: str, axis: int) -> str | None:
        """Say how far the largest sum of two neighbouring weights is out of range, if it is.

        Kernels differ in which neighbours they pair, so all of them count.
        """
        try:
            values = numpy_helper.to_array(self._constants[weight], str(self._folder)).astype(np.int16)
        except Exception as err:  # external_data_problems says more about a file that is missing or cut short
            return f"its weights {weight} cannot be read ({one_line(err, 80)})"
        if values.ndim < 2 or values.shape[axis] < 2:
            return None
        count = values.shape[axis]
        pairs = np.take(values, range(1, count), axis) + np.take(values, range(count - 1), axis)
        largest = int(np.abs(pairs).max(initial=0))
        return f"two neighbouring weights add up to {largest}" if largest > _LARGEST_PAIR else None

    def _is_int8(self, name: str) -> bool:
        return name in self._constants and self._constants[name].data_type == onnx.TensorProto.INT8

    def _unsigned(self, node: onnx.NodeProto, operands: _Operands) -> bool:
        """Tell whether the activations are unsigned; where nothing says it, they are taken to be."""
        if operands.zero_point is not None and len(node.input) > operands.zero_point:
            zero_point = self._constants.get(node.input[operands.zero_point])
            if zero_point is not None:
                return zero_point.data_type != onnx.TensorProto.INT8
        if operands.activations is None:
            return True
        return self._quantized_type(node.input[operands.activations]) != onnx.TensorProto.INT8

    def _quantized_type(self, name: str) -> int:
        """Tell the type that a QuantizeLinear gave a value: that of its zero point, unsigned without one."""
        maker = self._maker(name)
        if maker is None or maker.op_type != "QuantizeLinear":
            return int(onnx.TensorProto.UINT8)
        if len(maker.input) > 2 and maker.input[2] in self._constants:
            return int(self._constants[maker.input[2]].data_type)
        return _attribute(maker, "output_dtype") or int(onnx.TensorProto.UINT8)

    def _maker(self, name: str) -> onnx.NodeProto | None:
        maker = self._producers.get(name)
        while maker is not None and maker.op_type in _TRANSPARENT:
            maker = self._producers.get(maker.input[0])
        return maker

    def _is_quantized_activation(self, name: str) -> bool:
        maker = self._maker(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return False
        return self._quantized_type(maker.input[0]) in _EIGHT_BITS

    def _behind_dequantization(self, node: onnx.NodeProto) -> tuple[str, int]:
        """Follow a product's weight back to where it is stored; the axis is counted from the end."""
        name = node.input[1]
        transposed = bool(_attribute(node, "transB"))
        while (maker := self._producers.get(name)) is not None and maker.op_type in {"DequantizeLinear", "Transpose"}:
            transposed ^= maker.op_type == "Transpose"
            name = maker.input[0]
        return name, -1 if transposed else -2


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)
