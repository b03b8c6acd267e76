"""Our runtime, as a program uses it: `harness.inference.NERInference`, with the settings of the release.

The bare session run is taken from the runtime's own call: what it asked its session is kept and asked again, so no
private name is needed and the session is the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.contender import Call, Feed, Settings, UnsupportedError, Unsupporting
from harness.artifact import Variant, open_artifact
from harness.candidate import Candidate
from harness.inference import NERInference
from harness.tagging import Batch

_RUNS = ("run", "run_with_ort_values", "run_with_iobinding")


def open_contender(settings: Settings, threads: int) -> Lean:  # noqa: ARG001  # the release says how many
    """Open `settings["variant"]` of `settings["folder"]`, through `settings["runtime"]` if that is named."""
    return Lean(Path(settings["folder"]), settings["variant"], settings.get("runtime"))


@contextmanager
def session_runs() -> Iterator[list[Call]]:
    """Keep every model run that onnxruntime is asked for meanwhile, as a call that asks for it again."""
    import onnxruntime

    session_class: Any = onnxruntime.InferenceSession
    own = {name: session_class.__dict__[name] for name in _RUNS if name in session_class.__dict__}
    kept: list[Call] = []

    def keeping(original: Callable[..., object]) -> Callable[..., object]:
        def run(session: object, *args: object, **named: object) -> object:
            kept.append(lambda: original(session, *args, **named))
            return original(session, *args, **named)

        return run

    originals = {name: getattr(session_class, name) for name in _RUNS if hasattr(session_class, name)}
    for name, original in originals.items():
        setattr(session_class, name, keeping(original))
    try:
        yield kept
    finally:
        for name in originals:
            if name in own:
                setattr(session_class, name, own[name])
            else:
                delattr(session_class, name)


def bare_run(ask: Call) -> Call:
    """Ask once, and give the model run alone that this took.

    Raises:
        UnsupportedError: onnxruntime was not asked for exactly one run.
    """
    with session_runs() as kept:
        ask()
    if len(kept) != 1:
        message = f"the runtime asked onnxruntime for {len(kept)} runs where one was expected"
        raise UnsupportedError(message)
    return kept[0]


class Lean(Unsupporting):
    """One variant of a release."""

    def __init__(self, folder: Path, variant: str, runtime: str | None) -> None:
        """Open it."""
        self._folder, self._variant = folder, variant
        self._named: dict[str, Any] = {} if runtime is None else {"runtime": runtime}
        self._runtime: NERInference | None = None
        self._candidate: Candidate | None = None
        self.reopen()

    def reopen(self) -> None:
        """See `Contender`."""
        self._runtime, self._candidate = None, None
        self._runtime = NERInference(self._folder, variant=self._variant, **self._named)

    def _opened_candidate(self) -> Candidate:
        if self._named:
            message = f"logits through {self._named} are not asked for here"
            raise UnsupportedError(message)
        if self._candidate is None:
            self._candidate = Candidate(open_artifact(self._folder), Variant(self._variant))
        return self._candidate

    def _opened_runtime(self) -> NERInference:
        if self._runtime is None:
            message = "the runtime did not open"
            raise UnsupportedError(message)
        return self._runtime

    def model_call(self, feed: Feed) -> Call:
        """See `Contender`."""
        candidate = self._opened_candidate()
        return bare_run(lambda: candidate.logits(Batch(**feed)))

    def text_call(self, text: str) -> Call:
        """See `Contender`."""
        extract = self._opened_runtime().extract
        return lambda: extract(text)

    def bulk_call(self, texts: Sequence[str]) -> Call:
        """See `Contender`."""
        runtime, asked = self._opened_runtime(), list(texts)
        return lambda: runtime.batch_extract(asked)

    def logits(self, feed: Feed) -> NDArray[np.float32]:
        """See `Contender`."""
        return self._opened_candidate().logits(Batch(**feed))

    def measure(self, name: str, settings: Settings) -> dict[str, list[float]]:
        """Time `extract` and the model run inside it, in turns: ns of both, pair by pair (`against_bare`)."""
        if name != "against_bare":
            return super().measure(name, settings)
        extract = self._opened_runtime().extract
        found: dict[str, list[float]] = {"extract_ns": [], "bare_ns": []}
        for number, text in enumerate(settings["texts"]):
            asked: Call = lambda text=text: extract(text)  # type: ignore[misc]  # noqa: E731
            bare = bare_run(asked)
            for call in (asked, bare):  # both once, so that neither finds the other's leavings only
                call()
            order = (("extract_ns", asked), ("bare_ns", bare))
            for side, call in order if number % 2 else order[::-1]:
                begin = time.perf_counter_ns()
                call()
                found[side].append(time.perf_counter_ns() - begin)
        return found
