"""Let residual additions read tensors unquantized: layers get a quantized copy of their own."""

from __future__ import annotations

from torch import fx

from eqdeploy.network import BOUND_PRESERVING_KINDS, LAYER_KINDS, OpKind
from eqdeploy.supernet.canonical import rename_clashing
from eqdeploy.supernet.operations import adds_zeros, classify, keeps_bounds, requantize, vanishes
from eqdeploy.supernet.shapes import tensor_shape


def split_residual_reads(graph_module: fx.GraphModule) -> None:
    """Insert :func:`~eqdeploy.supernet.operations.requantize` between layers and tensors that an addition reads, too.

    The copy is a tensor of its own, named after the tensor with ``_requantize`` behind it. The layers read the copy,
    so that it owns the trained quantizer; the addition and all other readers read the tensor itself. Only pools,
    slices, padding and the like may lie between the tensor and the addition (a shortcut that changes the shape).

    Args:
        graph_module: A canonical graph with known shapes, :func:`eqdeploy.supernet.tracing.trace`; changed in place.
    """
    graph = graph_module.graph
    inserted = False
    for node in list(graph.nodes):
        if node.op in ("output", "get_attr") or tensor_shape(node) is None or vanishes(graph_module, node):
            continue
        if not (_feeds_layer(graph_module, node) and _feeds_addition(graph_module, node)):
            continue
        with graph.inserting_after(node):
            copy = graph.create_node("call_function", requantize, (node,), name=f"{node.name}_requantize")
        # Wrapped: tracing the graph again keeps the call instead of looking inside.
        copy.meta = {**node.meta, "is_wrapped": True}
        _move_layers(graph_module, node, copy)
        inserted = True
    if inserted:
        rename_clashing(graph_module)
        graph.lint()
        graph_module.recompile()


def _feeds_layer(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a quantizable layer reads a value, perhaps behind what vanishes in a frozen network."""
    return any(
        _is_layer(graph_module, user) or (_vanishes(graph_module, user) and _feeds_layer(graph_module, user))
        for user in node.users
    )


def _feeds_addition(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an addition reads a value, perhaps behind what vanishes or only moves and pools values."""
    for user in node.users:
        if user.op == "output" or _is_layer(graph_module, user):
            continue
        if classify(graph_module, user).kind is OpKind.ADD:
            return True
        if _carries(graph_module, user) and _feeds_addition(graph_module, user):
            return True
    return False


def _move_layers(graph_module: fx.GraphModule, node: fx.Node, copy: fx.Node) -> None:
    """Let the layers that read a node read its copy; dropout between them is doubled if others read it, too."""
    graph = graph_module.graph
    for user in list(node.users):
        if user is copy:
            continue
        if _is_layer(graph_module, user):
            user.replace_input_with(node, copy)
        elif _vanishes(graph_module, user) and _feeds_layer(graph_module, user):
            with graph.inserting_after(copy):
                doubled = graph.node_copy(user, lambda argument: copy if argument is node else argument)
            _move_layers(graph_module, user, doubled)
            if not user.users:
                graph.erase_node(user)


def _is_layer(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a quantizable layer."""
    return node.op == "call_module" and classify(graph_module, node).kind in LAYER_KINDS


def _vanishes(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node that reads a tensor passes it through once the network is frozen."""
    return node.op != "output" and vanishes(graph_module, node)


def _carries(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the values of a node's result are values of its inputs, means of them, or zero."""
    return (
        vanishes(graph_module, node)
        or classify(graph_module, node).kind in BOUND_PRESERVING_KINDS
        or keeps_bounds(graph_module, node)
        or adds_zeros(graph_module, node)
    )
