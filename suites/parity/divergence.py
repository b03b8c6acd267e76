"""Where a variant leaves its reference: the first module of the PyTorch model whose output no ONNX tensor has.

Compares values, not names, so that it works on exports of any tool: every module's output is looked for among all
tensors of the graph, run without optimizations on one short query. Explains a difference and judges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper

from harness.artifact import Variant
from harness.candidate import Candidate
from harness.errors import one_line
from harness.reference import Reference
from harness.tagging import Batch, EncodedQuery, TaggedQuery, pad

from .comparison import LARGEST, compare_words, same_words
from .sessions import open_session, run

Values = NDArray[np.float32]

# Norm of the difference over the norm of the module's output.
TOLERANCES = {Variant.FP32: 1e-4, Variant.INT8: 0.25}
_LONGEST_QUERY = 24
_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
# What a module of these returns is what went in.
_IDENTITIES = (torch.nn.Dropout, torch.nn.Identity)


class LocalisationError(Exception):
    """It cannot be said where the models part; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleOutput:
    """What one call of a module of the reference returned; `kind` is its class.

    `without_bias` is what a linear layer computes before it adds its bias, which fused nodes add themselves.
    """

    name: str
    kind: str
    values: Values
    without_bias: Values | None = None

    @property
    def parent(self) -> str:
        """The module that it is a part of."""
        return self.name.rpartition(".")[0]

    @property
    def pattern(self) -> str:
        """Its name with every number left open, as the same module of another layer has it."""
        return re.sub(r"\d+", "*", self.name)

    @property
    def is_layer(self) -> bool:
        """Whether it is an element of a list of modules, as the layers of a transformer are."""
        return self.name.rpartition(".")[2].isdigit()


@dataclass(frozen=True, slots=True, eq=False)
class GraphTensor:
    """A tensor of the graph, the node that makes it, and whether a node of onnxruntime's own, a fused one, takes it."""

    name: str
    node: str
    operator: str
    is_fused: bool
    values: Values


@dataclass(frozen=True, slots=True)
class Match:
    """The tensor that comes nearest to a module's output; `None` where the graph has none of that size."""

    module: ModuleOutput
    tensor: GraphTensor | None
    error: float

    def agrees(self, tolerance: float) -> bool:
        """Whether the graph computes what the module does."""
        return self.tensor is not None and self.error <= tolerance

    def to_json(self) -> dict[str, Any]:
        """Write names and error; the values are left out."""
        found = self.tensor
        return {
            "module": self.module.name,
            "kind": self.module.kind,
            "error": self.error,
            "tensor": found.name if found else None,
            "node": found.node if found else None,
            "operator": found.operator if found else None,
        }


@dataclass(frozen=True, slots=True)
class Divergence:
    """Every module's match, in the order of execution, on one query."""

    query: str
    tolerance: float
    matches: tuple[Match, ...]

    @property
    def last_agreeing(self) -> Match | None:
        """The last module whose output the graph has, before the first that diverges."""
        first = self.first
        before = self.matches if first is None else self.matches[: self.matches.index(first)]
        return next((match for match in reversed(before) if match.agrees(self.tolerance)), None)

    @property
    def first(self) -> Match | None:
        """The first module whose output the graph should have and has not; `None` where nothing diverges.

        None counts where the logits, which come last, are equal: what is missing then was fused away.
        """
        if not self.matches or self.matches[-1].agrees(TOLERANCES[Variant.FP32]):
            return None
        agreeing = [index for index, match in enumerate(self.matches) if match.agrees(self.tolerance)]
        after = agreeing[-1] + 1 if agreeing else 0
        before = self.matches[:after]
        found = (match for match in before if not match.agrees(self.tolerance) and not self._is_hidden(match, before))
        return next(found, self.matches[after] if after < len(self.matches) else None)

    def _is_hidden(self, match: Match, before: Sequence[Match]) -> bool:
        """Whether a module that has no tensor, though a later one has, was fused with others.

        It was not if another layer shows the same module, or one of its kind is shown beside it (query and value, where
        it is the key). With neither shown it was, unless nothing can tell: it is the only one, and a later module agrees
        because its part in the sum is small.
        """
        module = match.module
        same = [other for other in before if other is not match and other.module.pattern == module.pattern]
        beside = [
            other
            for other in before
            if other is not match and (other.module.parent, other.module.kind) == (module.parent, module.kind)
        ]
        others = [*same, *beside]
        return bool(others) and not any(other.agrees(self.tolerance) for other in others)

    def to_json(self) -> dict[str, Any]:
        """Write where the models part, and the error of each layer and of the logits."""
        first, last = self.first, self.last_agreeing
        layers = [match for match in self.matches if match.module.is_layer] + list(self.matches[-1:])
        return {
            "query": self.query,
            "tolerance": self.tolerance,
            "first": first.to_json() if first else None,
            "last_agreeing": last.to_json() if last else None,
            "layers": [{"module": match.module.name, "error": match.error} for match in layers],
        }


def worst_short_query(
    reference: Reference, answers: Sequence[TaggedQuery], variant: Sequence[TaggedQuery]
) -> EncodedQuery:
    """Pick the query with the largest logit difference among those of at most 24 tokens, or the shortest of all.

    Raises:
        LocalisationError: no query has a word.
    """
    pairs = sorted(zip(answers, variant, strict=True), key=lambda pair: -_difference(*pair))
    shortest: EncodedQuery | None = None
    for left, _ in pairs:
        (query,) = reference.encode([left.text])
        if left.words and len(query.windows) == 1 and _length(query) <= _LONGEST_QUERY:
            return query
        if left.words and (shortest is None or _length(query) < _length(shortest)):
            shortest = query
    if shortest is None:
        message = "no query has a word to run the models on"
        raise LocalisationError(message)
    return shortest


