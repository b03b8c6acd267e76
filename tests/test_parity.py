"""The parity suite: what it measures of variants that are broken in known ways, held against the default policy."""

from __future__ import annotations

import datetime
import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from harness.artifact import Variant, open_artifact
from harness.candidate import Candidate, session_options
from harness.errors import ArtifactError
from harness.evidence import Measure, MeasureKey
from harness.policy import load_policy
from harness.tagging import TaggedQuery, Word, tag
from harness.verdict import compare
from suites.parity import SUITE, batches, divergence, ledger, long_queries
from suites.parity import test_labelled_queries as labelled_tests
from suites.parity import test_lengths as length_tests
from suites.parity import test_optimization as optimization_tests
from suites.parity import test_shapes as shape_tests
from suites.parity.comparison import Comparison, worst_position

POLICY = load_policy(None, SUITE.promised(["fp32", "int8"]), datetime.date(2026, 1, 1))


class Records:
    """What a test of the suite recorded."""

    def __init__(self):
        self.measures = {}

    def __call__(self, name, value, *, unit, details=None):
        assert name not in self.measures, f"{name} was recorded twice"
        assert np.isfinite(value), f"{name} is {value}"
        json.dumps(details, allow_nan=False)
        self.measures[name] = (value, unit, details or {})

    def __getitem__(self, name):
        return self.measures[name][0]

    def details(self, name):
        return self.measures[name][2]

    def broken(self, scope="fp32"):
        """Name the measures that the default policy does not allow."""
        return {
            name
            for name, (value, unit, _) in self.measures.items()
            if compare(POLICY, Measure(MeasureKey("parity", scope, name), float(value), unit)).rejects
        }


class Variation:
    """The reference itself as a variant, with something wrong in its logits or in its tokens."""

    def __init__(self, reference, logits=None, encode=None):
        self._reference = reference
        self._logits = logits or (lambda batch, answer: answer)
        self._encode = encode or (lambda queries: queries)
        self.labels = reference.labels
        self.pad_token_id = reference.pad_token_id
        self.maximum_tokens = reference.checkpoint.maximum_tokens

    def encode(self, texts):
        return self._encode(self._reference.encode(texts))

    def logits(self, batch):
        try:
            return np.array(self._logits(batch, self._reference.logits(batch)))
        except (IndexError, RuntimeError) as err:
            raise ArtifactError(str(err)) from err


@pytest.fixture
def judged(reference, labelled, expected):
    """Run the suite's tests on shapes, lengths and padding over a variant."""

    def run(model):
        records = Records()
        shape_tests.test_company(reference, expected, model, labelled, records)
        shape_tests.test_left_padding(reference, model, labelled, records)
        shape_tests.test_masked_rows(reference, model, labelled, records)
        length_tests.test_lengths(reference, model, labelled, records)
        length_tests.test_overlong_rows(reference, model, labelled, records)
        length_tests.test_long_queries(reference, model, labelled, records)
        return records

    return run


