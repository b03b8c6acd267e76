"""The exported graph through OpenVINO: as it is, and INT8 by NNCF. Runs under a Python that has these packages.

Needs nothing of the harness: that Python has neither onnxruntime nor PyTorch. NNCF's file is made once and kept.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.contender import Call, Feed, Settings, Unsupporting, unpacked_feed

_QUANTIZED = "nncf_int8.xml"


def open_contender(settings: Settings, threads: int) -> OpenVino:
    """Open `settings["file"]`, quantized by NNCF first if `settings["cache"]` names where that is kept."""
    path = Path(settings["file"])
    if "cache" in settings:
        path = quantized(path, Path(settings["cache"]), [unpacked_feed(one) for one in settings["calibration"]])
    return OpenVino(path, settings.get("precision"), threads)


def quantized(source: Path, cache: Path, rows: list[Feed]) -> Path:
    """Quantize by NNCF's recipe for transformers: static scales from these rows, one query each."""
    target = cache / _QUANTIZED
    if not target.is_file():
        openvino, nncf = importlib.import_module("openvino"), importlib.import_module("nncf")
        model = openvino.Core().read_model(str(source))
        inputs = [entry.get_any_name() for entry in model.inputs]
        samples = nncf.Dataset([{name: row[name] for name in inputs} for row in rows])
        made = nncf.quantize(model, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
        cache.mkdir(parents=True, exist_ok=True)
        openvino.save_model(made, str(target))
    return target


class OpenVino(Unsupporting):
    """One compiled model with one request."""

    def __init__(self, path: Path, precision: str | None, threads: int) -> None:
        """Compile the file; without `precision` OpenVINO takes bfloat16 where the CPU has it."""
        self._openvino: Any = importlib.import_module("openvino")
        self._core = self._openvino.Core()
        self._path = path
        self._options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        self._options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self._options |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
        self.reopen()

    def reopen(self) -> None:
        """See `Contender`."""
        compiled = self._core.compile_model(str(self._path), "CPU", self._options)
        self._inputs = [entry.get_any_name() for entry in compiled.inputs]
        self._request = compiled.create_infer_request()

    def model_call(self, feed: Feed) -> Call:
        """See `Contender`."""
        request, taken = self._request, self._taken(feed)
        return lambda: request.infer(taken, share_inputs=True, share_outputs=True)

    def _taken(self, feed: Mapping[str, NDArray[np.int64]]) -> Feed:
        return {name: feed[name] for name in self._inputs}

    def logits(self, feed: Feed) -> NDArray[np.float32]:
        """See `Contender`."""
        self._request.infer(self._taken(feed))
        return np.array(self._request.get_output_tensor(0).data, np.float32)
