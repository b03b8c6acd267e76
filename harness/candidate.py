"""An ONNX export opened as a token classifier, with onnxruntime, tokenizers and numpy alone.

Opens each variant with the settings that its manifest names; judging and serving open candidates through the same
code, so what was judged is what runs.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer

from harness.artifact import (
    CONFIG,
    MANIFEST,
    TOKENIZER,
    Artifact,
    Variant,
    config_labels,
    digest_of_digests,
    folder_digests,
    open_artifact,
)
from harness.encoding import encodable, encoded_query, maximum_tokens, overlap
from harness.errors import ArtifactError, one_line
from harness.serving import OptimizationLevel, Provider, Runtime, ServingSettings
from harness.tagging import Batch

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    from harness.serving import Session
    from harness.tagging import EncodedQuery

_LOGITS = "logits"
_IDS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"
# onnxruntime's names of the types that are understood; the batch is cast to what the graph takes.
_INTEGERS: dict[str, np.dtype[Any]] = {"tensor(int64)": np.dtype(np.int64), "tensor(int32)": np.dtype(np.int32)}
_FLOATS = frozenset({"tensor(float)", "tensor(float16)", "tensor(double)"})
# Steps of a tokenizer that cut what they get, and neither add to it nor join it.
_ONLY_CUT = frozenset({"BertPreTokenizer", "Digits", "Punctuation", "Split", "Whitespace", "WhitespaceSplit"})
_GUIDE = "docs/judging-other-exports.md says how"


@dataclass(frozen=True, slots=True)
class _Input:
    """An input of the graph: the column of a `Batch` that it takes, and in which type."""

    name: str
    dtype: np.dtype[Any]


class Candidate:
    """One variant of an export; a `TokenClassifier`."""

    def __init__(
        self,
        artifact: Artifact,
        variant: Variant,
        *,
        threads: int | None = None,
        runtime: Runtime = Runtime.ONNXRUNTIME,
    ) -> None:
        """Load tokenizer and model.

        Args:
            artifact: the export.
            variant: which of its models.
            threads: threads inside one model run; by default what the manifest says, which is one.
            runtime: what runs the model.

        Raises:
            ArtifactError: a file cannot be loaded, the manifest's settings cannot be followed, or the model's inputs
                or outputs are not those of a token classifier.
            MissingPackageError: the runtime is not installed.
        """
        self.artifact = artifact
        self.variant = variant
        self.runtime = runtime
        self.labels = config_labels(artifact.config, f"{artifact.folder}/config.json")
        self.maximum_tokens = maximum_tokens(artifact.config, artifact.tokenizer_config)
        self._state = _state_of(artifact, variant)
        self._tokenizer = _load_tokenizer(artifact.folder / TOKENIZER, self.maximum_tokens)
        self.pad_token_id = int(artifact.config.get("pad_token_id") or 0)
        path = artifact.model_path(variant)
        entry = artifact.entry(variant)
        if entry.cpu:
            from harness.instruction_sets import check_cpu  # not at the start of a program whose release fits any CPU

            check_cpu(entry.cpu, str(path))
        self.settings = entry.serving if threads is None else replace(entry.serving, threads=threads)
        session = self._opened()
        self._feeds = _feeds(session.get_inputs(), path)
        self._integers = {entry.name: entry.dtype for entry in self._feeds}
        self._constants: dict[int, dict[str, NDArray[Any]]] = {}
        self._outputs = [_logits_output(session.get_outputs(), len(self.labels), path)]
        self.inputs = frozenset(entry.name for entry in self._feeds)
        self._session: Session | None = session
        self._begin_alone()

    def reopened(self) -> Candidate:
        """Open the same model once more: a session of its own, the tokenizer shared.

        Two sessions of one file are not equally fast; where their memory happens to lie makes a difference.

        Raises:
            ArtifactError: the file cannot be loaded any more.
        """
        another = object.__new__(type(self))  # copy.copy would go the way of pickle
        another.__dict__.update(self.__dict__)
        another._session = self._opened()
        another._begin_alone()
        return another

    def _opened(self) -> Session:
        return self.settings.open_session(self.artifact.model_path(self.variant), self.runtime)

    def _begin_alone(self) -> None:
        """Set what is this object's own: which calls are going on, and the lock under which a session is opened."""
        self._calls: list[None] = []
        self._opening = threading.Lock()
        _OPEN.add(self)

    @property
    def session(self) -> Session:
        """The session that answers; opened again first if a fork left it behind."""
        session = self._session
        if session is None:  # a fork left it behind
            with self._opening:
                if self._session is None:
                    self._session = self._opened()
                session = self._session
        return session

    def after_fork(self) -> None:
        """Leave behind, in a forked child, what cannot be used there; it is opened again when it is needed.

        A session of one thread that was idle works on, its weights shared with the parent. One with threads of its
        own waits forever for them: a fork copies none. One that was in use may have locks that nobody opens.
        OpenVINO has threads of its own whatever its settings, and refuses to open a model again there.
        """
        if self.settings.threads != 1 or self._calls or self.runtime is not Runtime.ONNXRUNTIME:
            _leave_behind(self._session)
            self._session = None
        if self._calls:
            self._tokenizer = _load_tokenizer(self.artifact.folder / TOKENIZER, self.maximum_tokens)
        self._calls = []
        self._opening = threading.Lock()

    @cached_property
    def answers_depend_on_mates(self) -> bool:
        """Whether the other rows of a model run change a row's answer, so that rows must be run alone.

        They do where the release was measured to do so, and where scales are made of all that is in a run:
        onnxruntime's operators for that are named `DynamicQuantize…` (onnxruntime#8625).
        """
        contract = (self.artifact.manifest or {}).get("contract")
        if isinstance(contract, dict) and _mates_counted(contract, self.variant):
            return True
        path = self.artifact.model_path(self.variant)
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"DynamicQuantize") >= 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Have another process open the same release, which must still be what it was; no session is copied.

        Raises:
            ArtifactError: the release was changed since it was opened.
        """
        if _state_of(self.artifact, self.variant) != self._state:
            raise ArtifactError(_changed(self.artifact.folder))
        opened_as = (self.settings.threads, self.runtime.value)
        arguments = (str(self.artifact.folder), self.variant.value, *opened_as, self._stamp())
        return (_opened_elsewhere, arguments)

    def _stamp(self) -> str:
        """Digest what is opened: all files of the folder but those of other variants."""
        others = frozenset(variant.file_name for variant in Variant if variant is not self.variant)
        return digest_of_digests(folder_digests(self.artifact.folder, leave_out=others))

    @property
    def cuts_plainly(self) -> bool:
        """Whether words of printable ASCII are what stands between its spaces and signs, as BERT cuts them."""
        normalizer, cutter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        if not isinstance(normalizer, BertNormalizer) or cutter is None:
            return False
        written = json.loads(cutter.__getstate__())
        first, *others = [part["type"] for part in written.get("pretokenizers", [written])]
        return first == "BertPreTokenizer" and _ONLY_CUT.issuperset(others)

    @property
    def opened_with(self) -> ServingSettings:
        """What onnxruntime says that the session was opened with; of disabled optimizers it says nothing.

        Raises:
            TypeError: the model is run by something else, which has no such settings.
        """
        session: Any = self.session
        if self.runtime is not Runtime.ONNXRUNTIME:
            message = f"the settings are onnxruntime's, and {self.runtime.value} runs this model"
            raise TypeError(message)
        options = session.get_session_options()
        return ServingSettings(
            options.intra_op_num_threads,
            OptimizationLevel(options.graph_optimization_level.name),
            self.settings.disabled_optimizers,
            Provider(session.get_providers()[0]),
        )

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
        self._calls.append(None)
        try:
            # encode_batch starts a thread pool, which costs more than it saves on one query
            if len(texts) == 1:
                return [self._tokenizer.encode(encodable(texts[0]))]
            return list(self._tokenizer.encode_batch([encodable(text) for text in texts]))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as err:  # tokenizers raises bare Exception, and panics of its Rust code are not even that
            raise self._uncut(err) from err
        finally:
            self._calls.pop()

    def encode_alone(self, text: str) -> Encoding:
        """Cut one text, which holds no half of a surrogate pair; what is beyond the model's maximum is in `overflowing`.

        Raises:
            ArtifactError: the tokenizer does not take it.
        """
        self._calls.append(None)
        try:
            return self._tokenizer.encode(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as err:  # see _encodings
            raise self._uncut(err) from err
        finally:
            self._calls.pop()

    def _uncut(self, err: BaseException) -> ArtifactError:
        path = self.artifact.folder / TOKENIZER
        return ArtifactError(f"{path} cannot cut a text: {one_line(err)}. Copy tokenizer.json from the checkpoint.")

    def logits_alone(self, encoding: Encoding) -> NDArray[np.float32]:
        """Run the model on one text that is no longer than it reads: float32, (tokens, labels).

        The run that `logits` makes of the same row, with nothing built that it can do without.

        Raises:
            ArtifactError: the model does not run on it.
        """
        ids = encoding.ids
        count = len(ids)
        feed = self._constants.get(count)
        if feed is None:
            feed = self._constants[count] = self._constant_feed(count)
        feed = {**feed, _IDS: np.array([ids], self._integers[_IDS])}
        if self._numbers_types:
            feed[_TYPES] = np.array([encoding.type_ids], self._integers[_TYPES])
        row: NDArray[np.float32] = self._run(feed, (1, count))[0]
        return row

    @cached_property
    def _numbers_types(self) -> bool:
        """Whether token types are not all 0. A single text's tokens are typed by whether they are special: any text tells."""
        return _TYPES in self._integers and any(self.encode_alone("a").type_ids)

    def _constant_feed(self, count: int) -> dict[str, NDArray[Any]]:
        """Make the mask and the token types of a row without padding; nobody writes into them."""
        values = {_MASK: 1, _TYPES: 0}
        return {entry.name: np.full((1, count), values.get(entry.name, 0), entry.dtype) for entry in self._feeds}

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """See `TokenClassifier`.

        Raises:
            ArtifactError: the model does not run on this input.
        """
        feed = {entry.name: getattr(batch, entry.name).astype(entry.dtype, copy=False) for entry in self._feeds}
        return self._run(feed, batch.input_ids.shape)

    def _run(self, feed: dict[str, NDArray[Any]], tokens: tuple[int, ...]) -> NDArray[np.float32]:
        session = self._session or self.session
        self._calls.append(None)
        try:
            (answer,) = session.run(self._outputs, feed)
        except Exception as err:
            shape = " by ".join(map(str, tokens))
            message = f"{self.artifact.model_path(self.variant)} fails on a batch of {shape} tokens: {one_line(err)}"
            raise ArtifactError(message) from err
        finally:
            self._calls.pop()
        logits: NDArray[np.float32] = np.asarray(answer).astype(np.float32, copy=False)
        expected = (*tokens, len(self.labels))
        if logits.shape != expected:
            message = (
                f"{self.artifact.model_path(self.variant)} answers with logits of shape {logits.shape} where "
                f"{expected} (rows, tokens, labels of config.json) was expected. Export it again, or copy config.json from the checkpoint."
            )
            raise ArtifactError(message)
        return logits


