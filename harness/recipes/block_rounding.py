"""Numbers in few bits: blocks of neighbouring channels that share a scale and a zero point.

A row of weights is cut into blocks; in a block, `value = (code - zero point) * scale`, which is how onnxruntime's
MatMulNBits and GatherBlockQuantized read what they store. This module chooses codes, scales and zero points; it knows
no graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

# Of a block's range, these shares are tried: giving up its outermost values can round all others finer, and a little
# more than the range can place the codes better. On a table of word embeddings in 4 bits: 3 % less error than 1 alone.
_SHARES = (1.0, 1.08, 1.04, 0.96, 0.92, 0.88, 0.84, 0.8)
_SMALLEST_SCALE = 1e-8
# Frantar et al. 2022 (arXiv:2210.17323), section 3.3: 1 % of the mean is added to the diagonal.
_DAMPING = 0.01
# Channels whose corrections reach the others in one product (section 3.3, "lazy batch-updates").
_CHANNELS_AT_ONCE = 64
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Rounded:
    """Rows in codes: `codes` is (rows, blocks * block size), `scales` and `zero_points` are (rows, blocks)."""

    codes: Codes
    scales: Floats
    zero_points: Codes
    bits: int
    channels: int

    @property
    def block_size(self) -> int:
        """Channels that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def values(self) -> Floats:
        """What the codes stand for: float32, (rows, channels)."""
        steps = self.codes.astype(np.float32) - np.repeat(self.zero_points, self.block_size, axis=1)
        return np.asarray((steps * np.repeat(self.scales, self.block_size, axis=1))[:, : self.channels], np.float32)


def pack(codes: Codes, bits: int) -> Codes:
    """Lay codes side by side in bytes along the last axis, the first in the lowest bits; missing ones are zero."""
    in_byte = 8 // bits
    missing = -codes.shape[-1] % in_byte
    filled = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    packed = np.zeros((*filled.shape[:-1], filled.shape[-1] // in_byte), np.uint8)
    for place in range(in_byte):
        packed |= filled[..., place::in_byte] << np.uint8(bits * place)
    return packed


def round_nearest(rows: Floats, bits: int, block_size: int, importance: Floats | None = None) -> Rounded:
    """Round each value to the nearest that its block can say, with the scale that loses least.

    Args:
        rows: (rows, channels).
        bits: of a code.
        block_size: channels that share a scale.
        importance: (channels,): how much a channel's squared error weighs; all alike by default.
    """
    channels = rows.shape[1]
    weights = np.ones(channels, np.float32) if importance is None else importance
    weights = _blocks(weights[None].astype(np.float32), block_size)[0]
    parts = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        values = _blocks(rows[start : start + _ROWS_AT_ONCE], block_size)
        scales, zeros = _fit(values, weights, bits)
        parts.append((_codes(values, scales, zeros, bits), scales, zeros))
    codes, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Rounded(
        codes.astype(np.uint8).reshape(len(rows), -1), scales[..., 0], zeros[..., 0].astype(np.uint8), bits, channels
    )


def _blocks(rows: Floats, block_size: int) -> Floats:
    """Cut rows into blocks, the last one filled up with zeros: (rows, blocks, block size)."""
    filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block_size)))
    return np.asarray(filled.reshape(len(rows), -1, block_size), np.float32)


def _codes(values: Floats, scales: Floats, zeros: Floats, bits: int) -> Floats:
    return np.asarray(np.clip(np.rint(values / scales) + zeros, 0, 2**bits - 1), np.float32)


def _fit(values: Floats, weights: Floats, bits: int) -> tuple[Floats, Floats]:
    """Choose scale and zero point of each block by squared error: both (rows, blocks, 1).

    A zero point is a code, so zero itself is always kept exactly.
    """
    lowest = np.minimum(values.min(axis=-1, keepdims=True), 0)
    highest = np.maximum(values.max(axis=-1, keepdims=True), 0)
    best = np.full_like(lowest, np.inf)
    scales, zeros = np.ones_like(lowest), np.zeros_like(lowest)
    for share in _SHARES:
        tried = np.maximum((highest - lowest) * np.float32(share / (2**bits - 1)), np.float32(_SMALLEST_SCALE))
        zero = np.clip(np.rint(-lowest * np.float32(share) / tried), 0, 2**bits - 1)
        steps = _codes(values, tried, zero, bits) - zero
        for scale in (tried, _least_squares(values, steps, weights, tried)):
            loss = (weights * np.square(values - steps * scale)).sum(axis=-1, keepdims=True)
            better = loss < best
            best = np.where(better, loss, best)
            scales, zeros = np.where(better, scale, scales), np.where(better, zero, zeros)
    return scales, zeros


