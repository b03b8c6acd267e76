"""Batches of all shapes, made of the labelled queries: lengths, paddings, batch mates.

Everything here is settled by the data and the reference's tokenizer alone, never by the candidate, so every
candidate is asked the same. Runs no model, but to tag queries in a given company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.tagging import Batch, EncodedQuery, LabelledSet, TaggedQuery, TokenClassifier, Window, pad, tag_encoded

_SEED = 20261123
_SHORT_LENGTHS = (1, 2, 3)
_LONG_LENGTH = 128


def evenly(count: int, wanted: int) -> list[int]:
    """Pick positions evenly from the whole set, so that every file and length is among them."""
    step = max(1, count // wanted)
    return list(range(0, count, step))[:wanted]


@dataclass(frozen=True, slots=True)
class Sample:
    """Queries from all over the data, by their position in it, and the rows that the reference makes of them."""

    positions: tuple[int, ...]
    texts: tuple[str, ...]
    windows: tuple[Window, ...]


def sample_of(reference: TokenClassifier, labelled_set: LabelledSet, size: int) -> Sample:
    """Take queries evenly from the whole set."""
    positions = evenly(len(labelled_set.queries), size)
    texts = [labelled_set.queries[position].text for position in positions]
    windows = [window for query in reference.encode(texts) for window in query.windows]
    return Sample(tuple(positions), tuple(texts), tuple(windows))


def lengths_to_judge(windows: Sequence[Window], longest: int) -> list[int]:
    """List lengths in tokens: the shortest, that of a typical query, a long one, and the model's maximum."""
    typical = int(np.median([len(window.input_ids) for window in windows]))
    below = {length for length in (*_SHORT_LENGTHS, typical, _LONG_LENGTH) if length < longest}
    return [*sorted(below), longest]


def rows_of_length(windows: Sequence[Window], length: int, count: int) -> list[Window]:
    """Join queries to `count` rows of exactly `length` tokens, each beginning elsewhere in the data."""
    return [_row_of_length(windows, length, first) for first in evenly(len(windows), count)]


def _row_of_length(windows: Sequence[Window], length: int, first: int) -> Window:
    ids: list[int] = []
    types: list[int] = []
    for number in range(length):  # a window has a token at least
        window = windows[(first + number) % len(windows)]
        ids += window.input_ids
        types += window.token_type_ids
        if len(ids) >= length:
            break
    return Window(ids[:length], types[:length], [], [])


def left_padded(windows: Sequence[Window], pad_token_id: int) -> Batch:
    """Stack windows with their padding in front."""
    batch = pad(windows, pad_token_id)
    width = batch.input_ids.shape[1]
    for row, window in enumerate(windows):
        shift = width - len(window.input_ids)
        for array in batch:
            array[row] = np.roll(array[row], shift)
    return batch


def widened(batch: Batch, columns: int, pad_token_id: int) -> Batch:
    """Add padding at the right."""
    extra = ((0, 0), (0, columns))
    return Batch(
        np.pad(batch.input_ids, extra, constant_values=pad_token_id),
        np.pad(batch.attention_mask, extra),
        np.pad(batch.token_type_ids, extra),
    )


def without_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Copy a batch with the mask of some rows all 0."""
    mask = batch.attention_mask.copy()
    mask[list(rows)] = 0
    return batch._replace(attention_mask=mask)


def tag_shuffled(model: TokenClassifier, queries: Sequence[EncodedQuery], batch_size: int) -> list[TaggedQuery]:
    """Tag queries in batches of mates drawn at random, short with long: rows are ragged, and short ones mostly padding."""
    order = np.random.default_rng(_SEED).permutation(len(queries)).tolist()
    found: dict[int, TaggedQuery] = {}
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        found.update(zip(chosen, tag_encoded(model, [queries[index] for index in chosen], batch_size), strict=True))
    return [found[index] for index in range(len(queries))]


def tag_padded(
    model: TokenClassifier, queries: Sequence[EncodedQuery], columns: int, longest: int
) -> list[TaggedQuery]:
    """Tag each query alone, in a row with so many columns of padding more, as far as the model reads."""
    answers = []
    for query in queries:
        logits = np.zeros((len(query.words), len(model.labels)), np.float32)
        for window in query.windows:
            room = longest - len(window.input_ids)
            batch = widened(pad([window], model.pad_token_id), min(columns, room), model.pad_token_id)
            if window.heads:
                logits[window.words] = model.logits(batch)[0, window.heads]
        answers.append(TaggedQuery(query.text, query.words, logits))
    return answers


def in_company(
    model: TokenClassifier, queries: Sequence[EncodedQuery], batch_sizes: Sequence[int]
) -> Iterator[list[TaggedQuery]]:
    """Tag queries in batches of each size, among others of their length, and of the largest, among others of any length."""
    for size in batch_sizes:
        yield tag_encoded(model, queries, size)
    yield tag_shuffled(model, queries, max(batch_sizes))
