"""Write everything that tells people and CI systems about a run: `report.html`, `summary.md`, `junit.xml`.

A verdict stands without them. What hinders one is returned as a note, and the others are written all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness.account import read_account
from harness.errors import HarnessError, one_line
from harness.evidence import RELEASE_SCOPE, MeasureKey
from harness.history import Entry, read_history
from harness.junit import JUNIT_FILE, write_junit
from harness.series import Series, series_of
from harness.summary import SUMMARY_FILE, write_summary
from harness.webreport import REPORT_FILE, HistoryLine, HistoryPoint, write_webreport

# What people ask of a release again and again, the most important first: does it still find the entities, is it still as
# fast, does it still answer as PyTorch does, is it still as quick to start. Each is the same for the same files, or a
# ratio of two things that one run measured in turns: absolute times follow the machine's load, and not the release.
_TRENDS = (
    ("quality", "f1_micro"),
    ("latency", "single_query_ratio_to_reference"),
    ("parity", "mean_logit_difference"),
    ("latency", "cold_start_ratio"),
)
_MOST_TRENDS = 8
# As many as a plot can show apart; to look for changes among them takes about a tenth of a second a measure.
_MOST_RUNS = 100


def write_reports(folder: Path, results: Path | None = None) -> list[str]:
    """Write the three files into a run's folder and say what could not be written.

    Args:
        folder: the run's, with its verdict.
        results: where the history is that the run stands in; without it, or without the run in it, the page has no
            plots over time.
    """
    notes: list[str] = []
    for name in (REPORT_FILE, SUMMARY_FILE, JUNIT_FILE):
        # a report of an older run would speak of another verdict
        _try(notes, folder / name, lambda path: path.unlink(missing_ok=True))
    try:
        account = read_account(folder)
    except HarnessError as err:
        return [*notes, f"there is no report of {folder}: {one_line(err)}"]
    history: Sequence[HistoryLine] = ()
    try:
        history = trends(read_history(results), account.run) if results is not None else ()
    except Exception as err:  # the report of this run stands without those before it
        said = f"{type(err).__name__}: " if not isinstance(err, HarnessError) else ""
        notes.append(f"the report has no plots over time: {said}{one_line(err)}")
        account = replace(account, notes=(*account.notes, notes[-1]))
    _try(notes, folder / REPORT_FILE, lambda _: write_webreport(folder, account, history))
    _try(notes, folder / SUMMARY_FILE, lambda _: write_summary(folder, account))
    _try(notes, folder / JUNIT_FILE, lambda _: write_junit(folder, account))
    return notes


def _try(notes: list[str], path: Path, write: Callable[[Path], object]) -> None:
    try:
        write(path)
    except Exception as err:  # a bug in a report must not take the verdict with it
        notes.append(f"{path} is not there: {type(err).__name__}: {one_line(err)}")


def trends(entries: Sequence[Entry], run: str) -> list[HistoryLine]:
    """Read the headline measures of a run over the runs before it, on the same line and machine.

    Args:
        entries: the history, in order of time.
        run: the last run that is shown; empty if it is not among them.
    """
    place = next((place for place, entry in enumerate(entries) if entry.run == run), None)
    if place is None:
        return []
    latest = entries[place]
    # only these: changes would be looked for in the series of every line and machine
    same = [entry for entry in entries[: place + 1] if (entry.line, entry.machine) == (latest.line, latest.machine)]
    found = (_trend(same, key, latest) for key in _headlines(latest))
    return [line for line in found if line is not None]


def _headlines(latest: Entry) -> list[MeasureKey]:
    """Choose the measures: of each variant, those of the variant that is served first."""
    measured = latest.measures()
    # INT8 is served where there is one, and its name sorts last
    scopes = sorted({key.scope for key in measured} - {RELEASE_SCOPE}, reverse=True)
    wanted = (MeasureKey(suite, scope, name) for suite, name in _TRENDS for scope in scopes)
    return [key for key in wanted if key in measured][:_MOST_TRENDS]


def _trend(entries: Sequence[Entry], key: MeasureKey, latest: Entry) -> HistoryLine | None:
    series = series_of(entries, key, _MOST_RUNS)
    now = latest.measure(key)
    if not series or now is None:
        return None
    return HistoryLine(str(key), now.unit, now.limit, tuple(_points(series[0])))


def _points(series: Series) -> list[HistoryPoint]:
    changes = {change.point.index for change in series.changes}
    return [
        HistoryPoint(
            run=point.entry.run,
            time=point.entry.time.isoformat(timespec="seconds"),
            value=point.value,
            machine=str(point.entry.machine),
            is_change=place in changes,
            decision=point.entry.decision,
        )
        for place, point in enumerate(series.points)
    ]
