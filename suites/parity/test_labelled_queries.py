"""Logits, labels and entities of a variant on every labelled query, beside the reference's."""

from __future__ import annotations

import numpy as np

from harness.candidate import Candidate
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.tagging import LabelledSet, TaggedQuery

from .comparison import compare_words, entities_agree, flips, non_finite, worst


def test_tokenization(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """The lean tokenizer cuts every query into the same tokens and words as transformers does."""
    texts = labelled_set.texts
    pairs = zip(reference.encode(texts), model.encode(texts), strict=True)
    differing = [text for text, (left, right) in zip(texts, pairs, strict=True) if left != right]
    record_measure("tokenization_differences", len(differing), unit=Unit.COUNT, details={"queries": differing[:10]})


def test_logits(
    reference_answers: list[TaggedQuery], answers: list[TaggedQuery], record_measure: RecordMeasure
) -> None:
    """Logits differ from the reference's within limits, and all are finite."""
    comparison = compare_words(reference_answers, answers)
    differences = comparison.differences
    record_measure("compared_words", len(comparison.reference), unit=Unit.COUNT)
    record_measure("non_finite_logits", non_finite(answers), unit=Unit.COUNT)
    record_measure("max_logit_difference", comparison.maximum, unit=Unit.LOGIT)
    record_measure("p99_logit_difference", float(np.quantile(differences, 0.99)), unit=Unit.LOGIT)
    record_measure("mean_logit_difference", min(float(differences.mean()), _LARGEST), unit=Unit.LOGIT)
    record_measure("relative_logit_difference", comparison.relative, unit=Unit.RATIO)


_LARGEST = float(np.finfo(np.float64).max)


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
    same = [
        entities_agree(left, right, reference.labels, model.labels)
        for left, right in zip(reference_answers, answers, strict=True)
    ]
    record_measure(
        "label_agreement", 1 - len(changed) / max(words, 1), unit=Unit.SHARE, details={"worst": worst(changed)}
    )
    record_measure("entity_agreement", sum(same) / len(same), unit=Unit.SHARE)
    record_measure("largest_flipped_margin", changed[0]["margin"] if changed else 0.0, unit=Unit.LOGIT)
