"""Round weights one input channel after the other, and let those that follow make up for each one's error.

With the inputs' second moments known, the error that rounding a weight makes in a product's results can be lessened by
the weights that are not rounded yet (GPTQ: Frantar et al. 2022, arXiv:2210.17323, algorithm 1; the idea is Optimal
Brain Surgeon's). It costs nothing when the model runs. Measured on a MiniLM-L6 NER model, mean logit difference that
8-bit weights make alone: .0083 rounded to the nearest within the limit of pairs, .0042 so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.pair_limits import LARGEST_PAIR

# The paper's: one per cent of the mean of the diagonal keeps the inverse stable where channels hardly vary.
_DAMPING = 0.01
# Channels whose effect on all later ones is applied at once.
_BLOCK = 64


def compensated(
    weights: NDArray[np.float32], scales: NDArray[np.float32], moments: NDArray[np.float32], *, pairs: bool, top: int
) -> NDArray[np.int8]:
    """Round a matrix.

    Args:
        weights: float32, (channels, outputs).
        scales: float32, (outputs,), or a scalar.
        moments: second moments of the inputs, (channels, channels).
        pairs: keep neighbouring weights of one sign within `LARGEST_PAIR` together.
        top: the largest integer.

    Raises:
        numpy.linalg.LinAlgError: the moments are no moments.
    """
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += _DAMPING * max(float(np.diag(damped).mean()), 1e-12)
    spread = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left = weights.astype(np.float32).copy()
    rounded = np.zeros(weights.shape, np.int8)
    for first in range(0, len(left), _BLOCK):
        block = slice(first, first + _BLOCK)
        before = rounded[first - 1].astype(np.float32) if first else np.zeros(left.shape[1], np.float32)
        errors = _round_block(left[block], rounded[block], scales, spread[block, block], before if pairs else None, top)
        left[first + _BLOCK :] -= spread[block, first + _BLOCK :].T @ errors
    return rounded


def _round_block(
    left: NDArray[np.float32],
    rounded: NDArray[np.int8],
    scales: NDArray[np.float32],
    spread: NDArray[np.float32],
    before: NDArray[np.float32] | None,
    top: int,
) -> NDArray[np.float32]:
    """Round some channels, in place; return the error of each, as the later channels are to make up for it."""
    errors = np.zeros_like(left)
    low, high = np.float32(-top), np.float32(top)
    for index, row in enumerate(left):
        least, most = (low, high) if before is None else _room(before, top)
        values = np.clip(np.rint(row / scales), least, most)
        rounded[index] = values
        errors[index] = (row - values * scales) / spread[index, index]
        left[index + 1 :] -= np.outer(spread[index, index + 1 :], errors[index])
        before = None if before is None else values
    return errors


def _room(before: NDArray[np.float32], top: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tell what a weight may be beside the one before it."""
    most = np.minimum(top, LARGEST_PAIR - np.maximum(before, 0))
    least = np.maximum(-top, -LARGEST_PAIR - np.minimum(before, 0))
    return least.astype(np.float32), most.astype(np.float32)
