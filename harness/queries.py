"""Generated queries: hypothesis strategies, and the two ways they are used here, to draw and to shrink.

Nothing here knows a domain: a `Grammar` is made from any labelled set. Nothing here knows a model
either, and nothing judges.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import cycle, pairwise
from typing import TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, example, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from harness.errors import DataError
from harness.tagging import EntitySpan, LabelledQuery, LabelledSet

T = TypeVar("T")


# --- queries of the labelled data's own grammar -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Template:
    """A labelled query with its entities cut out: `literals` has one text more than there are `slots`."""

    literals: tuple[str, ...]
    slots: tuple[str, ...]

    def fill(self, names: Sequence[str]) -> LabelledQuery:
        """Put one name into each slot; the spans are where the names stand."""
        text, spans = self.literals[0], []
        for kind, name, literal in zip(self.slots, names, self.literals[1:], strict=True):
            spans.append(EntitySpan(len(text), len(text) + len(name), kind))
            text += name + literal
        return LabelledQuery(text, tuple(spans), "generated")


@dataclass(frozen=True, slots=True)
class Grammar:
    """The templates of a labelled set, and the names that it shows for each entity type.

    Those that make short queries stand first, because hypothesis shrinks towards the first.
    """

    templates: tuple[Template, ...]
    names: Mapping[str, tuple[str, ...]]


def grammar_of(labelled: LabelledSet) -> Grammar:
    """Read the grammar out of a labelled set.

    Raises:
        DataError: there is no query in it, or the spans of one overlap or run past its text.
    """
    templates: set[Template] = set()
    names: defaultdict[str, set[str]] = defaultdict(set)
    for query in labelled.queries:
        templates.add(_template(query))
        for span in query.spans:
            names[span.label].add(query.text[span.start : span.end])
    if not templates:
        message = f"{labelled.name} holds no query to generate from. Name a file with labelled queries (--data FILE)."
        raise DataError(message)
    ordered = {kind: tuple(sorted(found, key=_shortlex)) for kind, found in sorted(names.items())}
    shortest = {kind: found[0] for kind, found in ordered.items()}

    def simplicity(template: Template) -> tuple[int, str, tuple[str, ...]]:
        return *_shortlex(template.fill([shortest[kind] for kind in template.slots]).text), template.slots

    return Grammar(tuple(sorted(templates, key=simplicity)), ordered)


def _shortlex(text: str) -> tuple[int, str]:
    return len(text), text


def _template(query: LabelledQuery) -> Template:
    spans = sorted(query.spans)
    edges = [0, *(edge for span in spans for edge in (span.start, span.end)), len(query.text)]
    if any(first > second for first, second in pairwise(edges)):
        message = f"{query.source or repr(query.text[:60])}: the spans overlap or run past the text. Correct the row."
        raise DataError(message)
    return Template(
        tuple(query.text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)),
        tuple(span.label for span in spans),
    )


@dataclass(frozen=True, slots=True)
class Filling:
    """A template with a name for each slot."""

    template: Template
    names: tuple[str, ...]

    @property
    def query(self) -> LabelledQuery:
        """The labelled query that this makes."""
        return self.template.fill(self.names)


@st.composite
def fillings(draw: st.DrawFn, grammar: Grammar) -> Filling:
    """Draw a template and names of the right types for its slots."""
    template = draw(st.sampled_from(grammar.templates))
    return Filling(template, tuple(draw(st.sampled_from(grammar.names[kind])) for kind in template.slots))


class Origin(Enum):
    """How a query came to be."""

    GRAMMAR = "grammar"
    MUTATED = "mutated"
    ARBITRARY = "arbitrary"
    LONG = "long"
    SAVED = "saved"


@dataclass(frozen=True, slots=True)
class GeneratedQuery:
    """A query to ask; `spans` are its entities where the grammar knows them."""

    text: str
    origin: Origin
    spans: tuple[EntitySpan, ...] | None = None


def grammar_queries(grammar: Grammar) -> st.SearchStrategy[GeneratedQuery]:
    """Queries of the labelled set with other names of the same entity types."""
    return fillings(grammar).map(
        lambda filling: GeneratedQuery(filling.query.text, Origin.GRAMMAR, filling.query.spans)
    )


# --- mutations: what people's fingers and keyboards do to a query -------------------------------------------------

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890")
_NEIGHBOURS = {letter: other for row in _ROWS for letter, other in zip(row, row[1:] + row[-2], strict=True)}
_SPACES = ("  ", "    ", "\t", "\n", "\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}", "\N{THIN SPACE}", "\r\n", "")
_PUNCTUATION = (*',.?!;:-/)"#@*\u2014\u2019\u0964', "...", "'s")
_EMOJI = (
    "\N{BUS}",
    "\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}",
    "\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}",
    "\U0001f1ee\U0001f1f3",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "1\N{VARIATION SELECTOR-16}\N{COMBINING ENCLOSING KEYCAP}",
)
_AMOUNTS = ("\u20b9500", "Rs.1,299/-", "$20", "\u20ac9.99", "\u00a35", "\u00a51000", "500\u20b9", "\u20ba75")
_LATIN = "abcdefghijklmnopqrstuvwxyz"
_SCRIPTS = (
    "абцдефгхийклмнопярстуввхуз",
    "αβκδεφγηιικλμνοπκρστυββξυζ",
    "अबकदएफगहइजकलमनओपकरसतउववकयज",
    "".join(chr(ord(letter) + 0xFEE0) for letter in _LATIN),  # full-width
)


def _spliced(text: str, start: int, end: int, middle: str) -> str:
    return text[:start] + middle + text[end:]


def _word_at(text: str, place: int) -> tuple[int, int]:
    """Find the word at or after a place, else the last one, else nothing."""
    found = [match.span() for match in re.finditer(r"\S+", text)]
    return next((span for span in found if span[1] > place), found[-1] if found else (0, 0))


def _swap_letters(text: str, place: int, _choice: int) -> str:
    return _spliced(text, place, place + 2, text[place : place + 2][::-1])


def _drop_letter(text: str, place: int, _choice: int) -> str:
    return _spliced(text, place, place + 1, "")


def _double_letter(text: str, place: int, _choice: int) -> str:
    return _spliced(text, place, place, text[place : place + 1])


def _neighbouring_key(text: str, place: int, _choice: int) -> str:
    letter = text[place : place + 1]
    return _spliced(text, place, place + 1, _NEIGHBOURS.get(letter.lower(), letter))


def _change_case(text: str, place: int, choice: int) -> str:
    start, end = _word_at(text, place)
    shouted = _spliced(text, start, end, text[start:end].upper())
    changed = (text.upper(), text.lower(), text.title(), shouted, text.swapcase())
    return changed[choice % len(changed)]


def _change_spacing(text: str, place: int, choice: int) -> str:
    space = _SPACES[choice % len(_SPACES)]
    at = text.find(" ", place)
    return _spliced(text, at, at + 1, space) if at >= 0 else (space + text if choice % 2 else text + space)


def _glue(signs: Sequence[str]) -> Callable[[str, int, int], str]:
    def glue(text: str, place: int, choice: int) -> str:
        start, end = _word_at(text, place)
        at = (start, end)[choice // len(signs) % 2]
        return _spliced(text, at, at, signs[choice % len(signs)])

    return glue


def _insert_amount(text: str, place: int, choice: int) -> str:
    start, _ = _word_at(text, place)
    return _spliced(text, start, start, _AMOUNTS[choice % len(_AMOUNTS)] + " ")


def _other_script(text: str, place: int, choice: int) -> str:
    start, end = _word_at(text, place)
    script = str.maketrans(_LATIN, _SCRIPTS[choice % len(_SCRIPTS)])
    return _spliced(text, start, end, text[start:end].lower().translate(script))


# Each takes the text, a place in it, and a number by which it chooses.
MUTATIONS: Mapping[str, Callable[[str, int, int], str]] = {
    "swapped letters": _swap_letters,
    "dropped letter": _drop_letter,
    "doubled letter": _double_letter,
    "neighbouring key": _neighbouring_key,
    "case": _change_case,
    "spacing": _change_spacing,
    "glued punctuation": _glue(_PUNCTUATION),
    "glued emoji": _glue(_EMOJI),
    "currency": _insert_amount,
    "other script": _other_script,
}
_CHOICES = 2 * max(len(_PUNCTUATION), len(_SPACES), len(_AMOUNTS), len(_EMOJI))


@st.composite
def mutated_queries(draw: st.DrawFn, grammar: Grammar) -> GeneratedQuery:
    """Draw a query of the grammar with one to three `MUTATIONS`."""
    text = draw(fillings(grammar)).query.text
    for name in draw(st.lists(st.sampled_from(sorted(MUTATIONS)), min_size=1, max_size=3)):
        place = draw(st.integers(0, max(len(text) - 1, 0)))
        text = MUTATIONS[name](text, place, draw(st.integers(0, _CHOICES - 1)))
    return GeneratedQuery(text, Origin.MUTATED)


# --- any Unicode --------------------------------------------------------------------------------------------------


def _between(first: int, last: int) -> st.SearchStrategy[str]:
    # not st.characters: it writes its tables into the working folder
    return st.integers(first, last).map(chr)


def _strung(letters: st.SearchStrategy[str], longest: int = 8) -> st.SearchStrategy[str]:
    return st.lists(letters, min_size=1, max_size=longest).map("".join)


def _marked() -> st.SearchStrategy[str]:
    marks = st.one_of(_between(0x300, 0x36F), st.sampled_from("\u0591\u064b\u093c\u094d\u0e31\u20dd\u3099"))
    return st.tuples(st.sampled_from("aeinoAקबกか\u0131"), _strung(marks, 4)).map("".join)


_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e\u2063\ufe0f\U000e0020"
_BIDIRECTIONAL = "\u200e\u200f\u202a\u202b\u202c\u202e\u2066\u2067\u2069\u061c"
_WHITE = " \t\n\r\v\f\u0085\u00a0\u1680\u2003\u2028\u2029\u202f\u3000"
# Their number of code points changes under lower-casing, NFC, NFD or NFKC.
_UNSTABLE = "\u0130\u00df\ufb01\ufb03\u2121\u00bd\u3392\ufdfa\uac00\u1e9b\u0344\u212b\u01c4\u1f88\u2126"
_PLAIN = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789"

TEXT_KINDS: Mapping[str, st.SearchStrategy[str]] = {
    "plain": _strung(st.sampled_from(_PLAIN)),
    "punctuation": _strung(st.sampled_from("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u20b9\u20ac\u2026\u00ab\u2116")),
    "white space": _strung(st.sampled_from(_WHITE), 4),
    "right to left": st.one_of(
        _strung(_between(0x5D0, 0x5EA)),
        _strung(_between(0x627, 0x64A)),
        _strung(st.sampled_from("אבג" + _BIDIRECTIONAL)),
    ),
    "combining": _strung(_marked(), 4),
    "zero width": _strung(st.sampled_from("ab" + _INVISIBLE), 6),
    "emoji": _strung(st.one_of(st.sampled_from(_EMOJI), _between(0x1F600, 0x1F64F), _between(0x1F1E6, 0x1F1FF)), 4),
    "control": _strung(st.one_of(_between(0, 0x1F), _between(0x7F, 0x9F)), 4),
    "unstable": _strung(st.sampled_from(_UNSTABLE), 4),
    "Indic": _strung(st.one_of(_between(0x900, 0x97F), _between(0xC80, 0xCFF), _between(0x0E01, 0x0E3A))),
    "ideographic": _strung(st.one_of(_between(0x4E00, 0x9FFF), _between(0x20000, 0x2A6DF), _between(0x3041, 0x30FF))),
    "any": _strung(st.one_of(_between(0, 0xD7FF), _between(0xE000, 0xFFFF), _between(0x10000, 0x10FFFF)), 6),
    # Tokenizers give up on long words (transformers: max_input_chars_per_word = 100). Letter by letter, because
    # hypothesis shrinks towards few draws, and a long text must not be one of these.
    "long word": st.lists(st.sampled_from("aé"), min_size=95, max_size=110).map("".join),
}


# Asked in every run, whatever hypothesis draws.
AWKWARD_TEXTS = (
    "",
    " ",
    "\t\n\u00a0\u3000",
    "\u200b",
    "\x00",
    "a\x00b\x7fc",
    "\ufeffa",
    "a\u0301\u0323\u20dd",
    "\u0301",
    "\u202ea\u202c \u05d0\u05d1 1",
    "\u0645\u0631\u062d\u0628\u0627 a",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467a\U0001f1ee\U0001f1f3",
    "\u0130stanbul \ufb01n \ufdfa",
    "\U0010ffff\ue000\uffff",
    "a" * 101,
)


def arbitrary_queries() -> st.SearchStrategy[GeneratedQuery]:
    """Draw any text without surrogates, which no tokenizer takes: empty, lone spaces, mixtures of all `TEXT_KINDS`."""
    pieces = st.sampled_from(list(TEXT_KINDS)).flatmap(TEXT_KINDS.__getitem__)
    return st.tuples(st.lists(pieces, max_size=5), st.sampled_from((" ", ""))).map(
        lambda drawn: GeneratedQuery(drawn[1].join(drawn[0]), Origin.ARBITRARY)
    )


@st.composite
def long_queries(draw: st.DrawFn, grammar: Grammar, words: int) -> GeneratedQuery:
    """Draw queries of the grammar, one after the other, of `words` or a few more words together."""
    queries = draw(st.lists(fillings(grammar).map(lambda filling: filling.query.text), min_size=1, max_size=6))
    goal = words + draw(st.integers(0, words // 8))
    chosen: list[str] = []
    for word in cycle(" ; ".join(queries).split() or ["a"]):
        if len(chosen) >= goal:
            break
        chosen.append(word)
    return GeneratedQuery(" ".join(chosen), Origin.LONG)


# --- metamorphic relations ----------------------------------------------------------------------------------------


class Relation(Enum):
    """How a query was made from another one, so that their entities correspond."""

    ANOTHER_NAME = "another name in a slot"
    SWAPPED_NAMES = "the names of two slots swapped"
    UPPER_CASE = "upper case"
    LOWER_CASE = "lower case"
    EXTRA_SPACES = "extra spaces"
    POLITE_PREFIX = "polite prefix"
    POLITE_SUFFIX = "polite suffix"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the source and its place in the follow-up; a `whole` one has other text, and no entity may cut it."""

    start: int
    end: int
    new_start: int
    new_end: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class RelatedQueries:
    """A query, a follow-up made from it, and which part of the one is which part of the other."""

    relation: Relation
    source: str
    follow_up: str
    pieces: tuple[Piece, ...]

    def expected(self, spans: Sequence[EntitySpan]) -> list[EntitySpan] | None:
        """Carry the entities of the source over to the follow-up; None if one has no counterpart there."""
        carried = []
        for span in spans:
            start, end = self._start(span.start), self._end(span.end)
            if start is None or end is None:
                return None
            carried.append(EntitySpan(start, end, span.label))
        return carried

    def holds(self, source: Sequence[EntitySpan], follow_up: Sequence[EntitySpan]) -> bool:
        """Whether a model that finds these entities in the two queries keeps to the relation."""
        return self.expected(source) == list(follow_up)

    def _start(self, place: int) -> int | None:
        for piece in self.pieces:
            if piece.start <= place < piece.end and not (piece.whole and place != piece.start):
                return piece.new_start + place - piece.start
        return None

    def _end(self, place: int) -> int | None:
        for piece in self.pieces:
            if piece.start < place <= piece.end and not (piece.whole and place != piece.end):
                return piece.new_end + place - piece.end
        return None


