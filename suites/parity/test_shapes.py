"""A variant on batches, lengths and paddings of all kinds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from harness.candidate import Candidate
from harness.errors import ArtifactError
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.tagging import Batch, LabelledSet, TaggedQuery, Window, pad, tag

from .comparison import Comparison, compare_batch, compare_words, left_padded, widened

_SAMPLE = 96
_BATCH_SIZES = (8, 32)
_EXTRA_PADDING = 40
_ODD_LENGTHS = (1, 2, 3, 16, 128)


def _sample(texts: Sequence[str]) -> list[str]:
    """Take queries evenly from the whole set, so that every file and length is among them."""
    step = max(1, len(texts) // _SAMPLE)
    return list(texts[::step])[:_SAMPLE]


def test_company(model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure) -> None:
    """A query is answered the same alone, with other batch mates, and with more padding."""
    texts = _sample(labelled_set.texts)
    alone = tag(model, texts, batch_size=1)
    others = [tag(model, texts, batch_size=size) for size in _BATCH_SIZES]
    others.append(_with_padding(model, texts))
    differences = [compare_words(alone, other).maximum for other in others]
    changed = [
        left.text
        for other in others
        for left, right in zip(alone, other, strict=True)
        if not np.array_equal(left.label_ids, right.label_ids)
    ]
    record_measure("batch_logit_difference", max(differences), unit=Unit.LOGIT)
    record_measure(
        "batch_dependent_queries", len(set(changed)), unit=Unit.COUNT, details={"queries": sorted(set(changed))[:10]}
    )


def _with_padding(model: Candidate, texts: Sequence[str]) -> list[TaggedQuery]:
    """Tag each query alone, in a row that is mostly padding."""
    answers = []
    for query in model.encode(texts):
        logits = np.zeros((len(query.words), len(model.labels)), np.float32)
        for window in query.windows:
            room = model.maximum_tokens - len(window.input_ids)
            batch = widened(pad([window], model.pad_token_id), min(_EXTRA_PADDING, room), model.pad_token_id)
            if window.heads:
                logits[window.words] = model.logits(batch)[0, window.heads]
        answers.append(TaggedQuery(query.text, query.words, logits))
    return answers


def _windows_of_length(reference: Reference, texts: Sequence[str], length: int) -> Window:
    """Make one row of exactly `length` tokens out of real queries."""
    ids: list[int] = []
    types: list[int] = []
    for query in reference.encode(texts):
        for window in query.windows:
            ids += window.input_ids
            types += window.token_type_ids
        if len(ids) >= length:
            break
    repeats = length // max(len(ids), 1) + 1
    return Window((ids * repeats)[:length], (types * repeats)[:length], [], [])


def _lengths(reference: Reference) -> list[int]:
    longest = reference.checkpoint.maximum_tokens
    return [length for length in _ODD_LENGTHS if length < longest] + [longest]


def _compared(reference: Reference, model: Candidate, batches: Iterator[Batch]) -> tuple[list[Comparison], list[str]]:
    """Compare batch by batch; a batch that the variant cannot run is reported, not raised."""
    found: list[Comparison] = []
    failed: list[str] = []
    for batch in batches:
        try:
            found.append(compare_batch(reference, model, batch))
        except ArtifactError as err:
            failed.append(str(err))
    return found, failed


def test_lengths(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """Rows of 1 token, of the model's maximum, and of lengths between answer as the reference does."""
    texts = _sample(labelled_set.texts)
    rows = [_windows_of_length(reference, texts, length) for length in _lengths(reference)]
    batches = [pad([row], reference.pad_token_id) for row in rows]
    batches.append(pad(rows[:-1], reference.pad_token_id))  # ragged: all lengths but the longest in one batch
    found, failed = _compared(reference, model, iter(batches))
    record_measure("failed_shapes", len(failed), unit=Unit.COUNT, details={"failures": failed})
    record_measure("length_logit_difference", max((each.maximum for each in found), default=_NOTHING), unit=Unit.LOGIT)
    record_measure("length_label_agreement", _agreement(found), unit=Unit.SHARE)


_NOTHING = float(np.finfo(np.float64).max)


def _agreement(found: Sequence[Comparison]) -> float:
    rows = sum(len(each.reference) for each in found)
    return sum(each.agreement * len(each.reference) for each in found) / rows if rows else 0.0


def test_left_padding(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """Padding in front of a row changes nothing that it does not change in the reference."""
    windows = [window for query in reference.encode(_sample(labelled_set.texts)[:16]) for window in query.windows]
    found, failed = _compared(reference, model, iter([left_padded(windows, reference.pad_token_id)]))
    worst = max((each.maximum for each in found), default=_NOTHING)
    record_measure("left_padding_logit_difference", worst, unit=Unit.LOGIT, details={"failures": failed})
    record_measure("left_padding_label_agreement", _agreement(found), unit=Unit.SHARE)


def test_masked_rows(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """A batch with a row that is masked as a whole gives finite logits."""
    windows = [window for query in reference.encode(_sample(labelled_set.texts)[:4]) for window in query.windows]
    batch = pad(windows, reference.pad_token_id)
    batch.attention_mask[0] = 0
    try:
        wrong = int((~np.isfinite(model.logits(batch))).sum())
    except ArtifactError:
        wrong = batch.input_ids.size
    record_measure("masked_row_non_finite_logits", wrong, unit=Unit.COUNT)


def test_long_queries(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """A query longer than the model's maximum is read to its last word, as the reference reads it."""
    longest = reference.checkpoint.maximum_tokens
    text = " ".join(labelled_set.texts)
    ends = [word.end for word in reference.encode([text])[0].words][: longest + longest // 2]
    shortened = text[: ends[-1]]
    (left,), (right,) = reference.encode([shortened]), model.encode([shortened])
    lost = (
        [shortened] if list(left.words) != list(right.words) or _tagged_words(right.windows) < len(right.words) else []
    )
    record_measure("truncated_queries", len(lost), unit=Unit.COUNT)


def _tagged_words(windows: Sequence[Window]) -> int:
    return len({word for window in windows for word in window.words})
