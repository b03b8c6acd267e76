"""Each test records what one property of the generated queries came to; the policy's limits judge it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from harness.queries import Origin
from suites.queries import SUITE, replay
from suites.queries import examination as ex
from suites.queries.cases import Cases, draw_cases
from suites.queries.fresh_replay import FreshReplay
from suites.queries.saved import SavedQuery, line_of, read_saved, save

if TYPE_CHECKING:
    from harness.artifact import Artifact
    from harness.candidate import Candidate
    from harness.plugin import RecordMeasure
    from harness.reference import Reference
    from harness.serving import Runtime
    from harness.tagging import LabelledSet, TaggedQuery

RecordFinding = Callable[[str, ex.Found], None]
_UNITS = {promise.name: promise.unit for promise in SUITE.measures}


@pytest.fixture(scope="session")
def drawn_cases(
    reference: Reference, labelled_set: LabelledSet, state_folder: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> Cases:
    """The same queries for every variant."""
    # hypothesis would otherwise write its caches into the working folder
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))
    return draw_cases(labelled_set, reference.checkpoint.maximum_tokens, read_saved(state_folder))


@pytest.fixture(scope="session")
def reference_memory(reference: Reference, drawn_cases: Cases) -> ex.ReferenceAnswers:
    """The reference's answers, shared by the variants."""
    answers = ex.ReferenceAnswers(reference)
    answers.prepare(drawn_cases.texts)
    return answers


@pytest.fixture(scope="session")
def cases(drawn_cases: Cases, reference_memory: ex.ReferenceAnswers) -> Cases:
    """The queries that the reference itself answers; only these can be asked of a candidate."""
    return drawn_cases.without(frozenset(reference_memory.refused(drawn_cases.texts)))


@pytest.fixture(scope="session")
def texts_to_replay(labelled_set: LabelledSet, cases: Cases) -> replay.Texts:
    """Labelled, generated and awkward texts."""
    # a text of 10,000 characters is asked anyway
    generated = [query.text for query in cases.queries if query.origin is not Origin.LONG]
    return replay.texts_to_replay(labelled_set.texts, generated)


@pytest.fixture(scope="session")
def replays(candidate: Artifact, runtime: Runtime, texts_to_replay: replay.Texts) -> Iterator[dict[str, FreshReplay]]:
    """A process without PyTorch for each variant, all at work from now on: while they answer, other tests run."""
    with ExitStack() as stack:
        groups = texts_to_replay.groups
        yield {
            variant.value: stack.enter_context(FreshReplay(candidate.folder, variant.value, groups, runtime=runtime))
            for variant in candidate.variants
        }


@pytest.fixture(scope="session")
def examined(model: Candidate, reference_memory: ex.ReferenceAnswers, cases: Cases) -> ex.Examination:
    """One variant beside the reference."""
    return ex.Examination(model, reference_memory, cases)


@pytest.fixture
def record_finding(
    record_measure: RecordMeasure, variant: str, state_folder: Path | None, pytestconfig: pytest.Config
) -> RecordFinding:
    """A function `record_finding(name, found)` that records the measure and saves the queries behind it."""
    run = str(pytestconfig.getoption("harness_run_id"))

    def record(name: str, found: ex.Found) -> None:
        record_measure(name, found.value, unit=_UNITS[name], details=found.details)
        if state_folder is not None:
            line = line_of(state_folder)
            save(state_folder, [SavedQuery(text, name, variant, run, line) for text in found.saves])

    return record


@pytest.mark.usefixtures("replays")  # begun with the suite's first test, they answer beside the others
def test_examples(
    examined: ex.Examination, drawn_cases: Cases, reference_memory: ex.ReferenceAnswers, record_finding: RecordFinding
) -> None:
    """How many different examples hypothesis tried, without those on which the reference itself fails."""
    refused = reference_memory.refused(drawn_cases.texts)
    details = {"drawn": drawn_cases.examples, "refused_by_the_reference": [*refused.items()][:10]}
    record_finding("examples", ex.Found(examined.cases.examples, details))


@pytest.mark.parametrize("name", ex.PROPERTIES)
def test_property(name: str, examined: ex.Examination, record_finding: RecordFinding) -> None:
    """How many queries break a property that every query is to keep."""
    record_finding(name, ex.count_violations(examined, ex.PROPERTIES[name]))


def test_logits_in_a_batch(examined: ex.Examination, record_finding: RecordFinding) -> None:
    """How far a query's logits move when other queries share its batch."""
    record_finding("max_batch_logit_difference", ex.batch_logit_difference(examined))


def test_logits(examined: ex.Examination, record_finding: RecordFinding) -> None:
    """How far any query's logits are from the reference's."""
    record_finding("max_logit_difference", ex.logit_difference(examined))


def test_labels_of_the_grammar(examined: ex.Examination, record_finding: RecordFinding) -> None:
    """Words and entities of the data's grammar, and of its mutations, as the reference sees them."""
    queries = examined.cases.grammar
    record_finding("grammar_label_agreement", ex.label_agreement(examined, queries))
    record_finding("grammar_entity_agreement", ex.entity_agreement(examined, queries))
    record_finding("grammar_largest_flipped_margin", ex.largest_flipped_margin(examined, queries))


def test_labels_of_arbitrary_text(examined: ex.Examination, record_finding: RecordFinding) -> None:
    """Words of any Unicode text, as the reference sees them."""
    queries = examined.cases.arbitrary
    record_finding("arbitrary_label_agreement", ex.label_agreement(examined, queries))
    record_finding("arbitrary_largest_flipped_margin", ex.largest_flipped_margin(examined, queries))


def test_relations(examined: ex.Examination, record_finding: RecordFinding) -> None:
    """Which metamorphic relations that hold for the reference break in the candidate."""
    record_finding("relation_checks", ex.relation_checks(examined))
    record_finding("broken_relations", ex.broken_relations(examined))


def test_replay_without_pytorch(
    candidate: Artifact,
    variant: str,
    model: Candidate,
    answers: list[TaggedQuery],
    texts_to_replay: replay.Texts,
    replays: dict[str, FreshReplay],
    record_finding: RecordFinding,
) -> None:
    """Labelled, generated and awkward texts in a process that has the runtime alone, against transformers' way."""
    texts = texts_to_replay.every
    known = {tagged.text: tagged for tagged in answers}
    wanted = list(replay.TransformersWay(candidate.folder, model).traces(texts, known))
    found = replay.differences(texts, wanted, replays[variant].answers())
    record_finding("replayed_queries", ex.Found(len(texts), texts_to_replay.described()))
    record_finding("replay_differences", ex.Found(len(found), {"queries": replay.described(found)}))
