"""Scoring: strict F1 is seqeval's own, no gold entity gets lost on the way, and the bounds hold still."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from harness.scoring import UNKNOWN_TYPE, TagPair, count, loss_bounds, strict_tags, tag_pair
from harness.tagging import EntitySpan, LabelledQuery, Word, split_label

TYPES = ("DATE", "DEST", "SRC")
LABELS = ("O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI"))
NEW_DELHI = LabelledQuery("from New Delhi to Pune", (EntitySpan(5, 14, "SRC"), EntitySpan(18, 22, "DEST")))
WORDS = (Word(0, 4), Word(5, 8), Word(9, 14), Word(15, 17), Word(18, 22))
RIGHT = ("O", "B-SRC", "I-SRC", "O", "B-DEST")

tags = st.sampled_from(LABELS)


@st.composite
def pairs(draw, min_size=1):
    """Gold and predicted tags of some queries, in any order that IOB2 allows or forbids."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=min_size, max_size=5))
    return [
        TagPair(*(tuple(draw(st.lists(tags, min_size=length, max_size=length))) for _ in range(2)))
        for length in lengths
    ]


@st.composite
def cut_queries(draw):
    """A query, words anywhere in it, a predicted tag for each, and entities that may cut or miss the words."""
    text = draw(st.text("ab ,", min_size=1, max_size=16))
    edges = st.sets(st.integers(0, len(text)), max_size=8).map(sorted)
    cuts = draw(edges)
    words = [Word(left, right) for left, right in zip(cuts[::2], cuts[1::2], strict=False)]
    cuts = draw(edges)
    spans = tuple(
        EntitySpan(left, right, draw(st.sampled_from(TYPES)))
        for left, right in zip(cuts[::2], cuts[1::2], strict=False)
        if text[left:right].strip()
    )
    return LabelledQuery(text, spans), words, [draw(tags) for _ in words]


def seqeval_f1(scored, **arguments):
    gold, predicted = [list(pair.gold) for pair in scored], [list(pair.predicted) for pair in scored]
    return f1_score(gold, predicted, mode="strict", scheme=IOB2, zero_division=0, **arguments)


def totals(scored, types=TYPES):
    """Right, predicted and gold entities in all."""
    return tuple(count(scored, types).of_types().sum(axis=0).tolist())


def scored(query, words, predicted):
    return [tag_pair(query, words, predicted)]


# -- counting --------------------------------------------------------------------------------------------------------


@given(pairs())
def test_micro_f1_is_seqevals(found):
    """Micro F1 equals seqeval's strict one on any tags, well formed or not."""
    assert count(found, TYPES).micro == pytest.approx(seqeval_f1(found, average="micro"), abs=1e-12)


@given(pairs())
def test_f1_of_each_type_is_seqevals(found):
    """F1 of each type with a gold entity equals seqeval's, and macro F1 is their mean."""
    counts = count(found, TYPES)
    named = sorted({kind for kind, row in zip(counts.types, counts.of_types(), strict=True) if row[1] or row[2]})
    expected = dict(zip(named, seqeval_f1(found, average=None), strict=True))
    with_gold = {kind: value for kind, value in expected.items() if counts.support[kind]}
    assert counts.by_type == pytest.approx(with_gold, abs=1e-12)
    assert counts.macro == pytest.approx(np.mean(list(with_gold.values())) if with_gold else 0.0)


@given(pairs())
def test_counts_add_up(found):
    """No more entities are right than were predicted, or than there are, in any query and type."""
    table = count(found, TYPES).table
    assert table.shape == (len(found), len(TYPES) + 1, 3)
    assert (table >= 0).all()
    assert (table[..., 0] <= table[..., 1:].min(axis=-1)).all()


@given(pairs())
def test_without_its_beginnings_a_model_scores_nothing(found):
    """A model that says I- wherever it should say B- finds no entity, however many a lenient reader would find."""
    broken = [TagPair(pair.gold, tuple(tag.replace("B-", "I-") for tag in pair.predicted)) for pair in found]
    assert totals(broken)[:2] == (0, 0)
    assert count(broken, TYPES).micro == 0.0


def test_a_model_without_beginnings_over_words():
    """The same through `tag_pair`: right spans with I- for B- are not right."""
    lost = ["O", "I-SRC", "I-SRC", "O", "I-DEST"]
    assert totals(scored(NEW_DELHI, WORDS, lost)) == (0, 0, 2)


@pytest.mark.parametrize("unknown", ["B-VIA", f"B-{UNKNOWN_TYPE}"])
def test_an_unknown_type_is_a_false_one(unknown):
    """A predicted type that the reference does not know counts as predicted, never as right nor as a type's own."""
    found = [TagPair(("B-DATE", "O"), ("B-DATE", unknown))]
    counts = count(found, TYPES)
    assert totals(found) == (1, 2, 1)
    assert counts.by_type == {"DATE": 1.0}
    assert counts.micro == pytest.approx(2 / 3)
    assert counts.support == {"DATE": 1, "DEST": 0, "SRC": 0, UNKNOWN_TYPE: 0}


