"""Generated queries: what the strategies promise, and that the suite finds planted faults and shrinks them."""

from __future__ import annotations

import json
import re
import unicodedata
import zlib

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from harness.errors import DataError, DocumentError
from harness.queries import (
    MUTATIONS,
    Origin,
    Relation,
    arbitrary_queries,
    draw_examples,
    grammar_of,
    grammar_queries,
    long_queries,
    mutated_queries,
    related_queries,
    round_robin,
    smallest_failing,
    textual_relations,
)
from harness.tagging import EncodedQuery, EntitySpan, LabelledQuery, LabelledSet, Window, Word, tag
from suites.queries import SUITE
from suites.queries import examination as ex
from suites.queries.cases import EXAMPLES, draw_cases
from suites.queries.saved import FILE, MAXIMUM, SavedQuery, read_saved, save

LABELS = ("O", "B-CITY", "I-CITY", "B-DAY", "I-DAY")
CITIES = ("pune", "goa", "delhi", "नागपुर")
DAYS = ("today", "friday")


def labelled(text, *names):
    spans = [EntitySpan(text.index(name), text.index(name) + len(name), kind) for name, kind in names]
    return LabelledQuery(text, tuple(sorted(spans)))


LINE = "fake_model"
SET = LabelledSet(
    "fake",
    (
        labelled("bus from pune to goa today", ("pune", "CITY"), ("goa", "CITY"), ("today", "DAY")),
        labelled("delhi friday", ("delhi", "CITY"), ("friday", "DAY")),
        labelled("नागपुर ticket, please!", ("नागपुर", "CITY")),
        labelled("cancel my seat"),
    ),
)


def token_id(word):
    return 10 + zlib.crc32(word.lower().encode()) % 100_000


class FakeTagger:
    """Labels words by two lists of names; needs no model."""

    labels = LABELS
    pad_token_id = 0
    kinds = {token_id(name): 1 for name in CITIES} | {token_id(name): 3 for name in DAYS}

    def encode(self, texts):
        return [self.encode_one(text) for text in texts]

    def encode_one(self, text):
        words = [Word(*match.span()) for match in re.finditer(r"\w[\w\u0900-\u097f]*|[^\w\s]", text)]
        ids = [1, *(token_id(text[word.start : word.end]) for word in words), 2]
        places = list(range(len(words)))
        return EncodedQuery(text, words, [Window(ids, [0] * len(ids), [place + 1 for place in places], places)])

    def logits(self, batch):
        answer = np.zeros((*batch.input_ids.shape, len(LABELS)), np.float32)
        for place, token in np.ndenumerate(batch.input_ids):
            answer[(*place, self.kinds.get(int(token), 0))] = 4
        return answer


class ByteOffsets(FakeTagger):
    """Counts bytes where characters are meant, a classic."""

    def encode_one(self, text):
        query = super().encode_one(text)
        words = [Word(len(text[: word.start].encode()), len(text[: word.end].encode())) for word in query.words]
        return query._replace(words=words)


class BatchDependent(FakeTagger):
    """Takes goa for a day whenever it is not alone."""

    def logits(self, batch):
        answer = super().logits(batch)
        if len(batch.input_ids) > 1:
            answer[batch.input_ids == token_id("goa"), 3] = 5
        return answer


class Nondeterministic(FakeTagger):
    """Never says quite the same about goa."""

    asked = 0

    def logits(self, batch):
        self.asked += 1
        answer = super().logits(batch)
        answer[batch.input_ids == token_id("goa")] += 1e-6 * self.asked
        return answer


class Flipping(FakeTagger):
    """Takes goa for a day."""

    kinds = FakeTagger.kinds | {token_id("goa"): 3}


class NoNumber(FakeTagger):
    """Has no number for goa."""

    def logits(self, batch):
        answer = super().logits(batch)
        answer[batch.input_ids == token_id("goa")] = np.nan
        return answer


