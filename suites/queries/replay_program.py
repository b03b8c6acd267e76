"""The program of a fresh process: answer texts with nothing but the runtime, and write down how.

Run as a file by an interpreter of its own (`python -I`), in which nothing that only the `release` extra installs
can be imported. Reads `request.json` in the folder that it is given, writes `answers.jsonl` beside it, a line a
text. Ends when its standard input does: whoever asked has gone. Compares nothing.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

REQUEST, ANSWERS = "request.json", "answers.jsonl"
# What the `release` extra adds to the runtime (pyproject.toml).
ABSENT = (
    "hypothesis", "jinja2", "markupsafe", "matplotlib", "onnx", "optimum", "packaging", "psutil", "pytest", "pytest_benchmark",
    "rich", "safetensors", "seqeval", "torch", "transformers",
)  # fmt: skip


def _leave_with_the_asker() -> None:
    # not sys.stdin.read: its lock cannot be taken while the interpreter shuts down
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    """Answer the request in the folder named on the command line."""
    threading.Thread(target=_leave_with_the_asker, daemon=True).start()
    place = Path(sys.argv[1])
    request = json.loads((place / REQUEST).read_text(encoding="ascii"))
    # the packages of the process that asks, of which `-I` may leave some out
    sys.path[:] = request["path"]
    # None in place of a module makes its import raise ModuleNotFoundError
    sys.modules.update(dict.fromkeys(ABSENT))  # type: ignore[arg-type]
    from suites.queries.watched import Watched

    watched = Watched(request["folder"], variant=request["variant"], runtime=request["runtime"])
    with (place / ANSWERS).open("w", encoding="ascii") as stream:
        for group in request["groups"]:
            for answer in watched.answers(group["texts"], group["batch_size"]):
                stream.write(f"{json.dumps(answer.to_json())}\n")


if __name__ == "__main__":
    main()
