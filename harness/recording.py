"""Make the history's line of a run from what the run left in its folder, and append it; or write the history again.

Reads verdict and benchmark data, and judges nothing. A line lies in the run's own folder too, so that the history can
be written again with everything that it had.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from harness.artifact import file_digest
from harness.documents import Json, read_document, read_json_object, write_text
from harness.errors import DocumentError, HistoryError, one_line
from harness.evidence import Measure, MeasureKey, measure_from_json
from harness.history import (
    HISTORY_FILE,
    Body,
    Damage,
    Digests,
    Entry,
    LaterVersionError,
    LineError,
    Machine,
    Recorded,
    Revision,
    RunKind,
    Samples,
    append_line,
    entry_line,
    opened_alone,
    read_line,
    read_lines,
)
from harness.results import OLDEST_VERDICT, VERDICT_FILE, VERDICT_SCHEMA, VERDICT_VERSION
from harness.verdict import Decision, Limit

LINE_FILE = "history-line.json"
BENCHMARK_FILE = "benchmark.json"
_RUN_NAME = re.compile(r"(\d{8}T\d{6}(?:\.\d{3})?)Z-[0-9a-f]{6}")
_MACHINE_FACTS = frozenset({"machine", "processor", "system", "cpus", "cpu_quota", "usable_cpus", "memory_gib"})
# 500 ratios of 4 digits are 4 kB; the raw timings of longer measurements stay in the run's folder alone.
_MOST_BLOCKS = 500
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a run's folder does not tell: which command it was, where it led to, and where it was started."""

    kind: RunKind
    output: Path | None
    memory_gib: str
    revision: Revision | None
    stages_s: Mapping[str, float]


def record_run(results: Path, run: str, circumstances: Circumstances) -> None:
    """Append a judged run to the history.

    Raises:
        HistoryError, DocumentError: the run's documents are damaged, or the file system refuses.
    """
    line = line_of_run(results / run, circumstances)
    try:
        write_text(results / run / LINE_FILE, f"{line.decode()}\n")
    except OSError as err:
        message = f"{results / run / LINE_FILE} cannot be written ({err.strerror or one_line(err)})."
        raise HistoryError(message) from err
    append_line(results, line)


def memory_gib() -> str:
    """Tell how much memory this machine has; empty where the system does not say."""
    try:
        return str(round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30))
    except (AttributeError, ValueError, OSError):
        return ""


def line_of_run(folder: Path, circumstances: Circumstances | None = None) -> bytes:
    """Make a run's line from its folder.

    Without circumstances it is a run from before there was a history: what cannot be told from its documents stays
    empty.

    Raises:
        DocumentError: its verdict or its benchmark data are damaged.
        HistoryError: the folder is not named as a run's is.
    """
    path = folder / VERDICT_FILE
    document = read_document(path, VERDICT_SCHEMA, VERDICT_VERSION, oldest=OLDEST_VERDICT)
    try:
        measures = {one.key: one for one in map(measure_from_json, document["findings"])}
        limits = {measure_from_json(content).key: _limit(content["limit"]) for content in document["findings"]}
        entry = _entry(folder, document, circumstances or _circumstances_told_by(document))
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        message = f"{path} is damaged ({type(err).__name__}: {one_line(err)}). Delete the run's folder, or restore it."
        raise DocumentError(message) from err
    recorded = {key: Recorded(measure.value, measure.unit, limits[key]) for key, measure in measures.items()}
    samples = samples_of(list(measures.values()), _paired_timings(folder / BENCHMARK_FILE))
    return entry_line(entry, recorded, samples)


def _entry(folder: Path, document: Json, circumstances: Circumstances) -> Entry:
    subject = document["subject"]
    environment = dict(document["environment"])
    return Entry(
        run=folder.name,
        time=time_of_run(folder.name),
        kind=circumstances.kind,
        # before there were release lines, a run's was what is the default now
        line=subject.get("line") or Path(subject["reference"]).name,
        suites=tuple(subject["suites"]),
        decision=Decision(document["decision"]),
        machine=machine_from(environment, circumstances.memory_gib),
        versions=_versions(environment),
        digests=_digests(folder, subject),
        revision=circumstances.revision,
        stages_s={name: round(seconds, 3) for name, seconds in circumstances.stages_s.items()},
        folder=folder.name,
        output=None if circumstances.output is None else str(circumstances.output),
        body=Body(),
    )