class Raising(FakeTagger):
    """Falls over control characters."""

    def encode_one(self, text):
        if any(unicodedata.category(letter) == "Cc" for letter in text):
            message = "control character"
            raise ValueError(message)
        return super().encode_one(text)


class OneByOne(FakeTagger):
    """A graph with a batch size of one baked in."""

    def logits(self, batch):
        if len(batch.input_ids) > 1:
            message = "Got invalid dimensions for input"
            raise RuntimeError(message)
        return super().logits(batch)


class OtherTokenizer(FakeTagger):
    """Has another number for goa."""

    def encode_one(self, text):
        query = super().encode_one(text)
        (window,) = query.windows
        ids = [3 if token == token_id("goa") else token for token in window.input_ids]
        return query._replace(windows=[window._replace(input_ids=ids)])


class CaseSensitive(FakeTagger):
    """Knows no names in capitals."""

    def encode_one(self, text):
        query = super().encode_one(text)
        (window,) = query.windows
        upper = [text[word.start : word.end].isupper() for word in query.words]
        ids = [7 if shouted else token for token, shouted in zip(window.input_ids[1:-1], upper, strict=True)]
        return query._replace(windows=[window._replace(input_ids=[1, *ids, 2])])


@pytest.fixture(scope="module", autouse=True)
def hypothesis_home(tmp_path_factory):
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))
    yield
    set_hypothesis_home_dir(None)


@pytest.fixture(scope="module")
def grammar():
    return grammar_of(SET)


@pytest.fixture(scope="module")
def cases():
    return draw_cases(SET, 64)


@pytest.fixture
def examine(cases):
    reference = ex.ReferenceAnswers(FakeTagger())
    return lambda model, asked=cases: ex.Examination(model, reference, asked)


# --- strategies ---------------------------------------------------------------------------------------------------


def test_grammar_keeps_every_template_and_name(grammar):
    """The templates and names are those of the labelled set, the shortest first."""
    assert len(grammar.templates) == len(SET.queries)
    assert grammar.templates[0].slots == ("CITY", "DAY")
    assert grammar.names == {"CITY": ("goa", "pune", "delhi", "नागपुर"), "DAY": ("today", "friday")}


def test_grammar_queries_have_right_spans_and_names(grammar):
    """Each span of a grammar query holds a name that the labelled set shows for its type."""
    queries = draw_examples(grammar_queries(grammar), 60)
    assert {query.origin for query in queries} == {Origin.GRAMMAR}
    for query in queries:
        assert list(query.spans) == sorted(query.spans)
        for span in query.spans:
            assert query.text[span.start : span.end] in grammar.names[span.label]
    assert len({query.text for query in queries}) > len(SET.queries)


def test_refilling_a_template_with_its_own_names_gives_the_query_back(grammar):
    """A template filled with the names that were cut out is the labelled query."""
    texts = {query.text for query in draw_examples(grammar_queries(grammar), 200)}
    assert {query.text for query in SET.queries} <= texts


def test_an_empty_set_and_overlapping_spans_are_errors():
    """What cannot be a grammar is a DataError, not an empty one."""
    with pytest.raises(DataError, match="no query"):
        grammar_of(LabelledSet("empty", ()))
    crossing = LabelledQuery("a b c", (EntitySpan(0, 3, "X"), EntitySpan(2, 5, "Y")), "row 7")
    with pytest.raises(DataError, match="row 7: the spans overlap"):
        grammar_of(LabelledSet("crossing", (crossing,)))


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("text", ["", " ", "a", "bus to goa", "é\u0301🚌 ß"])
def test_mutations_take_any_text(name, text):
    """A mutation of any text at any place is a text that UTF-8 can carry."""
    for place in range(len(text) + 1):
        for choice in range(40):
            MUTATIONS[name](text, place, choice).encode()


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_change_something(name):
    """Each mutation changes a plain query for most choices."""
    text = "bus to goa today"
    changed = [MUTATIONS[name](text, place, choice) != text for place in range(len(text)) for choice in range(40)]
    assert sum(changed) > len(changed) / 2


