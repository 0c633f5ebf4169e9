"""Make the shapes that a graph computes for itself constants: everything but the batch axis is known."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def make_shapes_constant(graph: ir.Graph) -> None:
    """Replace computed shapes of Reshape, Expand and Resize by constants wherever the batch axis allows it.

    Torch writes ``x.view(x.shape[0], -1)`` as a computation on shapes, which devices with fixed shapes do not take
    and which keeps ONNX Runtime from moving integers through the operation. The computations themselves stay
    behind without a reader.

    Args:
        graph: Graph whose values know their shapes; changed in place.
    """
    for node in list(graph):
        position = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op_type)
        if node.domain or position is None or len(node.inputs) <= position:
            continue
        shape = node.inputs[position]
        if shape is None or ir.convenience.get_const_tensor(shape) is not None:
            continue
        if node.op_type == "Resize":
            scales = _scales(node)
            if scales is not None:
                node.replace_input_with(2, _constant(graph, node, scales))
                node.replace_input_with(3, None)
            continue
        sizes = _reshaped(node) if node.op_type == "Reshape" else _expanded(node)
        if sizes is not None:
            node.replace_input_with(1, _constant(graph, node, np.array(sizes, dtype=np.int64)))


def _reshaped(node: ir.Node) -> list[int] | None:
    """The shape of a Reshape with -1 for its one unknown size; None if there are more, or empty axes."""
    sizes = _sizes(node.outputs[0])
    if sizes is None or sizes.count(None) > 1 or 0 in sizes:
        return None
    return [-1 if size is None else size for size in sizes]


def _expanded(node: ir.Node) -> list[int] | None:
    """The shape of an Expand with 1, which keeps the size of the input, for the batch; None if it must grow."""
    before, after = None if node.inputs[0] is None else node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None or before.rank() > after.rank():
        return None
    aligned = [1] * (after.rank() - before.rank()) + list(before.dims)
    sizes: list[int] = []
    for old, new in zip(aligned, after.dims, strict=True):
        if not isinstance(new, int) and old != new:
            return None
        sizes.append(new if isinstance(new, int) else 1)
    return sizes


def _scales(node: ir.Node) -> NDArray[np.float32] | None:
    """The scales of a Resize that give exactly its sizes, None if float32 cannot say so."""
    before = None if node.inputs[0] is None else node.inputs[0].shape
    after = node.outputs[0].shape
    policy = node.attributes.get("keep_aspect_ratio_policy")
    stretches = policy is None or policy.as_string() == "stretch"
    if before is None or after is None or "axes" in node.attributes or not stretches:
        return None
    scales: list[float] = []
    for old, new in zip(before.dims, after.dims, strict=True):
        if isinstance(old, int) and isinstance(new, int):
            scales.append(new / old)
        elif old == new:
            scales.append(1.0)
        else:
            return None
    rounded = np.array(scales, dtype=np.float32)
    return rounded if rounded.astype(np.float64).tolist() == scales else None


def _sizes(value: ir.Value) -> list[int | None] | None:
    """Sizes of a value, None for each that depends on the batch; None if nothing is known."""
    if value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape.dims]


def _constant(graph: ir.Graph, node: ir.Node, array: NDArray[np.generic]) -> ir.Value:
    """Put a constant in front of a node."""
    constant = ir.node("Constant", [], {"value": ir.Tensor(array)})
    graph.insert_before(node, constant)
    return constant.outputs[0]
