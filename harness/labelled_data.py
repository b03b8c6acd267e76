"""Reads labelled queries: JSON lines and CoNLL, the formats of `fixtures/bus_queries/README.md`.

A file is taken whole or not at all: a row that cannot mean what it says is an error with its line,
never a row left out. It knows no tokenizer, no model and no domain.
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from harness.errors import DataError, one_line
from harness.tagging import OUTSIDE, EntitySpan, LabelledQuery, LabelledSet, entity_runs, split_label

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.tagging import Word

BUNDLED = ("train", "validation", "test", "golden")

_LONGEST_LINE = 1_000_000
_SHOWN_PROBLEMS = 5
_SHOWN_TYPES = 12
_PREFIXES = frozenset("BIESLUM")
_PLAIN_PREFIXES = frozenset("BI")
_ROW_KEYS = frozenset({"id", "text", "spans", "tokens", "tags"})
_JSON_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
_CONLL_SUFFIXES = frozenset({".bio", ".conll", ".iob", ".iob2"})
_DOCUMENT_START = "-DOCSTART-"
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ReadSet(LabelledSet):
    """A labelled set as it was read, with one line for each thing that was read in the reader's own way."""

    notes: tuple[str, ...] = ()


def read_labelled_set(paths: Sequence[Path] | Path, *, labels: Sequence[str] | None = None) -> ReadSet:
    """Read files of labelled queries into one set.

    A file is JSON lines if its name ends in `.jsonl`, `.ndjson` or `.json`, or if its first row is a
    JSON object; any other file is CoNLL: a token a line, the first column the token and the last one its
    tag, an empty line between queries, `-DOCSTART-` lines skipped, no comments. The text of a row of
    tokens is the tokens joined by single spaces. An `I-X` that follows neither `B-X` nor `I-X` is read as
    the beginning of an entity, and `notes` says how many there were.

    Args:
        paths: One file, or several whose queries follow each other.
        labels: The model's label names, such as `B-SRC`; an entity type that none of them has is an error.

    Raises:
        DataError: A file cannot be read; the message names its first problems and counts them all.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    if not files:
        message = "no file of labelled queries was named. Name at least one, such as fixtures/bus_queries/test.jsonl."
        raise DataError(message)
    known = None if labels is None else frozenset(split_label(label)[1] for label in labels if label != OUTSIDE)
    whole = frozenset() if labels is None else frozenset(labels)
    queries: list[LabelledQuery] = []
    notes: list[str] = []
    for path in files:
        reader = _FileReader(path, known, whole)
        queries += reader.read()
        notes += reader.notes
    return ReadSet("+".join(dict.fromkeys(path.stem for path in files)), tuple(queries), tuple(notes))


def bundled_bus_queries(name: str) -> Path:
    """Find a file of the bus queries that come with the harness: `train`, `validation`, `test` or `golden`."""
    if name not in BUNDLED:
        message = f"there are no bundled bus queries named {_shown(name)}. Choose one of {', '.join(BUNDLED)}."
        raise DataError(message)
    package = Path(__file__).resolve().parent
    # An installed wheel carries the fixtures inside the package; a clone has them beside it.
    places = [root / "fixtures" / "bus_queries" / f"{name}.jsonl" for root in (package, package.parent)]
    for place in places:
        if place.is_file():
            return place
    message = (
        f"the bundled bus queries {name}.jsonl are neither in {places[0].parent} nor in {places[1].parent}. "
        "Install the harness again, or name a file of your own with --data."
    )
    raise DataError(message)


def word_tags(query: LabelledQuery, words: Sequence[Word]) -> list[str]:
    """Tag each of a tokenizer's words: `B-X` for the first that overlaps an entity, `I-X` for the others.

    A word that overlaps two entities belongs to the one it shares more characters with, the first if they
    are equal.
    """
    tags = [OUTSIDE] * len(words)
    shared = [0] * len(words)
    owners: list[EntitySpan | None] = [None] * len(words)
    for span in query.spans:
        for index, word in enumerate(words):
            common = min(word.end, span.end) - max(word.start, span.start)
            if common > shared[index]:
                shared[index] = common
                owners[index] = span
    previous: EntitySpan | None = None
    for index, owner in enumerate(owners):
        if owner is not None:
            tags[index] = f"{'I' if owner is previous else 'B'}-{owner.label}"
        previous = owner
    return tags


class _Problem(NamedTuple):
    line: int
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}. {self.remedy}."


class _Line(NamedTuple):
    number: int
    text: str


@dataclass(slots=True)
class _Sighting:
    first: int
    count: int = 1


class _DuplicateKeyError(ValueError):
    """A JSON object says the same key twice; Python would keep the last."""


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        message = f"the key {_shown(repeated)} stands twice"
        raise _DuplicateKeyError(message)
    return found


def _shown(value: object) -> str:
    """Show a value from a file, short and on one line."""
    return repr(one_line(value, 60)) if isinstance(value, str) else one_line(json.dumps(value, default=str), 60)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_TYPES} more" if len(names) > _SHOWN_TYPES else ""
    return ", ".join(one_line(name, 60) for name in names[:_SHOWN_TYPES]) + more


@dataclass(slots=True)
class _FileReader:
    """Reads one file and keeps every problem found on the way."""

    path: Path
    known_types: frozenset[str] | None
    known_labels: frozenset[str]
    problems: list[_Problem] = field(default_factory=list)
    unknown_types: dict[str, _Sighting] = field(default_factory=dict)
    open_beginnings: list[int] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        count = len(self.open_beginnings)
        if not count:
            return []
        subject = "1 entity begins" if count == 1 else f"{count} entities begin"
        first = self.open_beginnings[0]
        return [f"{self.path}: {subject} with I- where B- is expected, first on line {first}; read as if it were B-."]

    def read(self) -> list[LabelledQuery]:
        lines = self._lines()
        if _is_json_lines(self.path, lines):
            queries = [query for line in lines if line.text.strip() and (query := self._json_row(line))]
        else:
            queries = [query for rows in _conll_rows(lines) if (query := self._conll_query(rows))]
            self._check_columns(lines)
        if not queries and not self.problems and not self.unknown_types:
            message = f"{self.path} holds no labelled query. Write at least one, or name another file."
            raise DataError(message)
        self._raise_problems()
        return queries

    def _problem(self, line: int, text: str, remedy: str) -> None:
        self.problems.append(_Problem(line, text, remedy))

    def _raise_problems(self) -> None:
        for kind, sighting in self.unknown_types.items():
            self.problems.append(self._unknown_type(kind, sighting))
        if not self.problems:
            return
        self.problems.sort(key=lambda problem: problem.line)
        if len(self.problems) == 1:
            only = self.problems[0]
            message = f"{self.path} line {only.line}: {only}"
        else:
            shown = self.problems[:_SHOWN_PROBLEMS]
            count = len(self.problems)
            rest = f"; the first {_SHOWN_PROBLEMS}" if count > _SHOWN_PROBLEMS else ""
            message = f"{self.path}: {count} problems{rest}: " + " ".join(f"line {item.line}: {item}" for item in shown)
        raise DataError(message)

    def _unknown_type(self, kind: str, sighting: _Sighting) -> _Problem:
        known = sorted(self.known_types or ())
        near = difflib.get_close_matches(kind.upper(), [name.upper() for name in known], n=1)
        nearest = next((name for name in known if near and name.upper() == near[0]), None)
        times = "once" if sighting.count == 1 else f"{sighting.count} times"
        hint = f"did you mean {nearest}? " if nearest else ""
        has = f"it has {_listed(known)}" if known else "it has no entity type at all"
        text = f"entity type {_shown(kind)} ({times}, first here) is not a label of the model; {hint}{has}"
        return _Problem(sighting.first, text, "Rename the label or judge a model that has it")

    # -- lines ---------------------------------------------------------------------------------------------------

    def _lines(self) -> list[_Line]:
        try:
            if self.path.is_dir():
                message = f"{self.path} is a folder. Name the file of labelled queries in it."
                raise DataError(message)
            if not self.path.exists():
                message = f"{self.path} does not exist. Check the name, or name another file of labelled queries."
                raise DataError(message)
            if not self.path.is_file():
                message = f"{self.path} is not a regular file. Save the labelled queries to a file and name that."
                raise DataError(message)
            return list(self._decoded_lines())
        except OSError as err:
            reason = err.strerror or type(err).__name__
            message = f"{self.path} cannot be read: {one_line(reason)}. Check the name and its permissions."
            raise DataError(message) from err

    def _decoded_lines(self) -> Iterator[_Line]:
        """Cut the file at newlines only: U+2028 and its like may stand inside a text."""
        begin = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(_raw_lines(file), start=1):
                if number == 1 and raw.startswith(_WIDE_MARKS):
                    self._problem(1, "the file is UTF-16, byte 0 says so", "Save it as UTF-8")
                    return
                if len(raw) > _LONGEST_LINE:
                    self._problem(number, f"the line is longer than {_LONGEST_LINE:,} bytes", "Write one query a line")
                    return
                body = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                try:
                    yield _Line(number, body.decode("utf-8").rstrip("\r\n"))
                except UnicodeDecodeError as err:
                    place = begin + len(raw) - len(body) + err.start
                    text = f"byte {place} of the file (0x{body[err.start]:02X}) is not UTF-8"
                    self._problem(number, text, "Save the file as UTF-8")
                begin += len(raw)

    # -- JSON lines ----------------------------------------------------------------------------------------------

    def _json_row(self, line: _Line) -> LabelledQuery | None:
        try:
            row = json.loads(line.text, object_pairs_hook=_object_without_duplicates)
        except _DuplicateKeyError as err:
            self._problem(line.number, str(err), "Keep one of them")
            return None
        except json.JSONDecodeError as err:
            text = f"not valid JSON: {one_line(err.msg)} at character {err.colno}"
            self._problem(line.number, text, "Write one JSON object a line")
            return None
        except (ValueError, RecursionError) as err:
            text = f"not usable JSON: {one_line(err, 100)}"
            self._problem(line.number, text, "Write one JSON object a line")
            return None
        if not isinstance(row, dict):
            text = f"the line is a JSON {type(row).__name__}, not an object"
            self._problem(line.number, text, 'Write {"text": ..., "spans": [...]}, one row a line')
            return None
        if not self._keys_fit(line.number, row):
            return None
        if "text" in row:
            return self._text_row(line.number, row["text"], row["spans"])
        return self._token_row(line.number, row["tokens"], row["tags"])

    def _keys_fit(self, line: int, row: dict[str, Any]) -> bool:
        before = len(self.problems)
        for key in sorted(row.keys() - _ROW_KEYS):
            near = difflib.get_close_matches(key, sorted(_ROW_KEYS), n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            self._problem(line, f"unknown key {_shown(key)}", f"{hint}Known keys are {', '.join(sorted(_ROW_KEYS))}")
        identity = row.get("id", "")
        if not isinstance(identity, str | int) or isinstance(identity, bool):
            self._problem(line, f"id is {_shown(identity)}", "Make it a string or a whole number")
        forms = ({"text", "spans"}, {"tokens", "tags"})
        if row.keys() & _ROW_KEYS - {"id"} not in forms:
            has = ", ".join(key for key in row if key in _ROW_KEYS and key != "id") or "none of them"
            self._problem(line, f"the row has {has}", "Give either text and spans, or tokens and tags")
        return len(self.problems) == before

    def _text_fits(self, line: int, text: object) -> bool:
        if not isinstance(text, str):
            self._problem(line, f"text is {_shown(text)}", "Make it a string")
        elif not text.strip():
            self._problem(line, "the text is empty", "Write the query or delete the line")
        elif found := _SURROGATE.search(text):
            where = f"the text has half a surrogate pair at character {found.start()}"
            self._problem(line, where, "Write the whole character")
        else:
            return True
        return False

    def _text_row(self, line: int, text: object, spans: object) -> LabelledQuery | None:
        before = len(self.problems)
        if not self._text_fits(line, text) or not isinstance(text, str):
            return None
        if not isinstance(spans, list):
            self._problem(line, f"spans is {_shown(spans)}", "Make it a list, [] where there is no entity")
            return None
        found = [span for item in spans if (span := self._span(line, text, item))]
        found.sort()
        for left, right in pairwise(found):
            if right.start < left.end:
                pair = f"spans {left.start}-{left.end} {left.label} and {right.start}-{right.end} {right.label} overlap"
                self._problem(line, one_line(pair), "Keep one of them or move their offsets apart")
        return LabelledQuery(text, tuple(found), self.path.stem) if len(self.problems) == before else None

    def _span(self, line: int, text: str, item: object) -> EntitySpan | None:
        match item:
            case [start, end, label]:
                pass
            case {"start": start, "end": end, "label": label, **others} if not others:
                pass
            case _:
                remedy = 'Write [start, end, "TYPE"] or {"start": ..., "end": ..., "label": ...}'
                self._problem(line, f"{_shown(item)} is no span", remedy)
                return None
        if type(start) is not int or type(end) is not int:
            self._problem(line, f"span {_shown(item)} has offsets that are no whole numbers", "Fix the offsets")
            return None
        where = f"span {one_line(start, 20)}-{one_line(end, 20)}"
        if not isinstance(label, str) or not self._type_fits(line, label):
            if not isinstance(label, str):
                self._problem(line, f"{where} has the label {_shown(label)}", "Make it a string")
            return None
        if not 0 <= start < end:
            self._problem(line, f"{where} is empty or starts before the text", "Fix the offsets")
            return None
        if end > len(text):
            runs = f"{where} runs past the text ({len(text)} characters)"
            self._problem(line, runs, "Fix the offsets or delete the line")
            return None
        inside = text[start:end]
        if inside != inside.strip():
            edges = f"{where} {_shown(label)} starts or ends with white space"
            self._problem(line, edges, "Move the offsets to the first and last letter")
            return None
        return EntitySpan(start, end, label)

    def _type_fits(self, line: int, label: str) -> bool:
        """Tell whether an entity type's name can be used; a type that the model lacks is kept for the end."""
        if not label or label.split() != [label] or not label.isprintable():
            self._problem(line, f"{_shown(label)} is no name of an entity type", "Use printable text without spaces")
            return False
        if self.known_types is not None and label in self.known_types:
            return True
        if label == OUTSIDE:
            self._problem(line, "a span has the label 'O', which means no entity", "Delete the span")
            return False
        prefix, kind = split_label(label)
        if kind != label and prefix in _PLAIN_PREFIXES and (self.known_types is None or kind in self.known_types):
            remedy = f"Write {one_line(kind, 60)}: spans have types, only tags have B- and I-"
            self._problem(line, f"span label {_shown(label)} has a prefix", remedy)
            return False
        if self.known_types is not None:
            if label in self.unknown_types:
                self.unknown_types[label].count += 1
            else:
                self.unknown_types[label] = _Sighting(line)
        return True

    def _token_row(self, line: int, tokens: object, tags: object) -> LabelledQuery | None:
        for name, value in (("tokens", tokens), ("tags", tags)):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                self._problem(line, f"{name} is {_shown(value)}", "Make it a list of strings")
                return None
        if not isinstance(tokens, list) or not isinstance(tags, list):
            return None
        if len(tokens) != len(tags):
            uneven = f"{len(tokens)} tokens but {len(tags)} tags"
            self._problem(line, uneven, "Give each token one tag")
            return None
        if not tokens:
            self._problem(line, "the row has no token", "Write the query or delete the line")
            return None
        return self._tagged([line] * len(tokens), tokens, tags)

    # -- CoNLL ---------------------------------------------------------------------------------------------------

    def _check_columns(self, lines: Sequence[_Line]) -> None:
        expected: _Line | None = None
        for line in lines:
            if _is_boundary(line):
                continue
            count = len(_columns(line.text))
            if count < 2:
                text = f"{_shown(line.text)} has one column, without a tag"
                self._problem(line.number, text, "Write the token, a tab and its tag")
                continue
            if expected is None:
                expected = line
            wanted = len(_columns(expected.text))
            if count != wanted:
                uneven = f"{count} columns where line {expected.number} has {wanted}"
                self._problem(line.number, uneven, "Give every line as many columns")

    def _conll_query(self, rows: Sequence[_Line]) -> LabelledQuery | None:
        cells = [_columns(row.text) for row in rows]
        if any(len(row) < 2 for row in cells):
            return None  # said by _check_columns
        return self._tagged([row.number for row in rows], [row[0] for row in cells], [row[-1] for row in cells])

    def _tagged(self, lines: Sequence[int], tokens: Sequence[str], tags: Sequence[str]) -> LabelledQuery | None:
        before = len(self.problems)
        for line, token, tag in zip(lines, tokens, tags, strict=True):
            if not token.strip():
                self._problem(line, "a token is empty", "Write the token or delete it with its tag")
            elif token != token.strip():
                self._problem(line, f"token {_shown(token)} has space around it", "Delete the space")
            elif token != "".join(_SURROGATE.split(token)):
                self._problem(line, "a token has half a surrogate pair", "Write the whole character")
            self._check_tag(line, tag)
        if len(self.problems) > before:
            return None
        starts, place = [], 0
        for token in tokens:
            starts.append(place)
            place += len(token) + 1
        runs = entity_runs(tags)
        self.open_beginnings += [lines[run.first] for run in runs if tags[run.first].startswith("I-")]
        spans = [EntitySpan(starts[run.first], starts[run.last] + len(tokens[run.last]), run.kind) for run in runs]
        return LabelledQuery(" ".join(tokens), tuple(spans), self.path.stem)

    def _check_tag(self, line: int, tag: str) -> None:
        if tag == OUTSIDE:
            return
        prefix, dash, kind = tag.partition("-")
        if dash and kind and prefix in _PREFIXES:
            self._type_fits(line, kind)
        elif tag not in self.known_labels:  # a model without prefixes (IO scheme) has such names
            self._problem(line, f"{_shown(tag)} is no BIO tag", "Write O, B-TYPE or I-TYPE")


