"""Whether two files hold the same float network, whatever the order of their entries."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from eqdeploy.exporters.files import EXTERNAL_DATA_THRESHOLD, load_proto
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


def same_model(found: Path, expected: Path) -> bool:
    """Whether two ONNX files differ only in the order of their constants and of the values that they describe."""
    if max(path.stat().st_size for path in (found, expected)) > EXTERNAL_DATA_THRESHOLD:
        return False
    contents: list[bytes] = []
    for path in (found, expected):
        model = load_proto(path)
        for entries in (model.graph.initializer, model.graph.value_info):
            ordered = sorted(entries, key=lambda entry: entry.name)
            del entries[:]
            entries.extend(ordered)
        contents.append(model.SerializeToString(deterministic=True))
    return contents[0] == contents[1]


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
