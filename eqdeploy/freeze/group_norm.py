"""Write group normalization in operations that every opset and runtime has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def split_group_normalization(graph: ir.Graph) -> None:
    """Replace GroupNormalization by instance normalization of its groups, then scale and bias per channel.

    The operator means something else before opset 21, and ONNX Runtime expands it into thirty operations.

    Args:
        graph: Graph whose values know their shapes; changed in place.
    """
    for node in list(graph):
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "GroupNormalization" or node.domain or source is None or result.shape is None:
            continue
        sizes = [size for size in result.shape.dims[1:] if isinstance(size, int)]
        if len(sizes) < len(result.shape.dims) - 1:
            continue
        groups = node.attributes["num_groups"].as_int()
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        per_channel = [-1] + [1] * (len(sizes) - 1)
        grouped = _reshape(graph, node, source, [-1, groups, int(np.prod(sizes)) // groups])
        ones, zeros = (_constant(graph, node, np.full(groups, value, np.float32)) for value in (1.0, 0.0))
        normalized = _insert(
            graph, node, ir.node("InstanceNormalization", [grouped, ones, zeros], {"epsilon": epsilon})
        )
        whole = _reshape(graph, node, normalized, [-1, *sizes])
        scale, bias = (_reshape(graph, node, value, per_channel) for value in node.inputs[1:3])
        scaled = _insert(graph, node, ir.node("Mul", [whole, scale]))
        shifted = _insert(graph, node, ir.node("Add", [scaled, bias]))
        shifted.name, shifted.shape, shifted.type = result.name, result.shape, result.type
        result.name = None
        ir.convenience.replace_all_uses_with(result, shifted, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _reshape(graph: ir.Graph, before: ir.Node, value: ir.Value | None, sizes: list[int]) -> ir.Value:
    shape = _constant(graph, before, np.array(sizes, dtype=np.int64))
    return _insert(graph, before, ir.node("Reshape", [value, shape]))


def _constant(graph: ir.Graph, before: ir.Node, array: NDArray[np.generic]) -> ir.Value:
    return _insert(graph, before, ir.node("Constant", [], {"value": ir.Tensor(array)}))


def _insert(graph: ir.Graph, before: ir.Node, node: ir.Node) -> ir.Value:
    """Put a node with one output in front of another one."""
    graph.insert_before(before, node)
    return node.outputs[0]
