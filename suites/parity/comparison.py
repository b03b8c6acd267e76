"""Compare two models' logits over the same tokens.

Knows how far apart two answers are; which inputs to ask about is `batches`' business, what is too far the policy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import ArtifactError, one_line
from harness.tagging import Batch, TaggedQuery, TokenClassifier

Logits = NDArray[np.float32]
# What a measure says where there is nothing to compare, or no number: no limit allows it.
LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Reference and variant logits of the same words or tokens: float32, (n, labels) each."""

    reference: Logits
    variant: Logits

    @property
    def differences(self) -> NDArray[np.float64]:
        """Absolute differences; where a logit is not finite, the largest double, so that no limit allows it."""
        found = np.abs(self.reference.astype(np.float64) - self.variant)
        return np.where(np.isfinite(found), found, LARGEST)

    @property
    def maximum(self) -> float:
        """Largest absolute difference."""
        return float(self.differences.max(initial=0.0))

    @property
    def mean(self) -> float:
        """Mean absolute difference, and 0 where nothing is compared."""
        with np.errstate(over="ignore"):
            return min(float(self.differences.mean()), LARGEST) if self.differences.size else 0.0

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
        return min(ratio, LARGEST)


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


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """One batch with both models' logits: float32, (rows, tokens, labels) each."""

    batch: Batch
    reference: Logits
    variant: Logits

    @property
    def comparison(self) -> Comparison:
        """Compare every token that the mask lets in."""
        kept = self.batch.attention_mask.astype(bool)
        return Comparison(self.reference[kept], self.variant[kept])

    @property
    def worst_position(self) -> float:
        """See `worst_position`; for batches without padding."""
        return worst_position(self.reference, self.variant)


def ask(
    reference: TokenClassifier, variant: TokenClassifier, batches: Sequence[Batch]
) -> tuple[list[Answered], list[str]]:
    """Run batches through both models; one that the variant cannot run is listed with its error, not raised."""
    found: list[Answered] = []
    failed: list[str] = []
    for batch in batches:
        expected = reference.logits(batch)
        try:
            found.append(Answered(batch, expected, variant.logits(batch)))
        except ArtifactError as err:
            failed.append(one_line(err))
    return found, failed


def worst_position(reference: Logits, variant: Logits) -> float:
    """Find the position at which even the row that suffers least differs most.

    Rounding errs now in this row, now in that, so the smallest of a few rows is small everywhere; a position that
    the graph loses (a tail cut off, a table that ends early) is wrong in every row, whatever is written there.

    Args:
        reference: float32, (rows, tokens, labels).
        variant: the same shape; rows of other content, all of the same length.

    Returns:
        Norm of the difference over the norm of the reference's logits at that position: 1 for logits of zero.
    """
    difference = np.linalg.norm(reference.astype(np.float64) - variant, axis=2)
    norm = np.maximum(np.linalg.norm(reference.astype(np.float64), axis=2), np.finfo(np.float32).tiny)
    relative = np.nan_to_num(difference / norm, nan=LARGEST, posinf=LARGEST)
    return float(relative.min(axis=0).max(initial=0.0))


def pooled_agreement(found: Sequence[Comparison]) -> float:
    """Share of rows of all comparisons whose highest logit is the same label's; 0 where nothing was compared."""
    rows = sum(len(each.reference) for each in found)
    return sum(each.agreement * len(each.reference) for each in found) / rows if rows else 0.0
