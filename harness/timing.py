"""Where the time comes from. Nothing else in the package imports `time` or asks for today's date."""

from __future__ import annotations

import datetime
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock and a calendar."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary moment; never goes back."""
        ...

    def utc(self) -> datetime.datetime:
        """The date and time, with time zone UTC."""
        ...

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        ...


class SystemClock:
    """This machine's clock."""

    def now_ns(self) -> int:
        """See `Clock`."""
        return time.perf_counter_ns()

    def utc(self) -> datetime.datetime:
        """See `Clock`."""
        return datetime.datetime.now(datetime.timezone.utc)

    def pause(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(seconds)
