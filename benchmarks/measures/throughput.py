"""Many queries at once, on every core: how long a contender takes for all of them, relative to another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from baselines.contender import Level
from baselines.crew import Racer

from harness.paired.draw import BatchDraw
from harness.paired.estimate import ratio_of
from harness.progress import Progress
from measures.latency import CONFIDENCE, SEED, Times, alternating_round, round_log_ratio
from measures.names import THROUGHPUT
from measures.result import Result, of_ratio

KEY = "bulk"
# Inputs that everybody has loaded: a few queries to warm up with, then all of them.
_WARM_UP, _ALL = 0, 1
_WARM_UP_QUERIES = 256


def bulk_texts(texts: Sequence[str], wanted: int) -> list[str]:
    """Draw queries with the lengths and the order of real traffic: from the data, with replacement, unsorted."""
    return list(BatchDraw(texts, wanted)(0))


def bulk_inputs(texts: Sequence[str]) -> tuple[Level, list[list[str]]]:
    """Give what contenders load under `KEY`."""
    return Level.BULK, [list(texts[:_WARM_UP_QUERIES]), list(texts)]


def throughput_results(
    racers: Sequence[Racer], baseline: str, queries: int, rounds: int, progress: Progress
) -> list[Result]:
    """Let each answer all texts once a round, in turns; a ratio above 1 answers more queries in the same time.

    Args:
        racers: the contenders, who have loaded `bulk_inputs`, each with the threads that it chooses itself.
        baseline: the name of the one that the others are compared with.
        queries: how many queries that is.
        rounds: how often.
        progress: who is told.
    """
    random = np.random.default_rng(SEED)
    found: list[Times] = []
    for number in range(rounds):
        progress.now(f"throughput, round {number + 1} of {rounds}")
        for racer in racers:
            if racer.reopens and number:
                racer.reopen()
            racer.time(KEY, [_WARM_UP])
        found.append(alternating_round(racers, KEY, [_ALL], random))
    return [_of(racer.name, baseline, found, queries) for racer in racers if racer.name != baseline]


def _of(name: str, baseline: str, rounds: Sequence[Times], queries: int) -> Result:
    # how many queries in the same time: the other way round than how long
    log_ratios = [round_log_ratio(times[baseline], times[name]) for times in rounds]
    ratio = ratio_of(log_ratios, CONFIDENCE)
    return of_ratio(THROUGHPUT, name, f"{queries:,} queries", ratio, log_ratios=log_ratios)
