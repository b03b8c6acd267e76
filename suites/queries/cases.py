"""What is asked in one run: how many queries of each origin, and the saved ones among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hypothesis import strategies as st

from harness.queries import (
    AWKWARD_TEXTS,
    GeneratedQuery,
    Grammar,
    Origin,
    RelatedQueries,
    arbitrary_queries,
    draw_examples,
    grammar_of,
    grammar_queries,
    long_queries,
    mutated_queries,
    related_queries,
    round_robin,
)
from harness.tagging import LabelledSet
from suites.queries.saved import SavedQuery

# Examples of each origin. Long ones cost as much as a hundred others.
GRAMMAR, MUTATED, ARBITRARY, LONG, RELATIONS = 80, 80, 80, 2, 70
# Few templates and names make few queries; arbitrary text fills up to this.
EXAMPLES = 300
# Beyond what BERT reads at once. Longer ones would take minutes where the model reads more.
LONGEST_WORDS = 512
# Properties of this beginning are about queries of the grammar and their mutations.
GRAMMAR_PROPERTY = "grammar_"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan(Generic[T]):
    """A strategy and how many examples of it hypothesis tries."""

    strategy: st.SearchStrategy[T]
    count: int


@dataclass(frozen=True, slots=True)
class Cases:
    """The queries of one run, each text once, and the plans they were drawn by."""

    grammar: tuple[GeneratedQuery, ...]
    arbitrary: tuple[GeneratedQuery, ...]
    relations: tuple[RelatedQueries, ...]
    plans: dict[Origin, Plan[GeneratedQuery]]
    relation_plan: Plan[RelatedQueries]

    @property
    def queries(self) -> list[GeneratedQuery]:
        """Queries of every origin in turn, so that neighbours differ in kind and length; then the saved ones.

        Saved queries move no other one into another batch: what a candidate does with the rest stays comparable.
        """
        return _saved_last(round_robin((self.grammar, self.arbitrary)))

    @property
    def texts(self) -> list[str]:
        """Every text, those of the relations too."""
        related = (text for relation in self.relations for text in (relation.source, relation.follow_up))
        return list(dict.fromkeys([*(query.text for query in self.queries), *related]))

    @property
    def examples(self) -> int:
        """How many different examples were drawn."""
        return sum(query.origin is not Origin.SAVED for query in self.queries) + len(self.relations)

    def without(self, texts: frozenset[str]) -> Cases:
        """Leave out every example that has to do with one of these texts."""
        return Cases(
            tuple(query for query in self.grammar if query.text not in texts),
            tuple(query for query in self.arbitrary if query.text not in texts),
            tuple(found for found in self.relations if not texts & {found.source, found.follow_up}),
            self.plans,
            self.relation_plan,
        )


def draw_cases(labelled: LabelledSet, maximum_tokens: int, saved: Sequence[SavedQuery] = ()) -> Cases:
    """Draw the queries of one run; the same ones every time, but for the saved ones.

    Args:
        labelled: the set whose grammar to draw from.
        maximum_tokens: how many tokens the model reads at once.
        saved: the queries that every property is to see again.
    """
    grammar = grammar_of(labelled)
    plans = _plans(grammar, maximum_tokens)
    relation_plan = Plan(related_queries(grammar), RELATIONS)
    cases = _drawn(plans, relation_plan, saved)
    lacking = EXAMPLES - cases.examples
    if lacking > 0:
        plans[Origin.ARBITRARY] = Plan(plans[Origin.ARBITRARY].strategy, ARBITRARY + lacking)
        cases = _drawn(plans, relation_plan, saved)
    return cases


def _plans(grammar: Grammar, maximum_tokens: int) -> dict[Origin, Plan[GeneratedQuery]]:
    return {
        Origin.GRAMMAR: Plan(grammar_queries(grammar), GRAMMAR),
        Origin.MUTATED: Plan(mutated_queries(grammar), MUTATED),
        Origin.ARBITRARY: Plan(arbitrary_queries(), ARBITRARY),
        Origin.LONG: Plan(long_queries(grammar, min(maximum_tokens, LONGEST_WORDS)), LONG),
    }


def _drawn(
    plans: dict[Origin, Plan[GeneratedQuery]], relation_plan: Plan[RelatedQueries], saved: Sequence[SavedQuery]
) -> Cases:
    explicit: dict[Origin, list[GeneratedQuery]] = {Origin.MUTATED: [], Origin.ARBITRARY: []}
    for entry in saved:
        home = Origin.MUTATED if entry.property.startswith(GRAMMAR_PROPERTY) else Origin.ARBITRARY
        explicit[home].append(GeneratedQuery(entry.text, Origin.SAVED))
    explicit[Origin.ARBITRARY] += (GeneratedQuery(text, Origin.ARBITRARY) for text in AWKWARD_TEXTS)
    drawn = {
        origin: draw_examples(plan.strategy, plan.count, _distinct(explicit.get(origin, ())))
        for origin, plan in plans.items()
    }
    relations = draw_examples(relation_plan.strategy, relation_plan.count)
    return Cases(
        _distinct(round_robin((drawn[Origin.GRAMMAR], _saved_last(drawn[Origin.MUTATED])))),
        _distinct([*drawn[Origin.LONG], *drawn[Origin.ARBITRARY]]),
        tuple(dict.fromkeys(found for found in relations if found.source != found.follow_up)),
        plans,
        relation_plan,
    )


def _distinct(queries: Iterable[GeneratedQuery]) -> tuple[GeneratedQuery, ...]:
    """Keep each text once; one that is drawn anyway counts as drawn, not as saved."""
    first: dict[str, GeneratedQuery] = {}
    for query in _saved_last(queries):
        first.setdefault(query.text, query)
    return tuple(first.values())


def _saved_last(queries: Iterable[GeneratedQuery]) -> list[GeneratedQuery]:
    return sorted(queries, key=lambda query: query.origin is Origin.SAVED)
