"""benchmarks/serving.py: its arithmetic and the order of its calls, with contenders that are not there."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from harness.errors import DataError
from harness.paired.estimate import MeasurementError
from harness.progress import Silence
from harness.tagging import Batch, EncodedQuery, EntitySpan, LabelledQuery, LabelledSet, TaggedQuery, Window, Word

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are in a clone only", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import serving  # noqa: E402
from baselines import crew, roster, usual, worker  # noqa: E402
from baselines.contender import Level, Unsupporting, packed, unpacked  # noqa: E402
from baselines.crew import Remote, Spec, WorkerError  # noqa: E402
from measures import accuracy, fidelity, goals, latency, lengths, names, size, throughput  # noqa: E402
from measures.latency import Regime, Schedule  # noqa: E402
from measures.result import REFUSED, Result, tables  # noqa: E402

sys.path.remove(str(BENCHMARKS))

WORDS = [Word(0, 1), Word(2, 3)]


class FakeMachine:
    """Remembers who was called last, over all contenders: who finds the caches of another is slower."""

    def __init__(self) -> None:
        self.last = ""
        self.log: list[str] = []


class FakeRacer:
    def __init__(self, name: str, machine: FakeMachine, hot_ns: int, cold_ns: int, *, reopens: bool = True) -> None:
        self.name, self.reopens, self.opened = name, reopens, 1
        self._machine, self._hot_ns, self._cold_ns = machine, hot_ns, cold_ns

    def reopen(self) -> None:
        self.opened += 1

    def load(self, key: str, level: Level, inputs: Sequence[object]) -> None:
        raise AssertionError

    def time(self, key: str, indices: Sequence[int]) -> list[int]:
        found = []
        for index in indices:
            hot = self._machine.last == self.name
            found.append((self._hot_ns if hot else self._cold_ns) * (index + 1))
            self._machine.last = self.name
            self._machine.log.append(self.name)
        return found


def racers() -> tuple[FakeMachine, list[FakeRacer]]:
    machine = FakeMachine()
    return machine, [
        FakeRacer("ours", machine, 100, 400),
        FakeRacer("usual", machine, 200, 500),
        FakeRacer("eager", machine, 1000, 1000, reopens=False),
    ]


# -- timing ------------------------------------------------------------------------------------------------------------


def test_a_hot_block_never_counts_a_cold_call_and_an_alternating_call_is_never_hot() -> None:
    """Each regime gives exactly the ratio that the fake machine has in it, whatever the inputs' lengths."""
    _, contenders = racers()
    found = latency.race(contenders, {"mixed": 5}, Schedule(8, 7, 6))
    assert found.ratio("mixed", Regime.HOT, "ours", "usual").value == pytest.approx(100 / 200)
    assert found.ratio("mixed", Regime.ALTERNATING, "ours", "usual").value == pytest.approx(400 / 500)
    assert found.ratio("mixed", Regime.HOT, "eager", "usual").value == pytest.approx(5)
    whole = found.ratio("mixed", Regime.HOT, "ours", "usual")
    assert (whole.low, whole.high) == pytest.approx((0.5, 0.5))


def test_the_call_that_begins_a_hot_block_does_not_count() -> None:
    """Not one of the times that are kept is that of a cold call."""
    _, contenders = racers()
    times = latency.hot_round(contenders, "key", [0, 1], np.random.default_rng(1))
    assert times == {"ours": [100, 200], "usual": [200, 400], "eager": [1000, 2000]}


def test_alternating_turns_ask_everybody_once_in_orders_that_differ() -> None:
    """Nobody answers twice in a row, and not everybody always has the same one before it."""
    machine, contenders = racers()
    latency.alternating_round(contenders, "key", [0] * 20, np.random.default_rng(1))
    assert all(one != other for one, other in zip(machine.log, machine.log[1:], strict=False))
    turns = [tuple(machine.log[place : place + 3]) for place in range(0, 60, 3)]
    assert all(len(set(turn)) == 3 for turn in turns)
    before_ours = {machine.log[place - 1] for place in range(1, 60) if machine.log[place] == "ours"}
    assert before_ours == {"usual", "eager"}


def test_models_are_opened_anew_in_every_round_but_those_that_cannot() -> None:
    """Sessions of one file differ in speed, so a round has its own."""
    _, contenders = racers()
    latency.race(contenders, {"one": 1}, Schedule(9, 1, 1))
    assert [racer.opened for racer in contenders] == [9, 9, 1]


