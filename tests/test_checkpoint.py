"""Folders that are no checkpoint that can be exported, each refused in one line."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
from conftest import TINY_LABELS, TINY_MAXIMUM, TINY_TYPES, files_of

from harness.checkpoint import entity_types, open_checkpoint
from harness.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def refused(folder: Path, *said: str) -> str:
    """Open a folder that must be refused, changing nothing, in one line that names the folder and says all of this."""
    before = files_of(folder) if folder.is_dir() else None
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert message.rstrip().endswith((".", ")")), "the message does not end in what to do"
    for part in said:
        assert part in message
    assert before == (files_of(folder) if folder.is_dir() else None)
    return message


def edit_config(folder: Path, **changes) -> None:
    """Change keys of config.json; None takes a key away."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")


def write_safetensors(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    """Write a file of that format, honest about its header's length or not."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def test_a_good_checkpoint_opens(tiny_checkpoint):
    """What save_pretrained wrote is read: labels in order, types, the longest row."""
    checkpoint = open_checkpoint(tiny_checkpoint)
    assert checkpoint.labels == TINY_LABELS
    assert checkpoint.entity_types == TINY_TYPES
    assert checkpoint.maximum_tokens == TINY_MAXIMUM
    assert checkpoint.folder == tiny_checkpoint


def test_opening_needs_no_pytorch(tiny_checkpoint):
    """The checks read files; they do not import torch, so they answer in milliseconds."""
    import subprocess
    import sys

    program = (
        "import sys, pathlib; from harness.checkpoint import open_checkpoint\n"
        "open_checkpoint(pathlib.Path(sys.argv[1])); print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, tiny_checkpoint], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_digest_is_of_every_file(checkpoint_copy):
    """Changing any file, or adding one, changes the checkpoint's digest."""
    digests = {open_checkpoint(checkpoint_copy).digest()}
    (checkpoint_copy / "notes.txt").write_text("x", encoding="utf-8")
    digests.add(open_checkpoint(checkpoint_copy).digest())
    (checkpoint_copy / "vocab.txt").write_text("x", encoding="utf-8")
    digests.add(open_checkpoint(checkpoint_copy).digest())
    assert len(digests) == 3


def test_a_missing_folder(tmp_path):
    """A path where nothing is."""
    refused(tmp_path / "nowhere", "does not exist", "--model")


def test_a_file_in_its_place(tmp_path):
    """A path where a file is, such as the weights themselves."""
    path = tmp_path / WEIGHTS
    path.write_bytes(b"x")
    refused(path, "is not a folder")


def test_an_empty_folder(tmp_path):
    """A folder with nothing in it is called empty, not broken."""
    refused(tmp_path, "is empty")


def test_no_config(checkpoint_copy):
    """A folder with files, but without config.json."""
    (checkpoint_copy / "config.json").unlink()
    refused(checkpoint_copy, "has no config.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"id2label": NaN}', b"[" * 100_000])
def test_a_config_that_is_no_object(checkpoint_copy, content):
    """config.json that is empty, cut, another kind of JSON, not UTF-8, or deep enough to exhaust the parser."""
    (checkpoint_copy / "config.json").write_bytes(content)
    refused(checkpoint_copy, "config.json")


@pytest.mark.parametrize(
    "architectures",
    [
        None,
        [],
        ["BertModel"],
        ["BertForSequenceClassification"],
        ["ForTokenClassificationOfMine"],
        "BertModel",
        5,
        {"a": 1},
    ],
)
def test_not_a_token_classifier(checkpoint_copy, architectures):
    """A model of another kind, or of none that is named."""
    edit_config(checkpoint_copy, architectures=architectures)
    refused(checkpoint_copy, "config.json", "ForTokenClassification")


def test_code_of_its_own(checkpoint_copy):
    """A checkpoint that brings code (auto_map) is refused, and the code not run."""
    mark = checkpoint_copy.parent / "ran"
    (checkpoint_copy / "modeling.py").write_text(f"open({str(mark)!r}, 'w')", encoding="utf-8")
    edit_config(checkpoint_copy, auto_map={"AutoModelForTokenClassification": "modeling.Model"})
    refused(checkpoint_copy, "auto_map", "never run")
    assert not mark.exists()


def test_no_labels(checkpoint_copy):
    """A config without id2label."""
    edit_config(checkpoint_copy, id2label=None)
    refused(checkpoint_copy, "id2label")


@pytest.mark.parametrize(
    "id2label",
    [
        {},
        ["O", "B-SRC"],
        {"1": "O", "2": "B-SRC"},
        {"0": "O", "2": "B-SRC"},
        {"0": "O", "1": ""},
        {"0": "O", "1": None},
        {"0": "O", "1": 7},
        {"O": "0", "B-SRC": "1"},
    ],
)
def test_labels_that_do_not_count_from_zero(checkpoint_copy, id2label):
    """Label maps with gaps, without names, or the wrong way round."""
    edit_config(checkpoint_copy, id2label=id2label, label2id=None)
    refused(checkpoint_copy, "config.json", "id2label")


def test_default_label_names(checkpoint_copy):
    """LABEL_0, LABEL_1 … are what transformers writes when nobody named the labels."""
    names = [f"LABEL_{index}" for index in range(len(TINY_LABELS))]
    edit_config(checkpoint_copy, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    refused(checkpoint_copy, "LABEL_0", "LABEL_6")


def test_one_label_named_so_is_a_name(checkpoint_copy):
    """Only a set made of nothing but default names is refused."""
    names = ["O", "LABEL_1", "B-X", "I-X", "B-Y", "I-Y", "B-Z"]
    edit_config(checkpoint_copy, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    assert open_checkpoint(checkpoint_copy).labels == tuple(names)


def test_duplicate_labels(checkpoint_copy):
    """Two logits with one name."""
    names = ["O", "B-SRC", "I-SRC", "B-SRC", "I-DEST", "B-DATE", "I-DATE"]
    edit_config(checkpoint_copy, id2label=dict(enumerate(names)), label2id=None)
    refused(checkpoint_copy, "'B-SRC' twice")


def test_a_key_that_stands_twice(checkpoint_copy):
    """JSON in which one id has two labels: parsers keep the last, people read the first."""
    path = checkpoint_copy / "config.json"
    text = path.read_text(encoding="utf-8").replace('"0": "O"', '"0": "O", "0": "B-SRC"')
    path.write_text(text, encoding="utf-8")
    refused(checkpoint_copy, "'0' occurs twice")


SWAPPED = [TINY_LABELS[0], TINY_LABELS[3], TINY_LABELS[2], TINY_LABELS[1], *TINY_LABELS[4:]]


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("config.json, label2id", {label: index for index, label in enumerate(SWAPPED)}),
        ("config.json, label2id", {label: index for index, label in enumerate(TINY_LABELS[:-1])}),
        ("config.json, label2id", {label: str(index) for index, label in enumerate(TINY_LABELS)}),
        ("config.json, label2id", ["O"]),
        ("label2id.json", {label: index for index, label in enumerate(SWAPPED)}),
        ("label2id.json", {}),
        ("id2label.json", {str(index): label for index, label in enumerate(SWAPPED)}),
        ("id2label.json", {str(index): label for index, label in enumerate([*TINY_LABELS, "B-NEW"])}),
    ],
)
def test_label_maps_that_disagree(checkpoint_copy, place, content):
    """Every place that names labels must name the same ones; the first difference is shown."""
    if place.startswith("config"):
        edit_config(checkpoint_copy, label2id=content)
    else:
        (checkpoint_copy / place).write_text(json.dumps(content), encoding="utf-8")
    refused(checkpoint_copy, place, "disagrees", "Make them agree")


def test_label_maps_that_agree(checkpoint_copy):
    """The files that exports carry are welcome in a checkpoint, as long as they say the same."""
    by_id = {str(index): label for index, label in enumerate(TINY_LABELS)}
    (checkpoint_copy / "id2label.json").write_text(json.dumps(by_id), encoding="utf-8")
    (checkpoint_copy / "label2id.json").write_text(json.dumps({v: int(k) for k, v in by_id.items()}), encoding="utf-8")
    assert open_checkpoint(checkpoint_copy).labels == TINY_LABELS


def test_a_label_map_that_is_no_json(checkpoint_copy):
    """A damaged label file is named."""
    (checkpoint_copy / "label2id.json").write_text("{", encoding="utf-8")
    refused(checkpoint_copy, "label2id.json")


def test_no_tokenizer(checkpoint_copy):
    """Only the slow tokenizer's files are there."""
    (checkpoint_copy / "tokenizer.json").unlink()
    refused(checkpoint_copy, "tokenizer.json", "save_pretrained")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(checkpoint_copy, share):
    """A download that ended early, in the header or in the tensors."""
    path = checkpoint_copy / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(checkpoint_copy, WEIGHTS, "damaged")


def test_weights_with_bytes_too_many(checkpoint_copy):
    """Bytes behind the last tensor belong to nothing."""
    path = checkpoint_copy / WEIGHTS
    path.write_bytes(path.read_bytes() + b"x")
    refused(checkpoint_copy, WEIGHTS, "damaged")


@pytest.mark.parametrize(
    "header",
    [
        b"x" * 40,
        b"[1, 2]",
        b"null",
        b'"text"',
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"data_offsets": []}}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": 7}}',
        b'{"a": {"data_offsets": ["0", "4"]}}',
        b'{"a": {"data_offsets": [0, null]}}',
        b"\xff\xfe\xff\xfe",
        b"[" * 50_000,
    ],
)
def test_corrupt_headers(checkpoint_copy, header):
    """A header that is no JSON, or not the JSON of safetensors."""
    write_safetensors(checkpoint_copy / WEIGHTS, header)
    refused(checkpoint_copy, WEIGHTS, "damaged")


@pytest.mark.parametrize("length", [0, 10_000, 2**40, 2**64 - 1])
def test_headers_that_lie_about_their_length(checkpoint_copy, length):
    """A length beyond the file, or beyond what safetensors itself reads, costs no memory."""
    write_safetensors(checkpoint_copy / WEIGHTS, b"{}", length=length)
    refused(checkpoint_copy, WEIGHTS, "damaged")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt", "model.pkl"])
def test_pickled_weights(checkpoint_copy, name):
    """Weights that would have to be unpickled are refused, and not unpickled."""
    mark = checkpoint_copy.parent / "ran"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (mark,))

    (checkpoint_copy / WEIGHTS).unlink()
    (checkpoint_copy / name).write_bytes(pickle.dumps(Bomb()))
    refused(checkpoint_copy, name, "pickle", "safe_serialization=True")
    assert not mark.exists()


