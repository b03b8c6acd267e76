"""A variant in batches and with paddings of all kinds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.candidate import Candidate
from harness.errors import ArtifactError, one_line
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.tagging import Batch, EncodedQuery, LabelledSet, TaggedQuery, Window, pad, tag_encoded

from .batches import in_company, left_padded, sample_of, tag_padded, widened, without_rows
from .comparison import LARGEST, Comparison, Logits, ask, compare_words, pooled_agreement

_SAMPLE = 96
_BATCH_SIZES = (8, 32)
_EXTRA_PADDING = 40
_PADDED = 32
# A row of the model's maximum costs as much as thirty queries.
_PADDED_TO_MAXIMUM = 4
_LEFT_PADDED = 16
_COLUMNS_MORE = 7
_MASKED_BATCH = 6


def test_company(
    reference: Reference,
    reference_answers: list[TaggedQuery],
    model: Candidate,
    labelled_set: LabelledSet,
    record_measure: RecordMeasure,
) -> None:
    """A query is answered the same alone, with other batch mates, and with more padding; and as the reference does."""
    sample = sample_of(reference, labelled_set, _SAMPLE)
    queries = model.encode(sample.texts)
    try:
        alone = tag_encoded(model, queries, 1)
        mates = list(in_company(model, queries, _BATCH_SIZES))
        padded = _padded(model, queries)
    except ArtifactError as err:
        failure = {"failure": one_line(err)}
        record_measure("batch_reference_logit_difference", LARGEST, unit=Unit.LOGIT, details=failure)
        record_measure("batch_logit_difference", LARGEST, unit=Unit.LOGIT, details=failure)
        record_measure("batch_dependent_queries", len(queries), unit=Unit.COUNT, details=failure)
        return
    expected = [reference_answers[position] for position in sample.positions]
    from_reference = max(compare_words(expected, found).maximum for found in (alone, *mates))
    record_measure("batch_reference_logit_difference", from_reference, unit=Unit.LOGIT)
    _record_own_differences(alone, [*mates, *padded], record_measure)


def _padded(model: Candidate, queries: Sequence[EncodedQuery]) -> list[list[TaggedQuery]]:
    longest = model.maximum_tokens
    return [
        tag_padded(model, queries[:_PADDED], _EXTRA_PADDING, longest),
        tag_padded(model, queries[:_PADDED_TO_MAXIMUM], longest, longest),
    ]


def _record_own_differences(
    alone: Sequence[TaggedQuery], others: Sequence[Sequence[TaggedQuery]], record_measure: RecordMeasure
) -> None:
    pairs = [(alone[: len(other)], other) for other in others]
    worst = max(compare_words(left, right).maximum for left, right in pairs)
    changed = sorted({text for left, right in pairs for text in _changed(left, right)})
    record_measure("batch_logit_difference", worst, unit=Unit.LOGIT)
    record_measure("batch_dependent_queries", len(changed), unit=Unit.COUNT, details={"queries": changed[:10]})


def _changed(alone: Sequence[TaggedQuery], other: Sequence[TaggedQuery]) -> list[str]:
    return [
        left.text
        for left, right in zip(alone, other, strict=True)
        if not np.array_equal(left.label_ids, right.label_ids)
    ]


def test_left_padding(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """Padding in front of a row, or on both sides, changes nothing that it does not change in the reference."""
    windows = sample_of(reference, labelled_set, _LEFT_PADDED).windows
    batches = _padded_in_front(windows, reference.pad_token_id, reference.checkpoint.maximum_tokens)
    asked, failed = ask(reference, model, batches)
    found = [each.comparison for each in asked]
    padded = [] if failed else found[1:]
    worst = max((each.maximum for each in padded), default=LARGEST)
    record_measure("left_padding_logit_difference", worst, unit=Unit.LOGIT, details={"failures": failed})
    record_measure("left_padding_label_agreement", pooled_agreement(padded), unit=Unit.SHARE)
    # a model that counts positions from the left is moved by such padding; the reference says how much
    own = max((Comparison(found[0].variant, each.variant).maximum for each in padded), default=LARGEST)
    of_reference = max((Comparison(found[0].reference, each.reference).maximum for each in padded), default=LARGEST)
    excess = max((_excess(found[0], each) for each in padded), default=LARGEST)
    details = {"reference": of_reference}
    record_measure("left_padding_sensitivity", own, unit=Unit.LOGIT, details=details)
    record_measure("left_padding_excess_sensitivity", excess, unit=Unit.LOGIT)


def _padded_in_front(windows: Sequence[Window], pad_token_id: int, longest: int) -> list[Batch]:
    """Pad the same rows behind, in front (ragged), in front by some columns more, and on both sides."""
    behind, front = pad(windows, pad_token_id), left_padded(windows, pad_token_id)
    columns = min(_COLUMNS_MORE, longest - front.input_ids.shape[1])
    both = widened(front, columns, pad_token_id)
    return [behind, front, Batch(*(np.roll(array, columns, axis=1) for array in both)), both]


def _excess(unpadded: Comparison, padded: Comparison) -> float:
    """Say by how much padding moves the variant's logits elsewhere than it moves the reference's, on average."""
    return Comparison(padded.reference - unpadded.reference, padded.variant - unpadded.variant).mean


def test_masked_rows(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """A row that is masked as a whole gives finite logits and leaves the other rows of its batch as they are."""
    windows = sample_of(reference, labelled_set, _MASKED_BATCH).windows
    batch = pad(windows, reference.pad_token_id)
    last = len(windows) - 1
    choices = ([0], [last], [0, last], list(range(len(windows))))
    try:
        whole = model.logits(batch)
        found = [model.logits(without_rows(batch, masked)) for masked in choices]
    except ArtifactError as err:
        details = {"failure": one_line(err)}
        record_measure("masked_row_non_finite_logits", batch.input_ids.size, unit=Unit.COUNT, details=details)
        record_measure("masked_row_logit_difference", LARGEST, unit=Unit.LOGIT, details=details)
        return
    wrong = sum(int((~np.isfinite(logits)).sum()) for logits in found)
    worst = max(_beside(whole, logits, masked) for logits, masked in zip(found, choices, strict=True))
    record_measure("masked_row_non_finite_logits", wrong, unit=Unit.COUNT)
    record_measure("masked_row_logit_difference", worst, unit=Unit.LOGIT)


def _beside(whole: Logits, found: Logits, masked: Sequence[int]) -> float:
    """Largest difference in the rows that are not masked."""
    others = np.setdiff1d(np.arange(len(whole)), masked)
    return Comparison(whole[others].reshape(-1, 1), found[others].reshape(-1, 1)).maximum
