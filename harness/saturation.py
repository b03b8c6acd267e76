"""Certify that no product of an INT8 model clamps on any CPU, or say which CPUs it is right on.

On x86 without VNNI, onnxruntime multiplies unsigned activations with signed weights by VPMADDUBSW, which adds two
products in 16 bits and clamps the sum (onnxruntime's guide to quantization, "When and why do I need to try U8U8?";
onnxruntime#6004, #5849, #14642). Whether it can happen is a matter of the stored weights alone, so it is read from
them, on any machine, without running anything; `harness.clamping` computes what it does to the answers.

Which weights are added, in onnxruntime's own library of kernels (core/mlas/lib): rows 0 and 1, 2 and 3, and so on of
each column, zeros after the last (amd64/QgemmU8X8KernelAvx2.asm and SymQgemmU8KernelAvx512.asm, `PackedK` of 4;
x86_64/QgemvU8S8KernelAvx2.S for one row of activations). Every two neighbours count here, for other versions and other
libraries start elsewhere.

What does not clamp: unsigned weights, whose kernels widen to 16 bits before they multiply; signed activations in
operators such as MatMulInteger, for which x86 has a plain kernel (qgemm.h, MlasGemmQuantGetDispatch); MatMulNBits,
which multiplies sizes with signs moved to the other side, 2 · 128 · 127 at most. In QuantizeLinear/DequantizeLinear
form, signed activations are no way out: on x86 onnxruntime makes them unsigned when it loads the model
(optimizer/qdq_transformer/qdq_s8_to_u8.h). All of this was tried on an emulated Haswell, see docs/cpu-safety.md.

On ARM64 without the dot product, two products of -128 and -128 overflow (aarch64/QgemmS8S8KernelNeon.S: SMULL, SMLAL
in 16 bits); symmetric quantization never writes -128. Convolutions are not looked at, nor graphs inside nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from harness.errors import one_line
from harness.instruction_sets import SAFE_FOR_ANY_WEIGHTS, InstructionSet
from harness.onnx_values import constants, integer_attribute, producers
from harness.pair_limits import LARGEST_PAIR

_TRANSPARENT = frozenset({"Reshape", "Identity", "Squeeze", "Unsqueeze", "Transpose", "Flatten"})
_EIGHT_BITS = frozenset({onnx.TensorProto.UINT8, onnx.TensorProto.INT8})
_LOWEST = -128


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


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the stored weights say about the CPUs that a model is right on.

    Attributes:
        products: matrix products of activations with signed 8-bit weights that x86 may clamp.
        pairs: neighbouring weights in them that were looked at.
        largest_pair: the largest sum of two of one sign, as a size; None without products.
        largest_sizes: the largest |w1| + |w2| of any two, which no sum exceeds.
        problems: the products that clamp, by node and weight; those that cannot be read are among them.
        lowest_twice: whether some column has -128 twice, which ARM64 without the dot product cannot add.
    """

    products: int = 0
    pairs: int = 0
    largest_pair: int | None = None
    largest_sizes: int | None = None
    problems: tuple[str, ...] = ()
    lowest_twice: bool = False

    @property
    def safe_on_every(self) -> bool:
        """Whether no CPU clamps anything."""
        return not self.problems and not self.lowest_twice

    @property
    def needs_one_of(self) -> tuple[InstructionSet, ...]:
        """The instruction sets that the numbers are right with; empty where they are on every CPU."""
        if self.safe_on_every:
            return ()
        fitting = SAFE_FOR_ANY_WEIGHTS if self.problems else (InstructionSet.AVX2, *SAFE_FOR_ANY_WEIGHTS)
        if not self.lowest_twice:
            return fitting
        dotted = (InstructionSet.ARM64_DOTPROD, InstructionSet.ARM64_I8MM)
        return (*(name for name in fitting if name is not InstructionSet.ARM64), *dotted)

    @property
    def why(self) -> str:
        """The reason, in a line."""
        if self.problems:
            largest = "cannot be read" if self.largest_pair is None else f"add up to {self.largest_pair}"
            count = f"{len(self.problems)} of {self.products} products"
            return f"neighbouring weights {largest}, above {LARGEST_PAIR}, in {count}: CPUs without VNNI clamp them"
        if self.lowest_twice:
            return "a column has the weight -128 twice, which ARM64 adds in 16 bits without the dot product"
        if self.largest_pair is None:
            return "no product of integers that a CPU could clamp"
        return f"neighbouring weights add up to {self.largest_pair} at most; {LARGEST_PAIR} is never clamped"

    def entry(self) -> dict[str, Any]:
        """Write the variant's entry `cpu` of a manifest."""
        return {
            "safe_on_every": self.safe_on_every,
            "needs_one_of": [name.value for name in self.needs_one_of],
            "largest_pair": self.largest_pair,
            "why": self.why,
        }

    def broken_promises(self, entry: Mapping[str, Any]) -> list[str]:
        """List what clamps on CPUs that a manifest's entry `cpu` promises; an empty entry promises every CPU."""
        problems = list(self.problems) or ([self.why] if self.lowest_twice else [])
        if entry.get("safe_on_every") is False:
            right = {name.value for name in (*self.needs_one_of, *_ADDITIONS)}
            problems = problems if set(map(str, entry.get("needs_one_of") or ())) - right else []
        if "largest_pair" in entry and entry["largest_pair"] != self.largest_pair:
            said = one_line(repr(entry["largest_pair"]), 40)
            problems.append(f"the manifest says that neighbours add up to {said}, the weights say {self.largest_pair}")
        return problems


