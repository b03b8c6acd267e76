"""The warm process judges as a fresh one does, survives what its sessions do, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest
from third_party import GOOD, ThirdParty

from harness.errors import CheckpointError
from harness.evidence import MeasureKey
from harness.judge import Question, judge
from harness.session import WarmProcess
from harness.suite import choose, discover
from harness.tagging import pad, tag
from harness.verdict import Decision, Limit, Policy, decide
from harness.warm import RememberingReference

PATIENCE_S = 50


@pytest.fixture
def warm(tiny_checkpoint, tmp_path):
    """Make a warm process that is ready, with the environment given."""
    made = []

    def start(environment=None):
        process = WarmProcess(tiny_checkpoint, tmp_path / "warm.log", environment)
        made.append(process.__enter__())
        process.wait_until_ready()
        return process

    yield start
    for process in made:
        process.__exit__(None, None, None)


def values(evidence):
    """Every measure but those that say what time it was."""
    return {str(found.key): found.value for found in evidence.measures}


def test_a_warm_session_measures_what_a_fresh_one_does(warm, tiny_checkpoint, tiny_quantized, tiny_data, tmp_path):
    """Every measure of a session with a remembered reference equals that of a fresh process, to the last digit."""
    suites = choose(discover(), ["artifact", "parity", "quality"])
    question = Question(tiny_quantized, tiny_checkpoint, (tiny_data,), None, suites, tmp_path / "state")
    fresh = judge(question, tmp_path / "fresh", time_limit_s=PATIENCE_S)
    host = warm()
    host.save_answers(tmp_path / "answers.npz")
    first = judge(question, tmp_path / "first", time_limit_s=PATIENCE_S, host=host)
    host.load_answers(tmp_path / "answers.npz")
    second = judge(question, tmp_path / "second", time_limit_s=PATIENCE_S, host=host)
    assert fresh.problems == first.problems == second.problems == ()
    assert values(fresh) == values(first) == values(second)
    assert [outcome.result for outcome in fresh.outcomes] == [outcome.result for outcome in second.outcomes]


def test_a_remembered_answer_is_the_answer_to_that_very_batch(tiny_checkpoint, tiny_queries, tmp_path):
    """What was asked before is answered alike, from memory; another batch is not taken for it."""
    before = RememberingReference(tiny_checkpoint)
    answers = tag(before, tiny_queries[:8])
    before.save(tmp_path / "answers.npz")
    after = RememberingReference(tiny_checkpoint)
    after.load(tmp_path / "answers.npz")
    after.model = None  # whatever has to be asked fails
    for one, other in zip(answers, tag(after, tiny_queries[:8]), strict=True):
        assert np.array_equal(one.logits, other.logits)
    with pytest.raises(TypeError):
        tag(after, tiny_queries[:7])


def test_an_answer_that_is_written_into_is_remembered_as_it_was(tiny_checkpoint, tiny_queries):
    """A suite that changes the logits it got changes nobody else's."""
    reference = RememberingReference(tiny_checkpoint)
    rows = [window for query in reference.encode(tiny_queries[:2]) for window in query.windows]
    batch = pad(rows, reference.pad_token_id)
    got = reference.logits(batch)
    kept = got.copy()
    got[:] = 0
    assert np.array_equal(reference.logits(batch), kept)


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("os._exit(0)", "left no complete evidence"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died of signal SIGSEGV"),
        ("os.killpg(0, signal.SIGKILL)", "died of signal SIGKILL"),
        ("while True:\n        signal.pause()", "killed at its time limit of 5 s"),
    ],
)
def test_a_session_that_dies_ends_alone(warm, tmp_path, end, says):
    """A session that dies or hangs has judged nothing, and the next one in the same process judges."""
    party = ThirdParty.make(tmp_path / "acme")
    party.install("acme_bad", GOOD.replace("test_good", "test_a") + f"def test_b():\n    {end}\n")
    bad = party.question()
    party.install("acme_suite")
    host = warm(party.environment())
    evidence = judge(bad, tmp_path / "bad", time_limit_s=5, host=host)
    assert evidence.measures == ()
    assert any(says in problem for problem in evidence.problems), evidence.problems
    only_good = {name: found for name, found in party.question().suites.items() if name == "acme_suite"}
    good = judge(
        Question(bad.candidate, bad.reference, (), bad.policy, only_good, bad.state),
        tmp_path / "good",
        time_limit_s=PATIENCE_S,
        host=host,
    )
    assert good.problems == ()
    assert [str(found.key) for found in good.measures] == ["acme_suite.release.worst"]


