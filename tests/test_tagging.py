"""Decoding, padding and batching, on tags and on a made-up model; no tokenizer and no model file."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.tagging import (
    OUTSIDE,
    Batch,
    EncodedQuery,
    EntityRun,
    EntitySpan,
    LabelledQuery,
    LabelledSet,
    TaggedQuery,
    Window,
    Word,
    entity_runs,
    pad,
    split_label,
    tag,
)

BIO = ("O", "B-SRC", "I-SRC", "B-DEST", "I-DEST")
IO = ("O", "SRC", "DEST")
IOBES = ("O", "B-SRC", "I-SRC", "E-SRC", "S-SRC", "B-DEST", "I-DEST", "E-DEST", "S-DEST")
BILOU = ("O", "B-SRC", "I-SRC", "L-SRC", "U-SRC")
KINDS = ("SRC", "DEST", "X-Y")


class FakeTagger:
    """A word a space-separated piece, a token a word; the logits of a token depend on that token's id alone."""

    labels = BIO
    pad_token_id = 0

    def __init__(self, window: int = 1000):
        self.window = window
        self.batches: list[Batch] = []

    def encode(self, texts):
        return [self._encode(text) for text in texts]

    def _encode(self, text):
        words, place = [], 0
        for piece in text.split(" "):
            if piece:
                words.append(Word(place, place + len(piece)))
            place += len(piece) + 1
        ids = [1 + sum(map(ord, text[word.start : word.end])) % 97 for word in words]
        windows = []
        for begin in range(0, len(ids), self.window):
            part = ids[begin : begin + self.window]
            windows.append(
                Window([98, *part, 99], [0] * (len(part) + 2), range(1, len(part) + 1), range(begin, begin + len(part)))
            )
        return EncodedQuery(text, words, windows or [Window([98, 99], [0, 0], [], [])])

    def logits(self, batch):
        self.batches.append(batch)
        seen = batch.input_ids * batch.attention_mask
        return np.stack([np.sin(seen * (label + 1.5)) for label in range(len(self.labels))], axis=-1).astype(np.float32)


def spans_of(tags, words=None):
    """The spans that a model with these tags, one a word of three characters, would answer with."""
    words = words or [Word(4 * index, 4 * index + 3) for index in range(len(tags))]
    names = sorted({OUTSIDE, *tags})
    logits = np.zeros((len(tags), len(names)), np.float32)
    for row, name in enumerate(tags):
        logits[row, names.index(name)] = 1.0
    return TaggedQuery("", words, logits).spans(names)


@pytest.mark.parametrize(
    ("tags", "runs"),
    [
        ("", []),
        ("O O", []),
        ("B-A I-A O B-A", [("A", 0, 1), ("A", 3, 3)]),
        ("B-A B-A I-A", [("A", 0, 0), ("A", 1, 2)]),
        ("I-A I-A O", [("A", 0, 1)]),  # orphan at the start
        ("O I-A O I-A", [("A", 1, 1), ("A", 3, 3)]),  # orphan after O
        ("B-A I-B I-B", [("A", 0, 0), ("B", 1, 2)]),  # orphan after another kind
        ("B-A I-B I-A", [("A", 0, 0), ("B", 1, 1), ("A", 2, 2)]),
    ],
)
def test_orphan_continuations_begin_entities(tags, runs):
    """Tags are read as CoNLL's script reads them: an I- that continues nothing opens an entity of its own."""
    assert entity_runs(tags.split()) == [EntityRun(*run) for run in runs]


@pytest.mark.parametrize(
    ("tags", "runs"),
    [
        ("SRC SRC O DEST", [("SRC", 0, 1), ("DEST", 3, 3)]),
        ("SRC DEST", [("SRC", 0, 0), ("DEST", 1, 1)]),
        ("S-SRC S-SRC", [("SRC", 0, 0), ("SRC", 1, 1)]),
        ("B-SRC I-SRC E-SRC S-SRC", [("SRC", 0, 2), ("SRC", 3, 3)]),
        ("B-SRC E-SRC B-DEST E-DEST", [("SRC", 0, 1), ("DEST", 2, 3)]),
        ("B-SRC L-SRC U-SRC", [("SRC", 0, 1), ("SRC", 2, 2)]),
        ("B-X-Y I-X-Y", [("X-Y", 0, 1)]),  # a kind with a dash of its own
    ],
)
def test_other_schemes(tags, runs):
    """IO, IOBES and BILOU labels are grouped as their schemes say."""
    assert entity_runs(tags.split()) == [EntityRun(*run) for run in runs]


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("B-SRC", ("B", "SRC")),
        ("I-X-Y", ("I", "X-Y")),
        ("E-SRC", ("E", "SRC")),
        ("SRC", ("I", "SRC")),
        ("DROP-OFF", ("I", "DROP-OFF")),  # DROP is no prefix
        ("B-", ("I", "B-")),
        ("-SRC", ("I", "-SRC")),
    ],
)
def test_split_label(label, parts):
    """Only a prefix that some scheme has is split off."""
    assert split_label(label) == parts