def test_too_few_rounds_are_refused() -> None:
    """Seven rounds carry no interval of 99 %."""
    with pytest.raises(MeasurementError, match="8 carry"):
        Schedule(7)


def test_a_round_needs_as_many_calls_of_either_side() -> None:
    """Calls that did not answer the same make no pair."""
    assert latency.round_log_ratio([2, 30, 4], [1, 10, 2]) == pytest.approx(math.log(2))
    with pytest.raises(MeasurementError, match="no pairs"):
        latency.round_log_ratio([1], [1, 2])


def test_throughput_is_how_many_more_queries_in_the_same_time() -> None:
    """Half the time is twice the throughput."""
    machine = FakeMachine()
    contenders = [FakeRacer("usual", machine, 500, 500), FakeRacer("ours", machine, 250, 250)]
    (found,) = throughput.throughput_results(contenders, "usual", 10_000, 8, Silence())
    assert (found.measure, found.subject, found.column) == (names.THROUGHPUT, "ours", "10,000 queries")
    assert found.value == pytest.approx(2)


def test_queries_of_a_length_have_exactly_that_length() -> None:
    """Own queries of the length come first, others are strung together from the data's words."""
    texts = ["a b c", "d e", "f gg h ii j", "k l m"]

    def count(text: str) -> int:  # as subwords: a word of two letters is two tokens
        return sum(map(len, text.split())) + 2

    five = lengths.queries_of_length(texts, count, 5, 4)
    assert set(five[:2]) == {"a b c", "k l m"}
    assert {count(text) for text in five} == {5}
    assert len(set(five)) == len(five) == 4
    long = lengths.queries_of_length(texts, count, 12, 2)
    assert {count(text) for text in long} == {12}
    assert long == lengths.queries_of_length(texts, count, 12, 2)


# -- accuracy ----------------------------------------------------------------------------------------------------------


def answer(text: str, *rows: tuple[float, float]) -> TaggedQuery:
    return TaggedQuery(text, WORDS[: len(rows)], np.asarray(rows, np.float32))


def test_only_a_difference_where_pytorch_was_sure_matters() -> None:
    """A label that changes at a margin below 2 logits is counted, and does not matter."""
    reference = [answer("sure", (5, 1)), answer("unsure", (1, 0)), answer("same", (1, 0), (0, 3))]
    variant = [answer("sure", (0, 1)), answer("unsure", (0, 1)), answer("same", (2, 0), (0, 1))]
    found = fidelity.differences(reference, variant)
    assert found.changed == ("sure", "unsure")
    assert found.matter == ("sure",)
    assert (found.queries, found.largest) == (3, 5)


def test_mean_difference_is_over_logits_not_over_queries() -> None:
    """A long query weighs more; the ratio of two contenders has an interval that holds it."""
    reference = [answer("one", (0, 0)), answer("two", (0, 0), (0, 0))]
    variant = [answer("one", (3, 3)), answer("two", (0, 0), (0, 0))]
    rows = fidelity.mean_differences(reference, variant)
    assert fidelity.mean_of(rows) == pytest.approx(1)
    many = np.tile([[2.0, 2.0], [4.0, 2.0]], (50, 1))
    found = fidelity.ratio_of_means(many / 2, many)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="no ratio"):
        fidelity.ratio_of_means(many, np.zeros_like(many))


class FakeModel:
    """Two labels; every token's logits are its id and 5, and the fault is added to them."""

    labels = ("O", "B-X")
    pad_token_id = 0

    def __init__(self, fault: str = "") -> None:
        self._fault = fault

    def encode(self, texts: Sequence[str]) -> list[EncodedQuery]:
        return [
            EncodedQuery(
                text, WORDS[:1], [Window([int(text)] * (1 + int(text) % 3), [0] * (1 + int(text) % 3), [0], [0])]
            )
            for text in texts
        ]

    def logits(self, batch: Batch) -> np.ndarray:
        ids = batch.input_ids.astype(np.float32)
        found = np.stack([ids, np.full_like(ids, 5)], axis=2)
        if self._fault == "batch mates":
            found[..., 0] += 3 * (len(ids) - 1)
        if self._fault == "padding":
            found[..., 0] += 3 * (ids.shape[1] - batch.attention_mask.sum(axis=1, keepdims=True))
        if self._fault == "left padding":
            found[..., 0] += 9 * (batch.attention_mask[:, :1] == 0)
        return found


