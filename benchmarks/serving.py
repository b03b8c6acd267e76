#!/usr/bin/env python3
"""Our runtime beside everything else that serves the same model, as ratios within one run.

    python benchmarks/serving.py --checkpoint models/bus_ner_transformer --candidate models/bus_ner_onnx --output F.json

Every contender has a process of its own and times its own calls; the calls of all take turns, in two cache regimes.
docs/serving-benchmarks.md says who takes part, how each row is measured, and how the other Pythons are made.
Rows can be measured apart: `--rows accuracy` does not mind a busy machine, the others do.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.contender import Level, packed_feed
from baselines.crew import Remote, RemoteModel, Spec, WorkerError
from baselines.roster import (
    NNCF,
    OURS,
    PIPELINE,
    USUAL,
    Roster,
    calibration_rows,
    nncf_folder,
    spacy_folder,
)
from baselines.usual import usual_recipe
from measures import names
from measures.accuracy import examined, relative_results, yardstick
from measures.fidelity import span_f1
from measures.goals import against_goals
from measures.latency import CONFIDENCE, Race, Regime, Schedule, race, round_log_ratio
from measures.lengths import queries_of_length
from measures.result import Result, of_ratio, tables
from measures.size import file_results, install_results
from measures.start import start_results, starters
from measures.throughput import KEY, bulk_inputs, bulk_texts, throughput_results
from rich.console import Console
from rich.table import Table

from harness.artifact import Variant, open_artifact
from harness.documents import write_json
from harness.errors import ArtifactError, DataError, HarnessError
from harness.judging_data import default_data, split_for_calibration
from harness.labelled_data import bundled_bus_queries, read_labelled_set
from harness.machine import cpu_frequency, usable_cpus
from harness.paired.draw import draw_by_length
from harness.paired.estimate import ratio_of
from harness.progress import Progress, ScreenProgress
from harness.quiet import quiet_libraries
from harness.tagging import LabelledSet, pad
from harness.timing import SystemClock

if TYPE_CHECKING:
    from harness.reference import Reference

SCHEMA, VERSION = "serving-benchmark", 1
LENGTHS = (10, 16, 32)
_INPUTS = 32
_TEXTS_OF_DATA = 240
_WIDTH_OF_FILES = 200
_PAIRS_AGAINST_BARE = 60


class Rows(Enum):
    """Kinds of rows that can be measured apart."""

    ACCURACY = "accuracy"
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    START = "start"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

    schedule: Schedule
    queries: int
    bulk: int
    bulk_rounds: int
    starts: int


FULL = Amount(Schedule(12, 24, 24), sys.maxsize, 10_000, 8, 10)
QUICK = Amount(Schedule(8, 6, 6), 200, 500, 8, 8)


@dataclass(slots=True)
class Bench:
    """What all rows are measured with, and what they found."""

    roster: Roster
    reference: Reference
    labelled: LabelledSet
    amount: Amount
    without: frozenset[str]
    progress: Progress
    results: list[Result] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def crew(self, specs: Sequence[Spec], *, pinned: bool) -> Iterator[list[Remote]]:
        """Open contenders, each in its process; those that cannot be had are left out, with the reason.

        Pinned to one CPU, since calls that alternate between cores would each find the caches of their own.

        Raises:
            WorkerError: one that is required does not open.
        """
        cpus = [max(os.sched_getaffinity(0))] if pinned and hasattr(os, "sched_getaffinity") else []
        with ExitStack() as stack:
            opened = []
            for spec in specs:
                if spec.name in self.without and not spec.required:
                    self.left_out[spec.name] = "left out by --without"
                    continue
                self.progress.now(f"opening {spec.name}")
                try:
                    opened.append(stack.enter_context(Remote(spec, cpus)))
                except WorkerError as err:
                    if spec.required:
                        raise
                    self.left_out[spec.name] = _reason(err)
                    self.progress.line(f"left out: {err}")
            yield opened

    def count_tokens(self, text: str) -> int:
        """Tell how many tokens the reference's tokenizer makes of a text."""
        (query,) = self.reference.encode([text])
        return sum(len(window.input_ids) for window in query.windows)


def _reason(err: WorkerError) -> str:
    """Take the contender's name off what it said: it stands beside it."""
    return str(err).partition(": ")[2]


# -- rows --------------------------------------------------------------------------------------------------------------


