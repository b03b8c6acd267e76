"""From `model.onnx` to an INT8 `model_quantized.onnx` beside it, by a named recipe, or by the best that a search finds.

Static scales by default, not dynamic ones: with a dynamic scale the other queries of a batch, and even padding, change a
query's answer (onnxruntime#8625), so the INT8 model would not be one function.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.artifact import MANIFEST, MANIFEST_SCHEMA, Variant, folder_digests
from harness.documents import read_json_object
from harness.errors import ArtifactError, UsageError, one_line
from harness.evidence import machine_and_versions
from harness.instruction_sets import PRESETS, Preset, preset_for
from harness.progress import Progress
from harness.recipes.recipe import QDQ, STATIC, Form, Recipe, recipe_named
from harness.serving import VariantEntry
from harness.tagging import LabelledSet, split_label

if TYPE_CHECKING:
    import onnx

    from harness.recipes.workshop import Products, Workshop
    from harness.search.search import Outcome

_CALIBRATION_QUERIES = 400
_VALIDATION_QUERIES = 400
AUTO = "auto"
# A target that is no kind of CPU: a small file, in 4 bits.
SIZE = "size"
DEFAULT_RECIPE = QDQ
# Scalars and short vectors stay in the graph, where onnxruntime looks at their values.
_STORED_APART_BYTES = 1024
SEARCH_BUDGET_S = 300.0
# What measurements depend on besides the export, the queries and the machine.
_MEASURED_WITH = ("ner-release-harness", "numpy", "onnx", "onnxruntime", "optimum")


@dataclass(frozen=True, slots=True)
class Int8Order:
    """What INT8 variant is wanted.

    Attributes:
        recipe: how it is made; None: the best that a search finds.
        preset: for which CPUs.
        target: the name under which the preset was asked for; None if it was not.
        budget_s: of the search.
        parted: whether every second query is kept from calibration, to validate recipes; also where that was so when the
            recipe was found, for other ranges would be another model.
        calibrated_on: digest of the queries that the recipe was calibrated on before; empty if it was not.
    """

    recipe: Recipe | None
    preset: Preset
    target: str | None = None
    budget_s: float = SEARCH_BUDGET_S
    parted: bool = False
    calibrated_on: str = ""

    @property
    def fitted(self) -> Recipe:
        """The recipe, as it is for these CPUs. There is none where one is searched for."""
        recipe = self.recipe or DEFAULT_RECIPE
        if recipe.form in (Form.DYNAMIC, Form.BLOCKS):
            return recipe
        activations = "QInt8" if self.preset.signed_activations else "QUInt8"
        return replace(recipe, weight_range=self.preset.weights, activations=activations)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `--quantize` names; the rest is what an earlier release says of its recipe."""

    recipe: Recipe | None
    target: str | None = None
    parted: bool = False
    calibrated_on: str = ""


def order_int8(quantize: bool | str, target: str | None, budget_s: float | None = None) -> Int8Order:  # noqa: FBT001  # as of the exporter
    """Read what was asked for, before any work.

    Args:
        quantize: True for the default recipe, a recipe's name, `auto`, or the path of a manifest whose recipe to use.
        target: which CPUs; see `harness.instruction_sets.PRESETS`. By default those of the manifest, or what the recipe is
            safe on.
        budget_s: of a search, in seconds; by default `SEARCH_BUDGET_S`.

    Raises:
        UsageError: there is no such recipe or target, or a budget for no search.
        DocumentError: the manifest cannot be read.
    """
    asked = _asked(quantize) if target != SIZE else _small(quantize)
    if budget_s is not None and asked.recipe is not None:
        message = f"--search-budget is for a search, which --quantize {AUTO} asks for. Name {AUTO}, or leave it out."
        raise UsageError(message)
    preset = _preset(target or asked.target, asked.recipe)
    return Int8Order(
        asked.recipe, preset, target, budget_s or SEARCH_BUDGET_S, asked.parted, asked.calibrated_on
    )  # fmt: skip


def _small(quantize: bool | str) -> _Asked:  # noqa: FBT001
    """Leave the recipe to the target, which nothing is searched or kept from calibration for."""
    if quantize not in {True, AUTO}:
        message = (
            f"the target {SIZE} chooses a recipe of its own, and {quantize!r} names another. Leave one of them out."
        )
        raise UsageError(message)
    return _Asked(DEFAULT_RECIPE)


