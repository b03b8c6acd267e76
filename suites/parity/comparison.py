"""Compare two models' logits over the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.tagging import Batch, TaggedQuery, TokenClassifier, Window, pad

Logits = NDArray[np.float32]
_WORST = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """Reference and variant logits of the same words or tokens: float32, (n, labels) each."""

    reference: Logits
    variant: Logits

    @property
    def differences(self) -> NDArray[np.float64]:
        """Absolute differences; where a logit is not finite, the largest double, so that no limit allows it."""
        found = np.abs(self.reference.astype(np.float64) - self.variant)
        return np.where(np.isfinite(found), found, np.finfo(np.float64).max)

    @property
    def maximum(self) -> float:
        """Largest absolute difference."""
        return float(self.differences.max(initial=0.0))

    @property
    def agreement(self) -> float:
        """Share of rows whose highest logit is the same label's."""
        if not len(self.reference):
            return 1.0
        return float((self.reference.argmax(axis=1) == self.variant.argmax(axis=1)).mean())

    @property
    def relative(self) -> float:
        """Norm of the difference over the norm of the reference (Frobenius)."""
        norm = float(np.linalg.norm(self.reference))
        with np.errstate(over="ignore"):
            ratio = float(np.linalg.norm(self.differences)) / norm if norm else float(self.maximum > 0)
        return min(ratio, float(np.finfo(np.float64).max))


def same_words(left: TaggedQuery, right: TaggedQuery) -> bool:
    """Whether both models read the same words."""
    return list(left.words) == list(right.words)


def compare_words(reference: Sequence[TaggedQuery], variant: Sequence[TaggedQuery]) -> Comparison:
    """Put the logits of all words of all queries beside each other; queries cut differently are left to their own measure."""
    pairs = [
        (left.logits, right.logits) for left, right in zip(reference, variant, strict=True) if same_words(left, right)
    ]
    if not pairs:
        return Comparison(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32))
    return Comparison(np.concatenate([left for left, _ in pairs]), np.concatenate([right for _, right in pairs]))


def non_finite(answers: Sequence[TaggedQuery]) -> int:
    """Count logits that are NaN or infinite."""
    return sum(int((~np.isfinite(answer.logits)).sum()) for answer in answers)


def entities_agree(left: TaggedQuery, right: TaggedQuery, labels: Sequence[str], other: Sequence[str]) -> bool:
    """Whether both models find the same entities, each under its own label names."""
    return left.spans(labels) == right.spans(other)


def flips(
    reference: Sequence[TaggedQuery], variant: Sequence[TaggedQuery], labels: Sequence[str], other: Sequence[str]
) -> list[dict[str, Any]]:
    """List every word whose label changes, with the reference's margin, most confident first.

    A wrong label where the reference was sure is a broken model; where it wavered, it is rounding.
    """
    found = []
    for left, right in zip(reference, variant, strict=True):
        if not same_words(left, right):
            continue
        margins = left.margins
        for position, (was, now) in enumerate(zip(left.label_ids, right.label_ids, strict=True)):
            if labels[was] != other[now]:
                start, end = left.words[position]
                found.append(
                    {
                        "query": left.text,
                        "word": left.text[start:end],
                        "reference": labels[was],
                        "variant": other[now],
                        "margin": float(margins[position]),
                    }
                )
    return sorted(found, key=lambda flip: (-float(str(flip["margin"])), str(flip["query"])))


def worst(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the first ten."""
    return list(found[:_WORST])


def compare_batch(reference: TokenClassifier, variant: TokenClassifier, batch: Batch) -> Comparison:
    """Run one batch through both models and compare every token that the mask lets in."""
    kept = batch.attention_mask.astype(bool)
    return Comparison(reference.logits(batch)[kept], variant.logits(batch)[kept])


def left_padded(windows: Sequence[Window], pad_token_id: int) -> Batch:
    """Stack windows with their padding in front."""
    batch = pad(windows, pad_token_id)
    width = batch.input_ids.shape[1]
    for row, window in enumerate(windows):
        shift = width - len(window.input_ids)
        for array in batch:
            array[row] = np.roll(array[row], shift)
    return batch


def widened(batch: Batch, columns: int, pad_token_id: int) -> Batch:
    """Add padding at the right."""
    extra = ((0, 0), (0, columns))
    return Batch(
        np.pad(batch.input_ids, extra, constant_values=pad_token_id),
        np.pad(batch.attention_mask, extra),
        np.pad(batch.token_type_ids, extra),
    )
