"""The history of all runs: `results/history.jsonl`, a line a run, only ever appended to.

Each line carries a checksum of itself, so that damage is found without reading into every measure; a damaged line is
an error that names it, and nothing in it is guessed. What the values mean is for `harness.comparison`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from harness.documents import Json
from harness.errors import HistoryError, one_line
from harness.evidence import MeasureKey, Unit
from harness.verdict import Decision, Limit

HISTORY_FILE = "history.jsonl"
HISTORY_SCHEMA = "harness-history"
# 1 (2026-11): first.
HISTORY_VERSION = 1

_HEAD = re.compile(rb'\{"schema":"harness-history","version":(\d{1,9}),')
# Inside a JSON text every quotation mark has a backslash before it, so these stand where the fields begin, and only there.
_MEASURES = b',"measures":'
_SAMPLES = b',"samples":'
_CHECKSUM = re.compile(rb',"crc32":"([0-9a-f]{8})"\}')
_CHECKSUM_LENGTH = len(b',"crc32":"00000000"}')
_REBUILD = "`harness history --rebuild` writes the history again from what is whole in it and from the runs' folders."


class RunKind(Enum):
    """Which command made a run."""

    RELEASE = "release"
    JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine is told by: runs on equal machines can be compared in time. Unknown facts are empty."""

    processor: str
    usable_cpus: str
    memory_gib: str
    system: str
    architecture: str

    @property
    def id(self) -> str:
        """A short digest of the facts: the same on every machine of one make."""
        return hashlib.sha256("\n".join(_fields(self).values()).encode()).hexdigest()[:8]

    def __str__(self) -> str:
        """Write it as people do: `1a2b3c4d (AMD EPYC, 2 CPUs, 16 GiB, Linux x86_64)`."""
        memory = f"{self.memory_gib} GiB" if self.memory_gib else "memory unknown"
        facts = f"{self.processor}, {self.usable_cpus} CPUs, {memory}, {self.system} {self.architecture}"
        return f"{self.id} ({facts})"


@dataclass(frozen=True, slots=True)
class Digests:
    """What went into a run, and its verdict. A digest that the run did not get to is None."""

    candidate: str
    reference: str
    data: str
    policy: str
    verdict: str | None


@dataclass(frozen=True, slots=True)
class Revision:
    """The git commit of the folder that a run was started in; `dirty` is None where that could not be told."""

    commit: str
    dirty: bool | None

    def __str__(self) -> str:
        """Write it short, with a plus sign where files differed from it."""
        return self.commit[:10] + ("+" if self.dirty else "")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A measure of a run, with the limit that it was held against."""

    value: float
    unit: Unit
    limit: Limit


@dataclass(frozen=True, slots=True)
class Samples:
    """What is kept of how a measure varied within its run.

    `log_ratios` are those of the blocks of a paired timing. `interval` is where the value lies, with 95 % confidence
    or, where only a few values were taken, from the smallest to the largest. Either may be missing.
    """

    log_ratios: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """Where a run's measures and samples stand in the content of a file; nothing of it is copied until it is read."""

    content: bytes = b""
    begin: int = 0
    middle: int = 0
    end: int = 0

    @property
    def measures(self) -> bytes:
        """The measures, as JSON."""
        return self.content[self.begin : self.middle]

    @property
    def samples(self) -> bytes:
        """The samples, as JSON."""
        return self.content[self.middle + len(_SAMPLES) : self.end]

    def find(self, start: bytes, stop: bytes) -> bytes | None:
        """Find a piece of the measures by what it begins and ends with."""
        begin = self.content.find(start, self.begin, self.middle)
        if begin < 0:
            return None
        return self.content[begin : self.content.index(stop, begin, self.middle) + 1]


@dataclass(frozen=True, slots=True)
class Entry:
    """One run. Its measures and samples are read from the line when they are asked for: most never are."""

    run: str
    time: datetime.datetime
    kind: RunKind
    line: str
    suites: tuple[str, ...]
    decision: Decision
    machine: Machine
    versions: Mapping[str, str]
    digests: Digests
    revision: Revision | None
    stages_s: Mapping[str, float]
    folder: str
    output: str | None
    body: Body = field(repr=False, compare=False)

    def measures(self) -> dict[MeasureKey, Recorded]:
        """Read every measure."""
        return {_key(name): _recorded(content) for name, content in json.loads(self.body.measures).items()}

    def measure(self, key: MeasureKey) -> Recorded | None:
        """Read one measure, without reading the others."""
        found = self.body.find(b'"%s":[' % str(key).encode(), b"]")
        return None if found is None else _recorded(json.loads(found[found.index(b"[") :]))

    def samples(self) -> dict[MeasureKey, Samples]:
        """Read what is kept of the samples."""
        return {_key(name): _samples(content) for name, content in json.loads(self.body.samples).items()}


