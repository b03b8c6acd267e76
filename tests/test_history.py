"""The history of runs: nothing is lost, damage is named, and every version that was ever written stays readable."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import F1, MACHINE, OTHER_MACHINE, P50, RATIO, f1, line_of, name_of, run, write_runs

from harness import cli, history, recording
from harness.documents import write_json
from harness.errors import DocumentError, HistoryError
from harness.evidence import Measure, Unit, measure_to_json
from harness.history import (
    HISTORY_VERSION,
    LineError,
    Recorded,
    Revision,
    RunKind,
    Samples,
    append_line,
    entry_line,
    read_history,
    read_line,
)
from harness.recording import Circumstances, line_of_run, rebuild, record_run, samples_of
from harness.revision import resolved, revision_of
from harness.series import find_measure, series_of
from harness.verdict import Decision, Limit

HISTORIES = Path(__file__).with_name("histories")
RUN = "20261101T000000.000Z-000000"


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder of runs with none in it."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def path_of(results) -> Path:
    return results / "history.jsonl"


# --- a line


@given(
    values=st.dictionaries(
        st.sampled_from([F1, RATIO, P50]),
        st.builds(
            Recorded,
            st.floats(allow_nan=False, allow_infinity=False),
            st.sampled_from(Unit),
            st.sampled_from([Limit(), Limit(minimum=0.5), Limit(maximum=3), Limit(1, 2)]),
        ),
    ),
    line=st.text(max_size=20),
    ratios=st.lists(st.floats(-5, 5), max_size=4),
)
def test_a_line_gives_back_the_run(values, line, ratios):
    """Whatever was measured, on whatever line: reading gives back what was written."""
    samples = {RATIO: Samples(tuple(ratios), (0.5, 2.0))}
    entry = read_line(line_of(3, values, samples, line=line, revision=Revision("a" * 40, dirty=True)))
    assert (entry.measures(), entry.samples(), entry.line) == (values, samples, line)
    assert all(entry.measure(key) == value for key, value in values.items())
    assert entry.revision == Revision("a" * 40, dirty=True)
    assert read_line(entry_line(entry, values, samples)) == entry


def test_a_line_is_one_line_whatever_it_says():
    """No text in a run can end the line, or pose as its measures."""
    entry = run(0, line='x\n","measures":{"a.b.c":[1,"count",null,null]},"samples":{},"crc32":"00000000"}\u2028')
    assert entry.line.startswith('x\n","measures":')
    assert list(entry.measures()) == [F1]
    assert b"\n" not in line_of(0, line="a\nb\u2028c")


def test_one_measure_is_not_mistaken_for_another():
    """A measure is found by its whole name, not by its end."""
    measures = {F1: f1(0.9), P50: Recorded(3.0, Unit.MILLISECOND, Limit())}
    entry = run(0, measures)
    assert entry.measure(P50) == measures[P50]
    assert entry.measure(RATIO) is None


@pytest.mark.parametrize("place", [0, 30, 200, -40, -3])
def test_a_changed_byte_is_found(results, place):
    """One byte changed anywhere in a line is damage that names file and line, and how to mend it."""
    write_runs(results, [line_of(0), line_of(1), line_of(2)])
    lines = path_of(results).read_bytes().split(b"\n")
    changed = bytearray(lines[1])
    changed[place] ^= 1
    path_of(results).write_bytes(b"\n".join([lines[0], bytes(changed), *lines[2:]]))
    with pytest.raises(
        HistoryError, match=r"history\.jsonl line 2 (is damaged|is cut off|has format).*--rebuild|Update"
    ):
        read_history(results)


@pytest.mark.parametrize("content", [b"{}", b"", b"\xff\xfe", b"null", b'{"schema":"harness-history"}', b"[" * 5000])
def test_what_is_no_line_is_refused(content):
    """Nothing else passes for a run."""
    with pytest.raises(LineError):
        read_line(content)


def test_a_line_that_lacks_a_field_is_refused():
    """A checksum that fits does not make up for a missing field."""
    head, _, _ = line_of(0).replace(b'"kind":"release",', b"").rpartition(b',"crc32"')
    import zlib

    with pytest.raises(LineError, match="KeyError: 'kind'"):
        read_line(head + b',"crc32":"%08x"}' % zlib.crc32(head))


def test_a_later_version_says_to_update_the_tool(results):
    """A file of a later version is not called damaged, and is not rebuilt from what this version understands."""
    later = line_of(1).replace(b'"version":1,', b'"version":2,', 1)
    write_runs(results, [line_of(0), later])
    said = r"line 2 has format version 2, this harness reads up to 1\. Update the harness\.$"
    with pytest.raises(HistoryError, match=said):
        read_history(results)
    with pytest.raises(HistoryError, match=said):
        rebuild(results)
    assert later in path_of(results).read_bytes()


@pytest.mark.parametrize("version", range(1, HISTORY_VERSION + 1))
def test_every_version_that_was_written_stays_readable(version, tmp_path):
    """A file of each format version, kept from the time when it was written, is read with what was in it."""
    shutil.copy(HISTORIES / f"version-{version}.jsonl", tmp_path / "history.jsonl")
    first, second = read_history(tmp_path)
    assert (first.run, first.decision, first.line) == (
        "20261123T150110.098Z-15c562",
        Decision.ACCEPTED,
        "bus_ner_transformer",
    )
    assert second.decision is Decision.REJECTED
    assert len(first.measures()) == 131
    assert first.measure(F1).value == pytest.approx(0.9570898532021294)
    assert len(first.samples()[RATIO].log_ratios) == 50


# --- the file


def test_no_history_is_an_empty_one(results):
    """Before the first run there is nothing to read, and that is no error."""
    assert read_history(results) == []


def test_runs_are_read_in_order_of_time(results):
    """Runs that went on at once end in any order; the history is by when they began."""
    write_runs(results, [line_of(2), line_of(0), line_of(1)])
    assert [entry.run for entry in read_history(results)] == [name_of(number) for number in range(3)]


def test_a_last_line_without_its_end_is_whole(results):
    """An editor that drops the last line end has damaged nothing, and the next run does not mix with it."""
    write_runs(results, [line_of(0)])
    path_of(results).write_bytes(path_of(results).read_bytes().rstrip(b"\n"))
    assert len(read_history(results)) == 1
    append_line(results, line_of(1))
    assert len(read_history(results)) == 2


def test_half_a_last_line_costs_that_line_only(results):
    """A writer killed half-way leaves a line that is named; later runs are whole, and rebuilding brings all back."""
    write_runs(results, [line_of(0)])
    with path_of(results).open("ab") as stream:
        stream.write(line_of(1)[:200])
    with pytest.raises(HistoryError, match="line 2 is cut off"):
        read_history(results)
    append_line(results, line_of(2))
    with pytest.raises(HistoryError, match="line 2 is cut off"):
        read_history(results)
    (results / name_of(1)).mkdir()
    (results / name_of(1) / "history-line.json").write_bytes(line_of(1) + b"\n")
    rebuilt = rebuild(results)
    assert (rebuilt.runs, rebuilt.kept, len(rebuilt.dropped)) == (3, 2, 1)
    assert [entry.run for entry in read_history(results)] == [name_of(number) for number in range(3)]
    assert b'"run":"' in rebuilt.damaged_copy.read_bytes()


def test_a_full_disk_leaves_no_half_line(results, monkeypatch):
    """Where the system writes only a part of a line, the part is taken back and the error says so."""
    write_runs(results, [line_of(0)])
    real = os.write
    monkeypatch.setattr(history.os, "write", lambda handle, data: real(handle, data[:100]))
    with pytest.raises(HistoryError, match="could not be extended"):
        append_line(results, line_of(1))
    monkeypatch.undo()
    assert path_of(results).read_bytes() == line_of(0) + b"\n"


def _append_many(results, writer, count):
    for number in range(count):
        append_line(Path(results), line_of(writer * count + number))


def test_many_writers_lose_nothing(results):
    """Eight processes that append at the same time: every line is there, once, and whole."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(str(results), writer, 25)) for writer in range(8)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        read_history(results)  # nor does a reader ever see half a line
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sorted(entry.run for entry in read_history(results)) == sorted(name_of(number) for number in range(200))


