"""One figure of the benchmark, and the tables and the file made of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from harness.paired.estimate import Ratio

# The note of a figure that there is none of because the contender does not take such input.
REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Result:
    """A figure.

    Attributes:
        measure: the row of the issue that it belongs to; one table each.
        subject: the contender.
        column: what else it depends on, such as `16 tokens, hot`.
        value: the figure, or None where it could not be had; `note` says why.
        low: lower end of its interval, if it has one.
        high: upper end.
        note: what a reader must know.
        details: what it was computed from.
    """

    measure: str
    subject: str
    column: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Write it; what is not finite has no number in JSON and is refused."""
        for number in (self.value, self.low, self.high):
            if number is not None and not math.isfinite(number):
                message = f"{self.measure}, {self.subject}, {self.column}: {number} is no figure"
                raise ValueError(message)
        return asdict(self)

    def shown(self) -> str:
        """Write it for people: the value, and its interval if it has one."""
        if self.value is None:
            return self.note or "-"
        ends = "" if self.low is None and self.high is None else f" [{_number(self.low)}, {_number(self.high)}]"
        return f"{_number(self.value)}{ends}"


def of_ratio(measure: str, subject: str, column: str, ratio: Ratio, **details: Any) -> Result:
    """Make a figure of a ratio with its interval."""
    return Result(measure, subject, column, ratio.value, ratio.low, ratio.high, details=details)


def _number(value: float | None) -> str:
    """Write three significant digits; counts as they are."""
    if value is None:
        return "…"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:.3g}"


def tables(results: Sequence[Result]) -> Iterator[Table]:
    """Make one table per measure: a contender a row, a column each for what it depends on."""
    for measure in dict.fromkeys(result.measure for result in results):
        rows = [result for result in results if result.measure == measure]
        columns = list(dict.fromkeys(result.column for result in rows))
        table = Table(title=measure, title_justify="left")
        table.add_column("")
        for column in columns:
            table.add_column(column, justify="right")
        for subject in dict.fromkeys(result.subject for result in rows):
            found = {result.column: result for result in rows if result.subject == subject}
            table.add_row(subject, *(found[column].shown() if column in found else "" for column in columns))
        yield table
