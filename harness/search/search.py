"""The order in which recipes are tried: what is cheap to learn first, and each measurement once.

1. Families of recipes, by fidelity on validation queries: forms, smoothing, calibration.
2. The sensitivity of each product: quantized alone, all others in FP32.
3. From the best family on: the worst products get finer treatment, one after the other.
4. Latency, interleaved with the usual recipe's, of those that are worth it.

Given the same measurements it makes the same choice. When its time is up it chooses from what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from harness.errors import ArtifactError
from harness.instruction_sets import WeightRange
from harness.paired.estimate import MeasurementError
from harness.progress import Progress
from harness.recipes.recipe import (
    FUSED_DYNAMIC,
    PLAIN_FUSIONS,
    QDQ,
    STATIC,
    USUAL,
    Calibration,
    Form,
    Fusion,
    Recipe,
)
from harness.recipes.workshop import Products
from harness.search.front import Choice, Entry, choose, front
from harness.search.measurements import Fidelity, Latency, Notebook
from harness.timing import Clock

DEFAULT_BUDGET_S = 300.0
_MIGRATIONS = (0.5, 0.65, 0.8)
_CALIBRATIONS = (Calibration.PERCENTILE, Calibration.ENTROPY, Calibration.ERROR)
# So many of the worst products are treated more finely, in steps.
_STEPS = (1, 2, 3, 4, 6, 8, 12, 18)
_FLOAT_STEPS = (1, 2)
_MOST_TIMED = 9
# What was never timed cannot be taken, so this share of the time is kept for timing.
_TIMING_SHARE = 0.4
_NS_PER_S = 1e9


class Measuring(Protocol):
    """What measures recipes; `harness.search.bench.Bench`."""

    def fidelity(self, recipe: Recipe) -> Fidelity:
        """Compare its answers with FP32's."""
        ...

    def latency(self, recipe: Recipe) -> Latency:
        """Time it beside the usual recipe."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found.

    Attributes:
        choice: what is taken, and why; None where no recipe can be taken.
        entries: everything that was measured, in the order in which it was.
        front: those that no other beats.
        sensitivity: mean logit difference that each product makes if it alone is quantized, the worst first.
        failed: recipes that cannot be built of this model, or cannot be timed, each with the reason.
        out_of_time: whether it had to stop before it was through.
    """

    choice: Choice | None
    entries: tuple[Entry, ...]
    front: tuple[Entry, ...]
    sensitivity: tuple[tuple[str, float], ...]
    failed: tuple[tuple[str, str], ...]
    out_of_time: bool


