"""A private copy of an export that a defect may damage, and how it is made and sealed.

The export that it was copied from is only read: files are copied, never linked.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from harness.artifact import CONFIG, MANIFEST, TOKENIZER, TOKENIZER_CONFIG, Variant, config_labels, folder_digests
from harness.documents import Json, read_json_object, write_json
from harness.encoding import maximum_tokens
from harness.manifest import UNJUDGED

if TYPE_CHECKING:
    from .defect import Defect


class DefectNotApplicableError(Exception):
    """The export has no place for this defect; the message says what it lacks.

    No fault of anybody's, so it is no `HarnessError`: who plants decides what to do about it.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Workpiece:
    """A copy of an export that may be damaged.

    Attributes:
        folder: the copy.
        variant: the variant that is to be damaged, or that stands for the folder.
        reference: the checkpoint that the export was made from; read only.
        source: the export that was copied; read only.
        rng: the only source of chance, the same for a defect of one name.
    """

    folder: Path
    variant: Variant
    reference: Path
    source: Path
    rng: np.random.Generator

    @property
    def model_path(self) -> Path:
        """Where the variant's model file is."""
        return self.folder / self.variant.file_name

    def model(self) -> onnx.ModelProto:
        """Read the variant's model with all its weights."""
        return onnx.load(str(self.model_path))

    def save(self, model: onnx.ModelProto) -> None:
        """Write the variant's model back as one file."""
        for path in self.folder.glob(f"{self.variant.file_name}[._]*data"):
            path.unlink()
        onnx.save(model, str(self.model_path))

    def source_path(self, variant: Variant) -> Path:
        """Tell where the good export has a variant that the copy may lack.

        Raises:
            DefectNotApplicableError: it has no such variant.
        """
        path = self.source / variant.file_name
        if not path.is_file():
            message = f"the export has no {variant.file_name}"
            raise DefectNotApplicableError(message)
        return path

    def json(self, name: str) -> Json:
        """Read one of the folder's JSON files.

        Raises:
            DefectNotApplicableError: the export has no such file.
        """
        if not (self.folder / name).is_file():
            message = f"the export has no {name}"
            raise DefectNotApplicableError(message)
        return read_json_object(self.folder / name)

    def write(self, name: str, content: Json) -> None:
        """Write one of the folder's JSON files."""
        write_json(self.folder / name, content)

    @property
    def config(self) -> Json:
        """What `config.json` holds."""
        return self.json(CONFIG)

    @property
    def tokenizer(self) -> Json:
        """What `tokenizer.json` holds."""
        return self.json(TOKENIZER)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each logit."""
        return config_labels(self.config, f"{self.folder / CONFIG}")

    @property
    def maximum_tokens(self) -> int:
        """How many tokens the model reads in one row."""
        return maximum_tokens(self.config, self.json(TOKENIZER_CONFIG))


def plant(
    defect: Defect, export: Path, reference: Path, folder: Path, variant: Variant | None = None, strength: float = 0.0
) -> None:
    """Copy an export and damage the copy.

    The copy keeps the one variant that is damaged (all of them where the defect says so), and its
    manifest lists the damaged files, so that the manifest is not what catches the defect.

    Args:
        defect: what is done to the copy.
        export: the good export; only read.
        reference: the checkpoint that it was made from; only read.
        folder: where the copy goes; does not exist yet.
        variant: the variant to damage; None for a defect of the folder, which takes the default one.
        strength: one of the defect's strengths, 0.0 where it has none.

    Raises:
        DefectNotApplicableError: the export has no place for this defect. Nothing is left in `folder`.
    """
    chosen = variant or _default_variant(export)
    if not (export / chosen.file_name).is_file():
        message = f"the export has no {chosen.file_name}"
        raise DefectNotApplicableError(message)
    _copy(export, folder, tuple(Variant) if defect.keeps_both else (chosen,))
    rng = np.random.default_rng(list(defect.name.encode()))
    try:
        seal(folder, chosen)
        defect.plant(Workpiece(folder, chosen, reference, export, rng), strength)
        if not defect.about_manifest:
            seal(folder, chosen)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _default_variant(export: Path) -> Variant:
    path = export / MANIFEST
    if path.is_file():
        return Variant(read_json_object(path)["default_variant"])
    return next((variant for variant in Variant if (export / variant.file_name).is_file()), Variant.FP32)


def _copy(export: Path, folder: Path, kept: Iterable[Variant]) -> None:
    dropped = tuple(variant.file_name for variant in Variant if variant not in kept)

    def ignore(where: str, names: list[str]) -> list[str]:
        # with the weights that exporters put beside a model: model.onnx_data, model.onnx.data
        return [name for name in names if dropped and Path(where) == export and name.startswith(dropped)]

    shutil.copytree(export, folder, ignore=ignore, copy_function=shutil.copyfile)


def seal(folder: Path, default_variant: Variant) -> None:
    """Let the manifest, where there is one, list the files that are in the folder now."""
    path = folder / MANIFEST
    if not path.is_file():
        return
    changes: Json = {
        "decision": UNJUDGED,
        "verdict_digest": None,
        "default_variant": default_variant.value,
        "files": folder_digests(folder, leave_out=frozenset({MANIFEST})),
    }
    write_json(path, {**read_json_object(path), **changes})
