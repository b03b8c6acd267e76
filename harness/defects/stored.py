"""Matrices as an ONNX graph stores them: in floating point, or in integers with scales.

A changed matrix is stored as it was stored before; what a matrix means to the model is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]


def array_of(tensor: onnx.TensorProto) -> Array:
    """Copy a tensor's numbers, so that they can be changed."""
    return np.array(numpy_helper.to_array(tensor))


def replace(tensor: onnx.TensorProto, values: Array) -> None:
    """Put other numbers into a tensor; its name and type stay."""
    kept = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=kept), tensor.name))


def shuffled(rng: np.random.Generator, values: Array) -> Array:
    """Shuffle all numbers of an array, over all axes."""
    return rng.permutation(values.ravel()).reshape(values.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A stored matrix that a node multiplies with or looks up rows in.

    Attributes:
        tensor: the stored numbers.
        node: the node that uses it.
        scale: what restores the numbers where they are integers: one number, or one a channel.
        zero_point: the integer that stands for zero.
        axis: which axis of the stored numbers the scales run along.
        flipped: whether it is stored as (out, in) instead of (in, out).
    """

    tensor: onnx.TensorProto
    node: onnx.NodeProto
    scale: onnx.TensorProto | None
    zero_point: onnx.TensorProto | None
    axis: int
    flipped: bool

    @property
    def is_quantized(self) -> bool:
        """Whether the stored numbers are integers."""
        return bool(numpy_helper.to_array(self.tensor).dtype.kind in "iu")

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out) of a product, (rows, channels) of a table."""
        first, second = self.tensor.dims
        return (second, first) if self.flipped else (first, second)

    def stored(self) -> Array:
        """Copy the stored numbers, as (in, out)."""
        stored = array_of(self.tensor)
        return stored.T if self.flipped else stored

    def store(self, stored: Array) -> None:
        """Store numbers of the stored type, given as (in, out)."""
        replace(self.tensor, stored.T if self.flipped else stored)

    def values(self) -> Array:
        """Restore the matrix: float, (in, out)."""
        if not self.is_quantized:
            return self.stored()
        return np.asarray((self.stored().astype(np.float32) - self._zero()) * self._scales(), np.float32)

    def write(self, values: Array) -> None:
        """Store a matrix given as (in, out), rounded with the scales that are there; what they cannot hold is clipped."""
        if not self.is_quantized:
            self.store(values)
            return
        bounds = np.iinfo(numpy_helper.to_array(self.tensor).dtype)
        scales = self._scales()
        steps = np.divide(values, scales, out=np.zeros(values.shape, np.float32), where=scales != 0)
        self.store(np.clip(np.rint(steps + self._zero()), bounds.min, bounds.max))

    def write_rescaled(self, values: Array) -> None:
        """Store a matrix given as (in, out) with scales that fit it."""
        if self.scale is not None and self.is_quantized:
            bounds = np.iinfo(numpy_helper.to_array(self.tensor).dtype)
            old = array_of(self.scale)
            axes = (0, 1) if old.size == 1 else (0 if self._scaled_axis == 1 else 1,)
            replace(self.scale, (np.abs(values).max(axis=axes) / (bounds.max // 2)).reshape(old.shape))
        self.write(values)

    def reorder_outputs(self, order: Sequence[int]) -> None:
        """Exchange columns of (in, out), with their scales and zero points."""
        self.store(self.stored()[:, order])
        for tensor in (self.scale, self.zero_point):
            if tensor is not None and array_of(tensor).size == len(order) > 1 and self._scaled_axis == 1:
                replace(tensor, array_of(tensor).reshape(-1)[list(order)].reshape(array_of(tensor).shape))

    @property
    def _scaled_axis(self) -> int:
        """The axis of (in, out) that the scales run along."""
        axis = self.axis % 2
        return 1 - axis if self.flipped else axis

    def _along(self, tensor: onnx.TensorProto, empty: float) -> Array:
        numbers = array_of(tensor).astype(np.float32).reshape(-1)
        if numbers.size <= 1:
            return numbers if numbers.size else np.array([empty], np.float32)
        return numbers[:, None] if self._scaled_axis == 0 else numbers[None, :]

    def _scales(self) -> Array:
        # MatMulInteger's scale comes later in the graph: then a step is the unit
        return np.ones(1, np.float32) if self.scale is None else self._along(self.scale, 1.0)

    def _zero(self) -> Array:
        return np.zeros(1, np.float32) if self.zero_point is None else self._along(self.zero_point, 0.0)
