"""The quality suite: strict F1 beside the reference's, held against the default policy."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pytest

from harness.evidence import Measure, MeasureKey
from harness.policy import load_policy
from harness.scoring import Counts, count, loss_bounds
from harness.tagging import TaggedQuery
from harness.verdict import compare
from suites.quality import SUITE
from suites.quality import test_entity_f1 as suite

POLICY = load_policy(None, SUITE.promised(["fp32", "int8"]), datetime.date(2026, 1, 1))


class Records:
    """What a test of the suite recorded."""

    def __init__(self):
        self.measures = {}

    def __call__(self, name, value, *, unit, details=None):
        json.dumps(details, allow_nan=False)
        self.measures[name] = (value, unit)

    def __getitem__(self, name):
        return self.measures[name][0]

    def broken(self, scope):
        """Name the measures that the default policy does not allow."""
        return {
            name
            for name, (value, unit) in self.measures.items()
            if compare(POLICY, Measure(MeasureKey("quality", scope, name), float(value), unit)).rejects
        }


@pytest.fixture
def judged(reference, labelled, expected):
    """Run the suite's tests on a variant's answers, under its label names."""

    def run(answers, labels=reference.labels):
        types = suite._types(labelled, reference.labels)
        reference_counts = count(suite._pairs(labelled, expected, reference.labels), types)
        pairs = suite._pairs(labelled, answers, labels)
        records = Records()
        suite.test_entity_f1(pairs, reference_counts, labelled, records)
        suite.test_token_accuracy(pairs, records)
        return records

    return run


def lost_begin(labels):
    """Label names in which every B- has become an I-."""
    return tuple(label.replace("B-", "I-") for label in labels)


class TestLostBegin:
    def test_in_the_head(self, judged, reference, expected):
        """A head whose I- always beats its B- fails, though every entity has its type and its words (seqeval#23)."""
        swap = np.array([reference.labels.index(_exchanged(label)) for label in reference.labels])
        answers = [TaggedQuery(each.text, each.words, each.logits[:, swap]) for each in expected]
        begun = [reference.labels[index][0] for answer in answers for index in answer.label_ids]
        assert begun.count("I") > begun.count("B")
        for scope in ("fp32", "int8"):
            assert {"f1_micro", "f1_micro_loss", "f1_micro_loss_bound", "worst_type_f1_loss"} <= judged(answers).broken(
                scope
            )

    def test_in_the_names(self, judged, reference, expected):
        """So do names in which every B- has become an I-, on both variants, where only I- and O are left as well."""
        names = lost_begin(reference.labels)
        names = tuple("B-SRC" if index == 1 else name for index, name in enumerate(names))  # still an IOB2 label set
        for scope in ("fp32", "int8"):
            assert {"f1_micro", "f1_micro_loss", "worst_type_f1_loss_bound"} <= judged(expected, names).broken(scope)


def _exchanged(label):
    return {"B": "I", "I": "B"}.get(label[0], "") + label[1:] if label != "O" else label


def test_token_accuracy_decides_nothing(judged, labelled, expected, reference):
    """It has no limit in any variant, and stays high where F1 has fallen to nothing."""
    for scope in ("fp32", "int8"):
        assert POLICY.limits[MeasureKey("quality", scope, "token_accuracy")].reported_only
    # a long text of words outside entities, and the entities lost
    nothing = np.zeros(len(reference.labels), np.float32)
    nothing[0] = 1
    answers = [TaggedQuery(each.text, each.words, np.tile(nothing, (len(each.words), 1))) for each in expected]
    records = judged(answers)
    assert records["f1_micro"] == 0
    assert records["token_accuracy"] > records["f1_micro"]
    assert "token_accuracy" not in records.broken("int8")
    assert "f1_micro_loss_bound" in records.broken("int8")


def test_the_reference_itself(judged, expected):
    """A variant that answers as the reference does loses nothing, and breaks no limit."""
    records = judged(expected)
    assert records.broken("fp32") == records.broken("int8") == set()
    assert records["worst_type_f1_loss"] == records["worst_type_f1_loss_bound"] == 0
    assert set(records.measures) == {promise.name for promise in SUITE.measures}


def counts_of(support, wrong):
    """Count one entity a query; so many of the first of each type are found with a wrong end."""
    kinds = tuple(support)
    rows = []
    for position, kind in enumerate(kinds):
        for number in range(support[kind]):
            row = np.zeros((len(kinds), 3), np.int64)
            row[position] = (number >= wrong.get(kind, 0), 1, 1)
            rows.append(row)
    return Counts(kinds, np.array(rows))


class TestWorstType:
    def judged(self, support, wrong):
        reference, variant = counts_of(support, {}), counts_of(support, wrong)
        judged = suite._judged_types(reference, variant, loss_bounds(reference, variant))
        records = Records()
        suite._record_worst_type(judged, records)
        return records, {each.name for each in judged}

    def test_one_entity_of_a_rare_type(self):
        """One wrong entity in a type of three breaks no limit of either variant."""
        records, names = self.judged({"SRC": 400, "RARE": 3}, {"RARE": 1})
        assert names == {"SRC"}
        assert records.broken("fp32") == set()

    def test_one_entity_of_the_smallest_judged_type(self):
        """One wrong entity of a hundred is what FP32 may have, and two are what INT8 may have."""
        support = {"SRC": 400, "DATE": 100}
        assert self.judged(support, {"DATE": 1})[0].broken("fp32") == set()
        assert self.judged(support, {"DATE": 2})[0].broken("fp32") == {"worst_type_f1_loss", "worst_type_f1_loss_bound"}
        assert self.judged(support, {"DATE": 2})[0].broken("int8") == set()
        assert "worst_type_f1_loss" in self.judged(support, {"DATE": 4})[0].broken("int8")

    def test_a_type_that_is_lost(self):
        """A type that is lost is seen, though it is a small part of all entities."""
        records, _ = self.judged({"SRC": 5000, "DATE": 120}, {"DATE": 120})
        assert records["worst_type_f1_loss"] == 1
        assert records.broken("int8") == {"lowest_type_f1", "worst_type_f1_loss", "worst_type_f1_loss_bound"}

    def test_rare_types_are_judged_together(self):
        """Types that are too rare each, but enough together, cannot be lost unseen."""
        rare = {f"T{number}": 40 for number in range(5)}
        records, names = self.judged({"SRC": 400, **rare}, {"T3": 40})
        assert names == {"SRC", "(rarer types)"}
        assert records["worst_type_f1_loss"] == pytest.approx(40 / 200)

    def test_nothing_but_rare_types(self):
        """Where there is nothing else, all types together are judged, however few entities they have."""
        records, names = self.judged({"SRC": 20, "DATE": 10}, {"SRC": 20, "DATE": 10})
        assert names == {"(rarer types)"}
        assert records["worst_type_f1_loss"] == 1
