"""What is measured of a recipe, and the notebook in which it stays so that a search can go on where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.errors import DocumentError

NOTEBOOK_FILE = "measurements.jsonl"


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near a graph's answers are to FP32's on validation queries.

    Attributes:
        mean_logit_difference: over all labels of all words.
        largest_logit_difference: of a single logit.
        changed_queries: share of the queries in which some word has another label.
        changed_words: share of the words with another label.
        confident_flips: words with another label where FP32's margin was 2 logits or more.
        largest_flipped_margin: FP32's largest margin where a label changed, in logits; 0 where none did.
        f1_loss: micro F1 lost on gold labels; below 0 where the graph is better.
        size_bytes: of the file.
    """

    mean_logit_difference: float
    largest_logit_difference: float
    changed_queries: float
    changed_words: float
    confident_flips: int
    largest_flipped_margin: float
    f1_loss: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of a call relative to the usual recipe's, batch of one, interleaved: an estimate with its interval."""

    ratio: float
    low: float
    high: float
    rounds: int


_KINDS: dict[str, type[Fidelity | Latency]] = {"fidelity": Fidelity, "latency": Latency}


class Notebook:
    """Measurements of recipes, by the digest of each, on disk as they are made.

    What was measured on another machine, of other bytes or with other versions is under another key and not found.
    """

    def __init__(self, folder: Path, key: str) -> None:
        """Open the notebook, or begin it.

        Args:
            folder: where it lies.
            key: digest of all that measurements depend on but the recipe.

        Raises:
            DocumentError: there is one, but it cannot be read.
        """
        self._path = folder / NOTEBOOK_FILE
        self._key = key
        self._fidelity: dict[str, Fidelity] = {}
        self._latency: dict[str, Latency] = {}
        if self._path.is_file():
            self._read()

    def _read(self) -> None:
        # a search that was killed may have left the beginning of a line; nothing else may be incomplete
        *lines, _ = self._path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if entry["key"] == self._key:
                    self._take(str(entry["recipe"]), _measurement(entry["kind"], entry["values"]))
            except (KeyError, TypeError, ValueError) as err:
                message = (
                    f"{self._path} line {number} is no measurement. Delete the file; the search then measures anew."
                )
                raise DocumentError(message) from err

    def _take(self, recipe: str, found: Fidelity | Latency) -> None:
        if isinstance(found, Fidelity):
            self._fidelity[recipe] = found
        else:
            self._latency[recipe] = found

    def fidelity(self, recipe: str) -> Fidelity | None:
        """What is known of a recipe's answers."""
        return self._fidelity.get(recipe)

    def latency(self, recipe: str) -> Latency | None:
        """What is known of a recipe's speed."""
        return self._latency.get(recipe)

    def note(self, recipe: str, found: Fidelity | Latency) -> None:
        """Write a measurement down."""
        self._take(recipe, found)
        kind = next(kind for kind, made in _KINDS.items() if isinstance(found, made))
        line = json.dumps({"key": self._key, "kind": kind, "recipe": recipe, "values": asdict(found)}, sort_keys=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._complete_last_line()
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def _complete_last_line(self) -> None:
        """Cut off what a killed search left of a line, so that the next one does not continue it."""
        if not self._path.is_file():
            return
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self._path.open("r+b") as stream:
                stream.truncate(content.rfind(b"\n") + 1)


def _measurement(kind: str, values: dict[str, Any]) -> Fidelity | Latency:
    """Read what `note` writes; a ValueError, KeyError or TypeError says that it is something else."""
    made = _KINDS[kind]
    numbers = [values[field.name] for field in fields(made)]
    if len(values) != len(numbers) or not all(type(number) in {int, float} for number in numbers):
        message = f"{kind} is {values!r}"
        raise ValueError(message)
    return made(*numbers)
