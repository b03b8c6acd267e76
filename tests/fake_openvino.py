"""A stand-in for the package openvino that answers through onnxruntime, with OpenVINO's names, types and habits.

Two habits matter: a request is one run's memory, which two runs at a time must not share, and its next run writes over the
answer of the last.
"""

from __future__ import annotations

import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime

TYPES = {"tensor(int64)": "i64", "tensor(int32)": "i32", "tensor(float)": "f32", "tensor(float16)": "f16"}
REPORT = """Exception from src/inference/src/cpp/core.cpp:84:
Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted. Failed operations detailed log:
-- QuantizeLinear-18 with a message:
"x" input data type must be static.

Summary:
{summary}
"""


class _Size:
    def __init__(self, size):
        self.is_static = isinstance(size, int)
        self._size = size

    def get_length(self):
        assert self.is_static, "a free size has no length"
        return self._size


class _Port:
    def __init__(self, value, friendly, names):
        self.element_type = SimpleNamespace(get_type_name=lambda: TYPES.get(value.type, "bf16"))
        self.partial_shape = [_Size(size) for size in value.shape]
        self._friendly, self._names = friendly, names

    def get_node(self):
        return SimpleNamespace(get_friendly_name=lambda: self._friendly)

    def get_names(self):
        return set(self._names)

    def get_any_name(self):
        return self._names[0]


class _Request:
    def __init__(self, fake, session):
        self._fake, self._session = fake, session
        self._busy = threading.Lock()
        self._memory = np.zeros(0, np.float32)

    def infer(self, feed, *, share_inputs=False, share_outputs=False):
        assert self._busy.acquire(blocking=False), "Infer Request is busy"
        try:
            self._fake.feeds.append(feed)
            (answer,) = self._session.run(None, feed)
            self._fake.meanwhile()
            if self._memory.shape != answer.shape:
                self._memory = np.zeros_like(answer)
            self._memory[...] = answer
        finally:
            self._busy.release()

    def get_tensor(self, name):
        assert name in self._fake.output_names
        return SimpleNamespace(data=self._memory)


class _Compiled:
    def __init__(self, fake, session, options):
        self._fake, self._session, self._options = fake, session, options
        self.inputs = [_Port(value, value.name, ["hidden", value.name]) for value in session.get_inputs()]
        self.outputs = [_Port(value, f"{value.name}/sink_port_0", fake.output_names) for value in session.get_outputs()]

    def create_infer_request(self):
        self._fake.requests += 1
        return _Request(self._fake, self._session)

    def get_property(self, name):
        return self._options[name]


class FakeOpenVino(ModuleType):
    """The module; `summary` is what it cannot convert, `compiled` how models were compiled, `feeds` what they ran on."""

    def __init__(self):
        super().__init__("openvino")
        self.__version__ = "2026.4.1-22982-e213a147257-releases/2026/4"
        self.summary = ""
        self.failure = ""
        self.compiled = []
        self.feeds = []
        self.requests = 0
        self.output_names = ["before", "logits"]
        self.meanwhile = lambda: None

    def Core(self):  # noqa: N802  # OpenVINO's name
        return SimpleNamespace(read_model=self._read, compile_model=self._compile)

    def _read(self, path):
        if self.failure:
            raise RuntimeError(self.failure)
        if self.summary:
            raise RuntimeError(REPORT.format(summary=self.summary))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def _compile(self, model, device, options):
        self.compiled.append((device, options))
        return _Compiled(self, model, options)
