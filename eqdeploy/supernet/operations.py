"""Which operation of :class:`~eqdeploy.network.OpKind` a node of a traced graph is."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from eqdeploy.network import OpKind
from eqdeploy.supernet.folded_norm import FoldedNorm
from eqdeploy.supernet.shapes import tensor_dtype, tensor_shape

#: Layers that become elastic. Exact types: a subclass may compute something else.
ELASTIC_MODULES: Mapping[type[nn.Module], OpKind] = {
    nn.Conv1d: OpKind.CONV,
    nn.Conv2d: OpKind.CONV,
    nn.Conv3d: OpKind.CONV,
    nn.ConvTranspose1d: OpKind.CONV_TRANSPOSE,
    nn.ConvTranspose2d: OpKind.CONV_TRANSPOSE,
    nn.ConvTranspose3d: OpKind.CONV_TRANSPOSE,
    nn.Linear: OpKind.LINEAR,
}

BATCH_NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FoldedNorm)

#: Modules that do nothing once a network is frozen.
VANISHING_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

#: What only copies a tensor, or converts it to another dtype, device or memory layout.
_COPIES = ("clone", "contiguous", "cpu", "cuda", "detach", "float", "to", "type_as", torch.clone, torch.detach)


def requantize(x: Tensor) -> Tensor:
    """Return a tensor as it is: a place in a graph where its quantized form changes."""
    return x


_MODULES: Mapping[type[nn.Module], OpKind] = {
    nn.ReLU: OpKind.RELU,
    nn.ReLU6: OpKind.CLIP,
    nn.Hardtanh: OpKind.CLIP,
    nn.Sigmoid: OpKind.SIGMOID,
    nn.Hardsigmoid: OpKind.HARD_SIGMOID,
    nn.Tanh: OpKind.TANH,
    nn.Softmax: OpKind.SOFTMAX,
    nn.MaxPool1d: OpKind.MAX_POOL,
    nn.MaxPool2d: OpKind.MAX_POOL,
    nn.MaxPool3d: OpKind.MAX_POOL,
    nn.AvgPool1d: OpKind.AVERAGE_POOL,
    nn.AvgPool2d: OpKind.AVERAGE_POOL,
    nn.AvgPool3d: OpKind.AVERAGE_POOL,
    nn.Flatten: OpKind.RESHAPE,
    nn.Unflatten: OpKind.RESHAPE,
    nn.Upsample: OpKind.RESIZE,
    nn.UpsamplingNearest2d: OpKind.RESIZE,
}

_FUNCTIONS: Mapping[Callable[..., Any], OpKind] = {
    torch.relu: OpKind.RELU,
    F.relu: OpKind.RELU,
    F.relu6: OpKind.CLIP,
    F.hardtanh: OpKind.CLIP,
    torch.clamp: OpKind.CLIP,
    torch.clip: OpKind.CLIP,
    torch.sigmoid: OpKind.SIGMOID,
    F.sigmoid: OpKind.SIGMOID,
    F.hardsigmoid: OpKind.HARD_SIGMOID,
    torch.tanh: OpKind.TANH,
    F.tanh: OpKind.TANH,
    torch.softmax: OpKind.SOFTMAX,
    F.softmax: OpKind.SOFTMAX,
    operator.add: OpKind.ADD,
    torch.add: OpKind.ADD,
    operator.mul: OpKind.MUL,
    torch.mul: OpKind.MUL,
    operator.matmul: OpKind.MATMUL,
    torch.matmul: OpKind.MATMUL,
    torch.bmm: OpKind.MATMUL,
    torch.cat: OpKind.CONCAT,
    torch.concat: OpKind.CONCAT,
    F.max_pool1d: OpKind.MAX_POOL,
    F.max_pool2d: OpKind.MAX_POOL,
    F.max_pool3d: OpKind.MAX_POOL,
    F.avg_pool1d: OpKind.AVERAGE_POOL,
    F.avg_pool2d: OpKind.AVERAGE_POOL,
    F.avg_pool3d: OpKind.AVERAGE_POOL,
    torch.flatten: OpKind.RESHAPE,
    torch.reshape: OpKind.RESHAPE,
    torch.squeeze: OpKind.RESHAPE,
    torch.unsqueeze: OpKind.RESHAPE,
    torch.unflatten: OpKind.RESHAPE,
    torch.permute: OpKind.TRANSPOSE,
    torch.transpose: OpKind.TRANSPOSE,
    F.interpolate: OpKind.RESIZE,
    requantize: OpKind.REQUANTIZE,
}

_METHODS: Mapping[str, OpKind] = {
    "relu": OpKind.RELU,
    "clamp": OpKind.CLIP,
    "clip": OpKind.CLIP,
    "sigmoid": OpKind.SIGMOID,
    "tanh": OpKind.TANH,
    "softmax": OpKind.SOFTMAX,
    "add": OpKind.ADD,
    "mul": OpKind.MUL,
    "matmul": OpKind.MATMUL,
    "bmm": OpKind.MATMUL,
    "flatten": OpKind.RESHAPE,
    "reshape": OpKind.RESHAPE,
    "view": OpKind.RESHAPE,
    "squeeze": OpKind.RESHAPE,
    "unsqueeze": OpKind.RESHAPE,
    "unflatten": OpKind.RESHAPE,
    "permute": OpKind.TRANSPOSE,
    "transpose": OpKind.TRANSPOSE,
}

#: Operations without a kind of their own that only select, repeat and rearrange entries of their input.
_SELECTIONS = frozenset(
    {
        *("amax", "chunk", "expand", "expand_as", "flip", "index_select", "narrow", "repeat", "roll", "select"),
        *("split", "tile", "unbind", torch.amax, torch.chunk, torch.flip, torch.index_select, torch.narrow, torch.roll),
        *(torch.select, torch.split, torch.stack, torch.tile, torch.unbind, F.pixel_shuffle, F.pixel_unshuffle),
        *(nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.CircularPad1d, nn.CircularPad2d),
        *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
    }
)

#: Ways to resize an image that never leave the range of its values; cubic interpolation overshoots.
_BOUNDED_RESIZES = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")


@dataclass(frozen=True)
class Operation:
    """One node in our terms.

    Attributes:
        kind: Kind of operation.
        text: The operation in the user's terms.
        bounds: Smallest and largest value of the output that the operation guarantees.
    """

    kind: OpKind
    text: str
    bounds: tuple[float, float] = (-math.inf, math.inf)


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, or None."""
    if node.op != "call_module":
        return None
    return graph_module.get_submodule(str(node.target))


