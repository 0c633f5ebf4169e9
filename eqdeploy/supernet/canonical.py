"""Rewrite a traced graph into the few canonical operations that the rest of eqdeploy knows."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.network import OpKind
from eqdeploy.supernet.operations import classify, module_of, spatial_mean_keeps_axes
from eqdeploy.supernet.shapes import tensor_dtype, tensor_shape

_DROPOUT_MODULES: Mapping[Callable[..., Any], type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
}


@dataclass(frozen=True)
class _AdaptivePool:
    """An adaptive pool: its output size per axis (None keeps an axis), and the pool with windows of one size."""

    output_size: tuple[int | None, ...]
    function: Callable[..., Any]

    @property
    def axes(self) -> int:
        """Number of axes that are pooled."""
        return len(self.output_size)


#: Multiplications and divisions, which change nothing with one; additions and subtractions, with zero.
_FACTORS = frozenset({operator.mul, operator.truediv, torch.mul, torch.div, "mul", "div"})
_TERMS = frozenset({operator.add, operator.sub, torch.add, torch.sub, "add", "sub"})

_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)

#: Adaptive pools as modules and as functions, with the number of axes and the pool with windows of one size.
_ADAPTIVE_POOLS: Mapping[Any, tuple[int, Callable[..., Any]]] = {
    nn.AdaptiveAvgPool1d: (1, F.avg_pool1d),
    nn.AdaptiveAvgPool2d: (2, F.avg_pool2d),
    nn.AdaptiveAvgPool3d: (3, F.avg_pool3d),
    nn.AdaptiveMaxPool1d: (1, F.max_pool1d),
    nn.AdaptiveMaxPool2d: (2, F.max_pool2d),
    nn.AdaptiveMaxPool3d: (3, F.max_pool3d),
    F.adaptive_avg_pool1d: (1, F.avg_pool1d),
    F.adaptive_avg_pool2d: (2, F.avg_pool2d),
    F.adaptive_avg_pool3d: (3, F.avg_pool3d),
    F.adaptive_max_pool1d: (1, F.max_pool1d),
    F.adaptive_max_pool2d: (2, F.max_pool2d),
    F.adaptive_max_pool3d: (3, F.max_pool3d),
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


def remove_no_ops(graph_module: fx.GraphModule) -> None:
    """Remove operations that return their input: whole slices, empty padding, multiplication by one.

    Runtimes remove them, too, and then merge the quantizers before and behind them into one of another scale.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        source = _unchanged(node)
        if source is None:
            continue
        alike = tensor_shape(source) == tensor_shape(node) is not None
        if alike and tensor_dtype(source) == tensor_dtype(node):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def merge_bounds(graph_module: fx.GraphModule) -> None:
    """Rewrite a ReLU or clip of a ReLU or clip as one: devices fuse one into the layer before it."""
    for node in list(graph_module.graph.nodes):
        outer, source = _constant_bounds(graph_module, node), node.args[0] if node.args else None
        if outer is None or not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        inner = _constant_bounds(graph_module, source)
        if inner is None:
            continue
        low, high = (min(max(bound, outer[0]), outer[1]) for bound in inner)
        node.op, node.kwargs = "call_function", {}
        if (low, high) == (0.0, math.inf):
            node.target, node.args = torch.relu, (source.args[0],)
        else:
            bounds = (bound if math.isfinite(bound) else None for bound in (low, high))
            node.target, node.args = torch.clamp, (source.args[0], *bounds)
        graph_module.graph.erase_node(source)


def split_padding(graph_module: fx.GraphModule) -> None:
    """Take padding by reflection, repetition or wrapping, and "same" with even kernels, out of convolutions.

    Inside a convolution ONNX knows only zeros, and torch's "same" only as many before as behind; what the layer
    reads, and what is quantized, is the padded tensor.
    """
    graph = graph_module.graph
    paddings: dict[str, tuple[tuple[int, ...], str]] = {}
    for node in list(graph.nodes):
        module = module_of(graph_module, node)
        if type(module) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
            continue
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        widths = tuple(module._reversed_padding_repeated_twice)
        if module.padding_mode != "zeros" or widths[::2] != widths[1::2]:
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            paddings[str(node.target)] = widths, mode
            module.padding_mode, module.padding = "zeros", (0,) * len(module.kernel_size)
            module._reversed_padding_repeated_twice = [0] * (2 * len(module.kernel_size))
        if str(node.target) in paddings:
            with graph.inserting_before(node):
                arguments = (node.args[0], *paddings[str(node.target)])
                padded = graph.create_node("call_function", F.pad, arguments, name=f"{node.name}_pad")
            node.args = (padded, *node.args[1:])


