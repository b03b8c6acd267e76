"""Our session and that of the usual recipe in one process, in turns: `harness.paired`, as the recipe search compares.

The other contenders sit in processes of their own, and the switch between these costs both sides alike, which draws
ratios towards 1; here nothing lies between two calls but the workload that watches the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from baselines.contender import Call, Feed, Settings, Unsupporting, unpacked_feed
from baselines.lean import bare_run
from baselines.ortmodel import PlainSession
from harness.artifact import Variant, open_artifact
from harness.candidate import Candidate
from harness.paired.contest import Answer, Contest, Opener, garbage_kept
from harness.paired.draw import Texts
from harness.paired.regimes import hot_log_ratio
from harness.paired.workload import Workload
from harness.tagging import Batch
from harness.timing import SystemClock

_HOT_BLOCKS = 8


def open_contender(settings: Settings, threads: int) -> Duel:
    """Name the two: `settings["folder"]` and `settings["variant"]` of ours, and the file `settings["usual"]`."""
    artifact = open_artifact(Path(settings["folder"]))
    return Duel(Candidate(artifact, Variant(settings["variant"])), settings["usual"], threads)


def _answering(calls: Mapping[str, Call]) -> Answer:
    """Answer by the name of a prepared input."""

    def answer(names: Texts) -> object:
        return [calls[name]() for name in names]

    return answer


class Duel(Unsupporting):
    """Both models; opened anew for every round."""

    def __init__(self, candidate: Candidate, usual: str, threads: int) -> None:
        """Keep what the sessions are opened from."""
        self._candidate, self._usual, self._threads = candidate, usual, threads

    def _open_ours(self, feeds: Mapping[str, Feed]) -> Answer:
        model = self._candidate.reopened()
        return _answering({name: bare_run(partial(model.logits, Batch(**feed))) for name, feed in feeds.items()})

    def _open_usual(self, feeds: Mapping[str, Feed]) -> Answer:
        session = PlainSession(self._usual, self._threads)
        return _answering({name: session.model_call(feed) for name, feed in feeds.items()})

    def measure(self, name: str, settings: Settings) -> dict[str, list[float]]:
        """Give one log ratio per round (`alternating` or `hot`), and those of a workload beside the calls to itself."""
        feeds = {str(number): unpacked_feed(one) for number, one in enumerate(settings["inputs"])}
        ours, usual = partial(self._open_ours, feeds), partial(self._open_usual, feeds)
        measures: dict[str, Any] = {"alternating": alternating, "hot": hot}
        if name not in measures:
            return super().measure(name, settings)
        found: dict[str, list[float]] = measures[name](ours, usual, list(feeds), settings["rounds"])
        return found


def alternating(ours: Opener, usual: Opener, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Run rounds of pairs, ABBA."""
    contest = Contest(ours, usual, lambda block: [names[block % len(names)]], Workload(), SystemClock())
    with garbage_kept():
        for _ in range(rounds * contest.plan.pairs_per_round):
            contest.before()
            contest.subject()
            contest.after()
    beside = [float(one) for one in (*contest.beside_subject_ns, *contest.beside_baseline_ns)]
    return {"log_ratios": contest.log_ratios(), "control_ns": beside}


def hot(ours: Opener, usual: Opener, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Run rounds of hot blocks; each round's sessions are new, and in every other one ours is opened first."""
    clock, found = SystemClock(), []
    with garbage_kept():
        for number in range(2 * rounds):
            first, second = (ours, usual) if number % 2 else (usual, ours)
            opened = (first(), second())
            subject, baseline = opened if number % 2 else opened[::-1]
            for side in opened:
                side([names[0]])
            ratios = [
                hot_log_ratio(subject, baseline, [names[block % len(names)]], clock, subject_first=block % 2 == 0)
                for block in range(_HOT_BLOCKS)
            ]
            found.append(mean(ratios))
    return {"log_ratios": [mean(found[number : number + 2]) for number in range(0, len(found), 2)]}