def company_of(fault: str) -> dict[str, fidelity.Company]:
    model = FakeModel(fault)
    queries = model.encode([str(number) for number in range(1, 10)])
    alone = accuracy.tag_encoded(model, queries, batch_size=1)
    return {one.name: one for one in fidelity.companies(model, queries, alone, longest=64)}


def test_company_is_told_from_padding() -> None:
    """A model that is one function is moved by nothing, one that is not by exactly what it depends on."""
    assert {one.changed for one in company_of("").values()} == {0}
    mates, padding = company_of("batch mates"), company_of("padding")
    assert mates["batches of 8, sorted by length"].changed
    assert mates["16 columns of padding more"].changed == 0
    assert padding["16 columns of padding more"].changed
    assert padding["16 columns of padding more"].largest == 48


@pytest.mark.parametrize(("fault", "right"), [("", True), ("left padding", False)])
def test_left_padding_is_compared_with_pytorch_under_the_same_padding(fault: str, *, right: bool) -> None:
    """What left padding does to PyTorch too is no difference; a mask read as right padding is."""
    labelled = LabelledSet("made", tuple(LabelledQuery(str(number), ()) for number in range(1, 10)))
    known = accuracy.yardstick(FakeModel(), labelled, 64)
    found = {one.column: one.value for one in accuracy.left_padding_results("ours", FakeModel(fault), known)}
    assert (found["queries"] == 0) is right
    assert (found["largest logit difference"] == 0) is right


def test_left_padded_words_are_read_where_they_stand() -> None:
    """For a model that no padding moves, the answers are those of each query alone."""
    model = FakeModel()
    queries = model.encode([str(number) for number in range(1, 10)])
    alone = accuracy.tag_encoded(model, queries, batch_size=1)
    padded = fidelity.tag_left_padded(model, queries, 4)
    assert [found.text for found in padded] == [found.text for found in alone]
    assert all(np.array_equal(one.logits, other.logits) for one, other in zip(padded, alone, strict=True))


def test_f1_difference_and_bound_are_losses_below_zero() -> None:
    """A model that misses entities has a negative difference, and its bound lies below that."""
    queries = tuple(LabelledQuery("a b", (EntitySpan(0, 1, "X"),)) for _ in range(40))
    labelled = LabelledSet("made", queries)
    right = [answer("a b", (0, 1), (1, 0))] * 40
    worse = [answer("a b", (1, 0), (1, 0))] * 10 + right[10:]
    counts = [fidelity.counts_of(labelled, answers, ("O", "B-X")) for answers in (right, worse)]
    loss = fidelity.loss_of(counts[0], counts[1])
    assert loss.f1 == pytest.approx(60 / 70)
    assert loss.bound < loss.difference < 0
    assert fidelity.loss_of(counts[0], counts[0]).bound == 0
    assert fidelity.span_f1(labelled, [[(0, 1, "X")]] * 30 + [[]] * 10) == pytest.approx(60 / 70)


# -- figures, goals, files ---------------------------------------------------------------------------------------------


def test_goals_look_at_the_value_and_at_the_far_end_of_its_interval() -> None:
    """What is kept by its value alone is said to be so."""
    goal = goals.Goal("m", "ours", ("10",), maximum=0.75)
    told = [
        goal.kept(Result("m", "ours", "10 tokens", value, low, high))
        for value, low, high in ((0.7, 0.6, 0.74), (0.7, 0.6, 0.8), (0.8, 0.7, 0.9), (0.9, 0.8, 1.0))
    ]
    assert told == [goals.Kept.YES, goals.Kept.BY_VALUE, goals.Kept.NO_BY_VALUE, goals.Kept.NO]
    least = goals.Goal("m", "ours", minimum=1.8)
    assert least.kept(Result("m", "ours", "", 2, 1.9, 2.1)) is goals.Kept.YES
    assert least.kept(Result("m", "ours", "", 2, 1.7, 2.1)) is goals.Kept.BY_VALUE
    assert goal.figures([Result("m", "ours", "32 tokens", 1), Result("m", "usual", "10 tokens", 1)]) == []