class TestShapes:
    def test_a_perfect_variant(self, judged, reference):
        """The reference beside itself breaks no limit, of FP32 or of INT8."""
        records = judged(Variation(reference))
        assert records.broken("fp32") == records.broken("int8") == set()
        assert records["left_padding_sensitivity"] > 0.1  # the tiny model counts positions from the left
        assert records["left_padding_excess_sensitivity"] == 0

    def test_a_real_export(self, judged, tiny_export):
        """A good FP32 export breaks none either."""
        assert judged(Candidate(open_artifact(tiny_export), Variant.FP32)).broken("fp32") == set()

    @pytest.mark.parametrize("lost", [1, 2, 20])
    def test_lost_tail(self, judged, reference, lost):
        """A graph whose last positions before the maximum answer zeros breaks INT8's limits, even if it is one position."""

        def clipped(batch, answer):
            answer = noisy(batch, answer)
            answer[:, reference.checkpoint.maximum_tokens - lost :] = 0
            return answer

        assert "worst_position_difference" in judged(Variation(reference, clipped)).broken("int8")

    def test_rounding_is_no_lost_tail(self, judged, reference):
        """Noise of the size that INT8 makes on such rows breaks no limit of lengths."""
        broken = judged(Variation(reference, noisy)).broken("int8")
        assert not broken & {"worst_position_difference", "length_logit_difference"}

    def test_silently_clipped(self, judged, reference):
        """A graph that reads only the maximum of a row that is longer, and says nothing, is found out."""
        longest = reference.checkpoint.maximum_tokens

        class Clipping(Variation):
            def logits(self, batch):
                answer = super().logits(type(batch)(*(array[:, :longest] for array in batch)))
                return np.pad(answer, ((0, 0), (0, batch.input_ids.shape[1] - answer.shape[1]), (0, 0)))

        assert judged(Clipping(reference)).broken() == {"silent_overlong_rows"}

    def test_an_overlong_row_that_the_reference_answers(self, reference):
        """Where the reference reads on, the variant may refuse or answer, but not answer with lost positions."""
        whole = np.ones((2, 5, 3), np.float32)
        lost = whole.copy()
        lost[:, -1] = 0
        assert not length_tests.Overlong(whole, whole, {}).is_silent
        assert not length_tests.Overlong(whole, None, {}).is_silent
        assert length_tests.Overlong(whole, lost, {}).is_silent
        assert length_tests.Overlong(None, whole, {}).is_silent

    def test_truncating_tokenizer(self, judged, reference):
        """Reading only the first window of a long query is truncation, also where a single token is lost."""

        def first_window(queries):
            return [query._replace(windows=query.windows[:1]) for query in queries]

        assert judged(Variation(reference, encode=first_window))["truncated_queries"] == 2

    def test_last_words_lost(self, judged, reference):
        """As many windows with the same words, but without logits for the last one, is truncation too."""

        def last_head_lost(queries):
            lost = []
            for query in queries:
                *windows, last = query.windows
                last = last._replace(heads=last.heads[:-1], words=last.words[:-1])
                lost.append(query._replace(windows=[*windows, last]))
            return lost

        assert judged(Variation(reference, encode=last_head_lost)).broken() >= {"truncated_queries"}

    def test_words_of_many_tokens(self, reference):
        """A window that the words of the data do not fill to the last token is filled with short ones."""
        longest = reference.checkpoint.maximum_tokens
        short, _ = long_queries.long_queries(reference, ["zzzzzzz yyyyyyyyyyy bus wwwwwwwww"], longest)
        (before,) = reference.encode([short.rpartition(" ")[0]])
        assert [len(window.input_ids) for window in before.windows] == [longest]
        assert len(reference.encode([short])[0].windows) == 2

    def test_one_token_more(self, reference, labelled):
        """The shorter long query is one token more than a window holds; the longer one has half as many words again."""
        longest = reference.checkpoint.maximum_tokens
        short, long = long_queries.long_queries(reference, labelled.texts, longest)
        before = reference.encode([short.rpartition(" ")[0]])[0]
        assert [len(window.input_ids) for window in before.windows] == [longest]
        assert len(reference.encode([short])[0].windows) == 2
        assert len(reference.encode([long])[0].words) >= 1.5 * longest

    @pytest.mark.parametrize(
        "influence",
        [
            pytest.param(lambda batch: batch.input_ids.mean(), id="other batch mates"),
            pytest.param(lambda batch: 1 - batch.attention_mask.mean(), id="share of padding"),
            pytest.param(lambda batch: batch.input_ids.shape[1] > 50, id="padding to the maximum"),
            pytest.param(lambda batch: batch.input_ids.shape[0] > 1, id="not alone"),
        ],
    )
    def test_company(self, judged, reference, influence):
        """Logits that change a little with what else is in the batch break the padding contract."""
        records = judged(Variation(reference, lambda batch, answer: answer + 0.01 * float(influence(batch))))
        # what all logits of a row share changes no label, and is a difference all the same
        assert "batch_logit_difference" in records.broken("int8")

    def test_batches_that_fail(self, judged, reference):
        """A variant that runs single rows only breaks limits; it does not crash the suite."""

        class Single(Variation):
            def logits(self, batch):
                if len(batch.input_ids) > 1:
                    message = "batch size is 1"
                    raise ArtifactError(message)
                return super().logits(batch)

        expected = {
            "batch_logit_difference",
            "failed_shapes",
            "masked_row_logit_difference",
            "left_padding_logit_difference",
        }
        assert expected <= judged(Single(reference)).broken("int8")

    def test_right_padding_only(self, judged, reference):
        """A mask rebuilt from its sum, as fused attention does (onnxruntime#18945), fails on padding in front."""

        class RightOnly(Variation):
            def logits(self, batch):
                mask = np.arange(batch.input_ids.shape[1]) < batch.attention_mask.sum(axis=1, keepdims=True)
                return super().logits(batch._replace(attention_mask=mask.astype(np.int64)))

        records = judged(RightOnly(reference))
        assert {"left_padding_logit_difference", "left_padding_excess_sensitivity"} <= records.broken("fp32")
        assert "left_padding_excess_sensitivity" in records.broken("int8")

    def test_masked_rows(self, judged, reference):
        """NaN in a masked row is counted; a masked row that moves its neighbours is measured."""

        def masked(batch):
            return ~batch.attention_mask.any(axis=1)

        def nan(batch, answer):
            answer[masked(batch)] = np.nan
            return answer

        assert judged(Variation(reference, nan)).broken() == {"masked_row_non_finite_logits"}
        moved = judged(Variation(reference, lambda batch, answer: answer + 0.01 * masked(batch).any()))
        assert moved.broken() == {"masked_row_logit_difference"}
        assert moved["masked_row_logit_difference"] == pytest.approx(0.01, abs=1e-4)