class Search:
    """One search; `run` it once."""

    def __init__(
        self,
        bench: Measuring,
        products: Products,
        notebook: Notebook,
        clock: Clock,
        progress: Progress,
        *,
        weight_range: WeightRange = WeightRange.PAIRS,
        activations: str = "QUInt8",
        budget_s: float = DEFAULT_BUDGET_S,
    ) -> None:
        """Prepare; nothing is measured yet.

        Args:
            bench: measures.
            products: what recipes decide about.
            notebook: what is known already, and where measurements go.
            clock: tells when the time is up.
            progress: who is told.
            weight_range: which weights may be written, by the target.
            activations: `QUInt8` or `QInt8`, by the target.
            budget_s: after so many seconds nothing new is begun; fidelity only in the first three fifths of them.
        """
        self._bench, self._products, self._notebook = bench, products, notebook
        self._clock, self._progress = clock, progress
        self._weight_range, self._activations = weight_range, activations
        begin_ns = clock.now_ns()
        self._timing_ns = begin_ns + round((1 - _TIMING_SHARE) * budget_s * _NS_PER_S)
        self._end_ns = begin_ns + round(budget_s * _NS_PER_S)
        self._entries: dict[str, Entry] = {}
        self._failed: list[tuple[str, str]] = []
        self._out_of_time = False

    def run(self) -> Outcome:
        """Search.

        Raises:
            HarnessError: a measurement could not be made at all.
        """
        self._families()
        base = self._base()
        sensitivity: list[tuple[str, float]] = []
        if base is not None:
            sensitivity = self._sensitivity(base)
            self._refine(base, [name for name, _ in sensitivity])
        self._time()
        entries = tuple(self._entries.values())
        return Outcome(
            choose(entries), entries, tuple(front(entries)), tuple(sensitivity), tuple(self._failed), self._out_of_time
        )

    # -- 1 -------------------------------------------------------------------------------------------------------------

    def _families(self) -> None:
        static = self._fitted(replace(STATIC, float_sites=self._products.small, compensated=False))
        for recipe in (USUAL, FUSED_DYNAMIC, self._fitted(QDQ)):
            self._try(recipe)
        self._try(static)
        for migration in _MIGRATIONS:
            self._try(replace(static, migration=migration, name=f"smoothed {migration:g}"))
        best = self._best(static.form)
        if best is None:
            return
        for calibration in _CALIBRATIONS:
            self._try(replace(best.recipe, calibration=calibration, name=f"{best.recipe.name}, {calibration.value}"))
        best = self._best(static.form) or best
        fast = replace(best.recipe, fusions=(*PLAIN_FUSIONS, Fusion.FAST_GELU))
        self._try(fast.called(f"{best.recipe.name}, fast Gelu"))

    def _fitted(self, recipe: Recipe) -> Recipe:
        return replace(recipe, weight_range=self._weight_range, activations=self._activations)

    def _best(self, form: Form) -> Entry | None:
        fit = [entry for entry in self._entries.values() if entry.recipe.form is form]
        return min(fit, key=_error, default=None)

    def _base(self) -> Recipe | None:
        """Take the most faithful family of final graphs; where an approximate Gelu costs nothing, it is faster."""
        best = self._best(Form.OPERATORS)
        if best is None:
            return None
        fast = [entry for entry in self._entries.values() if Fusion.FAST_GELU in entry.recipe.fusions]
        near = [entry for entry in fast if _error(entry) <= 1.05 * _error(best)]
        found = (near[0] if near else best).recipe
        # compensation takes a while and costs nothing when the model runs; which family is best it does not change
        compensated = replace(found, compensated=True, name=f"{found.name}, compensated")
        self._try(compensated)
        return compensated if compensated.digest() in self._entries else found

    # -- 2 -------------------------------------------------------------------------------------------------------------

    def _sensitivity(self, base: Recipe) -> list[tuple[str, float]]:
        """Quantize each product alone, and order them from the worst."""
        found = []
        wanted = [name for name in self._products.all if name not in base.float_sites]
        for name in wanted:
            others = tuple(other for other in self._products.all if other != name)
            alone = replace(base, float_sites=others, compensated=False, name=f"{name} alone")
            fidelity = self._fidelity(alone)
            if fidelity is not None:
                found.append((name, fidelity.mean_logit_difference))
        return sorted(found, key=lambda item: (-item[1], item[0]))

    # -- 3 -------------------------------------------------------------------------------------------------------------

    def _refine(self, base: Recipe, worst: Sequence[str]) -> None:
        """Scale more and more of the worst products row by row; leave the worst of all in FP32."""
        rows = [name for name in worst if name in self._products.by_row]
        for step in (step for step in _STEPS if step <= len(rows)):
            self._try(replace(base, row_sites=tuple(sorted(rows[:step])), name=f"{base.name}, {step} by row"))
        for step in (step for step in _FLOAT_STEPS if step <= len(worst)):
            left = (*base.float_sites, *worst[:step])
            self._try(replace(base, float_sites=tuple(sorted(left)), name=f"{base.name}, {step} in FP32"))

    # -- 4 -------------------------------------------------------------------------------------------------------------

    def _time(self) -> None:
        """Time what may be taken, the most faithful first, and what it is compared with."""
        fit = [entry for entry in self._entries.values() if not entry.refusal]
        fit.sort(key=lambda entry: (_error(entry), entry.recipe.name))
        known = [entry for entry in self._entries.values() if entry.recipe == FUSED_DYNAMIC]
        for entry in [*_spread(fit, _MOST_TIMED), *known]:
            latency = self._latency(entry.recipe)
            if latency is not None:
                self._entries[entry.recipe.digest()] = replace(entry, latency=latency)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _try(self, recipe: Recipe) -> None:
        if recipe.digest() in self._entries:
            return
        fidelity = self._fidelity(recipe)
        if fidelity is not None:
            known = Latency(1.0, 1.0, 1.0, 0) if recipe == USUAL else None
            self._entries[recipe.digest()] = Entry(recipe, fidelity, known)

    def _fidelity(self, recipe: Recipe) -> Fidelity | None:
        if known := self._notebook.fidelity(recipe.digest()):
            return known
        if not self._has_time(self._timing_ns):
            return None
        self._progress.now(f"search: {recipe.name}{self._so_far()}")
        try:
            found = self._bench.fidelity(recipe)
        except ArtifactError as err:
            self._failed.append((recipe.name, str(err)))
            return None
        self._notebook.note(recipe.digest(), found)
        return found

    def _latency(self, recipe: Recipe) -> Latency | None:
        if known := self._notebook.latency(recipe.digest()):
            return known
        if not self._has_time(self._end_ns):
            return None
        self._progress.now(f"search: timing {recipe.name}{self._so_far()}")
        try:
            found = self._bench.latency(recipe)
        except (ArtifactError, MeasurementError) as err:
            self._failed.append((recipe.name, str(err)))
            return None
        self._notebook.note(recipe.digest(), found)
        self._progress.line(f"search: {recipe.name}: {found.ratio:.2f} of the usual recipe's time")
        return found

    def _has_time(self, end_ns: int) -> bool:
        if self._clock.now_ns() < end_ns:
            return True
        self._out_of_time = True
        return False

    def _so_far(self) -> str:
        best = min((entry for entry in self._entries.values() if not entry.refusal), key=_error, default=None)
        return "" if best is None else f" (so far {_error(best):.3f} logits: {best.recipe.name})"


def _error(entry: Entry) -> float:
    return entry.fidelity.mean_logit_difference


def _spread(entries: Sequence[Entry], most: int) -> list[Entry]:
    """Keep so many, evenly spread over the order, the first and the last among them."""
    if len(entries) <= most:
        return list(entries)
    places = sorted({round(number * (len(entries) - 1) / (most - 1)) for number in range(most)})
    return [entries[place] for place in places]
