"""Logits, labels and entities of a variant on every labelled query, beside the reference's."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.candidate import Candidate
from harness.errors import one_line
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.serving import Runtime
from harness.tagging import LabelledSet, TaggedQuery

from .comparison import compare_words, non_finite
from .divergence import LocalisationError, locate, worst_short_query
from .ledger import entity_changes, entity_details, flip_details, flips


def test_tokenization(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """The lean tokenizer cuts every query into the same tokens and words as transformers does."""
    texts = labelled_set.texts
    pairs = zip(reference.encode(texts), model.encode(texts), strict=True)
    differing = [text for text, (left, right) in zip(texts, pairs, strict=True) if left != right]
    record_measure("tokenization_differences", len(differing), unit=Unit.COUNT, details={"queries": differing[:10]})


def test_logits(
    reference: Reference,
    model: Candidate,
    reference_answers: list[TaggedQuery],
    answers: list[TaggedQuery],
    record_measure: RecordMeasure,
) -> None:
    """Logits differ from the reference's within limits, and all are finite; where they part is said in the details."""
    comparison = compare_words(reference_answers, answers)
    p99 = float(np.quantile(comparison.differences, 0.99)) if comparison.differences.size else 0.0
    parting = {"first_divergence": _first_divergence(reference, model, reference_answers, answers)}
    record_measure("compared_words", len(comparison.reference), unit=Unit.COUNT)
    record_measure("non_finite_logits", non_finite(answers), unit=Unit.COUNT)
    record_measure("max_logit_difference", comparison.maximum, unit=Unit.LOGIT, details=parting)
    record_measure("p99_logit_difference", p99, unit=Unit.LOGIT)
    record_measure("mean_logit_difference", comparison.mean, unit=Unit.LOGIT)
    record_measure("relative_logit_difference", comparison.relative, unit=Unit.RATIO)


def _first_divergence(
    reference: Reference, model: Candidate, reference_answers: list[TaggedQuery], answers: list[TaggedQuery]
) -> dict[str, Any]:
    """Say where the variant leaves the reference, or why that cannot be said; it judges nothing, so it fails nothing.

    The graph's inner values are onnxruntime's, whatever gave the answers.
    """
    try:
        query = worst_short_query(reference, reference_answers, answers)
        return {**locate(reference, model, query).to_json(), "graph_run_by": Runtime.ONNXRUNTIME.value}
    except LocalisationError as err:
        return {"not_located": one_line(err)}


def test_labels(
    reference: Reference,
    model: Candidate,
    reference_answers: list[TaggedQuery],
    answers: list[TaggedQuery],
    record_measure: RecordMeasure,
) -> None:
    """Words keep their labels and queries their entities; a label that changes was never a sure one."""
    changed = flips(reference_answers, answers, reference.labels, model.labels)
    words = sum(len(answer.words) for answer in reference_answers)
    others = entity_changes(reference_answers, answers, reference.labels, model.labels)
    confident = sum(flip.is_confident for flip in changed)
    record_measure("label_agreement", 1 - len(changed) / max(words, 1), unit=Unit.SHARE, details=flip_details(changed))
    same = 1 - len(others) / max(len(answers), 1)
    record_measure("entity_agreement", same, unit=Unit.SHARE, details=entity_details(others))
    record_measure("confident_flips", confident, unit=Unit.COUNT)
    record_measure("largest_flipped_margin", changed[0].margin if changed else 0.0, unit=Unit.LOGIT)
