"""The program of a fresh process that answers one query with transformers' pipeline on PyTorch.

Speaks as `suites/latency/first_answer.py` does, whose parts it takes from that file, after the answer and without the
packages around it: they would count as the pipeline's own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

_REPORTER = Path(__file__).resolve().parents[2] / "suites" / "latency" / "first_answer.py"


def main() -> None:
    """Answer, report, and leave without tearing anything down."""
    request = json.loads(sys.stdin.readline())
    from transformers import pipeline

    answer = pipeline("token-classification", model=request["folder"], aggregation_strategy="simple")
    entities = answer(request["query"])
    spec = importlib.util.spec_from_file_location("first_answer", _REPORTER)
    if spec is None or spec.loader is None:
        message = f"{_REPORTER} cannot be imported"
        raise ImportError(message)
    reporter = importlib.util.module_from_spec(spec)
    modules = len(sys.modules)
    spec.loader.exec_module(reporter)
    report = {
        "entities": len(entities),
        "modules": modules,
        "watched": [name for name in reporter.WATCHED if name in sys.modules],
        "peak_memory_kib": reporter.peak_memory_kib(),
    }
    sys.stdout.write(f"\n{reporter.MARK}{json.dumps(report)}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
