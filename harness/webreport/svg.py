"""A few marks and a scale to draw plots with, as SVG that sits in a page and takes its colours from it.

Every text goes through `visible` and is escaped here, so that no plot needs to think of it. Colours are classes of the
page's style sheet: a plot is light or dark as the page is, and prints as the page does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from harness.visible import visible

WIDTH = 480
_LONGEST_TEXT = 80


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` on pixels from `start` to `end`; what lies outside is drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no width, or no logarithm."""
        if not self.low < self.high or (self.logarithmic and self.low <= 0):
            message = f"a scale from {self.low} to {self.high} cannot be drawn"
            raise ValueError(message)

    def at(self, value: float) -> float:
        """Place a value, in pixels."""
        share = (self._position(value) - self._position(self.low)) / (
            self._position(self.high) - self._position(self.low)
        )
        return round(self.start + share * (self.end - self.start), 1)

    def _position(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return math.log10(inside) if self.logarithmic else inside

    def ticks(self) -> list[float]:
        """Choose 2 to 7 round values."""
        return _powers(self.low, self.high) if self.logarithmic else _round_steps(self.low, self.high)


def _powers(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / 6))
    powers = [10.0**power for power in range(first, last + 1, step)]
    if len(powers) >= 2:
        return powers
    # within one decade: 1, 2, 5
    decade = 10.0 ** math.floor(math.log10(low))
    found = [factor * decade for factor in (1, 2, 3, 5, 7, 10, 20, 30, 50) if low <= factor * decade <= high]
    return found if len(found) >= 2 else [low, high]


def _round_steps(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + index) * step, 12) for index in range(count)]


def scale_over(
    values: Iterable[float], start: float, end: float, *, logarithmic: bool = False, padding: float = 0.05
) -> Scale:
    """Make a scale that shows all of these values, with some air at both ends."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)]
    if not found:
        return Scale(0.1, 1.0, start, end, logarithmic)
    low, high = min(found), max(found)
    if logarithmic:
        air = max((high / low) ** padding, 1.3)
        return Scale(low / air, high * air, start, end, logarithmic=True)
    air = (high - low) * padding or abs(high) * 0.1 or 1.0
    return Scale(low - air, high + air, start, end)


def text(x: float, y: float, content: str, *, kind: str = "", anchor: str = "start") -> Markup:
    """Write a text with its base line at y."""
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, kind, visible(content, _LONGEST_TEXT)
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Draw a line."""
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, kind)


def path(points: Sequence[tuple[float, float]], kind: str, *, closed: bool = False) -> Markup:
    """Draw a line through points, or the area within."""
    steps = " ".join(f"{'L' if index else 'M'}{x:g} {y:g}" for index, (x, y) in enumerate(points))
    return Markup('<path d="{}" class="{}"/>').format(f"{steps}{'Z' if closed else ''}", kind)


def rectangle(x: float, y: float, width: float, height: float, kind: str, says: str) -> Markup:
    """Draw a rectangle that says something to whoever points at it."""
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"><title>{}</title></rect>').format(
        round(x, 1), round(y, 1), round(width, 1), round(height, 1), kind, visible(says, _LONGEST_TEXT * 2)
    )


def mark(x: float, y: float, scope: str, says: str, *, size: float = 5.0) -> Markup:
    """Draw a value: a disc for FP32, a diamond for INT8, a ring for PyTorch, a square for anything else."""
    return Markup('<path d="{}" class="mark {}"><title>{}</title></path>').format(
        _outline(x, y, scope, size), colour(scope), visible(says, _LONGEST_TEXT * 2)
    )


def _outline(x: float, y: float, scope: str, size: float) -> str:
    if scope in {"fp32", "reference"}:
        half = f"a{size:g} {size:g} 0 1 0"
        return f"M{x - size:g} {y:g}{half} {2 * size:g} 0{half} {-2 * size:g} 0Z"
    if scope == "int8":
        far = size * 1.25
        return f"M{x:g} {y - far:g}L{x + far:g} {y:g}L{x:g} {y + far:g}L{x - far:g} {y:g}Z"
    return f"M{x - size:g} {y - size:g}h{2 * size:g}v{2 * size:g}h{-2 * size:g}Z"


def colour(scope: str) -> str:
    """Name the class that colours a variant."""
    return scope if scope in {"fp32", "int8", "reference"} else "other"


def axis(scale: Scale, y: float, label: str, *, top: float | None = None) -> Markup:
    """Draw a horizontal axis below a plot, with its ticks, a grid up to `top`, and what it counts."""
    parts = [line(scale.start, y, scale.end, y, "axis")]
    for value in scale.ticks():
        x = scale.at(value)
        if top is not None:
            parts.append(line(x, top, x, y, "grid"))
        parts.append(text(x, y + 14, short(value), kind="tick", anchor="middle"))
    parts.append(text((scale.start + scale.end) / 2, y + 30, label, kind="tick", anchor="middle"))
    return Markup().join(parts)


def upright_axis(scale: Scale, x: float, label: str, *, right: float) -> Markup:
    """Draw a vertical axis, with a grid to the right and what it counts on top."""
    parts = [text(2, min(scale.start, scale.end) - 8, label, kind="tick")]
    for value in scale.ticks():
        y = scale.at(value)
        parts += [line(x, y, right, y, "grid"), text(x - 6, y + 4, short(value), kind="tick", anchor="end")]
    return Markup().join(parts)


def short(value: float) -> str:
    """Write a tick: 0.001, 3,000, 1e-05, 2.95e-07."""
    if value == 0:
        return "0"
    if 1e-4 < abs(value) < 1e6:
        return f"{value:,.10g}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.3g}"


def drawing(height: float, says: str, parts: Iterable[Markup]) -> Markup:
    """Put a plot together; `says` is what a screen reader reads instead of it."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, round(height), visible(says, 600), Markup().join(parts)
    )
