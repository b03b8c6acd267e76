"""Starts the replaying process, waits for its answers and reads them.

The other end is `replay_program.py`. A process that dies, hangs or leaves answers out has answered nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from harness.errors import HarnessError, one_line
from harness.serving import Runtime
from suites.queries.replay_program import ANSWERS, REQUEST
from suites.queries.watched import Trace

# -I: no variable of the environment, no working folder and no user's site changes what is imported.
PROGRAM = (sys.executable, "-I", "-B", str(Path(__file__).with_name("replay_program.py")))
# A model thirty times as large as the bus model (BERT large) answers two thousand queries in it.
TIME_LIMIT_S = 400.0


class ReplayError(HarnessError):
    """A fresh process did not answer."""


@dataclass(frozen=True, slots=True)
class Group:
    """Texts to ask together, and how many of their rows share a model run."""

    texts: tuple[str, ...]
    batch_size: int


class FreshReplay:
    """A process that answers texts on its own; a context, at whose end neither process nor files are left."""

    def __init__(
        self, folder: Path, variant: str, groups: Sequence[Group], *, program: Sequence[str] = PROGRAM,
        path: Sequence[str] | None = None, runtime: Runtime = Runtime.ONNXRUNTIME,
    ) -> None:  # fmt: skip
        """Start the process.

        Args:
            folder: the release.
            variant: which of its models.
            groups: what to ask.
            program: the command line; the folder with the request is put behind it.
            path: where it finds packages; by default where this process does.
            runtime: what runs the model there.
        """
        self._count = sum(len(group.texts) for group in groups)
        self._name = f"the fresh process that replays {folder} ({variant})"
        self._place = tempfile.TemporaryDirectory(prefix="replay-")
        request = {
            "folder": str(folder.resolve()),
            "variant": variant,
            "runtime": runtime.value,
            "path": [str(Path(entry).resolve()) for entry in (sys.path if path is None else path)],
            "groups": [asdict(group) for group in groups],
        }
        place = Path(self._place.name)
        (place / REQUEST).write_text(json.dumps(request), encoding="ascii")
        self._complaints = place / "complaints"
        with self._complaints.open("wb") as complaints:
            self._process = subprocess.Popen(  # noqa: S603  # our own program
                [*program, str(place)],
                cwd=place,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.PIPE,  # never written to: its end tells the program that nobody waits any more
                stdout=complaints,
                stderr=complaints,
                start_new_session=True,
            )

    def __enter__(self) -> FreshReplay:  # noqa: PYI034  # typing.Self came with Python 3.11
        """Hand it out."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process with all that it started, and remove its files."""
        self._kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._place.cleanup()

    def answers(self, time_limit_s: float = TIME_LIMIT_S) -> list[Trace]:
        """Wait for the answers, in the order of the texts.

        Raises:
            ReplayError: the process crashed, hung, or answered in part or unreadably.
        """
        try:
            code = self._process.wait(time_limit_s)
        except subprocess.TimeoutExpired as err:
            self._kill()
            message = f"{self._name} did not answer within {time_limit_s:g} s."
            raise ReplayError(message) from err
        if code:
            message = f"{self._name} {self._ending(code)}"
            raise ReplayError(message)
        return self._read()

    def _read(self) -> list[Trace]:
        try:
            lines = (Path(self._place.name) / ANSWERS).read_text(encoding="ascii").splitlines()
            traces = [Trace.from_json(json.loads(line)) for line in lines]
        except (OSError, ValueError, KeyError, TypeError) as err:
            message = f"{self._name} left answers that cannot be read ({type(err).__name__}: {one_line(err)})."
            raise ReplayError(message) from err
        if len(traces) != self._count:
            message = f"{self._name} answered {len(traces)} of {self._count} texts."
            raise ReplayError(message)
        return traces

    def _kill(self) -> None:
        # the group is gone where the process has ended and left nothing behind
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _ending(self, code: int) -> str:
        said = self._complaints.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{how} before it had answered: {one_line(said[-1]) if said else 'it said nothing'}"
