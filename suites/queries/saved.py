"""Queries that failed once, kept for every later run of the same release line: `queries.jsonl` in its state folder.

One JSON object a line, ASCII, oldest first:

    {"text": "a", "property": "offset_violations", "variant": "int8", "run": "1a2b", "line": "bus_ner_transformer"}

`run` is the run that saw it first; `line` is the release line, and the name of the folder: queries of one model are
never asked of another. An entry once written is never changed. The file is bounded: it holds `MAXIMUM` entries, and
the oldest leave when new ones need their place, so that replaying stays cheap. Of two runs that write at the same
moment, one may lose its new entries; neither can damage the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.documents import parse_json, write_text
from harness.errors import DocumentError, one_line

# 1 (2026-11): text, property, variant, run; one file for all models. 2 (2026-11): a file for each release line, and
# `line`. An entry of 1 is read as one of the line into whose folder somebody has put it.
FILE = "queries.jsonl"
MAXIMUM = 100


@dataclass(frozen=True, slots=True)
class SavedQuery:
    """A query that broke a property of a variant, the run that saw it first, and the release line."""

    text: str
    property: str
    variant: str
    run: str
    line: str

    def is_again(self, other: SavedQuery) -> bool:
        """Whether this says the same as another, whichever run saw it."""
        return (self.text, self.property, self.variant) == (other.text, other.property, other.variant)


def line_of(folder: Path) -> str:
    """Name the release line whose state folder this is."""
    return folder.resolve().name


def read_saved(folder: Path | None) -> list[SavedQuery]:
    """Read the saved queries, oldest first; none where there is no folder or no file yet.

    Args:
        folder: the state folder of one release line, by its name.

    Raises:
        DocumentError: the file is damaged, holds queries of another line, or is longer than this module ever writes it.
    """
    if folder is None or not (folder / FILE).exists():
        return []
    path = folder / FILE
    try:
        # not splitlines: it also cuts at U+2028 and the like
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as err:
        message = f"{path} cannot be read ({err}). Restore it, or delete it to forget the saved queries."
        raise DocumentError(message) from err
    found = [_parsed(text, line_of(folder), f"{path} line {number}") for number, text in enumerate(lines, 1) if text]
    if len(found) > MAXIMUM:
        message = f"{path} holds {len(found)} queries, {MAXIMUM} at most are kept. Delete the ones you do not need."
        raise DocumentError(message)
    return found


def _parsed(text: str, line: str, where: str) -> SavedQuery:
    content = parse_json(text, where)
    names = {field.name for field in fields(SavedQuery)}
    if not isinstance(content, dict) or {*content, "line"} != names or not _all_texts(content):
        needed = ", ".join(field.name for field in fields(SavedQuery))
        message = f"{where} is no saved query: it needs {needed}, each a text. Restore or delete the line."
        raise DocumentError(message)
    saved = SavedQuery(**{"line": line, **content})
    if saved.line != line:
        whose = one_line(saved.line, 60)
        message = (
            f"{where} is of the release line {whose!r}, not {line!r}. Move it to that line's folder, or delete it."
        )
        raise DocumentError(message)
    return saved


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