def _least_squares(values: Floats, steps: Floats, weights: Floats, otherwise: Floats) -> Floats:
    """Find the scale that loses least with these steps; `otherwise` where they are all zero."""
    above = (weights * values * steps).sum(axis=-1, keepdims=True)
    below = (weights * np.square(steps)).sum(axis=-1, keepdims=True)
    return np.asarray(np.where(above > 0, above / np.maximum(below, _SMALLEST_SCALE), otherwise), np.float32)


def round_compensated(rows: Floats, moments: Floats, bits: int, block_size: int) -> Rounded:
    """Round channel after channel, each time changing the channels still to come so that the product changes least.

    Frantar et al. 2022 (GPTQ, arXiv:2210.17323), algorithm 1, largest inputs first. Scales come from the weights as
    they were, so the order of rounding needs no place in the file.

    Args:
        rows: (rows, channels): the weights of an output are a row.
        moments: (channels, channels): X^T X of the inputs X.
        bits: of a code.
        block_size: channels that share a scale.
    """
    strength = np.diag(moments).astype(np.float32)
    start = round_nearest(rows, bits, block_size, np.maximum(strength, strength.mean() * _DAMPING))
    scales = np.repeat(start.scales.T, block_size, axis=0)[: rows.shape[1]]
    zeros = np.repeat(start.zero_points.T, block_size, axis=0)[: rows.shape[1]].astype(np.float32)
    codes = start.codes.copy()
    codes[:, : rows.shape[1]] = rounded_in_turn(rows.T, moments, scales, zeros, bits).T.astype(np.uint8)
    return Rounded(codes, start.scales, start.zero_points, bits, rows.shape[1])


def rounded_in_turn(weights: Floats, moments: Floats, scales: Floats, zeros: Floats, bits: int) -> Floats:
    """Round the channels of weights, largest inputs first: codes from 0, (channels, rows).

    Args:
        weights: (channels, rows).
        moments: (channels, channels): X^T X of the inputs X.
        scales: of each weight, (channels, rows).
        zeros: zero point of each weight, (channels, rows).
        bits: of a code.
    """
    order = np.argsort(-np.diag(moments), kind="stable")
    factor = _inverse_factor(moments[np.ix_(order, order)])
    codes = np.empty(weights.shape, np.float32)
    ordered = np.ascontiguousarray(weights[order], np.float32)
    codes[order] = _rounded_in_turn(ordered, factor, scales[order], zeros[order], bits)
    return codes


def _inverse_factor(moments: Floats) -> Floats:
    """Factor the inverse of the damped moments as U^T U, U upper triangular."""
    damped = moments.astype(np.float64)
    mean = float(np.diag(damped).mean()) or 1.0
    damped[np.diag_indices_from(damped)] += mean * _DAMPING
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T, np.float32)


def _rounded_in_turn(weights: Floats, factor: Floats, scales: Floats, zeros: Floats, bits: int) -> Floats:
    """Round one channel after the other; all but `factor` are (channels, rows), and `weights` is changed."""
    codes = np.empty_like(weights)
    channels = len(weights)
    for first in range(0, channels, _CHANNELS_AT_ONCE):
        last = min(first + _CHANNELS_AT_ONCE, channels)
        errors = np.empty_like(weights[first:last])
        for channel in range(first, last):
            scale, zero = scales[channel], zeros[channel]
            codes[channel] = _codes(weights[channel], scale, zero, bits)
            lost = (weights[channel] - (codes[channel] - zero) * scale) / factor[channel, channel]
            weights[channel:last] -= np.outer(factor[channel, channel:last], lost)
            errors[channel - first] = lost
        weights[last:] -= factor[first:last, last:].T @ errors
    return codes