def vanishes(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node passes its input through once the network is frozen (dropout, identity, copies)."""
    module = module_of(graph_module, node)
    if module is not None:
        return isinstance(module, VANISHING_MODULES) or type(module).__name__ in ("StochasticDepth", "DropPath")
    if node.op not in ("call_function", "call_method") or node.target not in _COPIES:
        return False
    source = node.args[0] if node.args else None
    return isinstance(source, fx.Node) and tensor_dtype(source) == tensor_dtype(node) is not None


def classify(graph_module: fx.GraphModule, node: fx.Node) -> Operation:
    """Say which operation a node is.

    An addition or multiplication counts as such only between tensors: with a constant or a parameter it is OTHER.
    """
    if node.op == "placeholder":
        return Operation(OpKind.INPUT, "input")
    module = module_of(graph_module, node)
    if module is not None:
        return _classify_module(module)
    if node.op == "call_method":
        text = f"Tensor.{node.target}"
        kind = _METHODS.get(str(node.target), OpKind.OTHER)
    else:
        text = _function_name(node.target)
        kind = _FUNCTIONS.get(node.target, OpKind.OTHER) if callable(node.target) else OpKind.OTHER
    if kind in (OpKind.ADD, OpKind.MUL, OpKind.MATMUL) and not _all_tensors(node):
        kind = OpKind.OTHER
    if kind is OpKind.RESIZE and _resize_mode(node) not in _BOUNDED_RESIZES:
        kind = OpKind.OTHER
    if spatial_mean_keeps_axes(node):
        kind = OpKind.GLOBAL_AVERAGE_POOL
    return Operation(kind, text, _function_bounds(node, kind))


def keeps_bounds(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether every value of the result is a value of the inputs, for operations without a kind of their own."""
    module = module_of(graph_module, node)
    target = node.target if module is None else type(module)
    if target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and (tensor_shape(source) is not None or keeps_bounds(graph_module, source))
    if target is F.pad:
        mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
        return mode in ("reflect", "replicate", "circular")
    return target in _SELECTIONS


def adds_zeros(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether every value of the result is a value of the input or zero: padding with zeros."""
    module = module_of(graph_module, node)
    if module is not None:
        return type(module) in (nn.ZeroPad1d, nn.ZeroPad2d)
    if node.target is not F.pad:
        return False
    mode, value = (
        node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
        for index, name, default in ((2, "mode", "constant"), (3, "value", None))
    )
    return mode == "constant" and (value is None or (isinstance(value, int | float) and value == 0))


def _classify_module(module: nn.Module) -> Operation:
    """Classify a module call."""
    text = f"{type(module).__module__.split('.')[0]}.nn.{type(module).__name__}"
    kind = OpKind.OTHER
    for table in (ELASTIC_MODULES, _MODULES):
        kind = table.get(type(module), kind)
    if isinstance(module, BATCH_NORM_MODULES):
        kind = OpKind.BATCH_NORM
    if isinstance(module, nn.Upsample) and module.mode not in _BOUNDED_RESIZES:
        kind = OpKind.OTHER
    bounds = (-math.inf, math.inf)
    if isinstance(module, nn.Hardtanh):  # ReLU6 is a Hardtanh
        bounds = (float(module.min_val), float(module.max_val))
    return Operation(kind, text, _bounds(kind, bounds))


def _bounds(kind: OpKind, explicit: tuple[float, float]) -> tuple[float, float]:
    """Bounds that follow from the kind alone, unless the operation has its own."""
    if kind is OpKind.RELU:
        return (0.0, math.inf)
    if kind in (OpKind.SIGMOID, OpKind.HARD_SIGMOID, OpKind.SOFTMAX):
        return (0.0, 1.0)
    if kind is OpKind.TANH:
        return (-1.0, 1.0)
    return explicit


def _function_bounds(node: fx.Node, kind: OpKind) -> tuple[float, float]:
    """Bounds of a functional operation."""
    explicit = (-math.inf, math.inf)
    if kind is OpKind.CLIP:
        if node.target is F.relu6:
            explicit = (0.0, 6.0)
        else:
            names = ("min_val", "max_val") if node.target is F.hardtanh else ("min", "max")
            defaults = (-1.0, 1.0) if node.target is F.hardtanh else (None, None)
            values = [
                node.args[index + 1] if len(node.args) > index + 1 else node.kwargs.get(names[index], defaults[index])
                for index in range(2)
            ]
            low, high = (value if isinstance(value, int | float) else None for value in values)
            explicit = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return _bounds(kind, explicit)


def _all_tensors(node: fx.Node) -> bool:
    """Whether a binary operation has two computed tensors as operands and nothing else (such as ``alpha``)."""
    return (
        len(node.args) == 2
        and not node.kwargs
        and all(
            isinstance(argument, fx.Node) and argument.op != "get_attr" and tensor_shape(argument) is not None
            for argument in node.args
        )
    )


def spatial_mean_keeps_axes(node: fx.Node) -> bool | None:
    """Whether a mean over exactly the axes behind the channels keeps these axes; None for every other node."""
    if node.op not in ("call_function", "call_method") or node.target not in (torch.mean, "mean"):
        return None
    source = node.args[0]
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    rank = len((tensor_shape(source) if isinstance(source, fx.Node) else None) or ())
    if rank not in (3, 4, 5) or node.kwargs.get("dtype") is not None:
        return None
    listed = axes if isinstance(axes, list | tuple) else [axes]
    positions = sorted(axis % rank for axis in listed if isinstance(axis, int))
    return bool(keep) if positions == list(range(2, rank)) and len(positions) == len(listed) else None


def _resize_mode(node: fx.Node) -> Any:
    """The ``mode`` of an ``F.interpolate``."""
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")


def _function_name(target: Any) -> str:
    """A readable name of a called function."""
    module = getattr(target, "__module__", "") or ""
    name = getattr(target, "__name__", str(target))
    return f"{module}.{name}" if module and not module.startswith("_") else name
