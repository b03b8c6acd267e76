"""Keep 8-bit weights from clamping on CPUs without VNNI, at less cost than a bit of every weight.

What clamps is a sum of two neighbours of one sign above 128; see `harness.saturation`. onnxruntime's `reduce_range`
keeps it out by halving every weight's precision, though few pairs are that large. Here only those pairs are made
smaller, and the scale of each column is chosen so that rounding and what is cut off cost least together.

Knows arrays only: no graph, no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# 255 · 128 = 32640 fits into 16 bits, 255 · 129 = 32895 does not. Two weights of unlike sign never add up to more than
# one of them, so it is their sum that counts, not the sum of their sizes.
LARGEST_PAIR = 128
# Symmetric weights stop at -127: a pair of -128 overflows ARM64's kernels without the dot product, too.
LARGEST_WEIGHT = 127
_REDUCED = 64
_SCALES = 17


def limit_pairs(quantized: NDArray[np.int8], axis: int) -> NDArray[np.int8]:
    """Make the weights of too large pairs smaller, and no others.

    Both weights of a pair give way alike, which changes them least in squares. Of three in a row the middle one counts
    once, and what another's giving way made needless is given back: in the result, no changed weight could be nearer
    to what it was.

    Args:
        quantized: weights, of any shape.
        axis: the axis that products are summed along.

    Returns:
        Weights of which no two neighbours along the axis add up to more than 128 or less than -128, as near to the
        given ones; none changes its sign.
    """
    rows = np.moveaxis(quantized.astype(np.int16), axis, 0)
    limited = np.clip(rows, -LARGEST_PAIR, LARGEST_PAIR)
    if len(rows) > 1:
        while _give_way(limited, 0) + _give_way(limited, 1):
            pass
        for first in (0, 1):
            _give_back(limited, rows, first)
    return np.ascontiguousarray(np.moveaxis(limited, 0, axis)).astype(np.int8)


def _give_way(rows: NDArray[np.int16], first: int) -> int:
    """Reduce the pairs that start at every second row from `first` on, in place; tell how many were too large."""
    upper, lower = rows[first:-1:2], rows[first + 1 :: 2]
    sums = upper + lower
    excess = np.maximum(np.abs(sums) - LARGEST_PAIR, 0) * np.sign(sums)
    if not (found := int(np.count_nonzero(excess))):
        return 0
    half = np.trunc(excess / 2).astype(np.int16)
    rest = excess - half
    larger = np.abs(upper) >= np.abs(lower)
    upper -= np.where(larger, rest, half)
    lower -= np.where(larger, half, rest)
    return found


def _give_back(limited: NDArray[np.int16], wanted: NDArray[np.int16], first: int) -> None:
    """Move every second row back towards what it was, as far as its neighbours allow, in place."""
    padded = np.pad(limited, [(1, 1), *[(0, 0)] * (limited.ndim - 1)])
    above, below = padded[first:-2:2], padded[first + 2 :: 2]
    highest = LARGEST_PAIR - np.maximum(np.maximum(above, below), 0)
    lowest = -LARGEST_PAIR - np.minimum(np.minimum(above, below), 0)
    limited[first::2] = np.clip(wanted[first::2], lowest, highest)


@dataclass(frozen=True, slots=True)
class FittedWeights:
    """Weights in 8 bits whose pairs are within the limit.

    Attributes:
        values: int8, of the shape of the weights.
        scales: float32, one for each column, so that `values * scales` is near the weights.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


def fit_weights(weights: NDArray[np.float32], axis: int = 0) -> FittedWeights:
    """Quantize a matrix symmetrically, a scale for each column, with pairs within the limit and the least square error.

    Tries scales from that of 8 bits to that of 7 bits. The smallest rounds least and cuts most off; at the largest, no
    pair can be too large. So no column is further off than with `reduce_range`.

    Args:
        weights: float32, two-dimensional.
        axis: the axis that products are summed along; each index of the other is a column.
    """
    columns = np.moveaxis(weights, axis, 0)
    largest = np.abs(columns).max(axis=0, initial=0)
    largest = np.where(largest > 0, largest, 1).astype(np.float32)
    best = np.full(columns.shape[1], np.inf)
    values, scales = np.zeros(columns.shape, np.int8), largest / _REDUCED
    for top in np.geomspace(LARGEST_WEIGHT, _REDUCED, _SCALES):
        scale = (largest / top).astype(np.float32)
        tried = limit_pairs(np.clip(np.rint(columns / scale), -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8), 0)
        error = np.square(columns - tried * scale).sum(axis=0, dtype=np.float64)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
        values[:, better] = tried[:, better]
    return FittedWeights(np.ascontiguousarray(np.moveaxis(values, 0, axis)), scales.astype(np.float32))