def measure_accuracy(bench: Bench) -> None:
    """Logit differences, labels, company, F1."""
    known = yardstick(bench.reference, bench.labelled, bench.reference.checkpoint.maximum_tokens)
    bench.results.append(Result(names.F1, "PyTorch eager", "F1", known.counts.micro))
    rows = {}
    for spec in bench.roster.accurate():  # one process at a time: nothing is timed
        with bench.crew([spec], pinned=False) as opened:
            for remote in opened:
                bench.progress.now(f"accuracy: {remote.name}")
                try:
                    found = examined(remote.name, RemoteModel(remote, bench.reference), known)
                except ArtifactError as err:
                    raise WorkerError(str(err)) from err
                rows[remote.name] = found.rows
                bench.results += found.results
    bench.results += relative_results(rows, USUAL)
    for spec in bench.roster.spacy():
        with bench.crew([spec], pinned=False) as opened:
            bench.results += [_span_result(remote, bench.labelled) for remote in opened]


def _span_result(remote: Remote, labelled: LabelledSet) -> Result:
    types = list(labelled.entity_types)
    flat = remote.measure("spans", {"texts": labelled.texts, "labels": types})["spans"]
    found: list[list[tuple[int, int, str]]] = [[] for _ in labelled.texts]
    for place in range(0, len(flat), 4):
        index, start, end, kind = (int(one) for one in flat[place : place + 4])
        found[index].append((start, end, types[kind]))
    note = "exact spans, no words of the model's tokenizer"
    return Result(names.F1, remote.name, "F1", span_f1(labelled, found), note=note)


def measure_latency(bench: Bench) -> None:
    """The models alone, the two of the headline in one process, texts to entities, and our runtime around its session."""
    texts = {
        f"{tokens} tokens": queries_of_length(bench.labelled.texts, bench.count_tokens, tokens, _INPUTS)
        for tokens in LENGTHS
    }
    _race_models(bench, texts)
    if "int8" in bench.roster.variants:
        _duel(bench, texts)
    _race_texts(bench)
    _against_bare(bench)


def _batches(bench: Bench, texts: Sequence[str]) -> list[object]:
    encoded = bench.reference.encode(texts)
    return [pad(query.windows, bench.reference.pad_token_id) for query in encoded]


def _race_models(bench: Bench, texts: dict[str, list[str]]) -> None:
    with bench.crew(bench.roster.models(), pinned=True) as opened:
        kept = _loaded(bench, opened, {key: (Level.MODEL, _batches(bench, some)) for key, some in texts.items()})
        found = race(kept, {key: len(some) for key, some in texts.items()}, bench.amount.schedule, bench.progress)
    _add_race(bench, found, names.MODEL, [one.name for one in kept], USUAL, list(texts))


def _race_texts(bench: Bench) -> None:
    queries = bench.labelled.texts
    draw = draw_by_length(queries, [bench.count_tokens(text) for text in queries])
    texts = [draw(block)[0] for block in range(_TEXTS_OF_DATA)]
    key = "the data's own lengths"
    with bench.crew(bench.roster.texts(), pinned=True) as opened:
        kept = _loaded(bench, opened, {key: (Level.TEXT, texts)})
        found = race(kept, {key: len(texts)}, bench.amount.schedule, bench.progress)
    _add_race(bench, found, names.TEXT, [one.name for one in kept], PIPELINE, [key])


def _loaded(
    bench: Bench, opened: Sequence[Remote], inputs: Mapping[str, tuple[Level, Sequence[object]]]
) -> list[Remote]:
    """Give everyone the inputs, and call everyone once; who cannot answer is left out, unless it is required."""
    kept = []
    for remote in opened:
        bench.progress.now(f"warming up {remote.name}")
        try:
            for key, (level, some) in inputs.items():
                remote.load(key, level, some)
                remote.time(key, [0])
            kept.append(remote)
        except WorkerError as err:
            if remote.spec.required:
                raise
            bench.left_out[remote.name] = _reason(err)
            bench.progress.line(f"left out: {err}")
    return kept


def _add_race(
    bench: Bench, found: Race, measure: str, racers: Sequence[str], baseline: str, keys: Sequence[str]
) -> None:
    for name in racers:
        for key in keys:
            for regime in Regime:
                ratios = found.log_ratios(key, regime, name, baseline)
                column = f"{key}, {regime.value}"
                details = {"median_ns": found.median_ns(key, regime, name), "log_ratios": ratios}
                ratio = found.ratio(key, regime, name, baseline)
                bench.results.append(of_ratio(measure, name, column, ratio, **details))


