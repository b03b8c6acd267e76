"""The PyTorch model that every export is compared with.

Tokenizes with transformers, not with the lean path's code, so that a tokenizer file that answers
differently in the two shows up as a difference. Local files only; safetensors only; no code of the
checkpoint is ever run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from harness.checkpoint import open_checkpoint
from harness.encoding import encodable, encoded_query, overlap
from harness.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from harness.tagging import Batch, EncodedQuery


class Reference:
    """A checkpoint as a `TokenClassifier`, in evaluation mode, FP32, on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Load a checkpoint.

        Raises:
            CheckpointError: it cannot be used; see `open_checkpoint`.
        """
        self.checkpoint = open_checkpoint(folder)
        self.labels = self.checkpoint.labels
        self.tokenizer = load_tokenizer(folder)
        self.model = load_model(folder)
        self.pad_token_id = int(self.tokenizer.pad_token_id or 0)
        self._inputs = frozenset(self.tokenizer.model_input_names)

    def encode(self, texts: Sequence[str]) -> list[EncodedQuery]:
        """See `TokenClassifier`."""
        return encode_with(self.tokenizer, texts, self.checkpoint.maximum_tokens)

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """See `TokenClassifier`."""
        feed = {
            name: torch.from_numpy(value)
            for name, value in batch._asdict().items()
            if name in self._inputs or name == "attention_mask"
        }
        with torch.inference_mode():
            return np.asarray(self.model(**feed).logits.numpy())


def encode_with(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], maximum: int) -> list[EncodedQuery]:
    """Cut texts with transformers, in windows of at most `maximum` tokens."""
    if not texts:
        return []
    answer = tokenizer(
        [encodable(text) for text in texts],
        truncation=True,
        max_length=maximum,
        stride=overlap(maximum),
        return_overflowing_tokens=True,
    )
    parts: list[list[Any]] = [[] for _ in texts]
    for index, encoding in zip(answer["overflow_to_sample_mapping"], answer.encodings or [], strict=True):
        parts[index].append(encoding)
    return [encoded_query(text, part) for text, part in zip(texts, parts, strict=True)]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the checkpoint's fast tokenizer, with no truncation and no padding of its own.

    Raises:
        CheckpointError: there is none that loads.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except Exception as err:  # transformers and tokenizers raise whatever their parsers raise
        message = f"{folder}: the tokenizer cannot be loaded ({one_line(err)}). Save it again with save_pretrained."
        raise CheckpointError(message) from err
    if not tokenizer.is_fast:
        message = f"{folder} has only a slow tokenizer. Save a fast one (tokenizer.json) into it."
        raise CheckpointError(message)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    loaded: PreTrainedTokenizerFast = tokenizer
    return loaded


def load_model(folder: Path) -> PreTrainedModel:
    """Load the checkpoint's weights.

    Raises:
        CheckpointError: they do not load, or some weights are missing and would stay random.
    """
    try:
        model, report = AutoModelForTokenClassification.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as err:
        message = f"{folder}: the weights cannot be loaded ({one_line(err)}). Save the checkpoint again."
        raise CheckpointError(message) from err
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:
        message = (
            f"{folder}: {len(lacking)} weights are missing or of another shape, {one_line(lacking[0], 80)!r} first, and would "
            "be random. Save the fine-tuned model, not its base."
        )
        raise CheckpointError(message)
    model.eval()
    loaded: PreTrainedModel = model
    return loaded
