"""Show a search: its front as a table, a figure and a document. Decides nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.documents import write_json
from harness.search.front import Entry
from harness.search.search import Outcome

SEARCH_FILE = "search.json"
FIGURE_FILE = "search.svg"
_SCHEMA = "harness-recipe-search"
# 1 (2026-11): first.
_VERSION = 1
_WIDTH_OF_FILES = 140


def search_document(outcome: Outcome) -> dict[str, Any]:
    """Write everything that was measured, and what was taken."""
    choice = outcome.choice
    return {
        "schema": _SCHEMA,
        "version": _VERSION,
        "chosen": None if choice is None else choice.entry.recipe.name,
        "reason": None if choice is None else choice.reason,
        "out_of_time": outcome.out_of_time,
        "recipes": [_row(entry, on_front=entry in outcome.front) for entry in outcome.entries],
        "sensitivity": [{"product": name, "mean_logit_difference": value} for name, value in outcome.sensitivity],
        "failed": [{"recipe": name, "reason": reason} for name, reason in outcome.failed],
    }


def _row(entry: Entry, *, on_front: bool) -> dict[str, Any]:
    return {
        "recipe": entry.recipe.to_json(),
        "fidelity": asdict(entry.fidelity),
        "latency": None if entry.latency is None else asdict(entry.latency),
        "on_front": on_front,
        "refusal": entry.refusal,
    }


def write_search(outcome: Outcome, folder: Path) -> None:
    """Write the document and the figure into a folder."""
    write_json(folder / SEARCH_FILE, search_document(outcome))
    draw_front(outcome, folder / FIGURE_FILE)


def print_search(outcome: Outcome, console: Console | None = None) -> None:
    """Print the recipes that were timed, the fastest first, on standard error."""
    console = console or _console()
    table = Table(
        title="recipes, by latency", caption="latency: of the usual recipe's, in turns with it; * on the front"
    )
    table.add_column("recipe")
    for heading in ("latency", "interval", "MB", "logits", "queries changed", "largest margin", "F1 lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    timed = sorted((entry for entry in outcome.entries if entry.latency), key=_ratio)
    for entry in timed:
        table.add_row(*_cells(entry, outcome))
    console.print(table)
    if outcome.choice is not None:
        console.print(
            f"taken: {outcome.choice.entry.recipe.name}: {outcome.choice.reason}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _console() -> Console:
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=_WIDTH_OF_FILES)


def _ratio(entry: Entry) -> float:
    return entry.latency.ratio if entry.latency else float("inf")


def _cells(entry: Entry, outcome: Outcome) -> list[str]:
    found, latency = entry.fidelity, entry.latency
    interval = f"{latency.low:.2f}-{latency.high:.2f}" if latency and latency.rounds else ""
    taken = outcome.choice is not None and entry is outcome.choice.entry
    return [
        escape(entry.recipe.name) + (" *" if entry in outcome.front else ""),
        f"{_ratio(entry):.2f}",
        interval,
        f"{found.size_bytes / 1e6:.1f}",
        f"{found.mean_logit_difference:.3f}",
        f"{found.changed_queries:.2%}",
        f"{found.largest_flipped_margin:.2f}",
        f"{found.f1_loss:+.4f}",
        "taken" if taken else escape(entry.refusal),
    ]


def draw_front(outcome: Outcome, path: Path) -> None:
    """Draw latency against fidelity, the size of a point being the file's; SVG or PNG by the name's ending."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    timed = [entry for entry in outcome.entries if entry.latency]
    with mpl.rc_context({"svg.hashsalt": "harness", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for entry in timed:
            _draw_point(axes, entry, outcome)
        edge = sorted((entry for entry in outcome.front), key=_ratio)
        axes.plot([_ratio(entry) for entry in edge], [_error(entry) for entry in edge], "--", color="0.6", linewidth=1)
        axes.set_xlabel("latency of a query, of the usual recipe's")
        axes.set_ylabel("mean logit difference to FP32")
        axes.set_title("recipes: to the left is faster, down is more faithful, small is a small file")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _error(entry: Entry) -> float:
    return entry.fidelity.mean_logit_difference


def _draw_point(axes: Any, entry: Entry, outcome: Outcome) -> None:
    taken = outcome.choice is not None and entry is outcome.choice.entry
    colour = "tab:green" if taken else "tab:gray" if entry.refusal else "tab:blue"
    size = entry.fidelity.size_bytes / 1e6
    axes.scatter([_ratio(entry)], [_error(entry)], s=4 * size, color=colour, alpha=0.8)
    axes.annotate(
        entry.recipe.name,
        (_ratio(entry), _error(entry)),
        fontsize=7,
        xytext=(4, 4),
        textcoords="offset points",
        parse_math=False,
    )
