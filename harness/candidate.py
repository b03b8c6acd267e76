"""An ONNX export opened as a token classifier, with onnxruntime, tokenizers and numpy alone.

The session settings here are those a release is served with; judging opens candidates through the
same function, so what was judged is what runs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_PROVIDER = "CPUExecutionProvider"
# onnxruntime's names of the types that are understood; the batch is cast to what the graph takes.
_INTEGERS: dict[str, np.dtype[Any]] = {"tensor(int64)": np.dtype(np.int64), "tensor(int32)": np.dtype(np.int32)}
_FLOATS = frozenset({"tensor(float)", "tensor(float16)", "tensor(double)"})
_GUIDE = "docs/judging-other-exports.md says how"


@dataclass(frozen=True, slots=True)
class _Input:
    """An input of the graph: the column of a `Batch` that it takes, and in which type."""

    name: str
    dtype: np.dtype[Any]


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
        path = artifact.model_path(variant)
        self._threads = threads
        self._session = _load_session(path, threads)
        self._feeds = _feeds(self._session.get_inputs(), path)
        self._output = _logits_output(self._session.get_outputs(), len(self.labels), path)
        self.inputs = frozenset(entry.name for entry in self._feeds)

    def reopened(self) -> Candidate:
        """Open the same model once more: a session of its own, the tokenizer shared.

        Two sessions of one file are not equally fast; where their memory happens to lie makes a difference.

        Raises:
            ArtifactError: the file cannot be loaded any more.
        """
        another = copy.copy(self)
        another._session = _load_session(self.artifact.model_path(self.variant), self._threads)  # noqa: SLF001  # our own
        return another

    def encode(self, texts: Sequence[str]) -> list[EncodedQuery]:
        """See `TokenClassifier`.

        Raises:
            ArtifactError: the tokenizer does not take a text.
        """
        return [
            encoded_query(text, [encoding, *encoding.overflowing])
            for text, encoding in zip(texts, self._encodings(texts), strict=True)
        ]

    def _encodings(self, texts: Sequence[str]) -> list[Encoding]:
        try:
            # encode_batch starts a thread pool, which costs more than it saves on one query
            if len(texts) == 1:
                return [self._tokenizer.encode(encodable(texts[0]))]
            return list(self._tokenizer.encode_batch([encodable(text) for text in texts]))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as err:  # tokenizers raises bare Exception, and panics of its Rust code are not even that
            path = self.artifact.folder / TOKENIZER
            message = f"{path} cannot cut a text: {one_line(err)}. Copy tokenizer.json from the checkpoint."
            raise ArtifactError(message) from err

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """See `TokenClassifier`.

        Raises:
            ArtifactError: the model does not run on this input.
        """
        feed = {entry.name: getattr(batch, entry.name).astype(entry.dtype, copy=False) for entry in self._feeds}
        try:
            (answer,) = self._session.run([self._output], feed)
        except Exception as err:
            shape = " by ".join(map(str, batch.input_ids.shape))
            message = f"{self.artifact.model_path(self.variant)} fails on a batch of {shape} tokens: {one_line(err)}"
            raise ArtifactError(message) from err
        logits: NDArray[np.float32] = np.asarray(answer).astype(np.float32, copy=False)
        expected = (*batch.input_ids.shape, len(self.labels))
        if logits.shape != expected:
            message = (
                f"{self.artifact.model_path(self.variant)} answers with logits of shape {logits.shape} where "
                f"{expected} (rows, tokens, labels of config.json) was expected. Export it again, or copy config.json from the checkpoint."
            )
            raise ArtifactError(message)
        return logits


def _feeds(inputs: Sequence[Any], path: Path) -> tuple[_Input, ...]:
    """Find out what the graph is fed with. Inputs under other names are not guessed: two that are exchanged also run."""
    known = ("input_ids", "attention_mask", "token_type_ids")
    names = [entry.name for entry in inputs]
    if surplus := [name for name in names if name not in known]:
        message = (
            f"{path} wants the input {surplus[0]!r}, which no tokenizer produces (its inputs: {', '.join(names)}). "
            f"Rename or remove it ({_GUIDE})."
        )
        raise ArtifactError(message)
    if known[0] not in names:
        message = (
            f"{path} has no input named input_ids (its inputs: {', '.join(names) or 'none'}). Export it with the names that "
            f"transformers uses ({_GUIDE})."
        )
        raise ArtifactError(message)
    for entry in inputs:
        if entry.type not in _INTEGERS:
            message = f"{path} wants {entry.name} as {entry.type}, where token classifiers take int64 or int32. Export it again."
            raise ArtifactError(message)
    return tuple(_Input(entry.name, _INTEGERS[entry.type]) for entry in inputs)


def _logits_output(outputs: Sequence[Any], labels: int, path: Path) -> str:
    """Name the output that holds the logits: the one of that name, else the only one if it can be them."""
    named = {entry.name: entry for entry in outputs}
    found = named.get(_LOGITS) or (outputs[0] if len(outputs) == 1 else None)
    if found is None:
        message = (
            f"{path} has no output named logits (it has: {', '.join(named)}). Export a token classifier, or rename the "
            f"output that holds its logits ({_GUIDE})."
        )
        raise ArtifactError(message)
    # a size that the file leaves open is a text or None; `logits` checks every answer's
    shape = found.shape or [None, None, labels]
    if found.type not in _FLOATS or len(shape) != 3 or (isinstance(shape[-1], int) and shape[-1] != labels):
        message = (
            f"{path}: the output {found.name} is {found.type} of shape {_text_of(shape)}, not one float for each of {labels} "
            "labels of config.json. Export a token classifier, or copy config.json from the checkpoint."
        )
        raise ArtifactError(message)
    return str(found.name)


def _text_of(shape: Sequence[object]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _load_tokenizer(path: Path, maximum: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
        # Whatever the file says about truncation and padding: rows are cut and padded here, visibly.
        tokenizer.no_padding()
        tokenizer.enable_truncation(maximum, stride=overlap(maximum))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as err:  # see _encodings
        message = f"{path} cannot be loaded as a tokenizer: {one_line(err)}. Export again."
        raise ArtifactError(message) from err
    return tokenizer


def serving_settings(threads: int = 1) -> dict[str, int | str]:
    """Say what a candidate is opened with, in the words of the manifest's `serving` entry."""
    options = session_options(threads)
    return {
        "intra_op_num_threads": int(options.intra_op_num_threads),
        "graph_optimization_level": str(options.graph_optimization_level.name),
        "provider": _PROVIDER,
    }


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
        return onnxruntime.InferenceSession(str(path), sess_options=session_options(threads), providers=[_PROVIDER])
    except Exception as err:
        message = f"{path} cannot be loaded by onnxruntime {onnxruntime.__version__}: {one_line(err)}. Export again."
        raise ArtifactError(message) from err
