"""What calibration queries do inside a graph: how large each channel of each product's input becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from harness.errors import ArtifactError
from harness.onnx_run import Feed, inner_values
from harness.recipes.recipe import Calibration

# Token rows of each tensor that are kept, for calibrations that need more than the extremes.
_SAMPLED_ROWS = 512
_PERCENTILE = 99.99
_BINS = 2048
_LEVELS = 255
_CUTS = np.linspace(0.3, 1.0, 29)


@dataclass(frozen=True, slots=True)
class Range:
    """From where to where the values of a tensor are kept apart; 0 lies within."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What was seen of one tensor.

    Attributes:
        low: the least value of each channel: float32, (channels,).
        high: the largest: float32, (channels,).
        sample: some tokens' values: float32, (tokens, channels).
        moments: XᵀX of the values of all tokens, over their number: float32, (channels, channels).
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    sample: NDArray[np.float32]
    moments: NDArray[np.float32]

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest absolute value of each channel: float32, (channels,)."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def range(self, calibration: Calibration, divisors: NDArray[np.float32] | None = None) -> Range:
        """Choose the range that 8 bits are spent on.

        Args:
            calibration: how.
            divisors: by what each channel is divided first.
        """
        divisors = np.ones_like(self.low) if divisors is None else divisors
        seen = Range(min(float((self.low / divisors).min()), 0.0), max(float((self.high / divisors).max()), 0.0))
        if calibration is Calibration.MIN_MAX:
            return seen
        return _CHOICES[calibration]((self.sample / divisors).ravel(), seen)


def observe(model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, Observation]:
    """Run an FP32 graph on real queries, one at a time, so that no padding is counted.

    Args:
        model: the graph.
        names: tensors of shape (1, tokens, channels).
        feeds: model input, one query each.

    Raises:
        ArtifactError: a tensor has values that are no finite numbers, so no range.
    """
    watched: dict[str, _Watched] = {}
    for values in inner_values(model, names, feeds):
        for name, value in values.items():
            rows = value.reshape(-1, value.shape[-1])
            watched.setdefault(name, _Watched(rows.shape[-1])).add(rows)
    observed = {name: found.observation() for name, found in watched.items()}
    for name, found in observed.items():
        if not (np.isfinite(found.low).all() and np.isfinite(found.high).all()):
            message = f"{name} has infinite values or none on calibration queries. Leave the model in FP32, or train it again."
            raise ArtifactError(message)
    return observed


class _Watched:
    """One tensor, query after query."""

    def __init__(self, channels: int) -> None:
        self._low = np.full(channels, np.inf, np.float32)
        self._high = np.full(channels, -np.inf, np.float32)
        self._moments = np.zeros((channels, channels), np.float32)
        self._waiting: list[NDArray[np.float32]] = []
        self._sample: NDArray[np.float32] | None = None
        self._tokens = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        self._low = np.minimum(self._low, rows.min(axis=0))
        self._high = np.maximum(self._high, rows.max(axis=0))
        self._waiting.append(rows)
        # one large product costs a fraction of many small ones
        if sum(map(len, self._waiting)) >= _SAMPLED_ROWS:
            self._take_in()

    def _take_in(self) -> None:
        rows = np.concatenate(self._waiting)
        self._waiting = []
        self._tokens += len(rows)
        self._moments += rows.T @ rows
        if self._sample is None:  # nothing is taken in before there are enough, or all
            self._sample = rows[:_SAMPLED_ROWS]

    def observation(self) -> Observation:
        if self._waiting:
            self._take_in()
        sample = np.zeros((0, len(self._low)), np.float32) if self._sample is None else self._sample
        moments = np.asarray(self._moments / max(self._tokens, 1), np.float32)
        return Observation(self._low, self._high, sample, moments)


def _percentile(values: NDArray[np.float32], seen: Range) -> Range:
    low, high = np.percentile(values, [100 - _PERCENTILE, _PERCENTILE])
    return Range(min(float(low), 0.0), max(float(high), 0.0)) if high > low else seen


def _least_error(values: NDArray[np.float32], seen: Range) -> Range:
    """Try to cut off more and more, and take what rounding and cutting cost least together, in squares."""
    tried = [Range(seen.low * cut, seen.high * cut) for cut in _CUTS]
    return min(tried, key=lambda chosen: float(np.square(values - _rounded(values, chosen)).mean()))


def _rounded(values: NDArray[np.float32], chosen: Range) -> NDArray[np.float32]:
    scale = max((chosen.high - chosen.low) / _LEVELS, np.finfo(np.float32).tiny)
    return np.asarray(
        np.clip(np.rint(values / scale), np.rint(chosen.low / scale), np.rint(chosen.high / scale)) * scale
    )


def _least_divergence(values: NDArray[np.float32], seen: Range) -> Range:
    """Cut where the distribution in 255 levels is nearest to that in 2,048 (Migacz, 8-bit Inference with TensorRT, 2017)."""
    counts, edges = np.histogram(values, bins=_BINS, range=(seen.low, max(seen.high, seen.low + 1e-6)))
    middle = int(np.searchsorted(edges, 0.0))
    best, chosen = np.inf, seen
    for cut in _CUTS:
        first = int(middle - cut * middle)
        last = int(middle + cut * (_BINS - middle))
        divergence = _divergence(counts, first, last)
        if divergence < best:
            best, chosen = divergence, Range(min(float(edges[first]), 0.0), max(float(edges[last]), 0.0))
    return chosen


def _divergence(counts: NDArray[np.intp], first: int, last: int) -> float:
    kept = counts[first:last].astype(np.float64)
    if len(kept) < _LEVELS:
        return np.inf
    clipped = kept.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    level = np.arange(len(kept)) * _LEVELS // len(kept)
    used = np.bincount(level, kept > 0, _LEVELS)
    spread = (np.bincount(level, kept, _LEVELS) / np.maximum(used, 1))[level] * (kept > 0)
    one, other = clipped / clipped.sum(), spread / max(spread.sum(), 1.0)
    shared = (one > 0) & (other > 0)
    lost = float(one[(one > 0) & (other <= 0)].sum())
    return float((one[shared] * np.log(one[shared] / other[shared])).sum()) + lost


_CHOICES = {
    Calibration.PERCENTILE: _percentile,
    Calibration.ERROR: _least_error,
    Calibration.ENTROPY: _least_divergence,
}
