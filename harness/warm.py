"""A process that has PyTorch and the reference loaded, and forks itself for one judging session after another.

For the self-check, which judges some hundred candidates against one reference. Each session is a copy
of this process, which itself never opens a candidate, so no session sees what an earlier one did.
Releases are judged in fresh processes instead. Run as `python -m harness.warm DIR`; see `WarmProcess`
for the other end.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness.errors import HarnessError, one_line
from harness.reference import Reference
from harness.session import WARM_REFERENCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.tagging import Batch


class RememberingReference(Reference):
    """A reference that answers a batch it was asked before from memory.

    A batch is remembered by every bit of it, so an answer is the one that the model gave to this batch.
    """

    def __init__(self, folder: Path) -> None:
        """See `Reference`."""
        super().__init__(folder)
        self._answers: dict[str, NDArray[np.float32]] = {}

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """See `TokenClassifier`."""
        key = _key(batch)
        if key not in self._answers:
            self._answers[key] = super().logits(batch)
        return np.array(self._answers[key])  # a copy: a suite may write into what it got

    def save(self, path: Path) -> None:
        """Write every answer to a file."""
        with path.open("wb") as stream:
            np.savez(stream, **self._answers)  # type: ignore[arg-type]  # numpy's stub mistakes the names for its option

    def load(self, path: Path) -> None:
        """Add the answers of a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as answers:
            self._answers.update({key: answers[key] for key in answers.files})


def _key(batch: Batch) -> str:
    digest = hashlib.sha256(repr(batch.input_ids.shape).encode())
    for array in batch:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class _Warm:
    """The plugin through which `harness.plugin` gets the reference of this process."""

    __name__ = WARM_REFERENCE  # pytest's name for it

    def __init__(self, reference: Reference) -> None:
        self.reference = reference


def serve(reference: RememberingReference) -> None:
    """Run what standard input asks for, a JSON object a line, and answer on standard output, until it is closed."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            reference.load(Path(request["load"]))
            _answer(answers, {"loaded": True})
        else:
            _answer(answers, _run(request, reference))


def _answer(stream: Any, content: Mapping[str, Any]) -> None:
    stream.write(json.dumps(content) + "\n")
    stream.flush()


def _run(request: Mapping[str, Any], reference: RememberingReference) -> dict[str, Any]:
    """Fork one session and wait for its end, or bring it about at its time limit."""
    child = os.fork()
    if child == 0:
        _session(request, reference)
    timed_out = threading.Event()

    def end(*_: object) -> None:
        _kill(child)
        os._exit(128 + signal.SIGTERM)

    def stop() -> None:
        timed_out.set()
        _kill(child)

    signal.signal(signal.SIGTERM, end)
    watchdog = threading.Timer(request["time_limit_s"], stop)
    watchdog.start()
    _, status = os.waitpid(child, 0)
    watchdog.cancel()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _kill(child)  # what it may have left behind
    return {"code": os.waitstatus_to_exitcode(status), "timed_out": timed_out.is_set()}


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # it is gone, or has not made its group yet


def _session(request: Mapping[str, Any], reference: RememberingReference) -> None:
    """Be a judging session; never returns."""
    code = 70  # EX_SOFTWARE: anything but pytest's own
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(request["folder"])
        code = int(pytest.main(list(request["arguments"]), plugins=[_Warm(reference)]))
        if request.get("save"):
            reference.save(Path(request["save"]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> int:
    """Load the reference and serve."""
    try:
        reference = RememberingReference(Path(sys.argv[1]))
    except HarnessError as err:
        print(json.dumps({"failed": one_line(err, 500)}), flush=True)  # noqa: T201  # the other end reads it
        return 2
    serve(reference)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
