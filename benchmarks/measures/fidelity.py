"""How far a contender's answers are from PyTorch's, and whether a query's answer depends on its company.

Numbers about models, never about time: these rows may run on a busy machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from harness.errors import ArtifactError, one_line
from harness.scoring import Counts, TagPair, count, loss_bounds, strict_tags, tag_pair
from harness.tagging import EncodedQuery, LabelledSet, TaggedQuery, TokenClassifier, tag_encoded
from suites.parity.batches import left_padded, tag_padded, tag_shuffled
from suites.parity.comparison import compare_words

# A label that PyTorch itself was this sure of: highest logit less the second.
MARGIN_THAT_MATTERS = 2.0
CONFIDENCE = 0.95
_SAMPLES = 2000
_SEED = 20261123
BATCH_SIZES = (8, 32)
EXTRA_COLUMNS = 16


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with a two-sided interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Differences:
    """Where a contender's labels differ from PyTorch's.

    Attributes:
        queries: how many were compared.
        changed: texts in which a word has another label.
        matter: those of them in which such a word had a reference margin of 2 logits or more.
        largest: largest difference of a logit.
    """

    queries: int
    changed: tuple[str, ...]
    matter: tuple[str, ...]
    largest: float


def mean_differences(reference: Sequence[TaggedQuery], variant: Sequence[TaggedQuery]) -> NDArray[np.float64]:
    """Give each query's sum of absolute logit differences and how many logits it has: (queries, 2)."""
    rows = [
        (float(np.abs(left.logits.astype(np.float64) - right.logits).sum()), left.logits.size)
        for left, right in zip(reference, variant, strict=True)
    ]
    return np.asarray(rows, np.float64).reshape(-1, 2)


def mean_of(rows: NDArray[np.float64]) -> float:
    """Give the mean over all logits of all queries."""
    return float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1))


def ratio_of_means(subject: NDArray[np.float64], baseline: NDArray[np.float64]) -> Interval:
    """Compare two contenders' mean differences; a percentile bootstrap over queries, the same drawn for both.

    Raises:
        ValueError: the baseline does not differ from the reference at all, so nothing is a multiple of it.
    """
    if not baseline[:, 0].sum() > 0:
        message = "the baseline's logits are those of the reference, so there is no ratio"
        raise ValueError(message)
    count_ = len(subject)
    draws = np.random.default_rng(_SEED).multinomial(count_, np.full(count_, 1 / count_), size=_SAMPLES)
    below = np.maximum(draws @ baseline[:, 0], np.finfo(np.float64).tiny)
    low, high = np.quantile((draws @ subject[:, 0]) / below, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(subject[:, 0].sum() / baseline[:, 0].sum()), float(low), float(high))


def differences(reference: Sequence[TaggedQuery], variant: Sequence[TaggedQuery]) -> Differences:
    """Compare labels, word by word."""
    changed, matter = [], []
    for left, right in zip(reference, variant, strict=True):
        other = left.label_ids != right.label_ids
        if other.any():
            changed.append(left.text)
            if (left.margins[other] >= MARGIN_THAT_MATTERS).any():
                matter.append(left.text)
    return Differences(len(reference), tuple(changed), tuple(matter), compare_words(reference, variant).maximum)


@dataclass(frozen=True, slots=True)
class Company:
    """What one kind of company or padding does to a contender's own answers.

    Attributes:
        name: which kind.
        changed: how many queries have another label than alone; None if the contender refuses such input.
        largest: largest difference of a logit to the query alone.
        refusal: what it said.
    """

    name: str
    changed: int | None
    largest: float | None
    refusal: str = ""