def entry_line(entry: Entry, measures: Mapping[MeasureKey, Recorded], samples: Mapping[MeasureKey, Samples]) -> bytes:
    """Write a run as the line that the history keeps, without its end of line.

    Law: `read_line` gives back the entry, with these measures and samples, whatever body it has.
    """
    head: Json = {
        "schema": HISTORY_SCHEMA,
        "version": HISTORY_VERSION,
        "run": entry.run,
        "time": entry.time.isoformat(timespec="milliseconds"),
        "kind": entry.kind.value,
        "line": entry.line,
        "suites": list(entry.suites),
        "decision": entry.decision.value,
        "machine": {"id": entry.machine.id, **_fields(entry.machine)},
        "versions": dict(entry.versions),
        "digests": _fields(entry.digests),
        "revision": _fields(entry.revision) if entry.revision else None,
        "stages_s": dict(entry.stages_s),
        "folder": entry.folder,
        "output": entry.output,
        "measures": {str(key): _recorded_to_json(measures[key]) for key in sorted(measures)},
        "samples": {str(key): _samples_to_json(samples[key]) for key in sorted(samples)},
    }
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return b'%s,"crc32":"%08x"}' % (text, zlib.crc32(text))


def _fields(value: Machine | Digests | Revision) -> Json:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _recorded_to_json(measure: Recorded) -> list[float | str | None]:
    return [measure.value, measure.unit.value, measure.limit.minimum, measure.limit.maximum]


def _recorded(content: Sequence[Any]) -> Recorded:
    value, unit, minimum, maximum = content
    return Recorded(float(value), Unit(unit), Limit(minimum, maximum))


def _samples_to_json(samples: Samples) -> Json:
    content: Json = {}
    if samples.log_ratios:
        content["log_ratios"] = list(samples.log_ratios)
    if samples.interval is not None:
        content["interval"] = list(samples.interval)
    return content


def _samples(content: Mapping[str, Any]) -> Samples:
    interval = content.get("interval")
    return Samples(tuple(content.get("log_ratios", ())), None if interval is None else (interval[0], interval[1]))


def _key(name: str) -> MeasureKey:
    suite, scope, rest = name.split(".", 2)
    return MeasureKey(suite, scope, rest)


class LineError(ValueError):
    """What is wrong with one line, without the file's name; and what helps."""

    cure = _REBUILD


class LaterVersionError(LineError):
    """The line is of a format that a later version of the harness writes."""

    cure = "Update the harness."


def read_line(content: bytes, begin: int = 0, end: int | None = None) -> Entry:
    """Read a line of any version up to `HISTORY_VERSION`.

    Args:
        content: the line, or what it is a part of.
        begin: where in it the line begins.
        end: where it ends; by default where the content does.

    Raises:
        LineError: it is damaged, cut off, or of a later version.
    """
    end = len(content) if end is None else end
    head = _HEAD.match(content, begin, end)
    if head is None:
        message = "is damaged: it does not begin as a line of the history does"
        raise LineError(message)
    reader = _READERS.get(int(head[1]))
    if reader is None:
        message = f"has format version {int(head[1])}, this harness reads up to {HISTORY_VERSION}"
        raise LaterVersionError(message)
    return reader(content, begin, end)


def _read_version_1(content: bytes, begin: int, end: int) -> Entry:
    text_end = end - _CHECKSUM_LENGTH
    checksum = _CHECKSUM.fullmatch(content, max(text_end, begin), end)
    if checksum is None:
        message = "is cut off: it has no checksum at its end"
        raise LineError(message)
    if int(checksum[1], 16) != zlib.crc32(memoryview(content)[begin:text_end]):
        message = "is damaged: its checksum is that of other content"
        raise LineError(message)
    measures = content.find(_MEASURES, begin, text_end)
    samples = content.find(_SAMPLES, measures, text_end)
    if min(measures, samples) < 0:
        message = "is damaged: it has no measures"
        raise LineError(message)
    try:
        head = json.loads(content[begin:measures] + b"}")
        return _entry(head, Body(content, measures + len(_MEASURES), samples, text_end))
    except (ValueError, KeyError, TypeError) as err:
        message = f"is damaged ({type(err).__name__}: {one_line(err)})"
        raise LineError(message) from err