def test_no_weights(checkpoint_copy):
    """A folder with everything but weights."""
    (checkpoint_copy / WEIGHTS).unlink()
    refused(checkpoint_copy, f"has no {WEIGHTS}")


def test_weights_in_shards(checkpoint_copy):
    """Weights in several files are checked one by one."""
    shard = "model-00001-of-00002.safetensors"
    other = "model-00002-of-00002.safetensors"
    (checkpoint_copy / WEIGHTS).rename(checkpoint_copy / shard)
    index = {"metadata": {}, "weight_map": {"a": shard, "b": other}}
    (checkpoint_copy / INDEX).write_text(json.dumps(index), encoding="utf-8")
    refused(checkpoint_copy, other)
    write_safetensors(checkpoint_copy / other, b"{}", b"too much")
    refused(checkpoint_copy, other, "damaged")
    write_safetensors(checkpoint_copy / other, b"{}")
    assert open_checkpoint(checkpoint_copy).labels == TINY_LABELS


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}', '{"weight_map": {}}']
)
def test_a_shard_index_that_names_nothing(checkpoint_copy, index):
    """An index of shards that cannot be read, or lists none."""
    (checkpoint_copy / WEIGHTS).unlink()
    (checkpoint_copy / INDEX).write_text(index, encoding="utf-8")
    refused(checkpoint_copy, str(checkpoint_copy))


