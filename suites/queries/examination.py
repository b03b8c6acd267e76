"""Asks the reference and one variant of a candidate, and compares what they say.

Each text is asked once: shrinking and the next variant meet the answers again. Whatever a candidate
does with a text, an exception included, is an answer here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.errors import one_line
from harness.inference import DetailedAnswer, NERInference
from harness.queries import GeneratedQuery, Origin, RelatedQueries, smallest_failing
from harness.tagging import (
    OUTSIDE,
    EncodedQuery,
    EntitySpan,
    TaggedQuery,
    TokenClassifier,
    Word,
    split_label,
    tag_encoded,
)
from suites.queries.cases import Cases, Plan

# A batch has two rows at least, and no more than these many rows and characters with its padding.
_ROWS, _REFERENCE_ROWS = 8, 32
_CHARACTERS = 4096
# How many characters shrinking may ask about, at 60 or more a query: where nothing may go wrong, and where some may.
_EFFORT = 6000
_SMALL_EFFORT = 1800
_SHOWN_QUERIES = 10
_SHOWN_CHARACTERS = 300
# The reference thought its label e times as probable as the next one. Only for what is shrunk and saved.
_CONFIDENT_MARGIN = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a model makes of a text: words and logits, or why there are none."""

    encoded: EncodedQuery | None = None
    tagged: TaggedQuery | None = None
    failure: str = ""


def ask(model: TokenClassifier, texts: Sequence[str]) -> list[Answer]:
    """Ask about all texts in one batch."""
    try:
        encoded = list(model.encode(texts))
        rows = sum(len(query.windows) for query in encoded)
        tagged = tag_encoded(model, encoded, max(rows, 1))
        return [_answer(*found) for found in zip(texts, encoded, tagged, strict=True)]
    except Exception as err:  # that it fails is the finding, whatever it raises
        failure = f"{type(err).__name__}: {one_line(err)}"
        return [Answer(failure=failure if len(texts) == 1 else f"in a batch of {len(texts)}: {failure}") for _ in texts]


def _answer(text: str, encoded: EncodedQuery, tagged: TaggedQuery) -> Answer:
    if encoded.text != text:
        return Answer(encoded, failure="the tokenizer answered about another text")
    bad = int((~np.isfinite(tagged.logits)).any(axis=1).sum())
    if bad:
        return Answer(encoded, failure=f"the logits of {bad} of {len(tagged.words)} words are not finite")
    return Answer(encoded, tagged)


def batches(texts: Sequence[str], rows: int = _ROWS) -> Iterator[list[str]]:
    """Cut a list of texts into batches, in order."""
    batch: list[str] = []
    for text in texts:
        longest = max(map(len, [*batch, text]))
        if len(batch) == rows or (len(batch) > 1 and longest * (len(batch) + 1) > _CHARACTERS):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


class ReferenceAnswers:
    """What the reference says about each text."""

    def __init__(self, model: TokenClassifier) -> None:
        self.labels = model.labels
        self._model = model
        self._answers: dict[str, Answer] = {}

    def prepare(self, texts: Sequence[str]) -> None:
        """Ask about many texts in few batches."""
        unknown = sorted((text for text in texts if text not in self._answers), key=len)
        for batch in batches(unknown, _REFERENCE_ROWS):
            answers = ask(self._model, batch)
            if all(answer.tagged for answer in answers):
                self._answers.update(zip(batch, answers, strict=True))

    def answer(self, text: str) -> Answer:
        """Look up, or ask about, one text."""
        if text not in self._answers:
            (self._answers[text],) = ask(self._model, [text])
        return self._answers[text]

    def refused(self, texts: Sequence[str]) -> dict[str, str]:
        """Tell which texts the reference itself fails on, and why; they are no question to a candidate."""
        return {text: self.answer(text).failure for text in texts if self.answer(text).failure}


