"""Entities from queries, in a program: what a release is for.

With `use_onnx=True` this needs onnxruntime, tokenizers and numpy, and imports nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from harness.tagging import OUTSIDE, EntityRun, TaggedQuery, entity_runs, split_label, tag

if TYPE_CHECKING:
    from harness.tagging import TokenClassifier


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
        threads: int = 1,
    ) -> None:
        """Load a model.

        Args:
            model_path: a release folder, or a checkpoint folder with `use_onnx=False`.
            use_onnx: answer through onnxruntime or through PyTorch.
            variant: `fp32` or `int8`; by default what the release's manifest says. ONNX only.
            threads: threads inside one model run. Releases are judged with one. ONNX only.

        Raises:
            HarnessError: the folder cannot be used; the text says why and what to do.
        """
        self._model = _open_onnx(Path(model_path), variant, threads) if use_onnx else _open_torch(Path(model_path))
        self.labels = self._model.labels
        self.entity_types = tuple(dict.fromkeys(split_label(label)[1] for label in self.labels if label != OUTSIDE))

    def extract(self, query: str) -> dict[str, str | None]:
        """Find the first entity of each type; `None` where there is none."""
        return self.extract_detailed(query)["entities"]

    def extract_detailed(self, query: str) -> DetailedAnswer:
        """Find all entities with their places and scores."""
        return self.batch_extract_detailed([query])[0]

    def batch_extract(self, queries: Sequence[str], batch_size: int = 32) -> list[dict[str, str | None]]:
        """Answer many queries at once; see `extract`."""
        return [answer["entities"] for answer in self.batch_extract_detailed(queries, batch_size)]

    def batch_extract_detailed(self, queries: Sequence[str], batch_size: int = 32) -> list[DetailedAnswer]:
        """Answer many queries at once; see `extract_detailed`."""
        if isinstance(queries, str):
            message = "queries must be a sequence of texts, not one text; use extract for one"
            raise TypeError(message)
        return [self._answer(tagged) for tagged in tag(self._model, list(queries), batch_size)]

    def _answer(self, tagged: TaggedQuery) -> DetailedAnswer:
        raw = _raw_entities(tagged, self.labels)
        entities: dict[str, str | None] = dict.fromkeys(self.entity_types)
        for entity in reversed(raw):
            entities[entity["label"]] = entity["text"]
        return {"query": tagged.text, "entities": entities, "raw_entities": raw}


class BusNERInference(NERInference):
    """`NERInference` under the name of the reference domain, bus-ticket search."""


def _raw_entities(tagged: TaggedQuery, labels: Sequence[str]) -> list[RawEntity]:
    if not tagged.words:
        return []
    ids = tagged.label_ids
    runs = entity_runs([labels[index] for index in ids])
    # softmax of the winning label: exp(0) over the sum of exp(logit - highest)
    shifted = np.exp(tagged.logits - tagged.logits.max(axis=1, keepdims=True))
    scores = 1.0 / shifted.sum(axis=1)
    return [_raw_entity(tagged, run, float(scores[run.first : run.last + 1].mean())) for run in runs]


def _raw_entity(tagged: TaggedQuery, run: EntityRun, score: float) -> RawEntity:
    start, end = tagged.words[run.first].start, tagged.words[run.last].end
    return {"text": tagged.text[start:end], "label": run.kind, "start": start, "end": end, "score": score}


def _open_onnx(folder: Path, variant: str | None, threads: int) -> TokenClassifier:
    from harness.artifact import Variant, open_artifact
    from harness.candidate import Candidate
    from harness.errors import ArtifactError

    artifact = open_artifact(folder)
    names = [found.value for found in artifact.variants]
    if variant is not None and variant not in names:
        message = f"{folder} has no variant {variant!r} (it has: {', '.join(names)}). Release it with --quantize, or ask for another."
        raise ArtifactError(message)
    wanted = artifact.default_variant if variant is None else Variant(variant)
    return Candidate(artifact, wanted, threads=threads)


def _open_torch(folder: Path) -> TokenClassifier:
    from harness.errors import MissingPackageError

    try:
        from harness.reference import Reference
    except ImportError as err:
        message = f"use_onnx=False needs PyTorch and transformers ({err.name} is missing): pip install 'ner-release-harness[release]'."
        raise MissingPackageError(message) from err
    return Reference(folder)
