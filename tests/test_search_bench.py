"""`harness.search.bench`: fidelity counted on made-up answers and on a tiny export, latency by a clock that is no clock."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import pytest

from harness.errors import ArtifactError, UsageError
from harness.paired.contest import LOOKS
from harness.recipes.recipe import FAST, SMOOTHED, STATIC, USUAL, Embeddings
from harness.recipes.workshop import Workshop
from harness.search import bench as module
from harness.search.bench import CONFIDENT, Bench
from harness.tagging import LabelledQuery, LabelledSet

MS = 1_000_000
FEW = 12


class FakeClock:
    """A clock that stands still until somebody spends time."""

    def __init__(self):
        self.ns = 0

    def now_ns(self):
        return self.ns

    def utc(self):
        return dt.datetime(2026, 11, 1, tzinfo=dt.timezone.utc)

    def pause(self, seconds):
        self.ns += round(seconds * 1e9)


class TickingClock(FakeClock):
    """A clock that moves on by a millisecond whenever it is read."""

    def now_ns(self):
        self.ns += MS
        return self.ns


@pytest.fixture(scope="module")
def workshop(tiny_export, labelled):
    """Recipes of the tiny export, calibrated on queries that do not validate."""
    return Workshop(tiny_export, labelled.texts[FEW : 3 * FEW])


@pytest.fixture(scope="module")
def validation(labelled):
    """A few queries, labelled with what the checkpoint says, so that FP32's F1 is 1."""
    return LabelledSet("validation", tuple(labelled.queries[:FEW]))


@pytest.fixture(scope="module")
def real(workshop, validation):
    """A bench with nothing made up."""
    return Bench(workshop, validation, FakeClock())


# -- on a tiny export --------------------------------------------------------------------------------------------------


def test_a_recipe_that_rounds_nothing(real, workshop):
    """A fused graph all of whose products and tables stay in FP32 answers as FP32 does."""
    recipe = replace(STATIC, float_sites=workshop.products(STATIC).all, embeddings=Embeddings.FLOAT, compensated=False)
    found = real.fidelity(recipe)
    assert found.largest_logit_difference < 1e-4
    assert found.changed_queries == found.changed_words == found.confident_flips == found.f1_loss == 0
    assert found.largest_flipped_margin == 0


def test_the_usual_recipe_rounds(real, workshop):
    """What is quantized differs, and the size is the file's."""
    found = real.fidelity(USUAL)
    assert 1e-3 < found.mean_logit_difference < found.largest_logit_difference
    assert found.size_bytes == workshop.build(USUAL).ByteSize() < workshop.plain.ByteSize()


def test_fidelity_is_repeatable(real, tiny_export, labelled, validation):
    """Another bench finds the same digits."""
    again = Bench(Workshop(tiny_export, labelled.texts[FEW : 3 * FEW]), validation, FakeClock())
    assert real.fidelity(SMOOTHED) == again.fidelity(SMOOTHED)


# -- on made-up answers ------------------------------------------------------------------------------------------------


class Answers:
    """Stands in for running a graph: gives logits that were made up, and remembers with which settings it was asked."""

    def __init__(self, first):
        self.logits, self.settings, self.calls = first, [], 0

    def __call__(self, model, feeds, settings=None):
        assert len(feeds) == len(self.logits)
        self.settings.append(settings)
        return [np.array(row) for row in self.logits]


@pytest.fixture
def made_up(monkeypatch, workshop, validation):
    """A bench whose FP32 answers have a margin of 3 for O everywhere; its answers can be changed."""
    candidate = workshop.candidate
    rows = [
        np.zeros((1, len(query.windows[0].input_ids), len(candidate.labels)), np.float32)
        for query in candidate.encode(validation.texts)
    ]
    for row in rows:
        row[..., 0] = 3.0
    answers = Answers(rows)
    monkeypatch.setattr(module, "answers", answers)
    monkeypatch.setattr(workshop, "build", lambda recipe: workshop.plain)
    return answers, lambda: Bench(workshop, validation, FakeClock())


def test_equal_answers(made_up):
    """Answers that are FP32's own differ in nothing, and the recipe's settings are what they were asked with."""
    answers, opened = made_up
    found = opened().fidelity(STATIC)
    assert found.mean_logit_difference == found.largest_logit_difference == found.largest_flipped_margin == 0
    assert found.changed_queries == found.changed_words == found.confident_flips == found.f1_loss == 0
    assert answers.settings[-1] == STATIC.serving


@pytest.mark.parametrize(
    ("margin", "confident"), [(0.5, 0), (CONFIDENT - 2**-10, 0), (CONFIDENT, 1), (CONFIDENT + 1, 1)]
)
def test_confident_flips(made_up, workshop, validation, margin, confident):
    """A flip counts by the margin that FP32 had there, from 2 logits on; not by how sure the recipe is."""
    answers, opened = made_up
    answers.logits[0][0, 1, 0] = margin
    bench = opened()
    answers.logits[0][0, 1, 1] = margin + 100  # the first word of the first query
    found = bench.fidelity(STATIC)
    words = sum(len(query.words) for query in workshop.candidate.encode(validation.texts))
    assert (found.confident_flips, found.largest_flipped_margin) == (confident, margin)
    assert found.changed_queries == pytest.approx(1 / FEW)
    assert found.changed_words == pytest.approx(1 / words)
    assert found.largest_logit_difference == margin + 100
    assert found.mean_logit_difference == pytest.approx((margin + 100) / (words * len(workshop.candidate.labels)))


