"""Which queries judge: parted by their text alone, written and read back as they were."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.errors import DataError
from harness.judging_data import default_data, read_texts, split_for_calibration, write_labelled_set
from harness.labelled_data import read_labelled_set
from harness.tagging import EntitySpan, LabelledQuery, LabelledSet

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@st.composite
def queries(draw, text=texts):
    """A query with entities that do not overlap."""
    query = draw(text)
    cuts = sorted(draw(st.sets(st.integers(0, len(query)), max_size=4)))
    kinds = st.sampled_from(("SRC", "DEST", "étape"))
    spans = (
        EntitySpan(left, right, draw(kinds))
        for left, right in zip(cuts[::2], cuts[1::2], strict=False)
        if query[left:right] == query[left:right].strip()
    )
    return LabelledQuery(query, tuple(spans))


def numbered(count, name="mine"):
    return LabelledSet(name, tuple(LabelledQuery(f"bus {number}", ()) for number in range(count)))


# -- parting ---------------------------------------------------------------------------------------------------------


@given(st.lists(queries(st.sampled_from([f"bus {number}" for number in range(20)])), max_size=20))
def test_no_text_is_in_both_parts(again):
    """Every query is in exactly one part, and equal texts are in the same one, however they are labelled."""
    found = [*numbered(20).queries, *again]
    calibration, judged = split_for_calibration(LabelledSet("mine", tuple(found)))
    assert not set(calibration.texts) & set(judged.texts)
    parted = [*calibration.queries, *judged.queries]
    assert sorted(map(id, parted)) == sorted(map(id, found))


@given(st.integers(20, 100), st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_matter(count, random):
    """Shuffled queries are parted in the same way, the calibration part even into the same order."""
    whole = numbered(count)
    shuffled = list(whole.queries)
    random.shuffle(shuffled)
    calibration, judged = split_for_calibration(whole)
    calibration_again, judged_again = split_for_calibration(LabelledSet("mine", tuple(shuffled)))
    assert calibration_again.texts == calibration.texts
    assert sorted(judged_again.texts) == sorted(judged.texts)
    assert judged_again.texts == [query.text for query in shuffled if query.text in set(judged.texts)]


@given(st.integers(20, 60))
def test_more_queries_move_none_of_the_old_ones_to_judging_by_chance(count):
    """A query is chosen by its text alone: among more queries, those chosen for calibration come from the same ranking."""
    small, large = (set(split_for_calibration(numbered(size))[0].texts) for size in (count, count + 1))
    assert len(small - large) <= 1


@pytest.mark.parametrize(("count", "wanted"), [(20, 5), (23, 5), (24, 6), (1600, 400), (5000, 400)])
def test_how_many_are_for_calibration(count, wanted):
    """A quarter of the queries calibrates, but never more than 400."""
    calibration, judged = split_for_calibration(numbered(count))
    assert (len(calibration.queries), len(judged.queries)) == (wanted, count - wanted)
    assert calibration.name == judged.name == "mine"


@pytest.mark.parametrize("times", [1, 10])
def test_too_few_to_part(times):
    """Fewer than 20 different queries cannot be parted, however often each one stands there."""
    few = LabelledSet("mine", numbered(19).queries * times)
    with pytest.raises(DataError) as caught:
        split_for_calibration(few)
    assert str(caught.value) == (
        "mine has 19 different queries; calibrating INT8 and judging need at least 20. "
        "Add labelled queries, or release without --quantize."
    )


# -- writing and reading back ----------------------------------------------------------------------------------------


@given(st.lists(queries(), min_size=1, max_size=8))
@example([LabelledQuery("to\u2028Pune\x85\x0b now", (EntitySpan(3, 7, "DEST"),))])
def test_round_trip(tmp_path_factory, found):
    """What is written is read back with the same texts and spans, line separators of Unicode in the texts included."""
    path = tmp_path_factory.getbasetemp() / "judged.jsonl"
    write_labelled_set(path, LabelledSet("mine", tuple(found)))
    again = read_labelled_set(path)
    assert [(query.text, query.spans) for query in again.queries] == [(query.text, query.spans) for query in found]
    assert read_texts(path) == [query.text for query in found]


def test_the_default_data():
    """The default data are there and hold labelled queries."""
    assert [path.name for path in default_data()] == ["test.jsonl", "golden.jsonl"]
    assert read_labelled_set(default_data()).entity_types


# -- texts alone -----------------------------------------------------------------------------------------------------


def test_plain_text(tmp_path):
    """A file that is not labelled holds a query a line; empty lines and a byte order mark do not count."""
    path = tmp_path / "queries.txt"
    path.write_bytes("\ufefffrom Pune\r\n\n  \nto  Delhi \u2028 now\n".encode())
    assert read_texts(path) == ["from Pune", "to  Delhi \u2028 now"]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "JSONL"])
def test_texts_of_json_lines(tmp_path, suffix):
    """Every name by which labelled JSON lines go is read as such, not as plain text."""
    path = tmp_path / f"queries.{suffix}"
    path.write_text('{"text": "from Pune", "spans": [[5, 9, "SRC"]]}\n', encoding="utf-8")
    assert read_texts(path) == ["from Pune"]


@pytest.mark.parametrize("suffix", ["conll", "bio", "iob", "iob2"])
def test_texts_of_conll(tmp_path, suffix):
    """Every name by which CoNLL files go is read as such, not a token a query."""
    path = tmp_path / f"queries.{suffix}"
    path.write_text("from O\nPune B-SRC\n\n", encoding="utf-8")
    assert read_texts(path) == ["from Pune"]


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
def test_no_text(tmp_path, content):
    """A file without a query is an error."""
    path = tmp_path / "queries.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_texts(path)
    assert str(caught.value) == f"{path} holds no query. Name a file with a query a line."


@pytest.mark.parametrize("make", ["nothing", "folder", "latin"])
def test_texts_that_cannot_be_read(tmp_path, make):
    """A missing file, a folder, and bytes that are no UTF-8 are errors that name the file, in one line."""
    path = tmp_path / "queries.txt"
    if make == "folder":
        path.mkdir()
    elif make == "latin":
        path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError) as caught:
        read_texts(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as UTF-8 text (")
    assert message.isprintable()


def test_labelled_texts_that_are_wrong(tmp_path):
    """A labelled file is read as strictly as for judging."""
    path = tmp_path / "queries.jsonl"
    path.write_text('{"text": "from Pune"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        read_texts(path)
