"""A recipe as data: what is written is what is read, and nothing that the harness does not know is passed over."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.instruction_sets import WeightRange
from harness.recipes.recipe import (
    BLOCKS_8,
    FAST,
    FUSED_DYNAMIC,
    NAMED,
    QDQ,
    SMOOTHED,
    STATIC,
    USUAL,
    Calibration,
    Embeddings,
    Form,
    Fusion,
    Recipe,
    recipe_named,
)
from harness.serving import OptimizationLevel

SITES = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=3).map(tuple)


@st.composite
def recipes(draw) -> Recipe:
    """Every recipe that does not contradict itself."""
    form = draw(st.sampled_from(Form))
    by_row = draw(SITES) if form is Form.OPERATORS else ()
    return Recipe(
        draw(st.text(min_size=1, max_size=12)),
        form,
        fusions=tuple(draw(st.lists(st.sampled_from(Fusion), unique=True))),
        activations=draw(st.sampled_from(["QUInt8", "QInt8"])),
        weights=draw(st.sampled_from(["QUInt8", "QInt8"])),
        per_channel=draw(st.booleans()),
        weight_range=draw(st.sampled_from(WeightRange)),
        calibration=draw(st.sampled_from(Calibration)) if form is Form.OPERATORS else Calibration.MIN_MAX,
        compensated=draw(st.booleans()) and form in {Form.OPERATORS, Form.BLOCKS},
        migration=draw(st.floats(0, 1)) if form in {Form.OPERATORS, Form.QDQ} else 0.0,
        row_sites=by_row,
        float_sites=tuple(name for name in draw(SITES) if name not in by_row),
        embeddings=draw(st.sampled_from(Embeddings)),
        folded_positions=draw(st.booleans()),
        optimized=draw(st.booleans()) and form is Form.DYNAMIC,
        bits=draw(st.sampled_from([4, 8])),
        block_size=draw(st.integers(1, 256)) if form is Form.BLOCKS else 0,
        embedding_bits=draw(st.sampled_from([4, 8])),
        embedding_block=draw(st.integers(1, 256)) if form is Form.BLOCKS else 0,
        eight_bit_sites=draw(SITES) if form is Form.BLOCKS else (),
    )


@given(recipes())
def test_what_is_written_is_read(recipe):
    """`Recipe.from_json(recipe.to_json(), …) == recipe`, also through a file."""
    assert Recipe.from_json(recipe.to_json(), "here") == recipe
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), "here") == recipe
    assert set(recipe.to_json()) == {field.name for field in fields(Recipe)}


def refused(entry) -> str:
    with pytest.raises(UsageError) as caught:
        Recipe.from_json(entry, "manifest.json")
    message = str(caught.value)
    assert "manifest.json" in message
    assert "Update the harness" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "entry", [None, [], "static", 8, {}, {"name": "static"}, {"form": "qdq"}, {**QDQ.to_json(), "blocks": 3}]
)
def test_what_is_no_recipe(entry):
    """A recipe has a name and a form, and no choice that this harness does not know."""
    refused(entry)


WRONG = [
    ("name", 3),
    ("form", "qoperator"),
    ("form", ["qdq"]),
    ("form", None),
    ("fusions", "attention"),
    ("fusions", ["attention", "everything"]),
    ("activations", "QInt4"),
    ("weights", 8),
    ("per_channel", 1),
    ("per_channel", "yes"),
    ("weight_range", "half"),
    ("calibration", "guess"),
    ("compensated", None),
    ("migration", "0.8"),
    ("migration", True),
    ("migration", 1.5),
    ("migration", float("nan")),
    ("row_sites", "Attention_0"),
    ("row_sites", [7]),
    ("float_sites", [None]),
    ("float_sites", {"a": 1}),
    ("embeddings", "rows"),
    ("folded_positions", 0),
    ("optimized", "no"),
    ("bits", 8.0),
    ("bits", True),
    ("bits", 2),
    ("block_size", "0"),
    ("block_size", -1),
    ("embedding_bits", 16),
    ("embedding_block", 2.0),
    ("eight_bit_sites", "all"),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda part: repr(part)[:30])
def test_values_that_a_choice_cannot_have(field, value):
    """Every field refuses another type, an unknown name and a number out of range; none is turned into a near one."""
    refused({**STATIC.to_json(), field: value})


def test_every_field_is_refused_something():
    """The list above forgets no field."""
    assert {field for field, _ in WRONG} == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(
    ("recipe", "changes", "named"),
    [
        (STATIC, {"row_sites": ("a", "b"), "float_sites": ("b",)}, "b"),
        (STATIC, {"block_size": 32}, "blocks of 32"),
        (STATIC, {"form": Form.BLOCKS}, "blocks of 0"),
        (STATIC, {"embedding_block": 32}, "blocks of 0 and 32"),
        (STATIC, {"eight_bit_sites": ("a",)}, "eight_bit_sites"),
        (BLOCKS_8, {"embedding_block": 0}, "blocks of 64 and 0"),
        (STATIC, {"optimized": True}, "optimized"),
        (QDQ, {"optimized": True}, "optimized"),
        (QDQ, {"row_sites": ("a",)}, "row_sites"),
        (QDQ, {"calibration": Calibration.ERROR}, "calibration"),
        (QDQ, {"compensated": True}, "compensated"),
        (USUAL, {"migration": 0.5}, "migration"),
        (USUAL, {"compensated": True}, "compensated"),
        (BLOCKS_8, {"bits": 3}, "not 3 and 8"),
    ],
)
def test_contradictions(recipe, changes, named):
    """A recipe says nothing that its form would pass over, so what a manifest says is what was done."""
    with pytest.raises(ValueError, match=named):
        replace(recipe, **changes)
    content = replace(recipe, name="fine").to_json()
    with_changes = {**content, **{key: getattr(value, "value", value) for key, value in changes.items()}}
    assert named in refused(json.loads(json.dumps(with_changes)))


OTHER = {
    "form": Form.QDQ,
    "fusions": (Fusion.GELU,),
    "activations": "QInt8",
    "weights": "QUInt8",
    "per_channel": False,
    "weight_range": WeightRange.FULL,
    "calibration": Calibration.ENTROPY,
    "compensated": True,
    "migration": 0.5,
    "row_sites": ("a",),
    "float_sites": ("a",),
    "embeddings": Embeddings.FLOAT,
    "folded_positions": True,
    "bits": 4,
}


def test_a_digest_ignores_the_name_and_nothing_else():
    """Two recipes have one digest exactly if they make the same file; measurements are kept under it."""
    plain = Recipe("plain", Form.OPERATORS)
    assert plain.called("other").digest() == plain.digest()
    assert plain.called("other").name == "other"
    blocks, dynamic = Recipe("b", Form.BLOCKS, block_size=32, embedding_block=32), Recipe("d", Form.DYNAMIC)
    pairs = [(plain, {name: value}) for name, value in OTHER.items()]
    pairs += [(blocks, {name: 64}) for name in ("block_size", "embedding_block")]
    pairs += [(blocks, {"eight_bit_sites": ("a",)}), (blocks, {"embedding_bits": 4}), (dynamic, {"optimized": True})]
    assert {name for _, change in pairs for name in change} == {field.name for field in fields(Recipe)} - {"name"}
    for recipe, change in pairs:
        assert replace(recipe, **change).digest() != recipe.digest(), change


@given(recipes(), recipes())
def test_recipes_of_one_digest_are_equal_but_for_the_name(one, other):
    """A digest stands for the choices."""
    assert (one.digest() == other.digest()) == (one.called("") == other.called(""))


def test_named_recipes():
    """Each name stands for one recipe, and an unknown name is refused with those that there are."""
    assert all(recipe_named(name) is recipe and recipe.name == name for name, recipe in NAMED.items())
    assert len({recipe.digest() for recipe in NAMED.values()}) == len(NAMED)
    with pytest.raises(UsageError) as caught:
        recipe_named("statik")
    assert "'statik'" in str(caught.value)
    assert all(name in str(caught.value) for name in (*NAMED, "auto"))


def test_what_is_one_function():
    """Only dynamic scales make a query's answer depend on what is asked with it."""
    assert [name for name, recipe in NAMED.items() if not recipe.is_one_function] == ["usual", "fused-dynamic"]


def test_how_recipes_are_served():
    """A final graph is taken as it is; QuantizeLinear around float operators is fused when it is loaded, or crawls."""
    for recipe in (STATIC, SMOOTHED, FAST, FUSED_DYNAMIC):
        assert recipe.serving.graph_optimization_level is OptimizationLevel.NONE
    for recipe in (QDQ, USUAL):
        assert recipe.serving.graph_optimization_level is OptimizationLevel.ALL
    assert all(recipe.serving.threads == 1 for recipe in NAMED.values())
