"""Reading labelled queries: what is read, and what is refused with which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import labelled_data
from harness.errors import DataError
from harness.labelled_data import BUNDLED, bundled_bus_queries, read_labelled_set, word_tags
from harness.tagging import EntitySpan, LabelledQuery, Word

LABELS = ("O", "B-SRC", "I-SRC", "B-DEST", "I-DEST")
GOOD = '{"text": "from Pune", "spans": [[5, 9, "SRC"]]}'


@pytest.fixture
def written(tmp_path):
    def write(content: str | bytes, name: str = "queries.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path, **arguments):
    with pytest.raises(DataError) as caught:
        read_labelled_set(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert message.endswith(".")
    return message


# -- what is read ------------------------------------------------------------------------------------------------


def test_both_json_forms(written):
    """Text with list spans, text with object spans and tokens with tags all say the same query."""
    rows = [
        {"text": "from New Delhi to Pune", "spans": [[5, 14, "SRC"], [18, 22, "DEST"]]},
        {
            "id": 7,
            "text": "from New Delhi to Pune",
            "spans": [{"start": 18, "end": 22, "label": "DEST"}, {"start": 5, "end": 14, "label": "SRC"}],
        },
        {
            "id": "r3",
            "tokens": ["from", "New", "Delhi", "to", "Pune"],
            "tags": ["O", "B-SRC", "I-SRC", "O", "B-DEST"],
        },
    ]
    found = read_labelled_set(written("\n".join(map(json.dumps, rows)) + "\n\n"), labels=LABELS)
    expected = LabelledQuery(
        "from New Delhi to Pune", (EntitySpan(5, 14, "SRC"), EntitySpan(18, 22, "DEST")), "queries"
    )
    assert found.queries == (expected,) * 3
    assert found.name == "queries"
    assert found.notes == ()


@pytest.mark.parametrize("gap", ["\t", " ", "   ", "\tNNP\t", " NNP x "])
def test_conll(written, gap):
    """The first column is the token and the last one its tag, whatever stands between."""
    content = f"-DOCSTART-{gap}O\n\nfrom{gap}O\nNew{gap}B-SRC\nDelhi{gap}I-SRC\n\n\t\n#{gap}O\nPune{gap}B-SRC"
    found = read_labelled_set(written(content, "a.conll"))
    assert found.queries == (
        LabelledQuery("from New Delhi", (EntitySpan(5, 14, "SRC"),), "a"),
        LabelledQuery("# Pune", (EntitySpan(2, 6, "SRC"),), "a"),
    )


def test_document_start_separates(written):
    """A -DOCSTART- line ends the query before it and need not have as many columns as the others."""
    found = read_labelled_set(written("a\tO\n-DOCSTART- -X- -X- O\nb\tO\n", "a.conll"))
    assert found.texts == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", GOOD),
        ("a", GOOD),
        ("a.conll", GOOD),
        ("a.txt", "from\tO\nPune\tB-SRC"),
        ("a.tsv", "from\tO\nPune\tB-SRC"),
        ("a.conll", "\n\nfrom O\nPune B-SRC"),
    ],
)
def test_format_is_recognised(written, name, content):
    """A file that is not named for its format is recognised by its first row."""
    (query,) = read_labelled_set(written(content, name)).queries
    assert (query.text, query.spans) == ("from Pune", (EntitySpan(5, 9, "SRC"),))


def test_conll_may_begin_with_a_brace(written):
    """A CoNLL file whose first token is a brace is still CoNLL."""
    assert read_labelled_set(written("{ O\nx O\n", "a.conll")).texts == ["{ x"]


def test_several_files(written):
    """Files follow each other, each query names its file, and the set is named after them all."""
    found = read_labelled_set([written(GOOD, "one.jsonl"), written("x\tO", "two.conll")])
    assert found.name == "one+two"
    assert [query.source for query in found.queries] == ["one", "two"]


def test_byte_order_mark_and_carriage_returns(written):
    """A BOM and Windows line ends belong to no text."""
    assert read_labelled_set(written(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n")).texts == ["from Pune"]
    assert read_labelled_set(written(b"\xef\xbb\xbfa\tO\r\n\r\nb\tO\r\n", "a.conll")).texts == ["a", "b"]


@pytest.mark.parametrize("strange", ["\u2028", "\x85", "\x0b", "\u00a0", "\U0001f68c", "e\u0301", "\u200d"])
def test_only_newlines_end_a_line(written, strange):
    """Characters that str.splitlines and str.split would cut at stay inside a text, and offsets count code points."""
    text = f"x{strange}y Pune"
    row = json.dumps({"text": text, "spans": [[len(text) - 4, len(text), "SRC"]]}, ensure_ascii=False)
    (query,) = read_labelled_set(written(row)).queries
    assert query.text == text
    assert [text[span.start : span.end] for span in query.spans] == ["Pune"]
    assert read_labelled_set(written(f"x{strange}y\tO\n", "a.conll")).texts == [f"x{strange}y"]
    assert read_labelled_set(written(f"x{strange}y O\n", "a.conll")).texts == [f"x{strange}y"]


def test_entity_that_begins_with_i(written):
    """An I- without its B- begins an entity, also after another type, and a note counts these with the first line."""
    path = written("Pune\tI-SRC\nCity\tI-SRC\nAgra\tI-DEST\n\nto\tO\nGoa\tB-DEST\n", "a.conll")
    found = read_labelled_set(path)
    assert found.queries[0].spans == (EntitySpan(0, 9, "SRC"), EntitySpan(10, 14, "DEST"))
    (note,) = found.notes
    assert note.startswith(f"{path}: 2 entities begin with I-")
    assert "line 1" in note
    row = written('{"tokens": ["Pune"], "tags": ["I-SRC"]}')
    assert "1 entity begins" in read_labelled_set(row).notes[0]


def test_adjacent_entities_of_one_type(written):
    """B- begins a new entity right after one of its own type."""
    (query,) = read_labelled_set(written("a B-SRC\nb B-SRC\n", "a.conll")).queries
    assert query.spans == (EntitySpan(0, 1, "SRC"), EntitySpan(2, 3, "SRC"))


def test_type_names_with_dots_and_dashes(written):
    """Only the first dash of a tag ends its prefix."""
    (query,) = read_labelled_set(written("a\tB-from.city-name\nb\tI-from.city-name\n", "a.conll")).queries
    assert query.spans == (EntitySpan(0, 3, "from.city-name"),)


def test_labels_without_prefixes(written):
    """Data tagged the way a model without B- and I- is labelled can be read for that model, and for no other."""
    path = written("Pune\tPLACE\nx\tO\n", "a.conll")
    (query,) = read_labelled_set(path, labels=["O", "PLACE"]).queries
    assert query.spans == (EntitySpan(0, 4, "PLACE"),)
    assert "line 1: 'PLACE' is no BIO tag. Write O, B-TYPE or I-TYPE." in refusal(path)


# -- what is refused ---------------------------------------------------------------------------------------------

BAD_ROWS = {
    "not json": ('{"text": ', "not valid JSON", "Write one JSON object a line"),
    "array": ("[1]", "JSON list, not an object", "one row a line"),
    "deep": ("[" * 200_000, "not usable JSON", "Write one JSON object a line"),
    "huge number": ('{"id": ' + "1" * 5000 + "}", "not usable JSON", "Write one JSON object a line"),
    "duplicate key": ('{"text": "a", "text": "b", "spans": []}', "the key 'text' stands twice", "Keep one"),
    "duplicate span key": (
        '{"text": "a", "spans": [{"start": 0, "end": 1, "end": 1, "label": "SRC"}]}',
        "the key 'end' stands twice",
        "Keep one",
    ),
    "unknown key": ('{"text": "a", "spans": [], "span": 1}', "unknown key 'span'", "Did you mean spans? Known keys"),
    "no spans": ('{"text": "a"}', "the row has text.", "Give either text and spans, or tokens and tags"),
    "both forms": ('{"text": "a", "spans": [], "tokens": []}', "the row has text, spans, tokens", "Give either"),
    "nothing": ("{}", "the row has none of them", "Give either"),
    "id": ('{"id": true, "text": "a", "spans": []}', "id is true", "string or a whole number"),
    "text type": ('{"text": 5, "spans": []}', "text is 5", "Make it a string"),
    "text empty": ('{"text": " ", "spans": []}', "the text is empty", "Write the query or delete the line"),
    "surrogate": ('{"text": "ab\\ud800", "spans": []}', "surrogate pair at character 2", "Write the whole character"),
    "token surrogate": ('{"tokens": ["\\udfff"], "tags": ["O"]}', "surrogate pair", "Write the whole character"),
    "spans type": ('{"text": "a", "spans": null}', "spans is null", "Make it a list"),
    "span short": ('{"text": "a", "spans": [[0, 1]]}', "[0, 1] is no span", "Write [start, end,"),
    "span other key": (
        '{"text": "a", "spans": [{"start": 0, "end": 1, "label": "SRC", "x": 1}]}',
        "is no span",
        "Write [start, end,",
    ),
    "span lacks key": ('{"text": "a", "spans": [{"start": 0, "end": 1}]}', "is no span", "Write [start, end,"),
    "offset float": ('{"text": "a", "spans": [[0, 1.0, "SRC"]]}', "no whole numbers", "Fix the offsets"),
    "offset bool": ('{"text": "a", "spans": [[false, true, "SRC"]]}', "no whole numbers", "Fix the offsets"),
    "span past text": (
        '{"text": "from Pune", "spans": [[5, 12, "SRC"]]}',
        "span 5-12 runs past the text (9 characters)",
        "Fix the offsets or delete the line",
    ),
    "span negative": ('{"text": "a", "spans": [[-1, 1, "SRC"]]}', "span -1-1 is empty or starts before", "Fix"),
    "span empty": ('{"text": "ab", "spans": [[1, 1, "SRC"]]}', "span 1-1 is empty", "Fix the offsets"),
    "span reversed": ('{"text": "ab", "spans": [[2, 1, "SRC"]]}', "span 2-1 is empty", "Fix the offsets"),
    "span leading space": ('{"text": "a bc", "spans": [[1, 3, "SRC"]]}', "starts or ends with white space", "Move"),
    "span trailing space": ('{"text": "a bc", "spans": [[0, 2, "SRC"]]}', "starts or ends with white space", "Move"),
    "overlap": (
        '{"text": "abcd", "spans": [[2, 4, "DEST"], [0, 3, "SRC"]]}',
        "spans 0-3 SRC and 2-4 DEST overlap",
        "Keep one of them or move",
    ),
    "same span twice": ('{"text": "ab", "spans": [[0, 2, "SRC"], [0, 2, "SRC"]]}', "overlap", "Keep one of them"),
    "span label type": ('{"text": "a", "spans": [[0, 1, 3]]}', "span 0-1 has the label 3", "Make it a string"),
    "span label blank": ('{"text": "a", "spans": [[0, 1, ""]]}', "no name of an entity type", "Use printable text"),
    "span label space": ('{"text": "a", "spans": [[0, 1, "a b"]]}', "no name of an entity type", "Use printable text"),
    "span label O": ('{"text": "a", "spans": [[0, 1, "O"]]}', "means no entity", "Delete the span"),
    "span label prefix": ('{"text": "a", "spans": [[0, 1, "B-SRC"]]}', "'B-SRC' has a prefix", "Write SRC"),
    "tokens type": ('{"tokens": "ab", "tags": ["O"]}', "tokens is 'ab'", "Make it a list of strings"),
    "tags type": ('{"tokens": ["ab"], "tags": [0]}', "tags is [0]", "Make it a list of strings"),
    "uneven tags": ('{"tokens": ["a", "b"], "tags": ["O"]}', "2 tokens but 1 tags", "Give each token one tag"),
    "no token": ('{"tokens": [], "tags": []}', "the row has no token", "delete the line"),
    "empty token": ('{"tokens": ["a", ""], "tags": ["O", "O"]}', "a token is empty", "Write the token"),
    "blank token": ('{"tokens": ["\u00a0"], "tags": ["O"]}', "a token is empty", "Write the token or delete it"),
    "spaced token": ('{"tokens": ["a "], "tags": ["O"]}', "has space around it", "Delete the space"),
    "tag": ('{"tokens": ["a"], "tags": ["B_SRC"]}', "'B_SRC' is no BIO tag", "Write O, B-TYPE or I-TYPE"),
    "tag without type": ('{"tokens": ["a"], "tags": ["B-"]}', "'B-' is no BIO tag", "Write O, B-TYPE or I-TYPE"),
    "small o": ('{"tokens": ["a"], "tags": ["o"]}', "'o' is no BIO tag", "Write O, B-TYPE or I-TYPE"),
    "unknown type": (
        '{"text": "a", "spans": [[0, 1, "DST"]]}',
        "entity type 'DST' (once, first here) is not a label of the model; did you mean DEST? it has DEST, SRC",
        "Rename the label",
    ),
    "unknown tag type": ('{"tokens": ["a"], "tags": ["I-xyz"]}', "entity type 'xyz'", "Rename the label"),
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_json_row(written, row):
    """A row that is wrong is refused in one line that names the file, the line, what is wrong and what to do."""
    content, what, remedy = row
    path = written(f"{GOOD}\n\n{content}\n{GOOD}\n")
    message = refusal(path, labels=LABELS)
    assert message.startswith(f"{path} line 3: ")
    assert what in message
    assert remedy in message


BAD_CONLL = {
    "no tag": ("Pune", "'Pune' has one column, without a tag", "Write the token, a tab and its tag"),
    "uneven": ("Pune\tNNP\tB-SRC", "3 columns where line 1 has 2", "Give every line as many columns"),
    "empty token": ("\tO", "a token is empty", "Write the token or delete it"),
    "leading space": (" O", "a token is empty", "Write the token or delete it"),
    "empty tag": ("Pune\t", "'' is no BIO tag", "Write O, B-TYPE or I-TYPE"),
    "bad tag": ("Pune\tSRC", "'SRC' is no BIO tag", "Write O, B-TYPE or I-TYPE"),
    "comment": ("# text = Pune O", "columns where line 1 has 2", "Give every line as many columns"),
    "unknown type": ("Pune\tB-SRCE", "entity type 'SRCE' (once, first here)", "did you mean SRC?"),
}


@pytest.mark.parametrize("row", BAD_CONLL.values(), ids=BAD_CONLL)
def test_bad_conll_line(written, row):
    """A CoNLL line that is wrong is refused in one line that names the file, the line, and what to do."""
    content, what, remedy = row
    path = written(f"from\tO\nAgra\tB-SRC\n{content}\nto\tO\n", "a.conll")
    message = refusal(path, labels=LABELS)
    assert message.startswith(f"{path} line 3: ")
    assert what in message
    assert remedy in message


def test_wrong_encoding(written):
    """A byte that is not UTF-8 is named by its place in the file, its value and its line, BOM counted."""
    path = written(b"\xef\xbb\xbfab\tO\nPun\xe9\tO\n")
    assert refusal(path.rename(path.with_suffix(".conll"))) == (
        f"{path.with_suffix('.conll')} line 2: byte 11 of the file (0xE9) is not UTF-8. Save the file as UTF-8."
    )
    first = written(b"\xef\xbb\xbf\xe9\tO\n", "b.conll")
    assert "line 1: byte 3 of the file (0xE9)" in refusal(first)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16(written, encoding):
    """UTF-16 is called by its name, not reported as thousands of bad bytes."""
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path = written((mark + GOOD).encode(encoding))
    assert refusal(path).startswith(f"{path} line 1: the file is UTF-16")


def test_long_line(written):
    """A line above 1 MB is refused, and nothing behind it is read."""
    path = written(GOOD + "\n" + "x" * 1_000_001 + "\n{")
    assert refusal(path) == f"{path} line 2: the line is longer than 1,000,000 bytes. Write one query a line."


def test_line_of_one_megabyte_is_read(written):
    """A line of exactly 1 MB, its newline included, is read."""
    row = '{"text": "%s", "spans": []}'
    (query,) = read_labelled_set(written(row % ("x" * (999_999 - len(row) + 2)) + "\n")).queries
    assert len(query.text) > 999_000


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.conll"])
def test_no_rows(written, content, name):
    """A file without a query is refused: an empty set would pass every gate."""
    path = written(content, name)
    assert refusal(path) == f"{path} holds no labelled query. Write at least one, or name another file."


def test_only_document_starts(written):
    """A CoNLL file of nothing but -DOCSTART- lines has no query."""
    assert "holds no labelled query" in refusal(written("-DOCSTART- O\n\n", "a.conll"))


def test_one_empty_file_among_several(written):
    """An empty file is refused also beside a full one."""
    empty = written("", "empty.jsonl")
    assert refusal([written(GOOD), empty]).startswith(f"{empty} holds no labelled query")


def test_no_such_file(tmp_path):
    """A missing file, a folder, something that is no file, and no name at all each get their own words."""
    missing = tmp_path / "none.jsonl"
    assert refusal(missing).startswith(f"{missing} does not exist. Check the name")
    assert refusal(tmp_path) == f"{tmp_path} is a folder. Name the file of labelled queries in it."
    assert refusal(Path("/dev/null")).startswith("/dev/null is not a regular file.")
    assert "Name at least one" in refusal([])


def test_unreadable_file(written, monkeypatch):
    """What the operating system says is passed on, with the file and what to do."""
    path = written(GOOD)

    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(path) == f"{path} cannot be read: Permission denied. Check the name and its permissions."


def test_every_problem_at_once(written):
    """All problems of a file are counted and the first five shown, in the order of their lines."""
    bad = '{"text": "ab", "spans": [[0, 9, "SRC"]]}'
    path = written(f"{bad}\n{GOOD}\n{{\n{bad}\n{bad}\n{bad}\n{bad}")
    message = refusal(path)
    assert message.startswith(f"{path}: 6 problems; the first 5: line 1: span 0-9 runs past")
    assert [f"line {number}: " in message for number in (1, 3, 4, 5, 6, 7)] == [True] * 5 + [False]


def test_problems_stand_in_order(written):
    """Problems are told in the order of their lines, in whatever order they were found."""
    rows = b'{"text": "a", "spans": [[0, 1, "STOP"]]}\n{"text": "a", "spans": [[1, 1, "SRC"]]}\n"\xff"\n'
    message = refusal(written(rows), labels=LABELS)
    places = [message.index(part) for part in ("line 1: entity type", "line 2: span 1-1", "line 3: byte")]
    assert places == sorted(places)


def test_problems_of_one_row(written):
    """Two problems of one row are both told."""
    message = refusal(written('{"text": "ab", "spans": [[0, 9, "SRC"], [1, 1, "SRC"]]}'))
    assert "2 problems: line 1: span 0-9 runs" in message
    assert "line 1: span 1-1 is empty" in message


def test_unknown_type_is_told_once(written):
    """A type that the model lacks is told once, with how often it occurs and where first."""
    rows = ['{"text": "a", "spans": [[0, 1, "STOP"]]}', GOOD, '{"tokens": ["a"], "tags": ["B-STOP"]}']
    path = written("\n".join(rows))
    assert refusal(path, labels=LABELS) == (
        f"{path} line 1: entity type 'STOP' (2 times, first here) is not a label of the model; "
        "it has DEST, SRC. Rename the label or judge a model that has it."
    )
    assert "it has no entity type at all" in refusal(path, labels=["O"])
    many = [f"B-T{number:02}" for number in range(20)]
    assert "T11 and 8 more" in refusal(path, labels=many)


@given(st.binary(max_size=200), st.sampled_from(["a.jsonl", "a.conll", "a.txt"]))
def test_any_bytes(tmp_path_factory, content, name):
    """Any bytes are read or refused with one printable line; spans that are read lie in their text."""
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    try:
        found = read_labelled_set(path)
    except DataError:
        refusal(path)
        return
    assert found.queries
    assert all(query.text[span.start : span.end].strip() for query in found.queries for span in query.spans)


TOKENS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=6)
ROWS = st.lists(st.tuples(TOKENS, st.sampled_from(LABELS)), min_size=1, max_size=8)


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_formats_agree(tmp_path_factory, queries):
    """The same tokens and tags are the same queries as CoNLL and as JSON; as text with spans they come back equal."""
    folder = tmp_path_factory.mktemp("agree")
    conll, tokens, spans = folder / "x.conll", folder / "x.json", folder / "x.jsonl"
    conll.write_text(
        "\n\n".join("\n".join(f"{token}\t{tag}" for token, tag in query) for query in queries), encoding="utf-8"
    )
    rows = [{"tokens": [token for token, _ in query], "tags": [tag for _, tag in query]} for query in queries]
    tokens.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    if any(query[0][0].startswith("-DOCSTART-") for query in queries):
        return
    first = read_labelled_set(conll).queries
    assert read_labelled_set(tokens).queries == first
    rows = [{"text": item.text, "spans": [[s.start, s.end, s.label] for s in item.spans]} for item in first]
    spans.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert read_labelled_set(spans).queries == first


# -- bundled queries ---------------------------------------------------------------------------------------------


def test_bundled_beside_the_package(tmp_path, monkeypatch):
    """In a clone the fixtures stand beside the package, in a wheel inside it; the inner ones win."""
    package = tmp_path / "harness"
    package.mkdir()
    monkeypatch.setattr(labelled_data, "__file__", str(package / "labelled_data.py"))
    with pytest.raises(DataError, match=r"golden\.jsonl are neither in .* nor in .*Install the harness again"):
        bundled_bus_queries("golden")
    for root in (tmp_path, package):
        path = root / "fixtures" / "bus_queries" / "golden.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(GOOD)
        assert bundled_bus_queries("golden") == path


def test_bundled_name_is_unknown():
    """A name that is not bundled is refused with those that are."""
    with pytest.raises(DataError, match=f"named 'tests'. Choose one of {', '.join(BUNDLED)}"):
        bundled_bus_queries("tests")


# -- word tags ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "words", "tags"),
    [
        ([(5, 14, "SRC")], [(0, 4), (5, 8), (9, 14)], ["O", "B-SRC", "I-SRC"]),
        ([(0, 3, "SRC"), (4, 7, "SRC")], [(0, 3), (4, 7)], ["B-SRC", "B-SRC"]),
        ([(0, 3, "SRC"), (3, 7, "DEST")], [(0, 3), (3, 5), (5, 7)], ["B-SRC", "B-DEST", "I-DEST"]),
        ([(2, 5, "SRC")], [(0, 9)], ["B-SRC"]),
        ([(0, 2, "SRC"), (2, 5, "DEST")], [(0, 5)], ["B-DEST"]),
        ([(0, 2, "SRC"), (2, 4, "DEST")], [(0, 4)], ["B-SRC"]),
        ([(4, 5, "SRC")], [(0, 4), (5, 9)], ["O", "O"]),
        ([(0, 4, "SRC")], [], []),
    ],
    ids=["usual", "adjacent", "touching", "inside a word", "shared word", "evenly shared", "in a gap", "no words"],
)
def test_word_tags(spans, words, tags):
    """The first word that overlaps an entity begins it and the others continue it, by the larger share."""
    query = LabelledQuery("x" * 20, tuple(EntitySpan(*span) for span in spans))
    assert word_tags(query, [Word(*word) for word in words]) == tags


def test_imports_nothing_heavy():
    """Reading data needs neither torch nor transformers."""
    code = "import sys, harness.labelled_data; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "['numpy']"
