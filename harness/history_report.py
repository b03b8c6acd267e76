"""Turn the history into what a person reads: the list of runs, one measure over time, a figure. Decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.changes import LONGEST_SERIES, SHORTEST_SERIES, SIGNIFICANCE
from harness.comparison_report import number, run_to_json
from harness.documents import Json
from harness.errors import HistoryError, UsageError
from harness.evidence import MeasureKey
from harness.history import Entry
from harness.series import Series, SeriesChange
from harness.verdict import Decision

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNS_SCHEMA = "harness-runs"
SERIES_SCHEMA = "harness-series"
# 1 (2026-11): first, of both.
HISTORY_DOCUMENT_VERSION = 1

FIGURE_KINDS = (".svg", ".png", ".pdf")
METHOD = f"E-Divisive with means (Matteson & James 2014), permutation test, p ≤ {SIGNIFICANCE:g}"
_STYLES = {Decision.ACCEPTED: "green", Decision.REJECTED: "red", Decision.INCOMPLETE: "yellow"}
_PLAIN_WIDTH = 150
_PLOT_WIDTH = 100
_SHOWN_POINTS = 12
# What people ask of a run first; of the variant that is served, which is INT8 where there is one.
_HEADLINES = (
    ("F1", "quality", "f1_micro"),
    ("label agreement", "parity", "label_agreement"),
    ("time of PyTorch's", "latency", "single_query_ratio_to_reference"),
)
_SCOPES = ("int8", "fp32")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def print_runs(entries: Sequence[Entry], last: int) -> None:
    """Print the latest runs, a line each."""
    console = _console()
    shown = entries[-last:]
    table = Table()
    for title in ("run", "command", "decision", "line", "machine", "revision"):
        table.add_column(title, no_wrap=title == "run", overflow="fold")
    for title, _, _ in _HEADLINES:
        table.add_column(title, justify="right")
    for entry in shown:
        style = _STYLES[entry.decision]
        cells = (
            entry.run,
            entry.kind.value,
            f"[{style}]{entry.decision.value}[/]",
            escape(entry.line),
            entry.machine.id,
        )
        table.add_row(*cells, str(entry.revision or ""), *_headlines(entry))
    console.print(table)
    for machine in sorted({entry.machine for entry in shown}, key=lambda one: one.id):
        console.print(f"machine {escape(str(machine))}", highlight=False, soft_wrap=True)
    console.print(f"{len(shown)} of {len(entries)} runs", highlight=False)


def _headlines(entry: Entry) -> list[str]:
    cells = []
    for _, suite, name in _HEADLINES:
        found = (entry.measure(MeasureKey(suite, scope, name)) for scope in _SCOPES)
        cells.append(next((number(one.value) for one in found if one is not None), ""))
    return cells


def print_series(series: Sequence[Series]) -> None:
    """Print a measure: for each line and machine a plot, the latest values, and the changes."""
    console = _console()
    for one in series:
        console.print(
            f"{one.key} [{one.unit.value}]  line {one.line}, machine {one.machine}",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
        for line in plot_lines(one, unicode=_writes_blocks()):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        console.print(_points_table(one))
        for text in change_lines(one):
            console.print(text, highlight=False, soft_wrap=True, markup=False)


def _writes_blocks() -> bool:
    try:
        "▁█▲".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def plot_lines(series: Series, *, unicode: bool = True) -> list[str]:
    """Draw a series in one line of blocks, from its lowest value to its highest, with a mark below each change.

    A long series is drawn by the median of each column's values.
    """
    values = series.values
    columns = min(len(values), _PLOT_WIDTH)
    starts = [column * len(values) // columns for column in range(columns)]
    heights = [median(values[a:b]) for a, b in zip(starts, [*starts[1:], len(values)], strict=True)]
    low, high = min(heights), max(heights)
    levels = "▁▂▃▄▅▆▇█" if unicode else "_.-=+*#@"
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    drawn = "".join(levels[round((height - low) * scale)] for height in heights)
    lines = [f"  {drawn}  {number(low)} to {number(high)}"]
    marked = {max(place for place, start in enumerate(starts) if start <= one.point.index) for one in series.changes}
    if marked:
        mark = "▲" if unicode else "^"
        lines.append("  " + "".join(mark if place in marked else " " for place in range(columns)).rstrip())
    return lines


def _points_table(series: Series) -> Table:
    table = Table()
    for title in ("run", "decision", "revision"):
        table.add_column(title, no_wrap=True)
    table.add_column(series.unit.value, justify="right")
    table.add_column("")
    first = max(len(series.points) - _SHOWN_POINTS, 0)
    starts = {one.point.index for one in series.changes}
    for index, point in enumerate(series.points[first:], first):
        entry = point.entry
        mark = "← changed" if index in starts else ""
        table.add_row(entry.run, entry.decision.value, str(entry.revision or ""), number(point.value), mark)
    return table


def change_lines(series: Series) -> list[str]:
    """Say where a series changed, by how much, how sure that is, and what else differs there."""
    count = len(series.points)
    if count < SHORTEST_SERIES:
        return [f"{_counted(count, 'run')}: changes are looked for from {SHORTEST_SERIES} runs on", ""]
    lines = [f"{_counted(count, 'run')}, {_counted(len(series.changes), 'change')}; {METHOD}"]
    if count > LONGEST_SERIES:
        lines[0] += f", looked for in the latest {LONGEST_SERIES}"
    for change in series.changes:
        lines.append(f"  from {series.points[change.point.index].entry.run} on: {_size(change)}")
        lines += [f"    there differs: {difference}" for difference in change.differences]
    return [*lines, ""]


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _size(change: SeriesChange) -> str:
    point = change.point
    by = f", {(change.ratio - 1) * 100:+.1f} %" if change.ratio is not None else ""
    return f"{number(point.before)} → {number(point.after)}{by}, p = {point.p_value:.3f}"


def runs_to_json(entries: Sequence[Entry]) -> Json:
    """Write down runs with all their measures."""
    runs = [
        {**run_to_json(entry), "measures": {str(key): one.value for key, one in entry.measures().items()}}
        for entry in entries
    ]
    return {"schema": RUNS_SCHEMA, "version": HISTORY_DOCUMENT_VERSION, "runs": runs}


def series_to_json(series: Sequence[Series]) -> Json:
    """Write down series with their changes."""
    return {
        "schema": SERIES_SCHEMA,
        "version": HISTORY_DOCUMENT_VERSION,
        "method": METHOD,
        "series": [_series_to_json(one) for one in series],
    }


def _series_to_json(series: Series) -> Json:
    return {
        "measure": str(series.key),
        "unit": series.unit.value,
        "line": series.line,
        "machine": series.machine.id,
        "runs": [{**run_to_json(point.entry), "value": point.value} for point in series.points],
        "changes": [
            {
                "run": series.points[change.point.index].entry.run,
                "before": change.point.before,
                "after": change.point.after,
                "p_value": change.point.p_value,
                "differences": list(change.differences),
            }
            for change in series.changes
        ],
    }


def check_figure(path: Path) -> None:
    """Refuse a figure that cannot be drawn, before any work.

    Raises:
        UsageError: its name ends as no kind of figure does.
    """
    if path.suffix.lower() not in FIGURE_KINDS:
        message = (
            f"{path}: a figure's name ends in {', '.join(FIGURE_KINDS)}. Name it --figure {path.stem or 'history'}.svg."
        )
        raise UsageError(message)


# Okabe and Ito's palette, which people with any colour vision tell apart (https://jfly.uni-koeln.de/color/).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MARKERS = "osD^vP"


def draw_series(series: Sequence[Series], path: Path) -> None:
    """Draw a measure over the runs: a colour and a marker for each line and machine, medians between changes.

    Raises:
        HistoryError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 4.5), layout="constrained")
    try:
        for number_, one in enumerate(series):
            _draw(axes, one, _COLOURS[number_ % len(_COLOURS)], _MARKERS[number_ % len(_MARKERS)])
        axes.set_title(f"{series[0].key}\nvertical lines are changes: {METHOD}", loc="left", fontsize=9)
        axes.set_ylabel(series[0].unit.value)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
        figure.autofmt_xdate()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as err:
        message = f"{path} cannot be written ({err.strerror or err}). Name another file (--figure FILE)."
        raise HistoryError(message) from err
    finally:
        pyplot.close(figure)


def _draw(axes: Axes, series: Series, colour: str, marker: str) -> None:
    times = [point.entry.time for point in series.points]
    label = f"{series.line} on {series.machine.id}: {series.machine.processor}, {series.machine.usable_cpus} CPUs"
    axes.plot(times, series.values, marker, color=colour, markersize=3, alpha=0.6, label=label)  # type: ignore[arg-type]  # dates are drawn, the stubs only know numbers
    starts = [0, *(change.point.index for change in series.changes), len(times)]
    for begin, end in pairwise(starts):
        level = median(series.values[begin:end])
        axes.plot([times[begin], times[end - 1]], [level, level], color=colour, linewidth=1.5)  # type: ignore[arg-type]
    for change in series.changes:
        axes.axvline(times[change.point.index], color=colour, linestyle=":", linewidth=1)  # type: ignore[arg-type]
        text = f" {(change.ratio - 1) * 100:+.1f} %" if change.ratio is not None else f" {number(change.point.after)}"
        place = (times[change.point.index], 0.99)
        axes.annotate(text, place, xycoords=("data", "axes fraction"), fontsize=7, color=colour, va="top")
