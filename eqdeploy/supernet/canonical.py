"""Rewrite a traced graph into the few canonical operations that the rest of eqdeploy knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.network import OpKind
from eqdeploy.supernet.operations import classify, module_of, spatial_mean_keeps_axes
from eqdeploy.supernet.shapes import tensor_shape

_DROPOUT_MODULES: Mapping[Callable[..., Any], type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
}


def pass_inputs_by_position(graph: fx.Graph) -> None:
    """Rewrite ``f(input=x, …)`` as ``f(x, …)``: everything after this may rely on ``node.args[0]``."""
    for node in graph.nodes:
        if not node.args and "input" in node.kwargs:
            node.args = (node.kwargs["input"],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "input"}


def use_dropout_modules(graph_module: fx.GraphModule) -> None:
    """Replace functional dropout, which tracing has frozen in one mode, by modules that follow train and eval."""
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or node.target not in _DROPOUT_MODULES:
            continue
        rate = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        if not isinstance(rate, int | float):
            raise UnsupportedOperationError("the dropout rate is computed", where=node.name, hint="use a constant")
        path = node.name
        while hasattr(graph_module, path):
            path += "_"
        graph_module.add_submodule(path, _DROPOUT_MODULES[node.target](rate))
        with graph_module.graph.inserting_before(node):
            dropped = graph_module.graph.call_module(path, (node.args[0],))
        _replace(node, dropped)


def use_float_bounds(graph_module: fx.GraphModule) -> None:
    """Write the bounds of clips as floats: torch's ONNX exporter refuses a mixture of integer and float."""
    for node in graph_module.graph.nodes:
        if node.op == "placeholder" or classify(graph_module, node).kind is not OpKind.CLIP:
            continue
        module = module_of(graph_module, node)
        if isinstance(module, nn.Hardtanh):
            module.min_val, module.max_val = float(module.min_val), float(module.max_val)
        elif module is None:
            node.args = tuple(float(value) if type(value) is int else value for value in node.args)
            node.kwargs = {key: float(value) if type(value) is int else value for key, value in node.kwargs.items()}


def split_spatial_means(graph: fx.Graph) -> None:
    """Rewrite ``x.mean([2, 3])`` into a mean that keeps its axes, then a flatten."""
    for node in list(graph.nodes):
        if spatial_mean_keeps_axes(node) is not False:
            continue
        with graph.inserting_before(node):
            pooled = graph.create_node(
                "call_function", torch.mean, (node.args[0], [2, 3], True), name=f"{node.name}_pool"
            )
            flat = graph.call_function(torch.flatten, (pooled, 1))
        _replace(node, flat)


def replace_adaptive_pools(graph_module: fx.GraphModule) -> None:
    """Turn adaptive average pools into global or ordinary average pools, which runtimes know.

    Raises:
        UnsupportedOperationError: If the windows would be of unequal size.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        module = module_of(graph_module, node)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            size: Any = module.output_size
        elif node.target is F.adaptive_avg_pool2d:
            size = node.args[1] if len(node.args) > 1 else node.kwargs["output_size"]
        else:
            continue
        shape = tensor_shape(node.args[0])
        if shape is None or len(shape) != 4:
            continue
        wanted = (size, size) if isinstance(size, int) else tuple(size)
        height, width = (shape[axis + 2] if wanted[axis] is None else int(wanted[axis]) for axis in range(2))
        if (height, width) == shape[2:]:
            _replace(node, node.args[0])
            continue
        if shape[2] % height or shape[3] % width:
            raise UnsupportedOperationError(
                f"adaptive average pooling from {shape[2]}x{shape[3]} to {height}x{width} has windows of unequal size",
                where=node.name,
                hint="use an input size that divides evenly",
            )
        kernel = (shape[2] // height, shape[3] // width)
        with graph.inserting_before(node):
            if (height, width) == (1, 1):
                pooled = graph.create_node("call_function", torch.mean, (node.args[0], [2, 3], True), name=node.name)
            else:
                pooled = graph.create_node("call_function", F.avg_pool2d, (node.args[0], kernel), name=node.name)
        _replace(node, pooled)


def split_gated_activations(graph_module: fx.GraphModule) -> None:
    """Rewrite SiLU and Hardswish as x · gate(x): two operations that devices quantize separately."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        module = module_of(graph_module, node)
        gate: Callable[..., Any]
        if isinstance(module, nn.SiLU) or node.target is F.silu:
            gate = torch.sigmoid
        elif isinstance(module, nn.Hardswish) or node.target is F.hardswish:
            gate = F.hardsigmoid
        else:
            continue
        with graph.inserting_before(node):
            opened = graph.create_node("call_function", gate, (node.args[0],), name=f"{node.name}_gate")
            product = graph.create_node("call_function", torch.mul, (node.args[0], opened), name=f"{node.name}_product")
        _replace(node, product)


def rename_clashing(graph_module: fx.GraphModule) -> None:
    """Rename tensors that are called like an attribute of a module or like a parameter of the model.

    Names of tensors become names of submodules (their quantizers) and of ONNX values (beside the parameters).
    """
    taken = {*dir(nn.Module()), *dict(graph_module.named_parameters()), *dict(graph_module.named_buffers())}
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op in ("get_attr", "output") or node.name not in taken:
            continue
        with graph.inserting_before(node):
            renamed = graph.create_node(node.op, node.target, node.args, node.kwargs, name=f"{node.name}_tensor")
        _replace(node, renamed)


def _replace(node: fx.Node, other: fx.Node) -> None:
    """Let all readers of a node read another one of the same shape, and remove it."""
    other.meta = {**node.meta, **other.meta}
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)