def _rebuild_often(results):
    for _ in range(20):
        rebuild(Path(results))


def test_rebuilding_meanwhile_loses_nothing(results):
    """A run that ends while the history is written again goes into the new file, not into the old one."""
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_append_many, args=(str(results), writer, 25)) for writer in range(3)]
    others.append(context.Process(target=_rebuild_often, args=(str(results),)))
    for other in others:
        other.start()
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert len(read_history(results)) == 75


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    """The file system's refusal is an error of one line."""
    with pytest.raises(HistoryError, match="could not be extended"):
        append_line(tmp_path / "nowhere", line_of(0))


def test_reading_needs_no_torch(results):
    """The history is read, and a measure looked up, where only the runtime is installed."""
    write_runs(results, [line_of(0)])
    program = (
        "import sys; from pathlib import Path; from harness import history, comparison, series, selection\n"
        "entries = history.read_history(Path(sys.argv[1])); comparison.compare_runs(entries[0], entries[0])\n"
        "print([name for name in ('torch', 'transformers', 'onnx', 'matplotlib', 'pytest') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program, results], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


# --- recording a run


def verdict_document(name=RUN, decision="ACCEPTED", **subject):
    details = {"median": 0.25, "upper_bound": 0.26, "blocks": 7}
    findings = [
        (Measure(F1, 0.95, Unit.F1), {"min": 0.8, "max": None}),
        (Measure(RATIO, 0.26, Unit.RATIO, details), {"min": None, "max": 0.5}),
        (Measure(P50, 3.0, Unit.MILLISECOND, {"interval_95_ms": [2.5, 3.5]}), {"min": None, "max": None}),
    ]
    return {
        "schema": "harness-verdict", "version": 1, "run": name, "decision": decision,
        "subject": {
            "candidate": f"results/{name}/candidate", "candidate_digest": "sha256:c", "reference": "models/bus",
            "reference_digest": "sha256:r", "data": {"a": "sha256:1", "b": "sha256:2"}, "policy": "default",
            "line": "bus", "suites": ["latency", "quality"], "stages_s": {"judge": 1.0}, **subject,
        },
        "findings": [{**measure_to_json(measure), "limit": limit, "standing": "kept"} for measure, limit in findings],
        "environment": {
            "machine": "x86_64", "processor": "AMD EPYC", "system": "Linux-6.1-x86_64", "usable_cpus": "2",
            "python": "3.11.7", "onnxruntime": "1.32.0",
        },
    }  # fmt: skip


def make_run(results, name=RUN, pairs_per_block=2, **facts) -> Path:
    folder = results / name
    folder.mkdir()
    write_json(folder / "verdict.json", verdict_document(name, **facts))
    # seven blocks whose median ratio is 1/4
    baseline = [4000] * 7 * pairs_per_block
    subject = [1000] * 4 * pairs_per_block + [2000] * 3 * pairs_per_block
    timings = [{"extra_info": {}}, {"extra_info": {"subject_ns": subject, "baseline_ns": baseline}}]
    write_json(folder / "benchmark.json", {"benchmarks": timings})
    return folder


CIRCUMSTANCES = Circumstances(
    RunKind.RELEASE, Path("models/bus"), "16", Revision("a" * 40, dirty=False), {"judge": 1.0}
)


def test_a_run_is_recorded_with_all_that_tells_it(results):
    """Machine, versions, digests, revision, stages, measures with limits, samples: all of it is in the line."""
    make_run(results)
    record_run(results, RUN, CIRCUMSTANCES)
    (entry,) = read_history(results)
    assert entry.machine == MACHINE
    assert entry.versions == {"system": "Linux-6.1-x86_64", "python": "3.11.7", "onnxruntime": "1.32.0"}
    assert entry.digests.verdict == recording.file_digest(results / RUN / "verdict.json")
    assert (entry.kind, entry.output, entry.revision) == (RunKind.RELEASE, "models/bus", CIRCUMSTANCES.revision)
    assert entry.measure(RATIO) == Recorded(0.26, Unit.RATIO, Limit(maximum=0.5))
    assert entry.samples() == {
        RATIO: Samples(pytest.approx((-1.386294,) * 4 + (-0.693147,) * 3)),
        P50: Samples(interval=(2.5, 3.5)),
    }


@pytest.mark.parametrize("pairs_per_block", [1, 2])
def test_samples_are_those_the_ratio_came_from(results, pairs_per_block):
    """Blocks of one pair or of two: the ones whose median is the measure's own are found."""
    make_run(results, pairs_per_block=pairs_per_block)
    assert len(read_line(line_of_run(results / RUN)).samples()[RATIO].log_ratios) == 7


def test_no_samples_are_made_up():
    """Timings that the measure did not come from are not taken for its samples."""
    measure = Measure(RATIO, 0.3, Unit.RATIO, {"median": 0.29, "blocks": 7})
    assert samples_of([measure], [recording._Pairs((-1.0,) * 7)]) == {}


def test_a_ratio_of_few_values_keeps_their_range():
    """Starts of processes are few: the ratio lies between the smallest over the largest and the other way round."""
    measure = Measure(RATIO, 0.25, Unit.RATIO, {"starts_ms": [2.0, 3.0], "reference_starts_ms": [8.0, 10.0]})
    assert samples_of([measure], [])[RATIO].interval == (0.2, 0.375)


def test_rounds_and_interval_of_a_measure_go_first():
    """What the measure says itself is kept; no benchmark is searched for, and no other details are read."""
    details = {
        "log_ratios": [-1.25, -1.2345678, 0], "median": math.exp(-1.0), "blocks": 7, "interval_95_ms": [1.0, 9.0],
    }  # fmt: skip
    measure = Measure(RATIO, 0.3, Unit.RATIO, details, (0.25, 0.375))
    found = samples_of([measure], [recording._Pairs((-1.0,) * 7)])
    assert found == {RATIO: Samples((-1.25, -1.234568, 0.0), (0.25, 0.375))}


def test_an_interval_is_kept_without_rounds():
    """A quantile of times has an interval and no rounds."""
    measure = Measure(P50, 3.0, Unit.MILLISECOND, {"interval_95_ms": [1.0, 9.0]}, (2.5, 3.5))
    assert samples_of([measure], []) == {P50: Samples((), (2.5, 3.5))}


@pytest.mark.parametrize("stated", [3, "x", ["x"], [True], [math.inf], [0.1] * 501])
def test_rounds_of_another_form_are_no_samples(stated):
    """What is no list of numbers, or too long for a line, is left out."""
    assert samples_of([Measure(RATIO, 0.3, Unit.RATIO, {"log_ratios": stated})], []) == {}


def test_data_are_told_by_content_alone(results):
    """The same files elsewhere, in another order, are the same data."""
    make_run(results, "20261101T000000.000Z-000001")
    make_run(results, "20261101T000000.000Z-000002", data={"/x/b": "sha256:2", "/y/a": "sha256:1"})
    make_run(results, "20261101T000000.000Z-000003", data={"a": "sha256:1"})
    rebuild(results)
    one, two, three = read_history(results)
    assert one.digests.data == two.digests.data != three.digests.data


def test_a_machine_is_told_by_what_it_is():
    """The kernel's version is none of it; processor, cores, memory, system and architecture are."""
    environment = {"machine": "x86_64", "processor": "P", "system": "Linux-6.1-x", "usable_cpus": "2"}
    machine = recording.machine_from(environment, "16")
    assert machine.id == recording.machine_from({**environment, "system": "Linux-6.9-y"}, "16").id
    changed = [recording.machine_from({**environment, name: "Z"}, "16") for name in environment]
    changed.append(recording.machine_from(environment, "32"))
    assert len({machine.id, *(one.id for one in changed)}) == 6


def test_memory_is_told_in_whole_gibibytes():
    """A number, or nothing where the system does not say."""
    assert re.fullmatch(r"\d*", recording.memory_gib())


def test_a_history_is_made_from_runs_before_there_was_one(results):
    """Runs that left a verdict and no line are taken up; what nobody noted then stays unknown."""
    make_run(results, "20261101T000000Z-000000", line=None)
    make_run(results, "20261101T010000.500Z-000001", candidate="some/export", decision="REJECTED")
    (results / "20261101T020000.000Z-000002").mkdir()  # a run that ended before its verdict
    (results / "state").mkdir()
    rebuilt = rebuild(results)
    assert (rebuilt.runs, rebuilt.kept, rebuilt.damaged_copy, rebuilt.unreadable) == (2, 0, None, ())
    first, second = read_history(results)
    assert (first.line, first.kind, first.machine.memory_gib) == ("bus", RunKind.RELEASE, "")
    assert (second.kind, second.decision, second.time.microsecond) == (RunKind.JUDGE, Decision.REJECTED, 500000)


def test_a_run_with_a_damaged_verdict_is_left_out_and_named(results):
    """One unreadable folder does not keep the others from being taken up."""
    make_run(results)
    make_run(results, "20261101T000000.000Z-000001")
    (results / RUN / "verdict.json").write_text("{", encoding="utf-8")
    rebuilt = rebuild(results)
    assert rebuilt.runs == 1
    assert RUN in rebuilt.unreadable[0]


@pytest.mark.parametrize("change", [{"findings": None}, {"subject": {}}, {"decision": "MAYBE"}, {"environment": 3}])
def test_a_verdict_of_another_shape_is_named(results, change):
    """What is valid JSON and no verdict is an error that names the file."""
    folder = make_run(results)
    write_json(folder / "verdict.json", {**verdict_document(), **change})
    with pytest.raises(DocumentError, match=r"verdict\.json is damaged"):
        line_of_run(folder)


def test_damaged_benchmark_data_are_named(results):
    """Raw samples that cannot be read are an error, not missing samples."""
    folder = make_run(results)
    write_json(folder / "benchmark.json", {"benchmarks": [{"extra_info": {"subject_ns": [0], "baseline_ns": [1]}}]})
    with pytest.raises(DocumentError, match=r"benchmark\.json is damaged"):
        line_of_run(folder)


def test_rebuilding_needs_a_folder(tmp_path):
    """A wrong --results is said, and no folder is made."""
    with pytest.raises(HistoryError, match="is not a folder"):
        rebuild(tmp_path / "nowhere")


def test_rebuilding_twice_changes_nothing(results):
    """What is whole stays, byte for byte."""
    make_run(results)
    rebuild(results)
    before = path_of(results).read_bytes()
    rebuild(results)
    assert path_of(results).read_bytes() == before
    assert [path.name for path in results.glob("history*")] == ["history.jsonl"]


# --- git


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], cwd=folder, check=True,
        capture_output=True,
    )  # fmt: skip


