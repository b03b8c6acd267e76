"""What a program without PyTorch and transformers makes of each text, beside what the way of transformers makes of it.

The way of transformers: the candidate's tokenizer as transformers loads it, the variant's model on these token ids,
label names as transformers reads them, entities grouped by a rule written here once more. Shares no code with the
program between logits and entities, so that a fault of the decoder shows. Where both agree, nobody who serves the
release gets other answers than those that were judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, groupby, pairwise
from operator import itemgetter, or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PretrainedConfig

from harness.encoding import encodable, overlap
from harness.reference import encode_with, load_tokenizer
from harness.tagging import Batch, EncodedQuery, TaggedQuery
from suites.queries.fresh_replay import Group
from suites.queries.watched import FoundSpan, Trace

if TYPE_CHECKING:
    from harness.candidate import Candidate

# Asking takes as long as judging does; so many labelled queries are enough to meet every kind of them.
MOST_LABELLED = 2000
# As `batch_extract` asks, and as a server does.
TOGETHER, ALONE = 32, 1
_SHOWN_QUERIES = 10
_SHOWN_CHARACTERS = 80
_AWKWARD_START = (
    "cafe\u0301 \u0926\u093f\u0932\u094d\u0932\u0940 \u05e9\u05dc\u05d5\u05dd \u6771\u4eac \U0001f68c\ufe0f "
)
_PLAIN = "sphinx of black quartz, judge my vow at 10:30; how quickly daft jumping zebras vex "
# One text of each kind at least, whatever hypothesis draws.
UNICODE: Mapping[str, tuple[str, ...]] = {
    "right to left": (
        "\u05de\u05ea\u05dc \u05d0\u05d1\u05d9\u05d1 \u05dc\u05d7\u05d9\u05e4\u05d4",
        "from \u0627\u0644\u0642\u0627\u0647\u0631\u0629 to \u062f\u0628\u064a 3",
        "\u202eabc\u202c \u2067\u05d0\u05d1\u2069 \u200ftoday",
    ),
    "combining marks": (
        "cafe\u0301 to Zu\u0308rich",
        "\u0928\u093e\u0917\u092a\u0941\u0930 \u0938\u0947 \u092e\u0941\u0902\u092c\u0908",
        "o\u0323\u0302\u0301\u0308 a\u20dd \u0301",
    ),
    "zero width": ("pu\u200bne to\u200d go\u200ca", "\ufeffbus\u2060 \u00adto", "\u200b", "\u180e\u034f\ufe0f"),
    "emoji": (
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 to goa",
        "\U0001f44d\U0001f3fd\U0001f1ee\U0001f1f3 1\ufe0f\u20e3 \u2764\ufe0f\u200d\U0001f525",
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    ),
    "control": ("a\x00b\x07 \x1b[31mgoa\x7f", "\x85\x9f\r\n\v\f", "to\tgoa\x08"),
    "10,000 characters": ((_AWKWARD_START + _PLAIN * (10_000 // len(_PLAIN) + 1))[:10_000],),
    "one word of 10,000 characters": ("x" * 10_000,),
    "empty": ("",),
    "only spaces": (" ", " " * 300, "\u00a0\u3000\t \u2003"),
    "half a surrogate pair": ("go\ud83da to \udc00",),
}


@dataclass(frozen=True, slots=True)
class Texts:
    """What is replayed, each text once: labelled queries in batches, all others alone."""

    labelled: tuple[str, ...]
    others: tuple[str, ...]
    labelled_in_all: int

    @property
    def every(self) -> tuple[str, ...]:
        """All texts, in the order of the groups."""
        return (*self.labelled, *self.others)

    @property
    def groups(self) -> tuple[Group, Group]:
        """How the program is asked."""
        return Group(self.labelled, TOGETHER), Group(self.others, ALONE)

    def described(self) -> dict[str, Any]:
        """Say what was asked."""
        return {
            "labelled": len(self.labelled),
            "labelled_in_all": self.labelled_in_all,
            "others": len(self.others),
            "unicode": {kind: len(texts) for kind, texts in UNICODE.items()},
        }


def texts_to_replay(labelled: Sequence[str], generated: Sequence[str]) -> Texts:
    """Take all labelled queries, or `MOST_LABELLED` spread evenly over them, the generated ones, and `UNICODE`."""
    distinct = tuple(dict.fromkeys(labelled))
    count = min(len(distinct), MOST_LABELLED)
    taken = tuple(distinct[place * len(distinct) // count] for place in range(count))
    fixed = (text for texts in UNICODE.values() for text in texts)
    others = tuple(text for text in dict.fromkeys((*generated, *fixed)) if text not in set(taken))
    return Texts(taken, others, len(distinct))


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Token ids and offsets of tokens, window by window."""

    ids: tuple[tuple[int, ...], ...]
    offsets: tuple[tuple[tuple[int, int], ...], ...]


