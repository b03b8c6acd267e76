"""A release opened as any program opens it, that also tells how it came to its answers.

Runs where only the runtime is installed: it imports neither PyTorch nor transformers nor pytest. The value that
it answers with is also what `replay.py` makes by the way of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer

from harness.artifact import TOKENIZER
from harness.candidate import Candidate
from harness.encoding import encodable, overlap
from harness.inference import DetailedAnswer, NERInference
from harness.tagging import TaggedQuery


class FoundSpan(NamedTuple):
    """An entity as a program gets it."""

    start: int
    end: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Trace:
    """One text on its way to its entities; offsets are code points, the end exclusive.

    `ids` and `offsets` hold a tuple for each window of the text, `words` and `labels` an entry for each word.
    """

    ids: tuple[tuple[int, ...], ...]
    offsets: tuple[tuple[tuple[int, int], ...], ...]
    words: tuple[tuple[int, int], ...]
    labels: tuple[str, ...]
    spans: tuple[FoundSpan, ...]

    def to_json(self) -> dict[str, Any]:
        """Law: `Trace.from_json(trace.to_json()) == trace`, also through JSON's lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Trace:
        """Read what `to_json` wrote; raises KeyError, TypeError or ValueError on anything else."""
        if set(content) != {field.name for field in fields(cls)}:
            message = f"the keys are {', '.join(map(str, content))}"
            raise ValueError(message)
        return cls(
            ids=tuple(tuple(map(int, window)) for window in content["ids"]),
            offsets=tuple(tuple(map(_place, window)) for window in content["offsets"]),
            words=tuple(map(_place, content["words"])),
            labels=tuple(map(str, content["labels"])),
            spans=tuple(FoundSpan(int(a), int(b), str(kind), str(text)) for a, b, kind, text in content["spans"]),
        )


def _place(pair: Any) -> tuple[int, int]:
    start, end = pair
    return int(start), int(end)


class Watched(NERInference):
    """A release whose answers can be followed back to tokens."""

    def __init__(self, folder: str | Path, *, variant: str, runtime: str = "onnxruntime") -> None:
        """Open one variant of a release, with the settings it is served with."""
        super().__init__(folder, variant=variant, runtime=runtime)
        self._seen: list[TaggedQuery] = []
        model = self._model
        if not isinstance(model, Candidate):
            message = f"the program answers with a {type(model).__name__} where a Candidate was judged"
            raise TypeError(message)
        self._candidate = model
        self._tokenizer = Tokenizer.from_file(str(model.artifact.folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(model.maximum_tokens, stride=overlap(model.maximum_tokens))

    def answers(self, texts: Sequence[str], batch_size: int) -> Iterator[Trace]:
        """Answer many texts as `batch_extract_detailed` does, and tell how.

        Raises:
            RuntimeError: the runtime cuts a text otherwise than its tokenizer's file.
        """
        self._seen.clear()
        given = self.batch_extract_detailed(texts, batch_size)
        for text, answer, tagged in zip(texts, given, self._seen, strict=True):
            parts = self._parts(text)
            yield Trace(
                tuple(tuple(part.ids) for part in parts),
                tuple(tuple(part.offsets) for part in parts),
                tuple((word.start, word.end) for word in tagged.words),
                tuple(self.labels[index] for index in tagged.label_ids),
                tuple(FoundSpan(raw["start"], raw["end"], raw["label"], raw["text"]) for raw in answer["raw_entities"]),
            )

    def _answer(self, tagged: TaggedQuery) -> DetailedAnswer:
        self._seen.append(tagged)
        return super()._answer(tagged)

    def _parts(self, text: str) -> list[Encoding]:
        """Cut a text once more, for the offsets of its tokens, which an `EncodedQuery` does not keep."""
        first = self._tokenizer.encode(encodable(text))
        parts = [first, *first.overflowing]
        (query,) = self._candidate.encode([text])
        if [list(window.input_ids) for window in query.windows] != [part.ids for part in parts]:
            message = f"the runtime cuts {text[:60]!r} otherwise than its {TOKENIZER} does"
            raise RuntimeError(message)
        return parts
