"""Which queries share a model run, in what order they are answered, and what streams hold."""

from __future__ import annotations

from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.batches import Budget, Crew, plan, windows_of
from harness.tagging import EncodedQuery, Window, Word


class Echo:
    """A word a space-separated piece and a token; the logits of a token say what it is. Counts its runs."""

    labels = ("O", "B-X")
    pad_token_id = 0

    def __init__(self):
        self.runs = []

    def encode(self, texts):
        return [self._encode(text) for text in texts]

    def _encode(self, text):
        ids = [int(piece) for piece in text.split()]
        words = [Word(index, index + 1) for index in range(len(ids))]
        window = Window(ids, [0] * len(ids), list(range(len(ids))), list(range(len(ids))))
        return EncodedQuery(text, words, [window])

    def logits(self, batch):
        self.runs.append(batch.input_ids.shape)
        return np.stack([batch.input_ids, -batch.input_ids], axis=-1).astype(np.float32)


def query_of(length):
    return " ".join(str(1 + index) for index in range(length))


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 20), st.integers(1, 100))
def test_every_row_is_run_once_within_the_budget(lengths, rows, tokens):
    """All rows with words are in one batch each, the longest first, and no batch of several exceeds rows or tokens."""
    queries = Echo().encode([query_of(length) for length in lengths])
    batches = plan(queries, Budget(rows, tokens))
    assert sorted(row.query for batch in batches for row in batch) == [i for i, n in enumerate(lengths) if n]
    sizes = [len(row.window.input_ids) for batch in batches for row in batch]
    assert sizes == sorted(sizes, reverse=True)
    for batch in batches:
        longest = len(batch[0].window.input_ids)
        assert len(batch) == 1 or (len(batch) <= rows and longest * len(batch) <= tokens)


@pytest.mark.parametrize("workers", [1, 3])
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 7), st.integers(1, 9))
def test_answers_come_in_the_order_asked(workers, lengths, rows, window):
    """Whatever the batches and the windows, answer i is that of query i."""
    crew = Crew(Echo(), workers)
    texts = [query_of(length) for length in lengths]
    answers = list(crew.tagged(iter(texts), Budget(rows), window))
    assert [answer.text for answer in answers] == texts
    for answer, length in zip(answers, lengths, strict=True):
        assert answer.logits[:, 0].tolist() == list(range(1, length + 1))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_endless_source_is_read_two_windows_ahead(workers):
    """Answers of an endless iterable come while it goes on, and no more than two windows of it are read ahead."""
    read = []

    def source():
        for number in count():
            read.append(number)
            yield query_of(1 + number % 5)

    answers = Crew(Echo(), workers).tagged(source(), Budget(4), window=8)
    for taken, _ in enumerate(islice(answers, 100), start=1):
        assert len(read) <= taken + 2 * 8
    answers.close()


@pytest.mark.parametrize("good", [0, 1, 7, 8, 20])
def test_an_error_of_the_source_comes_after_the_answers(good):
    """What a source gave before it failed is answered, and its own exception is raised then."""

    class SourceError(Exception):
        pass

    def source():
        for _ in range(good):
            yield "1 2"
        raise SourceError

    answers = []
    tagged = Crew(Echo(), 2).tagged(source(), Budget(4), window=8)
    with pytest.raises(SourceError):
        answers.extend(answer.text for answer in tagged)
    assert answers == ["1 2"] * good


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_model_is_raised(workers):
    """A run that fails ends the answers with its error."""
    model = Echo()

    def failing(batch):
        if 13 in batch.input_ids:
            message = "thirteen"
            raise ArithmeticError(message)
        return Echo.logits(model, batch)

    model.logits = failing
    with pytest.raises(ArithmeticError, match="thirteen"):
        list(Crew(model, workers).tagged(["1 2"] * 20 + ["13"] + ["1 2 3"] * 20, Budget(2), window=10))


def test_rows_that_disturb_each_other_are_run_alone():
    """A model whose answers depend on the other rows of a run gets one row a run."""
    model = Echo()
    model.answers_depend_on_mates = True
    list(Crew(model, 1).tagged(["1 2"] * 5, Budget(4), window=10))
    assert model.runs == [(1, 2)] * 5


def test_windows_of():
    """Any iterable is cut into full lists and a rest."""
    assert list(windows_of(map(str, range(5)), 2)) == [["0", "1"], ["2", "3"], ["4"]]
    assert list(windows_of([], 2)) == []
