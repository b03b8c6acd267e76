"""Queries changed a little while a model trains on them, as people who type change them.

Keeps labels right. Draws everything from the generator that it is given.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from harness.tagging import EntitySpan, LabelledQuery, LabelledSet

_SYMBOLS = ("\N{BUS}", "\N{PERSON WITH FOLDED HANDS}", "\N{SMILING FACE WITH SMILING EYES}", "\N{AIRPLANE}", "-", "*")


class _Piece(NamedTuple):
    """A stretch of a query: an entity, or with an empty label what stands between two of them."""

    text: str
    label: str


class Variations:
    """Changes queries a little, as people who type do, and keeps their labels right.

    Names are swapped for others of their type, or for new ones made of two; words outside the entities
    become new words in the same way, and new ones come in, so that a word is no entity merely for being
    unknown; digits are drawn anew; letters are mistyped; case changes; punctuation sticks to words; a query
    ends early.
    """

    def __init__(self, labelled: LabelledSet) -> None:
        """Collect the names of each entity type."""
        names: dict[str, set[str]] = {}
        words: set[str] = set()
        for piece in (piece for query in labelled.queries for piece in _pieces(query)):
            if piece.label:
                names.setdefault(piece.label, set()).add(piece.text)
            else:
                words.update(piece.text[first:last] for first, last in _word_bounds(piece.text))
        # Types that share names, as cities of departure and arrival do, draw from each other's: a name alone
        # must not settle its type.
        self._names = {
            kind: sorted(set().union(*(others for others in names.values() if _share_names(found, others))))
            for kind, found in names.items()
        }
        # New names are made only for types whose names are words: a new word is no date.
        self._open = {kind for kind, found in names.items() if sum(map(_is_plain, found)) * 2 >= len(found)}
        self._words = sorted(words)

    def vary(self, query: LabelledQuery, rng: random.Random) -> LabelledQuery:
        """Change one query; the generator decides what."""
        pieces = [self._renamed(piece, rng) if piece.label else self._reworded(piece, rng) for piece in _pieces(query)]
        if rng.random() < 0.25 and self._words:
            pieces = self._widened(pieces, rng)
        if rng.random() < 0.3:
            pieces = [piece._replace(text=_other_digits(piece.text, rng)) for piece in pieces]
        if rng.random() < 0.1:
            pieces = _shortened(pieces, rng)
        if rng.random() < 0.25:
            pieces = _mistyped(pieces, rng)
        if rng.random() < 0.15:
            pieces = _punctuated(pieces, rng)
        if rng.random() < 0.2:
            change = rng.choice((str.lower, str.upper, str.title))
            pieces = [piece._replace(text=change(piece.text)) for piece in pieces]
        return _joined(pieces, query.source)

    def _reworded(self, piece: _Piece, rng: random.Random) -> _Piece:
        text = piece.text
        for first, last in reversed(_word_bounds(text)):
            if rng.random() < 0.12:
                text = text[:first] + _crossed(text[first:last], rng.choice(self._words), rng) + text[last:]
        return piece._replace(text=text)

    def _widened(self, pieces: list[_Piece], rng: random.Random) -> list[_Piece]:
        """Put a word, mostly a new one, at the beginning, at the end or where a space stands outside the entities."""
        word = _crossed(rng.choice(self._words), rng.choice(self._words), rng)
        if rng.random() < 0.15:
            word = rng.choice(_SYMBOLS)
        places = [
            (index, at)
            for index, piece in enumerate(pieces)
            if not piece.label
            for at, letter in enumerate(piece.text)
            if letter == " "
        ]
        draw = rng.random()
        if draw < 0.4 or not places:
            return [_Piece(f"{word} ", ""), *pieces]
        if draw < 0.7:
            return [*pieces, _Piece(f" {word}", "")]
        index, at = rng.choice(places)
        text = pieces[index].text
        return [*pieces[:index], _Piece(f"{text[:at]} {word}{text[at:]}", ""), *pieces[index + 1 :]]

    def _renamed(self, piece: _Piece, rng: random.Random) -> _Piece:
        draw = rng.random()
        names = self._names.get(piece.label, [])
        if draw < 0.3 and names:
            return piece._replace(text=rng.choice(names))
        if draw < 0.45 and piece.label in self._open:
            return piece._replace(text=_crossed(piece.text, rng.choice(names), rng))
        return piece


def _share_names(left: set[str], right: set[str]) -> bool:
    """Tell whether a good part of the smaller set is in the other; every set shares with itself."""
    return len(left & right) >= 0.3 * min(len(left), len(right))


def _is_plain(word: str) -> bool:
    return word.isalpha() and word.isascii() and len(word) >= 4


def _crossed(left: str, right: str, rng: random.Random) -> str:
    """Make a new word of the beginning of one and the end of another; only plain words can be cut."""
    if not (_is_plain(left) and _is_plain(right)):
        return left
    cut = rng.randint(2, len(left) - 2)
    return left[:cut] + right[rng.randint(2, len(right) - 2) :].lower()


def _pieces(query: LabelledQuery) -> list[_Piece]:
    pieces = []
    place = 0
    for span in query.spans:
        pieces += [_Piece(query.text[place : span.start], ""), _Piece(query.text[span.start : span.end], span.label)]
        place = span.end
    return [piece for piece in [*pieces, _Piece(query.text[place:], "")] if piece.text]


def _joined(pieces: Sequence[_Piece], source: str) -> LabelledQuery:
    spans = []
    place = 0
    for piece in pieces:
        if piece.label:
            spans.append(EntitySpan(place, place + len(piece.text), piece.label))
        place += len(piece.text)
    return LabelledQuery("".join(piece.text for piece in pieces), tuple(spans), source)


def _other_digits(text: str, rng: random.Random) -> str:
    """Draw numbers of one and two digits anew, each with as many digits as it had."""
    parts = ["".join(group) for _, group in groupby(text, key=lambda letter: letter in string.digits)]
    for index, part in enumerate(parts):
        if part[0] in string.digits and len(part) <= 2:
            low, high = {1: (1, 9), 2: (10, 31)}[len(part)]
            parts[index] = str(rng.randint(low, high))
    return "".join(parts)


def _shortened(pieces: list[_Piece], rng: random.Random) -> list[_Piece]:
    """End the query after its second entity or a later one."""
    ends = [index for index, piece in enumerate(pieces) if piece.label][1:]
    return pieces[: rng.choice(ends) + 1] if ends else pieces


def _mistyped(pieces: list[_Piece], rng: random.Random) -> list[_Piece]:
    """Drop, double, swap or replace one letter inside a longer word."""
    places = [
        (index, first, last)
        for index, piece in enumerate(pieces)
        for first, last in _word_bounds(piece.text)
        if last - first >= 5
    ]
    if not places:
        return pieces
    index, first, last = rng.choice(places)
    text = pieces[index].text
    at = rng.randint(first + 1, last - 2)
    one, two = text[at], text[at + 1]
    middle = rng.choice((two, one + one + two, two + one, rng.choice(string.ascii_lowercase) + two))
    changed = pieces[index]._replace(text=text[:at] + middle + text[at + 2 :])
    return [*pieces[:index], changed, *pieces[index + 1 :]]


def _word_bounds(text: str) -> list[tuple[int, int]]:
    """Find the plain words of a text: only letters whose halves mean nothing by themselves."""
    bounds = []
    runs = groupby(enumerate(text), key=lambda pair: pair[1].isascii() and pair[1].isalpha())
    for plain, group in runs:
        if plain:
            places = list(map(itemgetter(0), group))
            bounds.append((places[0], places[-1] + 1))
    return bounds


def _punctuated(pieces: list[_Piece], rng: random.Random) -> list[_Piece]:
    """Glue punctuation to the end of the query, or behind one of its entities."""
    mark = _Piece(rng.choice((".", "?", "!", "!!", ",", "...", ";", ")", *_SYMBOLS)), "")
    ends = [index for index, piece in enumerate(pieces) if piece.label]
    at = rng.choice([*ends, len(pieces) - 1]) + 1
    return [*pieces[:at], mark, *pieces[at:]]