def test_refusing_keeps_only_the_goal_that_allows_it() -> None:
    """Left padding may be refused, batches may not."""
    refused = Result("m", "ours", "", None, note=REFUSED)
    assert goals.Goal("m", "ours", maximum=0, or_refused=True).kept(refused) is goals.Kept.YES
    assert goals.Goal("m", "ours", maximum=0).kept(refused) is goals.Kept.NO
    assert goals.Goal("m", "ours", maximum=0).kept(Result("m", "ours", "", None)) is goals.Kept.UNKNOWN


def test_every_goal_speaks_of_contenders_and_rows_that_there_are() -> None:
    """A row that was renamed would make its goal vanish in silence."""
    subjects = {*roster.OURS.values(), *roster.EXTRACT.values(), "batch_extract() INT8", "our runtime"}
    rows = {value for key, value in vars(names).items() if key.isupper()}
    rows |= {
        size.FILES,
        size.INSTALL,
        serving.start_results.__globals__["DURATION"],
        serving.start_results.__globals__["MEMORY"],
    }
    assert {goal.subject for goal in goals.GOALS} <= subjects
    assert {goal.measure for goal in goals.GOALS} <= rows


def test_tables_have_a_row_per_contender_and_a_column_per_condition() -> None:
    """One table a measure; a figure that is missing leaves its cell empty."""
    found = [
        Result("m", "a", "hot", 0.5, 0.4, 0.6),
        Result("m", "b", "cold", 3),
        Result("n", "a", "hot", None, note=REFUSED),
    ]
    first, second = tables(found)
    assert [list(column.cells) for column in first.columns] == [["a", "b"], ["0.5 [0.4, 0.6]", ""], ["", "3"]]
    assert list(second.columns[1].cells) == [REFUSED]


def test_what_is_no_number_is_not_written() -> None:
    """NaN would read as a figure that nothing breaks."""
    with pytest.raises(ValueError, match="no figure"):
        Result("m", "a", "c", math.nan).to_json()
    assert json.loads(json.dumps(Result("m", "a", "c", 1.0).to_json()))["value"] == 1.0


def test_weights_beside_the_graph_count_as_its_size(tmp_path: Path) -> None:
    """OpenVINO's `.bin` and ONNX's external data belong to the model."""
    for name, count in (("model.onnx", 100), ("model.onnx.data", 300), ("small.xml", 10), ("small.bin", 90)):
        (tmp_path / name).write_bytes(b"x" * count)
    files = {"small": tmp_path / "small.xml", "gone": tmp_path / "gone.onnx"}
    found = size.file_results(files, tmp_path / "model.onnx")
    assert [(one.subject, one.column, one.value) for one in found] == [
        ("small", "ratio", 0.25),
        ("small", "MB", 100 / 1e6),
    ]


# -- processes ---------------------------------------------------------------------------------------------------------


class Counting(Unsupporting):
    """Counts its calls; opening anew makes calls of before invalid."""

    def __init__(self) -> None:
        self.generation, self.calls = 0, []

    def reopen(self) -> None:
        self.generation += 1

    def text_call(self, text: str):
        generation = self.generation
        return lambda: self.calls.append((generation, text))


def test_a_desk_times_each_call_and_prepares_them_anew_for_a_new_session() -> None:
    """No call that was prepared for an old session outlives it."""
    contender = Counting()
    desk = worker.Desk(contender)
    desk.answer({"op": "load", "key": "k", "level": "text", "inputs": ["a", "b"]})
    assert len(desk.answer({"op": "time", "key": "k", "indices": [1, 0, 1]})) == 3
    desk.answer({"op": "reopen"})
    desk.answer({"op": "time", "key": "k", "indices": [0]})
    assert contender.calls == [(0, "b"), (0, "a"), (0, "b"), (1, "a")]


def test_what_a_contender_cannot_is_an_error_with_its_name() -> None:
    """No row is measured with something else in its place."""
    with pytest.raises(Exception, match="Counting has no logits"):
        worker.Desk(Counting()).answer({"op": "logits", "feed": {}})
    with pytest.raises(ValueError, match="no operation"):
        worker.Desk(Counting()).answer({"op": "dance"})


def test_arrays_survive_the_pipe() -> None:
    """Law of `packed`: values, shape and type come back."""
    for array in (np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros((0, 4), np.float32)):
        back = unpacked(json.loads(json.dumps(packed(array))))
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)


