"""Answers of `BusNERInference`, from the tiny checkpoint and from its export."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import cycle, islice

import numpy as np
import pytest
from conftest import TINY_MAXIMUM, TINY_TYPES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.artifact import Variant
from harness.batches import TOKENS_IN_A_RUN
from harness.errors import ArtifactError, CheckpointError, MissingPackageError
from harness.inference import BusNERInference, NERInference

HEAVY = ("torch", "transformers", "optimum", "onnx", "pytest", "rich", "hypothesis", "seqeval", "safetensors", "psutil")


@pytest.fixture(scope="module")
def onnx_ner(tiny_export):
    """The export, in onnxruntime."""
    return BusNERInference(tiny_export, use_onnx=True)


@pytest.fixture(scope="module")
def torch_ner(tiny_checkpoint):
    """The checkpoint, in PyTorch."""
    return BusNERInference(tiny_checkpoint, use_onnx=False)


def test_both_backends_answer_the_same(onnx_ner, torch_ner, tiny_queries):
    """ONNX and PyTorch find the same entities at the same places, with the same scores to 4 digits."""
    for left, right in zip(
        onnx_ner.batch_extract_detailed(tiny_queries), torch_ner.batch_extract_detailed(tiny_queries), strict=True
    ):
        assert left["entities"] == right["entities"]
        for one, other in zip(left["raw_entities"], right["raw_entities"], strict=True):
            assert {**one, "score": 0} == {**other, "score": 0}
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_answers_are_the_labels_of_the_data(onnx_ner, tiny_data):
    """What the data say is in a query is what is found in it, with its place."""
    for line in tiny_data.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answer = onnx_ner.extract_detailed(row["text"])
        assert [[found["start"], found["end"], found["label"]] for found in answer["raw_entities"]] == row["spans"]


def test_every_type_is_answered(onnx_ner, torch_ner):
    """`extract` has every entity type, in the order of the labels, None where there is none."""
    for ner in (onnx_ner, torch_ner):
        assert list(ner.extract("")) == list(TINY_TYPES)
        assert set(ner.extract("").values()) == {None}
        assert ner.entity_types == TINY_TYPES


def test_the_first_occurrence_is_the_answer(onnx_ner, tiny_queries):
    """Where a type occurs more than once, `extract` has the first, and `raw_entities` has all in order."""
    repeated = 0
    for answer in onnx_ner.batch_extract_detailed(tiny_queries):
        raw = answer["raw_entities"]
        assert [found["start"] for found in raw] == sorted(found["start"] for found in raw)
        for kind, text in answer["entities"].items():
            of_kind = [found["text"] for found in raw if found["label"] == kind]
            repeated += len(of_kind) > 1
            assert text == (of_kind[0] if of_kind else None)
    assert repeated, "no query has a type twice, so this test shows nothing"


def check_answer(query, answer):
    """What holds for every answer to every query."""
    assert answer["query"] == query
    assert set(answer["entities"]) == set(TINY_TYPES)
    end = 0
    for found in answer["raw_entities"]:
        assert end <= found["start"] < found["end"] <= len(query)
        assert found["text"] == query[found["start"] : found["end"]]
        assert found["text"] == found["text"].strip() != ""
        assert found["label"] in TINY_TYPES
        assert 0 < found["score"] <= 1
        end = found["end"]
    assert json.dumps(answer)


@settings(max_examples=60)
@given(st.one_of(st.text(max_size=40), st.text("bus to goa \t\u00a0\u0301\u00e9\u4e2d\U0001f600.,-", max_size=40)))
@example("cafe\u0301 from Go\u0302a\u3000to \U0001f600 mumbai ")
@example("\u0130STANBUL \ufb01 \u00bd \u200bgoa")
@example("\x00\ufffd\ufeff bus")
def test_entities_are_text_of_the_query(onnx_ner, query):
    """For any Unicode, `text == query[start:end]`, without outer white space, entities in order."""
    check_answer(query, onnx_ner.extract_detailed(query))


@pytest.mark.parametrize("query", ["\ud800", "bus from \udcff to goa", "goa\udcff", "\ud83d\ude00 goa"])
def test_half_a_surrogate_pair_is_answered(onnx_ner, torch_ner, query):
    """A lone surrogate, which `json.loads` and `sys.argv` let through and tokenizers refuse, is a character like any."""
    for ner in (onnx_ner, torch_ner):
        check_answer(query, ner.extract_detailed(query))
        check_answer(query, ner.batch_extract_detailed(["bus", query])[1])
    assert onnx_ner.extract(query) == torch_ner.extract(query)


@pytest.mark.parametrize("query", ["", " ", "\n\t\u00a0\u3000", "\u200b", "\u0301", "\U0001f600"])
def test_queries_with_nothing_in_them(onnx_ner, torch_ner, query):
    """Empty and blank queries are answered by both backends alike."""
    for ner in (onnx_ner, torch_ner):
        check_answer(query, ner.extract_detailed(query))
    assert onnx_ner.extract(query) == torch_ner.extract(query)


def test_ten_thousand_characters(onnx_ner, torch_ner):
    """A query far longer than the model reads at once is answered to its last word, by both backends alike."""
    query = ("bus from goa to mumbai on friday " * 400)[:10_000]
    answer = onnx_ner.extract_detailed(query)
    check_answer(query, answer)
    assert answer["raw_entities"][-1]["end"] > len(query) - 40
    assert [found["start"] for found in answer["raw_entities"]] == [
        found["start"] for found in torch_ner.extract_detailed(query)["raw_entities"]
    ]


@pytest.mark.parametrize("query", ["x" * 10_000, "\u4e2d" * 10_000, "." * 10_000, "e\u0301" * 5_000])
def test_ten_thousand_characters_without_a_space(onnx_ner, query):
    """One endless word, or as many words as characters, is answered too."""
    check_answer(query, onnx_ner.extract_detailed(query))


def test_long_and_short_queries_share_a_call(onnx_ner):
    """A query in windows does not disturb its neighbours."""
    queries = ["bus to goa", "from goa to mumbai " * 50, "ac sleeper"]
    assert onnx_ner.batch_extract(queries) == [onnx_ner.extract(query) for query in queries]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_batches_answer_as_one_by_one(onnx_ner, torch_ner, tiny_queries, batch_size):
    """`batch_extract` gives the answers of `extract`, in order, whatever the size of a batch."""
    queries = [*tiny_queries[:12], "", "caf\u00e9", tiny_queries[0]]
    for ner in (onnx_ner, torch_ner):
        assert ner.batch_extract(queries, batch_size) == [ner.extract(query) for query in queries]


def test_batches_are_really_batched(tiny_export, monkeypatch, tiny_queries):
    """33 queries in batches of 16 are three model runs, not 33."""
    ner = BusNERInference(tiny_export)
    runs = []
    original = ner._model.logits

    def counted(batch):
        runs.append(batch.input_ids.shape)
        return original(batch)

    monkeypatch.setattr(ner._model, "logits", counted)
    ner.batch_extract(tiny_queries[:33], batch_size=16)
    assert sorted(rows for rows, _ in runs) == [1, 16, 16]


@settings(max_examples=200)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60) | st.text(max_size=30))
@example("[CLS] bus [SEP] to [MASK] goa [UNK][PAD]")
@example("bus to goa, friday-tomorrow; from(mumbai)")
@example("bus  to\tgoa\x1c mumbai\x00")
@example("from goa to mumbai " * 20)
@example("x" * 200)
def test_the_short_way_answers_as_the_long_one(onnx_ner, query):
    """`extract`, which takes a short way with plain queries, has the entities of `extract_detailed`, which takes none."""
    assert onnx_ner.extract(query) == onnx_ner.extract_detailed(query)["entities"]


def test_the_short_way_is_not_taken_by_long_queries(onnx_ner, tiny_queries):
    """What stands beyond the first window of a plain query is found by `extract` too."""
    queries = [f"{'ac ' * TINY_MAXIMUM}{query}" for query in tiny_queries[:20]]
    answers = onnx_ner.batch_extract_detailed(queries)
    assert [onnx_ner.extract(query) for query in queries] == [answer["entities"] for answer in answers]
    beyond = 3 * TINY_MAXIMUM
    first = [
        min((e["start"] for e in a["raw_entities"] if e["label"] == kind), default=0)
        for a in answers
        for kind in TINY_TYPES
    ]
    assert any(start >= beyond for start in first), "no type is found only there, so this test shows nothing"


def test_plain_queries_take_the_short_way(tiny_export, monkeypatch, tiny_queries):
    """A query of printable ASCII that fits into one row is answered without a batch around it."""
    ner = BusNERInference(tiny_export)
    monkeypatch.setattr(ner._model, "logits", None)
    assert [ner.extract(query) for query in tiny_queries]
    with pytest.raises(TypeError):
        ner.extract("caf\u00e9")


@pytest.mark.parametrize("detailed", [False, True])
def test_streams_answer_as_lists_do(onnx_ner, torch_ner, tiny_queries, detailed):
    """Streams give the answers of `batch_extract`, for any iterable and any window."""
    for ner in (onnx_ner, torch_ner):
        expected = ner.batch_extract_detailed(tiny_queries) if detailed else ner.batch_extract(tiny_queries)
        stream = ner.extract_stream_detailed if detailed else ner.extract_stream
        for window in (1, 7, 1000):
            found = list(stream((query for query in tiny_queries), window=window))
            assert [_rounded(answer) for answer in found] == [_rounded(answer) for answer in expected]


def _rounded(answer):
    """Leave out of an answer what the batch may change in its last digits."""
    if "raw_entities" not in answer:
        return answer
    found = [{**entity, "score": round(entity["score"], 4)} for entity in answer["raw_entities"]]
    return {**answer, "raw_entities": found}


def test_an_endless_stream(onnx_ner, tiny_queries):
    """An endless iterable is answered as far as answers are taken."""
    endless = cycle(tiny_queries)
    answers = islice(onnx_ner.extract_stream(endless, window=16), 3 * len(tiny_queries))
    assert list(answers) == onnx_ner.batch_extract(tiny_queries) * 3


def test_streams_refuse_at_once(onnx_ner):
    """What cannot be answered is refused when it is asked, not when the first answer is taken."""
    with pytest.raises(TypeError, match="use extract"):
        onnx_ner.extract_stream("bus to goa")
    for wrong in ({"window": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            onnx_ner.extract_stream_detailed(["bus to goa"], **wrong)
    with pytest.raises(ValueError, match="workers must be 1 or more"):
        NERInference(onnx_ner._model.artifact.folder, workers=0)


def test_no_run_has_more_tokens_than_pay(tiny_export, monkeypatch, tiny_queries):
    """However many queries may share a run, their tokens are few enough to be fast."""
    ner = BusNERInference(tiny_export, workers=1)
    runs = []
    original = ner._model.logits

    def counted(batch):
        runs.append(batch.input_ids.shape)
        return original(batch)

    monkeypatch.setattr(ner._model, "logits", counted)
    ner.batch_extract(tiny_queries * 20, batch_size=10_000)
    assert max(rows * tokens for rows, tokens in runs) <= TOKENS_IN_A_RUN
    assert len(runs) < len(tiny_queries)


def test_no_queries(onnx_ner, torch_ner):
    """No queries, no answers, no error."""
    for ner in (onnx_ner, torch_ner):
        assert ner.batch_extract([]) == []
        assert ner.batch_extract_detailed([]) == []


def test_one_text_is_no_list(onnx_ner):
    """A str where a list is expected would be read letter by letter; it is refused."""
    for method in (onnx_ner.batch_extract, onnx_ner.batch_extract_detailed):
        with pytest.raises(TypeError, match="use extract"):
            method("bus to goa")


def test_queries_may_be_any_sequence(onnx_ner):
    """A tuple does as well as a list."""
    assert onnx_ner.batch_extract(("bus to goa",)) == [onnx_ner.extract("bus to goa")]


def test_scores_are_softmax_probabilities(onnx_ner):
    """The score of an entity is the mean, over its words, of the softmax probability of the word's label."""
    from harness.tagging import tag

    query = "bus from goa to mumbai on friday"
    (tagged,) = tag(onnx_ner._model, [query])
    logits = tagged.logits.astype(np.float64)
    best = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
    for found in onnx_ner.extract_detailed(query)["raw_entities"]:
        inside = [p for word, p in zip(tagged.words, best, strict=True) if found["start"] <= word.start < found["end"]]
        assert found["score"] == pytest.approx(np.mean(inside), abs=1e-6)