def _duel(bench: Bench, texts: dict[str, list[str]]) -> None:
    with bench.crew([bench.roster.duel()], pinned=True) as (remote,):
        for key, some in texts.items():
            inputs = [packed_feed(pad(query.windows, 0)._asdict()) for query in bench.reference.encode(some)]
            for regime in Regime:
                bench.progress.now(f"both in one process, {key}, {regime.value}")
                asked = {"inputs": inputs, "rounds": bench.amount.schedule.rounds}
                ratios = remote.measure(regime.value, asked)["log_ratios"]
                ratio = ratio_of(ratios, CONFIDENCE)
                column = f"{key}, {regime.value}"
                bench.results.append(of_ratio(names.DUEL, OURS["int8"], column, ratio, log_ratios=ratios))


def _against_bare(bench: Bench) -> None:
    texts = bench.labelled.texts
    draw = draw_by_length(texts, [bench.count_tokens(text) for text in texts])
    asked = [draw(block)[0] for block in range(_PAIRS_AGAINST_BARE)]
    with bench.crew(bench.roster.leans(), pinned=True) as opened:
        for remote in opened:
            bench.progress.now(f"{remote.name} against its bare session run")
            ratios = [_around_bare(remote, asked) for _ in range(bench.amount.schedule.rounds)]
            ratio = ratio_of(ratios, CONFIDENCE)
            bench.results.append(of_ratio(names.BARE, remote.name, "ratio", ratio, log_ratios=ratios))


def _around_bare(remote: Remote, texts: Sequence[str]) -> float:
    remote.reopen()
    remote.measure("against_bare", {"texts": texts[:3]})
    found = remote.measure("against_bare", {"texts": texts})
    whole, bare = ([int(one) for one in found[side]] for side in ("extract_ns", "bare_ns"))
    return round_log_ratio(whole, bare)


def measure_throughput(bench: Bench) -> None:
    """Many queries at once on all cores; everyone has the threads that it takes by itself."""
    texts = bulk_texts(bench.labelled.texts, bench.amount.bulk)
    specs = bench.roster.bulk()
    with bench.crew(specs, pinned=False) as opened:
        kept = _loaded(bench, opened, {KEY: bulk_inputs(texts)})
        found = throughput_results(kept, specs[0].name, len(texts), bench.amount.bulk_rounds, bench.progress)
    bench.results += found


def measure_start(bench: Bench) -> None:
    """Fresh processes, one after the other."""
    roster, texts = bench.roster, bench.labelled.texts
    query = sorted(texts, key=len)[len(texts) // 2]
    ways = starters(roster.candidate, roster.checkpoint, roster.variants, query, SystemClock())
    bench.results += start_results(ways, bench.amount.starts, bench.progress)


def measure_size(bench: Bench) -> None:
    """Files and installs."""
    roster = bench.roster
    artifact = open_artifact(roster.candidate)
    files = {
        OURS[variant.value]: artifact.model_path(variant) for variant in artifact.variants if variant.value in OURS
    }
    files |= {USUAL: roster.usual / Variant.INT8.file_name, NNCF: roster.nncf_cache / "nncf_int8.xml"}
    bench.results += [*file_results(files, artifact.model_path(Variant.FP32)), *install_results()]


MEASURES: dict[Rows, Callable[[Bench], None]] = {
    Rows.SIZE: measure_size,
    Rows.ACCURACY: measure_accuracy,
    Rows.LATENCY: measure_latency,
    Rows.THROUGHPUT: measure_throughput,
    Rows.START: measure_start,
}


# -- command -----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 2 if something that is needed cannot be had."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES, highlight=False)
    try:
        bench = prepared(options)
        clock, spent, before = SystemClock(), {}, cpu_frequency()
        for rows, measure in MEASURES.items():
            if rows.value in options.rows:
                begin = clock.now_ns()
                measure(bench)
                spent[rows.value] = round((clock.now_ns() - begin) / 1e9, 1)
                bench.progress.line(f"{rows.value}: {spent[rows.value]} s")
    except HarnessError as err:
        print(err, file=sys.stderr)
        return 2
    show(bench, console)
    machine = {"usable_cpus": usable_cpus(), "cpu_frequency": [str(before), str(cpu_frequency())], "seconds": spent}
    if options.output:
        write_json(options.output, document(bench, options, machine))
        console.print(f"written: {options.output}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="the PyTorch model")
    parser.add_argument("--candidate", type=Path, required=True, metavar="DIR", help="its release")
    parser.add_argument("--usual", type=Path, metavar="DIR", help="the usual recipe's INT8; made if not named")
    parser.add_argument("--data", type=Path, nargs="+", metavar="FILE", help="labelled queries (default: bus queries)")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="labelled queries for NNCF and spaCy")
    kinds = [one.value for one in Rows]
    parser.add_argument("--rows", nargs="+", choices=kinds, default=kinds, help="what to measure (default: all)")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="contenders to leave out, by name")
    parser.add_argument("--openvino-python", metavar="PATH", help="a Python with openvino and nncf")
    parser.add_argument("--spacy-python", metavar="PATH", help="a Python with spaCy")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where the baselines' own models are kept")
    parser.add_argument("--quick", action="store_true", help="few calls and queries: does it run?")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where to write all figures")
    return parser.parse_args(arguments)