@pytest.mark.parametrize("twice", [TYPES, (*TYPES, UNKNOWN_TYPE)])
def test_the_types_of_a_count_can_be_counted_with_again(twice):
    """The variant is counted with the types of the reference's count, the unknown type not doubled."""
    assert count([TagPair(("O",), ("O",))], twice).types == (*TYPES, UNKNOWN_TYPE)


def test_nothing_to_find():
    """Where nothing is to be found and nothing is, F1 is 0 as in seqeval: no score was earned."""
    counts = count([TagPair(("O", "O"), ("O", "O"))], TYPES)
    assert (counts.micro, counts.macro, counts.by_type) == (0.0, 0.0, {})


# -- laying tags over spans ------------------------------------------------------------------------------------------


@given(cut_queries())
def test_no_gold_entity_gets_lost(cut):
    """Whatever the words cut or leave out, every gold entity is counted once, under its type."""
    query, words, predicted = cut
    counts = count([tag_pair(query, words, predicted)], TYPES)
    wanted = {kind: sum(span.label == kind for span in query.spans) for kind in TYPES}
    assert counts.support == {**wanted, UNKNOWN_TYPE: 0}


@given(cut_queries())
def test_an_entity_is_right_only_where_the_words_cover_it(cut):
    """An entity of which the words leave a letter out is never right."""
    query, words, predicted = cut
    covered = {place for start, end in words for place in range(start, end)}
    whole = [
        span
        for span in query.spans
        if all(query.text[place].isspace() or place in covered for place in range(span.start, span.end))
    ]
    assert totals(scored(query, words, predicted))[0] <= len(whole)


@given(cut_queries())
def test_no_prediction_gets_lost(cut):
    """The entities that strict reading finds in the words' tags are those that are counted as predicted."""
    query, words, predicted = cut
    alone = count([TagPair(("O",) * len(words), tuple(predicted))], TYPES)
    assert totals(scored(query, words, predicted))[1] == alone.of_types().sum(axis=0)[1]


def test_right_answers():
    """Tags that follow the gold spans score 1."""
    assert tag_pair(NEW_DELHI, WORDS, RIGHT) == TagPair(RIGHT, RIGHT)
    assert totals(scored(NEW_DELHI, WORDS, RIGHT)) == (2, 2, 2)


@pytest.mark.parametrize(
    ("tag", "place"), [("O", 1), ("B-DEST", 1), ("B-SRC", 2), ("O", 2), ("I-SRC", 1), ("B-SRC", 0), ("I-DEST", 4)]
)
def test_one_wrong_tag(tag, place):
    """A wrong type, a missed word, a word too many and a beginning too many each cost the entity."""
    predicted = list(RIGHT)
    predicted[place] = tag
    right, _, gold = totals(scored(NEW_DELHI, WORDS, predicted))
    assert (right, gold) == ((2, 2) if place == 0 else (1, 2))


@pytest.mark.parametrize("words", [(), (Word(0, 4),), WORDS[:4]])
def test_gold_beyond_the_words_is_missed(words):
    """An entity in a part of the text that the model never saw counts as missed."""
    predicted = RIGHT[: len(words)]
    found = scored(NEW_DELHI, words, predicted)
    assert totals(found) == (int(len(words) > 2), int(len(words) > 2), 2)


def test_gold_half_beyond_the_words_is_missed():
    """An entity of which the model saw only the first word is not right, though that word's tag is."""
    assert totals(scored(NEW_DELHI, WORDS[:2], RIGHT[:2])) == (0, 1, 2)


def test_gold_between_the_words_is_missed():
    """An entity from whose middle a word is missing is not right."""
    query = LabelledQuery("New old Delhi", (EntitySpan(0, 13, "SRC"),))
    assert totals(scored(query, (Word(0, 3), Word(8, 13)), ("B-SRC", "I-SRC"))) == (0, 1, 1)


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (EntitySpan(2, 7, "DEST"), "to Pune"),
        (EntitySpan(2, 8, "DEST"), "to Pune "),
        (EntitySpan(3, 8, "DEST"), "to Pune "),
    ],
)
def test_white_space_around_gold(span, text):
    """White space that an annotator marked along with the entity makes no difference."""
    query = LabelledQuery(text, (span,))
    assert totals(scored(query, (Word(0, 2), Word(3, 7)), ("O", "B-DEST"))) == (1, 1, 1)


@pytest.mark.parametrize("predicted", [("O", "B-SRC"), ("O", "O")])
@pytest.mark.parametrize("span", [EntitySpan(5, 9, "SRC"), EntitySpan(6, 10, "SRC"), EntitySpan(6, 9, "SRC")])
def test_a_span_that_cuts_a_word(span, predicted):
    """An entity whose end the words cannot express is missed, and what was predicted over it is false."""
    query = LabelledQuery("from Pune,", (span,))
    assert totals(scored(query, (Word(0, 4), Word(5, 10)), predicted)) == (0, int(predicted[1] != "O"), 1)