def test_mutated_queries_reach_what_keyboards_do(grammar):
    """Among the mutated queries of one run are emoji, currency, other scripts, capitals and odd spaces."""
    texts = [query.text for query in draw_examples(mutated_queries(grammar), 80)]
    for reached in (
        r"[\U0001f300-\U0001faff]",
        r"[₹€£¥$]|Rs\.",
        r"[\u0430-\u044f\u03b1-\u03c9]",
        r"[A-Z]{3}",
        r"  |[\t\n\u00a0\u3000]",
        r"\w[?!,;]",
    ):
        assert any(re.search(reached, text) for text in texts), reached


def kinds_of(texts):
    everything = "".join(texts)
    return {
        *map(unicodedata.category, everything),
        *map(unicodedata.bidirectional, everything),
        *("empty" for text in texts if not text),
        *("blank" for text in texts if text and not text.strip()),
        *("joined" for text in texts if "\u200d" in text),
        *("astral" for text in texts if any(ord(letter) > 0x1FFFF for letter in text)),
        *("long word" for text in texts if any(len(word) > 100 for word in text.split())),
    }


AWKWARD = {"empty", "blank", "joined", "astral", "long word", "Mn", "Me", "Cf", "Cc", "So", "Zs", "Co", "Cn", "R", "AL"}


def test_arbitrary_queries_reach_every_kind_of_text(cases):
    """Arbitrary queries are all kinds of text that tokenizers stumble over, in every run; none has a surrogate."""
    drawn = kinds_of([query.text for query in draw_examples(arbitrary_queries(), 300)])
    assert drawn >= AWKWARD - {"Me"}
    assert "Cs" not in drawn
    assert kinds_of([query.text for query in cases.arbitrary]) >= AWKWARD


def test_long_queries_have_more_words_than_asked(grammar):
    """A long query has at least as many words as the model reads tokens."""
    queries = draw_examples(long_queries(grammar, 100), 5)
    assert all(len(query.text.split()) >= 100 for query in queries)


def test_every_relation_is_drawn_and_carries_text_over(grammar):
    """In a follow-up, the carried spans of the source hold the same text, up to case, or a name of the same type."""
    related = draw_examples(related_queries(grammar), 150)
    assert {found.relation for found in related} == set(Relation)
    for found in related:
        spans = tag(FakeTagger(), [found.source])[0].spans(LABELS)
        carried = found.expected(spans)
        assert carried is not None
        for old, new in zip(spans, carried, strict=True):
            text = found.follow_up[new.start : new.end]
            same = text.lower() == found.source[old.start : old.end].lower()
            assert same or text in grammar.names["CITY"] + grammar.names["DAY"]


def test_a_tagger_that_knows_the_names_keeps_every_textual_relation(grammar):
    """The relations that keep the names hold for a tagger that looks at nothing but names."""
    for found in draw_examples(related_queries(grammar), 80):
        if found.relation is not Relation.SWAPPED_NAMES:
            source, follow_up = (answer.spans(LABELS) for answer in tag(FakeTagger(), [found.source, found.follow_up]))
            assert found.holds(source, follow_up), found


def test_an_entity_that_cuts_a_renamed_slot_has_no_counterpart(grammar):
    """A span that begins or ends within a name that was replaced cannot be carried over."""
    found = next(
        found
        for found in draw_examples(related_queries(grammar), 80)
        if found.relation is Relation.ANOTHER_NAME and any(piece.whole for piece in found.pieces)
    )
    slot = next(piece for piece in found.pieces if piece.whole)
    assert found.expected([EntitySpan(slot.start, slot.end, "CITY")]) == [
        EntitySpan(slot.new_start, slot.new_end, "CITY")
    ]
    assert found.expected([EntitySpan(slot.start, slot.end - 1, "CITY")]) is None
    assert not found.holds([EntitySpan(slot.start + 1, slot.end, "CITY")], [])


