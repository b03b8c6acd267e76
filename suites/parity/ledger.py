"""The ledger of flips: every label and every entity that changes, with how sure the reference was of it.

A wrong label where the reference was sure is a broken model; where it wavered, it is rounding. Counts nothing as
right or wrong: gold labels are the quality suite's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.tagging import EntitySpan, TaggedQuery

from .comparison import LARGEST, same_words

# Natural logarithm of the odds between the reference's first and second label; 2.0 are odds of 7.4 to 1.
CONFIDENT_MARGIN = 2.0
_WORST = 10
# Enough to see what a broken model does, without an evidence file of many megabytes.
_LONGEST_LEDGER = 1000


@dataclass(frozen=True, slots=True)
class Flip:
    """A word whose label changes, and the reference's margin there."""

    query: str
    word: str
    reference: str
    variant: str
    margin: float

    @property
    def is_confident(self) -> bool:
        """Whether the reference was sure of the label that was lost."""
        return self.margin >= CONFIDENT_MARGIN


@dataclass(frozen=True, slots=True)
class EntityChange:
    """A query whose entities change, with both sides' and the largest margin among its words whose label changes."""

    query: str
    reference: tuple[EntitySpan, ...]
    variant: tuple[EntitySpan, ...]
    margin: float

    def to_json(self) -> dict[str, Any]:
        """Write each entity as its type and text."""
        return {
            "query": self.query,
            "reference": [[span.label, self.query[span.start : span.end]] for span in self.reference],
            "variant": [[span.label, self.query[span.start : span.end]] for span in self.variant],
            "margin": self.margin,
        }


def flips(
    reference: Sequence[TaggedQuery], variant: Sequence[TaggedQuery], labels: Sequence[str], other: Sequence[str]
) -> list[Flip]:
    """List every word whose label changes, most confident first; queries cut differently have no words in common."""
    found = [
        flip
        for left, right in zip(reference, variant, strict=True)
        if same_words(left, right)
        for flip in _flips_of(left, right, labels, other)
    ]
    return sorted(found, key=lambda flip: (-flip.margin, flip.query))


def _flips_of(left: TaggedQuery, right: TaggedQuery, labels: Sequence[str], other: Sequence[str]) -> list[Flip]:
    changed = [
        (word, labels[was], other[now], margin)
        for word, was, now, margin in zip(left.words, left.label_ids, right.label_ids, left.margins, strict=True)
        if labels[was] != other[now]
    ]
    return [
        # a model of one label is infinitely sure of it, which JSON cannot hold
        Flip(left.text, left.text[word.start : word.end], was, now, min(float(margin), LARGEST))
        for word, was, now, margin in changed
    ]


def entity_changes(
    reference: Sequence[TaggedQuery], variant: Sequence[TaggedQuery], labels: Sequence[str], other: Sequence[str]
) -> list[EntityChange]:
    """List every query whose entities change, each model under its own label names, most confident first."""
    found = []
    for left, right in zip(reference, variant, strict=True):
        was, now = tuple(left.spans(labels)), tuple(right.spans(other))
        if was != now:
            margins = [flip.margin for flip in _flips_of(left, right, labels, other)] if same_words(left, right) else []
            found.append(EntityChange(left.text, was, now, max(margins, default=0.0)))
    return sorted(found, key=lambda change: (-change.margin, change.query))


def flip_details(found: Sequence[Flip]) -> dict[str, Any]:
    """Write the ledger for the evidence: the worst ten, and all of it as far as it is kept."""
    kept = [asdict(flip) for flip in found[:_LONGEST_LEDGER]]
    return {"worst": kept[:_WORST], "ledger": kept, "flips": len(found), "left_out": len(found) - len(kept)}


def entity_details(found: Sequence[EntityChange]) -> dict[str, Any]:
    """Write the changed queries for the evidence, as far as they are kept."""
    kept = [change.to_json() for change in found[:_LONGEST_LEDGER]]
    return {"changed": kept, "queries": len(found), "left_out": len(found) - len(kept)}