def test_a_tokenizer_that_does_not_load(checkpoint_copy):
    """A tokenizer.json that its own package does not read."""
    from harness.reference import load_tokenizer

    (checkpoint_copy / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded") as caught:
        load_tokenizer(checkpoint_copy)
    assert "\n" not in str(caught.value)


def test_weights_of_the_base_only(checkpoint_copy):
    """A checkpoint without the classifier's weights would answer at random; it is refused with the weight's name."""
    from safetensors.torch import load_file, save_file

    from harness.reference import load_model

    path = checkpoint_copy / WEIGHTS
    base = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("classifier")}
    save_file(base, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"2 weights are missing.*'classifier") as caught:
        load_model(checkpoint_copy)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape(checkpoint_copy):
    """A classifier with another number of labels is refused, not made anew at random."""
    from harness.reference import load_model

    names = [*TINY_LABELS, "B-NEW"]
    edit_config(checkpoint_copy, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint_copy)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_tensors_of_a_model(checkpoint_copy):
    """A well-formed file with other tensors in it."""
    from harness.reference import load_model

    write_safetensors(checkpoint_copy / WEIGHTS, b'{"__metadata__": {"format": "pt"}}')
    with pytest.raises(CheckpointError, match="weights"):
        load_model(checkpoint_copy)


@pytest.mark.parametrize(
    ("labels", "types"),
    [
        (("O", "B-SRC", "I-SRC", "B-DEST"), ("SRC", "DEST")),
        (("O", "SRC", "DEST"), ("SRC", "DEST")),
        (("S-SRC", "O", "E-SRC"), ("SRC",)),
        (("B-X-Y", "I-X-Y", "O"), ("X-Y",)),
        (("O",), ()),
    ],
)
def test_entity_types(labels, types):
    """Each type once, in the order of the labels, in every scheme."""
    assert entity_types(labels) == types