def test_case_relations_keep_the_length():
    """Letters whose capitals are longer stay as they are, so that offsets stay right."""
    for found in textual_relations("straße İstanbul ŉ").values():
        if found.relation in {Relation.UPPER_CASE, Relation.LOWER_CASE}:
            assert len(found.source) == len(found.follow_up)


def test_draws_repeat(grammar):
    """The same strategy draws the same examples again."""
    for strategy in (arbitrary_queries(), mutated_queries(grammar), related_queries(grammar)):
        assert draw_examples(strategy, 30) == draw_examples(strategy, 30)


def test_explicit_examples_come_first():
    """Explicit examples are drawn before the others, in their order."""
    assert draw_examples(st.integers(0, 5), 3, [91, 92])[:2] == [91, 92]


def test_smallest_failing_shrinks():
    """Shrinking finds the smallest failing example, and none where none fails."""
    texts = arbitrary_queries().map(lambda query: query.text)
    size = lambda text: (len(text), text)  # noqa: E731
    found = smallest_failing(texts, 80, lambda text: any(ord(letter) > 0x7F for letter in text), size, 20_000)
    assert len(found) == 1
    assert smallest_failing(texts, 80, lambda _: False, size, 20_000) is None


def test_smallest_failing_keeps_to_its_effort():
    """Shrinking stops asking when its effort is used up, and still returns something that fails."""
    asked = []

    def fails(text):
        asked.append(text)
        return len(text) > 20

    found = smallest_failing(arbitrary_queries().map(lambda q: q.text), 80, fails, lambda t: (len(t), t), 600)
    assert len(found) > 20
    first = next(place for place, text in enumerate(asked) if len(text) > 20)
    assert len(asked) - first <= 12
    assert len(asked) == len(set(asked))


def test_round_robin():
    """Groups take turns until all are empty."""
    assert list(round_robin(("abc", "x", "12"))) == ["a", "x", "1", "b", "2", "c"]


@pytest.fixture
def state(tmp_path):
    """The state folder of a release line."""
    folder = tmp_path / LINE
    folder.mkdir()
    return folder


# --- cases and saved queries --------------------------------------------------------------------------------------


def test_cases_are_enough_and_distinct(cases):
    """A run has about its full number of examples even with four templates, and asks no text twice in a group."""
    assert cases.examples >= EXAMPLES * 0.95
    for group in (cases.grammar, cases.arbitrary):
        assert len({query.text for query in group}) == len(group)
    assert draw_cases(SET, 64).texts == cases.texts


def test_saved_queries_come_back(state):
    """What is saved is read again, whatever its characters, once, with the run that saw it first."""
    texts = ["", "a\u2028b\u0085c", "\x00\t\n\r", "👨\u200d👩 \u202egoa", '"\\']
    save(state, [SavedQuery(text, "offset_violations", "int8", "run 1", LINE) for text in texts])
    save(state, [SavedQuery(texts[1], "offset_violations", "int8", "run 2", LINE)])
    save(state, [SavedQuery(texts[1], "offset_violations", "fp32", "run 2", LINE)])
    found = read_saved(state)
    assert [query.text for query in found] == [*texts, texts[1]]
    assert [query.run for query in found] == ["run 1"] * 5 + ["run 2"]
    assert (state / FILE).read_text(encoding="ascii").count("\n") == 6


def test_saving_only_appends(state):
    """The lines of former runs stay as they are, byte for byte."""
    save(state, [SavedQuery("a", "p", "int8", "run 1", LINE)])
    before = (state / FILE).read_bytes()
    save(state, [SavedQuery("b", "p", "int8", "run 2", LINE)])
    assert (state / FILE).read_bytes().startswith(before)


def test_the_saved_file_is_bounded(state):
    """The oldest queries leave when there is no place for new ones."""
    save(state, [SavedQuery(str(number), "p", "int8", "r", LINE) for number in range(MAXIMUM + 3)])
    found = read_saved(state)
    assert [found[0].text, found[-1].text, len(found)] == ["3", str(MAXIMUM + 2), MAXIMUM]


