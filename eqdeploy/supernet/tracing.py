"""Trace a float model and bring its graph into the few forms that the rest of eqdeploy knows."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.supernet.operations import module_of

_OUT_OF_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.clamp_: torch.clamp,
}


class _Tracer(fx.Tracer):
    """Torch's tracer, with stochastic depth kept whole and the path of the module being traced."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__name__ in ("StochasticDepth", "DropPath") or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.path.append(self.path_of_module(m))
        # Not in a finally clause: after an exception the path must still say where it happened.
        result = super().call_module(m, forward, args, kwargs)
        self.path.pop()
        return result


def trace(model: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """Trace a model into a graph of out-of-place, canonical operations with known shapes.

    SiLU and Hardswish become a gate and a multiplication, a mean over height and width keeps its axes, adaptive
    average pools become ordinary ones, in-place operations are replaced. The model itself is not changed.

    Args:
        model: Any module that torch.fx can trace.
        example_input: One batch, shape (N, ...), N >= 2; its values do not matter.

    Returns:
        A graph module with copies of the model's modules. Each tensor node carries ``meta["tensor_meta"]``.

    Raises:
        UnsupportedOperationError: If the model cannot be traced, fails on the example, or takes several inputs.
    """
    model = copy.deepcopy(model)
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise UnsupportedOperationError(
            f"torch.fx cannot trace this model: {error}",
            where=tracer.path[-1] if tracer.path else type(model).__name__,
            hint="replace data-dependent control flow, or wrap that part in a module without quantizable layers",
        ) from error
    graph_module = fx.GraphModule(model, graph, class_name=type(model).__name__)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for extra in placeholders[1:]:
        if not extra.args:
            raise UnsupportedOperationError("the model takes several inputs", where=extra.name, hint="one is supported")
        extra.replace_all_uses_with(extra.args[0])  # an optional argument: its default is a constant
        graph.erase_node(extra)
    _use_out_of_place(graph_module)
    propagate_shapes(graph_module, example_input)
    _split_spatial_means(graph_module)
    _replace_adaptive_pools(graph_module)
    _split_gated_activations(graph_module)
    graph.eliminate_dead_code()
    graph.lint()
    graph_module.recompile()
    propagate_shapes(graph_module, example_input)
    return graph_module


def propagate_shapes(graph_module: fx.GraphModule, example_input: Tensor) -> None:
    """Run the example through the graph once, in evaluation mode, and note every shape.

    Raises:
        UnsupportedOperationError: If the model fails on the example.
    """
    modes = {module: module.training for module in graph_module.modules()}
    graph_module.eval()
    try:
        with torch.no_grad():
            ShapeProp(graph_module).propagate(example_input)
    except Exception as error:
        raise UnsupportedOperationError(
            f"the model fails on an input of shape {tuple(example_input.shape)}: {str(error).splitlines()[0]}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def tensor_shape(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of a node's tensor, batch axis included; None when the node is no tensor."""
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return None if shape is None else tuple(shape)


def _use_out_of_place(graph_module: fx.GraphModule) -> None:
    """Make every operation return a new tensor, so that each tensor of the graph keeps its value."""
    for module in graph_module.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
            if "inplace" in node.kwargs:
                node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_method":
            name = str(node.target)
            if name.endswith("_") and not name.endswith("__") and hasattr(Tensor, name[:-1]):
                node.target = name[:-1]


def _split_spatial_means(graph_module: fx.GraphModule) -> None:
    """Rewrite ``x.mean([2, 3])`` into a mean that keeps its axes, then a flatten."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target not in (torch.mean, "mean") or len(tensor_shape(node.args[0]) or ()) != 4:
            continue
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if not isinstance(axes, list | tuple) or sorted(axis % 4 for axis in axes) != [2, 3] or keep:
            continue
        with graph.inserting_before(node):
            pooled = graph.create_node(
                "call_function", torch.mean, (node.args[0], [2, 3], True), name=f"{node.name}_pool"
            )
            flat = graph.call_function(torch.flatten, (pooled, 1))
        node.replace_all_uses_with(flat)
        graph.erase_node(node)


def _replace_adaptive_pools(graph_module: fx.GraphModule) -> None:
    """Turn adaptive average pools into global or ordinary average pools, which runtimes know."""
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
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
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
        node.replace_all_uses_with(pooled)
        graph.erase_node(node)


def _split_gated_activations(graph_module: fx.GraphModule) -> None:
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
        node.replace_all_uses_with(product)
        graph.erase_node(node)
