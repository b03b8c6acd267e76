"""A variant on lengths from one token to more than the model reads: nothing may be lost in silence."""

from __future__ import annotations

from dataclasses import dataclass

from harness.candidate import Candidate
from harness.errors import ArtifactError, one_line
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.tagging import Batch, LabelledSet, pad

from .batches import lengths_to_judge, rows_of_length, sample_of
from .comparison import LARGEST, Logits, ask, pooled_agreement, worst_position
from .long_queries import is_read_alike, long_queries

_SAMPLE = 96
# Rows of other content for each length: in one alone, rounding where the model is unsure looks like a lost position.
_CONTENTS = 3
# Where the difference is half of the logits themselves in every row, a position is lost, not rounded.
_LOST = 0.5


def test_lengths(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """Rows of 1 token, of the model's maximum, and of lengths between answer as the reference does, at every position."""
    windows = sample_of(reference, labelled_set, _SAMPLE).windows
    lengths = lengths_to_judge(windows, reference.checkpoint.maximum_tokens)
    rows = [rows_of_length(windows, length, _CONTENTS) for length in lengths]
    ragged = [each[0] for each in rows[:-1]] or rows[0]  # all lengths but the longest in one batch
    asked, failed = ask(reference, model, [pad(each, reference.pad_token_id) for each in [*rows, ragged]])
    found = [each.comparison for each in asked]
    worst = max((each.maximum for each in found), default=LARGEST)
    details = {"failures": failed, "lengths": lengths}
    record_measure("failed_shapes", len(failed), unit=Unit.COUNT, details=details)
    record_measure("length_logit_difference", worst, unit=Unit.LOGIT)
    record_measure("length_label_agreement", pooled_agreement(found), unit=Unit.SHARE)
    by_length = {
        str(each.batch.input_ids.shape[1]): each.worst_position for each in asked if each.batch.attention_mask.all()
    }
    worst = LARGEST if failed else max(by_length.values())
    record_measure("worst_position_difference", worst, unit=Unit.RATIO, details={"lengths": by_length})


@dataclass(frozen=True, slots=True)
class Overlong:
    """What became of rows that are one token longer than the model reads; `None` for refused."""

    reference: Logits | None
    variant: Logits | None
    reasons: dict[str, str]

    @property
    def is_silent(self) -> bool:
        """Whether the variant answers where the reference refuses, or loses positions that the reference answers for."""
        if self.variant is None:
            return False
        return self.reference is None or worst_position(self.reference, self.variant) > _LOST


def ask_overlong(reference: Reference, model: Candidate, batch: Batch) -> Overlong:
    """Run rows that are too long through both models."""
    reasons: dict[str, str] = {}
    expected = answer = None
    try:
        expected = reference.logits(batch)
    except (IndexError, RuntimeError, ValueError) as err:  # what PyTorch raises past the end of a table of positions
        reasons["reference"] = one_line(err)
    try:
        answer = model.logits(batch)
    except ArtifactError as err:
        reasons["variant"] = one_line(err)
    return Overlong(expected, answer, reasons)


def test_overlong_rows(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """A row of more tokens than the model reads is refused aloud, or answered to its end; never clipped in silence."""
    windows = sample_of(reference, labelled_set, _SAMPLE).windows
    rows = rows_of_length(windows, reference.checkpoint.maximum_tokens + 1, _CONTENTS)
    overlong = ask_overlong(reference, model, pad(rows, reference.pad_token_id))
    count = len(rows) if overlong.is_silent else 0
    record_measure("silent_overlong_rows", count, unit=Unit.COUNT, details={"refused": overlong.reasons})


def test_long_queries(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """A query longer than the model's maximum is read to its last word, as the reference reads it."""
    texts = long_queries(reference, labelled_set.texts, reference.checkpoint.maximum_tokens)
    pairs = list(zip(reference.encode(texts), model.encode(texts), strict=True))
    lost = [left for left, right in pairs if not is_read_alike(left, right)]
    details = {"windows": [[len(left.windows), len(right.windows)] for left, right in pairs]}
    record_measure("truncated_queries", len(lost), unit=Unit.COUNT, details=details)