def test_two_entities_in_one_word():
    """Of two entities within one word neither is found by tagging the word."""
    query = LabelledQuery("Pune-Delhi", (EntitySpan(0, 5, "SRC"), EntitySpan(5, 10, "SRC")))
    assert tag_pair(query, (Word(0, 10),), ("B-SRC",)) == TagPair(("B-SRC", "B-SRC"), ("B-SRC", "I-SRC"))
    assert totals(scored(query, (Word(0, 10),), ("B-SRC",))) == (0, 1, 2)


def test_neighbours_stay_two():
    """Two entities of one type side by side are two in gold, and one only to a model that joins them."""
    query = LabelledQuery("Pune Delhi", (EntitySpan(0, 4, "SRC"), EntitySpan(5, 10, "SRC")))
    words = (Word(0, 4), Word(5, 10))
    assert totals(scored(query, words, ("B-SRC", "B-SRC"))) == (2, 2, 2)
    assert totals(scored(query, words, ("B-SRC", "I-SRC"))) == (0, 1, 2)


# -- other schemes ---------------------------------------------------------------------------------------------------


def test_strict_tags_leave_iob2_alone():
    """Tags of a BIO model are judged as they are, ill-formed ones included."""
    assert strict_tags(["I-SRC", "O", "B-SRC"], LABELS) == ["I-SRC", "O", "B-SRC"]


@pytest.mark.parametrize(
    ("labels", "found", "strict"),
    [
        (("O", "SRC"), ["SRC", "SRC", "O", "SRC"], ["B-SRC", "I-SRC", "O", "B-SRC"]),
        (("O", "I-SRC", "I-DEST"), ["I-SRC", "I-DEST"], ["B-SRC", "B-DEST"]),
        (
            ("O", "B-SRC", "I-SRC", "E-SRC", "S-SRC"),
            ["S-SRC", "B-SRC", "I-SRC", "E-SRC", "O"],
            ["B-SRC", "B-SRC", "I-SRC", "I-SRC", "O"],
        ),
    ],
)
def test_strict_tags_of_other_schemes(labels, found, strict):
    """A model that was trained on IO or IOBES tags is judged by the entities that it means."""
    assert strict_tags(found, labels) == strict
    assert {split_label(tag)[1] for tag in strict} == {split_label(tag)[1] for tag in found}


# -- bounds ----------------------------------------------------------------------------------------------------------


def many(wrong):
    """Fifty queries with an entity of each of two types; in the first `wrong` of them the first one is missed."""
    gold = ("B-SRC", "O", "B-DEST")
    return count([TagPair(gold, ("O" if row < wrong else "B-SRC", "O", "B-DEST")) for row in range(50)], TYPES)


@given(pairs())
def test_equal_models_lose_nothing(found):
    """The bound of a model's loss to itself is exactly 0, overall and for every type."""
    counts = count(found, TYPES)
    assert loss_bounds(counts, counts) == dict.fromkeys(("", *TYPES, UNKNOWN_TYPE), 0.0)


def test_bounds_are_deterministic():
    """The same counts give the same bounds, to the last digit."""
    draw = Random(0)
    tagged = [[draw.choice(LABELS) for _ in range(10)] for _ in range(200)]
    reference = count([TagPair(tuple(row), tuple(row)) for row in tagged], TYPES)
    changed = [[tag if draw.random() < 0.8 else "O" for tag in row] for row in tagged]
    pairs_of_both = zip(tagged, changed, strict=True)
    variant = count([TagPair(tuple(gold), tuple(predicted)) for gold, predicted in pairs_of_both], TYPES)
    bounds = [loss_bounds(reference, variant) for _ in range(3)]
    assert bounds[0] == bounds[1] == bounds[2]
    assert len(set(bounds[0].values())) == len(TYPES) + 2  # bounds that are all different can differ


def test_bounds_lie_above_the_loss():
    """The bound of a real loss is above the loss itself, and higher for more confidence; the other type loses nothing."""
    reference, variant = many(0), many(5)
    bounds = loss_bounds(reference, variant)
    assert bounds[""] > reference.micro - variant.micro > 0
    assert bounds["SRC"] > reference.by_type["SRC"] - variant.by_type["SRC"] > 0
    assert bounds["DEST"] == bounds["DATE"] == 0.0
    assert loss_bounds(reference, variant, confidence=0.99)[""] >= bounds[""]


def test_losing_more_bounds_higher():
    """The more a variant loses, the higher the bound; one that gains has a bound below 0."""
    bounds = [loss_bounds(many(10), many(wrong))[""] for wrong in (0, 10, 20, 40)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[1] == 0.0 < bounds[2]