def noisy(batch, answer):
    """Add noise of a fifth of the logits, drawn from the row's own tokens."""
    noise = [np.random.default_rng(int(row.sum())).standard_normal(answer.shape[1:]) for row in batch.input_ids]
    scale = 0.2 * np.linalg.norm(answer, axis=2, keepdims=True) / np.sqrt(answer.shape[2])
    return answer + (np.array(noise) * scale).astype(np.float32)


class TestBatches:
    def test_the_reference_is_asked_the_same(self, reference, labelled, expected):
        """No batch that the reference is asked depends on the variant, so its answers can be remembered."""
        asked = []

        class Watching:
            checkpoint, labels, pad_token_id = reference.checkpoint, reference.labels, reference.pad_token_id
            encode = staticmethod(reference.encode)

            @staticmethod
            def logits(batch):
                asked[-1].append([array.tobytes() for array in batch])
                return reference.logits(batch)

        for model in (Variation(reference), Variation(reference, noisy, lambda queries: [*queries])):
            asked.append([])
            shape_tests.test_left_padding(Watching, model, labelled, Records())
            length_tests.test_lengths(Watching, model, labelled, Records())
            length_tests.test_overlong_rows(Watching, model, labelled, Records())
        assert asked[0] == asked[1]

    def test_shuffled_mates(self, reference, labelled):
        """Shuffled batches hold rows of several lengths, and answer in the order asked."""
        widths = []

        def watch(batch, answer):
            widths.append(batch.attention_mask.sum(axis=1).tolist())
            return answer

        queries = reference.encode(labelled.texts)
        found = batches.tag_shuffled(Variation(reference, watch), queries, 8)
        assert [answer.text for answer in found] == labelled.texts
        assert all(len(set(row)) > 1 for row in widths)

    def test_rows_of_length(self, reference, labelled):
        """Rows are exactly as long as asked, and each of other content."""
        windows = [window for query in reference.encode(labelled.texts) for window in query.windows]
        rows = batches.rows_of_length(windows, 40, 3)
        assert [len(row.input_ids) for row in rows] == [40, 40, 40]
        assert len({tuple(row.input_ids) for row in rows}) == 3

    def test_padded_in_front(self, reference, labelled):
        """The same rows come padded behind, ragged in front, further in front, and on both sides."""
        windows = [window for query in reference.encode(labelled.texts[:8]) for window in query.windows]
        behind, front, further, both = shape_tests._padded_in_front(windows, reference.pad_token_id, 64)
        first, last = (
            [batch.attention_mask[:, edge].mean() for batch in (behind, front, further, both)] for edge in (0, -1)
        )
        assert first[0] == last[1] == last[2] == 1
        assert 0 < first[1] < 1
        assert first[2] == last[3] == 0
        rows = [batch.input_ids[batch.attention_mask == 1].tolist() for batch in (behind, front, further, both)]
        assert rows[0] == rows[1] == rows[2] == rows[3]

    def test_lengths(self, reference, labelled):
        """Lengths reach from 1 over the typical one to the maximum."""
        windows = [window for query in reference.encode(labelled.texts) for window in query.windows]
        typical = int(np.median([len(window.input_ids) for window in windows]))
        assert batches.lengths_to_judge(windows, 64) == [*sorted({1, 2, 3, typical}), 64]
        assert batches.lengths_to_judge(windows, 512)[-2:] == [128, 512]


