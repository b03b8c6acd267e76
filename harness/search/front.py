"""Which recipes are worth having, and which of them is taken. Numbers in, a choice out: nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.recipes.recipe import Recipe
from harness.search.measurements import Fidelity, Latency

# What a recipe must keep on validation queries to be taken; the suites then hold it to the policy's limits.
MOST_CHANGED_WORDS = 0.01
MOST_F1_LOSS = 0.005
# Recipes within so much of the fastest count as equally fast; of those, the most faithful is taken.
SPEED_MARGIN = 0.10


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe with what was measured of it; `latency` is None where it was never timed."""

    recipe: Recipe
    fidelity: Fidelity
    latency: Latency | None = None

    @property
    def refusal(self) -> str:
        """Why it cannot be taken; empty where it can."""
        found = self.fidelity
        if not self.recipe.is_one_function:
            return "answers depend on batch mates"
        if found.confident_flips:
            return f"{found.confident_flips} confident flips"
        if found.changed_words > MOST_CHANGED_WORDS:
            return f"changes {found.changed_words:.1%} of the words"
        return f"loses {found.f1_loss:.3f} F1" if found.f1_loss > MOST_F1_LOSS else ""


def front(entries: Sequence[Entry]) -> list[Entry]:
    """List the timed entries of which no other is better in one of latency, size and fidelity and as good in the rest.

    What cannot be taken stands behind nothing that can: it shows what the refusal costs, and hides no other.
    """
    timed = [entry for entry in entries if entry.latency is not None]
    return [entry for entry in timed if not any(_dominates(other, entry) for other in timed if other is not entry)]


def _dominates(one: Entry, other: Entry) -> bool:
    ours, theirs = _goods(one), _goods(other)
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


def _goods(entry: Entry) -> tuple[float, ...]:
    """Write down what makes an entry good, each the less the better."""
    return bool(entry.refusal), _ratio(entry), entry.fidelity.size_bytes, *_faithfulness(entry)


@dataclass(frozen=True, slots=True)
class Choice:
    """The recipe that is taken, and why."""

    entry: Entry
    reason: str


def choose(entries: Sequence[Entry]) -> Choice | None:
    """Take the most faithful of those that are about as fast as the fastest; None where none can be taken.

    Faithful is what has the least mean logit difference: of some hundred queries so few change a label that one more or
    less would decide; it does only between equals. Of those alike in both the faster is taken, then the smaller, so what is
    taken is always on the front; then the first by name.
    """
    fit = [entry for entry in entries if entry.latency is not None and not entry.refusal]
    if not fit:
        return None
    fastest = min(fit, key=lambda entry: (_ratio(entry), *_order(entry)))
    bound = _ratio(fastest) * (1 + SPEED_MARGIN)
    # what is not surely slower counts as near: on a busy machine the estimate alone would choose by chance
    near = [entry for entry in fit if entry.latency is not None and entry.latency.low <= bound]
    taken = min(near, key=_order)
    return Choice(taken, _reason(taken, fastest, len(near), len(entries) - len(fit)))


def _ratio(entry: Entry) -> float:
    return entry.latency.ratio if entry.latency else float("inf")


def _faithfulness(entry: Entry) -> tuple[float, float]:
    return entry.fidelity.mean_logit_difference, entry.fidelity.changed_queries


def _order(entry: Entry) -> tuple[float | str, ...]:
    """Order entries by what is taken first; no two are alike, so the order of measuring decides nothing."""
    recipe = entry.recipe
    return *_faithfulness(entry), _ratio(entry), entry.fidelity.size_bytes, recipe.name, recipe.digest()


def _reason(taken: Entry, fastest: Entry, near: int, others: int) -> str:
    found = taken.fidelity
    faith = f"labels change in {found.changed_queries:.1%} of the validation queries, logits by {found.mean_logit_difference:.3f}"
    if taken is fastest:
        speed = f"the fastest, {_ratio(taken):.2f} of the usual recipe's time"
    else:
        speed = f"{_ratio(taken):.2f} of the usual recipe's time, the fastest takes {_ratio(fastest):.2f}"
    place = f"the most faithful of {near} within {SPEED_MARGIN:.0%} of the fastest"
    return f"{place}: {faith}; {speed}; {others} others were refused or not timed"