def prepared(options: argparse.Namespace) -> Bench:
    """Open the reference and the data, and make what the baselines are made from."""
    from harness.reference import Reference

    with quiet_libraries():
        reference = Reference(options.checkpoint)
    amount = QUICK if options.quick else FULL
    progress = ScreenProgress()
    judged, train = data_of(options, reference.labels, progress)
    cache = options.cache or default_cache()
    candidate = options.candidate.resolve()
    if Variant.FP32 not in open_artifact(candidate).variants:
        message = f"{candidate} has no FP32 file, which the baselines are made from. Export it again."
        raise ArtifactError(message)
    progress.now("the usual recipe")
    usual = options.usual.resolve() if options.usual else usual_recipe(candidate, cache)
    rows = calibration_rows(reference.encode(train.texts), reference.pad_token_id)
    roster = Roster(
        checkpoint=options.checkpoint.resolve(),
        candidate=candidate,
        variants=tuple(variant.value for variant in open_artifact(candidate).variants if variant.value in OURS),
        usual=usual,
        openvino_python=options.openvino_python,
        spacy_python=options.spacy_python,
        nncf_cache=nncf_folder(cache, candidate / Variant.FP32.file_name, rows),
        spacy_cache=spacy_folder(cache, train) if options.spacy_python else cache,
        calibration=rows,
    )
    step = max(len(judged.queries) // amount.queries, 1)
    labelled = LabelledSet(judged.name, judged.queries[::step])
    return Bench(roster, reference, labelled, amount, frozenset(options.without), progress)


def data_of(options: argparse.Namespace, labels: Sequence[str], progress: Progress) -> tuple[LabelledSet, LabelledSet]:
    """Give the queries that judge, and those that NNCF and spaCy may see; no text is in both by this function's doing."""
    judged = labelled_set(options.data or default_data(), labels, progress)
    if options.calibration:
        return judged, labelled_set([options.calibration], labels, progress)
    if not options.data:
        return judged, read_labelled_set(bundled_bus_queries("train"), labels=labels)
    train, judged_rest = split_for_calibration(judged)
    return judged_rest, train


def labelled_set(paths: Sequence[Path], labels: Sequence[str], progress: Progress) -> LabelledSet:
    """Read labelled queries; entities of types that the model does not know are missed by every contender alike.

    Raises:
        DataError: they cannot be read, whatever the types.
    """
    try:
        return read_labelled_set(paths, labels=labels)
    except DataError as err:
        found = read_labelled_set(paths)
        progress.line(f"note: {err}")
        progress.line("note: types that the model does not know count as missed, by every contender")
        return found


def default_cache() -> Path:
    """Keep baselines' models between runs: HARNESS_CACHE, or the temporary folder."""
    return Path(os.environ.get("HARNESS_CACHE") or tempfile.gettempdir()).resolve() / "serving-benchmark"


def show(bench: Bench, console: Console) -> None:
    """Print a table per measure, who was left out, and the goals."""
    for table in tables(bench.results):
        console.print(table)
    for name, why in bench.left_out.items():
        console.print(f"left out: {name}: {why}", markup=False)
    table = Table("measure", "whose", "column", "goal", "found", "", title="goals of issue 5", title_justify="left")
    for goal, result, kept in against_goals(bench.results):
        table.add_row(goal.measure, goal.subject, result.column, goal.limit, result.shown(), kept.value)
    console.print(table)


def document(bench: Bench, options: argparse.Namespace, machine: dict[str, object]) -> dict[str, object]:
    """Put everything into one JSON document."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "quick": options.quick,
        "rows": options.rows,
        "candidate": str(options.candidate),
        "data": bench.labelled.name,
        "queries": len(bench.labelled.queries),
        "confidence": CONFIDENCE,
        "machine": machine,
        "left_out": bench.left_out,
        "results": [result.to_json() for result in bench.results],
        "goals": [
            {"measure": goal.measure, "subject": goal.subject, "column": result.column, "limit": goal.limit,
             "value": result.value, "kept": kept.value}
            for goal, result, kept in against_goals(bench.results)
        ],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
