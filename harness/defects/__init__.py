"""Known defects of exports, each of which can be planted into a copy of a good one, and changes that harm nothing.

A gate that is any good refuses every defect and accepts every harmless change; `harness selfcheck`
asks it. Plants only: what catches a defect is no business of this package, and no suite knows it.
"""

from __future__ import annotations

from .defect import Defect, Kind, Strength, Unplanted
from .files import FILES
from .graphs import GRAPHS
from .harmless import CHANGES
from .inputs import INPUTS
from .int8 import INT8S
from .labels import LABELS
from .speed import SPEEDS
from .tokenizer_files import TOKENIZERS
from .weights import WEIGHTS
from .workpiece import DefectNotApplicableError, Workpiece, plant

__all__ = [
    "DEFECTS",
    "HARMLESS",
    "UNPLANTED",
    "Defect",
    "DefectNotApplicableError",
    "Kind",
    "Strength",
    "Unplanted",
    "Workpiece",
    "plant",
]

DEFECTS: tuple[Defect, ...] = (*FILES, *LABELS, *TOKENIZERS, *INPUTS, *GRAPHS, *WEIGHTS, *INT8S, *SPEEDS)
HARMLESS: tuple[Defect, ...] = CHANGES

UNPLANTED: tuple[Unplanted, ...] = (
    Unplanted(
        "slowdown",
        "the files are right; the new release is only slower than the last one",
        "harness compare --fail-on-regression, which holds a run against the last accepted one",
    ),
    Unplanted(
        "host-threads",
        "the thread pool is sized by the process that serves, not by the export",
        "candidate.session_options, which fixes the threads and which judging and serving share",
    ),
    Unplanted(
        "silent-provider",
        "the execution provider is chosen by the process that serves, not by the export",
        "candidate opens every session with the CPU provider by name; a test of it",
    ),
    Unplanted(
        "warned-parity",
        "a fault of the gate itself: a broken limit reported as a warning",
        "verdict.decide, where every broken limit rejects, and its tests",
    ),
)