def test_variants(tiny_quantized, tiny_export, tiny_queries):
    """A release with both is served as its manifest says; either can be asked for; the answers nearly agree."""
    served, fp32, int8 = (NERInference(tiny_quantized, variant=variant) for variant in (None, "fp32", "int8"))
    assert [ner._model.variant for ner in (served, fp32, int8)] == [Variant.INT8, Variant.FP32, Variant.INT8]
    assert NERInference(tiny_export)._model.variant is Variant.FP32
    assert served.batch_extract(tiny_queries) == int8.batch_extract(tiny_queries)
    agreeing = [a == b for a, b in zip(fp32.batch_extract(tiny_queries), int8.batch_extract(tiny_queries), strict=True)]
    assert sum(agreeing) > 0.8 * len(agreeing)


@pytest.mark.parametrize("variant", ["int8", "fp16", ""])
def test_a_variant_that_is_not_there(tiny_export, variant):
    """Asking for a variant that the release lacks names those that it has."""
    with pytest.raises(ArtifactError, match="it has: fp32") as caught:
        NERInference(tiny_export, variant=variant)
    assert "\n" not in str(caught.value)


def test_wrong_folders(tiny_checkpoint, tiny_export, tmp_path):
    """A checkpoint is no export, an export no checkpoint, and nothing is neither; each in one line."""
    cases = [
        (tiny_checkpoint, True, ArtifactError, "model.onnx"),
        (tiny_export, False, CheckpointError, "model.safetensors"),
        (tmp_path / "nowhere", True, ArtifactError, "does not exist"),
        (tmp_path / "nowhere", False, CheckpointError, "does not exist"),
        (tiny_export / "model.onnx", True, ArtifactError, "not a folder"),
    ]
    for folder, use_onnx, error, said in cases:
        with pytest.raises(error, match=said) as caught:
            NERInference(folder, use_onnx)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.onnx", b""),
        ("model.onnx", b"not a model"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xfe"),
        ("config.json", b"[]"),
        ("config.json", b"{}"),
        ("config.json", b'{"id2label": {"0": "O", "2": "B-SRC"}}'),
        ("config.json", b'{"id2label": {"0": "O", "1": "B-SRC"}}'),  # fewer labels than logits
        ("manifest.json", b"{}"),
    ],
)
def test_damaged_files(export_copy, name, content):
    """A file that was damaged is named, in one line, when the release is opened or first asked."""
    (export_copy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name.partition(".")[0]) as caught:
        NERInference(export_copy).extract("bus to goa")
    assert "\n" not in str(caught.value)


