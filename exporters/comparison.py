"""Whether two files hold the same float network, whatever the order of their entries."""

from __future__ import annotations

import onnx_ir as ir

from eqdeploy.exporters.float_graph import constant


def first_difference(expected: ir.Graph, found: ir.Graph) -> str | None:
    """Name the first part in which two float graphs of one opset differ.

    Compared are inputs and outputs with their types and shapes, and nodes with operator, attributes and what they
    read: results by name, constants bit by bit whatever their names. Order, shapes of inner values and metadata
    may differ.

    Args:
        expected: What should be there.
        found: What is there.

    Returns:
        For example ``"node stem_2"``, or None if both are the same network.
    """
    wanted, present = _parts(expected), _parts(found)
    return next((name for name in (*wanted, *present) if wanted.get(name) != present.get(name)), None)


def _parts(graph: ir.Graph) -> dict[str, object]:
    """All parts of a graph in a form that can be compared."""
    parts: dict[str, object] = {
        "inputs": [_signature(value) for value in graph.inputs],
        "outputs": [_signature(value) for value in graph.outputs],
    }
    for node in (node for node in graph if node.op_type != "Constant"):
        parts[f"node {node.name}"] = (
            node.domain,
            node.op_type,
            [_source(value) for value in node.inputs],
            [value.name for value in node.outputs],
            {name: ir.to_proto(attribute).SerializeToString() for name, attribute in node.attributes.items()},
        )
    return parts


def _signature(value: ir.Value) -> object:
    """Name, type and shape of an input or output."""
    return value.name, value.dtype, None if value.shape is None else [str(size) for size in value.shape]


def _source(value: ir.Value | None) -> object:
    """What a node reads: a constant's content, or the name of anything else."""
    array = constant(value)
    if array is not None:
        return str(array.dtype), array.shape, array.tobytes()
    return None if value is None else value.name