_PREFIXES = ("please ", "hi, ", "hello ", "kindly ", "por favor, ", "bitte ")
_SUFFIXES = (" please", " thanks", " thank you!", ", danke", " merci")


def _refilled(relation: Relation, template: Template, old: Sequence[str], new: Sequence[str]) -> RelatedQueries:
    source, follow_up = template.fill(old), template.fill(new)
    pieces, before, after = [], 0, 0
    for index, literal in enumerate(template.literals):
        pieces.append(Piece(before, before + len(literal), after, after + len(literal)))
        if index < len(old):
            was, now = source.spans[index], follow_up.spans[index]
            pieces.append(Piece(was.start, was.end, now.start, now.end, whole=old[index] != new[index]))
            before, after = was.end, now.end
    return RelatedQueries(relation, source.text, follow_up.text, tuple(pieces))


def _recased(relation: Relation, text: str, change: Callable[[str], str]) -> RelatedQueries:
    changed = "".join(change(letter) if len(change(letter)) == 1 else letter for letter in text)
    return RelatedQueries(relation, text, changed, (Piece(0, len(text), 0, len(text)),))


def _spaced(text: str, spaces: int) -> RelatedQueries:
    pieces, made, last = [], "", 0
    for match in re.finditer(r"[^ ]+", text):
        made += text[last : match.start()] + " " * spaces
        pieces.append(Piece(match.start(), match.end(), len(made), len(made) + len(match[0])))
        made += match[0]
        last = match.end()
    return RelatedQueries(Relation.EXTRA_SPACES, text, made + text[last:], tuple(pieces))