def _asked(quantize: bool | str) -> _Asked:  # noqa: FBT001
    if quantize is True:
        return _Asked(DEFAULT_RECIPE)
    if quantize == AUTO:
        return _Asked(None, parted=True)
    name = str(quantize)
    return _asked_by_manifest(Path(name)) if name.endswith(".json") else _Asked(recipe_named(name))


def _asked_by_manifest(path: Path) -> _Asked:
    manifest = read_json_object(path)
    variants = manifest.get("variants")
    entry = variants.get(Variant.INT8.value) if isinstance(variants, dict) else None
    facts = entry.get("recipe") if isinstance(entry, dict) else None
    if manifest.get("schema") != MANIFEST_SCHEMA or not isinstance(facts, dict):
        message = (
            f"{path} names no recipe of an INT8 variant. Name the manifest.json of a release made with --quantize."
        )
        raise UsageError(message)
    recipe = Recipe.from_json(facts.get("recipe"), str(path))
    target = facts.get("target")
    return _Asked(
        recipe,
        None if target is None else str(target),
        parted=facts.get("parted") is True,
        calibrated_on=str(facts.get("calibration_digest", "")),
    )


def _preset(target: str | None, recipe: Recipe | None) -> Preset:
    if target in (None, SIZE):
        # final graphs lose hardly anything by being right everywhere; the other form would lose a bit of every weight
        return preset_for() if recipe is not None and recipe.form is Form.QDQ else PRESETS[0]
    found = [preset for preset in PRESETS if preset.name == target]
    if not found:
        message = f"there is no target {target!r}. Known: {', '.join([*(preset.name for preset in PRESETS), SIZE])}."
        raise UsageError(message)
    return found[0]


@dataclass(frozen=True, slots=True)
class RecipeData:
    """Queries that a recipe is made with; judging sees none of them.

    Attributes:
        calibration: texts from which the ranges of activations are taken.
        validation: labelled queries that a search compares recipes on.
    """

    calibration: tuple[str, ...]
    validation: LabelledSet


def default_recipe_data(labels: Sequence[str], progress: Progress) -> RecipeData:
    """Take bus training and validation queries; say so where the model is of another domain."""
    from harness.labelled_data import bundled_bus_queries, read_labelled_set

    train = read_labelled_set(bundled_bus_queries("train"))
    if not set(train.entity_types) <= {split_label(label)[1] for label in labels}:
        progress.line(
            "note: INT8 ranges are set on bus queries; name queries of your own domain with --calibration FILE"
        )
    validation = read_labelled_set(bundled_bus_queries("validation"))
    chosen = LabelledSet(validation.name, tuple(_every(validation.queries, _VALIDATION_QUERIES)))
    return RecipeData(tuple(_every(train.texts, _CALIBRATION_QUERIES)), chosen)


def _every(things: Sequence[Any], most: int) -> list[Any]:
    step = max(1, len(things) // most)
    return list(things[::step][:most])


def recipe_data(labelled: LabelledSet, *, parted: bool) -> RecipeData:
    """Part labelled queries: all calibrate, or every second text does and the others validate."""
    calibration = calibration_texts(labelled.texts, parted=parted)
    used = frozenset(calibration)
    validation = tuple(query for query in labelled.queries if query.text not in used)
    return RecipeData(calibration, LabelledSet(labelled.name, validation))


def calibration_texts(texts: Sequence[str], *, parted: bool) -> tuple[str, ...]:
    """Take all queries, or every second one; equal ones count once then, for they must not be on both sides."""
    return tuple(dict.fromkeys(texts))[::2] if parted else tuple(texts)


def default_calibration(labels: Sequence[str], progress: Progress) -> list[str]:
    """Take the calibration texts of `default_recipe_data`."""
    return list(default_recipe_data(labels, progress).calibration)


@dataclass(frozen=True, slots=True)
class Quantized:
    """An INT8 variant that was written: its manifest entry, and the search that found its recipe."""

    entry: VariantEntry
    outcome: Outcome | None = None


def quantize_model(
    folder: Path, data: RecipeData, order: Int8Order, *, progress: Progress, notebook: Path | None = None
) -> Quantized:
    """Write `model_quantized.onnx` beside the `model.onnx` of an export.

    Args:
        folder: the export.
        data: queries to make it with.
        order: how, and for which CPUs.
        progress: who is told.
        notebook: folder where a search keeps its measurements and finds earlier ones; nothing is kept without.

    Raises:
        ArtifactError: the recipe cannot be carried out on this model, or a search found none that can be taken.
    """
    from harness.recipes.workshop import Workshop

    if order.calibrated_on not in {"", _digest(data.calibration)}:
        progress.line("note: the recipe's release was calibrated on other queries, so this will be another INT8 model")
    workshop = Workshop(folder, data.calibration)
    outcome = None
    recipe = order.fitted
    if order.target == SIZE:
        recipe = workshop.small_recipe()
    elif order.recipe is None:
        outcome = _search(workshop, data, order, progress, notebook)
        recipe = _taken(outcome, folder)
    made_with = f"{len(data.calibration)} queries set the ranges"
    progress.line(
        f"INT8 by the recipe {one_line(recipe.name, 60)}, for {order.target or order.preset.name}: {made_with}"
    )
    model = workshop.build(recipe)
    entry = _write(model, folder, recipe, _facts(data, order, outcome))
    return Quantized(entry, outcome)


def _search(
    workshop: Workshop, data: RecipeData, order: Int8Order, progress: Progress, notebook: Path | None
) -> Outcome:
    import tempfile

    from harness.search.bench import Bench
    from harness.search.measurements import Notebook
    from harness.search.search import Search
    from harness.timing import SystemClock

    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="harness-notebook-") as temporary:
        search = Search(
            Bench(workshop, data.validation, clock),
            _products(workshop),
            Notebook(notebook or Path(temporary), _key(workshop.folder, data)),
            clock,
            progress,
            weight_range=order.preset.weights,
            activations="QInt8" if order.preset.signed_activations else "QUInt8",
            budget_s=order.budget_s,
        )
        return search.run()


