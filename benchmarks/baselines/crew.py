"""The driver's end of a contender's process: it starts one, asks it, and stops it.

Only one process is asked at a time; the others wait for a line, which costs nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from baselines.contender import Level, packed_feed, unpacked
from harness.errors import ArtifactError, HarnessError, one_line
from harness.tagging import Batch, EncodedQuery, TokenClassifier

FOLDER = Path(__file__).resolve().parent.parent
# torch.compile takes half a minute for its first call, NNCF as long for its file.
TIMEOUT_S = 600.0


class WorkerError(HarnessError):
    """A contender's process did not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A contender, and how its process is started.

    Attributes:
        name: what tables call it.
        family: the module that makes it.
        settings: what that module is told.
        python: the Python that has its packages.
        threads: threads of a model run; 0 leaves it to the library.
        required: whether the benchmark ends without it, rather than leaving it out and saying why.
        reopens: whether each round opens it anew.
    """

    name: str
    family: str
    settings: Mapping[str, Any]
    python: str = sys.executable
    threads: int = 1
    required: bool = False
    reopens: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


class Racer(Protocol):
    """Somebody who can be timed; a process, or a fake."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def reopens(self) -> bool:
        """Whether each round opens it anew."""
        ...

    def reopen(self) -> None:
        """Open the model anew."""
        ...

    def load(self, key: str, level: Level, inputs: Sequence[Any]) -> None:
        """Prepare calls, to be known by a key and their place."""
        ...

    def time(self, key: str, indices: Sequence[int]) -> list[int]:
        """Make these calls one after the other: ns of each."""
        ...


class Remote:
    """A contender in its process; a context manager that ends it."""

    def __init__(self, spec: Spec, cpus: Sequence[int] = (), *, timeout_s: float = TIMEOUT_S) -> None:
        """Start it and wait until the contender is open.

        Args:
            spec: which contender.
            cpus: where it may run; anywhere if empty.
            timeout_s: how long one request may take.

        Raises:
            WorkerError: it does not start or open.
        """
        self.spec, self._timeout_s = spec, timeout_s
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        command = [spec.python, "-m", "baselines.worker"]
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own program
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=FOLDER,
                env=_environment(spec), encoding="utf-8",
            )  # fmt: skip
        except OSError as err:
            self._log.close()
            message = f"{spec.name}: {spec.python} does not start ({one_line(err)})"
            raise WorkerError(message) from err
        try:
            order = {"family": spec.family, "settings": dict(spec.settings), "threads": spec.threads}
            self._ask({**order, "cpus": list(cpus)})
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """See `Racer`."""
        return self.spec.name

    @property
    def reopens(self) -> bool:
        """See `Racer`."""
        return self.spec.reopens

    def reopen(self) -> None:
        """See `Racer`."""
        self._ask({"op": "reopen"})

    def load(self, key: str, level: Level, inputs: Sequence[Any]) -> None:
        """See `Racer`; the inputs of model runs are batches."""
        written = [packed_feed(one._asdict()) if isinstance(one, Batch) else one for one in inputs]
        self._ask({"op": "load", "key": key, "level": level.value, "inputs": written})

    def time(self, key: str, indices: Sequence[int]) -> list[int]:
        """See `Racer`."""
        return [int(one) for one in self._ask({"op": "time", "key": key, "indices": list(indices)})]

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Run the model on a batch: float32, (rows, tokens, labels)."""
        found: NDArray[np.float32] = unpacked(self._ask({"op": "logits", "feed": packed_feed(batch._asdict())}))
        return found

    def measure(self, name: str, settings: Mapping[str, Any]) -> dict[str, list[float]]:
        """Let it measure what only it can."""
        found: dict[str, list[float]] = self._ask({"op": "measure", "name": name, "settings": dict(settings)})
        return found

    def _ask(self, request: Mapping[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            message = f"{self.name}: its process has no pipes"
            raise WorkerError(message)
        watchdog = threading.Timer(self._timeout_s, self._process.kill)
        watchdog.start()
        try:
            stdin.write(f"{json.dumps(request)}\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if not line:
            message = f"{self.name}: its process ended or hung; it said: {self._last_words()}"
            raise WorkerError(message)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            message = f"{self.name}: {one_line(reply['error'])}"
            raise WorkerError(message)
        return reply["ok"]

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return one_line(lines[-1], 200) if lines else "nothing"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # what was not yet sent to a process that is gone
                    continue

    def __enter__(self) -> Remote:  # noqa: PYI034  # typing.Self came with Python 3.11
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()


def _environment(spec: Spec) -> dict[str, str]:
    """Leave the network out, and let no library start more threads than the row says."""
    count = {} if not spec.threads else dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(spec.threads))
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", **count, **spec.environment}


class RemoteModel:
    """A contender's logits behind the reference's tokenizer; a `TokenClassifier`, so all of `tagging` works on it."""

    def __init__(self, remote: Remote, reference: TokenClassifier) -> None:
        """Take labels, padding and tokenizer from the reference."""
        self._remote, self._reference = remote, reference

    @property
    def labels(self) -> tuple[str, ...]:
        """See `TokenClassifier`."""
        return self._reference.labels

    @property
    def pad_token_id(self) -> int:
        """See `TokenClassifier`."""
        return self._reference.pad_token_id

    def encode(self, texts: Sequence[str]) -> list[EncodedQuery]:
        """See `TokenClassifier`."""
        return self._reference.encode(texts)

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """See `TokenClassifier`.

        Raises:
            ArtifactError: the model does not take this batch.
        """
        try:
            return self._remote.logits(batch)
        except WorkerError as err:
            raise ArtifactError(str(err)) from err
