"""A blank spaCy pipeline with its own entity recogniser, trained here. Runs under a Python that has spaCy.

Comparable in its task alone: a small convolutional network without pretrained weights, no token logits, tags of its own
tokenizer. So it stands in the rows from text to entities and in that of F1, and nowhere else.
"""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines.contender import Call, Settings, Unsupporting

_EPOCHS = 8
_SEED = 20261123
_ROWS = 256


def open_contender(settings: Settings, threads: int) -> Blank:  # noqa: ARG001  # spaCy takes one
    """Open what was trained, or train it from the labelled queries in `settings["train"]` and keep it."""
    spacy = importlib.import_module("spacy")
    folder = Path(settings["cache"]) / "spacy"
    if not folder.is_dir():
        trained(spacy, json.loads(Path(settings["train"]).read_text(encoding="utf-8"))).to_disk(folder)
    return Blank(spacy.load(folder))


def trained(spacy: Any, rows: Sequence[tuple[str, list[list[Any]]]]) -> Any:
    """Train on texts with their spans (start, end, label); spans that are not whole spaCy tokens are left out."""
    training, util = importlib.import_module("spacy.training"), importlib.import_module("spacy.util")
    random.seed(_SEED)
    util.fix_random_seed(_SEED)
    language = spacy.blank("en")
    recogniser = language.add_pipe("ner")
    for label in sorted({span[2] for _, spans in rows for span in spans}):
        recogniser.add_label(label)
    examples = []
    for text, spans in rows:
        doc = language.make_doc(text)
        whole = [doc.char_span(*span) for span in spans]
        doc_spans = util.filter_spans([span for span in whole if span is not None])
        entities = [(span.start_char, span.end_char, span.label_) for span in doc_spans]
        examples.append(training.Example.from_dict(doc, {"entities": entities}))
    optimizer = language.initialize(lambda: examples)
    for _ in range(_EPOCHS):
        random.shuffle(examples)
        for batch in util.minibatch(examples, size=32):
            language.update(batch, sgd=optimizer, drop=0.1)
    return language


class Blank(Unsupporting):
    """A spaCy pipeline."""

    def __init__(self, language: Any) -> None:
        """Keep it."""
        self._language = language

    def text_call(self, text: str) -> Call:
        """See `Contender`."""
        return lambda: [(entity.label_, entity.text) for entity in self._language(text).ents]

    def bulk_call(self, texts: Sequence[str]) -> Call:
        """See `Contender`."""
        return lambda: [[entity.label_ for entity in doc.ents] for doc in self._language.pipe(texts, batch_size=_ROWS)]

    def measure(self, name: str, settings: Settings) -> dict[str, list[float]]:
        """Give the entities of texts as flat numbers (`spans`): text, start, end, and the label's place in `labels`."""
        if name != "spans":
            return super().measure(name, settings)
        labels = settings["labels"]
        flat = [
            float(number)
            for index, doc in enumerate(self._language.pipe(settings["texts"], batch_size=_ROWS))
            for entity in doc.ents
            for number in (index, entity.start_char, entity.end_char, labels.index(entity.label_))
        ]
        return {"spans": flat}