def _products(workshop: Workshop) -> Products:
    """Name what final graphs decide about; nothing where none can be made: each such recipe then fails, with the reason."""
    from harness.recipes.workshop import Products

    try:
        return workshop.products(STATIC)
    except ArtifactError:
        return Products((), frozenset(), ())


def _key(folder: Path, data: RecipeData) -> str:
    """Digest what measurements of a recipe depend on: the export, the queries, the machine, the versions."""
    files = folder_digests(folder, leave_out=frozenset({MANIFEST, Variant.INT8.file_name}))
    validation = [(query.text, str(query.spans)) for query in data.validation.queries]
    facts = machine_and_versions(_MEASURED_WITH)
    content = json.dumps([files, data.calibration, validation, facts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _taken(outcome: Outcome, folder: Path) -> Recipe:
    if outcome.choice is None:
        entries = [entry for entry in outcome.entries if entry.recipe.is_one_function]
        reasons = ", ".join(f"{entry.recipe.name}: {entry.refusal or 'not timed'}" for entry in entries[:4])
        failed = ", ".join(f"{name}: {reason}" for name, reason in outcome.failed[:2])
        why = "; ".join(part for part in (reasons, failed) if part) or "the time was up before anything was measured"
        remedy = (
            "Give it more time (--search-budget)"
            if outcome.out_of_time
            else "Name a recipe, or release without --quantize"
        )
        message = f"{folder / Variant.FP32.file_name}: no recipe of the search can be taken ({why}). {remedy}."
        raise ArtifactError(message)
    return outcome.choice.entry.recipe


def _facts(data: RecipeData, order: Int8Order, outcome: Outcome | None) -> dict[str, Any]:
    """Collect what the manifest says beside the recipe, so that the same file can be made again without a search."""
    facts: dict[str, Any] = {
        "target": order.target or order.preset.name,
        "calibration_queries": len(data.calibration),
        "calibration_digest": _digest(data.calibration),
        "parted": order.parted,
    }
    if outcome is not None and outcome.choice is not None:
        facts["reason"] = outcome.choice.reason
    return facts


def _digest(texts: Sequence[str]) -> str:
    return f"sha256:{hashlib.sha256(chr(10).join(texts).encode()).hexdigest()}"


def _write(model: onnx.ModelProto, folder: Path, recipe: Recipe, facts: dict[str, Any]) -> VariantEntry:
    import onnx

    from harness.saturation import certify

    path = folder / Variant.INT8.file_name
    if recipe.stored_apart:
        apart = path.with_name(f"{path.name}_data")
        apart.unlink(missing_ok=True)
        onnx.save(model, str(path), save_as_external_data=True, location=apart.name, size_threshold=_STORED_APART_BYTES)
        apart.chmod(path.stat().st_mode)  # onnx lets nobody else read it
    else:
        onnx.save(model, str(path))
    cpu = certify(model, folder).entry()
    return VariantEntry(recipe.serving, cpu, {"recipe": recipe.to_json(), **facts})