def test_a_process_that_cannot_open_its_contender_says_why() -> None:
    """The first answer is the error, not a hang; what a missing package is called is in it."""
    with pytest.raises(WorkerError, match=r"broken: .*no family 'nothing'"):
        Remote(Spec("broken", "nothing", {}))
    with pytest.raises(WorkerError, match=r"absent: .*does not start"):
        Remote(Spec("absent", "lean", {}, python="/nowhere/python"))


def test_our_runtime_in_its_process_answers_as_it_does_here(tiny_export: Path) -> None:
    """The bare run, the text's way and the logits are those of the release; times are above zero."""
    from harness.artifact import Variant, open_artifact
    from harness.candidate import Candidate
    from harness.tagging import pad

    here = Candidate(open_artifact(tiny_export), Variant.FP32)
    batch = pad(here.encode(["bus to pune"])[0].windows, here.pad_token_id)
    spec = Spec("ours", "lean", {"folder": str(tiny_export), "variant": "fp32"})
    with Remote(spec) as remote:
        assert np.array_equal(remote.logits(batch), here.logits(batch))
        remote.load("model", Level.MODEL, [batch])
        remote.load("text", Level.TEXT, ["bus to pune"])
        remote.reopen()
        assert min(remote.time("model", [0, 0]) + remote.time("text", [0])) > 0
        pairs = remote.measure("against_bare", {"texts": ["bus to pune", "goa"]})
        assert [len(side) for side in pairs.values()] == [2, 2]


def test_contenders_that_cannot_be_had_are_left_out_with_the_reason(tmp_path: Path) -> None:
    """But not those that a row is nothing without."""
    bench = serving.Bench(None, None, LabelledSet("none", ()), serving.QUICK, frozenset({"unwanted"}), Silence())
    specs = [Spec("unwanted", "lean", {}), Spec("absent", "lean", {}, python=str(tmp_path / "python"))]
    with bench.crew(specs, pinned=False) as opened:
        assert opened == []
    assert bench.left_out.keys() == {"unwanted", "absent"}
    required = [Spec("absent", "lean", {}, python=str(tmp_path / "python"), required=True)]
    with pytest.raises(WorkerError), bench.crew(required, pinned=False):
        pass


def test_the_usual_recipe_is_made_once_and_is_dynamic(tiny_export: Path, tmp_path: Path) -> None:
    """U's scales are computed at run time, and the second asking takes what is there."""
    import onnx

    folder = usual.usual_recipe(tiny_export, tmp_path)
    made = folder / "model_quantized.onnx"
    operators = {node.op_type for node in onnx.load(made).graph.node}
    assert "DynamicQuantizeLinear" in operators
    before = made.stat().st_mtime_ns
    assert usual.usual_recipe(tiny_export, tmp_path) == folder
    assert made.stat().st_mtime_ns == before


def test_data_that_were_seen_do_not_judge(tmp_path: Path) -> None:
    """Without queries for calibration, those are taken out of the data that judge."""
    path = tmp_path / "data.jsonl"
    rows = [json.dumps({"text": f"to {number}", "spans": [[3, 3 + len(str(number)), "DEST"]]}) for number in range(80)]
    path.write_text("\n".join(rows))
    options = serving.parse(["--checkpoint", "c", "--candidate", "d", "--data", str(path)])
    judged, seen = serving.data_of(options, ("O", "B-DEST"), Silence())
    assert seen.queries
    assert not set(judged.texts) & set(seen.texts)
    assert len(judged.texts) + len(seen.texts) == 80


def test_types_that_the_model_does_not_know_are_kept_and_said(tmp_path: Path) -> None:
    """ATIS's test queries have types that its training queries lack; they count as missed, and a note says so."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "to goa", "spans": [[3, 6, "RARE"]]}))
    told: list[str] = []
    progress = Silence()
    progress.line = told.append
    found = serving.labelled_set([path], ("O", "B-DEST"), progress)
    assert found.entity_types == ("RARE",)
    assert any("RARE" in line for line in told)
    path.write_text("{")
    with pytest.raises(DataError):
        serving.labelled_set([path], ("O", "B-DEST"), Silence())


def test_worker_environment_holds_libraries_to_the_threads_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread where the row says so; where it leaves the choice, nothing is set for them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in crew._environment(Spec("a", "lean", {}, threads=0))
    one = crew._environment(Spec("a", "lean", {}, threads=1))
    assert one["OMP_NUM_THREADS"] == "1"
    assert one["HF_HUB_OFFLINE"] == "1"
