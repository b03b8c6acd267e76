"""Tests of the generated bus queries: what the files hold, what keeps the splits apart, what they cover."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "bus_queries"
SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")
LABELS = (
    "SRC",
    "DEST",
    "BUS_TYPE",
    "SEAT_TYPE",
    "TIME",
    "DATE",
    "OPERATOR",
    "BOARDING_POINT",
    "DROPPING_POINT",
)
NAME_LABELS = ("SRC", "DEST", "OPERATOR", "BOARDING_POINT", "DROPPING_POINT")


@dataclass(frozen=True)
class Row:
    """One line of a file."""

    text: str
    spans: tuple[tuple[int, int, str], ...]

    def key(self) -> str:
        """Return what makes two rows the same query."""
        return " ".join(self.text.casefold().split())

    def values(self, label: str) -> list[str]:
        """Return the labelled texts of one type, casefolded."""
        return [self.text[start:end].casefold() for start, end, name in self.spans if name == label]

    def shape(self) -> str:
        """Return the text with a type name in the place of each span, casefolded otherwise."""
        result, done = "", 0
        for start, end, label in self.spans:
            result += self.text[done:start].casefold() + label
            done = end
        return result + self.text[done:].casefold()


@cache
def grammar() -> ModuleType:
    """Load grammar.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("bus_query_grammar", FOLDER / "grammar.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def made_queries() -> dict[str, list[Any]]:
    """Make the rows again, once: unlike the files they tell their patterns and the names before any typo."""
    made: dict[str, list[Any]] = grammar().make_queries()
    return made


@cache
def rows(split: str) -> tuple[Row, ...]:
    """Read a committed file."""
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    data = (json.loads(line) for line in lines)
    return tuple(Row(row["text"], tuple((s, e, label) for s, e, label in row["spans"])) for row in data)


@cache
def chosen_names(split: str) -> tuple[str, ...]:
    """Return the names as chosen from the names file, one for each labelled name, casefolded."""
    return tuple(name.casefold() for query in made_queries()[split] for name in query.names)


@cache
def pool(name: str) -> frozenset[str]:
    """Return the casefolded spellings of one pool, read here from the names file itself."""
    data = json.loads((FOLDER / "names.json").read_text(encoding="utf-8"))
    groups = [*data["cities"][name], *data["operators"][name], *(stops[name] for stops in data["stops"].values())]
    return frozenset(spelling.casefold() for group in groups for spelling in group)


@cache
def shapes(split: str) -> tuple[str, ...]:
    """Return the shapes of a file."""
    return tuple(row.shape() for row in rows(split))


def any_name(names: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the names as whole words."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")


@pytest.mark.parametrize("split", SPLITS)
def test_default_seed_gives_the_committed_bytes(split: str) -> None:
    """The grammar with its default seed gives the committed files, byte for byte."""
    made = "".join(query.line() for query in made_queries()[split]).encode()
    assert made == (FOLDER / f"{split}.jsonl").read_bytes()


def test_another_seed_gives_other_rows(tmp_path: Path) -> None:
    """The seed decides the rows: another one gives another file of the same length."""
    grammar().write_files(tmp_path, seed=7)
    other = (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()
    mine = (FOLDER / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(other) == len(mine)
    assert other != mine


def test_sizes() -> None:
    """The files have the promised numbers of rows, and train stays below 1,000,000 bytes."""
    assert len(rows("train")) >= 6000
    assert len(rows("validation")) >= 600
    assert len(rows("test")) >= 1200
    assert (FOLDER / "train.jsonl").stat().st_size < 1_000_000
    assert b"\r" not in (FOLDER / "train.jsonl").read_bytes()


@pytest.mark.parametrize("split", SPLITS)
def test_spans_are_sane(split: str) -> None:
    """Every span is inside its text, in order, apart from the others, known by label and free of glued characters."""
    for row in rows(split):
        done = 0
        for start, end, label in row.spans:
            assert done <= start < end <= len(row.text), row
            assert label in LABELS, row
            value = row.text[start:end]
            assert re.match(r"\w", value), row
            assert value[-1] not in " ?!.,;:/-|()[]>→+", row
            assert not value.endswith("'s"), row
            done = end


def test_no_query_twice() -> None:
    """No query, whatever its capitals and spaces, stands twice in one file or in two of them, golden.jsonl included."""
    keys = Counter(row.key() for split in SPLITS for row in rows(split))
    assert [key for key, count in keys.items() if count > 1] == []
    golden = FOLDER / "golden.jsonl"
    if golden.exists():
        data = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts = [row["text"] if "text" in row else " ".join(row["tokens"]) for row in data]
        shared = sum(" ".join(text.casefold().split()) in keys for text in texts)
        assert shared == 0, f"{shared} golden queries are also generated"  # the texts themselves stay unseen


@pytest.mark.parametrize("split", HELD_OUT)
def test_forty_percent_of_names_are_unseen(split: str) -> None:
    """At least 40 % of the distinct names, and of the name mentions, never come in train (typos undone)."""
    known = set(chosen_names("train"))
    mentions = chosen_names(split)
    distinct = set(mentions)
    assert sum(name not in known for name in mentions) >= 0.4 * len(mentions)
    assert sum(name not in known for name in distinct) >= 0.4 * len(distinct)


@pytest.mark.parametrize("split", HELD_OUT)
def test_forty_percent_of_names_are_unseen_in_the_files(split: str) -> None:
    """The same shares hold in the committed files, counting only names spelt just as in the split's own pool."""
    values = [value for row in rows(split) for label in NAME_LABELS for value in row.values(label)]
    own = [value for value in values if value in pool(split)]
    clean = [value for value in values if value in pool(split) | pool("shared")]
    assert len(own) >= 0.4 * len(values)
    assert len(set(own)) >= 0.4 * len(set(clean))


@pytest.mark.parametrize("split", HELD_OUT)
def test_held_out_names_are_nowhere_in_train(split: str) -> None:
    """No held-out name stands anywhere in a train text: not in a span, not inside another name, not unlabelled."""
    pattern = any_name(pool(split) - pool("shared"))
    assert [row.text for row in rows("train") if pattern.search(row.text.casefold())] == []


def test_pools_do_not_share_names() -> None:
    """Every spelling in the names file belongs to one pool only."""
    names = Counter(name for split in ("shared", *SPLITS) for name in pool(split))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("split", HELD_OUT)
def test_patterns_are_unseen(split: str) -> None:
    """No sentence pattern of validation or test, capitals, punctuation and typos undone, is used in train."""
    made = made_queries()
    known = {query.frame_key for query in made["train"]}
    assert len(known) > 1000  # else the next line would say little
    assert [query.text for query in made[split] if query.frame_key in known] == []


@pytest.mark.parametrize("split", SPLITS)
def test_every_label_comes_often(split: str) -> None:
    """Each entity type comes often in every split (50 times or more in test), and no type crowds out the rest."""
    counts = Counter(label for row in rows(split) for _, _, label in row.spans)
    floor = {"train": 600, "validation": 50, "test": 100}[split]
    assert sorted(counts) == sorted(LABELS)
    assert min(counts.values()) >= floor
    assert max(counts.values()) < 0.4 * sum(counts.values())


@pytest.mark.parametrize("split", SPLITS)
def test_about_one_query_in_twenty_has_no_entity(split: str) -> None:
    """Between 3 % and 8 % of the queries have no entity at all."""
    empty = sum(not row.spans for row in rows(split))
    assert 0.03 * len(rows(split)) <= empty <= 0.08 * len(rows(split))


# Phenomenon -> pattern in the *shape* of a row (spans replaced by type names, the rest casefolded).
SHAPES = {
    "destination first": r"\bto DEST\b.*\bfrom SRC\b",
    "bare pair": r"^SRC DEST\b",
    "bare pair behind something else": r"(_TYPE|DATE|TIME|OPERATOR|bus|[,-]) SRC DEST\b",
    "source missing": r"^(?!.*SRC).*DEST",
    "destination missing": r"^(?!.*DEST).*SRC",
    "route missing": r"^(?!.*(SRC|DEST)).*(_TYPE|DATE|TIME)",
    "glued dash": r"SRC-DEST",
    "glued comma": r"[A-Z],[A-Za-z]",
    "ascii arrow": r"SRC\s?(->|=>|>>|>)\s?DEST",
    "arrow": r"SRC\s?→\s?DEST",
    "slash": r"(SRC/DEST|BUS_TYPE/|SEAT_TYPE/)",
    "question mark glued to a span": r"[A-Z]\?",
    "brackets": r"\([A-Z_]+\)",
    "rupee sign": r"₹\d",
    "Rs. price": r"rs\.?\s?\d",
    "emoji": r"[\U0001F300-\U0001FAFF❤✈]",
    "Hinglish se": r"SRC (se|sey) ",
    "Hinglish ke liye": r"(DEST|DATE) ke liye",
    "Hinglish jana hai": r"DEST (jana|jaana)",
    "Hinglish tak": r"DEST tak",
    "Tanglish and the like": r"(irundhu|lendhu|poganum|inda|hogbeku|nunchi|nundi|theke|ninnu|varun)",
    "polite opening": r"^(hi|hello|please|pls|plz|kindly|good morning|can you|could you|i would like)",
    "full question": r"^(is there|are there|do you|does|which|what|when|how)\b",
    "via": r"\b(via|through) \w",
    "return": r"\b(return|round trip|one way|both ways|and back)\b",
    "passengers": r"\d (people|passengers|adults|persons|pax|seats|tickets|log)\b",
    "amenity": r"(wifi|charging|blanket|toilet|washroom|water bottle)",
    "boarding beside its city": r"(BOARDING_POINT,? SRC|SRC \(?BOARDING_POINT|BOARDING_POINT in SRC)",
    "dropping beside its city": r"(DROPPING_POINT,? DEST|DEST \(?DROPPING_POINT|DROPPING_POINT in DEST)",
    "boarding by wording": r"(boarding|pickup|pick up|board at) ([a-z]+ )?BOARDING_POINT",
    "dropping by wording": r"(drop|dropping|get down at) ([a-z]+ )?DROPPING_POINT",
    "two bus types": r"BUS_TYPE( or |/| ya )BUS_TYPE",
    "two seat types": r"SEAT_TYPE( or |/| ya )SEAT_TYPE",
    "two dates": r"DATE (or|ya) DATE",
    "two operators": r"OPERATOR (or|ya) OPERATOR",
    "time after a preposition": r"\b(after|before|around|by|past|post) TIME",
    "time between": r"between TIME",
    "day and time side by side": r"DATE TIME",
    "bus and seat side by side": r"BUS_TYPE SEAT_TYPE",
    "seat before bus": r"SEAT_TYPE BUS_TYPE",
    "cancel, refund": r"(cancel|refund)",
}


@pytest.mark.parametrize("phenomenon", SHAPES)
@pytest.mark.parametrize("split", SPLITS)
def test_shape_is_covered(split: str, phenomenon: str) -> None:
    """Every split shows each promised way of putting a query together."""
    pattern = re.compile(SHAPES[phenomenon])
    assert any(pattern.search(shape) for shape in shapes(split))


# Phenomenon -> label and pattern of the whole casefolded span.
VALUES = {
    "day and month by numbers": ("DATE", r"\d{1,2}/\d{1,2}"),
    "ISO date": ("DATE", r"20\d\d-\d\d-\d\d"),
    "25th dec": ("DATE", r"\d{1,2}(st|nd|rd|th) [a-z]{3,}"),
    "dec 25": ("DATE", r"[a-z]{3,} \d{1,2}"),
    "with year": ("DATE", r"[a-z]{3,} \d{1,2},? 20\d\d|\d{1,2}/\d{1,2}/20\d\d|.* 20\d\d"),
    "next friday": ("DATE", r"next [a-z]+day"),
    "coming sunday": ("DATE", r"(coming|upcoming) [a-z]+"),
    "short weekday": ("DATE", r"mon|tue|wed|thu|fri|sat|sun"),
    "weekend": ("DATE", r"(this|next|coming) weekend"),
    "day after tomorrow": ("DATE", r"day after tomorrow"),
    "short tomorrow": ("DATE", r"tmrw|tmw|2moro|2morrow|tomo|tmrow"),
    "kal": ("DATE", r"kal"),
    "aaj": ("DATE", r"aaj"),
    "parso": ("DATE", r"parson?"),
    "9pm": ("TIME", r"\d{1,2}[ap]m"),
    "9 pm": ("TIME", r"\d{1,2} [ap]m"),
    "9:30 pm": ("TIME", r"\d{1,2}:\d\d ?[ap]m"),
    "21:30": ("TIME", r"\d\d:\d\d"),
    "9 baje": ("TIME", r"\d{1,2} baje"),
    "raat 9 baje": ("TIME", r"(raat|subah|shaam|sham|dopahar) (ke )?\d{1,2} baje"),
    "early morning": ("TIME", r"early morning"),
    "late night": ("TIME", r"late night"),
    "range": ("TIME", r"\d{1,2}( [ap]m|[ap]m)?( ?- ?| to | and )\d{1,2} ?[ap]m"),
    "ac": ("BUS_TYPE", r"a/?c"),
    "non ac": ("BUS_TYPE", r"non[ -]?a/?c"),
    "volvo ac": ("BUS_TYPE", r"volvo ac|ac volvo"),
    "multi axle": ("BUS_TYPE", r"(volvo )?multi[ -]?axle( volvo)?.*"),
    "electric": ("BUS_TYPE", r"electric.*"),
    "own brand of a corporation": ("BUS_TYPE", r"shivneri|shivshahi|garuda( plus)?|airavat.*|rajahamsa"),
    "semi sleeper": ("SEAT_TYPE", r"semi[ -]sleeper"),
    "berth": ("SEAT_TYPE", r"(lower|upper) berth"),
    "window seat": ("SEAT_TYPE", r"window seat"),
    "2+1": ("SEAT_TYPE", r"2\+1.*"),
    "abbreviated city": ("SRC", r"blr|hyd|mum|chn|amd|lko|cbe|tvm|chd|ngp"),
    "city of two words": ("DEST", r"[a-z]+ [a-z]+"),
    "stop of two words": ("BOARDING_POINT", r"[a-z]+ [a-z]+"),
    "city in an Indian script": ("SRC", r".*[\u0900-\u0d7f].*"),
    "date in an Indian script": ("DATE", r".*[\u0900-\u0d7f].*"),
    "time in an Indian script": ("TIME", r".*[\u0900-\u0d7f].*"),
    "state corporation": ("OPERATOR", r"[a-z]{2,5}rtc|setc|tnstc|kkrtc|nwkrtc"),
    "private operator": ("OPERATOR", r".* travels"),
}


@pytest.mark.parametrize("phenomenon", VALUES)
@pytest.mark.parametrize("split", SPLITS)
def test_value_is_covered(split: str, phenomenon: str) -> None:
    """Every split shows each promised way of writing a value or a name."""
    label, expression = VALUES[phenomenon]
    pattern = re.compile(expression)
    assert any(pattern.fullmatch(value) for row in rows(split) for value in row.values(label))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("script", ["DEVANAGARI", "TAMIL", "TELUGU", "KANNADA", "BENGALI", "GUJARATI", "MALAYALAM"])
def test_scripts_are_covered(split: str, script: str) -> None:
    """Every split has text in each of the seven scripts."""
    assert any(grammar().script_of(row.text) == script for row in rows(split))


@pytest.mark.parametrize("split", SPLITS)
def test_letter_case_is_mixed(split: str) -> None:
    """Lower case, capitals and random case all come, lower case in at least a quarter of the rows."""
    texts = [row.text for row in rows(split) if row.text.isascii()]
    assert sum(text.islower() for text in texts) >= 0.25 * len(texts)
    assert sum(text.isupper() for text in texts) >= 0.02 * len(texts)
    assert sum(bool(re.search(r"[a-z][A-Z][a-z]?[A-Z]", text)) for text in texts) >= 0.01 * len(texts)


@pytest.mark.parametrize("split", SPLITS)
def test_typos_come(split: str) -> None:
    """Between 3 % and 25 % of the labelled names are misspelt."""
    values = [value for row in rows(split) for label in NAME_LABELS for value in row.values(label)]
    wrong = sum(value not in pool(split) | pool("shared") for value in values)
    assert 0.03 * len(values) <= wrong <= 0.25 * len(values)


@pytest.mark.parametrize("split", SPLITS)
def test_places_change_their_part(split: str) -> None:
    """Names are no give-away: cities come both as SRC and as DEST, quarters both as SRC and as BOARDING_POINT."""
    found = {label: {value for row in rows(split) for value in row.values(label)} for label in NAME_LABELS}
    assert len(found["SRC"] & found["DEST"]) >= 20
    assert len(found["SRC"] & found["BOARDING_POINT"]) >= 5
    assert len(found["DEST"] & found["DROPPING_POINT"]) >= 5


@pytest.mark.parametrize("split", SPLITS)
def test_neighbours_of_one_type_are_one_span(split: str) -> None:
    """Two spans of one type are never parted by a space alone, except two names of one kind."""
    for row in rows(split):
        for (_, end, label), (start, _, other) in pairwise(row.spans):
            if label == other:
                assert row.text[end:start].strip(), row


@pytest.mark.parametrize("split", SPLITS)
def test_a_quarter_is_no_end_of_the_journey_beside_its_own_city(split: str) -> None:
    """No quarter is SRC or DEST where the other end is its own city: "Majestic Bangalore" is one place, no journey."""
    stops = json.loads((FOLDER / "names.json").read_text(encoding="utf-8"))["stops"]
    home = {stop.casefold(): city.casefold() for city, pools in stops.items() for own in pools.values() for stop in own}
    for row in rows(split):
        ends = [*row.values("SRC"), *row.values("DEST")]
        assert not {home[end] for end in ends if end in home} & set(ends), row


@pytest.mark.parametrize("split", SPLITS)
def test_seat_belongs_to_the_span(split: str) -> None:
    """The word "seat" right behind a seat type is always inside its span."""
    assert [shape for shape in shapes(split) if re.search(r"SEAT_TYPE (seats?|berths?)\b", shape)] == []