def _opened_elsewhere(folder: str, variant: str, threads: int, runtime: str, stamp: str) -> Candidate:
    """Open what another process had open.

    Raises:
        ArtifactError: it cannot be opened, or is another release by now.
    """
    candidate = Candidate(open_artifact(Path(folder)), Variant(variant), threads=threads, runtime=Runtime(runtime))
    if candidate._stamp() != stamp:  # noqa: SLF001
        raise ArtifactError(_changed(candidate.artifact.folder))
    return candidate


def _changed(folder: Path) -> str:
    return (
        f"{folder} was changed since it was opened, so that no other process can open the same. Open the release again."
    )


def _state_of(artifact: Artifact, variant: Variant) -> tuple[tuple[int, int, int], ...]:
    """Tell files from those that take their place, without reading them."""
    paths = (artifact.model_path(variant), *(artifact.folder / name for name in (CONFIG, TOKENIZER, MANIFEST)))
    found = [path.stat() for path in paths if path.is_file()]
    return tuple((entry.st_ino, entry.st_size, entry.st_mtime_ns) for entry in found)


def _mates_counted(contract: Mapping[str, Any], variant: Variant) -> bool:
    """Look up the measure of the suite `parity` that says so, as `harness release` writes it into the manifest."""
    measured = contract.get(f"parity.{variant.value}.batch_dependent_queries")
    value = measured.get("value") if isinstance(measured, dict) else None
    return isinstance(value, int | float) and value > 0


# Every candidate of this process; a fork has to know them.
_OPEN: weakref.WeakSet[Candidate] = weakref.WeakSet()


def _after_fork() -> None:
    for candidate in list(_OPEN):
        candidate.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _leave_behind(session: Session | None) -> None:
    """Never destroy a session: its destructor waits for threads that a fork did not copy."""
    import ctypes  # only where a process was forked

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


def _feeds(inputs: Sequence[Any], path: Path) -> tuple[_Input, ...]:
    """Find out what the graph is fed with. Inputs under other names are not guessed: two that are exchanged also run."""
    known = (_IDS, _MASK, _TYPES)
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


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Build the options that a model without settings of its own is judged and served with."""
    return ServingSettings(threads).session_options()
