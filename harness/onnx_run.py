"""Run a graph that is in memory on rows of real queries, and look at what flows inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from harness.serving import ServingSettings

Feed = Mapping[str, NDArray[np.int64]]
_LOGITS = "logits"


def session_of(model: onnx.ModelProto, settings: ServingSettings | None = None) -> onnxruntime.InferenceSession:
    """Open a graph with the settings that it is to be served with."""
    settings = settings or ServingSettings()
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        sess_options=settings.session_options(),
        providers=[settings.provider.value],
        disabled_optimizers=list(settings.disabled_optimizers) or None,
    )


def answers(
    model: onnx.ModelProto, feeds: Sequence[Feed], settings: ServingSettings | None = None
) -> list[NDArray[np.float32]]:
    """Run each row by itself: the logits of each, or else the first output, float32, (1, tokens, labels)."""
    session = session_of(model, settings)
    names = [entry.name for entry in session.get_outputs()]
    output = _LOGITS if _LOGITS in names else names[0]
    wanted = _wanted(session)
    return [np.asarray(session.run([output], _fed(feed, wanted))[0], np.float32) for feed in feeds]


def _wanted(session: onnxruntime.InferenceSession) -> dict[str, type[np.signedinteger[Any]]]:
    """Name the inputs of a graph, and the integers that it takes them in."""
    return {entry.name: np.int32 if entry.type == "tensor(int32)" else np.int64 for entry in session.get_inputs()}


def _fed(feed: Feed, wanted: Mapping[str, type[np.signedinteger[Any]]]) -> dict[str, NDArray[np.signedinteger[Any]]]:
    return {name: feed[name].astype(kind, copy=False) for name, kind in wanted.items()}


def inner_values(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Give the values of the named tensors, row by row."""
    if not names:
        return
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = session_of(watched)
    wanted = _wanted(session)
    for feed in feeds:
        values = session.run(list(names), _fed(feed, wanted))
        yield dict(zip(names, values, strict=True))
