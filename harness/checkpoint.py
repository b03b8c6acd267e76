"""A PyTorch checkpoint folder, read without PyTorch: is it a token classifier, and which labels has it?

Refuses in milliseconds, before torch is even imported, what could not be exported, and whatever
would have to be unpickled or would bring code of its own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.artifact import (
    CONFIG,
    ID2LABEL,
    LABEL2ID,
    TOKENIZER,
    TOKENIZER_CONFIG,
    config_labels,
    digest_of_digests,
    folder_digests,
)
from harness.documents import read_json_object
from harness.encoding import maximum_tokens
from harness.errors import ArtifactError, CheckpointError, DocumentError, one_line
from harness.tagging import OUTSIDE, split_label

_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# safetensors refuses larger headers too (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
_MAXIMUM_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A fine-tuned token classifier on disk."""

    folder: Path
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    labels: tuple[str, ...]

    @property
    def entity_types(self) -> tuple[str, ...]:
        """The entity types, in the order of the labels."""
        return entity_types(self.labels)

    @property
    def maximum_tokens(self) -> int:
        """How many tokens the model reads in one row."""
        return maximum_tokens(self.config, self.tokenizer_config)

    def digest(self) -> str:
        """Digest all files of the folder."""
        return digest_of_digests(folder_digests(self.folder))


def entity_types(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Name the entity types behind BIO labels, each once, in the order of the labels."""
    return tuple(dict.fromkeys(split_label(label)[1] for label in labels if label != OUTSIDE))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read what a checkpoint says about itself and check that it can be used.

    Raises:
        CheckpointError: it is missing, is no token classifier, has pickled or damaged weights, or its
            label maps disagree.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        message = f"{folder} {what}. Name the folder that save_pretrained wrote (--model DIR)."
        raise CheckpointError(message)
    if not (folder / CONFIG).is_file():
        what = "has no config.json" if any(folder.iterdir()) else "is empty"
        message = f"{folder} {what}. Name the folder that save_pretrained wrote (--model DIR)."
        raise CheckpointError(message)
    try:
        config = read_json_object(folder / CONFIG)
        path = folder / TOKENIZER_CONFIG
        tokenizer_config = read_json_object(path) if path.is_file() else {}
        labels = config_labels(config, f"{folder / CONFIG}")
        _check_architecture(folder, config)
        _check_label_maps(folder, config, labels)
        if not (folder / TOKENIZER).is_file():
            message = f"{folder} has no tokenizer.json. Save the fast tokenizer into it: tokenizer.save_pretrained({folder.name!r})."
            raise CheckpointError(message)
        _check_weights(folder)
    except (DocumentError, ArtifactError) as err:
        raise CheckpointError(str(err)) from err
    return Checkpoint(folder, config, tokenizer_config, labels)


def _check_architecture(folder: Path, config: Mapping[str, Any]) -> None:
    if "auto_map" in config:
        message = (
            f"{folder / CONFIG} asks for code of its own (auto_map), which is never run. Use a model of transformers."
        )
        raise CheckpointError(message)
    named = config.get("architectures")
    architectures = named if isinstance(named, list) else []
    if not any(str(name).endswith("ForTokenClassification") for name in architectures):
        found = one_line(", ".join(map(str, architectures)) or "no architecture", 80)
        message = (
            f"{folder / CONFIG} is {found}, not a …ForTokenClassification model. Name a fine-tuned NER checkpoint."
        )
        raise CheckpointError(message)


def _check_label_maps(folder: Path, config: Mapping[str, Any], labels: tuple[str, ...]) -> None:
    where = folder / CONFIG
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        message = f"{where}: id2label names {one_line(twice, 60)!r} twice. Give every label a name of its own."
        raise CheckpointError(message)
    if all(label == f"LABEL_{index}" for index, label in enumerate(labels)):
        message = (
            f"{where} has only the default label names LABEL_0…LABEL_{len(labels) - 1}. Write the real ones into it."
        )
        raise CheckpointError(message)
    by_name = {label: index for index, label in enumerate(labels)}
    by_id = {str(index): label for index, label in enumerate(labels)}
    maps: list[tuple[str, object, Mapping[str, object]]] = [(f"{where}, label2id", config.get("label2id"), by_name)]
    if (folder / LABEL2ID).is_file():
        maps.append((str(folder / LABEL2ID), read_json_object(folder / LABEL2ID), by_name))
    if (folder / ID2LABEL).is_file():
        maps.append((str(folder / ID2LABEL), read_json_object(folder / ID2LABEL), by_id))
    for place, found, expected in maps:
        if found is not None and found != expected:
            message = f"{place} disagrees with id2label in config.json ({_first_difference(found, expected)}). Make them agree."
            raise CheckpointError(message)


def _first_difference(found: object, expected: Mapping[str, object]) -> str:
    if not isinstance(found, dict):
        return f"it is a {type(found).__name__}"
    for key in [*expected, *found]:
        if found.get(key) != expected.get(key):
            return f"{one_line(key, 60)!r}: {one_line(found.get(key, 'missing'), 60)!r} against {expected.get(key, 'missing')!r}"
    return "same entries"


def _check_weights(folder: Path) -> None:
    files = [folder / _WEIGHTS]
    if (folder / _WEIGHTS_INDEX).is_file():
        shards = read_json_object(folder / _WEIGHTS_INDEX).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        files = [folder / Path(name).name for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            message = (
                f"{folder} has its weights only as a pickle ({pickles[0]}), which can run any code and is never opened. "
                "Save them again with save_pretrained(…, safe_serialization=True)."
            )
        else:
            message = (
                f"{folder} has no {missing[0] if missing else _WEIGHTS}. Name the folder that save_pretrained wrote."
            )
        raise CheckpointError(message)
    for path in files:
        _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    """Check the header against the file's size (format: an u64 length, a JSON header, the tensors' bytes)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= min(size - 8, _MAXIMUM_HEADER):
            raise _damaged(path, "its header is cut short or is none")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as err:
            raise _damaged(path, "its header is not what safetensors writes") from err
    if size != expected:
        raise _damaged(path, f"it has {size:,} bytes where its header promises {expected:,}")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {why}. Copy or save the checkpoint again.")