class _Answering(NERInference):
    """The answers of a program that uses the release, from what the model said."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.entity_types = tuple(dict.fromkeys(split_label(label)[1] for label in labels if label != OUTSIDE))

    def answer(self, tagged: TaggedQuery) -> DetailedAnswer:
        return self._answer(tagged)


@dataclass(frozen=True, slots=True)
class Found:
    """A value to record, what explains it, and the texts to save."""

    value: float
    details: dict[str, Any]
    saves: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Flip:
    """A word that the candidate labels otherwise than the reference, and by how much the reference was sure."""

    word: str
    reference: str
    candidate: str
    margin: float


class Examination:
    """One variant of a candidate beside the reference."""

    def __init__(self, model: TokenClassifier, reference: ReferenceAnswers, cases: Cases) -> None:
        self.cases = cases
        self.labels = model.labels
        self.reference = reference
        self._model = model
        self._answering = _Answering(model.labels)
        self._alone: dict[str, Answer] = {}
        self._together: dict[tuple[str, ...], list[Answer]] = {}
        self._batch_of = {
            text: tuple(batch) for batch in batches([query.text for query in cases.queries]) for text in batch
        }

    def alone(self, text: str) -> Answer:
        """Ask about a text alone."""
        if text not in self._alone:
            self._alone[text] = self.again(text)
        return self._alone[text]

    def again(self, text: str) -> Answer:
        """Ask about a text alone, whether or not it was asked before."""
        return ask(self._model, [text])[0]

    def batch_of(self, text: str) -> tuple[str, ...]:
        """List the texts that one of the cases shares its batch with, itself among them."""
        return self._batch_of[text]

    def batched(self, text: str, batch: tuple[str, ...]) -> Answer:
        """Ask about a text in a batch."""
        if batch not in self._together:
            self._together[batch] = ask(self._model, batch)
        return self._together[batch][batch.index(text)]

    def program_answer(self, tagged: TaggedQuery) -> DetailedAnswer:
        """Give the answer that a program with this release gets."""
        return self._answering.answer(tagged)

    def flips(self, text: str) -> list[Flip]:
        """Compare the labels of a text; nothing where either model has none."""
        reference, candidate = self.reference.answer(text).tagged, self.alone(text).tagged
        if reference is None or candidate is None:
            return []
        theirs = {
            tuple(word): self.labels[index] for word, index in zip(candidate.words, candidate.label_ids, strict=True)
        }
        flips = []
        for word, index, margin in zip(reference.words, reference.label_ids, reference.margins, strict=True):
            label, other = self.reference.labels[index], theirs.get(tuple(word), "(no such word)")
            if label != other:
                flips.append(Flip(text[word.start : word.end], label, other, float(margin)))
        return flips

    def described(self, text: str) -> dict[str, Any]:
        """Say what both models find in a text."""
        return {
            "query": _shown(text),
            "reference": _entities(self.reference.answer(text), self.reference.labels),
            "candidate": _entities(self.alone(text), self.labels),
        }


# Why a text, in a batch, breaks a property; empty if it keeps it. A text that has no answer breaks only the first.
Check = Callable[[Examination, str, tuple[str, ...]], str]


def failure(examined: Examination, text: str, batch: tuple[str, ...]) -> str:
    """Tokenizer and model answer, with finite logits, alone and in a batch."""
    if why := examined.alone(text).failure:
        return why
    why = examined.batched(text, batch).failure
    # one bad query fails its whole batch; it is counted, not its mates
    return "" if any(examined.alone(mate).failure for mate in batch) else why


def tokenization_difference(examined: Examination, text: str, _batch: tuple[str, ...]) -> str:
    """Words, windows and token ids are the reference's."""
    wanted, got = examined.reference.answer(text).encoded, examined.alone(text).encoded
    return "" if wanted is None or got is None else _encoding_difference(wanted, got)


def _encoding_difference(wanted: EncodedQuery, got: EncodedQuery) -> str:
    if list(map(tuple, wanted.words)) != list(map(tuple, got.words)):
        return _first_difference("word", list(map(tuple, wanted.words)), list(map(tuple, got.words)))
    if len(wanted.windows) != len(got.windows):
        return f"{len(wanted.windows)} windows in the reference, {len(got.windows)} in the candidate"
    for one, other in zip(wanted.windows, got.windows, strict=True):
        for name, theirs in other._asdict().items():
            ours = getattr(one, name)
            if list(ours) != list(theirs):
                return _first_difference(name, list(ours), list(theirs))
    return ""


def _first_difference(name: str, wanted: Sequence[object], got: Sequence[object]) -> str:
    if len(wanted) != len(got):
        return f"{name}: {len(wanted)} in the reference, {len(got)} in the candidate"
    place = next(place for place, (one, other) in enumerate(zip(wanted, got, strict=True)) if one != other)
    return f"{name} number {place}: {wanted[place]} in the reference, {got[place]} in the candidate"


