"""Which run of the history a word on the command line means: a run, a release folder, a git revision, or `last`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.artifact import MANIFEST, MANIFEST_SCHEMA, MANIFEST_VERSION, OLDEST_MANIFEST_VERSION
from harness.documents import read_document
from harness.errors import HistoryError, one_line
from harness.history import HISTORY_FILE, Entry
from harness.revision import resolved
from harness.verdict import Decision

LAST = "last"
PREVIOUS = "previous"
ACCEPTED = "accepted"
_SHORTEST_COMMIT = 7
_COMMIT_DIGITS = frozenset("0123456789abcdef")


class NothingEarlierError(HistoryError):
    """The run is the first that it could be compared with."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The run that is asked about, and the one that it is held against."""

    subject: Entry
    baseline: Entry


def choose_pair(
    entries: Sequence[Entry], subject: str, baseline: str | None, folder: Path, *, line: str | None, machine: str | None
) -> Pair:
    """Find the two runs of a comparison.

    Args:
        entries: the history, in order of time.
        subject: the run that is asked about.
        baseline: what it is held against; by default the last accepted run of its line before it.
        folder: where git revisions are looked up.
        line: only runs of this release line.
        machine: only runs of machines whose id begins like this.

    Raises:
        HistoryError: there is no such run, or several.
    """
    entries = filtered(entries, line, machine)
    found = _find(entries, subject, folder, before=None)
    return Pair(found, _find(entries, baseline or ACCEPTED, folder, before=found))


def filtered(entries: Sequence[Entry], line: str | None, machine: str | None) -> list[Entry]:
    """Pick the runs of a release line and of a machine.

    Raises:
        HistoryError: there are none.
    """
    chosen = [
        entry
        for entry in entries
        if (line is None or entry.line == line) and (machine is None or entry.machine.id.startswith(machine))
    ]
    if chosen:
        return chosen
    if not entries:
        message = "no run is in the history yet. Make one with `harness release` or `harness judge`, or name its folder (--results DIR)."
        raise HistoryError(message)
    lines, machines = (
        ", ".join(sorted(set(names))) for names in zip(*((e.line, e.machine.id) for e in entries), strict=True)
    )
    message = f"no run of line {line or 'any'} on machine {machine or 'any'} is in the history (lines: {lines}; machines: {machines})."
    raise HistoryError(one_line(message, 600))


def _find(entries: Sequence[Entry], word: str, folder: Path, *, before: Entry | None) -> Entry:
    relative: dict[str, Callable[[Entry], bool]] = {
        LAST: lambda _: True,
        PREVIOUS: lambda _: True,
        ACCEPTED: lambda entry: entry.decision is Decision.ACCEPTED,
    }
    if word in relative:
        start = entries[-1] if word == PREVIOUS and before is None else before
        return _latest(entries, word, relative[word], start)
    ways = (_by_name, _by_release, _by_commit)
    for way in ways:
        if (found := way(entries, word, folder)) is not None:
            return found
    message = (
        f"{one_line(word, 80)!r} is no run of the history, no release folder and no git revision that was judged. "
        "`harness history` lists the runs."
    )
    raise HistoryError(message)


def _latest(entries: Sequence[Entry], word: str, fits: Callable[[Entry], bool], before: Entry | None) -> Entry:
    """Find the latest run that fits: before a run, of its line, with its suites, and if there is one on its machine."""
    if before is None:
        found = [entry for entry in entries if fits(entry)]
    else:
        earlier = entries[: [entry.run for entry in entries].index(before.run)]
        found = [one for one in earlier if one.line == before.line and fits(one)]
        found = [one for one in found if set(before.suites) <= set(one.suites)]
        found = [entry for entry in found if entry.machine.id == before.machine.id] or found
    if found:
        return found[-1]
    if before is None:
        message = "no run of the history was accepted. `harness history` lists the runs."
        raise HistoryError(message)
    kind = "accepted run" if word == ACCEPTED else "run"
    message = (
        f"the history has no {kind} of line {before.line} before {before.run}. Keep {HISTORY_FILE} between jobs, name "
        "a run to compare with, or allow that it is the first (--allow-first)."
    )
    raise NothingEarlierError(message)


def _by_name(entries: Sequence[Entry], word: str, _folder: Path) -> Entry | None:
    found = [entry for entry in entries if entry.run.startswith(word)]
    exact = [entry for entry in found if entry.run == word]
    if len({entry.run for entry in found}) > 1 and not exact:
        message = f"{len(found)} runs begin with {word!r}, {found[0].run} and {found[-1].run} among them. Write more of the name."
        raise HistoryError(message)
    return next(iter(exact or found), None)


def _by_release(entries: Sequence[Entry], word: str, _folder: Path) -> Entry | None:
    """Find the run that accepted a release, by the digest of the verdict in its manifest."""
    path = Path(word) / MANIFEST
    if not path.is_file():
        return None
    manifest = read_document(path, MANIFEST_SCHEMA, MANIFEST_VERSION, oldest=OLDEST_MANIFEST_VERSION)
    digest = manifest.get("verdict_digest")
    if digest is None:
        message = f"{path} names no verdict: the export was never accepted. Name the run that judged it."
        raise HistoryError(message)
    found = [entry for entry in entries if entry.digests.verdict == digest]
    if not found:
        message = f"the run that accepted {word} is not in this history. Name the folder of its runs (--results DIR)."
        raise HistoryError(message)
    return found[-1]


def _by_commit(entries: Sequence[Entry], word: str, folder: Path) -> Entry | None:
    """Find the last run of a commit, named as git understands it, or by the beginning of its digest."""
    commit = resolved(folder, word)
    if commit is None and len(word) >= _SHORTEST_COMMIT and set(word) <= _COMMIT_DIGITS:
        commit = word
    if commit is None:
        return None
    found = [entry for entry in entries if entry.revision is not None and entry.revision.commit.startswith(commit)]
    return found[-1] if found else None