def test_worst_position():
    """What one row alone shows is rounding; what every row shows is a position lost."""
    reference = np.ones((3, 4, 2), np.float32)
    variant = reference.copy()
    variant[0, 1] = 0
    assert worst_position(reference, variant) == 0
    variant[:, 2] = 0
    assert worst_position(reference, variant) == pytest.approx(1)


class TestLedger:
    LABELS = ("O", "B-SRC", "B-DEST")

    def answer(self, *logits, text="from pune to goa"):
        words = [Word(0, 4), Word(5, 9), Word(10, 12), Word(13, 16)][: len(logits)]
        return TaggedQuery(text, words, np.array(logits, np.float32))

    def test_flips(self):
        """Every changed label is in the ledger, surest first, with the reference's margin."""
        left = self.answer([9, 0, 0], [0, 5, 3], [3, 0, 0], [0, 0, 1])
        right = self.answer([9, 0, 0], [0, 3, 5], [0, 3, 0], [0, 0, 1])
        found = ledger.flips([left], [right], self.LABELS, self.LABELS)
        assert found == [
            ledger.Flip(left.text, "to", "O", "B-SRC", 3.0),
            ledger.Flip(left.text, "pune", "B-SRC", "B-DEST", 2.0),
        ]
        assert all(flip.is_confident for flip in found)
        assert not ledger.Flip("", "", "O", "B-SRC", 1.99).is_confident

    def test_entity_changes(self):
        """A query whose entities change is listed with both sides' and the largest margin among its flips."""
        left = self.answer([9, 0, 0], [0, 5, 3], [3, 0, 0], [0, 0, 1])
        right = self.answer([9, 0, 0], [0, 3, 5], [3, 0, 0], [0, 0, 1])
        (change,) = ledger.entity_changes([left, left], [right, left], self.LABELS, self.LABELS)
        assert change.to_json() == {
            "query": "from pune to goa",
            "reference": [["SRC", "pune"], ["DEST", "goa"]],
            "variant": [["DEST", "pune"], ["DEST", "goa"]],
            "margin": 2.0,
        }

    def test_capped(self):
        """A ledger of more than a thousand says how many it leaves out, and keeps the surest."""
        found = [ledger.Flip("q", "w", "O", "B-SRC", 3000.0 - number) for number in range(1200)]
        details = ledger.flip_details(found)
        assert (len(details["ledger"]), details["flips"], details["left_out"]) == (1000, 1200, 200)
        assert details["ledger"][0]["margin"] == 3000.0
        assert details["worst"] == details["ledger"][:10]

    def test_a_confident_flip_is_refused(self, reference, labelled, expected):
        """One sure label of all queries that changes breaks FP32's and INT8's limits; labels agree well enough otherwise."""
        margins = [float(answer.margins.max()) for answer in expected]
        surest = int(np.argmax(margins))
        assert margins[surest] > ledger.CONFIDENT_MARGIN
        changed = list(expected)
        logits = expected[surest].logits.copy()
        word = int(expected[surest].margins.argmax())
        logits[word, (logits[word].argmax() + 1) % logits.shape[1]] += 100
        changed[surest] = TaggedQuery(expected[surest].text, expected[surest].words, logits)
        records = Records()
        labelled_tests.test_labels(reference, Variation(reference), expected, changed, records)
        assert records["confident_flips"] == 1
        assert records.broken("int8") == {"confident_flips", "largest_flipped_margin"}
        assert records.details("label_agreement")["worst"][0]["query"] == labelled.texts[surest]
        assert records.details("entity_agreement")["changed"][0]["query"] == labelled.texts[surest]