def offset_violation(examined: Examination, text: str, _batch: tuple[str, ...]) -> str:
    """Words and entities lie in the text, in order and apart, and each entity's text is what stands there."""
    tagged = examined.alone(text).tagged
    if tagged is None:
        return ""
    if wrong := _misplaced("word", [tuple(word) for word in tagged.words], len(text)):
        return wrong
    try:
        answer = examined.program_answer(tagged)
    except Exception as err:  # decoding what the model said must not fail either
        return f"{type(err).__name__}: {one_line(err)}"
    raw = answer["raw_entities"]
    for entity in raw:
        if entity["text"] != text[entity["start"] : entity["end"]]:
            return f"entity {entity['text']!r} is not what stands at {entity['start']}-{entity['end']}"
    first = {entity["label"]: entity["text"] for entity in reversed(raw)}
    if {kind: found for kind, found in answer["entities"].items() if found is not None} != first:
        return f"the entities by type, {answer['entities']}, are not the first of each type"
    return _misplaced("entity", [(entity["start"], entity["end"]) for entity in raw], len(text))


def _misplaced(name: str, places: Sequence[tuple[int, ...]], length: int) -> str:
    last = 0
    for start, end in places:
        if not last <= start < end <= length:
            return f"{name} {start}-{end} after {last} in a text of {length} characters"
        last = end
    return ""


def nondeterminism(examined: Examination, text: str, _batch: tuple[str, ...]) -> str:
    """The same text twice gives the same logits, bit by bit."""
    once = examined.alone(text).tagged
    if once is None:
        return ""
    twice = examined.again(text)
    if twice.tagged is None:
        return f"asked again: {twice.failure}"
    if list(once.words) != list(twice.tagged.words):
        return "asked again: other words"
    apart = _apart(once, twice.tagged)
    return f"asked again: logits differ by {apart:.3g}" if apart > 0 else ""


def batch_dependence(examined: Examination, text: str, batch: tuple[str, ...]) -> str:
    """The labels are the same alone and in a batch."""
    alone, together = examined.alone(text).tagged, examined.batched(text, batch).tagged
    if alone is None or together is None:
        return ""
    if list(alone.words) != list(together.words):
        return f"other words in a batch of {len(batch)}"
    changed = np.flatnonzero(alone.label_ids != together.label_ids)
    if not changed.size:
        return ""
    word: Word = alone.words[changed[0]]
    one, other = examined.labels[alone.label_ids[changed[0]]], examined.labels[together.label_ids[changed[0]]]
    return f"{text[word.start : word.end]!r} is {one} alone and {other} in a batch of {len(batch)}"


PROPERTIES: dict[str, Check] = {
    "failed_queries": failure,
    "tokenization_differences": tokenization_difference,
    "offset_violations": offset_violation,
    "nondeterministic_queries": nondeterminism,
    "batch_dependent_queries": batch_dependence,
}


def count_violations(examined: Examination, check: Check) -> Found:
    """Count the queries that break a property, and let hypothesis find a small one that does."""
    queries = examined.cases.queries
    broken = {query: why for query in queries if (why := check(examined, query.text, examined.batch_of(query.text)))}
    details: dict[str, Any] = {
        "of": len(queries),
        "queries": [
            {"query": _shown(query.text), "origin": query.origin.value, "why": why}
            for query, why in sorted(broken.items(), key=lambda item: _size(item[0]))[:_SHOWN_QUERIES]
        ],
    }
    if not broken:
        return Found(0, details)
    first = min(broken, key=lambda query: (query.origin is Origin.SAVED, *_size(query)))
    batch = examined.batch_of(first.text)

    def why_broken(text: str) -> str:
        if examined.reference.answer(text).failure:
            return ""
        own = tuple(text if mate == first.text else mate for mate in batch)
        return check(examined, text, own) if text == first.text or text not in batch else ""

    smallest = _smallest(examined, first, lambda query: bool(why_broken(query.text)), _EFFORT)
    details["smallest"] = {**examined.described(smallest.text), "why": why_broken(smallest.text)}
    return Found(len(broken), details, (smallest.text,))


def _smallest(
    examined: Examination, first: GeneratedQuery, fails: Callable[[GeneratedQuery], bool], effort: int
) -> GeneratedQuery:
    """Shrink a query by the plan it was drawn by; a saved one is small already."""
    plan: Plan[GeneratedQuery] | None = examined.cases.plans.get(first.origin)
    found = plan and smallest_failing(plan.strategy, plan.count, fails, _size, effort)
    return min(first, found, key=_size) if found else first


