"""JSON documents that carry a schema name and a version, read strictly and written atomically.

The only place where a format version is checked and where a JSON file is opened.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from harness.errors import DocumentError, one_line

Json = dict[str, Any]


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; a key that occurs twice in one object, NaN and Infinity are errors.

    Raises:
        DocumentError: naming `where` and what is wrong.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        message = f"{where} is not valid JSON ({one_line(err)}). Restore the file or write it again."
        raise DocumentError(message) from err


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found: Json = {}
    for key, value in pairs:
        if key in found:
            message = f"the key {one_line(key, 60)!r} occurs twice"
            raise ValueError(message)
        found[key] = value
    return found


def _refuse_constant(name: str) -> None:
    message = f"{name} is not a JSON number"
    raise ValueError(message)


def read_json_object(path: Path) -> Json:
    """Read a file that holds one JSON object.

    Raises:
        DocumentError: the file is missing, is not UTF-8, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        message = f"{path} cannot be read ({err.strerror or one_line(err)})."
        raise DocumentError(message) from err
    except UnicodeDecodeError as err:
        message = f"{path} is not UTF-8 text (byte {err.start}). Restore the file or write it again."
        raise DocumentError(message) from err
    content = parse_json(text, str(path))
    if not isinstance(content, dict):
        message = f"{path} holds a JSON {type(content).__name__} where an object was expected."
        raise DocumentError(message)
    return content


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or nothing: to a temporary neighbour first, then renamed over `path`."""
    import tempfile  # a program that serves writes nothing

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: object) -> None:
    """Write one JSON document, readable by people, NaN refused."""
    write_text(path, to_json(content) + "\n")


def to_json(content: object) -> str:
    """Serialise as the files of the harness do."""
    return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)


def read_document(path: Path, schema: str, version: int, *, oldest: int | None = None) -> Json:
    """Read a document of ours.

    Args:
        path: the file.
        schema: what kind of document it has to be.
        version: the format version that is written now, and the latest that can be read.
        oldest: the earliest that can still be read; none but `version` by default.

    Raises:
        DocumentError: also if it is another kind of document, or of another version.
    """
    content = read_json_object(path)
    if content.get("schema") != schema:
        message = f"{path} is no {schema} document (its schema is {one_line(content.get('schema'), 60)!r})."
        raise DocumentError(message)
    found = content.get("version")
    if type(found) is int and (version if oldest is None else oldest) <= found <= version:
        return content
    if isinstance(found, int) and found > version:
        message = f"{path} has format version {found}, this harness reads {version}. Update the harness."
    else:
        message = f"{path} has format version {one_line(found, 60)!r}, this harness reads {version}. Release again."
    raise DocumentError(message)