# What comes with one of the instruction sets that a certificate names.
_ADDITIONS = (InstructionSet.AMX_INT8, InstructionSet.ARM64_DOTPROD, InstructionSet.ARM64_I8MM)


def certify(model: onnx.ModelProto, folder: Path) -> Certificate:
    """Look at the weights of every product that a CPU may clamp.

    Args:
        model: the graph, as it is shipped; weights in other files need not be loaded.
        folder: where weights in other files lie.
    """
    graph = _Graph(model, folder)
    found = Certificate()
    for node, weight in graph.integer_products(model):
        found = _with(found, weight, node.name or node.op_type, graph)
    return found


def clamping_products(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, IntegerWeight]]:
    """Name the nodes that x86 may clamp, each with the weights that it multiplies; see `certify`."""
    found = _Graph(model, Path()).integer_products(model)
    return ((node, weight) for node, weight in found if weight.clamps)


def saturating_products(model: onnx.ModelProto, folder: Path) -> list[str]:
    """List the products, by node and weight, that clamp on CPUs without VNNI; see `certify`."""
    return list(certify(model, folder).problems)


def _with(found: Certificate, weight: IntegerWeight, where: str, graph: _Graph) -> Certificate:
    """Add one product's weights to what was found before."""
    try:
        columns = graph.columns(weight)
    except Exception as err:  # of a file that is missing or cut short; the suite's external_data_problems says more
        problem = f"{where}: its weights {weight.name} cannot be read ({one_line(err, 80)})"
        return replace(found, products=found.products + 1, problems=(*found.problems, problem))
    lowest_twice = found.lowest_twice or bool((np.count_nonzero(columns == _LOWEST, axis=0) > 1).any())
    if not weight.clamps:
        return replace(found, lowest_twice=lowest_twice)
    largest, sizes = largest_pair(columns), largest_sizes(columns)
    problem = f"{where}: two neighbouring weights add up to {largest}"
    return Certificate(
        products=found.products + 1,
        pairs=found.pairs + (len(columns) - 1) * columns[0].size,
        largest_pair=max(largest, found.largest_pair or 0),
        largest_sizes=max(sizes, found.largest_sizes or 0),
        problems=(*found.problems, problem) if largest > LARGEST_PAIR else found.problems,
        lowest_twice=lowest_twice,
    )


def largest_pair(columns: NDArray[np.int16]) -> int:
    """Size up the largest sum of two neighbours along the first axis; a single row is its own pair, with a zero.

    Two of unlike sign never add up to more than one of them, so their sum counts, not the sum of their sizes.
    """
    sums = columns[1:] + columns[:-1] if len(columns) > 1 else columns
    return int(np.abs(sums).max(initial=0))


def largest_sizes(columns: NDArray[np.int16]) -> int:
    """Add the sizes of two neighbours along the first axis; the largest such sum, whatever their signs."""
    sizes = np.abs(columns)
    return int((sizes[1:] + sizes[:-1] if len(sizes) > 1 else sizes).max(initial=0))


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """A stored factor: its name, the axis that is summed along, counted from the end, and whether x86 may clamp it."""

    name: str
    axis: int
    clamps: bool


class _Graph:
    """A model's values by name."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._constants = constants(model)
        self._producers = producers(model)
        self._folder = folder

    def integer_products(self, model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, IntegerWeight]]:
        """Name the nodes that multiply signed 8-bit weights with 8-bit activations, and the weights."""
        return ((node, weight) for node in model.graph.node for weight in self._weights_of(node))

    def _weights_of(self, node: onnx.NodeProto) -> Iterator[IntegerWeight]:
        operands = _INTEGER_PRODUCTS.get(node.op_type)
        if operands is not None:
            axis = -1 if integer_attribute(node, "transB") else -2
            clamps = self._unsigned(node, operands)
            found = [IntegerWeight(node.input[index], axis, clamps) for index in operands.weights]
        elif node.op_type in _FLOAT_PRODUCTS and self._is_quantized_activation(node.input[0]):
            found = [self._behind_dequantization(node)]
        else:
            return
        yield from (weight for weight in found if self._is_int8(weight.name))

    def columns(self, weight: IntegerWeight) -> NDArray[np.int16]:
        """Read a weight, the axis that is summed along in front: int16."""
        values = numpy_helper.to_array(self._constants[weight.name], str(self._folder)).astype(np.int16)
        return np.moveaxis(values, weight.axis, 0) if values.ndim > 1 else values.reshape(-1, 1)

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
        return integer_attribute(maker, "output_dtype") or int(onnx.TensorProto.UINT8)

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

    def _behind_dequantization(self, node: onnx.NodeProto) -> IntegerWeight:
        """Follow a product's weight back to where it is stored."""
        name = node.input[1]
        transposed = bool(integer_attribute(node, "transB"))
        while (maker := self._producers.get(name)) is not None and maker.op_type in {"DequantizeLinear", "Transpose"}:
            transposed ^= maker.op_type == "Transpose"
            name = maker.input[0]
        return IntegerWeight(name, -1 if transposed else -2, clamps=True)
