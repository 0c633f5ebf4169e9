"""``F.scaled_dot_product_attention`` written out into two products and a softmax that quantize."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from eqdeploy.supernet.shapes import tensor_dtype, tensor_shape

_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_DEFAULTS: dict[str, Any] = {
    "attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False
}  # fmt: skip


def write_out_scaled_dot_products(graph_module: fx.GraphModule) -> None:
    """Replace the function by softmax(q·s @ kᵀ + mask) @ v, with s = 1/√d unless the model says otherwise.

    What has dropout, heads that share keys, or arguments that are computed stays as it is.

    Args:
        graph_module: A traced graph with known shapes; changed in place.
    """
    for node in list(graph_module.graph.nodes):
        if node.target is not F.scaled_dot_product_attention:
            continue
        given = {**_DEFAULTS, **dict(zip(_PARAMETERS, node.args, strict=False)), **node.kwargs}
        if not _is_plain(given):
            continue
        with graph_module.graph.inserting_before(node):
            result = _written_out(graph_module, given, node.name)
        node.replace_all_uses_with(result)
        graph_module.graph.erase_node(node)


def _is_plain(given: dict[str, Any]) -> bool:
    """Whether the arguments are ones that can be written out."""
    mask, scale = given["attn_mask"], given["scale"]
    return (
        all(isinstance(given[name], fx.Node) and tensor_shape(given[name]) for name in _PARAMETERS[:3])
        and (mask is None or (isinstance(mask, fx.Node) and tensor_dtype(mask) is not None))
        and isinstance(given["dropout_p"], int | float)
        and not given["dropout_p"]
        and isinstance(given["is_causal"], bool)
        and not (given["is_causal"] and mask is not None)
        and (scale is None or isinstance(scale, int | float))
        and given["enable_gqa"] is False
    )


def _written_out(graph_module: fx.GraphModule, given: dict[str, Any], name: str) -> fx.Node:
    """Nodes that compute the function."""
    graph = graph_module.graph
    query, key, value = (given[argument] for argument in _PARAMETERS[:3])
    (*_, length, width), (*_, keys, _) = tensor_shape(query) or (), tensor_shape(key) or ()
    scale = 1 / math.sqrt(width) if given["scale"] is None else float(given["scale"])
    scaled = graph.call_function(operator.mul, (query, scale))
    transposed = graph.call_method("transpose", (key, -2, -1))
    scores = graph.call_function(torch.matmul, (scaled, transposed))
    if given["is_causal"]:
        hidden = torch.full((length, keys), -math.inf).triu(1)
        scores = graph.call_function(operator.add, (scores, _constant(graph_module, f"{name}_mask", hidden)))
    elif given["attn_mask"] is not None:
        scores = _masked(graph_module, scores, given["attn_mask"], name)
    weights = graph.call_function(torch.softmax, (scores, -1))
    return graph.call_function(torch.matmul, (weights, value))


def _masked(graph_module: fx.GraphModule, scores: fx.Node, mask: fx.Node, name: str) -> fx.Node:
    """Scores and a mask: numbers are added, a truth value shows what may be looked at."""
    graph = graph_module.graph
    if tensor_dtype(mask) is not torch.bool:
        return graph.call_function(operator.add, (scores, mask))
    if mask.op == "get_attr":
        shown = _attribute(graph_module, str(mask.target))
        hidden = torch.zeros(shown.shape, device=shown.device).masked_fill(~shown, -math.inf)
        return graph.call_function(operator.add, (scores, _constant(graph_module, f"{name}_mask", hidden)))
    return graph.call_method("masked_fill", (scores, graph.call_function(torch.logical_not, (mask,)), -math.inf))


def _constant(graph_module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """A constant of the graph."""
    while hasattr(graph_module, name):
        name += "_"
    graph_module.register_buffer(name, value)
    return graph_module.graph.get_attr(name)


def _attribute(graph_module: fx.GraphModule, path: str) -> Tensor:
    """A tensor of the model by its path."""
    owner, _, name = path.rpartition(".")
    tensor = getattr(graph_module.get_submodule(owner), name)
    assert isinstance(tensor, Tensor)
    return tensor