def _circumstances_told_by(document: Json) -> Circumstances:
    # only `harness release` judges an export in the run's own folder
    candidate = Path(document["subject"]["candidate"])
    own = candidate.name == "candidate" and candidate.parent.name == document["run"]
    return Circumstances(
        RunKind.RELEASE if own else RunKind.JUDGE, None, "", None, document["subject"].get("stages_s", {})
    )


def time_of_run(name: str) -> datetime.datetime:
    """Read when a run began from its name.

    Raises:
        HistoryError: no run is called that.
    """
    found = _RUN_NAME.fullmatch(name)
    if found is None:
        message = f"{one_line(name, 80)!r} is not the name of a run. Name its folder as the run called it."
        raise HistoryError(message)
    form = "%Y%m%dT%H%M%S.%f" if "." in found[1] else "%Y%m%dT%H%M%S"
    return datetime.datetime.strptime(found[1], form).replace(tzinfo=datetime.timezone.utc)


def machine_from(environment: Mapping[str, str], memory: str) -> Machine:
    """Pick what tells machines apart from a run's environment; the version of the kernel is not among it."""
    system = environment.get("system", "")
    return Machine(
        processor=environment.get("processor", ""),
        usable_cpus=environment.get("usable_cpus", ""),
        memory_gib=memory,
        system=system.partition("-")[0],
        architecture=environment.get("machine", ""),
    )


def _versions(environment: Mapping[str, str]) -> dict[str, str]:
    versions = {name: version for name, version in environment.items() if name not in _MACHINE_FACTS}
    return {"system": environment["system"], **versions} if "system" in environment else versions


def _digests(folder: Path, subject: Json) -> Digests:
    # where data and policy lay is nothing to them
    data = hashlib.sha256("\n".join(sorted(subject["data"].values())).encode()).hexdigest()
    policy = subject["policy"]
    return Digests(
        candidate=subject["candidate_digest"],
        reference=subject["reference_digest"],
        data=f"sha256:{data}",
        policy=policy if isinstance(policy, str) else ",".join(policy.values()),
        verdict=file_digest(folder / VERDICT_FILE),
    )


def _limit(content: Mapping[str, Any] | None) -> Limit:
    return Limit() if content is None else Limit(content["min"], content["max"])


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The log ratios of a paired timing, pair by pair."""

    log_ratios: tuple[float, ...]

    def blocks(self, number: int) -> tuple[float, ...]:
        """Take the mean of so many equal blocks; empty where the pairs do not form them."""
        size, rest = divmod(len(self.log_ratios), number)
        if rest or not size:
            return ()
        return tuple(
            sum(self.log_ratios[start : start + size]) / size for start in range(0, len(self.log_ratios), size)
        )


def _paired_timings(path: Path) -> list[_Pairs]:
    """Read the paired timings in a run's benchmark data; a run without the latency suite has none."""
    if not path.is_file():
        return []
    try:
        stored = [benchmark["extra_info"] for benchmark in read_json_object(path)["benchmarks"]]
        both = [
            (info["subject_ns"], info["baseline_ns"]) for info in stored if {"subject_ns", "baseline_ns"} <= set(info)
        ]
        return [_Pairs(tuple(math.log(a / b) for a, b in zip(*sides, strict=True))) for sides in both]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as err:
        message = f"{path} is damaged ({type(err).__name__}: {one_line(err)}). Delete it, or restore it."
        raise DocumentError(message) from err


def samples_of(measures: Sequence[Measure], timings: Sequence[_Pairs]) -> dict[MeasureKey, Samples]:
    """Collect what is known of how each measure varied within the run."""
    found: dict[MeasureKey, Samples] = {}
    for measure in measures:
        ratios = _rounds_of(measure) or _blocks_of(measure, timings)
        # what the measure says itself is what it was judged by
        interval = measure.interval or (None if ratios else _interval_of(measure))
        if ratios or interval:
            found[measure.key] = Samples(ratios, interval)
    return found


def _rounds_of(measure: Measure) -> tuple[float, ...]:
    """Take the log ratios of the rounds that a ratio was computed from, where its details have them."""
    stated = measure.details.get("log_ratios")
    if not isinstance(stated, list) or len(stated) > _MOST_BLOCKS:
        return ()
    if not all(type(one) in {int, float} and math.isfinite(one) for one in stated):
        return ()
    return tuple(round(float(one), _DIGITS) for one in stated)