def test_what_is_no_word_does_not_count(made_up):
    """Only the first subword of a word is looked at, as in what is served."""
    answers, opened = made_up
    bench = opened()
    for row in answers.logits:
        row[0, [0, -1]] = 99.0  # [CLS] and [SEP]
    assert bench.fidelity(STATIC).largest_logit_difference == 0


def _tell(answers, workshop, validation):
    """Make the answers say what is labelled."""
    labels = workshop.candidate.labels
    for row, query, encoded in zip(
        answers.logits, validation.queries, workshop.candidate.encode(validation.texts), strict=True
    ):
        (window,) = encoded.windows
        for word, head in zip(window.words, window.heads, strict=True):
            begin = encoded.words[word][0]
            span = next((span for span in query.spans if span.start <= begin < span.end), None)
            prefix = "B" if span and span.start == begin else "I"
            row[0, head, labels.index(f"{prefix}-{span.label}" if span else "O")] = 9.0


def test_f1_loss(made_up, workshop, validation):
    """What finds all that FP32 missed has a loss of -1; what misses all that FP32 found, one of 1."""
    answers, opened = made_up
    blind = opened()
    nothing = [np.array(row) for row in answers.logits]
    _tell(answers, workshop, validation)
    assert blind.fidelity(STATIC).f1_loss == -1
    seeing = opened()
    answers.logits = nothing
    assert seeing.fidelity(STATIC).f1_loss == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_are_no_numbers(made_up, value):
    """A recipe whose answers are infinite or none is refused by name; it would be faithful by every comparison with NaN."""
    answers, opened = made_up
    bench = opened()
    answers.logits[0][0, 1, 3] = value
    with pytest.raises(ArtifactError, match="static"):
        bench.fidelity(STATIC)


def test_a_graph_that_cannot_be_run(made_up, monkeypatch):
    """Whatever onnxruntime raises is one line that names the recipe."""

    def broken(*args):
        message = "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED :\n no kernel"
        raise RuntimeError(message)

    bench = made_up[1]()
    monkeypatch.setattr(module, "answers", broken)
    with pytest.raises(ArtifactError, match="fast") as caught:
        bench.fidelity(FAST)
    assert "\n" not in str(caught.value)


# -- which queries -----------------------------------------------------------------------------------------------------


def _long():
    return LabelledQuery("bus from goa to mumbai " * 40, ())


def test_queries_of_several_windows(workshop, validation, real):
    """They are left out, and change nothing."""
    mixed = LabelledSet("mixed", (_long(), *validation.queries[:6], _long(), *validation.queries[6:]))
    assert Bench(workshop, mixed, FakeClock()).fidelity(USUAL) == real.fidelity(USUAL)


@pytest.mark.parametrize("queries", [(), (_long(),), (LabelledQuery(" ", ()),)])
def test_no_query_to_compare_on(workshop, queries):
    """Nothing, or nothing that can be compared: one line that says what to do."""
    with pytest.raises(UsageError, match=r"names has no labelled query .* recipe instead of auto"):
        Bench(workshop, LabelledSet("names", queries), FakeClock())


def test_one_query(workshop, validation):
    """One labelled query is enough, and may hold no entity."""
    one = LabelledSet("one", (LabelledQuery(validation.queries[0].text, ()),))
    found = Bench(workshop, one, FakeClock()).fidelity(USUAL)
    assert found.changed_queries in {0, 1}
    assert found.f1_loss == 0


# -- latency -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def paced(monkeypatch, workshop, validation, clock):
    """A bench whose sessions take as long as a test says: the recipe's 3 ms, the usual one's 4 ms."""
    takes = {"subject.onnx": 3 * MS, "usual.onnx": 4 * MS}

    def opener(path, settings, by_text):
        assert path.is_file()

        def answer(texts):
            assert all(text in by_text for text in texts)
            clock.ns += takes[path.name]

        return lambda: answer

    class Control:
        def __call__(self):
            clock.ns += MS

    monkeypatch.setattr(module, "_opener", opener)
    monkeypatch.setattr(module, "Workload", Control)
    return takes, Bench(workshop, validation, clock)


def test_the_ratio(paced):
    """A recipe whose calls take three quarters of the usual one's has a ratio of .75; that is clear at the first look."""
    found = paced[1].latency(STATIC)
    assert (found.ratio, found.low, found.high) == (pytest.approx(0.75),) * 3
    assert found.rounds == LOOKS[0]


def test_slower_recipes(paced):
    """The ratio is above 1 where the recipe is slower."""
    takes, bench = paced
    takes["subject.onnx"] = 6 * MS
    assert bench.latency(STATIC).ratio == pytest.approx(1.5)


def test_unclear_ratios_take_longer(paced, clock, monkeypatch):
    """Where the interval is wide more rounds are made, and no more than the time for one recipe allows."""
    takes, bench = paced
    draw = np.random.default_rng(3)
    opener = module._opener

    def wild(path, settings, by_text):
        def opened():
            answer, factor = opener(path, settings, by_text)(), draw.uniform(0.5, 2)

            def answered(texts):
                answer(texts)
                clock.ns += round(factor * takes[path.name])

            return answered

        return opened

    monkeypatch.setattr(module, "_opener", wild)
    monkeypatch.setattr(module, "_LATENCY_BUDGET_S", 1000.0)
    assert bench.latency(STATIC).rounds == LOOKS[-1]
    monkeypatch.setattr(module, "_LATENCY_BUDGET_S", 4.0)
    assert bench.latency(STATIC).rounds == LOOKS[0]


def test_real_sessions(workshop, validation):
    """Both files are written, opened with their settings and asked; by a clock that ticks they are equally fast."""
    found = Bench(workshop, validation, TickingClock()).latency(STATIC)
    assert (found.ratio, found.rounds) == (1, LOOKS[0])
