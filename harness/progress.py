"""Tell a person, or a CI log, what is going on; on standard error, so that results stay clean."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from harness.timing import Clock, SystemClock

# Begins a line on which the judging session tells its parent what runs now; it is not for the log.
MARK = "\x1eharness "


class Progress(Protocol):
    """Something that is told what happens."""

    def line(self, text: str) -> None:
        """Say something that stays on the screen."""
        ...

    def now(self, text: str) -> None:
        """Say what runs at this moment; the next saying replaces it."""
        ...


class Silence:
    """Says nothing."""

    def line(self, text: str) -> None:
        """See `Progress`."""

    def now(self, text: str) -> None:
        """See `Progress`."""


class ScreenProgress:
    """One status line that changes on a terminal; lines only elsewhere."""

    def __init__(self) -> None:
        """Look at standard error."""
        self._live = sys.stderr.isatty()
        self._shown = 0

    def line(self, text: str) -> None:
        """See `Progress`."""
        self._clear()
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def now(self, text: str) -> None:
        """See `Progress`."""
        if self._live:
            self._clear()
            shown = f"  … {text}"[:100]
            self._shown = len(shown)
            print(shown, end="", file=sys.stderr, flush=True)  # noqa: T201

    def _clear(self) -> None:
        if self._shown:
            print("\r" + " " * self._shown + "\r", end="", file=sys.stderr)  # noqa: T201
            self._shown = 0


@contextmanager
def stage(progress: Progress, title: str, took: dict[str, float], clock: Clock | None = None) -> Iterator[None]:
    """Announce a stage, and how many seconds it took, which also goes into `took`."""
    clock = clock or SystemClock()
    progress.line(f"{title} …")
    begin = clock.now_ns()
    yield
    took[title] = round((clock.now_ns() - begin) / 1e9, 1)
    progress.line(f"{title}: {took[title]:.1f} s")