def test_no_state_folder_saves_nothing(state):
    """Without a folder nothing is read or written; a new folder has no saved queries."""
    save(None, [SavedQuery("a", "p", "int8", "r", LINE)])
    assert read_saved(None) == read_saved(state) == read_saved(state / "new") == []
    save(state / "new", [])
    assert not (state / "new").exists()


GOOD = {"text": "a", "property": "p", "variant": "int8", "run": "r", "line": LINE}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        json.dumps(GOOD)[:-4],
        json.dumps({**GOOD, "text": 1}),
        json.dumps({**GOOD, "more": "x"}),
        json.dumps({**GOOD, "text": "\ud800"}),
        json.dumps({**GOOD, "line": "another_model"}),
        json.dumps({**GOOD, "line": None}),
        json.dumps({"text": "a"}),
        " ",
    ],
)
def test_a_damaged_file_is_an_error_with_its_line(state, line):
    """A damaged line is named, never skipped, and saving leaves the file alone."""
    content = json.dumps(GOOD) + "\n" + line + "\n"
    (state / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(DocumentError, match=rf"{FILE} line 2"):
        read_saved(state)
    with pytest.raises(DocumentError, match=FILE):
        save(state, [SavedQuery("b", "p", "int8", "r", LINE)])
    assert (state / FILE).read_text(encoding="utf-8") == content


def test_queries_of_another_line_are_not_replayed(state):
    """A file that was put into the wrong line's folder is an error that says where it belongs; none of it is asked."""
    save(state, [SavedQuery("a", "p", "int8", "r", LINE)])
    other = state.rename(state.with_name("another_model"))
    with pytest.raises(DocumentError, match=f"line 1 is of the release line '{LINE}', not 'another_model'. Move it"):
        read_saved(other)


def test_entries_of_the_first_format_belong_to_the_folder(state):
    """An entry without a line, as the first format wrote them, is of the line into whose folder it was put."""
    first_format = '{"text": "goa", "property": "p", "variant": "int8", "run": "r"}\n'
    (state / FILE).write_text(first_format, encoding="utf-8")
    assert read_saved(state) == [SavedQuery("goa", "p", "int8", "r", LINE)]
    save(state, [SavedQuery("pune", "p", "int8", "r", LINE)])
    assert [query.line for query in read_saved(state)] == [LINE, LINE]


def test_unreadable_and_overlong_files_are_errors(state):
    """Bytes that are not UTF-8, and more lines than are ever written, are errors naming the file."""
    (state / FILE).write_bytes(b"\xff\n")
    with pytest.raises(DocumentError, match=FILE):
        read_saved(state)
    (state / FILE).write_text("".join(json.dumps({**GOOD, "text": str(n)}) + "\n" for n in range(MAXIMUM + 1)))
    with pytest.raises(DocumentError, match=f"{MAXIMUM} at most"):
        read_saved(state)


def test_saved_queries_are_asked_again(examine):
    """Every saved text is among the cases; a fault that only it shows is found."""
    odd = "xyzzy goa plugh"
    saved = [
        SavedQuery(odd, "offset_violations", "int8", "r", LINE),
        SavedQuery("pune goa", "grammar_largest_flipped_margin", "int8", "r", LINE),
    ]
    cases = draw_cases(SET, 64, saved)
    assert odd in {query.text for query in cases.arbitrary}
    assert "pune goa" in {query.text for query in cases.grammar}

    class OnlyOdd(FakeTagger):
        def encode_one(self, text):
            query = super().encode_one(text)
            return query._replace(words=[Word(0, 99)] * len(query.words)) if text == odd else query

    found = ex.count_violations(examine(OnlyOdd(), cases), ex.PROPERTIES["offset_violations"])
    assert found.value == 1
    assert found.details["smallest"]["query"] == odd


def test_saved_queries_do_not_count_in_shares(examine, cases):
    """A saved query may move a margin, never an agreement, which it would drag down run by run."""
    saved = [SavedQuery(f"goa {number}", "grammar_largest_flipped_margin", "int8", "r", LINE) for number in range(50)]
    more = draw_cases(SET, 64, saved)
    assert len(more.grammar) > len(cases.grammar)
    shares = [ex.label_agreement(examine(FakeTagger(), asked), asked.grammar) for asked in (cases, more)]
    assert shares[0].details["words"] == shares[1].details["words"]


def test_a_second_run_finds_the_same(examine, cases):
    """What a run saves changes no value of the next run about the same candidate, and nothing more is saved."""
    first = examine(Flipping())
    found = ex.largest_flipped_margin(first, cases.grammar)
    saved = [SavedQuery(text, "grammar_largest_flipped_margin", "int8", "r", LINE) for text in found.saves]
    asked = draw_cases(SET, 64, saved)
    second = examine(Flipping(), asked)
    assert asked.examples == cases.examples
    assert [first.batch_of(query.text) for query in cases.queries][:-8] == [
        second.batch_of(query.text) for query in asked.queries if query.origin is not Origin.SAVED
    ][:-8]
    again = ex.largest_flipped_margin(second, asked.grammar)
    assert (again.value, again.saves) == (found.value, found.saves)
    assert ex.logit_difference(first).value == ex.logit_difference(second).value


# --- planted faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ex.PROPERTIES)
def test_a_faithful_candidate_breaks_nothing(examine, name):
    """A candidate that is the reference breaks no property."""
    assert ex.count_violations(examine(FakeTagger()), ex.PROPERTIES[name]).value == 0


def test_a_faithful_candidate_agrees(examine):
    """A candidate that is the reference agrees in everything, and there is something to agree about."""
    examined = examine(FakeTagger())
    for queries in (examined.cases.grammar, examined.cases.arbitrary):
        assert ex.label_agreement(examined, queries).value == 1
        assert ex.entity_agreement(examined, queries).value == 1
        assert ex.largest_flipped_margin(examined, queries).value == 0
    assert ex.logit_difference(examined).value == ex.batch_logit_difference(examined).value == 0
    assert ex.relation_checks(examined).value > 30
    assert ex.broken_relations(examined).value == 0


@pytest.mark.parametrize(
    ("fault", "name", "smallest"),
    [
        (BatchDependent, "batch_dependent_queries", r"(?i).{0,3}\bgoa\b.{0,8}"),
        (Nondeterministic, "nondeterministic_queries", r"(?i).{0,3}\bgoa\b.{0,8}"),
        (NoNumber, "failed_queries", r"(?i).{0,3}\bgoa\b.{0,8}"),
        (OtherTokenizer, "tokenization_differences", r"(?i).{0,3}\bgoa\b.{0,8}"),
        (ByteOffsets, "offset_violations", r"[^\x00-\x7f]"),
        (Raising, "failed_queries", r"[\x00-\x1f\x7f-\x9f]"),
    ],
)
def test_a_planted_fault_is_counted_and_shrunk(examine, fault, name, smallest):
    """Each fault breaks the property that it should, and the smallest query that shows it is reported and saved."""
    found = ex.count_violations(examine(fault()), ex.PROPERTIES[name])
    assert found.value > 0
    assert re.fullmatch(smallest, found.details["smallest"]["query"], re.DOTALL), found.details["smallest"]
    assert found.details["smallest"]["why"]
    assert found.saves == (found.details["smallest"]["query"],)
    assert len(found.details["queries"]) <= 10
    json.dumps(found.details, allow_nan=False)


def test_a_fixed_batch_size_fails_every_query(examine):
    """A candidate that only takes one row fails for every query that shares a batch."""
    found = ex.count_violations(examine(OneByOne()), ex.PROPERTIES["failed_queries"])
    assert found.value == found.details["of"] or found.value == found.details["of"] - 1
    assert "invalid dimensions" in found.details["smallest"]["why"]


def test_a_failing_query_disagrees(examine):
    """Words without an answer count as words with a wrong one."""
    examined = examine(NoNumber())
    assert ex.label_agreement(examined, examined.cases.grammar).value < 1
    assert ex.entity_agreement(examined, examined.cases.grammar).value < 1


def test_a_label_flip_is_measured_and_shrunk(examine):
    """A flipped label shows in agreement and margin, and the smallest query that flips is reported."""
    examined = examine(Flipping())
    queries = examined.cases.grammar
    found = ex.largest_flipped_margin(examined, queries)
    assert found.value == pytest.approx(4)
    assert re.fullmatch(r"(?i).{0,3}\bgoa\b.{0,8}", found.details["smallest"]["query"], re.DOTALL)
    assert found.details["smallest"]["flips"] == [
        {"word": "goa", "reference": "B-CITY", "candidate": "B-DAY", "margin": 4.0}
    ]
    assert found.saves
    assert 0.5 < ex.label_agreement(examined, queries).value < 1
    assert ex.entity_agreement(examined, queries).value < 1
    assert ex.logit_difference(examined).value == pytest.approx(4)


def test_labelled_entities_are_held_against_both(examine):
    """The grammar knows what is in its queries; how often each model finds just that is told beside the agreement."""
    examined = examine(Flipping())
    known = [query for query in examined.cases.grammar if query.spans is not None]
    details = ex.entity_agreement(examined, examined.cases.grammar).details
    assert known
    assert details["reference_finds_the_labelled_entities"] == f"{len(known)} of {len(known)}"
    wrong = sum("goa" in query.text.split() for query in known)
    assert 0 < wrong < len(known)
    assert details["candidate_finds_the_labelled_entities"] == f"{len(known) - wrong} of {len(known)}"


def test_permuted_label_names_are_flips(examine):
    """Labels are compared by name: the same indices under other names disagree."""
    model = FakeTagger()
    model.labels = ("O", "B-DAY", "I-DAY", "B-CITY", "I-CITY")
    examined = examine(model)
    assert ex.label_agreement(examined, examined.cases.grammar).value < 1


def test_a_broken_relation_is_found_and_shrunk(examine):
    """A candidate that loses names in capitals breaks a relation that the reference keeps; a small pair shows it."""
    found = ex.broken_relations(examine(CaseSensitive()))
    assert 0 < found.value < 1
    smallest = found.details["smallest"]
    assert smallest["relation"] == Relation.UPPER_CASE.value
    assert len(smallest["source"]["query"]) <= len("delhi friday")
    assert smallest["source"]["candidate"] == smallest["source"]["reference"]
    assert smallest["follow_up"]["candidate"] != smallest["follow_up"]["reference"]
    json.dumps(found.details, allow_nan=False)


def test_queries_that_the_reference_fails_on_are_not_asked(cases):
    """Where the reference itself raises there is nothing to compare; the examples left are counted."""
    reference = ex.ReferenceAnswers(Raising())
    reference.prepare(cases.texts)
    refused = reference.refused(cases.texts)
    assert refused
    left = cases.without(frozenset(refused))
    assert left.examples < cases.examples
    examined = ex.Examination(Raising(), reference, left)
    assert ex.count_violations(examined, ex.PROPERTIES["failed_queries"]).value == 0


def test_nothing_to_compare_is_no_perfect_share(examine):
    """An agreement over no words at all is an error, not 1."""
    examined = examine(FakeTagger())
    with pytest.raises(ValueError, match="not one word"):
        ex.label_agreement(examined, [])


def test_batches_are_mixed_and_small():
    """Batches keep the order, hold two texts at least, and stay small when a text is long."""
    texts = ["a", "b" * 5000, "c", *"defghijklm"]
    found = list(ex.batches(texts))
    assert [text for batch in found for text in batch] == texts
    assert found[0] == texts[:2]
    assert max(map(len, found)) == 8


def test_every_property_is_promised():
    """What the suite counts, it promises."""
    assert set(ex.PROPERTIES) <= {promise.name for promise in SUITE.measures}
