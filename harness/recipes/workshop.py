"""Build a recipe's graph from one export; what several recipes need is made once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from harness.artifact import Variant, open_artifact
from harness.candidate import Candidate
from harness.errors import ArtifactError, HarnessError, UsageError, one_line
from harness.onnx_run import Feed
from harness.quiet import quiet_libraries
from harness.recipes.blocks import SIZE_SHARE, Blocks, quantize_blocks, size_blocks
from harness.recipes.dynamic import quantize_dynamically
from harness.recipes.fusion import computes_the_same, fused
from harness.recipes.observation import Observation, observe
from harness.recipes.operators import quantize_operators
from harness.recipes.positions import allows_folding, fold_positions
from harness.recipes.qdq import quantize_qdq
from harness.recipes.recipe import BLOCKS_8, Form, Fusion, Recipe
from harness.recipes.rounding import Rounder
from harness.recipes.sites import Operator, find_sites, name_nodes, stored
from harness.tagging import pad

# A product with so many times fewer outputs than inputs, such as the head of a classifier, costs next to nothing in FP32.
_SMALL = 8


@dataclass(frozen=True, slots=True)
class Products:
    """The products of a fused graph that recipes decide about, in order.

    Attributes:
        all: their names.
        by_row: those that can be scaled row by row.
        small: those with so few outputs that FP32 costs nothing, such as the head.
    """

    all: tuple[str, ...]
    by_row: frozenset[str]
    small: tuple[str, ...]


class Workshop:
    """An FP32 export with queries to calibrate on."""

    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        """Open the export.

        Args:
            folder: with `model.onnx`.
            texts: real queries; the ranges of activations are taken from what the model does with them.

        Raises:
            ArtifactError: the export cannot be opened.
            UsageError: there are no queries.
        """
        if not texts:
            message = f"there is no query to set INT8 ranges for {folder} with. Name some (--calibration FILE)."
            raise UsageError(message)
        self.folder = folder
        self.candidate = Candidate(open_artifact(folder), Variant.FP32)
        self.feeds = feeds_of(self.candidate, texts)
        self._path = folder / Variant.FP32.file_name
        self._rounder = Rounder()
        self._plain: onnx.ModelProto | None = None
        self._prepared: dict[tuple[frozenset[Fusion], bool], onnx.ModelProto] = {}
        self._observed: dict[tuple[frozenset[Fusion], bool], dict[str, Observation]] = {}

    @property
    def plain(self) -> onnx.ModelProto:
        """The FP32 graph as it was exported."""
        if self._plain is None:
            self._plain = onnx.load(str(self._path))
            name_nodes(self._plain)
        return self._plain

    def build(self, recipe: Recipe) -> onnx.ModelProto:
        """Make the recipe's graph.

        Raises:
            ArtifactError: it cannot be made of this model.
        """
        with self._explained(recipe):
            return self._built(recipe)

    @contextmanager
    def _explained(self, recipe: Recipe) -> Iterator[None]:
        """Turn whatever goes wrong into one error that names the recipe."""
        try:
            with quiet_libraries():
                yield
        except HarnessError:
            raise
        except Exception as err:  # onnxruntime's tools raise whatever they like
            message = (
                f"{self._path} cannot be quantized by the recipe {recipe.name}: {one_line(err)}. Name another recipe."
            )
            raise ArtifactError(message) from err

    def _built(self, recipe: Recipe) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.prepared(recipe))
        if recipe.form is not Form.BLOCKS:
            self._refuse_unknown_sites(model, recipe)
        match recipe.form:
            case Form.OPERATORS:
                return quantize_operators(model, recipe, self.observed(recipe), self._rounder)
            case Form.QDQ:
                return quantize_qdq(model, recipe, self.observed(recipe), self.feeds, self.folder)
            case Form.DYNAMIC:
                return quantize_dynamically(model, recipe)
            case Form.BLOCKS:
                moments = {name: seen.moments for name, seen in self.observed(recipe).items()}
                return quantize_blocks(model, _blocks(recipe), moments)

    def _refuse_unknown_sites(self, model: onnx.ModelProto, recipe: Recipe) -> None:
        """Refuse to pass over what a recipe says about products: it would be another recipe."""
        sites = {site.name: site.operator for site in find_sites(model)}
        by_row = {name for name, operator in sites.items() if operator is Operator.MATMUL}
        if unknown := sorted({*recipe.float_sites} - set(sites) | {*recipe.row_sites} - by_row):
            message = (
                f"{self._path} has no product {unknown[0]} that the recipe {recipe.name} could treat as it says. Was the recipe "
                "made for another model? Name another one, or auto."
            )
            raise ArtifactError(message)

    def prepared(self, recipe: Recipe) -> onnx.ModelProto:
        """Fuse and fold as the recipe says, as far as the result still computes the same."""
        key = _preparation(recipe)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(recipe)
        return self._prepared[key]

    def _prepare(self, recipe: Recipe) -> onnx.ModelProto:
        model = self.plain
        exact = [fusion for fusion in recipe.fusions if fusion is not Fusion.FAST_GELU]
        for fusions in (exact, [fusion for fusion in exact if fusion is not Fusion.ATTENTION], []):
            if not fusions:
                break
            made = fused(self._path, self.candidate.artifact.config, fusions)
            if computes_the_same(self.plain, made, self.feeds):
                kept = [*fusions, *(fusion for fusion in recipe.fusions if fusion is Fusion.FAST_GELU)]
                model = fused(self._path, self.candidate.artifact.config, kept) if len(kept) > len(fusions) else made
                break
        if recipe.folded_positions and allows_folding(self.feeds):
            folded = fold_positions(model)
            if computes_the_same(model, folded, self.feeds):
                return folded
        return model

    def observed(self, recipe: Recipe) -> dict[str, Observation]:
        """Look at what the calibration queries do with the inputs of the products."""
        key = _preparation(recipe)
        if key not in self._observed:
            model = self.prepared(recipe)
            names = list(dict.fromkeys(site.activation for site in find_sites(model)))
            self._observed[key] = observe(model, names, self.feeds)
        return self._observed[key]

    def small_recipe(self) -> Recipe:
        """Find the recipe of a small file: 4 bits, and 8 where they help the answers most, within `SIZE_SHARE` of FP32's size.

        Raises:
            ArtifactError: the model cannot be made as small.
        """
        base = replace(BLOCKS_8, name="size", bits=4, embedding_bits=4)
        moments = {name: seen.moments for name, seen in self.observed(base).items()}
        try:
            blocks = size_blocks(self.prepared(base), self.feeds[::4], moments, SIZE_SHARE)
        except ValueError as err:
            message = f"{self._path} cannot be made that small: {err}. Name a recipe instead of the target size."
            raise ArtifactError(message) from err
        return replace(
            base,
            bits=blocks.bits,
            block_size=blocks.block_size,
            embedding_bits=blocks.embedding_bits,
            embedding_block=blocks.embedding_block,
            eight_bit_sites=blocks.eight_bit_nodes,
            float_sites=blocks.float_nodes,
        )

    def products(self, recipe: Recipe) -> Products:
        """Name the products that the recipe decides about.

        Raises:
            ArtifactError: the recipe's fusions cannot be tried on this model.
        """
        with self._explained(recipe):
            model = self.prepared(recipe)
        sites, tensors = find_sites(model), stored(model)
        outputs = {site.name: int(tensors[site.weight].dims[1]) for site in sites}
        channels = {site.name: int(tensors[site.weight].dims[0]) for site in sites}
        return Products(
            tuple(site.name for site in sites),
            frozenset(site.name for site in sites if site.operator is Operator.MATMUL),
            tuple(site.name for site in sites if outputs[site.name] * _SMALL <= channels[site.name]),
        )


def _blocks(recipe: Recipe) -> Blocks:
    return Blocks(
        recipe.bits,
        recipe.block_size,
        recipe.embedding_bits,
        recipe.embedding_block,
        recipe.eight_bit_sites,
        recipe.float_sites,
    )


def _preparation(recipe: Recipe) -> tuple[frozenset[Fusion], bool]:
    return frozenset(recipe.fusions), recipe.folded_positions


def feeds_of(candidate: Candidate, texts: Sequence[str]) -> list[Feed]:
    """Encode queries, one a row: rows of one length would need padding, which would count as real."""
    windows = [window for query in candidate.encode(list(texts)) for window in query.windows]
    batches = (pad([window], candidate.pad_token_id) for window in windows)
    return [{name: value for name, value in batch._asdict().items() if name in candidate.inputs} for batch in batches]
