"""The two cache regimes that limits are not held in: call after call, and a pause before each call."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

from harness.paired.contest import Answer
from harness.paired.draw import Texts
from harness.timing import Clock

# The first call of a block brings the weights into the cache; the others find them there.
HOT_CALLS = 4
# Longer than onnxruntime's and OpenMP's threads spin, and than a core takes to fall into its deeper idle states.
PAUSE_S = 0.02
IDLE_CALLS = 1


def hot_log_ratio(subject: Answer, baseline: Answer, texts: Texts, clock: Clock, *, subject_first: bool) -> float:
    """Compare a block of calls of the one with a block of calls of the other, without the first call of each."""

    def block(answer: Answer) -> float:
        return median([_time(answer, texts, clock) for _ in range(HOT_CALLS)][1:])

    return _in_turn(block, subject, baseline, subject_first=subject_first)


def idle_log_ratio(subject: Answer, baseline: Answer, texts: Texts, clock: Clock, *, subject_first: bool) -> float:
    """Compare calls that each come after a pause."""

    def paused(answer: Answer) -> float:
        durations = []
        for _ in range(IDLE_CALLS):
            clock.pause(PAUSE_S)
            durations.append(_time(answer, texts, clock))
        return median(durations)

    return _in_turn(paused, subject, baseline, subject_first=subject_first)


def _in_turn(measure: Callable[[Answer], float], subject: Answer, baseline: Answer, *, subject_first: bool) -> float:
    if subject_first:
        one = measure(subject)
        return math.log(one / measure(baseline))
    other = measure(baseline)
    return math.log(measure(subject) / other)


def _time(answer: Answer, texts: Texts, clock: Clock) -> int:
    begin = clock.now_ns()
    answer(texts)
    return clock.now_ns() - begin
