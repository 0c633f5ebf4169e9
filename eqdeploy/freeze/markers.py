"""Names that survive torch's export: each tensor of the network passes a marker, an operator that returns its input.

Torch's own ``torch.onnx.ops.symbolic`` could mark as well, but takes every size of every tensor as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema, get_schema
from onnxscript.values import Op, Opset
from torch import Tensor

_DOMAIN = "eqdeploy.marker"

# Torch's exporter reads the arguments of an ONNX operator off its schema.
_ONNX_MARKER = Op(
    Opset(_DOMAIN, 1),
    "Tensor",
    OpSchema(
        "Tensor",
        _DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter("x", "T")],
        outputs=[OpSchema.FormalParameter("marked", "T")],
        type_constraints=[("T", get_schema("Identity").type_constraints[0].allowed_type_strs, "")],
        attributes=[OpSchema.Attribute("name", OpSchema.AttrType.STRING)],
    ),
)

# Torch keeps an operator for as long as the library that defines it is kept.
_LIBRARY = torch.library.Library("eqdeploy", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("mark(Tensor x, str name) -> Tensor")  # type: ignore[no-untyped-call]


def _copy(x: Tensor, name: str) -> Tensor:
    """What a marker computes: an operator must not return its argument."""
    return torch.empty_like(x).copy_(x)


_LIBRARY.impl("mark", _copy, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("eqdeploy::mark", lambda x, name: torch.empty_like(x), lib=_LIBRARY)


#: The operator, as it stands in a captured program.
MARKER = torch.ops.eqdeploy.mark.default


def mark(x: Tensor, name: str) -> Tensor:
    """Mark a tensor with its name; exists only while the graph is exported."""
    marked: Tensor = torch.ops.eqdeploy.mark(x, name)
    return marked


def _translate(x: Any, name: str) -> Any:
    """A marker as an ONNX node."""
    return _ONNX_MARKER(x, name=name)


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """What torch's exporter must know to write markers."""
    return {MARKER: _translate}


def remove_markers(graph: ir.Graph) -> None:
    """Give marked values their names and drop the markers."""
    named: set[ir.Value] = set()
    for node in list(graph):
        if node.domain != _DOMAIN:
            continue
        value, marked = node.inputs[0], node.outputs[0]
        assert value is not None  # a marker has exactly one input
        name = node.attributes["name"].as_string()
        if value in named or (value.producer() is None and value not in graph.inputs):
            # Two tensors of the network are one value (a reshape to the same shape): keep both.
            identity = ir.node("Identity", [value], name=name)
            graph.insert_before(node, identity)
            value = identity.outputs[0]
            value.shape, value.type = marked.shape, marked.type
        value.name = name
        named.add(value)
        ir.convenience.replace_all_uses_with(marked, value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