def _blocks_of(measure: Measure, timings: Sequence[_Pairs]) -> tuple[float, ...]:
    """Find the paired timing that a ratio was computed from: the one whose blocks have its median, to the last digits.

    For runs from before the details had the rounds: the evidence did not say which benchmark a measure came from, but
    two measurements never agree so far.
    """
    details = measure.details
    blocks, middle = details.get("blocks"), details.get("median")
    if type(blocks) is not int or not isinstance(middle, float) or not 0 < blocks <= _MOST_BLOCKS:
        return ()
    for pairs in timings:
        ratios = pairs.blocks(blocks)
        if ratios and math.isclose(math.exp(median(ratios)), middle, rel_tol=1e-9):
            return tuple(round(ratio, _DIGITS) for ratio in ratios)
    return ()


def _interval_of(measure: Measure) -> tuple[float, float] | None:
    """Find where a measure's value lies: in its details as `interval_95…`, or as lists `X` and `reference_X` of values.

    From lists it is the widest ratio that single values of both have.
    """
    details = measure.details
    for name, stated in details.items():
        if name.startswith("interval_95") and _numbers(stated) and len(stated) == 2:
            return float(stated[0]), float(stated[1])
    for name, others in details.items():
        values: Any = details.get(name.removeprefix("reference_"))
        if name.startswith("reference_") and _numbers(values) and _numbers(others):
            return min(values) / max(others), max(values) / min(others)
    return None


def _numbers(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(type(one) in {int, float} and one > 0 for one in values)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of writing the history again."""

    runs: int
    kept: int
    dropped: tuple[Damage, ...]
    damaged_copy: Path | None
    unreadable: tuple[str, ...]


def rebuild(results: Path) -> Rebuilt:
    """Write the history again: from the lines that are whole, and from the folders of the runs that have no such line.

    What cannot be read is left out and named in the result; if a line was damaged, the old file stays beside the new.

    Raises:
        HistoryError: there is no such folder, a line is of a later version, or the file system refuses.
    """
    if not results.is_dir():
        message = f"{results} is not a folder. Name the folder with the runs (--results DIR)."
        raise HistoryError(message)
    path = results / HISTORY_FILE
    try:
        with opened_alone(path):
            return _rebuild(results, path)
    except OSError as err:
        message = f"{path} could not be written again ({err.strerror or one_line(err)}). It is as it was."
        raise HistoryError(message) from err


def _rebuild(results: Path, path: Path) -> Rebuilt:
    content = path.read_bytes()
    _, damages = read_lines(content)
    if later := [damage for damage in damages if isinstance(damage.error, LaterVersionError)]:
        message = f"{path} line {later[0].number} {later[0].error}. {later[0].error.cure}"
        raise HistoryError(message)
    lines = {read_line(line).run: line for line in content.split(b"\n") if _is_whole(line)}
    kept = len(lines)
    unreadable = []
    for folder in sorted(one for one in results.iterdir() if _RUN_NAME.fullmatch(one.name) and one.name not in lines):
        try:
            if (folder / LINE_FILE).is_file() or (folder / VERDICT_FILE).is_file():
                lines[folder.name] = _line_in(folder)
        except (DocumentError, HistoryError) as err:
            unreadable.append(str(err))
    copy = _set_aside(path) if damages else None
    write_text(path, "".join(f"{line.decode()}\n" for _, line in sorted(lines.items())))
    return Rebuilt(len(lines), kept, tuple(damages), copy, tuple(unreadable))


def _is_whole(line: bytes) -> bool:
    try:
        read_line(line)
    except LineError:
        return False
    return True


def _line_in(folder: Path) -> bytes:
    """Take the line that the run wrote, or make one from its documents where it wrote none or it is damaged."""
    path = folder / LINE_FILE
    line = path.read_bytes().rstrip(b"\n") if path.is_file() else b""
    return line if _is_whole(line) else line_of_run(folder)


def _set_aside(path: Path) -> Path:
    copy = next(one for number in count(1) if not (one := path.with_name(f"{path.name}.damaged-{number}")).exists())
    shutil.copyfile(path, copy)
    return copy