def textual_relations(text: str, choice: int = 0) -> dict[Relation, RelatedQueries]:
    """Make every follow-up that needs no slots."""
    prefix, suffix = _PREFIXES[choice % len(_PREFIXES)], _SUFFIXES[choice % len(_SUFFIXES)]
    size = len(text)
    return {
        Relation.UPPER_CASE: _recased(Relation.UPPER_CASE, text, str.upper),
        Relation.LOWER_CASE: _recased(Relation.LOWER_CASE, text, str.lower),
        Relation.EXTRA_SPACES: _spaced(text, 1 + choice % 3),
        Relation.POLITE_PREFIX: RelatedQueries(
            Relation.POLITE_PREFIX, text, prefix + text, (Piece(0, size, len(prefix), len(prefix) + size),)
        ),
        Relation.POLITE_SUFFIX: RelatedQueries(Relation.POLITE_SUFFIX, text, text + suffix, (Piece(0, size, 0, size),)),
    }


@st.composite
def related_queries(draw: st.DrawFn, grammar: Grammar) -> RelatedQueries:
    """Draw a query of the grammar and a follow-up by any `Relation` that its slots allow."""
    filling = draw(fillings(grammar))
    names = list(filling.names)
    nameable, swappable = _nameable(grammar, filling), _swappable(grammar, filling)
    lacking = {Relation.ANOTHER_NAME: not nameable, Relation.SWAPPED_NAMES: not swappable}
    relation = draw(st.sampled_from([found for found in Relation if not lacking.get(found)]))
    match relation:
        case Relation.ANOTHER_NAME:
            slot = draw(st.sampled_from(nameable))
            others = [name for name in grammar.names[filling.template.slots[slot]] if name != names[slot]]
            names[slot] = draw(st.sampled_from(others))
        case Relation.SWAPPED_NAMES:
            one, other = draw(st.sampled_from(swappable))
            names[one], names[other] = names[other], names[one]
        case _:
            return textual_relations(filling.query.text, draw(st.integers(0, 29)))[relation]
    return _refilled(relation, filling.template, filling.names, names)


