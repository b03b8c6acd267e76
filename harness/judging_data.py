"""Which labelled queries judge, and which may be looked at while the export is made.

What sets the ranges of a quantized model must not judge it as well.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from harness.documents import write_text
from harness.errors import DataError, one_line
from harness.labelled_data import bundled_bus_queries, read_labelled_set
from harness.tagging import LabelledQuery, LabelledSet

_CALIBRATION_QUERIES = 400
_LARGEST_SHARE = 4
_FEWEST_QUERIES = 20
# The names by which `read_labelled_set` knows JSON lines and CoNLL.
_LABELLED_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".bio", ".conll", ".iob", ".iob2"})


def default_data() -> tuple[Path, ...]:
    """Name the bus queries that judge where no data are named."""
    return bundled_bus_queries("test"), bundled_bus_queries("golden")


def split_for_calibration(labelled: LabelledSet) -> tuple[LabelledSet, LabelledSet]:
    """Part a set into queries for calibration, 400 or a quarter of it at most, and those that judge.

    Which part a query is in depends on its text alone, so equal texts are never in both, and the
    order of the file does not matter.

    Raises:
        DataError: too few queries to part.
    """
    by_digest: dict[str, list[LabelledQuery]] = {}
    for query in labelled.queries:
        by_digest.setdefault(hashlib.sha256(query.text.encode()).hexdigest(), []).append(query)
    if len(by_digest) < _FEWEST_QUERIES:
        message = (
            f"{labelled.name} has {len(by_digest)} different queries; calibrating INT8 and judging need at least "
            f"{_FEWEST_QUERIES}. Add labelled queries, or release without --quantize."
        )
        raise DataError(message)
    wanted = min(_CALIBRATION_QUERIES, len(by_digest) // _LARGEST_SHARE)
    chosen = set(sorted(by_digest)[:wanted])
    calibration = [query for digest in sorted(chosen) for query in by_digest[digest]]
    kept = {id(query) for query in calibration}
    judged = tuple(query for query in labelled.queries if id(query) not in kept)
    return LabelledSet(labelled.name, tuple(calibration)), LabelledSet(labelled.name, judged)


def without(labelled: LabelledSet, judged: LabelledSet) -> LabelledSet:
    """Leave out the queries that judge; of the others take 800 at most, evenly over the file.

    Raises:
        DataError: none is left.
    """
    texts = set(judged.texts)
    kept = tuple(query for query in labelled.queries if query.text not in texts)
    if not kept:
        message = f"{labelled.name}: every query of it judges, too. Name others to make the INT8 variant with (--calibration FILE)."
        raise DataError(message)
    step = -(-len(kept) // (2 * _CALIBRATION_QUERIES))
    return LabelledSet(labelled.name, kept[::step])


def write_labelled_set(path: Path, labelled: LabelledSet) -> None:
    """Write a set as JSON lines; law: reading it back gives the same texts and spans."""
    rows = [
        {"text": query.text, "spans": [[span.start, span.end, span.label] for span in query.spans]}
        for query in labelled.queries
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_texts(path: Path) -> list[str]:
    """Read queries without caring about labels: labelled files, or plain text with a query a line.

    Raises:
        DataError: the file cannot be read or holds no query.
    """
    if path.suffix.lower() in _LABELLED_SUFFIXES:
        return read_labelled_set(path).texts
    try:
        # not splitlines: U+2028 and its like may stand inside a query
        texts = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as err:
        message = f"{path} cannot be read as UTF-8 text ({one_line(err)}). Name a file with a query a line."
        raise DataError(message) from err
    if not texts:
        message = f"{path} holds no query. Name a file with a query a line."
        raise DataError(message)
    return texts
