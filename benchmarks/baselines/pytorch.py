"""The checkpoint on PyTorch: the model alone (eager, compiled, dynamic INT8) and transformers' pipeline around it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from baselines.contender import Call, Feed, Settings, Unsupporting

BULK_ROWS = 32


def open_contender(settings: Settings, threads: int) -> Eager:
    """Open the checkpoint as `settings["kind"]` says: `eager`, `compiled` or `dynamic`."""
    if threads:
        torch.set_num_threads(threads)
    kinds = {"eager": Eager, "compiled": Compiled, "dynamic": Dynamic}
    return kinds[settings["kind"]](settings["folder"])


class Eager(Unsupporting):
    """FP32, as transformers loads it."""

    def __init__(self, folder: str) -> None:
        """Load tokenizer and model from the folder, and from nowhere else."""
        self._model: Any = self._made(
            AutoModelForTokenClassification.from_pretrained(folder, local_files_only=True).eval()
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
        self._pipeline: Any = None
        self._tokenizer = tokenizer

    def _made(self, model: Any) -> Any:
        return model

    def model_call(self, feed: Feed) -> Call:
        """See `Contender`."""
        tensors = {name: torch.from_numpy(value) for name, value in feed.items()}

        def call() -> object:
            with torch.inference_mode():
                return self._model(**tensors).logits

        return call

    def text_call(self, text: str) -> Call:
        """See `Contender`."""
        answer = self._piped()
        return lambda: answer(text)

    def bulk_call(self, texts: Sequence[str]) -> Call:
        """See `Contender`."""
        answer, asked = self._piped(), list(texts)
        return lambda: answer(asked, batch_size=BULK_ROWS)

    def _piped(self) -> Any:
        if self._pipeline is None:
            make: Any = pipeline
            self._pipeline = make(
                "token-classification", model=self._model, tokenizer=self._tokenizer, aggregation_strategy="simple"
            )
        return self._pipeline

    def logits(self, feed: Feed) -> NDArray[np.float32]:
        """See `Contender`."""
        tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
        with torch.inference_mode():
            return np.asarray(self._model(**tensors).logits.numpy(), np.float32)


class Compiled(Eager):
    """FP32, through torch.compile with the lengths left open; the first calls, which compile, warm it up."""

    def _made(self, model: Any) -> Any:
        return torch.compile(model, dynamic=True)


class Dynamic(Eager):
    """INT8 by torch.ao's `quantize_dynamic` of the linear layers."""

    def _made(self, model: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that torchao is its successor, which changes other baselines
            quantize: Any = torch.ao.quantization.quantize_dynamic
            return quantize(model, {torch.nn.Linear}, dtype=torch.qint8)
