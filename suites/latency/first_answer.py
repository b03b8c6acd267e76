"""The program of a fresh process: answer one query, say what that took, and go.

Run as a file, not as a module, so that what it imports is what answering needs and nothing of the suite.
Reads one JSON line, `{"way", "folder", "variant", "query"}`; prints one, after `MARK`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MARK = "first-answer "
WATCHED = ("torch", "transformers", "optimum")


def _lean(folder: str, variant: str | None, query: str) -> Sequence[object]:
    from harness.inference import NERInference

    return NERInference(folder, use_onnx=True, variant=variant).extract_detailed(query)["raw_entities"]


def _openvino(folder: str, variant: str | None, query: str) -> Sequence[object]:
    from harness.inference import NERInference

    return NERInference(folder, variant=variant, runtime="openvino").extract_detailed(query)["raw_entities"]


def _pytorch(folder: str, _variant: str | None, query: str) -> Sequence[object]:
    from harness.inference import NERInference

    return NERInference(folder, use_onnx=False).extract_detailed(query)["raw_entities"]


def _optimum(folder: str, variant: str | None, query: str) -> Sequence[object]:
    from optimum.onnxruntime import ORTModelForTokenClassification
    from transformers import AutoTokenizer, TokenClassificationPipeline

    file_name = "model_quantized.onnx" if variant == "int8" else "model.onnx"
    model = ORTModelForTokenClassification.from_pretrained(folder, file_name=file_name, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    pipeline: Any = TokenClassificationPipeline
    return list(pipeline(model=model, tokenizer=tokenizer, aggregation_strategy="simple")(query))


WAYS: dict[str, Callable[[str, str | None, str], Sequence[object]]] = {
    "lean": _lean,
    "openvino": _openvino,
    "pytorch": _pytorch,
    "optimum": _optimum,
}


def peak_memory_kib() -> int:
    """The most memory this process has held at once (peak resident set).

    Linux: `VmHWM`. Not `ru_maxrss`, which a child takes over from the parent it was forked from (kernel,
    `exec_mmap` in fs/exec.c), so that every child of a process with PyTorch in it seems as big as PyTorch.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak  # bytes there, KiB elsewhere: getrusage(2)


def main() -> None:
    """Answer, report, and leave without tearing anything down."""
    request = json.loads(sys.stdin.readline())
    entities = WAYS[request["way"]](request["folder"], request["variant"], request["query"])
    report = {
        "entities": len(entities),
        "modules": len(sys.modules),
        "watched": [name for name in WATCHED if name in sys.modules],
        "peak_memory_kib": peak_memory_kib(),
    }
    sys.stdout.write(f"\n{MARK}{json.dumps(report)}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
