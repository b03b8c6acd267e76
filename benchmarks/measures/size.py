"""How large things are: model files relative to FP32, and the runtime's install relative to that with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.errors import ArtifactError
from harness.installed import pytorch_install, runtime_install
from measures.result import Result

FILES = "file size / FP32"
INSTALL = "runtime install size / with PyTorch"
_BYTES_PER_MB = 1e6


def bytes_of(path: Path) -> int:
    """Weigh a model file with the files beside it that hold its weights (`model.onnx.data`, OpenVINO's `.bin`)."""
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else list(path.parent.glob(f"{path.name}[._]data"))
    return sum(one.stat().st_size for one in (path, *beside) if one.is_file())


def file_results(files: Mapping[str, Path], baseline: Path) -> list[Result]:
    """Compare model files with the FP32 one; those that are not there are left out.

    Raises:
        ArtifactError: the FP32 file is not there.
    """
    if not baseline.is_file():
        message = f"{baseline} is not there to be compared with. Export it again."
        raise ArtifactError(message)
    whole = bytes_of(baseline)
    return [
        Result(FILES, name, column, value)
        for name, path in files.items()
        if path.is_file()
        for column, value in (("ratio", bytes_of(path) / whole), ("MB", bytes_of(path) / _BYTES_PER_MB))
    ]


def install_results() -> list[Result]:
    """Weigh what is installed here."""
    runtime, whole = runtime_install(), pytorch_install()
    missing = [*runtime.missing, *whole.missing]
    note = f"not installed, not counted: {', '.join(missing)}" if missing else ""
    heaviest = {one.name: round(one.mib, 1) for one in runtime.distributions[:5]}
    return [
        Result(INSTALL, "our runtime", "ratio", runtime.mib / whole.mib, note=note, details={"MiB": heaviest}),
        Result(INSTALL, "our runtime", "MiB", runtime.mib),
        Result(INSTALL, "with PyTorch and transformers", "MiB", whole.mib),
    ]
