"""A variant at other levels of onnxruntime's graph optimization than the one it is served at (onnxruntime#11576).

Where another runtime serves it, its answers are held against onnxruntime's at these levels, the file as it is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime

from harness.candidate import Candidate
from harness.errors import one_line
from harness.evidence import Unit
from harness.plugin import RecordMeasure
from harness.reference import Reference
from harness.tagging import Batch, LabelledSet, pad

from .batches import sample_of
from .comparison import LARGEST, Comparison, Logits
from .sessions import open_session, run_logits

_SAMPLE = 32
_BATCH_SIZE = 8
# The levels below the served one; extended optimizations are those of the served level but for memory layouts.
_LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC")


def test_optimization(
    reference: Reference, model: Candidate, labelled_set: LabelledSet, record_measure: RecordMeasure
) -> None:
    """The optimizations of the served level leave the model the function that the file describes."""
    windows = sorted(sample_of(reference, labelled_set, _SAMPLE).windows, key=lambda window: len(window.input_ids))
    batches = [
        pad(windows[first : first + _BATCH_SIZE], reference.pad_token_id)
        for first in range(0, len(windows), _BATCH_SIZE)
    ]
    path = model.artifact.model_path(model.variant)
    served = [model.logits(batch) for batch in batches]
    worst, details = 0.0, dict[str, float | str]()
    for level in _LEVELS:
        try:
            session = open_session(path, getattr(onnxruntime.GraphOptimizationLevel, level))
            found = [run_logits(session, batch) for batch in batches]
        except Exception as err:  # onnxruntime raises whatever it likes
            worst, details[level] = LARGEST, one_line(err)
            continue
        details[level] = difference = _difference(batches, served, found)
        worst = max(worst, difference)
    found_by = {"levels": details, "served_by": model.runtime.value}
    record_measure("optimization_logit_difference", worst, unit=Unit.LOGIT, details=found_by)


def _difference(batches: Sequence[Batch], served: Sequence[Logits], found: Sequence[Logits]) -> float:
    kept = [batch.attention_mask.astype(bool) for batch in batches]
    return max(
        Comparison(left[mask], right[mask]).maximum for left, right, mask in zip(served, found, kept, strict=True)
    )