def weight_of(model, module):
    """Find the input that holds the weights of the product or look-up that the export named after a module."""
    makers = {output: node for node in model.graph.node for output in node.output}
    kinds = {"MatMul": 1, "Gather": 0, "LayerNormalization": 1}
    node = next(node for node in model.graph.node if f"/{module}/" in node.name and node.op_type in kinds)
    index = kinds[node.op_type]
    # INT8: behind a DequantizeLinear
    return (makers[node.input[index]], 0) if node.input[index] in makers else (node, index)


def damage(path, module):
    """Put the numbers of a weight in another order, along the features that it returns."""
    model = onnx.load(str(path))
    node, index = weight_of(model, module)
    values = numpy_helper.to_array(next(each for each in model.graph.initializer if each.name == node.input[index]))
    drawn = np.random.default_rng(0).permutation(values.shape[-1])
    # a norm's weights are all 1 in the tiny model, and shared by all norms
    changed = values[..., drawn] if values.ndim > 1 else values * np.linspace(0.5, 1.5, len(values), dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(changed, "damaged"))
    node.input[index] = "damaged"
    onnx.save(model, str(path))


LAYER = "bert.encoder.layer"
MODULES = [
    "bert.embeddings.word_embeddings",
    "bert.embeddings.position_embeddings",
    *(
        f"{LAYER}.{layer}.{part}"
        for layer in (0, 1)
        for part in (
            "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "intermediate.dense", "output.dense",
        )
    ),
    "classifier",
]  # fmt: skip


@pytest.fixture
def located(reference, labelled, expected):
    """Say where a variant leaves the reference."""

    def locate(folder, variant):
        model = Candidate(open_artifact(folder), variant)
        query = divergence.worst_short_query(reference, expected, tag(model, labelled.texts))
        return divergence.locate(reference, model, query)

    return locate


@pytest.fixture
def quantized_copy(tiny_quantized, tmp_path):
    return shutil.copytree(tiny_quantized, tmp_path / "quantized")


