"""A candidate among threads, forks and processes; what it refuses to be opened for."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from harness.artifact import MANIFEST, Variant, open_artifact
from harness.candidate import Candidate
from harness.errors import ArtifactError
from harness.inference import NERInference
from harness.tagging import pad

_LONG_ENOUGH_S = 120


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_on_one_instance(tiny_export, tiny_queries, threads):
    """Sixteen threads that ask one instance, one by one and in batches, get the answers of one thread."""
    ner = NERInference(tiny_export, threads=threads)
    expected = [ner.extract(query) for query in tiny_queries]
    with ThreadPoolExecutor(16) as pool:
        one_by_one = [pool.submit(ner.extract, query) for query in tiny_queries * 3]
        together = [pool.submit(ner.batch_extract, tiny_queries, 5) for _ in range(8)]
        streams = [pool.submit(lambda: list(ner.extract_stream(iter(tiny_queries), window=9))) for _ in range(8)]
        assert [answer.result() for answer in one_by_one] == expected * 3
        assert all(answer.result() == expected for answer in [*together, *streams])


_FORKING = """
import os, sys, threading
from harness.inference import NERInference

folder, threads, busy = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "busy"
queries = ["bus from goa to mumbai", "ac sleeper to chennai on friday", "to goa"] * 20
ner = NERInference(folder, threads=threads, workers=2)
expected = ner.batch_extract(queries)
ended = threading.Event()

def ask():
    while not ended.is_set():
        ner.extract(queries[0])

asking = threading.Thread(target=ask)
if busy:
    asking.start()
for _ in range(5 if busy else 1):
    child = os.fork()
    if child == 0:
        right = [ner.extract(query) for query in queries] == expected == ner.batch_extract(queries)
        sys.exit(0 if right else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ner.batch_extract(queries) == expected
ended.set()
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system does not fork")
@pytest.mark.parametrize("busy", ["idle", "busy"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_answers(tiny_export, tmp_path, threads, busy):
    """After a fork, both processes answer right, alone and in batches, and end; also if a thread was asking meanwhile."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKING, str(tiny_export), str(threads), busy]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=_LONG_ENOUGH_S
    )  # a child that hangs would hang for good
    assert done.returncode == 0, done.stderr


def test_an_idle_session_of_one_thread_is_shared_with_a_child(tiny_export):
    """A fork leaves a session of one thread in place, for its memory is shared, and another behind."""
    kept, left = (Candidate(open_artifact(tiny_export), Variant.FP32, threads=threads) for threads in (1, 2))
    before = kept._session
    for candidate in (kept, left):
        candidate.after_fork()
    assert kept._session is before
    assert left._session is None
    (query,) = left.encode(["bus to goa"])
    assert np.allclose(left.logits(pad(query.windows, 0)), kept.logits(pad(query.windows, 0)), atol=1e-5)


def test_other_processes_open_the_same_release(tiny_quantized, tiny_queries):
    """A spawned process that is sent an instance answers as this one does, with the same variant and threads."""
    ner = NERInference(tiny_quantized, variant="fp32", threads=2, workers=2)
    ner.batch_extract(tiny_queries, 4)  # its threads are started
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(ner.batch_extract, tiny_queries).result() == ner.batch_extract(tiny_queries)
    again = pickle.loads(pickle.dumps(ner))
    assert again._model.settings == ner._model.settings
    assert again._model.variant is Variant.FP32
    assert again._plain is again._model
    assert again.batch_extract_detailed(tiny_queries) == ner.batch_extract_detailed(tiny_queries)


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "tokenizer.json", MANIFEST])
def test_a_release_that_changed_is_not_opened_elsewhere(export_copy, tmp_path, name):
    """Neither a release that changed since it was opened is sent, nor one that changed on its way opened."""
    ner = NERInference(export_copy)
    sent = pickle.dumps(ner)
    changed = (export_copy / name).read_bytes() + (b"\n" if name != "model.onnx" else b"")
    (tmp_path / "new").write_bytes(changed)
    if name == "model.onnx":
        shutil.copy(export_copy / "tokenizer.json", export_copy / "added.json")
    shutil.move(tmp_path / "new", export_copy / name)
    with pytest.raises(ArtifactError, match="was changed since"):
        pickle.loads(sent)
    with pytest.raises(ArtifactError, match="was changed since"):
        pickle.dumps(ner)


def dynamic(folder):
    """Quantize with scales that are made of all that is in a run."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from harness.quiet import quiet_libraries

    with quiet_libraries():
        quantize_dynamic(str(folder / "model.onnx"), str(folder / "model_quantized.onnx"), weight_type=QuantType.QInt8)
    (folder / MANIFEST).unlink()
    return folder


def test_dynamic_scales_are_never_shared(export_copy, tiny_queries):
    """With dynamic scales, a batch gives each query the very logits that it has alone."""
    ner = NERInference(dynamic(export_copy), variant="int8", workers=2)
    assert ner._model.answers_depend_on_mates
    assert ner.batch_extract_detailed(tiny_queries) == [ner.extract_detailed(query) for query in tiny_queries]


@pytest.mark.parametrize(("value", "alone"), [(0, False), (1, True), (None, False)])
def test_the_contract_is_obeyed(tiny_quantized, tmp_path, value, alone):
    """A release that was measured to depend on batch mates is run a query at a time, whatever its graph looks like."""
    folder = shutil.copytree(tiny_quantized, tmp_path / "onnx")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    measured = {} if value is None else {"parity.int8.batch_dependent_queries": {"value": value, "unit": "count"}}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "contract": measured}), encoding="utf-8")
    assert Candidate(open_artifact(folder), Variant.INT8).answers_depend_on_mates is alone
    assert not Candidate(open_artifact(folder), Variant.FP32).answers_depend_on_mates


def test_a_variant_for_other_cpus_is_refused(tiny_quantized, tmp_path):
    """A variant whose manifest entry names instructions that this CPU lacks is not opened; the other variant is."""
    folder = shutil.copytree(tiny_quantized, tmp_path / "onnx")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    needed = {"safe_on_every": False, "needs_one_of": ["instructions of nobody's"], "largest_pair": None, "why": "test"}
    manifest["variants"]["int8"]["cpu"] = needed
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="instructions of nobody's"):
        NERInference(folder, variant="int8")
    assert NERInference(folder, variant="fp32").extract("bus to goa")
