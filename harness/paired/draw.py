"""Which queries are timed: drawn from the data, so that their lengths are distributed as the data's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from harness.paired.estimate import MeasurementError

Texts = Sequence[str]
SEED = 20261101


class Length(Enum):
    """Part of the data by the number of tokens: the shortest quarter, the middle half, the longest quarter."""

    SHORT = "short"
    TYPICAL = "typical"
    LONG = "long"


# In every four blocks each part has its share.
_TURNS = (Length.SHORT, Length.TYPICAL, Length.LONG, Length.TYPICAL)


@dataclass(frozen=True, slots=True)
class Draw:
    """One query per block, of the lengths in turn."""

    parts: dict[Length, tuple[str, ...]]
    tokens: dict[Length, tuple[int, int]]
    seed: int = SEED

    def __call__(self, block: int) -> Texts:
        """Give the texts of a block; the same in every run."""
        texts = self.parts[self.length(block)]
        return [texts[int(np.random.default_rng((self.seed, block)).integers(len(texts)))]]

    @staticmethod
    def length(block: int) -> Length:
        """Tell of which length a block's query is."""
        return _TURNS[block % len(_TURNS)]


def draw_by_length(texts: Sequence[str], tokens: Sequence[int]) -> Draw:
    """Sort queries by how many tokens they have, and draw from the parts.

    Args:
        texts: the queries.
        tokens: how many tokens each has.

    Raises:
        MeasurementError: there is no query to draw from.
    """
    if not texts:
        message = "there is no labelled query to measure with. Name a file that has some (--data FILE)."
        raise MeasurementError(message)
    order = sorted(range(len(texts)), key=lambda index: (tokens[index], index))
    quarter = max(len(order) // 4, 1)
    chosen = {
        Length.SHORT: order[:quarter],
        Length.TYPICAL: order[quarter : len(order) - quarter] or order,
        Length.LONG: order[-quarter:],
    }
    return Draw(
        {length: tuple(texts[index] for index in part) for length, part in chosen.items()},
        {length: (tokens[part[0]], tokens[part[-1]]) for length, part in chosen.items()},
    )


@dataclass(frozen=True, slots=True)
class BatchDraw:
    """So many queries per block, drawn with replacement."""

    texts: Sequence[str]
    size: int
    seed: int = SEED

    def __call__(self, block: int) -> Texts:
        """Give the texts of a block; the same in every run.

        Raises:
            MeasurementError: there is no query to draw from.
        """
        if not self.texts:
            message = "there is no labelled query to measure with. Name a file that has some (--data FILE)."
            raise MeasurementError(message)
        picks = np.random.default_rng((self.seed, block)).integers(0, len(self.texts), self.size)
        return [self.texts[index] for index in picks]
