"""An ONNX file the usual ways: a plain onnxruntime session, optimum's ORTModel, and transformers' pipeline over that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from baselines.contender import Call, Feed, Settings, Unsupporting

BULK_ROWS = 32
_ERRORS_ONLY = 3


def open_contender(settings: Settings, threads: int) -> Unsupporting:
    """Open `settings["file"]` of `settings["folder"]` as `settings["kind"]`: `session`, `ortmodel` or `pipeline`."""
    folder, file = settings["folder"], settings["file"]
    if settings["kind"] == "session":
        return PlainSession(f"{folder}/{file}", threads)
    return {"ortmodel": OrtModel, "pipeline": OrtPipeline}[settings["kind"]](folder, file, threads)


def plain_options(threads: int) -> onnxruntime.SessionOptions:
    """Leave everything as onnxruntime has it by default, but for the number of threads; 0 leaves that too."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads:
        options.intra_op_num_threads = threads
    return options


class PlainSession(Unsupporting):
    """An onnxruntime session with default options."""

    def __init__(self, path: str, threads: int) -> None:
        """Open the file."""
        self._path, self._threads = path, threads
        self._session: Any = None
        self.reopen()

    def reopen(self) -> None:
        """See `Contender`."""
        self._session = None
        options = plain_options(self._threads)
        self._session = onnxruntime.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name for entry in self._session.get_outputs()][:1]

    def model_call(self, feed: Feed) -> Call:
        """See `Contender`."""
        session, outputs, taken = self._session, self._outputs, {name: feed[name] for name in self._inputs}
        return lambda: session.run(outputs, taken)

    def logits(self, feed: Feed) -> NDArray[np.float32]:
        """See `Contender`."""
        return np.asarray(self._session.run(self._outputs, {name: feed[name] for name in self._inputs})[0], np.float32)


class OrtModel(Unsupporting):
    """transformers' tokenizer and optimum's `ORTModelForTokenClassification`; the label of each token, no entities."""

    def __init__(self, folder: str, file: str, threads: int) -> None:
        """Load tokenizer and model from the folder."""
        from optimum.onnxruntime import ORTModelForTokenClassification
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
        self._model: Any = ORTModelForTokenClassification.from_pretrained(
            folder, file_name=file, local_files_only=True, session_options=plain_options(threads)
        )
        self._labels = self._model.config.id2label

    def model_call(self, feed: Feed) -> Call:
        """See `Contender`."""
        import torch

        tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
        return lambda: self._model(**tensors).logits

    def text_call(self, text: str) -> Call:
        """See `Contender`."""
        return lambda: self._answers([text])

    def bulk_call(self, texts: Sequence[str]) -> Call:
        """Answer in the order asked, so many rows at a time, padded to the longest of them."""
        batches = [list(texts[begin : begin + BULK_ROWS]) for begin in range(0, len(texts), BULK_ROWS)]
        return lambda: [self._answers(batch) for batch in batches]

    def _answers(self, texts: list[str]) -> list[list[str]]:
        encoded = self._tokenizer(texts, padding=True, return_tensors="pt")
        found = self._model(**encoded).logits.argmax(-1).tolist()
        return [[self._labels[index] for index in row] for row in found]


class OrtPipeline(OrtModel):
    """transformers' pipeline over optimum's model."""

    def __init__(self, folder: str, file: str, threads: int) -> None:
        """Load both from the folder."""
        super().__init__(folder, file, threads)
        from transformers import pipeline

        make: Any = pipeline
        self._pipeline = make(
            "token-classification", model=self._model, tokenizer=self._tokenizer, aggregation_strategy="simple"
        )

    def text_call(self, text: str) -> Call:
        """See `Contender`."""
        return lambda: self._pipeline(text)

    def bulk_call(self, texts: Sequence[str]) -> Call:
        """See `Contender`."""
        asked = list(texts)
        return lambda: self._pipeline(asked, batch_size=BULK_ROWS)
