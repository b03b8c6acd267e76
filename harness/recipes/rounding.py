"""Weights in 8 bits: which integers, and which scales."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.instruction_sets import WeightRange
from harness.pair_limits import LARGEST_WEIGHT, fit_weights, limit_pairs
from harness.recipes.compensation import compensated

_LARGEST = {WeightRange.FULL: LARGEST_WEIGHT, WeightRange.PAIRS: LARGEST_WEIGHT, WeightRange.REDUCED: 64}
_MIDDLE = 128


@dataclass(frozen=True, slots=True, eq=False)
class RoundedWeights:
    """`(values - zero_point) * scales` is near the weights.

    Attributes:
        values: int8 or uint8, (channels, outputs).
        scales: float32, (outputs,), or a scalar for the whole matrix.
        zero_point: 0 for int8, 128 for uint8.
    """

    values: NDArray[np.int8] | NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_point: int


def round_weights(weights: NDArray[np.float32], weight_range: WeightRange, *, per_channel: bool) -> RoundedWeights:
    """Round a matrix symmetrically.

    Args:
        weights: float32, (channels, outputs).
        weight_range: what keeps sums of two products within 16 bits.
        per_channel: a scale for each output; else one for all.
    """
    if per_channel and weight_range is WeightRange.PAIRS:
        fitted = fit_weights(weights)
        return RoundedWeights(fitted.values, fitted.scales, 0)
    top = _LARGEST[weight_range]
    largest = np.abs(weights).max(axis=0) if per_channel else np.abs(weights).max()
    scales = np.asarray(np.where(largest > 0, largest, 1) / top, np.float32)
    values = np.clip(np.rint(weights / scales), -top, top).astype(np.int8)
    if weight_range is WeightRange.PAIRS:
        values = limit_pairs(values, 0)
    return RoundedWeights(values, scales, 0)


class Rounder:
    """`round_weights` that remembers: recipes of one search share most of their weights, and fitting takes a while."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: dict[tuple[object, ...], RoundedWeights] = {}

    def __call__(
        self,
        weights: NDArray[np.float32],
        weight_range: WeightRange,
        *,
        per_channel: bool,
        unsigned: bool = False,
        moments: NDArray[np.float32] | None = None,
    ) -> RoundedWeights:
        """See `round_weights`.

        Args:
            weights: float32, (channels, outputs).
            weight_range: what keeps sums of two products within 16 bits.
            per_channel: a scale for each output; else one for all.
            unsigned: store them moved by 128.
            moments: of the inputs; where given, errors are compensated.
        """
        key = (_digest(weights), weight_range, per_channel, unsigned, None if moments is None else _digest(moments))
        if key not in self._known:
            found = round_weights(weights, weight_range, per_channel=per_channel)
            if moments is not None:
                top, pairs = _LARGEST[weight_range], weight_range is WeightRange.PAIRS
                values = compensated(weights, found.scales, moments, pairs=pairs, top=top)
                found = RoundedWeights(values, found.scales, 0)
            self._known[key] = _stored(found.values.astype(np.int8), found.scales, unsigned=unsigned)
        return self._known[key]


def _digest(values: NDArray[np.float32]) -> str:
    content = np.ascontiguousarray(values)
    return f"{content.shape} {hashlib.sha256(content.tobytes()).hexdigest()}"


def _stored(values: NDArray[np.int8], scales: NDArray[np.float32], *, unsigned: bool) -> RoundedWeights:
    if unsigned:
        return RoundedWeights((values.astype(np.int16) + _MIDDLE).astype(np.uint8), scales, _MIDDLE)
    return RoundedWeights(values, scales, 0)


def round_columns(table: NDArray[np.float32], *, per_channel: bool) -> RoundedWeights:
    """Round a table of embeddings, (rows, channels): nothing is added up, so nothing can overflow."""
    return round_weights(table, WeightRange.FULL, per_channel=per_channel)
