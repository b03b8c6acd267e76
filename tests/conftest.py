"""A tiny token classifier, its export and labelled queries for it, made once a session in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import string
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports transformers or tokenizers: no network, and no thread pool that a fork would break.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A model this small gains nothing from more threads, and loses much where other work has the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test of the harness depends on how fast the machine is, nor on luck.
settings.register_profile("harness", deadline=None, derandomize=True)
settings.load_profile("harness")

TINY_TYPES = ("SRC", "DEST", "DATE")
TINY_LABELS = ("O", *(f"{prefix}-{kind}" for kind in TINY_TYPES for prefix in "BI"))
TINY_MAXIMUM = 64
_WORDS = ("bus", "from", "to", "on", "ac", "sleeper", "bangalore", "mumbai", "chennai", "tomorrow", "friday", "goa")
_LABELLED_QUERIES = 72
_QUANTIZED_ON = 24


def pytest_configure(config):
    """Let optimum drop the temporary folder of an export when its model is collected; name the tests' own marker."""
    config.addinivalue_line("filterwarnings", "ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning")
    config.addinivalue_line(
        "markers", "end_to_end: nothing faked, a judging process of its own; takes most of a minute"
    )


def tiny_vocabulary() -> list[str]:
    """Special tokens, some words, and every printable ASCII character, alone and as a `##` piece."""
    characters = [*string.ascii_lowercase, *string.digits]
    return [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS, *characters, *string.punctuation,
        *(f"##{character}" for character in characters),
    ]  # fmt: skip


def make_tiny_checkpoint(folder: Path, labels=TINY_LABELS) -> Path:
    """Write a BERT of two layers whose weights are random, but large enough that its answers are clear."""
    import torch
    from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = tiny_vocabulary()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=TINY_MAXIMUM).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=TINY_MAXIMUM,
        initializer_range=0.1,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20261123)
        model = BertForTokenClassification(config)
        # what a word is counts for more than where it stands, so that every label occurs
        torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight, std=1.0)
        torch.nn.init.normal_(model.classifier.weight, std=0.6)
    # an I- that opens an entity is not what strict F1 calls right, so most entities are to be one B- word
    for index, label in enumerate(labels):
        model.classifier.bias.data[index] = -2.0 if label.startswith("I-") else 0.0
    model.eval()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """The checkpoint; tests that change it take `checkpoint_copy`."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint, tmp_path_factory) -> Path:
    """Its FP32 export, unjudged; tests that change it take `export_copy`."""
    from harness.export_onnx import export_to_onnx

    return export_to_onnx(tiny_checkpoint, tmp_path_factory.mktemp("tiny-export") / "onnx")


@pytest.fixture(scope="session")
def tiny_quantized(tiny_checkpoint, tiny_queries, tmp_path_factory) -> Path:
    """An export with both variants."""
    from harness.export_onnx import export_to_onnx

    output = tmp_path_factory.mktemp("tiny-quantized") / "onnx"
    return export_to_onnx(tiny_checkpoint, output, quantize=True, calibration=tiny_queries[:_QUANTIZED_ON])


@pytest.fixture(scope="session")
def tiny_queries(tiny_data) -> list[str]:
    """The texts of the labelled queries."""
    return [json.loads(line)["text"] for line in tiny_data.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def tiny_data(tiny_checkpoint, tmp_path_factory) -> Path:
    """Queries labelled with what the checkpoint itself says, so that its F1 is 1."""
    import random

    from harness.reference import Reference
    from harness.tagging import entity_runs, tag

    draw = random.Random(20261123)
    texts = list(dict.fromkeys(_draw_query(draw) for _ in range(600)))
    rows = []
    tiny = Reference(tiny_checkpoint)
    for tagged in tag(tiny, texts):
        tags = [tiny.labels[index] for index in tagged.label_ids]
        runs = entity_runs(tags)
        if runs and all(tags[run.first].startswith("B-") for run in runs):
            spans = [[span.start, span.end, span.label] for span in tagged.spans(tiny.labels)]
            rows.append(json.dumps({"text": tagged.text, "spans": spans}))
    assert len(rows) >= _LABELLED_QUERIES, f"only {len(rows)} queries are labelled in strict BIO"
    path = tmp_path_factory.mktemp("tiny-data") / "queries.jsonl"
    path.write_text("\n".join(rows[:_LABELLED_QUERIES]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reference(tiny_checkpoint):
    """The tiny checkpoint, loaded once."""
    from harness.reference import Reference

    return Reference(tiny_checkpoint)


@pytest.fixture(scope="session")
def labelled(tiny_data, reference):
    """The tiny data, read as a run reads them."""
    from harness.labelled_data import read_labelled_set

    return read_labelled_set([tiny_data], labels=reference.labels)


@pytest.fixture(scope="session")
def expected(reference, labelled):
    """The reference's answers, all of them right."""
    from harness.tagging import tag

    return tag(reference, labelled.texts)


