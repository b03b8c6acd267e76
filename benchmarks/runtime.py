#!/usr/bin/env python3
"""What the runtime adds to a model run, and what each of its choices gains, side by side in one process.

    python benchmarks/runtime.py --candidate models/bus_ner_onnx --queries 300

Every row is a ratio of two ways that take turns on the same queries, in an order that changes from query to query (from
round to round, for lists); shown are the median of the paired ratios and the quarters around it. A ratio below 1 means
that the first way is faster. CPU time is that of the whole process.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import onnxruntime
from rich.console import Console
from rich.table import Table

from harness.artifact import Variant, open_artifact
from harness.batches import Budget, Crew
from harness.candidate import Candidate
from harness.errors import HarnessError
from harness.inference import NERInference
from harness.judging_data import default_data
from harness.labelled_data import read_labelled_set
from harness.machine import usable_cpus
from harness.serving import ServingSettings
from harness.tagging import pad
from harness.timing import SystemClock

_SEED = 20261123
_WARM_UP = 20
_REST_S = 0.1
_NS_PER_MS = 1e6
_WIDTH_OF_FILES = 120
_BUDGETS = (64, 128, 256, 512, 1024)

Way = Callable[[Any], object]
_now_ns = SystemClock().now_ns


@dataclass(frozen=True, slots=True)
class Compared:
    """Two ways that took turns: the paired ratios of their times."""

    title: str
    ratios: tuple[float, ...]

    def cells(self) -> tuple[str, ...]:
        """Write the median and the quarters around it."""
        low, middle, high = quantiles(self.ratios, n=4)
        return self.title, f"{len(self.ratios)}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 2 if the export cannot be used."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES, highlight=False)
    try:
        measured = list(rows(options))
        burnt = list(spinning(options))
    except HarnessError as err:
        print(err, file=sys.stderr)
        return 2
    found = Table(title=f"{usable_cpus()} usable CPUs, onnxruntime {onnxruntime.__version__}")
    found.add_column("first way / second way", no_wrap=True)
    for heading in ("pairs", "median", "quarters"):
        found.add_column(heading, justify="right")
    for row in measured:
        found.add_row(*row.cells())
    console.print(found)
    for line in burnt:
        console.print(line)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--candidate", type=Path, default=Path("models/bus_ner_onnx"), metavar="DIR")
    parser.add_argument("--variant", choices=[variant.value for variant in Variant])
    parser.add_argument("--queries", type=int, default=300, metavar="N", help="queries, one at a time (default: 300)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds over lists (default: 7)")
    parser.add_argument("--list", type=int, default=300, metavar="N", help="queries of a list (default: 300)")
    return parser.parse_args(arguments)


def rows(options: argparse.Namespace) -> Iterator[Compared]:
    """Compare one pair of ways after the other."""
    one = NERInference(options.candidate, variant=options.variant, threads=1)
    two = NERInference(options.candidate, variant=options.variant, threads=2)
    texts = queries_of(one, max(options.queries, options.list))
    single, together = texts[: options.queries], [texts[: options.list]] * options.rounds
    model = candidate_of(one)
    feeds = {text: feed_of(model, text) for text in single}
    session = model.session
    outputs = [entry.name for entry in session.get_outputs()]

    def bare(text: str) -> object:
        return session.run(outputs, feeds[text])

    yield compared("extract() / its model run alone", one.extract, bare, single)
    title = "the same, CPU time of the calling thread"
    yield compared(title, one.extract, bare, single, time.thread_time_ns)
    yield compared("one query: 2 threads / 1", two.extract, one.extract, single)
    plain = unsorted(model)
    yield compared("list: batch_extract / unsorted batches of 32", one.batch_extract, plain, together)
    yield compared("list: batch_extract / with one 2-thread session", one.batch_extract, two.batch_extract, together)
    another = Crew(TakesTurns([model, model.reopened()]), usable_cpus())
    shared = Crew(model, usable_cpus())
    budget = Budget(32)
    yield compared("list: a session a worker / one for all", tags(another, budget), tags(shared, budget), together)
    for tokens in _BUDGETS:
        other = Budget(max(_BUDGETS), tokens)
        title = f"list: at most {tokens} tokens a run / {budget.tokens}"
        yield compared(title, tags(shared, other), tags(shared, budget), together)


class TakesTurns:
    """Sessions of one model that are used in turn."""

    def __init__(self, models: Sequence[Candidate]) -> None:
        self._models = models
        self._next = 0
        self.labels, self.pad_token_id, self.encode = models[0].labels, models[0].pad_token_id, models[0].encode

    def logits(self, batch: Any) -> Any:
        """Run the next one."""
        self._next += 1
        return self._models[self._next % len(self._models)].logits(batch)


def queries_of(ner: NERInference, count: int) -> list[str]:
    """Draw bundled queries, the same each time."""
    texts = read_labelled_set(default_data(), labels=ner.labels).texts
    return random.Random(_SEED).sample(texts, min(count, len(texts)))  # noqa: S311  # no secret


def candidate_of(ner: NERInference) -> Candidate:
    """The model behind an instance."""
    model = ner._model  # noqa: SLF001  # what it adds to this is measured
    assert isinstance(model, Candidate)
    return model


def feed_of(model: Candidate, text: str) -> dict[str, Any]:
    """Make ready what the session takes for one query."""
    (query,) = model.encode([text])
    batch = pad(query.windows[:1], model.pad_token_id)
    return {name: getattr(batch, name) for name in model.inputs}


def unsorted(model: Candidate) -> Way:
    """Run batches of 32 as they come, in one session: what most programs do."""

    def way(texts: Sequence[str]) -> object:
        for begin in range(0, len(texts), 32):
            windows = [window for query in model.encode(texts[begin : begin + 32]) for window in query.windows]
            model.logits(pad(windows, model.pad_token_id))
        return None

    return way


def tags(crew: Crew, budget: Budget) -> Way:
    """Tag a list within a budget."""
    return lambda texts: list(crew.tagged(texts, budget, len(texts)))


def compared(
    title: str, first: Way, second: Way, inputs: Sequence[Any], now_ns: Callable[[], int] = _now_ns
) -> Compared:
    """Let two ways take turns."""

    def timed(way: Way, given: Any) -> int:
        begin = now_ns()
        way(given)
        return now_ns() - begin

    for given in inputs[: _WARM_UP if isinstance(inputs[0], str) else 1]:
        first(given), second(given)
    ratios = []
    with garbage_kept():
        for turn, given in enumerate(inputs):
            if turn % 2:
                behind, ahead = timed(second, given), timed(first, given)
            else:
                ahead, behind = timed(first, given), timed(second, given)
            ratios.append(ahead / behind)
    return Compared(title, tuple(ratios))


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Have no collection fall into a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def spinning(options: argparse.Namespace) -> Iterator[str]:
    """Measure the CPU time that a process burns in a pause after a call of two threads, with and without spinning."""
    artifact = open_artifact(options.candidate)
    variant = Variant(options.variant) if options.variant else artifact.default_variant
    model = Candidate(artifact, variant)
    feed = feed_of(model, queries_of(NERInference(options.candidate), 1)[0])
    for stopped in ("1", "0"):
        settings = ServingSettings(2).session_options()
        settings.add_session_config_entry("session.force_spinning_stop", stopped)
        session = onnxruntime.InferenceSession(str(artifact.model_path(variant)), settings)
        burnt = []
        for _ in range(20):
            session.run(None, feed)
            begin = time.process_time_ns()
            time.sleep(_REST_S)
            burnt.append((time.process_time_ns() - begin) / _NS_PER_MS)
        way = "stopped" if stopped == "1" else "left as it is"
        yield f"CPU time burnt in the {_REST_S * 1000:.0f} ms after a call, spinning {way}: {quantiles(burnt, n=4)[1]:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
