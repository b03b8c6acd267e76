"""What a token classifier says about a query: words, logits, labels, entity spans.

Both the PyTorch reference and the ONNX candidate answer through the code in this module, so a
difference between their answers is a difference between the models, never between two decoders.
It knows no tokenizer, no model file and no domain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUTSIDE = "O"
_BEGINNING = frozenset("BSU")
_CONTINUING = frozenset("IELM")


class Word(NamedTuple):
    """A word of a query as the tokenizer cut it: code points `start` to `end` (exclusive)."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, order=True)
class EntitySpan:
    """An entity: code points `start` to `end` (exclusive) of a query and the entity type, such as `SRC`."""

    start: int
    end: int
    label: str

    def __post_init__(self) -> None:
        """Refuse a span that holds no text."""
        if not 0 <= self.start < self.end:
            message = f"span {self.start}-{self.end} ({self.label}) is empty or starts before the text"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class LabelledQuery:
    """A query with the entities that a person, or a grammar, says are in it, in order of their start."""

    text: str
    spans: tuple[EntitySpan, ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Labelled queries, with the name under which results speak of them."""

    name: str
    queries: tuple[LabelledQuery, ...]

    @property
    def texts(self) -> list[str]:
        """The queries' texts, in order."""
        return [query.text for query in self.queries]

    @property
    def entity_types(self) -> tuple[str, ...]:
        """Every entity type that occurs, sorted."""
        return tuple(sorted({span.label for query in self.queries for span in query.spans}))


class Window(NamedTuple):
    """One row of model input, without padding.

    `heads[i]` is the position of the first subword of word `words[i]`; a word that stands in two
    overlapping windows is listed in one of them only.
    """

    input_ids: Sequence[int]
    token_type_ids: Sequence[int]
    heads: Sequence[int]
    words: Sequence[int]


class EncodedQuery(NamedTuple):
    """A query as its tokenizer cut it; more than one window if it is longer than the model reads at once."""

    text: str
    words: Sequence[Word]
    windows: Sequence[Window]


class Batch(NamedTuple):
    """Model input, each int64 of shape (rows, tokens)."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]


class TokenClassifier(Protocol):
    """A tokenizer with a model: the reference or one variant of a candidate."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each logit, such as `("O", "B-SRC", "I-SRC")`."""
        ...

    @property
    def pad_token_id(self) -> int:
        """The token that fills short rows."""
        ...

    def encode(self, texts: Sequence[str]) -> list[EncodedQuery]:
        """Cut each text into words and windows."""
        ...

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Run the model once: float32, (rows, tokens, labels)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TaggedQuery:
    """A query with the logits of each of its words: float32, (words, labels)."""

    text: str
    words: Sequence[Word]
    logits: NDArray[np.float32]

    @property
    def label_ids(self) -> NDArray[np.intp]:
        """The index of the highest logit of each word; the lowest index where several are equal."""
        return np.asarray(self.logits.argmax(axis=1))

    @property
    def margins(self) -> NDArray[np.float32]:
        """Highest logit less the second highest, of each word."""
        if self.logits.shape[1] < 2:
            return np.full(len(self.words), np.inf, dtype=np.float32)
        ordered = np.partition(self.logits, -2, axis=1)
        return np.asarray(ordered[:, -1] - ordered[:, -2])

    def spans(self, labels: Sequence[str]) -> list[EntitySpan]:
        """Decode the entities under the label names given."""
        return [
            EntitySpan(self.words[first].start, self.words[last].end, kind)
            for kind, first, last in entity_runs([labels[index] for index in self.label_ids])
        ]


@lru_cache(maxsize=1024)
def split_label(label: str) -> tuple[str, str]:
    """Split `"B-SRC"` into `("B", "SRC")`; a name without a known prefix continues its own kind (IO scheme)."""
    prefix, dash, kind = label.partition("-")
    if dash and kind and (prefix in _BEGINNING or prefix in _CONTINUING):
        return prefix, kind
    return "I", label


class EntityRun(NamedTuple):
    """Consecutive words, `first` to `last` inclusive, that form one entity of type `kind`."""

    kind: str
    first: int
    last: int


def entity_runs(tags: Iterable[str]) -> list[EntityRun]:
    """Group word tags into entities.

    Read as CoNLL's evaluation script does: an `I-X` that follows neither `B-X` nor `I-X` begins an
    entity of its own. Dropping it would lose what the model found.
    """
    runs: list[EntityRun] = []
    open_kind, first, last = "", 0, 0
    for index, tag in enumerate(tags):
        if tag == OUTSIDE:
            continue
        prefix, kind = split_label(tag)
        if kind != open_kind or last != index - 1 or prefix in _BEGINNING:
            if open_kind:
                runs.append(EntityRun(open_kind, first, last))
            open_kind, first = kind, index
        last = index
    if open_kind:
        runs.append(EntityRun(open_kind, first, last))
    return runs


def pad(windows: Sequence[Window], pad_token_id: int) -> Batch:
    """Stack windows into one right-padded batch."""
    if len(windows) == 1:  # nothing to pad
        ids = np.array([windows[0].input_ids], np.int64)
        return Batch(ids, np.ones(ids.shape, np.int64), np.array([windows[0].token_type_ids], np.int64))
    width = max(len(window.input_ids) for window in windows)
    shape = (len(windows), width)
    batch = Batch(np.full(shape, pad_token_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64))
    for row, window in enumerate(windows):
        length = len(window.input_ids)
        batch.input_ids[row, :length] = window.input_ids
        batch.attention_mask[row, :length] = 1
        batch.token_type_ids[row, :length] = window.token_type_ids
    return batch


def tag(model: TokenClassifier, texts: Sequence[str], batch_size: int = 32, workers: int = 1) -> list[TaggedQuery]:
    """Tag queries, at most `batch_size` rows at a time.

    Rows of similar length share a batch, so that little of it is padding; the answers come in the
    order of `texts`. So many `workers` run batches at the same time; the batches, and so the answers, are the same.
    """
    return tag_encoded(model, model.encode(texts), batch_size, workers)


def _answers(model: TokenClassifier, batches: Iterable[Batch], workers: int) -> Iterable[NDArray[np.float32]]:
    if workers == 1:
        return map(model.logits, batches)
    from concurrent.futures import ThreadPoolExecutor  # not at the start of a program that serves

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(model.logits, batches))


