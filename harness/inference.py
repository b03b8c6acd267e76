"""Entities from queries, in a program: what a release is for.

With `use_onnx=True` this needs onnxruntime, tokenizers and numpy, and imports nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from harness.batches import Budget, Crew
from harness.encoding import plain_runs
from harness.tagging import OUTSIDE, EntityRun, TaggedQuery, entity_runs, split_label, tag

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

    from harness.candidate import Candidate
    from harness.tagging import TokenClassifier

# Queries of a list that are sorted by length together; more make no difference to the batches but for the last.
_PLANNED_TOGETHER = 2048


class RawEntity(TypedDict):
    """One entity: `text == query[start:end]`; `score` is the mean probability of its words' labels."""

    text: str
    label: str
    start: int
    end: int
    score: float


class DetailedAnswer(TypedDict):
    """Everything found in one query."""

    query: str
    entities: dict[str, str | None]
    raw_entities: list[RawEntity]


class NERInference:
    """A token classifier that answers with entities.

    Works on a release (`use_onnx=True`) and on a checkpoint (`use_onnx=False`, needs the `release`
    extra); both answer through the same decoding code.
    """

    def __init__(
        self,
        model_path: str | Path,
        use_onnx: bool = True,  # noqa: FBT001, FBT002  # the signature of DESIGN §4
        *,
        variant: str | None = None,
        threads: int | None = None,
        workers: int | None = None,
        runtime: str = "onnxruntime",
    ) -> None:
        """Load a model.

        Args:
            model_path: a release folder, or a checkpoint folder with `use_onnx=False`.
            use_onnx: answer through onnxruntime or through PyTorch.
            variant: `fp32` or `int8`; by default what the release's manifest says. ONNX only.
            threads: threads inside one model run; by default what the release's manifest says, which is one. ONNX only.
            workers: model runs at a time in `batch_extract` and the streams; by default one for each usable CPU if a
                run has one thread, else one. Processes that share a machine want one each. ONNX only.
            runtime: `onnxruntime`, or `openvino`, which is an extra: what runs the release's model. ONNX only.

        Raises:
            ValueError: `workers` is not above 0.
            HarnessError: the folder cannot be used; the text says why and what to do.
        """
        if workers is not None and workers < 1:
            message = f"workers must be 1 or more, not {workers}"
            raise ValueError(message)
        self._plain: Candidate | None = None
        self._model: TokenClassifier
        if use_onnx:
            self._model = candidate = _open_onnx(Path(model_path), variant, threads, runtime)
            self._plain = candidate if candidate.cuts_plainly else None
            self._crew = Crew(candidate, workers or _workers(candidate))
        else:
            self._model = _open_torch(Path(model_path))
            self._crew = Crew(self._model, 1)
        self.labels = self._model.labels
        self.entity_types = tuple(dict.fromkeys(split_label(label)[1] for label in self.labels if label != OUTSIDE))

    def extract(self, query: str) -> dict[str, str | None]:
        """Find the first entity of each type; `None` where there is none."""
        if self._plain is not None and query.isascii() and query.isprintable():
            encoding = self._plain.encode_alone(query)
            if not encoding.overflowing:
                return self._plain_entities(query, encoding, self._plain)
        (tagged,) = tag(self._model, [query])
        return self._entities(tagged)

    def extract_detailed(self, query: str) -> DetailedAnswer:
        """Find all entities with their places and scores."""
        (tagged,) = tag(self._model, [query])
        return self._answer(tagged)

    def batch_extract(self, queries: Sequence[str], batch_size: int = 32) -> list[dict[str, str | None]]:
        """Answer many queries, on all usable CPUs at once; see `extract`.

        Args:
            queries: the queries; the answers come in their order.
            batch_size: queries that share a model run at most. As many share one as make a few hundred tokens,
                and none where the model lets the others of a run change an answer.

        Raises:
            TypeError: `queries` is one text.
            ValueError: `batch_size` is not above 0.
            ArtifactError: the model cannot run.
        """
        return [self._entities(tagged) for tagged in self._tagged(queries, batch_size, _PLANNED_TOGETHER)]

    def batch_extract_detailed(self, queries: Sequence[str], batch_size: int = 32) -> list[DetailedAnswer]:
        """Answer many queries, on all usable CPUs at once; see `extract_detailed` and `batch_extract`."""
        return [self._answer(tagged) for tagged in self._tagged(queries, batch_size, _PLANNED_TOGETHER)]

    def extract_stream(
        self, queries: Iterable[str], batch_size: int = 32, *, window: int = 256
    ) -> Iterator[dict[str, str | None]]:
        """Answer queries as they come, from any iterable, an endless one too, in bounded memory.

        Args:
            queries: read as answers are taken, at most two windows ahead. If it raises, what it gave before is
                answered first, and then the error raised as it is.
            batch_size: see `batch_extract`.
            window: so many queries are sorted by length together; more is faster, fewer answer sooner.

        Returns:
            The answers, in the order of the queries.

        Raises:
            TypeError: `queries` is one text.
            ValueError: `batch_size` or `window` is not above 0.
            ArtifactError: the model cannot run.
        """
        return map(self._entities, self._tagged(queries, batch_size, window))

    def extract_stream_detailed(
        self, queries: Iterable[str], batch_size: int = 32, *, window: int = 256
    ) -> Iterator[DetailedAnswer]:
        """Answer queries as they come; see `extract_detailed` and `extract_stream`."""
        return map(self._answer, self._tagged(queries, batch_size, window))

    def _tagged(self, queries: Iterable[str], batch_size: int, window: int) -> Iterator[TaggedQuery]:
        if isinstance(queries, str):
            message = "queries must be a sequence of texts, not one text; use extract for one"
            raise TypeError(message)
        if window < 1:
            message = f"window must be 1 or more, not {window}"
            raise ValueError(message)
        budget = Budget(batch_size)
        return self._crew.tagged(queries, budget, window)

    def _plain_entities(self, query: str, encoding: Encoding, model: Candidate) -> dict[str, str | None]:
        """Answer a query whose words need no trimming, as most do; the same as `_entities` of what `tag` makes of it."""
        best = model.logits_alone(encoding).argmax(axis=1).tolist()
        entities: dict[str, str | None] = dict.fromkeys(self.entity_types)
        for kind, start, end in reversed(plain_runs(encoding, self.labels, best)):
            entities[kind] = query[start:end]
        return entities

    def _entities(self, tagged: TaggedQuery) -> dict[str, str | None]:
        entities: dict[str, str | None] = dict.fromkeys(self.entity_types)
        for run in reversed(_runs(tagged, self.labels)):
            entities[run.kind] = tagged.text[tagged.words[run.first].start : tagged.words[run.last].end]
        return entities

    def _answer(self, tagged: TaggedQuery) -> DetailedAnswer:
        raw = _raw_entities(tagged, _runs(tagged, self.labels))
        entities: dict[str, str | None] = dict.fromkeys(self.entity_types)
        for entity in reversed(raw):
            entities[entity["label"]] = entity["text"]
        return {"query": tagged.text, "entities": entities, "raw_entities": raw}