def _difference(left: TaggedQuery, right: TaggedQuery) -> float:
    return compare_words([left], [right]).maximum if same_words(left, right) else LARGEST


def _length(query: EncodedQuery) -> int:
    return sum(len(window.input_ids) for window in query.windows)


def locate(reference: Reference, model: Candidate, query: EncodedQuery) -> Divergence:
    """Run both models on the first row of a query and match every module's output with the graph's tensors.

    Raises:
        LocalisationError: one of the models cannot be run with its intermediate values shown.
    """
    batch = pad(query.windows[:1], reference.pad_token_id)
    try:
        modules = module_outputs(reference, batch)
        tensors = graph_tensors(model.artifact.model_path(model.variant), batch)
    except Exception as err:  # torch, onnx and onnxruntime raise whatever they like
        message = f"the models cannot be run with their intermediate values shown: {one_line(err)}"
        raise LocalisationError(message) from err
    return Divergence(query.text, TOLERANCES[model.variant], tuple(matched(modules, tensors)))


def module_outputs(reference: Reference, batch: Batch) -> list[ModuleOutput]:
    """Run the reference and keep what every module returns, in the order in which they finish."""
    found: list[ModuleOutput] = []
    calls: dict[str, int] = {}

    def keep(name: str, module: torch.nn.Module, output: object) -> None:
        tensor = _first_tensor(output)
        if tensor is None or isinstance(module, _IDENTITIES):
            return
        calls[name] = calls.get(name, 0) + 1
        called = name if calls[name] == 1 else f"{name} (call {calls[name]})"  # layers that share their weights
        values = np.array(tensor.numpy(), np.float32)
        found.append(ModuleOutput(called, type(module).__name__, values, _without_bias(module, values)))

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: keep(name, module, output))
        for name, module in reference.model.named_modules()
        if name
    ]
    try:
        reference.logits(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _without_bias(module: torch.nn.Module, values: Values) -> Values | None:
    if not isinstance(module, torch.nn.Linear) or module.bias is None:
        return None
    return np.asarray(values - module.bias.detach().numpy(), np.float32)


def _first_tensor(output: object) -> torch.Tensor | None:
    """Take a module's result out of the tuple or mapping in which whole layers return it."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple):
        output = next((part for part in output if isinstance(part, torch.Tensor)), None)
    return output if isinstance(output, torch.Tensor) and output.is_floating_point() else None


def graph_tensors(path: Path, batch: Batch) -> list[GraphTensor]:
    """Run a graph without optimizations and keep every float tensor that depends on its input, in its order."""
    model = onnx.load(str(path))
    makers = {name: node for node in _nodes_after_input(model.graph) for name in node.output if name}
    fused = {name for node in model.graph.node if node.domain not in _STANDARD_DOMAINS for name in node.input}
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in makers if name not in outputs)
    session = open_session(model.SerializeToString(), onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    answers = zip(makers.items(), run(session, batch, list(makers)), strict=True)
    return [
        GraphTensor(name, node.name, node.op_type, name in fused, values.astype(np.float32))
        for (name, node), values in answers
        if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.floating)
    ]


def _nodes_after_input(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Leave out what is computed of weights alone: dequantized tables are large, and no module's output."""
    weights = {tensor.name for tensor in graph.initializer}
    moving = {entry.name for entry in graph.input} - weights
    for node in graph.node:
        # a node with a graph inside may read the outer graph's tensors without naming them as its input
        if moving & set(node.input) or any(attribute.HasField("g") for attribute in node.attribute):
            moving.update(node.output)
            yield node


def matched(modules: Sequence[ModuleOutput], tensors: Sequence[GraphTensor]) -> Iterator[Match]:
    """Find for each module the tensor of the same size that is nearest, the earliest where several are.

    A module that returns zeros has no scale to measure by and is left out.
    """
    by_size: dict[int, _SameSize] = {}
    for size in {module.values.size for module in modules}:
        if same := [tensor for tensor in tensors if tensor.values.size == size]:
            by_size[size] = _SameSize(same, np.stack([tensor.values.ravel() for tensor in same]))
    for module in modules:
        group = by_size.get(module.values.size)
        if group is None:
            yield Match(module, None, LARGEST)
        elif np.any(module.values):
            yield group.nearest(module)


@dataclass(frozen=True, slots=True, eq=False)
class _SameSize:
    """Tensors of one size, and their values: float32, (tensors, size)."""

    tensors: Sequence[GraphTensor]
    values: Values

    def nearest(self, module: ModuleOutput) -> Match:
        errors = self._errors(module.values)
        if module.without_bias is not None and np.any(module.without_bias):
            fused = [tensor.is_fused for tensor in self.tensors]
            errors = np.where(fused, np.minimum(errors, self._errors(module.without_bias)), errors)
        index = int(errors.argmin())
        return Match(module, self.tensors[index], float(errors[index]))

    def _errors(self, values: Values) -> NDArray[np.float64]:
        flat = values.ravel()
        with np.errstate(invalid="ignore", over="ignore"):
            errors = np.linalg.norm(self.values - flat, axis=1).astype(np.float64) / float(np.linalg.norm(flat))
        return np.asarray(np.nan_to_num(errors, nan=LARGEST, posinf=LARGEST))
