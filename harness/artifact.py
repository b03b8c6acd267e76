"""A folder of files and their digests: what a candidate or a release is on disk.

Opens no model. The names in a release folder are fixed here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from harness.documents import read_document, read_json_object
from harness.errors import ArtifactError, DocumentError, one_line
from harness.serving import ServingSettings, VariantEntry

MANIFEST_SCHEMA = "harness-release-manifest"
# 1 (2026-11): first; one entry `serving` for all variants, one `quantization` for INT8.
# 2 (2026-11): `variants`, each with what it is served with, on which CPUs, and how it was quantized.
MANIFEST_VERSION = 2
OLDEST_MANIFEST_VERSION = 1

MANIFEST = "manifest.json"
CONFIG = "config.json"
ID2LABEL = "id2label.json"
LABEL2ID = "label2id.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


class Variant(Enum):
    """One precision of the model; each is judged and served by itself."""

    FP32 = "fp32"
    INT8 = "int8"

    @property
    def file_name(self) -> str:
        """The one file of a release that holds this variant."""
        return _FILE_NAMES[self]


# Where the models lie in folders of transformers.js and of many repositories of the Hub.
_SUBFOLDER = "onnx"
_FILE_NAMES = {Variant.FP32: "model.onnx", Variant.INT8: "model_quantized.onnx"}


def file_digest(path: Path) -> str:
    """Digest one file: `sha256:` and 64 hexadecimal digits."""
    import hashlib  # loads OpenSSL, which a program that serves can do without

    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def folder_digests(folder: Path, *, leave_out: frozenset[str] = frozenset()) -> dict[str, str]:
    """Digest every file below a folder, by its path relative to the folder, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: file_digest(path) for name, path in named.items() if name not in leave_out}


