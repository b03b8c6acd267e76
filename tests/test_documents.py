"""JSON documents: read strictly, with the version checked, and written whole or not at all."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.documents import parse_json, read_document, read_json_object, to_json, write_json, write_text
from harness.errors import DocumentError

SCHEMA = "harness-test"
texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(texts, json_values, max_size=5)


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "document.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(read, *arguments):
    with pytest.raises(DocumentError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert message.endswith(".")
    return message


# -- reading ---------------------------------------------------------------------------------------------------------


@given(json_objects)
def test_round_trip(tmp_path_factory, content):
    """What was written is what is read, whatever characters and numbers are in it."""
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_json(path, content)
    assert read_json_object(path) == content
    assert parse_json(to_json(content), "the text") == content


@given(json_objects, st.data())
def test_a_file_cut_short(tmp_path_factory, content, data):
    """A document that ends too early is an error wherever it was cut, never half a document."""
    whole = to_json(content).encode()
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert str(path) in refusal(read_json_object, path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ('{"a": 1', "Expecting"),
        ('{"a": 1} {"a": 1}', "Extra data"),
        ('{"a": 1, "a": 1}', "the key 'a' occurs twice"),
        ('{"a": [{"b": 1, "c": {}, "b": 2}]}', "the key 'b' occurs twice"),
        ('{"a\\u0000\\n": 1, "a\\u0000\\n": 1}', "the key 'a?' occurs twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": [Infinity]}', "Infinity is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ("{'a': 1}", "Expecting property name"),
        ("\ufeff{}", "BOM"),
        ("[" * 100_000, "recursion"),
        ("1" * 5000, "digits"),
    ],
    ids=lambda value: value[:20],
)
def test_text_that_is_no_json(written, text, why):
    """Damaged JSON, a key given twice anywhere, and NaN are errors that name the file and the fault."""
    path = written(text)
    message = refusal(read_json_object, path)
    assert message.startswith(f"{path} is not valid JSON (")
    assert why in message


@pytest.mark.parametrize(
    ("text", "kind"), [("[]", "list"), ("5", "int"), ('"x"', "str"), ("null", "NoneType"), ("true", "bool")]
)
def test_json_that_is_no_object(written, text, kind):
    """A document is an object."""
    path = written(text)
    assert refusal(read_json_object, path) == f"{path} holds a JSON {kind} where an object was expected."


def test_a_missing_file(tmp_path):
    """A document that is not there is named."""
    path = tmp_path / "gone.json"
    assert refusal(read_json_object, path) == f"{path} cannot be read (No such file or directory)."


def test_a_folder(tmp_path):
    """A folder is no document."""
    assert refusal(read_json_object, tmp_path) == f"{tmp_path} cannot be read (Is a directory)."


def test_a_file_that_is_not_utf8(written):
    """The first byte that is no UTF-8 is named."""
    path = written(b'{"a": "caf\xe9"}')
    assert refusal(read_json_object, path) == (
        f"{path} is not UTF-8 text (byte 10). Restore the file or write it again."
    )


# -- versions --------------------------------------------------------------------------------------------------------


def versioned(version, schema=SCHEMA):
    return json.dumps({"schema": schema, "version": version, "a": 1})


def test_a_document_of_this_version(written):
    """A document of the schema and version asked for is read."""
    assert read_document(written(versioned(2)), SCHEMA, 2)["a"] == 1


def test_a_newer_version(written):
    """Of a format that is newer than the harness, the harness is told to be old."""
    path = written(versioned(3))
    assert refusal(read_document, path, SCHEMA, 2) == (
        f"{path} has format version 3, this harness reads 2. Update the harness."
    )


@pytest.mark.parametrize("version", [1, 0, -1])
def test_an_older_version(written, version):
    """Of a format that is older, the document is."""
    path = written(versioned(version))
    assert refusal(read_document, path, SCHEMA, 2) == (
        f"{path} has format version '{version}', this harness reads 2. Release again."
    )


@pytest.mark.parametrize("version", ["1", 1.0, True, None, [1], {"1": 1}])
def test_a_version_that_is_none(written, version):
    """What only resembles the number 1 is not version 1."""
    assert "has format version" in refusal(read_document, written(versioned(version)), SCHEMA, 1)


@pytest.mark.parametrize(
    ("text", "schema"), [(versioned(1, "harness-evidence"), "'harness-evidence'"), ("{}", "'None'")]
)
def test_another_schema(written, text, schema):
    """A document of another kind, or of none, is not read as this one."""
    path = written(text)
    assert refusal(read_document, path, SCHEMA, 1) == f"{path} is no {SCHEMA} document (its schema is {schema})."


# -- writing ---------------------------------------------------------------------------------------------------------


def test_folders_are_made(tmp_path):
    """A document may be the first thing in its folder."""
    path = tmp_path / "a" / "b" / "document.json"
    write_json(path, {"a": "é"})
    assert path.read_bytes() == '{\n  "a": "é"\n}\n'.encode()


def test_writing_replaces(tmp_path):
    """A second document replaces the first and leaves nothing beside it."""
    path = tmp_path / "document.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json_object(path) == {"a": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["document.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_what_is_no_json_is_not_written(tmp_path, value):
    """NaN is refused, and the document that was there stays."""
    path = tmp_path / "document.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": value})
    assert read_json_object(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["document.json"]


def test_a_failure_half_way_leaves_the_old_file(tmp_path):
    """Text that cannot be encoded stops the writing after its first part; the old file stays, no temporary does."""
    path = tmp_path / "document.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 1_000_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["document.json"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch, error):
    """A full disk, or Ctrl-C, before all is on the disk leaves the old file and no temporary."""
    path = tmp_path / "document.json"
    write_text(path, "old")

    def fail(_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["document.json"]


def test_a_place_that_is_taken(tmp_path):
    """Where a folder has the file's name, nothing is written and no temporary stays."""
    (tmp_path / "document.json" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="document"):
        write_text(tmp_path / "document.json", "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["document.json"]
