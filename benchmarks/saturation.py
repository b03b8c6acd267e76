#!/usr/bin/env python3
"""What 16-bit sums do to an INT8 model, and what it costs to keep them from doing it.

    harness export --model DIR --quantize --target avx512_vnni --output full
    harness export --model DIR --quantize --target avx2 --output reduced
    harness export --model DIR --quantize --target every --output pairs
    python benchmarks/saturation.py full reduced pairs

The first table is about weights: how far those of 8 bits, 7 bits, and 8 bits with limited pairs are from the float
weights of the first export. The second is about answers: each export answers the same queries twice, with the sums
that CPUs with VNNI and ARM64 make and with those of the others, both computed by `harness.clamping`. Nothing is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

from harness.artifact import Artifact, Variant, open_artifact
from harness.candidate import Candidate
from harness.checkpoint import entity_types
from harness.clamping import ClampingModel
from harness.labelled_data import bundled_bus_queries, read_labelled_set
from harness.pair_limits import fit_weights, limit_pairs
from harness.saturation import Certificate, certify
from harness.scoring import count, strict_tags, tag_pair
from harness.tagging import Batch, EncodedQuery, LabelledSet, TaggedQuery, tag

_EIGHT_BITS, _SEVEN_BITS = 127, 64
_WIDTH = 150

Weights = Mapping[str, NDArray[np.float32]]


class _Emulated:
    """A candidate's INT8 variant with its products computed by `ClampingModel`; a `TokenClassifier`."""

    def __init__(self, candidate: Candidate, model: ClampingModel, *, clamps: bool) -> None:
        self._candidate, self._model, self._clamps = candidate, model, clamps
        self.labels, self.pad_token_id = candidate.labels, candidate.pad_token_id

    def encode(self, texts: Sequence[str]) -> list[EncodedQuery]:
        return self._candidate.encode(texts)

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        feed = {name: value for name, value in batch._asdict().items() if name in self._candidate.inputs}
        return self._model.run(feed, clamps=self._clamps)["logits"].astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Row:
    """What was found of one export."""

    name: str
    certificate: Certificate
    clamped: float
    from_float: float
    mean: float
    largest: float
    queries: int
    words: int
    f1: tuple[float, float]


