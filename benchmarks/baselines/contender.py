"""What a worker process asks of the contender that it holds.

Needs the standard library and numpy alone: it is imported under foreign Pythons too.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Feed = dict[str, NDArray[np.int64]]
Call = Callable[[], object]
Settings = Mapping[str, Any]


class Level(Enum):
    """What one timed call does: one model run on prepared inputs, one text to its entities, or many texts to theirs."""

    MODEL = "model"
    TEXT = "text"
    BULK = "bulk"


class UnsupportedError(Exception):
    """A contender cannot do what was asked, and says why."""


class Contender(Protocol):
    """One way to serve a model, open in this process."""

    def reopen(self) -> None:
        """Open the model anew: two sessions of one file are not equally fast."""
        ...

    def model_call(self, feed: Feed) -> Call:
        """Prepare a model run on these inputs, so that a call does nothing else."""
        ...

    def text_call(self, text: str) -> Call:
        """Prepare the way from a text to its entities."""
        ...

    def bulk_call(self, texts: Sequence[str]) -> Call:
        """Prepare the way from many texts to their entities."""
        ...

    def logits(self, feed: Feed) -> NDArray[np.float32]:
        """Run the model: float32, (rows, tokens, labels)."""
        ...

    def measure(self, name: str, settings: Settings) -> dict[str, list[float]]:
        """Measure what only this contender can, inside its process."""
        ...


class Unsupporting:
    """A contender that supports nothing; the families override what they can."""

    def reopen(self) -> None:
        """Keep what is open: nothing is gained by loading it again."""

    def model_call(self, feed: Feed) -> Call:  # noqa: ARG002
        """See `Contender`."""
        raise UnsupportedError(self._lacks("a bare model run"))

    def text_call(self, text: str) -> Call:  # noqa: ARG002
        """See `Contender`."""
        raise UnsupportedError(self._lacks("a way from text to entities"))

    def bulk_call(self, texts: Sequence[str]) -> Call:  # noqa: ARG002
        """See `Contender`."""
        raise UnsupportedError(self._lacks("a way to answer many texts at once"))

    def logits(self, feed: Feed) -> NDArray[np.float32]:  # noqa: ARG002
        """See `Contender`."""
        raise UnsupportedError(self._lacks("logits"))

    def measure(self, name: str, settings: Settings) -> dict[str, list[float]]:  # noqa: ARG002
        """See `Contender`."""
        raise UnsupportedError(self._lacks(f"a measurement named {name}"))

    def _lacks(self, what: str) -> str:
        return f"{type(self).__name__} has no {what}"


def packed(array: NDArray[Any]) -> dict[str, Any]:
    """Write an array as JSON; law: `unpacked(packed(a))` has a's values, shape and type."""
    kept = np.ascontiguousarray(array)
    return {
        "type": kept.dtype.str,
        "shape": list(kept.shape),
        "bytes": base64.b64encode(kept.tobytes()).decode("ascii"),
    }


def unpacked(content: Mapping[str, Any]) -> NDArray[Any]:
    """Read an array that `packed` wrote."""
    values: NDArray[Any] = np.frombuffer(base64.b64decode(content["bytes"]), np.dtype(content["type"]))
    # a copy: what is read from bytes cannot be written to
    shaped: NDArray[Any] = values.reshape([int(size) for size in content["shape"]]).copy()
    return shaped


def packed_feed(feed: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Write the inputs of a model run as JSON."""
    return {name: packed(value) for name, value in feed.items()}


def unpacked_feed(content: Mapping[str, Any]) -> Feed:
    """Read the inputs of a model run."""
    return {name: unpacked(value) for name, value in content.items()}
