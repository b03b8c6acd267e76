"""Strict entity F1 as seqeval counts it, on any tokenizer's words, and how sure a difference is.

Strict means IOB2: an entity counts if its type and both ends are right and its first word is tagged
`B-`. Labels after labels are compared, not decoded spans, so a model that lost its `B-` scores 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from seqeval.scheme import IOB2, Entities

from harness.tagging import OUTSIDE, EntitySpan, LabelledQuery, Word, entity_runs, split_label

_BOOTSTRAP_SAMPLES = 2000
_SEED = 20261123
# Where predictions of types go that the reference does not know: wrong, and no type's own.
UNKNOWN_TYPE = "(unknown)"


@dataclass(frozen=True, slots=True)
class TagPair:
    """Gold and predicted tags of one query over the same pieces of text."""

    gold: tuple[str, ...]
    predicted: tuple[str, ...]


def tag_pair(query: LabelledQuery, words: Sequence[Word], predicted: Sequence[str]) -> TagPair:
    """Lay gold spans and predicted word tags over common pieces of the text.

    Pieces are the words, cut further where a gold span begins or ends inside one, and any visible part
    of a gold span that no word covers. So a gold entity that the words cannot express, or that the model
    never saw, counts as missed.
    """
    pieces = _pieces(query, words)
    gold = _gold_tags(pieces, query.spans)
    found = []
    previous = None
    for _, _, index in pieces:
        label = OUTSIDE if index is None else predicted[index]
        if index is not None and index == previous and label != OUTSIDE:
            label = f"I-{split_label(label)[1]}"
        found.append(label)
        previous = index
    return TagPair(tuple(gold), tuple(found))


def _pieces(query: LabelledQuery, words: Sequence[Word]) -> list[tuple[int, int, int | None]]:
    cuts = sorted({edge for span in query.spans for edge in (span.start, span.end)})
    pieces: list[tuple[int, int, int | None]] = []
    for index, (start, end) in enumerate(words):
        edges = [start, *(cut for cut in cuts if start < cut < end), end]
        pieces += [(left, right, index) for left, right in pairwise(edges)]
    for span in query.spans:
        gaps = list(_gaps(span, words))
        unread = [gap for gap in gaps if gap == (span.start, span.end) or _is_visible(query.text[gap[0] : gap[1]])]
        pieces += [(start, end, None) for start, end in unread]
    return sorted(pieces, key=lambda piece: piece[:2])


def _gaps(span: EntitySpan, words: Sequence[Word]) -> Iterator[tuple[int, int]]:
    """Find what of a span no word covers."""
    reached = span.start
    for start, end in words:
        if start < span.end and end > reached:
            if start > reached:
                yield reached, start
            reached = end
    if reached < span.end:
        yield reached, span.end


def _is_visible(text: str) -> bool:
    """Whether there is more than white space and characters that tokenizers drop."""
    return any(character.isprintable() and not character.isspace() for character in text)


def _gold_tags(pieces: Sequence[tuple[int, int, int | None]], spans: Sequence[EntitySpan]) -> list[str]:
    """Tag each piece; the first of a span is its beginning, also where white space stands before it in the span."""
    tags = []
    begun: set[EntitySpan] = set()
    for start, end, _ in pieces:
        span = next((span for span in spans if start < span.end and end > span.start), None)
        if span is None:
            tags.append(OUTSIDE)
        else:
            tags.append(f"{'I' if span in begun else 'B'}-{span.label}")
            begun.add(span)
    return tags


def strict_tags(tags: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return the tags as they are if the label set is IOB2, else (IO, IOBES …) the entities in IOB2."""
    if any(label.startswith("B-") for label in labels) and all(label[:2] in {"B-", "I-", OUTSIDE} for label in labels):
        return list(tags)
    found = [OUTSIDE] * len(tags)
    for kind, first, last in entity_runs(tags):
        found[first : last + 1] = [f"B-{kind}", *[f"I-{kind}"] * (last - first)]
    return found


@dataclass(frozen=True, slots=True)
class Counts:
    """Right, predicted and gold entities of each query and type: int64, (queries, types, 3)."""

    types: tuple[str, ...]
    table: NDArray[np.int64]

    def of_types(self) -> NDArray[np.int64]:
        """Sum over the queries: (types, 3)."""
        return np.asarray(self.table.sum(axis=0))

    @property
    def micro(self) -> float:
        """F1 over all entities."""
        return float(f1(self.of_types().sum(axis=0)))

    @property
    def by_type(self) -> dict[str, float]:
        """F1 of each type that has a gold entity."""
        totals = self.of_types()
        return {kind: float(f1(row)) for kind, row in zip(self.types, totals, strict=True) if row[2]}

    @property
    def macro(self) -> float:
        """Mean F1 of the types that have a gold entity."""
        return float(np.mean(list(self.by_type.values()))) if self.by_type else 0.0

    @property
    def support(self) -> dict[str, int]:
        """Gold entities of each type."""
        return {kind: int(row[2]) for kind, row in zip(self.types, self.of_types(), strict=True)}


def f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 from (…, 3) right, predicted and gold: 2·right / (predicted + gold), and 0 where both are 0, as in seqeval."""
    below = counts[..., 1] + counts[..., 2]
    return np.asarray(2.0 * counts[..., 0] / np.maximum(below, 1))


def count(pairs: Sequence[TagPair], types: Sequence[str]) -> Counts:
    """Count entities with seqeval's own reading of IOB2 in strict mode.

    Predicted types that are not in `types` are counted under `UNKNOWN_TYPE`, as false ones.
    """
    types = [*(kind for kind in types if kind != UNKNOWN_TYPE), UNKNOWN_TYPE]
    index = {kind: position for position, kind in enumerate(types)}
    table = np.zeros((len(pairs), len(types), 3), np.int64)
    gold = Entities([list(pair.gold) for pair in pairs], IOB2).entities
    found = Entities([list(pair.predicted) for pair in pairs], IOB2).entities
    for row, (expected, predicted) in enumerate(zip(gold, found, strict=True)):
        wanted = {entity.to_tuple()[1:] for entity in expected}
        for entity in predicted:
            position = index.get(entity.tag, index[UNKNOWN_TYPE])
            table[row, position, 1] += 1
            table[row, position, 0] += entity.to_tuple()[1:] in wanted
        for entity in expected:
            table[row, index[entity.tag], 2] += 1
    return Counts(tuple(types), table)


def loss_bounds(reference: Counts, variant: Counts, *, confidence: float = 0.95) -> Mapping[str, float]:
    """Bound from above how much F1 the variant loses to the reference, overall and per type.

    One-sided percentile bound of a paired bootstrap over queries (Efron and Tibshirani 1993, ch. 13;
    paired as in Koehn 2004): both models are scored on the same resampled queries. Seeded.

    Returns:
        The bound of the micro-F1 loss under the key `""`, and of each type's loss under its name.
    """
    queries = reference.table.shape[0]
    draws = np.random.default_rng(_SEED).multinomial(queries, np.full(queries, 1 / queries), size=_BOOTSTRAP_SAMPLES)
    tables = [draws @ counts.table.reshape(queries, -1) for counts in (reference, variant)]
    per_type = [table.reshape(_BOOTSTRAP_SAMPLES, len(reference.types), 3) for table in tables]
    micro = f1(per_type[0].sum(axis=1)) - f1(per_type[1].sum(axis=1))
    each = f1(per_type[0]) - f1(per_type[1])
    bounds = {"": float(np.quantile(micro, confidence))}
    for position, kind in enumerate(reference.types):
        bounds[kind] = float(np.quantile(each[:, position], confidence))
    return bounds
