"""A model file answered through OpenVINO's CPU plugin: what `harness.candidate` uses of an onnxruntime session.

The same file with the same tokenizing and decoding around it; only what multiplies the matrices is another. Changes
no file and measures nothing. Imports openvino, an extra, only once a session is opened.
https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import ArtifactError, MissingPackageError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEVICE = "CPU"
# OpenVINO's names of types, and onnxruntime's, which the rest of the code speaks.
_TYPES = {
    "i64": "tensor(int64)",
    "i32": "tensor(int32)",
    "f32": "tensor(float)",
    "f16": "tensor(float16)",
    "f64": "tensor(double)",
}
_LOGITS = "logits"
# The process that has loaded a model; a forked child finds its parent here.
_LOADED_BY: set[int] = set()
# OpenVINO 2026 and 2025 say it differently.
_UNKNOWN = re.compile(
    r"(No conversion rule found for|does not support the following ONNX) operations: (?P<names>[\w., ]+)"
)
_UNCONVERTED = re.compile(r"Conversion is failed for: (?P<names>[\w., -]+)")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or an output: its name, its type by onnxruntime's name, and its sizes, None where they are free."""

    name: str
    type: str
    shape: list[int | None]


class OpenVinoSession:
    """A compiled model that any number of threads may run; OpenVINO has them wait for each other."""

    def __init__(self, model: Path, threads: int) -> None:
        """Read and compile a model file.

        Args:
            model: the ONNX file.
            threads: threads inside one model run; 0 leaves it to OpenVINO.

        Raises:
            MissingPackageError: openvino is not installed.
            ArtifactError: OpenVINO cannot load the file, or this process was forked from one that uses OpenVINO.
        """
        if _LOADED_BY - {os.getpid()}:
            message = (
                f"{model} cannot be loaded by OpenVINO in a process that was forked from one that uses it: it may hang. "
                "Start processes by spawn, or open the release in the children only."
            )
            raise ArtifactError(message)
        openvino = installed_openvino()
        try:
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(str(model)), _DEVICE, compile_options(threads))
        except Exception as err:
            raise ArtifactError(_not_loaded(model, version_of(openvino), str(err))) from err
        _LOADED_BY.add(os.getpid())
        # a request is one run's memory: two runs at a time need two
        self._idle: list[Any] = []

    @property
    def threads(self) -> int:
        """What OpenVINO says that a run computes on."""
        return int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    def get_inputs(self) -> list[Tensor]:
        """What the graph is fed with."""
        return [_tensor(port, port.get_node().get_friendly_name()) for port in self._compiled.inputs]

    def get_outputs(self) -> list[Tensor]:
        """What the graph answers with; a tensor has several names where the graph hands it on unchanged."""
        return [
            _tensor(port, _LOGITS if _LOGITS in port.get_names() else port.get_any_name())
            for port in self._compiled.outputs
        ]

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model once; whatever goes wrong is raised as OpenVINO raises it."""
        request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        request.infer(dict(feed), share_inputs=True, share_outputs=True)
        # copies: the next run writes into the same memory
        answer = [np.array(request.get_tensor(name).data) for name in outputs]
        self._idle.append(request)
        return answer


def compile_options(threads: int) -> dict[str, str | int]:
    """Say how a model is compiled; with what OpenVINO would choose, numbers depend on the CPU.

    It computes in bfloat16 where the CPU has AVX512_BF16 or AMX, and quantizes activations between weights of blocks. One
    stream, so that two runs wait for each other; threads are not tied to cores, which other processes may have too.
    """
    options: dict[str, str | int] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "ENABLE_CPU_PINNING": False,
    }
    return options if threads == 0 else {**options, "INFERENCE_NUM_THREADS": threads}


def installed_openvino() -> Any:
    """Import openvino.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module("openvino")
    except ImportError as err:
        message = f"runtime openvino needs the package openvino ({one_line(err)}): pip install 'ner-release-harness[openvino]'."
        raise MissingPackageError(message) from err


def version_of(openvino: Any) -> str:
    """Give the number alone, without the build's."""
    return str(openvino.__version__).partition("-")[0]


def _tensor(port: Any, name: str) -> Tensor:
    kind = port.element_type.get_type_name()
    shape = [size.get_length() if size.is_static else None for size in port.partial_shape]
    return Tensor(name, _TYPES.get(kind, kind), shape)


def _not_loaded(model: Path, version: str, said: str) -> str:
    """Name the operators that OpenVINO does not know, from its report of many lines."""
    for pattern in (_UNKNOWN, _UNCONVERTED):
        if found := pattern.search(said):
            return (
                f"{model} cannot be loaded by OpenVINO {version}: it cannot run the operator {one_line(found['names'], 120)}. "
                "Release it with --quantize qdq, or answer through onnxruntime."
            )
    return f"{model} cannot be loaded by OpenVINO {version}: {one_line(said)}. Export again, or answer through onnxruntime."
