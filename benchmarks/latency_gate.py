"""Error rates of the latency gate on this machine: the same model against itself, and planted slowdowns.

    python benchmarks/latency_gate.py same --candidate models/bus_ner_onnx --runs 100
    python benchmarks/latency_gate.py slower --candidate models/bus_ner_onnx --runs 40
    python benchmarks/latency_gate.py threads --candidate models/bus_ner_onnx --runs 20

Every run is what the suite does with `ratio_to_last_release`, its rounds, looks and budget included. In half of the runs a
neighbour keeps another core busy. Runs are appended to --output, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from harness.artifact import Artifact, Variant, open_artifact
from harness.candidate import Candidate
from harness.evidence import Measure, MeasureKey, Unit
from harness.judging_data import default_data
from harness.labelled_data import read_labelled_set
from harness.machine import usable_cpus
from harness.paired.contest import Answer, Contest, Opener, UntimedPacer, run
from harness.paired.draw import Draw, draw_by_length
from harness.paired.estimate import LOOKS, Ratio, ratio_of
from harness.paired.workload import Workload
from harness.timing import SystemClock
from harness.verdict import Limit, Policy, Standing, compare
from suites.latency.test_calls import answering

SLOWDOWNS = (1.05, 1.10, 1.15, 1.25)
# The default, and one for those who want to know of 5 %.
LIMITS = {"1.10": 1.10, "1.025": 1.025}
STRICT = ("1.025",)
KEY = MeasureKey("latency", "int8", "ratio_to_last_release")
NEIGHBOUR = """
import numpy as np
one = np.random.default_rng(0).standard_normal((700, 700), np.float32)
while True:
    np.sort((one * 1.5 + one.T).ravel())
"""
HIDDEN = 384


@dataclass(frozen=True)
class Outcome:
    """What the gate says under one limit, and after how many rounds."""

    standing: Standing
    rounds: int


@contextmanager
def neighbour(*, busy: bool) -> Iterator[None]:
    """Keep another core busy, with a process that computes and sorts."""
    if not busy:
        yield
        return
    with subprocess.Popen(  # noqa: S603  # our own program
        [sys.executable, "-c", NEIGHBOUR], env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ) as other:
        try:
            yield
        finally:
            other.kill()


def standing(ratio: Ratio, limit: float) -> Standing:
    """Ask the policy's own function."""
    measure = Measure(KEY, ratio.value, Unit.RATIO, interval=(ratio.low, ratio.high))
    return compare(Policy({KEY: Limit(maximum=limit)}), measure).standing


def one_run(
    subject: Opener, baseline: Opener, draw: Draw, budget_s: float, settle: Sequence[str] = tuple(LIMITS)
) -> dict[str, Any]:
    """Compare once, until these limits are settled, and tell what each of all would have said when it was, or at the end."""
    clock = SystemClock()
    contest = Contest(subject, baseline, draw, Workload(), clock)
    outcomes: dict[str, Outcome] = {}

    def settled() -> bool:
        ratio = contest.ratio()
        for name, limit in LIMITS.items():
            found = standing(ratio, limit)
            if name not in outcomes or outcomes[name].standing is Standing.UNDECIDED:
                outcomes[name] = Outcome(found, contest.rounds)
        return all(outcomes[name].standing is not Standing.UNDECIDED for name in settle)

    begin = clock.now_ns()
    run(contest, UntimedPacer(), settled, clock, baseline_name="last release", budget_s=budget_s)
    settled()
    ratio, machine = contest.ratio(), contest.disturbance()
    return {
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "rounds": ratio.rounds,
        "seconds": (clock.now_ns() - begin) / 1e9,
        "calm": machine.calm,
        "held_up": machine.held_up,
        "outcomes": {name: [outcome.standing.value, outcome.rounds] for name, outcome in outcomes.items()},
        "log_ratios": [round(one, 5) for one in contest.log_ratios()],
    }


def delayed(opener: Opener, factor: float) -> Opener:
    """Spin after each call until it has taken so many times as long: a slowdown that is exact by construction."""
    clock = SystemClock()

    def open_side() -> Answer:
        answer = opener()

        def slower(texts: Sequence[str]) -> object:
            begin = clock.now_ns()
            found = answer(texts)
            end = begin + (clock.now_ns() - begin) * factor
            while clock.now_ns() < end:
                pass
            return found

        return slower

    return open_side


