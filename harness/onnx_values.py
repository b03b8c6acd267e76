"""A graph's values by name: what it holds, and which node makes what."""

from __future__ import annotations

import onnx


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Name what the graph computes with and does not compute: initializers and the values of Constant nodes."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            found[node.output[0]] = node.attribute[0].t
    return found


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Name the node that makes each value; Constant nodes make none."""
    return {name: node for node in model.graph.node if node.op_type != "Constant" for name in node.output}


def opset_of(model: onnx.ModelProto) -> int:
    """Tell the version of onnx's own operators that a graph is written in; 1 where it does not say."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=1)


def integer_attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """Read a number that belongs to a node."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
