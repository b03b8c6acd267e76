"""Compare every place of an export that names labels with the labels of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.artifact import ID2LABEL, LABEL2ID, Artifact
from harness.documents import read_json_object
from harness.errors import DocumentError, one_line


def label_differences(candidate: Artifact, labels: Sequence[str]) -> list[str]:
    """List the places that disagree, each with its first difference.

    A label2id or a count of labels that an export of another tool leaves out says nothing wrong; our own
    releases have every place.
    """
    id2label = {str(index): label for index, label in enumerate(labels)}
    label2id = {label: index for index, label in enumerate(labels)}
    places: list[tuple[str, object, Mapping[str, object]]] = [
        ("config.json id2label", candidate.config.get("id2label"), id2label)
    ]
    if "label2id" in candidate.config or candidate.manifest is not None:
        places.append(("config.json label2id", candidate.config.get("label2id"), label2id))
    for name, expected in ((ID2LABEL, id2label), (LABEL2ID, label2id)):
        if (candidate.folder / name).is_file():
            places.append((name, _content(candidate.folder / name), expected))
    counts = [
        f"config.json {name}: {one_line(candidate.config[name], 60)} against {len(labels)}"
        for name in ("num_labels", "_num_labels")
        if name in candidate.config and candidate.config[name] != len(labels)
    ]
    return counts + [f"{where}: {_first_difference(found, right)}" for where, found, right in places if found != right]


def _content(path: Path) -> object:
    try:
        return read_json_object(path)
    except DocumentError as err:
        return str(err)


def _first_difference(found: object, expected: Mapping[str, object]) -> str:
    if isinstance(found, str):
        return one_line(found)
    if not isinstance(found, dict):
        return f"it is a {type(found).__name__}, not an object"
    for key in [*expected, *found]:
        if key not in found:
            return f"{one_line(key, 60)!r} is missing"
        if key not in expected:
            return f"{one_line(key, 60)!r} is not the reference's"
        if found[key] != expected[key]:
            return f"{one_line(key, 60)!r} is {one_line(repr(found[key]), 60)}, the reference's {expected[key]!r}"
    return "an entry of another type"