def test_a_warm_process_that_is_gone(warm, tmp_path):
    """Where the process itself was killed, every session says so and nothing is taken for a judgement."""
    party = ThirdParty.make(tmp_path / "acme")
    party.install("acme_suite")
    host = warm(party.environment())
    os.killpg(host._process.pid, signal.SIGKILL)
    evidence = judge(party.question(), tmp_path / "run", time_limit_s=PATIENCE_S, host=host)
    assert evidence.measures == ()
    assert any("the judging process itself ended" in problem for problem in evidence.problems)


def test_leaving_ends_the_session_that_runs(tiny_checkpoint, tmp_path):
    """When the check is broken off, no session goes on behind it."""
    import threading

    party = ThirdParty.make(tmp_path / "acme")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    party.install("acme_suite", f"def test_hang():\n    with open({str(fifo)!r}, 'w'):\n        signal.pause()\n")
    with WarmProcess(tiny_checkpoint, tmp_path / "warm.log", party.environment()) as host:
        host.wait_until_ready()
        thread = threading.Thread(
            target=judge, args=[party.question(), tmp_path / "run"], kwargs={"host": host, "time_limit_s": PATIENCE_S}
        )
        thread.start()
        reader = os.open(fifo, os.O_RDONLY)  # waits until the session hangs
    assert os.read(reader, 1) == b""  # the last writer has gone
    os.close(reader)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_reference_that_does_not_load(checkpoint_copy, tmp_path):
    """A checkpoint that cannot be loaded is one clear error."""
    shutil.copyfile(checkpoint_copy / "config.json", checkpoint_copy / "model.safetensors")
    with (
        WarmProcess(checkpoint_copy, tmp_path / "warm.log") as host,
        pytest.raises(CheckpointError, match="is damaged"),
    ):
        host.wait_until_ready()


def test_a_session_may_end_once_the_candidate_is_rejected(tmp_path):
    """Asked to, a session ends at the first broken limit; without being asked it goes on. Both are rejected."""
    tests = (
        'def test_a(record_measure):\n    record_measure("worst", 9, unit=Unit.LOGIT)\n'
        "def test_b():\n    pass\ndef test_c(answers):\n    pass\n"
    )
    party = ThirdParty.make(tmp_path / "acme")
    party.install("acme_suite", tests)
    whole = judge(party.question(), tmp_path / "whole", environment=party.environment())
    cut = judge(party.question(), tmp_path / "cut", environment=party.environment(), stop_when_rejected=True)
    assert (len(whole.outcomes), len(cut.outcomes)) == (3, 1)
    limits = Policy({MeasureKey("acme_suite", "release", "worst"): Limit(maximum=1)})
    for evidence in (whole, cut):
        assert decide(limits, party.question().promised(), evidence).decision is Decision.REJECTED


def test_a_session_that_ends_early_accepts_nothing(tmp_path):
    """A failure that is no broken limit does not end the session; what needs every answer comes last in its suite."""
    tests = (
        "@pytest.fixture\ndef answers():\n    return []\n"
        "def test_last(answers):\n    assert False\n"
        "def test_first():\n    assert False\n"
        f"{GOOD}"
    )
    party = ThirdParty.make(tmp_path / "acme")
    party.install("acme_suite", tests)
    evidence = judge(party.question(), tmp_path / "run", environment=party.environment(), stop_when_rejected=True)
    assert [outcome.test.rpartition("::")[2] for outcome in evidence.outcomes] == [
        "test_first",
        "test_good",
        "test_last",
    ]
    limits = Policy({MeasureKey("acme_suite", "release", "worst"): Limit(maximum=1)})
    assert decide(limits, party.question().promised(), evidence).decision is Decision.INCOMPLETE


def test_a_session_that_may_end_early_begins_with_the_default_variant(tmp_path):
    """Where the first broken limit ends it, what is served by default is judged first; otherwise the order stays."""
    tests = f"def test_a(variant):\n    pass\ndef test_b(variant):\n    pass\n{GOOD}"
    party = ThirdParty.make(tmp_path / "acme")
    party.install("acme_suite", tests)
    (party.candidate / "model_quantized.onnx").write_bytes(b"not opened either")
    (party.candidate / "manifest.json").write_text(
        '{"schema": "harness-release-manifest", "version": 1, "default_variant": "int8"}', encoding="utf-8"
    )
    orders = []
    for stop in (False, True):
        evidence = judge(party.question(), tmp_path / "run", environment=party.environment(), stop_when_rejected=stop)
        variants = [outcome.test.partition("[")[2].strip("]") for outcome in evidence.outcomes]
        orders.append([variant for variant in variants if variant])
    assert orders == [["fp32", "fp32", "int8", "int8"], ["int8", "int8", "fp32", "fp32"]]