def float_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read the matrices that a float graph multiplies with."""
    graph = onnx.load(str(path)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    names = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    return {name: numpy_helper.to_array(stored[name]) for name in names if name in stored}


def _error(weights: NDArray[np.float32], values: NDArray[np.int8], scales: NDArray[np.float32]) -> float:
    """Root of the mean squared difference, relative to that of the weights."""
    difference = np.square(weights - values * scales).mean(dtype=np.float64)
    return float(np.sqrt(difference / np.square(weights).mean(dtype=np.float64)))


def weight_table(weights: Weights) -> Table:
    """Compare ways to write the weights."""
    table = Table("weights, a scale per column", "RMS error", "weights changed", "largest pair")
    ways: dict[str, list[tuple[float, float, int]]] = {}
    for matrix in weights.values():
        largest = np.abs(matrix).max(axis=0)
        scales = {bits: largest / bits for bits in (_EIGHT_BITS, _SEVEN_BITS)}
        full = np.rint(matrix / scales[_EIGHT_BITS]).astype(np.int8)
        limited, fitted = limit_pairs(full, 0), fit_weights(matrix)
        for name, values, scale in (
            ("8 bits", full, scales[_EIGHT_BITS]),
            ("7 bits (reduce_range)", np.rint(matrix / scales[_SEVEN_BITS]).astype(np.int8), scales[_SEVEN_BITS]),
            ("8 bits, pairs limited, scales as they were", limited, scales[_EIGHT_BITS]),
            ("8 bits, pairs limited, scales fitted", fitted.values, fitted.scales),
        ):
            changed = float(np.mean(values != full)) if values is limited else 0.0
            pairs = np.abs(values[1:].astype(int) + values[:-1]).max()
            ways.setdefault(name, []).append((_error(matrix, values, scale), changed, int(pairs)))
    for name, found in ways.items():
        errors, changes, pairs = zip(*found, strict=True)
        root = np.sqrt(np.mean(np.square(errors)))
        shown = f"{np.mean(changes):.1%}" if any(changes) else ""
        table.add_row(name, f"{root:.2%}", shown, str(max(pairs)))
    return table


def _f1(labelled: LabelledSet, answers: Sequence[TaggedQuery], labels: Sequence[str]) -> float:
    types = sorted({*labelled.entity_types, *entity_types(tuple(labels))})
    pairs = [
        tag_pair(query, answer.words, strict_tags([labels[index] for index in answer.label_ids], labels))
        for query, answer in zip(labelled.queries, answers, strict=True)
    ]
    return count(pairs, types).micro


def _row(export: Artifact, labelled: LabelledSet, floats: Sequence[TaggedQuery]) -> _Row:
    candidate, path = Candidate(export, Variant.INT8), export.model_path(Variant.INT8)
    model = ClampingModel(path, candidate.settings)
    exact, clamped = (
        tag(_Emulated(candidate, model, clamps=clamps), labelled.texts, batch_size=1) for clamps in (False, True)
    )
    moved = np.concatenate(
        [np.abs(one.logits - other.logits).ravel() for one, other in zip(exact, clamped, strict=True)]
    )
    rounded = [np.abs(one.logits - other.logits).ravel() for one, other in zip(exact, floats, strict=True)]
    flips = [np.count_nonzero(one.label_ids != other.label_ids) for one, other in zip(exact, clamped, strict=True)]
    return _Row(
        export.folder.name,
        certify(onnx.load(str(path)), path.parent),
        model.counted.clamped / max(1, model.counted.sums),
        float(np.concatenate(rounded).mean()),
        float(moved.mean()),
        float(moved.max()),
        int(np.count_nonzero(flips)),
        int(np.sum(flips)),
        (_f1(labelled, exact, candidate.labels), _f1(labelled, clamped, candidate.labels)),
    )


def answer_table(rows: Sequence[_Row], queries: int, f1: float) -> Table:
    """Compare what each export answers with exact sums and with clamped ones."""
    table = Table(title=f"{queries} queries, entity F1 of FP32 {f1:.4f}; exact sums and clamped ones")
    for head in (
        "export", "largest pair", "|w1| + |w2|", "products that clamp", "sums clamped", "exact to FP32, mean",
        "clamped to exact, mean", "largest", "queries changed", "words", "F1 exact", "F1 clamped",
    ):  # fmt: skip
        table.add_column(head)
    for row in rows:
        found = row.certificate
        table.add_row(
            row.name, str(found.largest_pair), str(found.largest_sizes), f"{len(found.problems)} of {found.products}",
            f"{row.clamped:.1e}", f"{row.from_float:.4f}", f"{row.mean:.4f}", f"{row.largest:.3f}",
            f"{row.queries}", f"{row.words}", *(f"{value:.4f}" for value in row.f1),
        )  # fmt: skip
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path, help="folders with an INT8 variant, the full-range one first")
    parser.add_argument("--queries", type=int, default=400, help="of the data, evenly taken (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="labelled queries (default: the bundled bus queries)")
    options = parser.parse_args()
    everything = read_labelled_set(options.data or bundled_bus_queries("test"))
    step = max(1, len(everything.queries) // options.queries)
    labelled = LabelledSet(everything.name, everything.queries[::step])
    exports = [open_artifact(folder) for folder in options.exports]
    floats = tag(plain := Candidate(exports[0], Variant.FP32), labelled.texts, batch_size=1)
    console = Console(width=_WIDTH)
    console.print(weight_table(float_weights(exports[0].model_path(Variant.FP32))))
    rows = [_row(each, labelled, floats) for each in exports]
    console.print(answer_table(rows, len(labelled.queries), _f1(labelled, floats, plain.labels)))


if __name__ == "__main__":
    main()
