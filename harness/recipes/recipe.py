"""A recipe: every choice that turns an FP32 export into its INT8 variant, as plain data.

The same recipe on the same export and the same calibration queries makes the same file. Builds nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from harness.errors import UsageError, one_line
from harness.instruction_sets import WeightRange
from harness.serving import OptimizationLevel, ServingSettings


class Form(Enum):
    """How a quantized product is written in the graph."""

    OPERATORS = "operators"  # QuantizeLinear, MatMulIntegerToFloat, QAttention: static scales
    QDQ = "qdq"  # QuantizeLinear and DequantizeLinear around float operators: static scales, fused when it is loaded
    DYNAMIC = "dynamic"  # scales from each batch: answers depend on batch mates
    BLOCKS = "blocks"  # weights only, in blocks of 4 or 8 bits


class Fusion(Enum):
    """What is made one operator, by the names of onnxruntime's transformers optimizer where it does it."""

    ATTENTION = "attention"
    GELU = "gelu"
    LAYER_NORM = "layer_norm"
    SKIP_LAYER_NORM = "skip_layer_norm"
    BIAS_SKIP_LAYER_NORM = "bias_skip_layer_norm"
    EMBED_LAYER_NORM = "embed_layer_norm"
    BIAS_GELU = "bias_gelu"
    FAST_GELU = "fast_gelu"  # Gelu by its tanh approximation: another function, by up to 5e-4


class Calibration(Enum):
    """How the range of an activation is chosen from what was seen of it."""

    MIN_MAX = "min-max"
    PERCENTILE = "percentile"  # 99.99 % of the values
    ENTROPY = "entropy"  # the least Kullback-Leibler divergence (Migacz, GTC 2017)
    ERROR = "error"  # the least squared error of rounding and clipping


class Embeddings(Enum):
    """How the tables of embeddings are stored."""

    FLOAT = "float"
    TENSOR = "tensor"  # 8 bits, one scale
    COLUMNS = "columns"  # 8 bits, a scale per channel