def split_spatial_means(graph: fx.Graph) -> None:
    """Rewrite ``x.mean([2, 3])`` into a mean that keeps its axes, then a flatten."""
    for node in list(graph.nodes):
        if spatial_mean_keeps_axes(node) is not False:
            continue
        axes = list(range(2, len(tensor_shape(node.args[0]) or ())))
        with graph.inserting_before(node):
            pooled = graph.create_node(
                "call_function", torch.mean, (node.args[0], axes, True), name=f"{node.name}_pool"
            )
            flat = graph.call_function(torch.flatten, (pooled, 1))
        _replace(node, flat)


def replace_adaptive_pools(graph_module: fx.GraphModule) -> None:
    """Turn adaptive pools into global or ordinary pools, which runtimes know.

    Raises:
        UnsupportedOperationError: If the windows would be of unequal size.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        pool = _adaptive_pool(module_of(graph_module, node), node)
        shape = tensor_shape(node.args[0]) if pool is not None else None
        if pool is None or shape is None or len(shape) != pool.axes + 2:
            continue
        sizes = shape[2:]
        wanted = [old if new is None else int(new) for old, new in zip(sizes, pool.output_size, strict=True)]
        if wanted == list(sizes):
            _replace(node, node.args[0])
            continue
        if any(old % new for old, new in zip(sizes, wanted, strict=True)):
            raise UnsupportedOperationError(
                f"adaptive pooling from {_product(sizes)} to {_product(wanted)} has windows of unequal size",
                where=node.name,
                hint="use an input size that divides evenly",
            )
        kernel = tuple(old // new for old, new in zip(sizes, wanted, strict=True))
        with graph.inserting_before(node):
            if pool.function in _AVERAGES and set(wanted) == {1}:
                arguments: tuple[Any, ...] = (node.args[0], list(range(2, len(shape))), True)
                pooled = graph.create_node("call_function", torch.mean, arguments, name=node.name)
            else:
                pooled = graph.create_node("call_function", pool.function, (node.args[0], kernel), name=node.name)
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


def _unchanged(node: fx.Node) -> fx.Node | None:
    """The input that an operation returns if the shapes are the same, too; None if it computes something."""
    if node.op not in ("call_function", "call_method"):
        return None
    arguments, target = list(node.args), node.target
    if target in (torch.cat, torch.concat) and isinstance(arguments[0], list | tuple):
        return arguments[0][0] if len(arguments[0]) == 1 and isinstance(arguments[0][0], fx.Node) else None
    if target in (operator.mul, torch.mul, "mul") and not isinstance(arguments[0], fx.Node):
        arguments.reverse()
    source, others = arguments[0] if arguments else None, arguments[1:]
    if not isinstance(source, fx.Node):
        return None
    if target is operator.getitem:
        index = others[0] if isinstance(others[0], tuple) else (others[0],)
        unchanged = all(item is Ellipsis or _has_constant_bounds(item) for item in index)
    elif target in _FACTORS or target in _TERMS:
        unchanged = not node.kwargs and others == [1 if target in _FACTORS else 0]
    elif target is F.pad:
        unchanged = bool(others) and isinstance(others[0], list | tuple) and not any(others[0])
    else:
        unchanged = target in ("expand", "expand_as", "narrow", "repeat", torch.narrow)
    return source if unchanged else None


def _has_constant_bounds(index: Any) -> bool:
    """Whether an index is a slice between constants."""
    return isinstance(index, slice) and not any(
        isinstance(bound, fx.Node) for bound in (index.start, index.stop, index.step)
    )


def _constant_bounds(graph_module: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """Bounds of a ReLU or of a clip between constants; None for every other node."""
    if node.op in ("placeholder", "output", "get_attr"):
        return None
    operation = classify(graph_module, node)
    if operation.kind not in (OpKind.RELU, OpKind.CLIP) or len(node.all_input_nodes) != 1:
        return None
    return operation.bounds


def _adaptive_pool(module: nn.Module | None, node: fx.Node) -> _AdaptivePool | None:
    """The adaptive pool that a node is; None if it is none, or returns indices, too."""
    found = _ADAPTIVE_POOLS.get(node.target if module is None else type(module))
    if found is None or node.op == "call_method":
        return None
    axes, function = found
    size: Any
    returns_indices: Any
    if module is not None:
        size, returns_indices = module.output_size, getattr(module, "return_indices", False)
    else:
        size = node.args[1] if len(node.args) > 1 else node.kwargs["output_size"]
        returns_indices = node.args[2] if len(node.args) > 2 else node.kwargs.get("return_indices", False)
    sizes: Any = tuple(size) if isinstance(size, tuple | list) else (size,) * axes
    return None if returns_indices else _AdaptivePool(sizes, function)


def _product(sizes: Iterable[int]) -> str:
    """``7x7``."""
    return "x".join(str(size) for size in sizes)
