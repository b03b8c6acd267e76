"""An ONNX export opened as a token classifier, with onnxruntime, tokenizers and numpy alone.

The session settings here are those a release is served with; judging opens candidates through the
same function, so what was judged is what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

from harness.artifact import TOKENIZER, Artifact, Variant, config_labels
from harness.encoding import encodable, encoded_query, maximum_tokens, overlap
from harness.errors import ArtifactError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.tagging import Batch, EncodedQuery

_LOGITS = "logits"
_ERRORS_ONLY = 3


class Candidate:
    """One variant of an export; a `TokenClassifier`."""

    def __init__(self, artifact: Artifact, variant: Variant, *, threads: int = 1) -> None:
        """Load tokenizer and model.

        Args:
            artifact: the export.
            variant: which of its models.
            threads: threads inside one model run. One is the setting that releases are judged with.

        Raises:
            ArtifactError: a file cannot be loaded, or the model's inputs or outputs are not those of a
                token classifier.
        """
        self.artifact = artifact
        self.variant = variant
        self.labels = config_labels(artifact.config, f"{artifact.folder}/config.json")
        self.maximum_tokens = maximum_tokens(artifact.config, artifact.tokenizer_config)
        self._tokenizer = _load_tokenizer(artifact.folder / TOKENIZER, self.maximum_tokens)
        self.pad_token_id = int(artifact.config.get("pad_token_id") or 0)
        self._session = _load_session(artifact.model_path(variant), threads)
        self.inputs = frozenset(entry.name for entry in self._session.get_inputs())
        self._check_signature()

    def _check_signature(self) -> None:
        path = self.artifact.model_path(self.variant)
        known = {"input_ids", "attention_mask", "token_type_ids"}
        if surplus := sorted(self.inputs - known):
            message = f"{path} wants the input {surplus[0]!r}, which no tokenizer produces. Export it without."
            raise ArtifactError(message)
        if "input_ids" not in self.inputs:
            message = f"{path} has no input named input_ids. Export it with the names that transformers uses."
            raise ArtifactError(message)
        outputs = [entry.name for entry in self._session.get_outputs()]
        if _LOGITS not in outputs:
            message = f"{path} has no output named logits (it has: {', '.join(outputs)}). Export a token classifier."
            raise ArtifactError(message)

    def encode(self, texts: Sequence[str]) -> list[EncodedQuery]:
        """See `TokenClassifier`."""
        return [
            encoded_query(text, [encoding, *encoding.overflowing])
            for text, encoding in zip(texts, self._encodings(texts), strict=True)
        ]

    def _encodings(self, texts: Sequence[str]) -> list[Encoding]:
        # encode_batch starts a thread pool, which costs more than it saves on one query
        if len(texts) == 1:
            return [self._tokenizer.encode(encodable(texts[0]))]
        return list(self._tokenizer.encode_batch([encodable(text) for text in texts]))

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """See `TokenClassifier`.

        Raises:
            ArtifactError: the model does not run on this input.
        """
        feed = {name: value for name, value in batch._asdict().items() if name in self.inputs}
        try:
            (answer,) = self._session.run([_LOGITS], feed)
        except Exception as err:
            shape = " by ".join(map(str, batch.input_ids.shape))
            message = f"{self.artifact.model_path(self.variant)} fails on a batch of {shape} tokens: {one_line(err)}"
            raise ArtifactError(message) from err
        logits: NDArray[np.float32] = np.asarray(answer)
        expected = (*batch.input_ids.shape, len(self.labels))
        if logits.shape != expected:
            message = (
                f"{self.artifact.model_path(self.variant)} answers with logits of shape {logits.shape} where "
                f"{expected} (rows, tokens, labels of config.json) was expected. Export it again."
            )
            raise ArtifactError(message)
        return logits


def _load_tokenizer(path: Path, maximum: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
        # Whatever the file says about truncation and padding: rows are cut and padded here, visibly.
        tokenizer.no_padding()
        tokenizer.enable_truncation(maximum, stride=overlap(maximum))
    except Exception as err:  # tokenizers raises bare Exception
        message = f"{path} cannot be loaded as a tokenizer: {one_line(err)}. Export again."
        raise ArtifactError(message) from err
    return tokenizer


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Build the options that a release is judged and served with."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Without it, threads spin for some ms after each call and take a small machine's other core away.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _load_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(
            str(path), sess_options=session_options(threads), providers=["CPUExecutionProvider"]
        )
    except Exception as err:
        message = f"{path} cannot be loaded by onnxruntime {onnxruntime.__version__}: {one_line(err)}. Export again."
        raise ArtifactError(message) from err