def companies(
    model: TokenClassifier, queries: Sequence[EncodedQuery], alone: Sequence[TaggedQuery], longest: int
) -> list[Company]:
    """Compare each query alone with the same query among others, and with padding behind it.

    Args:
        model: the contender.
        queries: what `in_one_window` gives.
        alone: the contender's answers to them, one query a run.
        longest: the most tokens that it reads.
    """
    sorted_batches = [
        (f"batches of {size}, sorted by length", partial(tag_encoded, model, queries, size)) for size in BATCH_SIZES
    ]
    largest = max(BATCH_SIZES)
    kinds: list[tuple[str, Callable[[], list[TaggedQuery]]]] = [
        *sorted_batches,
        (f"batches of {largest}, mixed lengths", partial(tag_shuffled, model, queries, largest)),
        (f"{EXTRA_COLUMNS} columns of padding more", partial(tag_padded, model, queries, EXTRA_COLUMNS, longest)),
    ]
    return [_company(name, alone, tagged) for name, tagged in kinds]


def in_one_window(queries: Sequence[EncodedQuery]) -> list[int]:
    """Pick the queries that one row holds, by their place: a row is what a batch is made of."""
    return [place for place, query in enumerate(queries) if len(query.windows) == 1 and query.words]


def _company(name: str, alone: Sequence[TaggedQuery], tagged: Callable[[], list[TaggedQuery]]) -> Company:
    try:
        found = tagged()
    except ArtifactError as err:  # refusing is an answer, and is said
        return Company(name, None, None, one_line(err, 120))
    changed = sum(not np.array_equal(left.label_ids, right.label_ids) for left, right in zip(alone, found, strict=True))
    return Company(name, changed, compare_words(alone, found).maximum)


def tag_left_padded(model: TokenClassifier, queries: Sequence[EncodedQuery], batch_size: int) -> list[TaggedQuery]:
    """Tag queries of one window each, drawn together at random, with the padding in front.

    A model that counts positions from the left answers otherwise than without padding, and PyTorch's does too: so what
    comes out is compared with PyTorch's answers to the same rows.
    """
    order = np.random.default_rng(_SEED).permutation(len(queries)).tolist()
    found: dict[int, TaggedQuery] = {}
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        windows = [queries[index].windows[0] for index in chosen]
        batch = left_padded(windows, model.pad_token_id)
        answer, width = model.logits(batch), batch.input_ids.shape[1]
        for row, (index, window) in enumerate(zip(chosen, windows, strict=True)):
            heads = [width - len(window.input_ids) + head for head in window.heads]
            logits = np.zeros((len(queries[index].words), len(model.labels)), np.float32)
            logits[window.words] = answer[row, heads]
            found[index] = TaggedQuery(queries[index].text, queries[index].words, logits)
    return [found[index] for index in range(len(queries))]


@dataclass(frozen=True, slots=True)
class Loss:
    """Strict entity F1, and how much lower than PyTorch's it may be at most (one-sided, 95 %)."""

    f1: float
    difference: float
    bound: float


def counts_of(labelled: LabelledSet, answers: Sequence[TaggedQuery], labels: Sequence[str]) -> Counts:
    """Count entities as the quality suite does."""
    pairs: list[TagPair] = [
        tag_pair(query, answer.words, strict_tags([labels[index] for index in answer.label_ids], labels))
        for query, answer in zip(labelled.queries, answers, strict=True)
    ]
    return count(pairs, labelled.entity_types)


def loss_of(reference: Counts, variant: Counts) -> Loss:
    """Compare two models' F1; differences below 0 are losses, and so is the bound."""
    return Loss(variant.micro, variant.micro - reference.micro, -loss_bounds(reference, variant)[""])


def span_f1(labelled: LabelledSet, found: Sequence[Sequence[tuple[int, int, str]]]) -> float:
    """Score spans as they are, for a contender that tags no words of ours: micro F1 of exact spans with their type."""
    gold = [{(span.start, span.end, span.label) for span in query.spans} for query in labelled.queries]
    right = sum(len(wanted & set(spans)) for wanted, spans in zip(gold, found, strict=True))
    total = sum(map(len, gold)) + sum(len(set(spans)) for spans in found)
    return 2 * right / total if total else 0.0
