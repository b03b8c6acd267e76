"""What issue 5 asks of these figures, and whether they keep it. The goals are the issue's; nothing else decides here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from baselines.roster import EXTRACT, OURS

from measures import names, size, start
from measures.result import REFUSED, Result

_OURS = OURS["int8"]


class Kept(Enum):
    """How a figure stands to its goal."""

    YES = "kept"
    BY_VALUE = "kept by its value, not by its whole interval"
    NO_BY_VALUE = "missed by its value, not by its whole interval"
    NO = "missed"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit on one figure.

    Attributes:
        measure: which row.
        subject: whose figure.
        columns: which columns must keep it, by their beginning; all if empty.
        maximum: the most that is allowed, if there is such a limit.
        minimum: the least.
        or_refused: whether a contender that refuses such input keeps it too.
    """

    measure: str
    subject: str
    columns: tuple[str, ...] = ()
    maximum: float | None = None
    minimum: float | None = None
    or_refused: bool = False

    @property
    def limit(self) -> str:
        """Write it for people."""
        return f"≤ {self.maximum:g}" if self.maximum is not None else f"≥ {self.minimum:g}"

    def figures(self, results: Sequence[Result]) -> list[Result]:
        """Find the figures that it is about."""
        return [
            result
            for result in results
            if (result.measure, result.subject) == (self.measure, self.subject)
            and (not self.columns or result.column.startswith(self.columns))
        ]

    def kept(self, result: Result) -> Kept:
        """Compare one figure with it: its value, and the end of its interval on the far side."""
        if result.value is None:
            if result.note == REFUSED:
                return Kept.YES if self.or_refused else Kept.NO
            return Kept.UNKNOWN
        if not self._allows(result.value):
            near = result.low if self.maximum is not None else result.high
            return Kept.NO_BY_VALUE if near is not None and self._allows(near) else Kept.NO
        far = result.high if self.maximum is not None else result.low
        return Kept.YES if far is None or self._allows(far) else Kept.BY_VALUE

    def _allows(self, value: float) -> bool:
        within = self.maximum is None or value <= self.maximum
        return within and (self.minimum is None or value >= self.minimum)


GOALS = (
    Goal(names.DUEL, _OURS, ("10 tokens", "16 tokens"), maximum=0.75),
    Goal(names.TEXT, EXTRACT["int8"], maximum=0.09),
    Goal(names.MEAN_DIFFERENCE, _OURS, ("/ U's",), maximum=0.35),
    Goal(names.CHANGED, _OURS, ("share",), maximum=0.005),
    Goal(names.CHANGED, _OURS, ("with a margin",), maximum=0),
    Goal(names.COMPANY_LABELS, _OURS, maximum=0),
    Goal(names.COMPANY_LOGITS, _OURS, maximum=1e-4),
    Goal(names.LEFT, _OURS, ("with a margin",), maximum=0, or_refused=True),
    Goal(names.F1, _OURS, ("bound",), minimum=-0.002),
    Goal(size.FILES, _OURS, ("ratio",), maximum=0.25),
    Goal(names.THROUGHPUT, "batch_extract() INT8", minimum=1.8),
    Goal(names.BARE, EXTRACT["int8"], maximum=1.06),
    Goal(start.DURATION, _OURS, maximum=0.035),
    Goal(start.MEMORY, _OURS, maximum=0.18),
    Goal(size.INSTALL, "our runtime", ("ratio",), maximum=0.16),
)


def against_goals(results: Sequence[Result]) -> list[tuple[Goal, Result, Kept]]:
    """Give every figure that a goal is about; rows that were not measured have none."""
    return [(goal, result, goal.kept(result)) for goal in GOALS for result in goal.figures(results)]