def tag_encoded(
    model: TokenClassifier, queries: Sequence[EncodedQuery], batch_size: int = 32, workers: int = 1
) -> list[TaggedQuery]:
    """Tag queries that are encoded already; see `tag`."""
    if batch_size < 1:
        message = f"batch_size must be 1 or more, not {batch_size}"
        raise ValueError(message)
    if len(queries) == 1 and (alone := _tagged_alone(model, queries[0])) is not None:
        return [alone]
    logits = [np.zeros((len(query.words), len(model.labels)), np.float32) for query in queries]
    rows = [
        (len(window.input_ids), index, window)
        for index, query in enumerate(queries)
        for window in query.windows
        if window.heads
    ]
    rows.sort(key=lambda row: row[:2])
    chunks = [rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size)]
    batches = (pad([window for _, _, window in chunk], model.pad_token_id) for chunk in chunks)
    for chunk, answer in zip(chunks, _answers(model, batches, workers), strict=True):
        for row, (_, index, window) in enumerate(chunk):
            logits[index][window.words] = answer[row, window.heads]
    return [TaggedQuery(query.text, query.words, found) for query, found in zip(queries, logits, strict=True)]


def _tagged_alone(model: TokenClassifier, query: EncodedQuery) -> TaggedQuery | None:
    """Tag the usual query, one window with all words in it, without a batch around it; None if it is another."""
    if len(query.windows) != 1:
        return None
    (window,) = query.windows
    if not window.heads or window.words != list(range(len(query.words))):
        return None
    logits = model.logits(pad(query.windows, model.pad_token_id))[0, window.heads]
    return TaggedQuery(query.text, query.words, logits)
