"""Strict entity F1 of a variant on labelled queries, beside the reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from harness.candidate import Candidate
from harness.checkpoint import entity_types
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.scoring import Counts, TagPair, count, loss_bounds, strict_tags, tag_pair
from harness.tagging import LabelledSet, TaggedQuery

# Below so many gold entities, one wrong entity moves a type's F1 by more than a percentage point.
_ENOUGH_SUPPORT = 100
# The types below that, taken together.
_RARER = "(rarer types)"


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
def variant_pairs(model: Candidate, labelled_set: LabelledSet, answers: list[TaggedQuery]) -> list[TagPair]:
    """Lay the variant's answers beside the gold labels."""
    return _pairs(labelled_set, answers, model.labels)


def test_entity_f1(
    variant_pairs: list[TagPair], reference_counts: Counts, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """The variant's strict F1, overall and per type, and how much it loses to the reference."""
    counts = count(variant_pairs, reference_counts.types)
    bounds = loss_bounds(reference_counts, counts)
    types = {
        kind: {
            "support": counts.support[kind],
            "f1": counts.by_type[kind],
            "reference_f1": reference_counts.by_type[kind],
            "loss_bound": bounds[kind],
        }
        for kind in counts.by_type
    }
    details = {"types": types, "files": _by_file(labelled_set, counts)}
    record_measure("labelled_queries", len(labelled_set.queries), unit=Unit.COUNT)
    record_measure("f1_micro", counts.micro, unit=Unit.F1, details=details)
    record_measure("f1_macro", counts.macro, unit=Unit.F1)
    record_measure("f1_micro_loss", reference_counts.micro - counts.micro, unit=Unit.F1)
    record_measure("f1_micro_loss_bound", bounds[""], unit=Unit.F1)
    _record_worst_type(_judged_types(reference_counts, counts, bounds), record_measure)


@dataclass(frozen=True, slots=True)
class JudgedType:
    """An entity type, or the rarer ones together, with enough gold entities to be judged by itself."""

    name: str
    f1: float
    loss: float
    loss_bound: float


def _judged_types(reference: Counts, variant: Counts, bounds: Mapping[str, float]) -> list[JudgedType]:
    """List the types that the data can judge.

    Rarer types are judged together, if together they are enough or if there is nothing else: by itself, a type of
    three entities would reject a model for a single one.
    """
    frequent = [kind for kind, support in reference.support.items() if support >= _ENOUGH_SUPPORT]
    rarer = [kind for kind in reference.types if kind not in frequent]
    judged = [_judged(kind, reference, variant, bounds[kind]) for kind in frequent]
    support = sum(reference.support[kind] for kind in rarer)
    if support >= _ENOUGH_SUPPORT or not judged:
        left, right = _together(reference, rarer), _together(variant, rarer)
        judged.append(_judged(_RARER, left, right, loss_bounds(left, right)[_RARER]))
    return judged


def _together(counts: Counts, kinds: Sequence[str]) -> Counts:
    """Count types as if they were one."""
    positions = [counts.types.index(kind) for kind in kinds]
    return Counts((_RARER,), counts.table[:, positions].sum(axis=1, keepdims=True))


def _judged(kind: str, reference: Counts, variant: Counts, bound: float) -> JudgedType:
    was, now = (counts.by_type.get(kind, 0.0) for counts in (reference, variant))
    return JudgedType(kind, now, was - now, bound)


def _record_worst_type(judged: Sequence[JudgedType], record_measure: RecordMeasure) -> None:
    losses = {each.name: each.loss for each in judged}
    bounds = {each.name: each.loss_bound for each in judged}
    record_measure("lowest_type_f1", min(each.f1 for each in judged), unit=Unit.F1)
    record_measure("worst_type_f1_loss", max(losses.values()), unit=Unit.F1, details={"losses": losses})
    record_measure("worst_type_f1_loss_bound", max(bounds.values()), unit=Unit.F1, details={"bounds": bounds})


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
