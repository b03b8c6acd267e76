"""By what the channels of an activation are divided before they are rounded, so that a few large ones don't spoil the rest.

The matching rows of the weights are multiplied by it, so it is the same function, with the outliers moved into the
weights, which have a scale per channel (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438, equation 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1e-5
# A factor beyond these bounds comes from a channel that the calibration queries hardly use.
_LARGEST_FACTOR = 100.0


def divisors(
    largest: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], migration: float
) -> NDArray[np.float32]:
    """Equation 4 of the paper, scaled to a geometric mean of 1: float32, (channels,).

    Args:
        largest: the largest absolute value of each channel, (channels,).
        weights: the matrices that the activation is multiplied with, (channels, outputs) each.
        migration: 1 makes the activation's channels equally large; the nearer to 0, the more so the weights' rows instead.
    """
    rows = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0)
    raw = np.maximum(largest, _SMALLEST) ** migration / np.maximum(rows, _SMALLEST) ** (1 - migration)
    centred = raw / np.exp(np.log(raw).mean())
    return np.asarray(np.clip(centred, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR), np.float32)