@pytest.fixture
def repository(tmp_path) -> Path:
    """One commit of one file."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "file").write_text("a", encoding="utf-8")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def test_the_revision_of_a_repository(repository):
    """The commit, and whether tracked files differ from it; new files do not count."""
    clean = revision_of(repository)
    assert re.fullmatch(r"[0-9a-f]{40}", clean.commit)
    assert clean.dirty is False
    (repository / "new").write_text("b", encoding="utf-8")
    assert revision_of(repository) == clean
    (repository / "file").write_text("b", encoding="utf-8")
    assert revision_of(repository) == Revision(clean.commit, dirty=True)
    assert resolved(repository, "main") == clean.commit
    assert resolved(repository, "--all") is None


def test_outside_a_repository_there_is_no_revision(tmp_path, monkeypatch):
    """Nor before the first commit, nor without git."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision_of(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert revision_of(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert revision_of(tmp_path) is None


def test_asking_for_the_revision_runs_nothing_of_the_repository(repository):
    """A monitor or hook that the repository's configuration names is not run."""
    trap = repository / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {repository}/sprung\n", encoding="utf-8")
    trap.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(trap))
    assert revision_of(repository) is not None
    assert not (repository / "sprung").exists()


# --- one measure over time


def test_a_series_is_of_one_line_on_one_machine():
    """Another machine or another line is another series; a run without the measure is none of it."""
    entries = [run(0), run(1, machine=OTHER_MACHINE), run(2, line="atis"), run(3, {F1: f1(0.9)}), run(4, {})]
    series = series_of(entries, F1)
    assert [(one.line, one.machine, one.values) for one in series] == [
        ("bus", MACHINE, [0.95, 0.9]),
        ("atis", MACHINE, [0.95]),
        ("bus", OTHER_MACHINE, [0.95]),
    ]
    assert series_of(entries, F1, last=1)[0].values == [0.9]