class TransformersWay:
    """What each text comes to by the candidate's files and transformers."""

    def __init__(self, folder: Path, model: Candidate) -> None:
        """Load tokenizer and label names.

        Args:
            folder: the candidate.
            model: the variant, whose session runs on the token ids that transformers makes.

        Raises:
            CheckpointError: transformers cannot load the tokenizer of this folder.
        """
        self._model = model
        self._tokenizer = load_tokenizer(folder)
        # not from_pretrained, which warns that this class is not the model's own
        content, _ = PretrainedConfig.get_config_dict(folder, local_files_only=True)
        names = PretrainedConfig.from_dict(content).id2label or {}
        self._labels = tuple(names[index] for index in range(len(names)))

    def traces(self, texts: Sequence[str], known: Mapping[str, TaggedQuery]) -> Iterator[Trace]:
        """Follow each text.

        Args:
            texts: what to ask.
            known: what the session's model said already, by its own cutting; only the labels are taken from there.
        """
        encoded = encode_with(self._tokenizer, texts, self._model.maximum_tokens)
        for text, query, tokens in zip(texts, encoded, self._tokens(texts), strict=True):
            found = [int(index) for index in known[text].label_ids] if text in known else self._label_ids(query)
            words = tuple((word.start, word.end) for word in query.words)
            labels = tuple(self._labels[index] for index in found)
            yield Trace(tokens.ids, tokens.offsets, words, labels, tuple(grouped(text, words, labels)))

    def _tokens(self, texts: Sequence[str]) -> list[_Tokens]:
        maximum = self._model.maximum_tokens
        answer = self._tokenizer(
            [encodable(text) for text in texts],
            truncation=True,
            max_length=maximum,
            stride=overlap(maximum),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        ids: list[list[tuple[int, ...]]] = [[] for _ in texts]
        offsets: list[list[tuple[tuple[int, int], ...]]] = [[] for _ in texts]
        for row, index in enumerate(answer["overflow_to_sample_mapping"]):
            ids[index].append(tuple(answer["input_ids"][row]))
            offsets[index].append(tuple(answer["offset_mapping"][row]))
        return [_Tokens(tuple(one), tuple(other)) for one, other in zip(ids, offsets, strict=True)]

    def _label_ids(self, query: EncodedQuery) -> list[int]:
        """Run each window alone, without padding, and take each word's highest logit where its first subword stands."""
        found = [0] * len(query.words)
        for window in query.windows:
            ids = np.asarray([window.input_ids], np.int64)
            batch = Batch(ids, np.ones_like(ids), np.asarray([window.token_type_ids], np.int64))
            best = self._model.logits(batch)[0].argmax(axis=1)
            for head, word in zip(window.heads, window.words, strict=True):
                found[word] = int(best[head])
        return found


def grouped(text: str, words: Sequence[tuple[int, int]], labels: Sequence[str]) -> Iterator[FoundSpan]:
    """Group labelled words into entities: a new one begins with B-, S- or U-, and wherever the type changes.

    The rule of CoNLL's evaluation script for BIO, as README and DESIGN promise it; a label without a prefix is a type.
    Written without `harness.tagging`, on purpose.
    """
    kinds = ["" if label == "O" else _kind(label) for label in labels]
    opens = [kind != label and label[0] in "BSU" for kind, label in zip(kinds, labels, strict=True)]
    changes = [one != other for one, other in pairwise(["", *kinds])]
    numbers = accumulate(map(or_, opens, changes))
    for _, members in groupby(zip(numbers, kinds, words, strict=True), key=itemgetter(0)):
        run = list(members)
        (_, kind, (start, _)), (_, _, (_, end)) = run[0], run[-1]
        if kind:
            yield FoundSpan(start, end, kind, text[start:end])


def _kind(label: str) -> str:
    return label[2:] if label[0] in "BIESLUM" and label[1:2] == "-" and label[2:] else label


def differences(texts: Sequence[str], wanted: Sequence[Trace], got: Sequence[Trace]) -> dict[str, str]:
    """Tell which texts the program answers otherwise, and the first thing in which it does."""
    compared = zip(texts, wanted, got, strict=True)
    return {text: why for text, ours, theirs in compared if (why := _difference(ours, theirs))}


def _difference(wanted: Trace, got: Trace) -> str:
    for field in fields(Trace):
        ours, theirs = getattr(wanted, field.name), getattr(got, field.name)
        if ours != theirs:
            return f"{_NAMES[field.name]}: {_first_difference(ours, theirs)}"
    return ""


_NAMES = {
    "ids": "token ids",
    "offsets": "offsets of tokens",
    "words": "words",
    "labels": "labels",
    "spans": "entities",
}


def _first_difference(wanted: Sequence[Any], got: Sequence[Any]) -> str:
    for place, (one, other) in enumerate(zip(wanted, got, strict=False)):
        if one != other:
            nested = isinstance(one, tuple) and not isinstance(one, FoundSpan) and len(one) > 2
            shown = _first_difference(one, other) if nested else f"{one!r} by transformers, {other!r} replayed"
            return f"{place}: {shown}"
    return f"{len(wanted)} by transformers, {len(got)} replayed"


def described(found: Mapping[str, str]) -> list[dict[str, str]]:
    """Show the shortest of the texts that differ, in escapes where a character cannot be seen."""
    first = sorted(found, key=lambda text: (len(text), text))[:_SHOWN_QUERIES]
    return [{"query": _shown(text), "differs": found[text]} for text in first]


def _shown(text: str) -> str:
    shown = text[:_SHOWN_CHARACTERS].encode("unicode_escape").decode("ascii")
    return shown if len(text) <= _SHOWN_CHARACTERS else f"{shown}… ({len(text)} characters)"
