"""Fuse what a transformer's export spells out, and check that the fused graph still computes the same.

onnxruntime's transformers optimizer rewrites; two of its fusions are not what they seem. Attention with a mask of one
number per row is wrong where padding stands in front (logits off by 9), so the mask stays whole. SkipLayerNormalization
is slower on CPUs than the two operators it replaces, so recipes leave it out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from harness.onnx_run import Feed, answers
from harness.quiet import quiet_libraries
from harness.recipes.recipe import Fusion
from harness.recipes.sites import name_nodes

CONTRIBUTED = "com.microsoft"
# Fused operators add in another order; good ones differ by some 1e-6 logits.
_SAME = 1e-3
_CHECKED_ROWS = 8
_MASK = "attention_mask"
# Architectures that the optimizer's BERT fusions are made for.
_LIKE_BERT = "bert"
_OPTIONS = {
    Fusion.ATTENTION: "enable_attention",
    Fusion.GELU: "enable_gelu",
    Fusion.LAYER_NORM: "enable_layer_norm",
    Fusion.SKIP_LAYER_NORM: "enable_skip_layer_norm",
    Fusion.BIAS_SKIP_LAYER_NORM: "enable_bias_skip_layer_norm",
    Fusion.EMBED_LAYER_NORM: "enable_embed_layer_norm",
    Fusion.BIAS_GELU: "enable_bias_gelu",
}


def fused(path: Path, config: Mapping[str, Any], fusions: Collection[Fusion]) -> onnx.ModelProto:
    """Fuse a model file.

    Args:
        path: an FP32 model.
        config: the model's `config.json`.
        fusions: what to fuse; what the graph has no place for is left as it is.
    """
    with quiet_libraries():
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        options = FusionOptions(_LIKE_BERT)
        for fusion, name in _OPTIONS.items():
            setattr(options, name, fusion in fusions)
        options.use_raw_attention_mask(use_raw_mask=True)
        optimized = optimize_model(
            str(path),
            model_type=_LIKE_BERT,
            num_heads=int(config.get("num_attention_heads") or config.get("n_heads") or 0),
            hidden_size=int(config.get("hidden_size") or config.get("dim") or 0),
            optimization_options=options,
            opt_level=0,
            use_gpu=False,
        )
    model: onnx.ModelProto = optimized.model
    if Fusion.FAST_GELU in fusions:
        for node in model.graph.node:
            if node.op_type == "Gelu":
                node.op_type, node.domain = "FastGelu", CONTRIBUTED
                del node.attribute[:]
    if all(entry.domain != CONTRIBUTED for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
    name_nodes(model)
    return model


def computes_the_same(model: onnx.ModelProto, other: onnx.ModelProto, feeds: Sequence[Feed]) -> bool:
    """Compare an FP32 graph with another on real queries: alone, padded behind and in front, together, fully masked.

    Padding is made of a row's own tokens, so that no row becomes longer than the model can read.

    Args:
        model: the graph as it was.
        other: the graph that is to take its place; one that does not even run does not compute the same.
        feeds: real queries, one a row.
    """
    rows = list(feeds[:_CHECKED_ROWS])
    rows += [masked(feed, before, after) for feed in feeds[:2] for before, after in ((0, 2), (2, 0), (1, 1))]
    rows += [_together(masked(feed, 0, 2), masked(feed, 2, 0)) for feed in feeds[:1]]
    rows += [masked(feed, feed[_MASK].shape[1], 0) for feed in feeds[:1] if _MASK in feed]
    expected = answers(model, rows)
    try:
        found = answers(other, rows)
    except Exception:  # onnxruntime raises whatever it likes
        return False
    pairs = zip(expected, found, strict=True)
    return all(one.shape == two.shape and float(np.abs(one - two).max()) < _SAME for one, two in pairs)


def masked(feed: Feed, before: int, after: int) -> Feed:
    """Mask the first and the last tokens of a row; a model that takes no mask gets the row as it is."""
    if _MASK not in feed:
        return feed
    mask = feed[_MASK].copy()
    mask[:, :before] = 0
    mask[:, mask.shape[1] - after :] = 0
    return {**feed, _MASK: mask}


def _together(one: Feed, other: Feed) -> Feed:
    return {name: np.concatenate([value, other[name]]) for name, value in one.items()}