@st.composite
def span_lists(draw):
    """Spans in words, not overlapping, in order, and how many words there are."""
    count = draw(st.integers(0, 12))
    spans, place = [], 0
    while place < count:
        length = draw(st.integers(1, 3))
        if place + length <= count and draw(st.booleans()):
            spans.append((place, place + length - 1, draw(st.sampled_from(KINDS))))
        place += length
    return count, spans


def encode(count, spans, scheme):
    """Write spans as tags, the other way round than the harness reads them."""
    first, inner, last, single = {"BIO": "BIIB", "IOBES": "BIES", "BILOU": "BILU"}[scheme]
    tags = [OUTSIDE] * count
    for begin, end, kind in spans:
        tags[begin : end + 1] = [f"{inner}-{kind}"] * (end + 1 - begin)
        tags[begin] = f"{first}-{kind}"
        tags[end] = f"{last}-{kind}" if end > begin else f"{single}-{kind}"
    return tags


@given(span_lists(), st.sampled_from(["BIO", "IOBES", "BILOU"]))
def test_decoding_undoes_encoding(drawn, scheme):
    """Law: entities written as tags of any scheme with a beginning are read back as they were."""
    count, spans = drawn
    tags = encode(count, spans, scheme)
    assert [(run.first, run.last, run.kind) for run in entity_runs(tags)] == spans
    # and through logits and words, in code points
    assert spans_of(tags) == [EntitySpan(4 * first, 4 * last + 3, kind) for first, last, kind in spans]


@given(st.lists(st.sampled_from([*BIO, *IO, *IOBES, *BILOU]), max_size=12))
def test_every_tag_but_outside_is_in_exactly_one_entity(tags):
    """Nothing that the model found is dropped or counted twice, however wrong the order of its tags."""
    runs = entity_runs(tags)
    covered = [index for run in runs for index in range(run.first, run.last + 1)]
    assert covered == [index for index, name in enumerate(tags) if name != OUTSIDE]
    for run in runs:
        assert {split_label(tags[index])[1] for index in range(run.first, run.last + 1)} == {run.kind}
    assert all(left.last < right.first for left, right in pairwise(runs))


def test_a_span_holds_text():
    """A span that is empty or starts before the text cannot be made."""
    for start, end in ((3, 3), (4, 3), (-1, 2)):
        with pytest.raises(ValueError, match="span"):
            EntitySpan(start, end, "SRC")


def test_labelled_set_lists_texts_and_types():
    """A labelled set names its texts in order and each type once, sorted."""
    queries = (
        LabelledQuery("a b", (EntitySpan(0, 1, "SRC"), EntitySpan(2, 3, "DEST"))),
        LabelledQuery("c", (EntitySpan(0, 1, "DEST"),)),
    )
    labelled = LabelledSet("x", queries)
    assert labelled.texts == ["a b", "c"]
    assert labelled.entity_types == ("DEST", "SRC")


def test_equal_logits_choose_the_lowest_label():
    """Where several logits are the highest, the label with the lowest index wins, as in PyTorch's argmax."""
    tagged = TaggedQuery("ab", [Word(0, 1), Word(1, 2)], np.float32([[1, 1, 0], [0, 2, 2]]))
    assert tagged.label_ids.tolist() == [0, 1]


def test_margins():
    """The margin of a word is its highest logit less the second highest, and 0 where they are equal."""
    tagged = TaggedQuery("abc", [Word(0, 1), Word(1, 2), Word(2, 3)], np.float32([[1, 4, 2], [3, 3, -1], [-9, -5, -8]]))
    assert tagged.margins.tolist() == [2.0, 0.0, 3.0]


