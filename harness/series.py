"""One measure over time: the runs of each release line on each machine, and where they changed.

A series is never of two machines or of two lines: a step from one to the other would be no change of the release.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from harness.changes import ChangePoint, change_points
from harness.comparison import differences_between
from harness.errors import HistoryError, one_line
from harness.evidence import MeasureKey, Unit
from harness.history import Entry, Machine

# A measure that nobody recorded lately is not looked for in the whole of a long history.
_SEARCHED_RUNS = 200


@dataclass(frozen=True, slots=True)
class Point:
    """What one run measured."""

    entry: Entry
    value: float


@dataclass(frozen=True, slots=True)
class SeriesChange:
    """A change of a series, and what differs between the run that it begins with and the run before."""

    point: ChangePoint
    differences: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """How many times as high it is afterwards; None where a value is not above 0."""
        return self.point.after / self.point.before if min(self.point.after, self.point.before) > 0 else None


@dataclass(frozen=True, slots=True)
class Series:
    """A measure of the runs of one release line on one machine, oldest first."""

    key: MeasureKey
    unit: Unit
    line: str
    machine: Machine
    points: tuple[Point, ...]
    changes: tuple[SeriesChange, ...]

    @property
    def values(self) -> list[float]:
        """The measured values."""
        return [point.value for point in self.points]


def series_of(entries: Sequence[Entry], key: MeasureKey, last: int | None = None) -> list[Series]:
    """Read a measure out of the history.

    Args:
        entries: the runs, in order of time.
        key: the measure.
        last: of each line and machine only so many runs, the latest.

    Returns:
        A series for each line and machine that has the measure, the one with the latest run first.
    """
    groups: dict[tuple[str, Machine], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.line, entry.machine), []).append(entry)
    found = [one for group in groups.values() if (one := _series(group, key, last)) is not None]
    return sorted(found, key=lambda one: one.points[-1].entry.time, reverse=True)


def _series(entries: Sequence[Entry], key: MeasureKey, last: int | None) -> Series | None:
    measured = [(entry, measure) for entry in reversed(entries) if (measure := entry.measure(key)) is not None]
    measured = list(reversed(measured[:last]))
    if not measured:
        return None
    points = tuple(Point(entry, measure.value) for entry, measure in measured)
    entry, measure = measured[-1]
    changes = tuple(
        SeriesChange(point, tuple(differences_between(points[point.index].entry, points[point.index - 1].entry)))
        for point in change_points([point.value for point in points])
    )
    return Series(key, measure.unit, entry.line, entry.machine, points, changes)


def find_measure(entries: Sequence[Entry], text: str) -> MeasureKey:
    """Find the measure that a person means: its name, or any part of it that only one measure has.

    Raises:
        HistoryError: there is none, or there are several.
    """
    whole = f'"{text}":['.encode()
    for entry in reversed(entries):
        # a first look, which costs nothing, before the measures of a run are read
        if entry.body.find(whole, b"]") is not None and (
            exact := [key for key in entry.measures() if str(key) == text]
        ):
            return exact[0]
    known = sorted(set(chain.from_iterable(entry.measures() for entry in entries[-_SEARCHED_RUNS:])))
    for fits in (str.endswith, str.__contains__):
        found = [key for key in known if fits(str(key), text)]
        if len(found) == 1:
            return found[0]
        if found:
            message = f"{one_line(text, 60)!r} may be {_listed(found)}. Write the whole name."
            raise HistoryError(message)
    message = f"no run of the history measured {one_line(text, 60)!r}. Measures are, for example, {_listed(known)}."
    raise HistoryError(message)


def _listed(keys: Iterable[MeasureKey], most: int = 6) -> str:
    names = [str(key) for key in keys]
    more = f" or {len(names) - most} others" if len(names) > most else ""
    return ", ".join(names[:most]) + more
