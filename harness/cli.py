"""The command line: parse, call the steps, choose the exit code.

Built on argparse, so that `extract` and `verify` work where only the runtime is installed. Results
go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.errors import AcceptanceError, BrokenSuiteError, HarnessError, MissingPackageError, UsageError, one_line
from harness.progress import ScreenProgress

if TYPE_CHECKING:
    from harness.history import Entry
    from harness.pipeline import Judgement
    from harness.tagging import LabelledSet
    from harness.verdict import Decision as _Decision

_RUNTIMES = ("onnxruntime", "openvino")
_TARGETS = ("every", "avx2", "avx512", "avx512_vnni", "arm64", "size")
_MODEL = Path("models/bus_ner_transformer")
_OUTPUT = Path("models/bus_ner_onnx")
_RESULTS = Path("results")
_TIME_LIMIT_S = 900
_BATCH = 32
_LONGEST_MESSAGE = 4000
_LISTED_RUNS = 20


class ExitCode(IntEnum):
    """What the exit code of every command means."""

    FINE = 0
    REJECTED = 1
    BAD_INPUT = 2
    COULD_NOT_JUDGE = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and never lets an expected error out as a traceback."""
    options = _parse(arguments)
    # a CI runner that gives up sends SIGTERM: end like Ctrl-C, so that no child process is left
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path or a table that the encoding lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = int(options.run(options))
        sys.stdout.flush()  # here, where a reader that has gone is understood
        return code
    except BrokenSuiteError as err:
        print(f"harness: INCOMPLETE: {one_line(err, _LONGEST_MESSAGE)}", file=sys.stderr)
        return ExitCode.COULD_NOT_JUDGE
    except AcceptanceError as err:
        print(f"harness: {one_line(err, _LONGEST_MESSAGE)}", file=sys.stderr)
        return ExitCode.COULD_NOT_JUDGE
    except HarnessError as err:
        print(f"harness: {one_line(err, _LONGEST_MESSAGE)}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] in {"harness", "suites"}:
            return _bug()
        missing = MissingPackageError(
            f"this command needs the package {err.name!r}: pip install 'ner-release-harness[release]'."
        )
        print(f"harness: {missing}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print("harness: interrupted.", file=sys.stderr)
        return ExitCode.COULD_NOT_JUDGE
    except BrokenPipeError:
        # whoever read our output has gone; keep Python from complaining again while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.COULD_NOT_JUDGE
    except OSError as err:
        print(f"harness: {err.filename or 'the system'}: {err.strerror or err}. Nothing was accepted.", file=sys.stderr)
        return ExitCode.COULD_NOT_JUDGE
    except Exception:
        return _bug()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    options, surplus = parser.parse_known_args(arguments)
    if surplus:
        # argparse does not see that queries go on behind an option: extract DIR --detailed QUERY
        if not hasattr(options, "queries") or any(text.startswith("-") for text in surplus):
            parser.error(f"unrecognized arguments: {' '.join(surplus)}")
        options.queries = [*options.queries, *surplus]
    return options


def _bug() -> ExitCode:
    """Show the traceback of what is being handled; left alone, Python would exit with 1, which means "rejected"."""
    traceback.print_exc()
    print("harness: this is a bug in the harness; nothing was accepted.", file=sys.stderr)
    return ExitCode.COULD_NOT_JUDGE


def build_parser() -> argparse.ArgumentParser:
    """Describe every command."""
    parser = argparse.ArgumentParser(
        prog="harness",
        description="A release gate for ONNX exports of token classifiers.",
        epilog="Exit codes: 0 accepted or fine, 1 rejected, 2 wrong use or bad input, 3 could not judge.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_release(commands)
    _add_train(commands)
    _add_export(commands)
    _add_judge(commands)
    _add_selfcheck(commands)
    _add_verify(commands)
    _add_extract(commands)
    _add_compare(commands)
    _add_history(commands)
    return parser


Commands = argparse._SubParsersAction  # noqa: SLF001  # argparse names this type nowhere else


def _add_release(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("release", help="export, quantize, judge; accept what passes")
    parser.add_argument("--model", type=Path, default=_MODEL, metavar="DIR", help="checkpoint (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=_OUTPUT,
        metavar="DIR",
        help="where the accepted release goes (default: %(default)s)",
    )
    _add_quantize(parser)
    calibration_help = (
        "labelled queries that the INT8 variant is made with (default: bus training queries, or a part of --data, which then "
        "does not judge)"
    )
    parser.add_argument("--calibration", type=Path, metavar="FILE", help=calibration_help)
    parser.add_argument("--verify", action="store_true", help="run sample queries on the accepted release")
    _add_judging(parser, "release that this one may not be slower than (default: the accepted one in --output)")
    parser.add_argument("--no-baseline", action="store_true", help="compare with no earlier release")
    parser.set_defaults(run=_release)


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    quantize_help = (
        "also make an INT8 variant: by the default recipe, a named one, the best that a search finds (auto), or that of an "
        "earlier release's manifest.json"
    )
    parser.add_argument("--quantize", nargs="?", const=True, default=False, metavar="RECIPE", help=quantize_help)
    parser.add_argument("--target", choices=_TARGETS, help="which CPUs the INT8 variant is for, or size: a small file")
    budget_help = "of the search for a recipe (default: 300)"
    parser.add_argument("--search-budget", type=_seconds, metavar="SECONDS", help=budget_help)


def _add_judging(parser: argparse.ArgumentParser, baseline_help: str) -> None:
    data_help = "labelled queries, JSON lines or CoNLL; may be repeated (default: the bundled bus queries)"
    parser.add_argument("--data", type=Path, action="append", default=[], metavar="FILE", help=data_help)
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="TOML file with limits that differ from the defaults"
    )
    parser.add_argument(
        "--results", type=Path, default=_RESULTS, metavar="DIR", help="where runs are kept (default: %(default)s)"
    )
    line_help = "release line, whose saved queries are replayed (default: the name of the checkpoint's folder)"
    parser.add_argument("--line", metavar="NAME", help=line_help)
    parser.add_argument("--baseline", type=Path, metavar="DIR", help=baseline_help)
    limit_help = "of the judging session (default: %(default)s)"
    parser.add_argument("--time-limit", type=_seconds, default=_TIME_LIMIT_S, metavar="SECONDS", help=limit_help)
    parser.add_argument("--json", action="store_true", help="print the verdict document instead of the table")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        message = f"{text} is not a positive number of seconds"
        raise argparse.ArgumentTypeError(message)
    return value


def _add_train(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("train", help="fine-tune a reference checkpoint on labelled data")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="labelled queries to learn from (default: the bundled bus queries)"
    )
    validation_help = "labelled queries to choose the best epoch by (default: a tenth of --data)"
    parser.add_argument("--validation", type=Path, metavar="FILE", help=validation_help)
    parser.add_argument("--base", metavar="DIR_OR_HUB_ID", help="pretrained model (default: MiniLM-L6-H384)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the checkpoint goes")
    parser.add_argument("--epochs", type=int, metavar="N", help="how often to go through the data")
    parser.add_argument("--seed", type=int, metavar="N", help="settles everything random")
    parser.set_defaults(run=_train)


def _add_export(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("export", help="export a checkpoint; judges nothing")
    parser.add_argument("--model", type=Path, default=_MODEL, metavar="DIR", help="checkpoint (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=_OUTPUT, metavar="DIR", help="where the export goes (default: %(default)s)"
    )
    _add_quantize(parser)
    calibration_help = "queries that set the INT8 ranges, labelled or one a line (default: bus queries)"
    parser.add_argument("--calibration", type=Path, metavar="FILE", help=calibration_help)
    parser.add_argument("--verify", action="store_true", help="run sample queries on the export")
    parser.set_defaults(run=_export)


def _add_judge(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("judge", help="judge an export that any tool made; accepts nothing")
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="the PyTorch checkpoint")
    parser.add_argument("--candidate", type=Path, required=True, metavar="DIR", help="the export")
    parser.add_argument("--suite", action="append", default=[], metavar="NAME", help="only this suite; may be repeated")
    _add_runtime(parser)
    _add_judging(parser, "release that the export may not be slower than (default: none)")
    parser.set_defaults(run=_judge)


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    runtime_help = "what runs the models; openvino is an extra (default: %(default)s)"
    parser.add_argument("--runtime", choices=_RUNTIMES, default=_RUNTIMES[0], help=runtime_help)


def _add_selfcheck(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "Plant known defects into a good export, and tell which of them this policy and these data would catch."
    parser = commands.add_parser("selfcheck", help="plant known defects: which would be caught?", description=text)
    parser.add_argument("--model", type=Path, default=_MODEL, metavar="DIR", help="checkpoint (default: %(default)s)")
    candidate_help = "a good export of it (default: one is made, with both variants)"
    parser.add_argument("--candidate", type=Path, metavar="DIR", help=candidate_help)
    only_help = "plant only this defect or harmless change; may be repeated"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=only_help)
    data_help = "labelled queries, JSON lines or CoNLL; may be repeated (default: the bundled bus queries)"
    parser.add_argument("--data", type=Path, action="append", default=[], metavar="FILE", help=data_help)
    policy_help = "TOML file with limits that differ from the defaults"
    parser.add_argument("--policy", type=Path, metavar="FILE", help=policy_help)
    results_help = "where runs are kept (default: %(default)s)"
    parser.add_argument("--results", type=Path, default=_RESULTS, metavar="DIR", help=results_help)
    parser.add_argument("--json", action="store_true", help="print the document instead of the tables")
    parser.set_defaults(run=_selfcheck)


def _add_verify(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("verify", help="check a release's files, and show what it finds in sample queries")
    parser.add_argument("release", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    parser.set_defaults(run=_verify)


def _add_extract(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("extract", help="entities of queries as JSON, a line a query")
    parser.add_argument("release", type=Path, metavar="DIR")
    parser.add_argument(
        "queries", nargs="*", default=[], metavar="QUERY", help="default: a query a line from standard input"
    )
    parser.add_argument("--detailed", action="store_true", help="with places and scores")
    parser.add_argument("--variant", choices=("fp32", "int8"), help="default: what the manifest says")
    _add_runtime(parser)
    parser.set_defaults(run=_extract)


def _add_compare(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "hold a run against an earlier one: every measure with its change, a bound, and a verdict"
    parser = commands.add_parser("compare", help=text, description=text)
    which = "a run or the beginning of its name, a release folder, a git revision, last, previous or accepted"
    parser.add_argument("subject", nargs="?", metavar="A", help=f"{which} (default: last)")
    parser.add_argument(
        "baseline",
        nargs="?",
        metavar="B",
        help="what A is held against (default: with A the last accepted run before it, without A the run before)",
    )
    _add_choice_of_runs(parser)
    tolerance_help = "what is no difference yet, as in time=0.15; kinds: time, size, score, closeness, count"
    parser.add_argument("--tolerance", action="append", default=[], metavar="KIND=SHARE", help=tolerance_help)
    parser.add_argument("--across-machines", action="store_true", help="compare times of different machines, too")
    absolute_help = "count milliseconds and queries a second, too: for machines that do nothing else"
    parser.add_argument("--absolute-times", action="store_true", help=absolute_help)
    parser.add_argument("--fail-on-regression", action="store_true", help="exit with 1 where a measure is worse")
    first_help = "exit with 0 where there is no earlier run to compare with"
    parser.add_argument("--allow-first", action="store_true", help=first_help)
    parser.set_defaults(run=_compare)


def _add_history(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "list the runs, or show one measure over time with its change points"
    parser = commands.add_parser("history", help=text, description=text)
    measure_help = "a measure, or a part of its name that no other has, such as int8.f1_micro_loss_bound"
    parser.add_argument("measure", nargs="?", metavar="MEASURE", help=measure_help)
    _add_choice_of_runs(parser)
    last_help = f"only the latest so many runs (default: {_LISTED_RUNS} in the list, all of a measure)"
    parser.add_argument("--last", type=_count, metavar="N", help=last_help)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the measure: .svg, .png or .pdf")
    rebuild_help = "write the history again, from what is whole in it and from the runs' folders"
    parser.add_argument("--rebuild", action="store_true", help=rebuild_help)
    parser.set_defaults(run=_history)


def _add_choice_of_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=_RESULTS, metavar="DIR", help="where runs are kept (default: %(default)s)"
    )
    parser.add_argument("--line", metavar="NAME", help="only runs of this release line")
    parser.add_argument("--machine", metavar="ID", help="only runs of the machine whose id begins like this")
    parser.add_argument("--json", action="store_true", help="print a JSON document")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        message = f"{text} is not a number of runs"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _release(options: argparse.Namespace) -> ExitCode:
    from harness.pipeline import release
    from harness.verdict import Decision

    if options.no_baseline and options.baseline is not None:
        message = "--baseline and --no-baseline contradict each other. Give one of them."
        raise UsageError(message)
    judgement = release(
        options.model,
        options.output,
        quantize=options.quantize,
        target=options.target,
        search_budget_s=options.search_budget,
        calibration=options.calibration,
        data=options.data,
        policy=options.policy,
        results=options.results,
        line=options.line,
        baseline=options.baseline,
        compare_with_served=not options.no_baseline,
        time_limit_s=options.time_limit,
        progress=ScreenProgress(),
    )
    code = _conclude(judgement, options, f"{options.model} → {options.output}")
    if judgement.verdict.decision is Decision.ACCEPTED:
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in judgement.stages_s.items())
        print(f"stages: {stages}", file=sys.stderr)
        if options.verify:
            return max(code, _show_release(options.output, as_json=False, stream_is_error=options.json))
    elif options.output.exists():
        print(f"{options.output} keeps the release that it had.", file=sys.stderr)
    return code


def _judge(options: argparse.Namespace) -> ExitCode:
    from harness.pipeline import judge_candidate

    judgement = judge_candidate(
        options.reference,
        options.candidate,
        data=options.data,
        policy=options.policy,
        suites=options.suite,
        results=options.results,
        line=options.line,
        baseline=options.baseline,
        runtime=options.runtime,
        time_limit_s=options.time_limit,
        progress=ScreenProgress(),
    )
    only = f", by the suites {', '.join(options.suite)} only" if options.suite else ""
    through = "" if options.runtime == _RUNTIMES[0] else f", through {options.runtime}"
    return _conclude(judgement, options, f"{options.candidate} against {options.reference}{through}{only}")


def _selfcheck(options: argparse.Namespace) -> ExitCode:
    from harness.selfcheck import selfcheck
    from harness.selfcheck_report import print_selfcheck, write_selfcheck

    check = selfcheck(
        options.model,
        candidate=options.candidate,
        data=options.data,
        policy=options.policy,
        only=options.only,
        results=options.results,
        progress=ScreenProgress(),
    )
    document = write_selfcheck(check)
    if options.json:
        _print_json(document, indent=2)
    else:
        print_selfcheck(check)
    return _exit_code(check.decision)


def _conclude(judgement: Judgement, options: argparse.Namespace, subject: str) -> ExitCode:
    from harness.report import print_verdict
    from harness.webreport import REPORT_FILE

    if options.json:
        _print_json(judgement.document, indent=2)
    else:
        folder = judgement.run.folder
        print_verdict(judgement.verdict, folder, subject=subject, report=folder / REPORT_FILE)
    return _exit_code(judgement.verdict.decision)


def _exit_code(decision: _Decision) -> ExitCode:
    from harness.verdict import Decision

    codes = {
        Decision.ACCEPTED: ExitCode.FINE,
        Decision.REJECTED: ExitCode.REJECTED,
        Decision.INCOMPLETE: ExitCode.COULD_NOT_JUDGE,
    }
    return codes[decision]


def _train(options: argparse.Namespace) -> ExitCode:
    from harness.pipeline import train_reference

    knobs = {name: getattr(options, name) for name in ("epochs", "seed") if getattr(options, name) is not None}
    report = train_reference(
        options.output, data=options.data, validation=options.validation, base=options.base, **knobs
    )
    print(f"{report.folder}: validation F1 {report.best.f1:.4f} in epoch {report.best.epoch}, {report.seconds:.0f} s")
    return ExitCode.FINE


def _export(options: argparse.Namespace) -> ExitCode:
    from harness.export_onnx import export_to_onnx

    if options.quantize is False and (options.target or options.calibration or options.search_budget):
        message = "--target, --calibration and --search-budget are for the INT8 variant, which was not asked for. Add --quantize."
        raise UsageError(message)
    export_to_onnx(
        options.model,
        options.output,
        options.quantize,
        target=options.target,
        search_budget_s=options.search_budget,
        calibration=_calibration(options.calibration, labelled=options.quantize == "auto"),
        progress=ScreenProgress(),
    )
    return _show_release(options.output, as_json=False) if options.verify else ExitCode.FINE


def _calibration(path: Path | None, *, labelled: bool) -> Sequence[str] | LabelledSet | None:
    """Read calibration queries, with their labels where a search compares recipes by them."""
    from harness.judging_data import read_texts
    from harness.labelled_data import read_labelled_set

    if path is None:
        return None
    return read_labelled_set(path) if labelled else read_texts(path)


def _verify(options: argparse.Namespace) -> ExitCode:
    return _show_release(options.release, as_json=options.json)


def _show_release(folder: Path, *, as_json: bool, stream_is_error: bool = False) -> ExitCode:
    """Print what a release finds in sample queries and whether its files are as released."""
    from harness.export_onnx import verify_onnx_model

    found = verify_onnx_model(folder)
    stream = sys.stderr if stream_is_error else sys.stdout
    if as_json:
        document = {"decision": found.decision, "answers": found.answers, "problems": found.problems}
        _print_json(document, indent=2)
    else:
        for line in _verification_lines(folder, found.decision, found.answers, found.problems):
            print(line, file=stream)
    return ExitCode.REJECTED if found.problems else ExitCode.FINE


def _verification_lines(
    folder: Path, decision: str, answers: Iterable[dict[str, object]], problems: Sequence[str]
) -> list[str]:
    lines = []
    for answer in answers:
        entities = answer["entities"]
        found = entities.items() if isinstance(entities, dict) else []
        lines.append(str(answer["query"]))
        lines += [f"  {kind:<15} {text}" for kind, text in found if text is not None] or ["  (no entity)"]
    lines += [f"problem: {problem}" for problem in problems]
    state = f"{len(problems)} files differ from the manifest" if problems else "all files as the manifest lists them"
    return [*lines, f"{folder}: {decision}, {state}"]


def _extract(options: argparse.Namespace) -> ExitCode:
    from harness.inference import NERInference

    ner = NERInference(options.release, variant=options.variant, runtime=options.runtime)
    queries = options.queries or _lines_of_input()
    # a person at a terminal wants each answer at once
    size = 1 if sys.stdin.isatty() else _BATCH
    for batch in _batches(queries, size):
        for answer in ner.batch_extract_detailed(batch):
            _print_json(answer if options.detailed else answer["entities"])
    return ExitCode.FINE


def _compare(options: argparse.Namespace) -> ExitCode:
    from harness.comparison import Rules, compare_runs, tolerances_from
    from harness.comparison_report import print_comparison, to_json
    from harness.history import read_history
    from harness.selection import LAST, PREVIOUS, NothingEarlierError, choose_pair

    rules = Rules(tolerances_from(options.tolerance), options.across_machines, options.absolute_times)
    baseline = options.baseline or (None if options.subject else PREVIOUS)
    entries = read_history(options.results)
    choice = {"line": options.line, "machine": options.machine}
    try:
        pair = choose_pair(entries, options.subject or LAST, baseline, Path(), **choice)
    except NothingEarlierError as err:
        if not options.allow_first:
            raise
        print(f"note: {one_line(err)}", file=sys.stderr)
        return ExitCode.FINE
    comparison = compare_runs(pair.subject, pair.baseline, rules)
    if options.json:
        _print_json(to_json(comparison), indent=2)
    else:
        print_comparison(comparison)
    if not options.fail_on_regression:
        return ExitCode.FINE
    if not comparison.decided:
        print("harness: not one measure of the two runs can be compared.", file=sys.stderr)
        return ExitCode.COULD_NOT_JUDGE
    return ExitCode.REJECTED if comparison.regressions else ExitCode.FINE


def _history(options: argparse.Namespace) -> ExitCode:
    from harness.history import read_history
    from harness.selection import filtered

    if options.rebuild:
        return _rebuild(options)
    if options.figure is not None and options.measure is None:
        message = "--figure draws one measure. Name it: harness history MEASURE --figure FILE."
        raise UsageError(message)
    entries = filtered(read_history(options.results), options.line, options.machine)
    if options.measure is not None:
        return _show_measure(entries, options)
    from harness.history_report import print_runs, runs_to_json

    last = options.last or _LISTED_RUNS
    if options.json:
        _print_json(runs_to_json(entries[-last:]), indent=2)
    else:
        print_runs(entries, last)
    return ExitCode.FINE


def _show_measure(entries: Sequence[Entry], options: argparse.Namespace) -> ExitCode:
    from harness.history_report import check_figure, draw_series, print_series, series_to_json
    from harness.series import find_measure, series_of

    if options.figure is not None:
        check_figure(options.figure)
    series = series_of(entries, find_measure(entries, options.measure), options.last)
    if options.json:
        _print_json(series_to_json(series), indent=2)
    else:
        print_series(series)
    if options.figure is not None:
        draw_series(series, options.figure)
        print(f"figure: {options.figure}", file=sys.stderr)
    return ExitCode.FINE


def _rebuild(options: argparse.Namespace) -> ExitCode:
    from harness.recording import rebuild

    rebuilt = rebuild(options.results)
    for damage in rebuilt.dropped:
        print(f"line {damage.number} {damage.error}", file=sys.stderr)
    for problem in rebuilt.unreadable:
        print(f"not taken up: {problem}", file=sys.stderr)
    if rebuilt.damaged_copy is not None:
        print(f"the history as it was: {rebuilt.damaged_copy}", file=sys.stderr)
    print(f"{rebuilt.runs} runs, {rebuilt.runs - rebuilt.kept} of them from their folders")
    return ExitCode.FINE


def _print_json(content: object, indent: int | None = None) -> None:
    """Print JSON, in escapes where the stream's encoding does not have the characters."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(content, indent=indent)
    print(text)


def _lines_of_input() -> Iterable[str]:
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as err:
        message = f"standard input is not {err.encoding} text (byte {err.start}). Convert it to UTF-8."
        raise UsageError(message) from err


def _batches(queries: Iterable[str], size: int) -> Iterable[list[str]]:
    batch: list[str] = []
    for query in queries:
        batch.append(query)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