def _draw_query(draw) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(2, 6)))


@pytest.fixture
def checkpoint_copy(tiny_checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint that the test may damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def export_copy(tiny_export, tmp_path) -> Path:
    """A copy of the export that the test may damage."""
    return shutil.copytree(tiny_export, tmp_path / "onnx")


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, links followed, by its relative path: what `byte for byte` compares."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_in(folder: Path) -> list[str]:
    """Everything that lies in a folder, hidden names too."""
    return sorted(path.name for path in folder.iterdir())


class FakeJudge:
    """Stands in for the judging process: evidence with every promised measure, at its limit unless told otherwise."""

    def __init__(self):
        self.values = {}  # by the name people use, such as `parity.fp32.label_agreement`
        self.missing = frozenset()
        self.problems = ()
        self.questions = []
        self.candidates = []  # the files of each candidate at the moment it was judged

    def __call__(self, question, run_folder, *, time_limit_s, progress):
        """See `harness.judge.judge`."""
        import datetime

        from harness.evidence import Evidence, Measure, Outcome, Result, write_evidence
        from harness.manifest import content_digest
        from harness.policy import load_policy
        from harness.suite import discover

        self.questions.append(question)
        self.candidates.append(files_of(question.candidate))
        every = {
            key for found in discover().values() for key in found.suite.promised(["fp32", "int8"], ["fp32", "int8"])
        }
        limits = load_policy(question.policy, every, datetime.date(2026, 1, 1)).limits
        measures = []
        for key, promise in question.promised().items():
            bounds = [bound for bound in (limits[key].minimum, limits[key].maximum) if bound is not None]
            if str(key) not in self.missing:
                measures.append(Measure(key, float(self.values.get(str(key), [*bounds, 0.0][0])), promise.unit))
        outcomes = [Outcome(name, f"test_{name}", Result.PASSED, 0.1) for name in question.suites]
        evidence = Evidence(
            run_id="fake",
            candidate_digest=content_digest(question.candidate),
            variants=("fp32",),
            suites=tuple(question.suites),
            collected=len(outcomes),
            deselected=0,
            outcomes=tuple(outcomes),
            measures=tuple(measures),
            problems=tuple(self.problems),
            environment={"machine": "none"},
        )
        write_evidence(run_folder / "evidence.json", evidence)
        return evidence


@pytest.fixture
def fake_judge(monkeypatch) -> FakeJudge:
    """Evidence that is accepted, in no time; a test changes it to be rejected or incomplete."""
    from harness import pipeline

    fake = FakeJudge()
    monkeypatch.setattr(pipeline, "judge", fake)
    return fake


@pytest.fixture
def fast_export(monkeypatch, tiny_export):
    """Copy the session's export instead of making one: for tests of what happens around it."""
    from harness import export_onnx, pipeline

    def copied(checkpoint, folder, progress):
        shutil.copytree(tiny_export, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))

    for module in (export_onnx, pipeline):
        monkeypatch.setattr(module, "write_export", copied)