def _raw_lines(file: BinaryIO) -> Iterator[bytes]:
    while raw := file.readline(_LONGEST_LINE + 1):
        yield raw


def _is_json_lines(path: Path, lines: Sequence[_Line]) -> bool:
    suffix = path.suffix.lower()
    if suffix in _JSON_SUFFIXES:
        return True
    # By its content: another tool's .txt may be JSON lines, and so may a .conll with the wrong name.
    first = next((line.text for line in lines if line.text.strip()), "")
    if not first.lstrip().startswith("{"):
        return False
    if suffix not in _CONLL_SUFFIXES:
        return True
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _columns(text: str) -> list[str]:
    """Cut a CoNLL line at its tabs, or, if it has none, at its spaces."""
    stripped = text.rstrip(" ")
    return [cell.strip(" ") for cell in stripped.split("\t")] if "\t" in stripped else re.split(" +", stripped)


def _is_boundary(line: _Line) -> bool:
    return not line.text.strip(" \t") or line.text.startswith(_DOCUMENT_START)


def _conll_rows(lines: Sequence[_Line]) -> Iterator[list[_Line]]:
    rows: list[_Line] = []
    for line in lines:
        if not _is_boundary(line):
            rows.append(line)
        elif rows:
            yield rows
            rows = []
    if rows:
        yield rows