def batch_logit_difference(examined: Examination) -> Found:
    """Find the greatest difference of a logit between a query alone and in a batch."""
    differences = {}
    for query in _drawn(examined.cases.queries):
        alone = examined.alone(query.text).tagged
        together = examined.batched(query.text, examined.batch_of(query.text)).tagged
        if alone is not None and together is not None and list(alone.words) == list(together.words):
            differences[query.text] = _apart(alone, together)
    return _greatest(examined, differences)


def logit_difference(examined: Examination) -> Found:
    """Find the greatest difference of a logit between reference and candidate, where their words are the same."""
    differences = {}
    for query in _drawn(examined.cases.queries):
        ours, theirs = examined.reference.answer(query.text).tagged, examined.alone(query.text).tagged
        if ours is not None and theirs is not None and list(ours.words) == list(theirs.words):
            differences[query.text] = _apart(ours, theirs)
    return _greatest(examined, differences)


def _greatest(examined: Examination, differences: dict[str, float]) -> Found:
    worst = sorted(differences, key=lambda text: -differences[text])[:_SHOWN_QUERIES]
    shown = [{**examined.described(text), "difference": differences[text]} for text in worst if differences[text] > 0]
    return Found(differences[worst[0]] if worst else 0.0, {"compared": len(differences), "queries": shown})


def label_agreement(examined: Examination, queries: Sequence[GeneratedQuery]) -> Found:
    """Share of the reference's words that the candidate gives the same label."""
    words, flips = 0, 0
    for query in _fresh(queries):
        reference = examined.reference.answer(query.text).tagged
        count = 0 if reference is None else len(reference.words)
        words += count
        flips += count if examined.alone(query.text).tagged is None else len(examined.flips(query.text))
    return Found(1 - _share(flips, words, "word"), {"words": words, "flips": flips})


def entity_agreement(examined: Examination, queries: Sequence[GeneratedQuery]) -> Found:
    """Share of queries in which both models find the same entities."""
    fresh = _fresh(queries)
    unlike = [query for query in fresh if not _same_entities(examined, query.text)]
    known = [query for query in fresh if query.spans is not None]
    ours = sum(_spans(examined.reference.answer(one.text), examined.reference.labels) == one.spans for one in known)
    theirs = sum(_spans(examined.alone(one.text), examined.labels) == one.spans for one in known)
    details = {
        "of": len(fresh),
        # how well the reference itself knows the queries: a low share makes agreement easy or meaningless
        "reference_finds_the_labelled_entities": f"{ours} of {len(known)}",
        "candidate_finds_the_labelled_entities": f"{theirs} of {len(known)}",
        "queries": [examined.described(query.text) for query in sorted(unlike, key=_size)[:_SHOWN_QUERIES]],
    }
    return Found(1 - _share(len(unlike), len(fresh), "query"), details)


def _same_entities(examined: Examination, text: str) -> bool:
    wanted = _spans(examined.reference.answer(text), examined.reference.labels)
    return wanted is not None and wanted == _spans(examined.alone(text), examined.labels)


def largest_flipped_margin(examined: Examination, queries: Sequence[GeneratedQuery]) -> Found:
    """Find the word of the surest reference label among those that the candidate labels otherwise."""
    margins = {query: _margin(examined, query.text) for query in queries}
    worst = sorted((query for query in queries if margins[query] > 0), key=lambda query: -margins[query])
    details: dict[str, Any] = {
        "queries_with_flips": len(worst),
        "queries": [
            {**examined.described(query.text), "flips": _shown_flips(examined.flips(query.text))}
            for query in worst[:_SHOWN_QUERIES]
        ],
    }
    greatest = margins[worst[0]] if worst else 0.0
    if greatest < _CONFIDENT_MARGIN:
        return Found(greatest, details)
    # a long query says little about what went wrong, and takes long to shrink
    short = [query for query in worst if query.origin is not Origin.LONG and margins[query] >= _CONFIDENT_MARGIN]
    first = (short or worst)[0]
    goal = max(margins[first] / 2, _CONFIDENT_MARGIN)
    smallest = _smallest(examined, first, lambda query: _margin(examined, query.text) >= goal, _SMALL_EFFORT)
    flips = examined.flips(smallest.text)
    details["smallest"] = {**examined.described(smallest.text), "flips": _shown_flips(flips)}
    # the next run meets the smallest one among its queries, so it counts in this run already
    return Found(max(greatest, _margin(examined, smallest.text)), details, (smallest.text,))


def _margin(examined: Examination, text: str) -> float:
    return max((flip.margin for flip in examined.flips(text)), default=0.0)