def heavier(artifact: Artifact, variant: Variant, columns: int, folder: Path) -> Candidate:
    """Make a graph that multiplies the embeddings by another matrix, whose product counts for nothing."""
    shutil.copytree(artifact.folder, folder)
    path = open_artifact(folder).model_path(variant)
    model = onnx.load(path)
    graph = model.graph
    source = next(
        node.output[0] for node in graph.node if "LayerNorm" in node.op_type or "layer_norm" in node.name.lower()
    )
    matrix = np.random.default_rng(0).standard_normal((HIDDEN, columns), np.float32)
    graph.initializer.extend(
        [onnx.numpy_helper.from_array(matrix, "ballast"), onnx.numpy_helper.from_array(np.float32(1e-30), "nothing")]
    )
    last = next(node for node in graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "light_logits"
    make = onnx.helper.make_node
    graph.node.extend(
        [
            make("MatMul", [source, "ballast"], ["heavy"]),
            make("ReduceMean", ["heavy"], ["heavy_mean"], keepdims=0),
            make("Mul", ["heavy_mean", "nothing"], ["almost_nothing"]),
            make("Add", ["light_logits", "almost_nothing"], ["logits"]),
        ]
    )
    onnx.save(model, path)
    return Candidate(open_artifact(folder), variant)


def opener_of(model: Candidate) -> Opener:
    """Open a model anew, as the suite does."""
    return lambda: answering(model.reopened())


def true_ratio(subject: Opener, baseline: Opener, draw: Draw, rounds: int = LOOKS[-1]) -> Ratio:
    """Measure a ratio for longer than the suite would, to know what was planted."""
    contest = Contest(subject, baseline, draw, Workload(), SystemClock())
    for _ in range(rounds * contest.plan.pairs_per_round):
        contest.before()
        contest.subject()
        contest.after()
    return ratio_of(contest.log_ratios())


def calibrated(
    artifact: Artifact, variant: Variant, model: Candidate, draw: Draw, place: Path
) -> dict[float, Candidate]:
    """Find graphs that are heavier by each slowdown: the cost of two sizes gives the size of the others, on a line."""
    sizes = (512, 2048)
    costs = [
        true_ratio(
            opener_of(heavier(artifact, variant, size, place / f"probe-{size}")), opener_of(model), draw, 48
        ).value
        for size in sizes
    ]
    per_column = (costs[1] - costs[0]) / (sizes[1] - sizes[0])
    print(f"ballast: {sizes[0]} columns {costs[0]:.4f}, {sizes[1]} columns {costs[1]:.4f}", flush=True)
    found = {}
    for factor in SLOWDOWNS:
        columns = max(round(sizes[0] + (factor - costs[0]) / per_column), 8)
        found[factor] = heavier(artifact, variant, columns, place / f"slower-{factor}")
        ratio = true_ratio(opener_of(found[factor]), opener_of(model), draw)
        print(
            f"heavier by {factor}: {columns} columns, really {ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f})",
            flush=True,
        )
    return found


def repeat(kind: str, runs: int, output: Path, measure: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """Run so many times, half of them beside a busy neighbour, in groups of five."""
    done = [json.loads(line) for line in output.read_text().splitlines()] if output.is_file() else []
    found = [entry for entry in done if entry["kind"] == kind]
    for number in range(len(found), runs):
        busy = number // 5 % 2 == 1
        with neighbour(busy=busy):
            entry = {"kind": kind, "busy": busy, **measure()}
        with output.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        found.append(entry)
    show(kind, found)
    return found


def show(kind: str, runs: Sequence[dict[str, Any]]) -> None:
    """Print what was decided how often, and how long it took."""
    for busy in (False, True):
        some = [one for one in runs if one["busy"] is busy]
        if not some:
            continue
        ratios = sorted(one["ratio"] for one in some)
        print(f"{kind}, {'neighbour busy' if busy else 'quiet'}: {len(some)} runs, ratio {ratios[0]:.3f} to {ratios[-1]:.3f}, "
              f"median {median(ratios):.3f}; {sum(not one['calm'] for one in some)} not calm", flush=True)  # fmt: skip
        for name in LIMITS:
            decided = Counter(one["outcomes"][name][0] for one in some)
            rounds = sorted(one["outcomes"][name][1] for one in some)
            text = ", ".join(f"{what} {number}" for what, number in sorted(decided.items()))
            print(f"    limit {name}: {text}; rounds {median(rounds):g}, at most {rounds[-1]}", flush=True)
        seconds = sorted(one["seconds"] for one in some)
        print(
            f"    seconds until settled: median {median(seconds):.1f}, at most {seconds[-1]:.1f}",
            flush=True,
        )


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["same", "slower", "threads"])
    parser.add_argument("--candidate", type=Path, required=True)
    parser.add_argument("--variant", choices=[one.value for one in Variant], default="int8")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds that one run may take")
    parser.add_argument("--output", type=Path, default=Path("latency_gate.jsonl"))
    options = parser.parse_args()
    artifact, variant = open_artifact(options.candidate), Variant(options.variant)
    model = Candidate(artifact, variant)
    texts = read_labelled_set(default_data(), labels=model.labels).texts
    draw = draw_by_length(
        texts, [sum(len(window.input_ids) for window in query.windows) for query in model.encode(texts)]
    )
    plain = opener_of(model)
    if options.what == "same":
        repeat("same", options.runs, options.output, partial(one_run, plain, plain, draw, options.budget))
    elif options.what == "threads":
        many = opener_of(Candidate(artifact, variant, threads=usable_cpus()))
        repeat("threads", options.runs, options.output, partial(one_run, many, many, draw, options.budget))
    else:
        with tempfile.TemporaryDirectory() as place:
            graphs = calibrated(artifact, variant, model, draw, Path(place))
            for factor in SLOWDOWNS:
                slow = delayed(plain, factor)
                heavy = opener_of(graphs[factor])
                for name, side in (("delay", slow), ("heavier graph", heavy)):
                    # settled by the strict limit alone: a slowdown of exactly the other one never is
                    run = partial(one_run, side, plain, draw, options.budget, STRICT)
                    repeat(f"{name} {factor}", options.runs // 2, options.output, run)


if __name__ == "__main__":
    main()