def test_margins_of_one_label_and_of_no_word():
    """A model with one label is never unsure, and a query without words has no margins."""
    assert TaggedQuery("a", [Word(0, 1)], np.float32([[0.5]])).margins.tolist() == [np.inf]
    assert TaggedQuery("", [], np.zeros((0, 3), np.float32)).margins.tolist() == []


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 7))
def test_padding(lengths, pad_token_id):
    """Each row begins with its window and is filled up, masked, with the padding token."""
    windows = [Window(list(range(10, 10 + length)), [1] * length, [], []) for length in lengths]
    batch = pad(windows, pad_token_id)
    for row, length in enumerate(lengths):
        rest = max(lengths) - length
        assert batch.input_ids[row].tolist() == [*range(10, 10 + length), *[pad_token_id] * rest]
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * rest
        assert batch.token_type_ids[row].tolist() == [1] * length + [0] * rest
    assert {array.dtype for array in batch} == {np.dtype(np.int64)}


texts = st.lists(st.text("ab cd", max_size=30), max_size=10)


@given(texts, st.integers(1, 5), st.integers(1, 4))
def test_batched_is_the_same_as_alone(queries, batch_size, window):
    """However queries are batched and windowed, each gets the logits that it gets alone, in the order asked."""
    model = FakeTagger(window)
    together = tag(model, queries, batch_size)
    assert [tagged.text for tagged in together] == queries
    for text, tagged in zip(queries, together, strict=True):
        (alone,) = tag(FakeTagger(), [text], 1)
        assert tagged.words == alone.words
        assert np.array_equal(tagged.logits, alone.logits)
    assert all(len(batch.input_ids) <= batch_size for batch in model.batches)


@given(texts, st.randoms(use_true_random=False))
def test_the_order_of_the_queries_does_not_matter(queries, shuffle):
    """Shuffling queries shuffles the answers, and nothing else."""
    order = list(range(len(queries)))
    shuffle.shuffle(order)
    straight = tag(FakeTagger(), queries, 3)
    for index, tagged in zip(order, tag(FakeTagger(), [queries[index] for index in order], 3), strict=True):
        assert np.array_equal(tagged.logits, straight[index].logits)


def test_rows_of_similar_length_share_a_batch():
    """Short queries are not padded to the length of the longest, wherever it stands in the list."""
    model = FakeTagger()
    queries = ["a", "a b c d e f g h", "b", "h g f e d c b a"]
    tag(model, queries, 2)
    assert [batch.input_ids.shape for batch in model.batches] == [(2, 3), (2, 10)]
    assert all(batch.attention_mask.all() for batch in model.batches)


def test_queries_without_words_are_not_run():
    """A query in which there is nothing to tag costs no model run and has no spans."""
    model = FakeTagger()
    tagged = tag(model, ["", "  "])
    assert model.batches == []
    assert [answer.spans(BIO) for answer in tagged] == [[], []]
    assert tagged[0].logits.shape == (0, len(BIO))


def test_no_queries_no_answers():
    """An empty list is answered with an empty list."""
    assert tag(FakeTagger(), []) == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_row(batch_size):
    """A batch size below 1 is refused; it must not come back as "no entities"."""
    with pytest.raises(ValueError, match="batch_size"):
        tag(FakeTagger(), ["a b"], batch_size)


def test_spans_use_the_names_given():
    """The same answer read under another model's label names gives that model's entities."""
    tagged = tag(FakeTagger(), ["ab ba"])[0]
    swapped = tuple(name.replace("SRC", "DST") for name in BIO)
    assert [span.label.replace("DST", "SRC") for span in tagged.spans(swapped)] == [
        span.label for span in tagged.spans(BIO)
    ]


def test_random_tags_agree_with_seqeval():
    """Entities are those that seqeval, in its lenient CoNLL mode, finds in the same tags."""
    from seqeval.metrics.sequence_labeling import get_entities

    draw = random.Random(7)
    for _ in range(300):
        tags = [draw.choice(BIO) for _ in range(draw.randint(1, 8))]
        assert [(run.kind, run.first, run.last) for run in entity_runs(tags)] == get_entities(tags)


def test_workers_change_no_answer(reference, labelled):
    """Batches that run at the same time are the same batches: every logit is equal to the last digit."""
    texts = labelled.texts[:70]
    one, many = tag(reference, texts, 8), tag(reference, texts, 8, workers=3)
    assert [tagged.text for tagged in many] == list(texts)
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(one, many, strict=True))
