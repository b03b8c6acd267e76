"""Changes to an export that harm nothing, so that a gate must not mind them: a gate that refuses everything catches every defect."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import helper, version_converter

from harness.artifact import MANIFEST, Variant
from harness.candidate import session_options
from harness.checkpoint import open_checkpoint
from harness.documents import Json, write_text
from harness.errors import one_line
from harness.export_onnx import write_export
from harness.progress import Silence

from .defect import BOTH, FP32, WHOLE, Defect, Kind
from .graph import Graph, on_graph
from .workpiece import DefectNotApplicableError, Workpiece

_SUITES = ("artifact", "parity", "quality")
_LEAST_EXTERNAL_BYTES = 1024


def _renamed(graph: Graph, _work: Workpiece, _strength: float) -> None:
    kept = {value.name for value in [*graph.graph.input, *graph.graph.output]} | {""}
    names: dict[str, str] = {}
    for number, node in enumerate(graph.graph.node):
        node.name = f"node{number}"
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            message = "the graph has graphs inside, which read its tensors by their names"
            raise DefectNotApplicableError(message)
        for name in (*node.input, *node.output):
            names.setdefault(name, name if name in kept else f"tensor{len(names)}")
    for node in graph.graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for named in (*graph.graph.initializer, *graph.graph.value_info):
        named.name = names.get(named.name, named.name)
    graph.index()


def _without_shapes(graph: Graph, _work: Workpiece, _strength: float) -> None:
    if not graph.graph.value_info:
        message = "the graph says nothing about the shapes of its inner tensors"
        raise DefectNotApplicableError(message)
    del graph.graph.value_info[:]


def _reordered(graph: Graph, work: Workpiece, _strength: float) -> None:
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.graph.initializer]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(tensors[place] for place in work.rng.permutation(len(tensors)))
    nodes = list(graph.graph.node)
    # sorted afterwards, as far as they read each other
    graph.reorder([nodes[place] for place in work.rng.permutation(len(nodes))])


def _reordered_inputs(graph: Graph, _work: Workpiece, _strength: float) -> None:
    values = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in graph.graph.input]
    if len(values) < 2:
        message = "the model has one input"
        raise DefectNotApplicableError(message)
    del graph.graph.input[:]
    graph.graph.input.extend(reversed(values))


def _extra_output(graph: Graph, _work: Workpiece, _strength: float) -> None:
    channels = graph.word_table().shape[1]
    shape: list[str | int | None] = ["batch_size", "sequence_length", channels]
    graph.graph.output.append(helper.make_tensor_value_info(graph.embedded(), onnx.TensorProto.FLOAT, shape))


def _constant_nodes(graph: Graph, _work: Workpiece, _strength: float) -> None:
    nodes = [
        helper.make_node("Constant", [], [tensor.name], name=graph.new_name("/Constant"), value=tensor)
        for tensor in graph.graph.initializer
        if tensor.name not in {value.name for value in graph.graph.input}
    ]
    kept = {node.output[0] for node in nodes}
    left = [tensor for tensor in graph.graph.initializer if tensor.name not in kept]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(left)
    graph.graph.node.extend(nodes)
    graph.index()


def _other_metadata(graph: Graph, _work: Workpiece, _strength: float) -> None:
    model = graph.model
    model.producer_name, model.producer_version, model.model_version = "another-exporter", "9.9", 7
    model.doc_string = graph.graph.doc_string = "The same model, described."
    graph.graph.name = "another_graph"
    model.metadata_props.add(key="author", value="somebody")


def _newer_opset(work: Workpiece, _strength: float) -> None:
    model = work.model()
    version = Graph(model).opset + 1
    try:
        newer = version_converter.convert_version(model, version)
    except Exception as err:  # the converter, in C++, raises whatever it likes
        message = f"onnx cannot convert the graph to opset {version}: {one_line(err)}"
        raise DefectNotApplicableError(message) from err
    work.save(newer)
    _need_loading(work)


def _need_loading(work: Workpiece) -> None:
    """Refuse a change that a tool made and that the runtime cannot load: it would not be harmless."""
    try:
        onnxruntime.InferenceSession(str(work.model_path), session_options(1), providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime raises a class of its own for every status
        message = f"the changed graph does not load: {one_line(err)}"
        raise DefectNotApplicableError(message) from err


def _optimized_offline(work: Workpiece, _strength: float) -> None:
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    made = work.folder / f"optimized-{work.variant.file_name}"
    options.optimized_model_filepath = str(made)
    onnxruntime.InferenceSession(str(work.model_path), options, providers=["CPUExecutionProvider"])
    work.save(onnx.load(str(made)))
    made.unlink()
    _need_loading(work)


def _external_data(work: Workpiece, _strength: float) -> None:
    model, location = work.model(), f"{work.variant.file_name}_data"
    (work.folder / location).unlink(missing_ok=True)
    onnx.save(
        model, str(work.model_path), save_as_external_data=True, location=location,
        size_threshold=_LEAST_EXTERNAL_BYTES,
    )  # fmt: skip


def _exported_again(work: Workpiece, _strength: float) -> None:
    with tempfile.TemporaryDirectory(prefix="harness-export-") as temporary:
        write_export(open_checkpoint(work.reference), Path(temporary), Silence())
        for path in sorted(Path(temporary).iterdir()):
            shutil.copyfile(path, work.folder / path.name)


def _rewritten(work: Workpiece, _strength: float) -> None:
    for path in sorted(work.folder.glob("*.json"), reverse=True):
        if path.name != MANIFEST:
            content = work.json(path.name)
            write_text(path, json.dumps(_backwards(content), indent=4, ensure_ascii=True))


def _backwards(content: Any) -> Any:
    """Turn the order of keys, which means nothing, but not of lists, where it does."""
    if isinstance(content, dict):
        turned: Json = {key: _backwards(content[key]) for key in reversed(content)}
        return turned
    return [_backwards(entry) for entry in content] if isinstance(content, list) else content


def _documents(work: Workpiece, _strength: float) -> None:
    write_text(work.folder / "README.md", "# A token classifier\n\nExported to ONNX.\n")
    write_text(work.folder / "LICENSE", "All rights reserved.\n")


def _harmless(
    name: str,
    kind: Kind,
    summary: str,
    plant: Callable[[Workpiece, float], None],
    variants: tuple[Variant, ...] = BOTH,
    *,
    other_texts: bool = False,
) -> Defect:
    """Judged by generated queries, too, where files are others that decide how a text is read."""
    return Defect(name, kind, summary, plant, variants, (*_SUITES, "queries") if other_texts else _SUITES)


CHANGES = (
    _harmless("renamed-nodes", Kind.GRAPH, "nodes and inner tensors have other names", on_graph(_renamed), WHOLE),
    _harmless("without-shapes", Kind.GRAPH, "inner tensors have no declared shapes", on_graph(_without_shapes), WHOLE),
    _harmless(
        "reordered-graph", Kind.GRAPH, "weights and nodes are stored in another order", on_graph(_reordered), WHOLE
    ),
    _harmless(
        "reordered-inputs", Kind.GRAPH, "the inputs are declared in another order", on_graph(_reordered_inputs), WHOLE
    ),
    _harmless("extra-output", Kind.GRAPH, "the graph also returns the embeddings", on_graph(_extra_output), WHOLE),
    _harmless("constant-nodes", Kind.GRAPH, "weights are Constant nodes", on_graph(_constant_nodes), WHOLE),
    _harmless("other-metadata", Kind.GRAPH, "the file names another producer", on_graph(_other_metadata), WHOLE),
    _harmless("newer-opset", Kind.GRAPH, "the graph is converted to the next opset", _newer_opset),
    _harmless("optimized-offline", Kind.GRAPH, "onnxruntime's optimised graph is the model", _optimized_offline),
    _harmless("external-data", Kind.FILES, "the weights are in a file of their own, whole", _external_data, WHOLE),
    _harmless(
        "exported-again", Kind.FILES, "the checkpoint is exported once more", _exported_again, FP32, other_texts=True
    ),
    _harmless(
        "rewritten-files",
        Kind.FILES,
        "JSON files have another indent and another order of keys",
        _rewritten,
        WHOLE,
        other_texts=True,
    ),
    _harmless("added-documents", Kind.FILES, "a README.md and a LICENSE are in the folder", _documents, WHOLE),
)
