"""Write everything that tells people and CI systems about a run: `report.html`, `summary.md`, `junit.xml`.

A verdict stands without them. What hinders one is returned as a note, and the others are written all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.errors import one_line
from harness.junit import JUNIT_FILE, write_junit
from harness.summary import SUMMARY_FILE, write_summary
from harness.webreport import REPORT_FILE, HistoryLine, write_webreport


def write_reports(folder: Path, history: Sequence[HistoryLine] = ()) -> list[str]:
    """Write the three files into a run's folder and say what could not be written.

    Args:
        folder: the run's, with its verdict.
        history: measures over the runs of the release line, for the page's plots.
    """
    writers: dict[str, Callable[[], Path]] = {
        REPORT_FILE: lambda: write_webreport(folder, history),
        SUMMARY_FILE: lambda: write_summary(folder),
        JUNIT_FILE: lambda: write_junit(folder),
    }
    notes = []
    for name, write in writers.items():
        # a report of an older run would speak of another verdict
        try:
            (folder / name).unlink(missing_ok=True)
            write()
        except Exception as err:  # a bug in a report must not take the verdict with it
            notes.append(f"{folder / name} is not there: {type(err).__name__}: {one_line(err)}")
    return notes
