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
    """Let optimum drop the temporary folder of an export when its model is collected, instead of closing it."""
    config.addinivalue_line("filterwarnings", "ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning")


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