class TestDivergence:
    @pytest.mark.parametrize("variant", Variant)
    def test_nothing_diverges(self, located, tiny_quantized, variant):
        """A good export diverges nowhere, and each layer's error is listed."""
        found = located(tiny_quantized, variant).to_json()
        assert found["first"] is None
        assert [layer["module"] for layer in found["layers"]] == [f"{LAYER}.0", f"{LAYER}.1", "classifier"]

    @pytest.mark.parametrize("module", MODULES)
    @pytest.mark.parametrize("variant", Variant)
    def test_one_weight_damaged(self, located, quantized_copy, module, variant):
        """The module whose weights are wrong is named, in the FP32 graph and in the INT8 graph."""
        damage(quantized_copy / variant.file_name, module.replace(".", "/").replace("layer/", "layer."))
        found = located(quantized_copy, variant)
        assert found.first is not None
        assert found.first.module.name == module

    def test_a_norm_damaged(self, located, quantized_copy):
        """So is a LayerNorm; the module before it still agreed."""
        damage(quantized_copy / Variant.FP32.file_name, "bert/encoder/layer.1/attention/output/LayerNorm")
        found = located(quantized_copy, Variant.FP32)
        assert found.first.module.name == f"{LAYER}.1.attention.output.LayerNorm"
        assert found.last_agreeing.module.name == f"{LAYER}.1.attention.output.dense"

    @pytest.mark.parametrize("layer", [0, 1])
    def test_fused_nodes(self, located, export_copy, layer):
        """In a graph whose nodes onnxruntime has fused, hidden modules are not taken for diverging ones."""
        path = export_copy / Variant.FP32.file_name
        _fuse(path)
        assert located(export_copy, Variant.FP32).first is None
        shutil.copyfile(export_copy / "unfused.onnx", path)
        damage(path, f"bert/encoder/layer.{layer}/output/dense")
        _fuse(path)
        found = located(export_copy, Variant.FP32).first.module
        assert found.name in {f"{LAYER}.{layer}.output.dense", f"{LAYER}.{layer}.output.LayerNorm"}

    def test_not_located(self, reference, expected, labelled, tiny_export, tmp_path):
        """Where the graph cannot be run with its tensors shown, the details say why, and the test goes on."""
        (tmp_path / Variant.FP32.file_name).write_bytes(b"no graph")
        artifact = SimpleNamespace(model_path=lambda variant: tmp_path / variant.file_name)
        model = Candidate(open_artifact(tiny_export), Variant.FP32)
        records = Records()
        unreadable = SimpleNamespace(artifact=artifact, variant=Variant.FP32)
        labelled_tests.test_logits(reference, unreadable, expected, tag(model, labelled.texts), records)
        reason = records.details("max_logit_difference")["first_divergence"]["not_located"]
        assert reason.startswith("the models cannot be run with their intermediate values shown: ")
        assert records.broken() - {"compared_words"} == set()

    def test_no_words(self, reference):
        """Data without a word gives a reason as well."""
        empty = tag(reference, ["", " "])
        with pytest.raises(divergence.LocalisationError, match="no query has a word"):
            divergence.worst_short_query(reference, empty, empty)

    def test_the_worst_short_query(self, reference, labelled, expected):
        """The query that differs most is looked at, unless it is too long to look at."""
        worse = [TaggedQuery(each.text, each.words, each.logits + row) for row, each in enumerate(expected)]
        assert divergence.worst_short_query(reference, expected, worse).text == labelled.texts[-1]
        long = " ".join(labelled.texts)
        answers = tag(reference, [long, labelled.texts[0]])
        other = [TaggedQuery(each.text, each.words, each.logits + 1) for each in answers[:1]] + answers[1:]
        assert divergence.worst_short_query(reference, answers, other).text == labelled.texts[0]


class TestFirstDivergence:
    """The rule by itself, on errors made up: `.` agrees, `x` does not."""

    def first(self, *modules, logits="x"):
        matches = [
            divergence.Match(
                divergence.ModuleOutput(name, kind, np.ones(1, np.float32)),
                divergence.GraphTensor("t", "n", "MatMul", is_fused=False, values=np.ones(1, np.float32)),
                0.0 if mark == "." else 1.0,
            )
            for name, kind, mark in [*modules, ("head", "Linear", logits)]
        ]
        found = divergence.Divergence("q", 1e-4, tuple(matches))
        return found.first.module.name if found.first else None

    def test_after_the_last_that_agrees(self):
        """With every module shown, the first that does not agree is the one."""
        assert self.first(("l.0.a", "Linear", "."), ("l.0.b", "Linear", "x"), ("l.1.a", "Linear", "x")) == "l.0.b"

    def test_beside_one_that_agrees(self):
        """A module counts if one of its kind beside it agrees, though a later one agrees as well."""
        assert self.first(("l.0.q", "Linear", "x"), ("l.0.k", "Linear", "."), ("l.1.q", "Linear", "x")) == "l.0.q"

    def test_the_same_of_another_layer(self):
        """A module counts if another layer shows it, though a later one agrees because its part is small."""
        modules = [("l.0.d", "Linear", "."), ("l.1.d", "Linear", "x"), ("l.1.n", "LayerNorm", ".")]
        assert self.first(*modules) == "l.1.d"

    def test_fused_away(self):
        """Modules that no layer shows, nor any of their kind beside them, are fused away and do not count."""
        layer = [("q", "Linear", "x"), ("k", "Linear", "x"), ("n", "LayerNorm", ".")]
        modules = [(f"l.{number}.{name}", kind, mark) for number in (0, 1) for name, kind, mark in layer]
        assert self.first(*modules, ("l.2.n", "LayerNorm", "x")) == "l.2.n"
        assert self.first(*modules[:3], ("l.1.n", "LayerNorm", "x")) == "l.1.n"

    def test_equal_logits(self):
        """Where the logits are equal, nothing diverges, whatever was fused away."""
        assert self.first(("l.0.d", "Linear", "x"), ("l.0.n", "LayerNorm", "."), logits=".") is None

    def test_bias_in_a_fused_node(self):
        """What a fused node takes before it adds the bias is a linear layer's output; elsewhere the bias has to be in it."""
        bare = np.arange(1, 5, dtype=np.float32)
        module = divergence.ModuleOutput("l.0.d", "Linear", bare + 3, bare)
        for is_fused in (True, False):
            tensor = divergence.GraphTensor("t", "n", "MatMul", is_fused=is_fused, values=bare)
            (match,) = divergence.matched([module], [tensor])
            assert match.agrees(1e-4) == is_fused


