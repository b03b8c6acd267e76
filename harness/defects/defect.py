"""What a planted defect is: a name, what is done to an export, and which suites it takes to catch it.

Plants nothing and judges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from harness.artifact import Variant

from .workpiece import Workpiece

FP32 = (Variant.FP32,)
INT8 = (Variant.INT8,)
BOTH = (Variant.FP32, Variant.INT8)
# A defect of the folder: planted once, into a copy that holds the export's default variant only.
WHOLE: tuple[Variant, ...] = ()

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Kind(Enum):
    """What of an export a defect damages."""

    FILES = "files"
    GRAPH = "graph"
    WEIGHTS = "weights"
    LABELS = "labels"
    TOKENIZER = "tokenizer"
    INT8 = "int8"
    SPEED = "speed"


@dataclass(frozen=True, slots=True)
class Strength:
    """How strongly a graded defect is planted, and that in words."""

    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Defect:
    """One way of damaging an export, or of changing it without damage.

    Attributes:
        name: the id of the list of known defects where it is there, else one in the same style.
        kind: what it damages.
        summary: one line, what is done to the export.
        plant: damages the workpiece; the strength is 0.0 where there are no strengths.
        variants: which variants it damages, each planted and judged by itself; `WHOLE` for the folder's.
        suites: the suites that it takes to catch it.
        strengths: falling, the strongest first; empty where the defect has no degrees.
        listed: whether `name` is an id of the list of known defects.
        seen_in: the public issue where it was reported.
        keeps_both: whether the copy keeps all variants of the export, for suites that compare them.
        about_manifest: whether the manifest itself is damaged, so that it is not put right afterwards.
    """

    name: str
    kind: Kind
    summary: str
    plant: Callable[[Workpiece, float], None]
    variants: tuple[Variant, ...]
    suites: tuple[str, ...] = ("artifact", "parity")
    strengths: tuple[Strength, ...] = ()
    listed: bool = False
    seen_in: str = ""
    keeps_both: bool = False
    about_manifest: bool = False

    def __post_init__(self) -> None:
        """Refuse a name that is no id, and strengths that do not fall."""
        if not _NAME.fullmatch(self.name):
            message = f"{self.name!r} is no name of a defect: lower-case words with hyphens between"
            raise ValueError(message)
        if any(later.value >= earlier.value for earlier, later in pairwise(self.strengths)):
            message = f"the strengths of {self.name} do not fall"
            raise ValueError(message)


class Unplanted(NamedTuple):
    """A known defect that no change to an export's files makes, and what guards against it instead."""

    name: str
    reason: str
    guard: str


def shares(*values: float, of: str) -> tuple[Strength, ...]:
    """Make strengths of shares; `of` says in words what `{}`, such as `5 %`, is a share of."""
    return tuple(Strength(value, of.format(f"{100 * value:.3g} %")) for value in values)


def numbers(*values: float, of: str) -> tuple[Strength, ...]:
    """Make strengths of numbers; `of` says in words what `{}` counts or measures."""
    return tuple(Strength(value, of.format(f"{value:g}")) for value in values)