def test_a_change_is_shown_with_what_differs_there():
    """Where a measure changed, what else changed with it is named: here a version."""
    old, new = {"onnxruntime": "1.31.0"}, {"onnxruntime": "1.32.0"}
    entries = [run(number, {F1: f1(0.95)}, versions=old) for number in range(8)]
    entries += [run(number, {F1: f1(0.93)}, versions=new) for number in range(8, 16)]
    (series,) = series_of(entries, F1)
    (change,) = series.changes
    assert series.points[change.point.index].entry.run == name_of(8)
    assert change.differences == ("version of onnxruntime: 1.31.0 → 1.32.0",)


def test_a_measure_is_found_by_a_part_of_its_name():
    """Whole names first, then ends, then parts; several or none is an error that names some."""
    entries = [run(0, {F1: f1(0.9), P50: Recorded(3.0, Unit.MILLISECOND, Limit())})]
    assert find_measure(entries, "p50_ms") == P50
    assert find_measure(entries, "quality") == F1
    with pytest.raises(HistoryError, match=r"may be latency\.int8\.p50_ms, quality\.int8\.f1_micro"):
        find_measure(entries, "int8")
    with pytest.raises(HistoryError, match="no run of the history measured 'nonsense'"):
        find_measure(entries, "nonsense")


