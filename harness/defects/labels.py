"""Defects of the label maps: right logits under wrong names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.artifact import CONFIG, ID2LABEL, LABEL2ID
from harness.documents import Json
from harness.tagging import OUTSIDE, split_label

from .defect import WHOLE, Defect, Kind
from .workpiece import DefectNotApplicableError, Workpiece


def _write_maps(work: Workpiece, labels: Sequence[str], label2id: Mapping[str, int] | None = None) -> None:
    """Write label names into every place that has some; `label2id` may say something else."""
    id2label: Json = {str(index): label for index, label in enumerate(labels)}
    by_name: Json = dict(label2id or {label: index for index, label in enumerate(labels)})
    work.write(CONFIG, {**work.config, "id2label": id2label, "label2id": by_name})
    for name, content in ((ID2LABEL, id2label), (LABEL2ID, by_name)):
        if (work.folder / name).is_file():
            work.write(name, content)


def _reset(work: Workpiece, _strength: float) -> None:
    _write_maps(work, [f"LABEL_{index}" for index in range(len(work.labels))])


def _rotated(labels: Sequence[str]) -> list[str]:
    """Give each label but O the name of the next one."""
    places = [index for index, label in enumerate(labels) if label != OUTSIDE]
    if len(places) < 2:
        message = "the model has no two labels beside O"
        raise DefectNotApplicableError(message)
    renamed = list(labels)
    for place, following in zip(places, [*places[1:], places[0]], strict=True):
        renamed[place] = labels[following]
    return renamed


def _permuted(work: Workpiece, _strength: float) -> None:
    _write_maps(work, _rotated(work.labels))


def _disagreeing(work: Workpiece, _strength: float) -> None:
    labels = work.labels
    _write_maps(work, labels, {label: index for index, label in enumerate(_rotated(labels))})


def _lost_begin(work: Workpiece, _strength: float) -> None:
    labels = [f"I-{kind}" if prefix == "B" else label for label in work.labels for prefix, kind in [split_label(label)]]
    if labels == list(work.labels):
        message = "no label begins with B-"
        raise DefectNotApplicableError(message)
    _write_maps(work, labels)


LABELS = (
    Defect(
        "labels-reset", Kind.LABELS, "every label is called LABEL_n", _reset, WHOLE, listed=True,
        seen_in="transformers#2487, #15474",
    ),
    Defect(
        "labels-permuted", Kind.LABELS, "each label but O has the next one's name, in every map alike", _permuted,
        WHOLE, listed=True, seen_in="DocLayout-YOLO#84",
    ),
    Defect(
        "labels-disagree", Kind.LABELS, "label2id names each label but O by the next one's number, id2label does not",
        _disagreeing, WHOLE, seen_in="DocLayout-YOLO#84",
    ),
    Defect(
        "lost-begin", Kind.LABELS, "every label B-X is called I-X", _lost_begin, WHOLE, listed=True,
        seen_in="seqeval#23",
    ),
)  # fmt: skip
