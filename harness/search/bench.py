"""Measure recipes: how near their answers are to FP32's, and how long a call takes beside the usual recipe's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from harness.errors import ArtifactError, UsageError, one_line
from harness.onnx_run import Feed, answers
from harness.paired.contest import Answer, Contest, Opener, UntimedPacer, run
from harness.paired.draw import Draw, draw_by_length
from harness.paired.workload import Workload
from harness.recipes.recipe import USUAL, Recipe
from harness.recipes.workshop import Workshop, feeds_of
from harness.scoring import Counts, count, strict_tags, tag_pair
from harness.search.measurements import Fidelity, Latency
from harness.serving import ServingSettings
from harness.tagging import LabelledSet, TaggedQuery, split_label
from harness.timing import Clock

if TYPE_CHECKING:
    from harness.paired.draw import Texts

# Odds of 7.4 to 1 between a word's first and second label; docs/policy.md.
CONFIDENT = 2.0
_LATENCY_BUDGET_S = 20.0
_WIDE = 0.02


class Bench:
    """An export's FP32 answers to validation queries, and what recipes make of them."""

    def __init__(self, workshop: Workshop, validation: LabelledSet, clock: Clock) -> None:
        """Answer the validation queries with the FP32 graph.

        Args:
            workshop: builds recipes.
            validation: labelled queries that calibration does not use.
            clock: where the time comes from.

        Raises:
            UsageError: there is no query that recipes can be compared on.
        """
        self._workshop = workshop
        self._clock = clock
        candidate = workshop.candidate
        encoded = candidate.encode(validation.texts)
        # a query of several windows would need their answers joined; few are that long
        kept = [index for index, query in enumerate(encoded) if len(query.windows) == 1 and query.windows[0].heads]
        if not kept:
            message = (
                f"{validation.name} has no labelled query of one window to validate recipes on. Name labelled queries, or a "
                "recipe instead of auto."
            )
            raise UsageError(message)
        self._queries = [validation.queries[index] for index in kept]
        self._encoded = [encoded[index] for index in kept]
        self._feeds = feeds_of(candidate, [query.text for query in self._queries])
        self._labels = candidate.labels
        kinds = {split_label(label)[1] for label in self._labels if label != "O"}
        self._types = sorted({*validation.entity_types, *kinds})
        self._reference = self._word_logits(answers(workshop.plain, self._feeds))
        self._reference_counts = self._count(self._reference)
        self._usual: onnx.ModelProto | None = None

    def fidelity(self, recipe: Recipe) -> Fidelity:
        """Build a recipe and compare its answers with FP32's.

        Raises:
            ArtifactError: it cannot be built or run, or does not answer with numbers.
        """
        model = self._workshop.build(recipe)
        found = self._word_logits(self._answers(model, recipe))
        return self._compared(found, model.ByteSize())

    def _answers(self, model: onnx.ModelProto, recipe: Recipe) -> list[NDArray[np.float32]]:
        try:
            found = answers(model, self._feeds, recipe.serving)
        except Exception as err:  # onnxruntime raises whatever it likes
            message = f"what the recipe {recipe.name} makes cannot be run: {one_line(err)}. Name another recipe."
            raise ArtifactError(message) from err
        if not all(np.isfinite(row).all() for row in found):
            message = (
                f"what the recipe {recipe.name} makes answers with infinite numbers, or none. Name another recipe."
            )
            raise ArtifactError(message)
        return found

    def _compared(self, found: Sequence[NDArray[np.float32]], size_bytes: int) -> Fidelity:
        differences = np.concatenate(
            [np.abs(one - two).ravel() for one, two in zip(found, self._reference, strict=True)]
        )
        changed = [one.argmax(1) != two.argmax(1) for one, two in zip(found, self._reference, strict=True)]
        margins = np.concatenate(
            [_margins(logits)[flipped] for logits, flipped in zip(self._reference, changed, strict=True)]
        )
        return Fidelity(
            mean_logit_difference=float(differences.mean()),
            largest_logit_difference=float(differences.max()),
            changed_queries=float(np.mean([flipped.any() for flipped in changed])),
            changed_words=float(np.concatenate(changed).mean()),
            confident_flips=int((margins >= CONFIDENT).sum()),
            largest_flipped_margin=float(margins.max(initial=0.0)),
            f1_loss=self._reference_counts.micro - self._count(found).micro,
            size_bytes=size_bytes,
        )

    def _word_logits(self, logits: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Keep the logits of each word's first subword: float32, (words, labels) a query."""
        found = []
        for query, row in zip(self._encoded, logits, strict=True):
            (window,) = query.windows
            words = np.zeros((len(query.words), row.shape[-1]), np.float32)
            words[list(window.words)] = row[0][list(window.heads)]
            found.append(words)
        return found

    def _count(self, logits: Sequence[NDArray[np.float32]]) -> Counts:
        pairs = []
        for query, encoded, words in zip(self._queries, self._encoded, logits, strict=True):
            tagged = TaggedQuery(query.text, encoded.words, words)
            tags = strict_tags([self._labels[index] for index in tagged.label_ids], self._labels)
            pairs.append(tag_pair(query, encoded.words, tags))
        return count(pairs, self._types)

    def latency(self, recipe: Recipe) -> Latency:
        """Time a recipe's calls in turns with the usual recipe's.

        Raises:
            ArtifactError: one of them cannot be built.
            MeasurementError: the timings cannot carry a ratio.
        """
        if self._usual is None:
            self._usual = self._workshop.build(USUAL)
        draw = self._draw()
        by_text = {query.text: feed for query, feed in zip(self._queries, self._feeds, strict=True)}
        with tempfile.TemporaryDirectory(prefix="harness-search-") as temporary:
            subject, baseline = Path(temporary) / "subject.onnx", Path(temporary) / "usual.onnx"
            onnx.save(self._workshop.build(recipe), str(subject))
            onnx.save(self._usual, str(baseline))
            contest = Contest(
                _opener(subject, recipe.serving, by_text), _opener(baseline, USUAL.serving, by_text), draw, Workload(),
                self._clock,
            )  # fmt: skip
            run(
                contest, UntimedPacer(), lambda: _is_narrow(contest), self._clock,
                baseline_name=USUAL.name, budget_s=_LATENCY_BUDGET_S,
            )  # fmt: skip
        ratio = contest.ratio()
        return Latency(ratio.value, ratio.low, ratio.high, ratio.rounds)

    def _draw(self) -> Draw:
        tokens = [len(query.windows[0].input_ids) for query in self._encoded]
        return draw_by_length([query.text for query in self._queries], tokens)


def _is_narrow(contest: Contest) -> bool:
    ratio = contest.ratio()
    return ratio.high / ratio.low < 1 + 2 * _WIDE


def _opener(path: Path, settings: ServingSettings, by_text: dict[str, Feed]) -> Opener:
    def opened() -> Answer:
        session = settings.open_session(path)
        wanted = [entry.name for entry in session.get_inputs()]
        return lambda texts: _run(session, wanted, by_text, texts)

    return opened


def _run(
    session: onnxruntime.InferenceSession, wanted: Sequence[str], by_text: dict[str, Feed], texts: Texts
) -> object:
    return [session.run(None, {name: by_text[text][name] for name in wanted}) for text in texts]


def _margins(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf, np.float32)
    ordered = np.partition(logits, -2, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2], np.float32)