def _shown_flips(flips: Sequence[Flip]) -> list[dict[str, Any]]:
    worst = sorted(flips, key=lambda flip: -flip.margin)[:_SHOWN_QUERIES]
    return [{"word": f.word, "reference": f.reference, "candidate": f.candidate, "margin": f.margin} for f in worst]


def relation_checks(examined: Examination) -> Found:
    """Count the relations that the reference keeps to; only these can be asked of a candidate."""
    kept: dict[str, str] = {}
    for relation in {found.relation: None for found in examined.cases.relations}:
        drawn = [found for found in examined.cases.relations if found.relation is relation]
        kept[relation.value] = f"{sum(_reference_holds(examined, found) for found in drawn)} of {len(drawn)}"
    return Found(sum(_reference_holds(examined, found) for found in examined.cases.relations), {"kept": kept})


def broken_relations(examined: Examination) -> Found:
    """Share of the relations that hold for the reference and do not for the candidate."""
    asked = [found for found in examined.cases.relations if _reference_holds(examined, found)]
    broken = [found for found in asked if not _candidate_holds(examined, found)]
    details: dict[str, Any] = {
        "checks": len(asked),
        "broken": len(broken),
        "queries": [
            _described_relation(examined, found) for found in sorted(broken, key=_source_size)[:_SHOWN_QUERIES]
        ],
    }
    if not broken:
        return Found(0.0, details)

    def fails(found: RelatedQueries) -> bool:
        # the candidate first: it is the faster one
        return not _candidate_holds(examined, found) and _reference_holds(examined, found)

    plan = examined.cases.relation_plan
    shrunk = smallest_failing(plan.strategy, plan.count, fails, _source_size, _SMALL_EFFORT)
    smallest = min(filter(None, [shrunk, *broken]), key=_source_size)
    details["smallest"] = _described_relation(examined, smallest)
    return Found(_share(len(broken), len(asked), "relation"), details)


def _reference_holds(examined: Examination, found: RelatedQueries) -> bool:
    return _holds(found, examined.reference.labels, examined.reference.answer)


def _candidate_holds(examined: Examination, found: RelatedQueries) -> bool:
    return _holds(found, examined.labels, examined.alone)


def _holds(found: RelatedQueries, labels: Sequence[str], answer: Callable[[str], Answer]) -> bool:
    source, follow_up = (_spans(answer(text), labels) for text in (found.source, found.follow_up))
    return source is not None and follow_up is not None and found.holds(source, follow_up)


def _described_relation(examined: Examination, found: RelatedQueries) -> dict[str, Any]:
    return {
        "relation": found.relation.value,
        "source": examined.described(found.source),
        "follow_up": examined.described(found.follow_up),
    }


def _drawn(queries: Sequence[GeneratedQuery]) -> list[GeneratedQuery]:
    """Leave out the failures of former runs: run by run, a value would get worse by what the one before has saved."""
    return [query for query in queries if query.origin is not Origin.SAVED]


def _fresh(queries: Sequence[GeneratedQuery]) -> list[GeneratedQuery]:
    """Leave out what would distort a share: failures of former runs, and texts of hundreds of words."""
    return [query for query in _drawn(queries) if query.origin is not Origin.LONG]


def _share(part: int, whole: int, name: str) -> float:
    if not whole:
        message = f"there is not one {name} to compare"
        raise ValueError(message)
    return part / whole


def _apart(one: TaggedQuery, other: TaggedQuery) -> float:
    return float(np.abs(one.logits - other.logits).max(initial=0.0))


def _spans(answer: Answer, labels: Sequence[str]) -> tuple[EntitySpan, ...] | None:
    """Decode the entities; None where there is no answer, or words that make no entity (see `offset_violation`)."""
    try:
        return None if answer.tagged is None else tuple(answer.tagged.spans(labels))
    except ValueError:
        return None


def _entities(answer: Answer, labels: Sequence[str]) -> list[str] | str:
    spans = _spans(answer, labels)
    if answer.tagged is None or spans is None:
        return answer.failure or "words that make no entities"
    text = answer.tagged.text
    return [f"{span.label} {span.start}-{span.end} {_shown(text[span.start : span.end])}" for span in spans]


def _size(query: GeneratedQuery) -> tuple[int, str]:
    return len(query.text), query.text


def _source_size(found: RelatedQueries) -> tuple[int, str]:
    return len(found.source), found.source


def _shown(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"
