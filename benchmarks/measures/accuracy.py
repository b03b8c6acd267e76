"""The accuracy rows: every contender's logits on the labelled queries, as figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import ArtifactError, one_line
from harness.scoring import Counts
from harness.tagging import EncodedQuery, LabelledSet, TaggedQuery, TokenClassifier, tag_encoded
from measures import names
from measures.fidelity import (
    BATCH_SIZES,
    MARGIN_THAT_MATTERS,
    Company,
    companies,
    counts_of,
    differences,
    in_one_window,
    loss_of,
    mean_differences,
    mean_of,
    ratio_of_means,
    tag_left_padded,
)
from measures.result import REFUSED, Result

_SHOWN = 10
_MARGIN = f"with a margin of {MARGIN_THAT_MATTERS:g} logits"


@dataclass(frozen=True, slots=True)
class Yardstick:
    """PyTorch's own answers to the labelled queries.

    Attributes:
        labelled: the queries.
        encoded: the same, cut by PyTorch's tokenizer.
        answers: one query a run.
        counts: the entities in them.
        labels: of each logit.
        longest: the most tokens of a row.
        single: the places of the queries that one row holds.
        left_padded: the answers to those, in batches with the padding in front.
    """

    labelled: LabelledSet
    encoded: Sequence[EncodedQuery]
    answers: Sequence[TaggedQuery]
    counts: Counts
    labels: tuple[str, ...]
    longest: int
    single: Sequence[int]
    left_padded: Sequence[TaggedQuery]

    @property
    def rows(self) -> list[EncodedQuery]:
        """Give the queries that one row holds."""
        return [self.encoded[place] for place in self.single]


def yardstick(reference: TokenClassifier, labelled: LabelledSet, longest: int) -> Yardstick:
    """Let PyTorch answer."""
    encoded = reference.encode(labelled.texts)
    answers = tag_encoded(reference, encoded, batch_size=1)
    counts = counts_of(labelled, answers, reference.labels)
    single = in_one_window(encoded)
    padded = tag_left_padded(reference, [encoded[place] for place in single], max(BATCH_SIZES))
    return Yardstick(labelled, encoded, answers, counts, reference.labels, longest, single, padded)


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """A contender's figures, and its summed differences by query for ratios: (queries, 2)."""

    results: tuple[Result, ...]
    rows: NDArray[np.float64]


def examined(name: str, model: TokenClassifier, known: Yardstick) -> Examined:
    """Let a contender answer the same queries, alone and in company."""
    answers = tag_encoded(model, known.encoded, batch_size=1)
    rows = mean_differences(known.answers, answers)
    results = [
        *_difference_results(name, known, answers, mean_of(rows)),
        *company_results(name, companies(model, known.rows, [answers[place] for place in known.single], known.longest)),
        *left_padding_results(name, model, known),
        *_f1_results(name, known, answers),
    ]
    return Examined(tuple(results), rows)


def _difference_results(name: str, known: Yardstick, answers: Sequence[TaggedQuery], mean: float) -> list[Result]:
    found = differences(known.answers, answers)
    share = len(found.changed) / max(found.queries, 1)
    return [
        Result(names.MEAN_DIFFERENCE, name, "mean", mean),
        Result(names.MEAN_DIFFERENCE, name, "largest", found.largest),
        Result(names.CHANGED, name, f"of {found.queries:,}", len(found.changed), details=_some(found.changed)),
        Result(names.CHANGED, name, "share", share),
        Result(names.CHANGED, name, _MARGIN, len(found.matter), details=_some(found.matter)),
    ]


def _some(texts: Sequence[str]) -> dict[str, list[str]]:
    return {"queries": list(texts[:_SHOWN])}


def company_results(name: str, found: Sequence[Company]) -> list[Result]:
    """Make figures of what company does; a refusal has no number."""
    results = []
    for one in found:
        shown = REFUSED if one.changed is None else ""
        details = {"refusal": one.refusal} if shown else {}
        results += [
            Result(names.COMPANY_LABELS, name, one.name, one.changed, note=shown, details=details),
            Result(names.COMPANY_LOGITS, name, one.name, one.largest, note=shown, details=details),
        ]
    return results


def left_padding_results(name: str, model: TokenClassifier, known: Yardstick) -> list[Result]:
    """Compare the contender with PyTorch on rows whose padding is in front; refusing them is right too."""
    try:
        answers = tag_left_padded(model, known.rows, max(BATCH_SIZES))
    except ArtifactError as err:
        details = {"refusal": one_line(err, 120)}
        return [
            Result(names.LEFT, name, column, None, note=REFUSED, details=details) for column in ("queries", _MARGIN)
        ]
    found = differences(known.left_padded, answers)
    return [
        Result(names.LEFT, name, "queries", len(found.changed), details=_some(found.changed)),
        Result(names.LEFT, name, _MARGIN, len(found.matter), details=_some(found.matter)),
        Result(names.LEFT, name, "mean |logit difference|", mean_of(mean_differences(known.left_padded, answers))),
        Result(names.LEFT, name, "largest logit difference", found.largest),
    ]


def _f1_results(name: str, known: Yardstick, answers: Sequence[TaggedQuery]) -> list[Result]:
    loss = loss_of(known.counts, counts_of(known.labelled, answers, known.labels))
    return [
        Result(names.F1, name, "F1", loss.f1),
        Result(names.F1, name, "difference to PyTorch", loss.difference),
        Result(names.F1, name, "bound of the difference, one-sided 95 %", loss.bound),
    ]


def relative_results(rows: dict[str, NDArray[np.float64]], baseline: str) -> list[Result]:
    """Compare every contender's mean difference with the baseline's; those that do not differ at all have a ratio of 0."""
    found = []
    for name, own in rows.items():
        ratio = ratio_of_means(own, rows[baseline])
        found.append(Result(names.MEAN_DIFFERENCE, name, "/ U's", ratio.value, ratio.low, ratio.high))
    return found