PLAIN_FUSIONS = (Fusion.ATTENTION, Fusion.GELU, Fusion.LAYER_NORM)
# Measured on a MiniLM-L6 NER model with weight scales per channel, mean logit difference by migration:
# none .037, 0.5 .041, 0.65 .022, 0.75 .019, 0.85 .018, 1.0 .022 (SmoothQuant, arXiv:2211.10438, equation 4).
MIGRATION = 0.8


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every choice.

    Attributes:
        name: under which people speak of it.
        form: how products are written.
        fusions: what is fused first.
        activations: `QUInt8` or `QInt8`.
        weights: `QInt8` or `QUInt8` (1.4 times slower).
        per_channel: a weight scale for each output channel; else one for the matrix.
        weight_range: what keeps the sums of products in range.
        calibration: how the ranges of activations are chosen.
        compensated: weights that are rounded later make up for the errors of those before (`harness.recipes.compensation`).
        migration: how much of the activations' outliers moves into the weights; 0 for none.
        row_sites: products whose activations are scaled row by row, so by the token itself and nothing else.
        float_sites: products that are left in FP32.
        embeddings: how tables of embeddings are stored.
        folded_positions: the position rows are cut from one table that holds the first token type; the input
            token_type_ids goes.
        optimized: the graph was optimized by a session of onnxruntime before it was stored.
        bits: of the weights, for `Form.BLOCKS`, as are the following.
        block_size: input channels that share a scale.
        embedding_bits: of tables.
        embedding_block: columns of a table that share a scale.
        eight_bit_sites: products and tables that are stored in 8 bits all the same.
    """

    name: str
    form: Form
    fusions: tuple[Fusion, ...] = ()
    activations: str = "QUInt8"
    weights: str = "QInt8"
    per_channel: bool = True
    weight_range: WeightRange = WeightRange.PAIRS
    calibration: Calibration = Calibration.MIN_MAX
    compensated: bool = False
    migration: float = 0.0
    row_sites: tuple[str, ...] = ()
    float_sites: tuple[str, ...] = ()
    embeddings: Embeddings = Embeddings.COLUMNS
    folded_positions: bool = False
    optimized: bool = False
    bits: int = 8
    block_size: int = 0
    embedding_bits: int = 8
    embedding_block: int = 0
    eight_bit_sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if not 0 <= self.migration <= 1:
            message = f"migration must be between 0 and 1, not {self.migration}"
            raise ValueError(message)
        if self.activations not in _TYPES or self.weights not in _TYPES:
            message = (
                f"activations and weights must be {' or '.join(_TYPES)}, not {self.activations} and {self.weights}"
            )
            raise ValueError(message)
        if twice := set(self.row_sites) & set(self.float_sites):
            message = f"{min(twice)} cannot be scaled row by row and left in FP32"
            raise ValueError(message)
        blocks = (self.block_size, self.embedding_block)
        if any((self.form is Form.BLOCKS) != (size > 0) or size < 0 for size in blocks):
            message = (
                f"blocks of {self.block_size} and {self.embedding_block} do not go with the form {self.form.value}"
            )
            raise ValueError(message)
        if not {self.bits, self.embedding_bits} <= {4, 8}:
            message = f"blocks have 4 or 8 bits, not {self.bits} and {self.embedding_bits}"
            raise ValueError(message)
        self._refuse_what_would_be_passed_over()

    def _refuse_what_would_be_passed_over(self) -> None:
        for name, (forms, default) in _FORMS_WITH.items():
            if self.form not in forms and getattr(self, name) != default:
                message = f"{name} does not go with the form {self.form.value}, which would pass over it"
                raise ValueError(message)

    @property
    def is_one_function(self) -> bool:
        """Whether a query's answer depends on that query alone, whatever stands in the batch with it."""
        return self.form is not Form.DYNAMIC

    @property
    def serving(self) -> ServingSettings:
        """What the variant is opened with.

        Graphs that are final are taken as they are: onnxruntime would put back SkipLayerNormalization, which takes
        longer than the two operators it replaces (20 µs against 5 for 10 tokens of 384 channels).
        """
        if self.form is Form.OPERATORS or self.optimized:
            return ServingSettings(graph_optimization_level=OptimizationLevel.NONE)
        return ServingSettings()

    @property
    def stored_apart(self) -> bool:
        """Whether the weights lie in a file of their own, which onnxruntime maps into memory instead of reading it.

        Measured on a MiniLM-L6 NER model: .82 of the time from process start to the first answer, .84 of the peak memory.
        Only a final graph gains by it: where a session rewrites the graph, it copies the weights.
        """
        return self.form is Form.OPERATORS

    def to_json(self) -> dict[str, Any]:
        """Write it for a manifest; `Recipe.from_json(recipe.to_json(), …) == recipe`."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, entry: object, where: str) -> Recipe:
        """Read what `to_json` writes.

        Raises:
            UsageError: it is no recipe that this harness knows.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(entry, dict) or set(entry) - known or not {"name", "form"} <= set(entry):
            message = f"{where} is no recipe that this harness knows. Update the harness, or name another recipe."
            raise UsageError(message)
        try:
            values = {name: _typed(name, value) for name, value in entry.items()}
            return cls(**values)
        except (TypeError, ValueError) as err:
            message = f"{where} is no recipe that this harness knows: {one_line(err)}. Update the harness, or name another recipe."
            raise UsageError(message) from err

    def digest(self) -> str:
        """Name the recipe by its choices; its name is none of them."""
        content = json.dumps({**self.to_json(), "name": ""}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def called(self, name: str) -> Recipe:
        """Give the same recipe another name."""
        return replace(self, name=name)


_TYPES = ("QUInt8", "QInt8")
# Choices that only some forms can carry out, and what the others leave them at.
_FORMS_WITH: Mapping[str, tuple[frozenset[Form], object]] = {
    "row_sites": (frozenset({Form.OPERATORS}), ()),
    "calibration": (frozenset({Form.OPERATORS}), Calibration.MIN_MAX),
    "compensated": (frozenset({Form.OPERATORS, Form.BLOCKS}), False),
    "migration": (frozenset({Form.OPERATORS, Form.QDQ}), 0.0),
    "optimized": (frozenset({Form.DYNAMIC}), False),
    "eight_bit_sites": (frozenset({Form.BLOCKS}), ()),
}
_ENUMS: Mapping[str, type[Enum]] = {
    "form": Form,
    "weight_range": WeightRange,
    "calibration": Calibration,
    "embeddings": Embeddings,
}
_TEXTS = frozenset({"name", "activations", "weights"})
_FLAGS = frozenset({"per_channel", "compensated", "folded_positions", "optimized"})
_SITES = frozenset({"row_sites", "float_sites", "eight_bit_sites"})


def _plain(value: object) -> Any:
    if isinstance(value, Enum):
        return value.value
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _typed(name: str, value: Any) -> Any:
    """Turn a value of a document into a field's; anything of another type is refused."""
    if name in _ENUMS:
        return _ENUMS[name](value)
    if name == "fusions":
        return tuple(Fusion(entry) for entry in _listed(name, value))
    if name in _SITES:
        return tuple(_text(name, entry) for entry in _listed(name, value))
    kind = str if name in _TEXTS else bool if name in _FLAGS else float if name == "migration" else int
    if not isinstance(value, kind | int if kind is float else kind) or (kind is not bool and isinstance(value, bool)):
        message = f"{name} is {value!r}, not {kind.__name__}"
        raise ValueError(message)
    return kind(value)


def _listed(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        message = f"{name} is {value!r}, not a list"
        raise ValueError(message)  # noqa: TRY004  # what is wrong with a document, not with a call
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        message = f"{name} has {value!r}, which is no name"
        raise ValueError(message)  # noqa: TRY004  # what is wrong with a document, not with a call
    return value


QDQ = Recipe("qdq", Form.QDQ, weight_range=WeightRange.FULL, migration=MIGRATION, embeddings=Embeddings.TENSOR)
STATIC = Recipe("static", Form.OPERATORS, fusions=PLAIN_FUSIONS, folded_positions=True, compensated=True)
SMOOTHED = replace(STATIC, name="smoothed", migration=MIGRATION)
FAST = replace(SMOOTHED, name="fast", fusions=(*PLAIN_FUSIONS, Fusion.FAST_GELU))
# what optimum makes by default: AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
USUAL = Recipe("usual", Form.DYNAMIC, weight_range=WeightRange.FULL, per_channel=False, embeddings=Embeddings.TENSOR)
FUSED_DYNAMIC = replace(USUAL, name="fused-dynamic", fusions=PLAIN_FUSIONS, optimized=True)
# Blocks of 64 and less are exact whatever stands in the batch; longer ones move logits by rounding.
BLOCKS_8 = Recipe("blocks-8", Form.BLOCKS, PLAIN_FUSIONS, compensated=True, bits=8, block_size=64, embedding_block=128)
NAMED = {recipe.name: recipe for recipe in (QDQ, STATIC, SMOOTHED, FAST, USUAL, FUSED_DYNAMIC, BLOCKS_8)}


def recipe_named(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in NAMED:
        message = f"there is no recipe {name!r}. Known: {', '.join(NAMED)}, and auto, which searches for one."
        raise UsageError(message)
    return NAMED[name]
