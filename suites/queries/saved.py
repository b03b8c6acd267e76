"""Queries that failed once, kept for every later run: `queries.jsonl` in the state folder.

One JSON object a line, ASCII, oldest first:

    {"text": "a", "property": "offset_violations", "variant": "int8", "run": "2026-11-02T10:00:00Z-1a2b"}

`run` is the run that saw it first. A line once written is never changed. The file is bounded: it holds
`MAXIMUM` lines, and the oldest leave when new ones need their place, so that replaying stays cheap. Of
two runs that write at the same moment, one may lose its new lines; neither can damage the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.documents import parse_json, write_text
from harness.errors import DocumentError

FILE = "queries.jsonl"
MAXIMUM = 100


@dataclass(frozen=True, slots=True)
class SavedQuery:
    """A query that broke a property of a variant, and the run that saw it first."""

    text: str
    property: str
    variant: str
    run: str

    def is_again(self, other: SavedQuery) -> bool:
        """Whether this says the same as another, whichever run saw it."""
        return (self.text, self.property, self.variant) == (other.text, other.property, other.variant)


def read_saved(folder: Path | None) -> list[SavedQuery]:
    """Read the saved queries, oldest first; none where there is no folder or no file yet.

    Raises:
        DocumentError: the file is damaged, or longer than this module ever writes it.
    """
    path = None if folder is None else folder / FILE
    if path is None or not path.exists():
        return []
    try:
        # not splitlines: it also cuts at U+2028 and the like
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as err:
        message = f"{path} cannot be read ({err}). Restore it, or delete it to forget the saved queries."
        raise DocumentError(message) from err
    found = [_parsed(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line]
    if len(found) > MAXIMUM:
        message = f"{path} holds {len(found)} queries, {MAXIMUM} at most are kept. Delete the ones you do not need."
        raise DocumentError(message)
    return found


def _parsed(line: str, where: str) -> SavedQuery:
    content = parse_json(line, where)
    names = [field.name for field in fields(SavedQuery)]
    if not isinstance(content, dict) or sorted(content) != sorted(names) or not _all_texts(content):
        message = f"{where} is no saved query: it needs {', '.join(names)}, each a text. Restore or delete the line."
        raise DocumentError(message)
    return SavedQuery(**content)


def _all_texts(content: dict[str, Any]) -> bool:
    """Whether each value is a text that can be encoded; lone surrogates cannot."""
    return all(
        isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value) for value in content.values()
    )


def save(folder: Path | None, queries: Iterable[SavedQuery]) -> None:
    """Append the queries that are not there yet; nothing happens without a folder.

    Raises:
        DocumentError: the file that is there is damaged; it is left as it is.
    """
    if folder is None:
        return
    kept = read_saved(folder)
    new: list[SavedQuery] = []
    for query in queries:
        if not any(query.is_again(other) for other in (*kept, *new)):
            new.append(query)
    if new:
        write_text(folder / FILE, _lines([*kept, *new][-MAXIMUM:]))


def _lines(queries: Sequence[SavedQuery]) -> str:
    return "".join(json.dumps(asdict(query), ensure_ascii=True) + "\n" for query in queries)