def _nameable(grammar: Grammar, filling: Filling) -> list[int]:
    """List the slots for whose type there is another name."""
    return [slot for slot, kind in enumerate(filling.template.slots) if len(grammar.names[kind]) > 1]


def _swappable(grammar: Grammar, filling: Filling) -> list[tuple[int, int]]:
    """List pairs of slots; only those whose types share a name, if any do: either name makes sense in either place."""
    slots, names = filling.template.slots, filling.names
    pairs = [(one, other) for other in range(len(slots)) for one in range(other) if names[one] != names[other]]
    known = {kind: frozenset(grammar.names[kind]) for kind in slots}
    return [pair for pair in pairs if known[slots[pair[0]]] & known[slots[pair[1]]]] or pairs


# --- drawing and shrinking ----------------------------------------------------------------------------------------


class _FoundError(Exception):
    """Tells hypothesis that the query at hand fails."""


def _visitor(
    strategy: st.SearchStrategy[T], count: int, phases: Sequence[Phase], visit: Callable[[T], None]
) -> Callable[[], None]:
    # One function for drawing and for shrinking: hypothesis seeds by a function's source, so both see the same queries.
    @settings(
        max_examples=count,
        phases=phases,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def examine(query: T) -> None:
        visit(query)

    return examine


def draw_examples(strategy: st.SearchStrategy[T], count: int, explicit: Sequence[T] = ()) -> list[T]:
    """Draw the `count` examples that hypothesis would try, after the `explicit` ones; fewer if there are no more.

    The same ones each time, as long as hypothesis, the strategy and the data stay the same.
    """
    found: list[T] = []
    run = _visitor(strategy, count, (Phase.explicit, Phase.generate), found.append)
    for one in reversed(explicit):
        run = example(one)(run)
    run()
    return found


def smallest_failing(
    strategy: st.SearchStrategy[T],
    count: int,
    fails: Callable[[T], bool],
    size: Callable[[T], tuple[int, str]],
    effort: int,
) -> T | None:
    """Let hypothesis shrink the first of `count` examples that fails.

    Args:
        strategy: what to draw; give the strategy and the count of `draw_examples` to meet the same examples.
        count: how many examples to try.
        fails: whether an example fails; asked once per example.
        size: the length of an example and its text; the smallest that fails is returned.
        effort: how many characters beyond the first failing example may be asked about, 60 at least for each
            question. Further examples count as not failing, so that shrinking ends soon.

    Returns:
        The smallest failing example that was met, or None if none failed.
    """
    known: dict[tuple[int, str], bool] = {}
    failing: dict[tuple[int, str], T] = {}
    left = effort

    def visit(query: T) -> None:
        nonlocal left
        key = size(query)
        if key not in known:
            if failing and left <= 0:
                return
            left -= max(key[0], 60) if failing else 0
            known[key] = fails(query)
        if known[key]:
            failing.setdefault(key, query)
            raise _FoundError

    try:
        _visitor(strategy, count, (Phase.generate, Phase.shrink), visit)()
    except (_FoundError, Flaky):
        return failing[min(failing)]
    return None


def round_robin(groups: Sequence[Sequence[T]]) -> Iterator[T]:
    """Take one from each group in turn until all are empty."""
    for place in range(max(map(len, groups), default=0)):
        yield from (group[place] for group in groups if place < len(group))