def digest_of_digests(digests: Mapping[str, str]) -> str:
    """Digest a set of files by their names and digests."""
    import hashlib

    lines = "".join(f"{digest} {name}\n" for name, digest in sorted(digests.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder with an ONNX export of a token classifier, ours or any tool's."""

    folder: Path
    variants: tuple[Variant, ...]
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    manifest: Mapping[str, Any] | None
    model_folder: Path

    def model_path(self, variant: Variant) -> Path:
        """Where the variant's model file is."""
        return self.model_folder / variant.file_name

    @property
    def default_variant(self) -> Variant:
        """The variant that is served unless one is asked for: the manifest's, else FP32 if it is there."""
        if self.manifest is not None:
            return Variant(self.manifest["default_variant"])
        return self.variants[0]

    def entry(self, variant: Variant) -> VariantEntry:
        """Read what the manifest says about a variant; the defaults where there is no manifest.

        Raises:
            ArtifactError: it says nothing about it, or something that this harness cannot follow.
        """
        if self.manifest is None:
            return VariantEntry()
        where = f"{self.folder / MANIFEST}"
        if self.manifest["version"] == 1:
            return VariantEntry.of_version_1(self.manifest.get("serving"), self.recipe(variant), where)
        return VariantEntry.from_json(self._written(variant), f"{where}: variants.{variant.value}")

    def serving(self, variant: Variant) -> ServingSettings:
        """Read what a variant is served with; see `entry`."""
        return self.entry(variant).serving

    def recipe(self, variant: Variant) -> Mapping[str, Any] | None:
        """Read how a variant was quantized, whatever else its entry says; None where nothing says so."""
        manifest = self.manifest or {}
        if manifest.get("version") == 1:
            found = manifest.get("quantization") if variant is Variant.INT8 else None
        else:
            written = self._written(variant)
            found = written.get("recipe") if isinstance(written, dict) else None
        return found if isinstance(found, dict) else None

    def _written(self, variant: Variant) -> object:
        entries = (self.manifest or {}).get("variants")
        return entries.get(variant.value) if isinstance(entries, dict) else None


def open_artifact(folder: Path) -> Artifact:
    """Read what an export folder says about itself.

    The folder is resolved first, so that an artifact opened while another release is accepted
    stays the one it was.

    Raises:
        ArtifactError: the folder, its model, `config.json` or `tokenizer.json` is missing or unreadable.
    """
    if not folder.exists():
        message = f"{folder} does not exist. Name the folder of an ONNX export."
        raise ArtifactError(message)
    if not folder.is_dir():
        message = f"{folder} is not a folder. Name the folder of an ONNX export, not a file in it."
        raise ArtifactError(message)
    folder = folder.resolve()
    model_folder = _model_folder(folder)
    _refuse_missing(folder)
    try:
        config = read_json_object(folder / CONFIG)
        path = folder / TOKENIZER_CONFIG
        tokenizer_config = read_json_object(path) if path.is_file() else {}
        manifest = _read_manifest(folder / MANIFEST)
    except DocumentError as err:
        raise ArtifactError(str(err)) from err
    _check_config(config, folder / CONFIG)
    return Artifact(folder, _variants_in(model_folder), config, tokenizer_config, manifest, model_folder)


def _variants_in(folder: Path) -> tuple[Variant, ...]:
    return tuple(variant for variant in Variant if (folder / variant.file_name).is_file())


def _model_folder(folder: Path) -> Path:
    """Find the models: in the folder, or else in its `onnx/`, where transformers.js and the Hub keep them."""
    for place in (folder, folder / _SUBFOLDER):
        if _variants_in(place):
            return place
    if folders := [name for name in _FILE_NAMES.values() if (folder / name).is_dir()]:
        message = f"{folder / folders[0]} is a folder, not a model file. Put the file itself there, or export again."
        raise ArtifactError(message)
    near = [*folder.glob("*.onnx"), *folder.glob("*/*.onnx")]
    found = sorted(path.relative_to(folder).as_posix() for path in near if path.is_file())
    names = " or ".join(_FILE_NAMES.values())
    message = (
        f"{folder} has no {names} (.onnx files in it: {', '.join(found[:5]) or 'none'}). "
        f"Rename its FP32 model to {_FILE_NAMES[Variant.FP32]}, its INT8 model to {_FILE_NAMES[Variant.INT8]}, or export "
        "with `harness export`."
    )
    raise ArtifactError(message)


def _refuse_missing(folder: Path) -> None:
    missing = [name for name in (CONFIG, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        message = (
            f"{folder} has no {' and no '.join(missing)}. Copy what is missing from the checkpoint, or export again."
        )
        raise ArtifactError(message)


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse values of a kind that no model has, where they are read, before they fail where they are used."""
    wanted: tuple[tuple[str, type, str], ...] = (
        ("model_type", str, "a text"),
        ("pad_token_id", int, "a token id"),
        ("max_position_embeddings", int, "a number of tokens"),
    )
    for name, kind, meaning in wanted:
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            message = (
                f"{path}: {name} is {one_line(repr(value), 60)}, not {meaning}. Copy config.json from the checkpoint."
            )
            raise ArtifactError(message)


def _read_manifest(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    manifest = read_document(path, MANIFEST_SCHEMA, MANIFEST_VERSION, oldest=OLDEST_MANIFEST_VERSION)
    names = [variant.value for variant in _variants_in(path.parent)]
    if manifest.get("default_variant") not in names:
        message = f"{path}: default_variant names no model file in this folder. Release again."
        raise DocumentError(message)
    return manifest


def config_labels(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Read the label of each logit from `config.json`.

    Raises:
        ArtifactError: `id2label` is missing or does not count from 0 without a gap.
    """
    id2label = config.get("id2label")
    if not isinstance(id2label, dict) or not id2label:
        message = f'{where} has no id2label. Write the label names into it: {{"0": "O", …}}.'
        raise ArtifactError(message)
    labels = [id2label.get(str(index)) for index in range(len(id2label))]
    if not all(isinstance(label, str) and label for label in labels):
        message = f"{where}: id2label must name the labels 0 to {len(id2label) - 1}, each with a text."
        raise ArtifactError(message)
    return tuple(str(label) for label in labels)