def _fuse(path):
    """Let onnxruntime fuse a model's nodes, and keep it as it was beside it."""
    shutil.copyfile(path, path.with_name("unfused.onnx"))
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(path.with_name("unfused.onnx")), options, providers=["CPUExecutionProvider"])


class TestOptimization:
    def measured(self, reference, labelled, model):
        records = Records()
        optimization_tests.test_optimization(reference, model, labelled, records)
        return records

    @pytest.mark.parametrize("variant", Variant)
    def test_levels_agree(self, reference, labelled, tiny_quantized, variant):
        """A good export answers nearly the same at every level."""
        model = Candidate(open_artifact(tiny_quantized), variant)
        assert self.measured(reference, labelled, model).broken(variant.value) == set()

    def test_levels_that_differ(self, reference, labelled, tiny_export, export_copy):
        """An answer that the file as it stands does not give is measured (onnxruntime#11576)."""
        damage(export_copy / Variant.FP32.file_name, "classifier")
        served = Candidate(open_artifact(tiny_export), Variant.FP32)
        served.artifact = open_artifact(export_copy)
        assert self.measured(reference, labelled, served).broken() == {"optimization_logit_difference"}

    def test_a_level_that_fails(self, reference, labelled, tiny_export, export_copy):
        """A file that does not run without optimizations breaks the limit, and the details say why."""
        served = Candidate(open_artifact(tiny_export), Variant.FP32)
        served.artifact = open_artifact(export_copy)
        (export_copy / Variant.FP32.file_name).write_bytes(b"no graph")
        records = self.measured(reference, labelled, served)
        assert records.broken() == {"optimization_logit_difference"}
        assert "ORT_DISABLE_ALL" in records.details("optimization_logit_difference")["levels"]


def test_every_promise_is_kept(judged, reference, labelled, expected, tiny_export):
    """The suite records what it promises, and nothing else."""
    model = Candidate(open_artifact(tiny_export), Variant.FP32)
    answers = tag(model, labelled.texts)
    records = judged(model)
    optimization_tests.test_optimization(reference, model, labelled, records)
    labelled_tests.test_tokenization(reference, model, labelled, records)
    labelled_tests.test_logits(reference, model, expected, answers, records)
    labelled_tests.test_labels(reference, model, expected, answers, records)
    assert {(name, unit) for name, (_, unit, _) in records.measures.items()} == {
        (promise.name, promise.unit) for promise in SUITE.measures
    }


def test_nothing_to_compare():
    """Empty answers have a mean, an agreement and a maximum."""
    empty = Comparison(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert (empty.mean, empty.maximum, empty.agreement) == (0.0, 0.0, 1.0)
