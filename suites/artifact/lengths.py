"""Compare how long a row the export says it reads with the reference and with the graphs themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx

from harness.artifact import Artifact
from harness.encoding import maximum_tokens
from harness.reference import Reference

from .model_file import counted_tables

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def length_differences(candidate: Artifact, reference: Reference, graphs: Sequence[onnx.ModelProto]) -> list[str]:
    """List what the configuration says otherwise than the reference, or beyond what the graphs hold."""
    problems = []
    found, expected = (
        maximum_tokens(candidate.config, candidate.tokenizer_config),
        reference.checkpoint.maximum_tokens,
    )
    if found != expected:
        problems.append(
            f"a row has at most {found} tokens by config.json and tokenizer_config.json, the reference's {expected}"
        )
    padding = candidate.config.get("pad_token_id") or 0  # what a candidate pads with
    if padding != reference.pad_token_id:
        problems.append(
            f"config.json pad_token_id is {padding}, the reference's tokenizer pads with {reference.pad_token_id}"
        )
    return problems + _beyond_the_graphs(candidate, reference.model, graphs)


def _beyond_the_graphs(candidate: Artifact, model: Any, graphs: Sequence[onnx.ModelProto]) -> list[str]:
    """Hold the configured positions against the position table, where the reference has one row a position."""
    config: PretrainedConfig = model.config
    positions = getattr(config, "max_position_embeddings", None)
    tables = [getattr(module, "num_embeddings", None) for module in model.modules()]
    claimed = candidate.config.get("max_position_embeddings")
    if claimed is None or positions is None or positions not in tables:
        return []
    problems = []
    for graph in graphs:
        rows = counted_tables(graph) - {getattr(config, "type_vocab_size", None)}
        if rows and max(rows) < claimed:
            problems.append(
                f"config.json max_position_embeddings is {claimed}, the graph's longest table has {max(rows)} rows"
            )
    return problems
