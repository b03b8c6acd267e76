"""The smallest queries behind the findings, with what PyTorch and the export find in each, side by side.

Queries are anybody's text. Reads the forms that the built-in suites write; of other suites, any list under `queries`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.account import Account
from harness.highlights import listing, mapping, number, worst_first
from harness.verdict import Finding

_LISTS = ("changed", "queries", "worst")
_OF_EACH_FINDING = 4
_MOST_CASES = 30
_MOST_ENTITIES = 24
LONGEST_QUERY = 280
_LONGEST_REASON = 300
# `SRC 3-8 Spiti`, as the generated queries' suite writes an entity
_SPAN = re.compile(r"(\S+) (\d+)-(\d+) (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity that one model finds; `only_here` if the other does not."""

    label: str
    text: str
    only_here: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A query that the two models answer differently, or that breaks a property, and where it was measured."""

    query: str
    scope: str
    measure: str
    why: str
    reference: tuple[Entity, ...] | None
    candidate: tuple[Entity, ...] | None
    left_out: int
    is_broken: bool


def cases_of(account: Account) -> list[Case]:
    """Collect the smallest cases: those behind broken limits first, each query of a variant once."""
    broken = worst_first(account.broken)
    others = [finding for finding in account.findings if not finding.rejects]
    found: dict[tuple[str, str], Case] = {}
    answers: dict[tuple[str, str], Case] = {}
    for finding in [*broken, *others]:
        every = _cases(finding)
        answers.update({(case.scope, case.query): case for case in every if case.reference is not None})
        for case in _smallest(finding, every):
            found.setdefault((case.scope, case.query), case)
    answered = [_with_answers(case, answers.get(key)) for key, case in found.items()]
    return sorted(answered, key=_order)[:_MOST_CASES]


def _order(case: Case) -> tuple[bool, str, int, str]:
    # labelled queries (parity) come before generated ones (queries)
    return not case.is_broken, case.measure.partition(".")[0], len(case.query), case.query


def _with_answers(case: Case, other: Case | None) -> Case:
    """Take over both models' answers to the same query from another measure, where this one did not write them."""
    if case.reference is not None or other is None:
        return case
    return replace(case, reference=other.reference, candidate=other.candidate, left_out=other.left_out)


def _cases(finding: Finding) -> list[Case]:
    details = finding.measure.details
    entries = [details["smallest"]] if "smallest" in details else []
    for name in _LISTS:
        entries += listing(details.get(name))
    return [case for entry in entries for case in _read(finding, entry)]


def _smallest(finding: Finding, cases: Sequence[Case]) -> list[Case]:
    telling = [case for case in cases if finding.rejects or case.why or _differ(case)]
    return sorted(telling, key=lambda case: len(case.query))[:_OF_EACH_FINDING]


def _differ(case: Case) -> bool:
    return any(entity.only_here for entity in (*(case.reference or ()), *(case.candidate or ())))


def _read(finding: Finding, entry: object) -> Iterator[Case]:
    """Read one entry: a text, a query with both answers, a word that flips, or a relation between two queries."""
    if isinstance(entry, str):
        yield _case(finding, entry, "", None, None)
        return
    values = mapping(entry)
    if isinstance(values.get("query"), str):
        sides = [_entities(values.get(name), values["query"]) for name in ("reference", "candidate", "variant")]
        yield _case(finding, values["query"], _why(values), sides[0], sides[1] if sides[1] is not None else sides[2])
    for part in ("source", "follow_up"):
        described = mapping(values.get(part))
        if isinstance(described.get("query"), str):
            why = f"{values.get('relation')}: {part.replace('_', ' ')}"
            sides = [_entities(described.get(name), described["query"]) for name in ("reference", "candidate")]
            yield _case(finding, described["query"], why, *sides)


def _case(
    finding: Finding, query: str, why: str, reference: list[Entity] | None, candidate: list[Entity] | None
) -> Case:
    if reference is not None and candidate is not None:
        reference, candidate = _marked(reference, candidate), _marked(candidate, reference)
    sides = [None if side is None else tuple(_telling(side)) for side in (reference, candidate)]
    left_out = max((len(side) - _MOST_ENTITIES for side in (reference, candidate) if side is not None), default=0)
    key = finding.measure.key
    return Case(
        query,
        key.scope,
        f"{key.suite}.{key.name}",
        why[:_LONGEST_REASON],
        sides[0],
        sides[1],
        max(left_out, 0),
        finding.rejects,
    )


def _telling(side: list[Entity]) -> Iterable[Entity]:
    """Keep what differs where there is too much to show."""
    if len(side) <= _MOST_ENTITIES:
        return side
    return sorted(side, key=lambda entity: not entity.only_here)[:_MOST_ENTITIES]


def _marked(side: list[Entity], other: list[Entity]) -> list[Entity]:
    """Mark each entity that the other side has not, as often as it has not."""
    known = Counter((entity.label, entity.text) for entity in other)
    marked = []
    for entity in side:
        key = (entity.label, entity.text)
        marked.append(Entity(*key, only_here=known[key] == 0))
        known[key] -= known[key] > 0
    return marked


def _entities(value: object, query: str) -> list[Entity] | None:
    """Read entities as `[label, text]` or as `label start-end text`; None if it is no list of these."""
    if not isinstance(value, (list, tuple)):
        return None
    found = [_entity(entry, query) for entry in value]
    return None if None in found else [entity for entity in found if entity is not None]


def _entity(entry: object, query: str) -> Entity | None:
    pair = listing(entry)
    if len(pair) == 2 and all(isinstance(part, str) for part in pair):
        return Entity(pair[0], pair[1], only_here=False)
    parsed = _SPAN.fullmatch(entry) if isinstance(entry, str) else None
    if parsed is None:
        return None
    label, start, end, shown = parsed.groups()
    # the place belongs to it: the same word twice is two entities
    place = f" @{start}" if query.count(shown) > 1 else ""
    return Entity(label, f"{shown}{place}" if int(end) > int(start) else shown, only_here=False)


def _why(values: Mapping[str, Any]) -> str:
    said = [str(values[name]) for name in ("why", "differs") if values.get(name)]
    flips = [mapping(flip) for flip in listing(values.get("flips"))]
    if "word" in values:
        flips = [values]
    said += [_flip(flip) for flip in flips[:3] if "word" in flip]
    said += [
        str(values[name]) for name in ("reference", "candidate") if isinstance(values.get(name), str) and not flips
    ]
    return "; ".join(said)


def _flip(flip: Mapping[str, Any]) -> str:
    after = flip.get("candidate", flip.get("variant"))
    margin = number(flip.get("margin"))
    sure = f", PyTorch's margin {margin:.2g}" if margin is not None else ""
    return f"“{flip['word']}” {flip.get('reference')} → {after}{sure}"