# A version that was ever written stays readable: its reader, and a file of it under tests/histories, are never deleted.
_READERS: Mapping[int, Callable[[bytes, int, int], Entry]] = {1: _read_version_1}


def _entry(head: Json, body: Body) -> Entry:
    facts = head["machine"]
    return Entry(
        run=head["run"],
        time=_moment(head["time"]),
        kind=RunKind(head["kind"]),
        line=head["line"],
        suites=tuple(head["suites"]),
        decision=Decision(head["decision"]),
        machine=Machine(**{name: facts[name] for name in Machine.__dataclass_fields__}),
        versions=head["versions"],
        digests=Digests(**head["digests"]),
        revision=Revision(**head["revision"]) if head["revision"] else None,
        stages_s=head["stages_s"],
        folder=head["folder"],
        output=head["output"],
        body=body,
    )


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        message = f"{text!r} has no time zone"
        raise ValueError(message)
    return moment


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that cannot be read, counted from 1, and why."""

    number: int
    error: LineError


def read_history(results: Path) -> list[Entry]:
    """Read the history, in order of time; empty where no run was kept yet.

    Raises:
        HistoryError: the file cannot be read, or a line is damaged.
    """
    path = results / HISTORY_FILE
    entries, damages = read_lines(_content(path))
    if damages:
        first = damages[0]
        more = f" (and {len(damages) - 1} more lines)" if len(damages) > 1 else ""
        message = f"{path} line {first.number} {first.error}{more}. {first.error.cure}"
        raise HistoryError(message)
    return entries


def read_lines(content: bytes) -> tuple[list[Entry], list[Damage]]:
    """Read the lines of a history: those that are whole, in order of time, and those that are not.

    A last line that lacks nothing but its end of line is whole.
    """
    entries: list[Entry] = []
    damages: list[Damage] = []
    for number, (begin, end) in enumerate(_lines_in(content), 1):
        try:
            entries.append(read_line(content, begin, end))
        except LineError as err:
            damages.append(Damage(number, err))
    # runs that went on at the same time end in another order than they began
    return sorted(entries, key=lambda entry: (entry.time, entry.run)), damages


def _lines_in(content: bytes) -> Iterator[tuple[int, int]]:
    begin = 0
    while begin < len(content):
        end = content.find(b"\n", begin)
        end = len(content) if end < 0 else end
        yield begin, end
        begin = end + 1


def _content(path: Path) -> bytes:
    if not path.exists():
        return b""
    try:
        with path.open("rb") as stream, _locked(stream.fileno(), alone=False):
            return stream.read()
    except OSError as err:
        message = f"{path} cannot be read ({err.strerror or one_line(err)})."
        raise HistoryError(message) from err


@contextmanager
def _locked(handle: int, *, alone: bool) -> Iterator[None]:
    """Hold the file, so that nobody reads half a line and no two lines mix; the system lets go when a process dies."""
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


def append_line(results: Path, line: bytes) -> None:
    """Append a line, whole or not at all, and have it on disk.

    Raises:
        HistoryError: the file system refuses.
    """
    path = results / HISTORY_FILE
    try:
        with opened_alone(path) as handle:
            _append(handle, line + b"\n")
    except OSError as err:
        message = f"{path} could not be extended ({err.strerror or one_line(err)}). {_REBUILD}"
        raise HistoryError(message) from err


@contextmanager
def opened_alone(path: Path) -> Iterator[int]:
    """Open the history to append to it, with nobody else reading or writing it meanwhile."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with _locked(handle, alone=True):
                # while we waited, a rebuilt history may have taken the place of the file that we opened
                if _is_at(handle, path):
                    yield handle
                    return
        finally:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _append(handle: int, line: bytes) -> None:
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        line = b"\n" + line  # a killed process left half a line: it is lost, but ours must not be
    try:
        _write(handle, line)
    except OSError:
        os.ftruncate(handle, size)
        raise


def _write(handle: int, line: bytes) -> None:
    """Write in one call: of two, a process could be killed in between."""
    written = os.write(handle, line)
    if written != len(line):
        message = f"only {written} of {len(line)} bytes were written; is the disk full?"
        raise OSError(message)
    os.fsync(handle)