class BusNERInference(NERInference):
    """`NERInference` under the name of the reference domain, bus-ticket search."""


def _runs(tagged: TaggedQuery, labels: Sequence[str]) -> list[EntityRun]:
    return entity_runs([labels[index] for index in tagged.label_ids.tolist()])


def _raw_entities(tagged: TaggedQuery, runs: Sequence[EntityRun]) -> list[RawEntity]:
    if not runs:
        return []
    # softmax of the winning label: exp(0) over the sum of exp(logit - highest)
    shifted = np.exp(tagged.logits - tagged.logits.max(axis=1, keepdims=True))
    scores = 1.0 / shifted.sum(axis=1)
    return [_raw_entity(tagged, run, _mean(scores[run.first : run.last + 1])) for run in runs]


def _mean(scores: NDArray[np.float32]) -> float:
    """What `scores.mean()` is, without its overhead, which is as long as the rest of an answer."""
    return float(scores[0] if len(scores) == 1 else np.add.reduce(scores) / np.float32(len(scores)))


def _raw_entity(tagged: TaggedQuery, run: EntityRun, score: float) -> RawEntity:
    start, end = tagged.words[run.first].start, tagged.words[run.last].end
    return {"text": tagged.text[start:end], "label": run.kind, "start": start, "end": end, "score": score}


def _open_onnx(folder: Path, variant: str | None, threads: int | None, runtime: str) -> Candidate:
    from harness.artifact import Variant, open_artifact
    from harness.candidate import Candidate
    from harness.errors import ArtifactError
    from harness.serving import Runtime

    run_by = Runtime.named(runtime)
    artifact = open_artifact(folder)
    names = [found.value for found in artifact.variants]
    if variant is not None and variant not in names:
        message = f"{folder} has no variant {variant!r} (it has: {', '.join(names)}). Release it with --quantize, or ask for another."
        raise ArtifactError(message)
    wanted = artifact.default_variant if variant is None else Variant(variant)
    return Candidate(artifact, wanted, threads=threads, runtime=run_by)


def _workers(candidate: Candidate) -> int:
    """Count the runs that go on at once. One session serves them all: each thread that calls it computes by itself.

    OpenVINO's have them wait for each other (`harness.openvino_session`), so a second one would only take its turn.
    """
    from harness.machine import usable_cpus
    from harness.serving import Runtime

    alone = candidate.settings.threads != 1 or candidate.runtime is not Runtime.ONNXRUNTIME
    return 1 if alone else usable_cpus()


def _open_torch(folder: Path) -> TokenClassifier:
    from harness.errors import MissingPackageError

    try:
        from harness.reference import Reference
    except ImportError as err:
        message = f"use_onnx=False needs PyTorch and transformers ({err.name} is missing): pip install 'ner-release-harness[release]'."
        raise MissingPackageError(message) from err
    return Reference(folder)
