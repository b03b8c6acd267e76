"""The program of a contender's process: `python -m baselines.worker`, in the folder `benchmarks`.

Reads one JSON object a line, the first says what to open; answers each with one line, `{"ok": …}` or `{"error": …}`. The
clock is in here, so the pipes cost no contender anything. What libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from baselines.contender import Call, Contender, Level, packed, unpacked_feed

FAMILIES = ("duel", "intel", "lean", "ortmodel", "pytorch", "spacy_blank")


@dataclass(slots=True)
class Desk:
    """A contender with the calls that were prepared for it."""

    contender: Contender
    inputs: dict[str, tuple[Level, list[Any]]] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)

    def answer(self, request: Mapping[str, Any]) -> Any:
        """Do what one request asks.

        Raises:
            ValueError: there is no such operation.
        """
        match request["op"]:
            case "reopen":
                return self._reopen()
            case "load":
                return self._load(request["key"], Level(request["level"]), request["inputs"])
            case "time":
                return self._time(request["key"], request["indices"])
            case "logits":
                return packed(self.contender.logits(unpacked_feed(request["feed"])))
            case "measure":
                return self.contender.measure(request["name"], request["settings"])
            case unknown:
                message = f"there is no operation {unknown!r}"
                raise ValueError(message)

    def _reopen(self) -> None:
        self.calls.clear()  # they hold the old session
        gc.collect()
        self.contender.reopen()
        for key in self.inputs:
            self._prepare(key)

    def _load(self, key: str, level: Level, inputs: Sequence[Any]) -> None:
        self.inputs[key] = (level, list(inputs))
        self._prepare(key)

    def _prepare(self, key: str) -> None:
        level, inputs = self.inputs[key]
        match level:
            case Level.MODEL:
                self.calls[key] = [self.contender.model_call(unpacked_feed(one)) for one in inputs]
            case Level.TEXT:
                self.calls[key] = [self.contender.text_call(one) for one in inputs]
            case Level.BULK:
                self.calls[key] = [self.contender.bulk_call(one) for one in inputs]

    def _time(self, key: str, indices: Sequence[int]) -> list[int]:
        calls = [self.calls[key][index] for index in indices]
        found = []
        gc.disable()
        try:
            for call in calls:
                begin = time.perf_counter_ns()
                call()
                found.append(time.perf_counter_ns() - begin)
        finally:
            gc.enable()
        return found


def opened(order: Mapping[str, Any]) -> Contender:
    """Open the contender that the first line names.

    Raises:
        ValueError: there is no such family.
    """
    if order["family"] not in FAMILIES:
        message = f"there is no family {order['family']!r}. Known: {', '.join(FAMILIES)}."
        raise ValueError(message)
    if order["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, order["cpus"])
    module = importlib.import_module(f"baselines.{order['family']}")
    contender: Contender = module.open_contender(order["settings"], order["threads"])
    return contender


def serve(questions: IO[str], answers: IO[str]) -> None:
    """Answer until there are no more questions; an error is an answer too."""
    desk: Desk | None = None
    for line in questions:
        try:
            request = json.loads(line)
            if desk is None:
                desk, found = Desk(opened(request)), None
            else:
                found = desk.answer(request)
            reply = {"ok": found}
        except Exception as err:  # whatever a foreign package raises; the other end says it with the contender's name
            reply = {"error": f"{type(err).__name__}: {err}"}
        answers.write(f"{json.dumps(reply)}\n")
        answers.flush()


def main() -> None:
    """Keep the pipe for answers to ourselves: whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