def test_a_string_path_does(tiny_export):
    """The path may be a str, as in the README."""
    assert BusNERInference(str(tiny_export)).extract("bus") == BusNERInference(tiny_export).extract("bus")


def test_truncation_in_the_tokenizer_file_is_not_followed(export_copy, onnx_ner):
    """A tokenizer.json that cuts and pads by itself changes no answer."""
    path = export_copy / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": TINY_MAXIMUM}, "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    path.write_text(json.dumps(content), encoding="utf-8")
    query = "ac sleeper bus from goa to mumbai on friday"
    assert NERInference(export_copy).extract_detailed(query) == onnx_ner.extract_detailed(query)


def test_the_served_files_need_no_pytorch(tiny_export, tmp_path):
    """A fresh process that imports `harness.inference` and answers has loaded none of the release extra's packages."""
    program = (
        "import json, sys\n"
        "from harness.inference import BusNERInference\n"
        "answer = BusNERInference(sys.argv[1]).extract('bus from goa to mumbai')\n"
        "print(json.dumps([answer, sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_export], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    answer, modules = json.loads(done.stdout)
    assert list(answer) == list(TINY_TYPES)
    assert "onnxruntime" in modules
    assert not set(HEAVY) & set(modules)


def test_pytorch_missing_is_said_in_words(tiny_checkpoint, monkeypatch):
    """`use_onnx=False` without PyTorch names the package that is missing and the pip line."""
    for name in [name for name in sys.modules if name == "harness.reference"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match="torch") as caught:
        NERInference(tiny_checkpoint, use_onnx=False)
    assert "pip install 'ner-release-harness[release]'" in str(caught.value)
