"""A release gate for ONNX exports of token classifiers.

Public names are loaded when first used, so that `import harness` stays light and the runtime needs
no PyTorch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.export_onnx import export_to_onnx, verify_onnx_model
    from harness.inference import BusNERInference, NERInference
    from harness.pipeline import release
    from harness.training import train

__version__ = "0.1.0"

# onnxruntime 1.29 and later report usage to their maker from a thread that starts when they are imported, and that a
# forked child waits for when it ends, forever (docs/serving.md). Set before anything here imports them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["BusNERInference", "NERInference", "export_to_onnx", "release", "train", "verify_onnx_model"]

_HOMES = {
    "BusNERInference": "harness.inference",
    "NERInference": "harness.inference",
    "export_to_onnx": "harness.export_onnx",
    "verify_onnx_model": "harness.export_onnx",
    "release": "harness.pipeline",
    "train": "harness.training",
}


def __getattr__(name: str) -> object:
    """Load a public name from the module it lives in."""
    from importlib import import_module

    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_HOMES[name]), name)
