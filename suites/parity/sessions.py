"""onnxruntime sessions that a candidate is not served with: other optimization levels, intermediate tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from harness.candidate import session_options
from harness.tagging import Batch

from .comparison import Logits

_LOGITS = "logits"
_TYPES = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}


def open_session(model: Path | bytes, level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.InferenceSession:
    """Open a model as it is served, but for the level of graph optimization. onnxruntime raises what it likes."""
    options = session_options(1)
    options.graph_optimization_level = level
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, sess_options=options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, batch: Batch, outputs: Sequence[str]) -> list[Any]:
    """Run a batch, cast to the integers that the graph takes."""
    feed = {entry.name: getattr(batch, entry.name).astype(_TYPES[entry.type]) for entry in session.get_inputs()}
    answer: list[Any] = session.run(list(outputs), feed)
    return answer


def run_logits(session: onnxruntime.InferenceSession, batch: Batch) -> Logits:
    """Run a batch for its logits: float32, (rows, tokens, labels)."""
    names = [entry.name for entry in session.get_outputs()]
    (answer,) = run(session, batch, [_LOGITS if _LOGITS in names else names[0]])
    found: NDArray[np.float32] = np.asarray(answer, np.float32)
    return found