# --- the command


@pytest.fixture
def long_results(results) -> Path:
    """Sixteen runs, the F1 of which fell at the ninth."""
    write_runs(results, [line_of(number, {F1: f1(0.95 if number < 8 else 0.93)}) for number in range(16)])
    return results


def test_the_list_of_runs(long_results, capsys):
    """The latest runs, a line each, with decision, line, machine and F1."""
    assert cli.main(["history", "--results", str(long_results), "--last", "3"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"{name_of(15)}.*release.*ACCEPTED.*bus.*{MACHINE.id}.*0\.93", said)
    assert name_of(12) not in said
    assert f"machine {MACHINE.id} (AMD EPYC, 2 CPUs, 16 GiB, Linux x86_64)" in said
    assert "3 of 16 runs" in said


def test_a_measure_on_the_screen(long_results, capsys):
    """A plot with a mark below the change, and a line that says where, how much and how sure."""
    assert cli.main(["history", "f1_micro", "--results", str(long_results)]) == 0
    said = capsys.readouterr().out
    assert "  ████████▁▁▁▁▁▁▁▁  0.93 to 0.95\n          ▲\n" in said
    assert f"from {name_of(8)} on: 0.95 → 0.93, -2.1 %, p = 0.00" in said
    assert "16 runs, 1 change; E-Divisive with means" in said


def test_documents_for_programs(long_results, capsys):
    """--json prints the document alone, of the list and of a measure."""
    assert cli.main(["history", "--json", "--results", str(long_results)]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert runs["runs"][-1]["measures"] == {"quality.int8.f1_micro": 0.93}
    assert cli.main(["history", "f1", "--json", "--results", str(long_results)]) == 0
    (series,) = json.loads(capsys.readouterr().out)["series"]
    assert [change["run"] for change in series["changes"]] == [name_of(8)]


@pytest.mark.parametrize(("name", "begin"), [("f.svg", b"<?xml"), ("f.png", b"\x89PNG"), ("sub/f.pdf", b"%PDF")])
def test_figures(long_results, tmp_path, name, begin, capsys):
    """A measure is drawn as SVG, PNG or PDF."""
    path = tmp_path / name
    assert cli.main(["history", "f1", "--results", str(long_results), "--figure", str(path)]) == 0
    assert path.read_bytes().startswith(begin)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["f1", "--figure", "f.doc"], "a figure's name ends in .svg"),
        (["--figure", "f.svg"], "--figure draws one measure"),
        (["nonsense"], "no run of the history measured"),
        (["--line", "other"], "no run of line other on machine any"),
        (["--machine", "zz"], "no run of line any on machine zz"),
    ],
)
def test_wrong_use_is_said(long_results, capsys, arguments, said):
    """One line, and exit code 2."""
    assert cli.main(["history", "--results", str(long_results), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_empty_history_says_what_to_do(results, capsys):
    """Before the first run the command says how to make one."""
    assert cli.main(["history", "--results", str(results)]) == 2
    assert "no run is in the history yet" in capsys.readouterr().err


def test_rebuilding_says_what_it_found(long_results, capsys):
    """What was damaged is named by line, and where the old file is kept."""
    lines = path_of(long_results).read_bytes().splitlines()
    lines[4] = lines[4].replace(b"0.95", b"0.99")
    path_of(long_results).write_bytes(b"\n".join(lines) + b"\n")
    assert cli.main(["history", "--rebuild", "--results", str(long_results)]) == 0
    said = capsys.readouterr()
    assert "line 5 is damaged: its checksum is that of other content" in said.err
    assert "history.jsonl.damaged-1" in said.err
    assert "15 runs, 0 of them from their folders" in said.out
    assert len(read_history(long_results)) == 15


def test_a_terminal_without_blocks_gets_letters(long_results):
    """Where the encoding has no blocks the plot is of plain characters."""
    from harness.history_report import plot_lines

    (series,) = series_of(read_history(long_results), F1)
    assert plot_lines(series, unicode=False) == ["  @@@@@@@@________  0.93 to 0.95", "          ^"]


def test_a_long_series_fits_the_screen():
    """Hundreds of runs are drawn by the median of each column."""
    from harness.history_report import plot_lines

    (series,) = series_of([run(number, {F1: f1(0.9 + number / 10000)}) for number in range(250)], F1)
    drawn = plot_lines(series)[0].split()[0]
    assert len(drawn) == 100
    assert drawn == "".join(sorted(drawn))


# --- the runs of the pipeline


def test_every_judged_run_is_appended(
    tiny_checkpoint, tiny_data, tiny_export, fast_export, fake_judge, tmp_path, monkeypatch
):
    """Accepted, rejected, and judged by hand: each is in the history once, with its kind and where it went."""
    from harness.pipeline import judge_candidate, release

    monkeypatch.chdir(tmp_path)
    arguments = {"data": [tiny_data], "results": Path("results")}
    release(tiny_checkpoint, "models/tiny", **arguments)
    fake_judge.values = {"quality.fp32.f1_micro": 0.1}
    release(tiny_checkpoint, "models/tiny", **arguments)
    judge_candidate(tiny_checkpoint, tiny_export, line="other", **arguments)
    entries = read_history(Path("results"))
    assert [(entry.kind, entry.decision, entry.line, entry.output) for entry in entries] == [
        (RunKind.RELEASE, Decision.ACCEPTED, "checkpoint", "models/tiny"),
        (RunKind.RELEASE, Decision.REJECTED, "checkpoint", None),
        (RunKind.JUDGE, Decision.REJECTED, "other", None),
    ]
    assert all((Path("results") / entry.folder / "verdict.json").is_file() for entry in entries)
    assert "accept" in entries[0].stages_s
    # the release in the models folder leads back to its run
    from harness.selection import choose_pair

    pair = choose_pair(entries, "last", "models/tiny", Path(), line=None, machine=None)
    assert pair.baseline.run == entries[0].run


def test_a_history_that_cannot_be_written_changes_no_verdict(
    tiny_checkpoint, tiny_data, fast_export, fake_judge, tmp_path, monkeypatch
):
    """The release is accepted and served all the same; the run is told that it is not in the history, and how to mend that."""
    from harness.pipeline import release

    class Lines:
        said: tuple[str, ...] = ()

        def line(self, text):
            self.said += (text,)

        def now(self, text):
            pass

    results = tmp_path / "results"
    (results / "history.jsonl").mkdir(parents=True)
    progress = Lines()
    judgement = release(tiny_checkpoint, tmp_path / "out", data=[tiny_data], results=results, progress=progress)
    assert judgement.verdict.decision is Decision.ACCEPTED
    assert (tmp_path / "out" / "model.onnx").is_file()
    (note,) = (text for text in progress.said if text.startswith("note: the run is not in the history: "))
    assert "harness history --rebuild" in note
    (results / "history.jsonl").rmdir()
    assert rebuild(results).runs == 1
    (entry,) = read_history(results)
    assert entry.output == str(tmp_path / "out")
