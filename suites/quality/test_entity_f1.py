"""Strict entity F1 of a variant on labelled queries, beside the reference's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harness.checkpoint import entity_types
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.scoring import Counts, TagPair, count, loss_bounds, strict_tags, tag_pair
from harness.tagging import LabelledSet, TaggedQuery

# Below so many gold entities, one entity more or less moves a type's F1 by more than a percentage point.
_ENOUGH_SUPPORT = 50


def _pairs(labelled: LabelledSet, answers: Sequence[TaggedQuery], labels: Sequence[str]) -> list[TagPair]:
    return [
        tag_pair(query, answer.words, strict_tags([labels[index] for index in answer.label_ids], labels))
        for query, answer in zip(labelled.queries, answers, strict=True)
    ]


def _types(labelled: LabelledSet, labels: Sequence[str]) -> list[str]:
    return sorted({*labelled.entity_types, *entity_types(tuple(labels))})


@pytest.fixture(scope="session")
def reference_counts(reference: Reference, labelled_set: LabelledSet, reference_answers: list[TaggedQuery]) -> Counts:
    """Count what the reference gets right."""
    types = _types(labelled_set, reference.labels)
    return count(_pairs(labelled_set, reference_answers, reference.labels), types)


@pytest.fixture(scope="session")
def variant_pairs(model: Reference, labelled_set: LabelledSet, answers: list[TaggedQuery]) -> list[TagPair]:
    """Lay the variant's answers beside the gold labels."""
    return _pairs(labelled_set, answers, model.labels)


def test_entity_f1(
    variant_pairs: list[TagPair], reference_counts: Counts, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """The variant's strict F1, overall and per type, and how much it loses to the reference."""
    counts = count(variant_pairs, reference_counts.types)
    bounds = loss_bounds(reference_counts, counts)
    supported = [kind for kind, support in counts.support.items() if support >= _ENOUGH_SUPPORT] or list(counts.by_type)
    details = {
        kind: {
            "support": counts.support[kind],
            "f1": counts.by_type[kind],
            "reference_f1": reference_counts.by_type[kind],
            "loss_bound": bounds[kind],
        }
        for kind in counts.by_type
    }
    losses = {kind: reference_counts.by_type[kind] - counts.by_type[kind] for kind in supported}
    record_measure("labelled_queries", len(labelled_set.queries), unit=Unit.COUNT)
    record_measure(
        "f1_micro", counts.micro, unit=Unit.F1, details={"types": details, "files": _by_file(labelled_set, counts)}
    )
    record_measure("f1_macro", counts.macro, unit=Unit.F1)
    record_measure("lowest_type_f1", min((counts.by_type[kind] for kind in supported), default=0.0), unit=Unit.F1)
    record_measure("f1_micro_loss", reference_counts.micro - counts.micro, unit=Unit.F1)
    record_measure("f1_micro_loss_bound", bounds[""], unit=Unit.F1)
    record_measure("worst_type_f1_loss", max(losses.values(), default=1.0), unit=Unit.F1, details={"losses": losses})


def _by_file(labelled: LabelledSet, counts: Counts) -> dict[str, float]:
    sources = [query.source for query in labelled.queries]
    found = {}
    for source in dict.fromkeys(sources):
        rows = [row for row, name in enumerate(sources) if name == source]
        found[source] = Counts(counts.types, counts.table[rows]).micro
    return found


def test_token_accuracy(variant_pairs: list[TagPair], record_measure: RecordMeasure) -> None:
    """The share of pieces with the right tag: for orientation; mostly O, it hides what F1 shows."""
    right = sum(gold == found for pair in variant_pairs for gold, found in zip(pair.gold, pair.predicted, strict=True))
    pieces = sum(len(pair.gold) for pair in variant_pairs)
    record_measure("token_accuracy", right / max(pieces, 1), unit=Unit.SHARE)
