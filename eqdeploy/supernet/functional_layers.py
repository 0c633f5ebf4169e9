"""Turn layers that a model applies as functions, with parameters of its own, into modules that become elastic."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from eqdeploy.network import OpKind
from eqdeploy.supernet.operations import ELASTIC_MODULES
from eqdeploy.supernet.shapes import tensor_shape
from eqdeploy.supernet.shared_layers import path_of_use

_CONVOLUTIONS: Mapping[Callable[..., Any], Any] = {
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
    F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d,
    F.conv_transpose3d: nn.ConvTranspose3d,
}
#: Arguments behind the bias, in order.
_CONVOLUTION_OPTIONS = ("stride", "padding", "dilation", "groups")
_TRANSPOSED_OPTIONS = ("stride", "padding", "output_padding", "groups", "dilation")
_DEFAULTS: Mapping[str, Any] = {
    "bias": None,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "output_padding": 0,
}
_MATMULS = (operator.matmul, torch.matmul, "matmul")
_ADDITIONS = (operator.add, torch.add, "add")


@dataclass(frozen=True)
class _Call:
    """A layer applied as a function: what it reads, its parameters, and the module that computes the same.

    Attributes:
        source: The tensor that the layer reads.
        weight: The node that reads the weight.
        bias: The node that reads the bias, None without one.
        module: A module without parameters yet.
        transposed: Whether the weight stands as (inputs, outputs).
        result: The node whose value the layer computes.
    """

    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    module: nn.Module
    result: fx.Node
    transposed: bool = False


def use_layer_modules(graph_module: fx.GraphModule) -> None:
    """Replace functional convolutions and linears, and products with a weight, whose weight is a parameter.

    Functions know no quantizer; as a module the weight is trained and quantized like any other. A module whose only
    parameters are such a weight and its bias gives the layer its path, and the layer keeps the parameters' names.

    Args:
        graph_module: Traced graph with known shapes, out of place.
    """
    graph = graph_module.graph
    transposed: dict[nn.Parameter, nn.Parameter] = {}
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    for node in list(graph.nodes):
        call = _convolution(graph_module, node) or _linear(graph_module, node) or _product(graph_module, node)
        if call is None:
            continue
        _give_parameters(graph_module, call, transposed)
        path = _path(graph_module, call, called)
        called.add(path)
        with graph.inserting_before(call.result):
            layer = graph.create_node("call_module", path, (call.source,), name=call.result.name)
        layer.meta = dict(call.result.meta)
        call.result.replace_all_uses_with(layer)
        graph.erase_node(call.result)
        if call.result is not node:
            graph.erase_node(node)
        for read in (call.weight, call.bias):
            if read is not None:
                _forget(graph_module, read, called)


def _convolution(graph_module: fx.GraphModule, node: fx.Node) -> _Call | None:
    """A functional convolution; None for every other node."""
    kind = _CONVOLUTIONS.get(node.target) if callable(node.target) else None
    if node.op != "call_function" or kind is None:
        return None
    transposed = ELASTIC_MODULES[kind] is OpKind.CONV_TRANSPOSE
    names = _TRANSPOSED_OPTIONS if transposed else _CONVOLUTION_OPTIONS
    given: dict[str, Any] = {
        **_DEFAULTS,
        **dict(zip(("input", "weight", "bias", *names), node.args, strict=False)),
        **node.kwargs,
    }
    options = {name: given[name] for name in names}
    shape = _parameter_shape(graph_module, given["weight"], given["bias"])
    if shape is None or not isinstance(given["input"], fx.Node) or not _are_constant(options):
        return None
    size, groups = tuple(shape[2:]), options.pop("groups")
    options = {name: _all_axes(value, len(size)) for name, value in options.items()}
    channels = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
    module = kind(*channels, size, groups=groups, bias=given["bias"] is not None, device="meta", **options)
    return _Call(given["input"], given["weight"], given["bias"], module, node)


def _linear(graph_module: fx.GraphModule, node: fx.Node) -> _Call | None:
    """A functional linear; None for every other node."""
    if node.op != "call_function" or node.target is not F.linear:
        return None
    given: dict[str, Any] = {
        "bias": None,
        **dict(zip(("input", "weight", "bias"), node.args, strict=False)),
        **node.kwargs,
    }
    shape = _parameter_shape(graph_module, given["weight"], given["bias"])
    if shape is None or len(shape) != 2 or not isinstance(given["input"], fx.Node):
        return None
    module = nn.Linear(shape[1], shape[0], bias=given["bias"] is not None, device="meta")
    return _Call(given["input"], given["weight"], given["bias"], module, node)


def _product(graph_module: fx.GraphModule, node: fx.Node) -> _Call | None:
    """A product with a weight of shape (inputs, outputs), and the bias added to it; None for every other node."""
    bias: Any = None
    source: Any
    weight: Any
    if node.target is torch.addmm and len(node.args) == 3 and not node.kwargs:
        bias, source, weight = node.args
    elif node.target in _MATMULS and len(node.args) == 2 and not node.kwargs:
        source, weight = node.args
    else:
        return None
    shape = _parameter_shape(graph_module, weight, bias)
    if shape is None or len(shape) != 2 or not isinstance(source, fx.Node):
        return None
    if len(weight.users) > 1 or source.op == "get_attr" or len(tensor_shape(source) or ()) < 2:
        return None
    if not _only_multiplies(graph_module, weight):
        return None
    result = node
    if bias is None:
        added = _only_addition(graph_module, node, shape[1])
        if added is not None:
            result, bias = added
    module = nn.Linear(shape[0], shape[1], bias=bias is not None, device="meta")
    return _Call(source, weight, bias, module, result, transposed=True)


def _only_multiplies(graph_module: fx.GraphModule, weight: fx.Node) -> bool:
    """Whether all that reads a weight are products: as a layer's weight it is transposed, and no longer the same."""
    reads = [node for node in graph_module.graph.nodes if node.op == "get_attr" and node.target == weight.target]
    owner = str(weight.target).rpartition(".")[0]
    called = {str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"}
    products = (*_MATMULS, torch.addmm)
    return owner not in called and all(
        user.target in products and user.args[-1] is read for read in reads for user in read.users
    )


def _only_addition(graph_module: fx.GraphModule, node: fx.Node, outputs: int) -> tuple[fx.Node, fx.Node] | None:
    """The addition of a vector parameter that is the only reader of a node, and the node that reads the vector."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    if reader is None or reader.target not in _ADDITIONS or len(reader.args) != 2 or reader.kwargs:
        return None
    other = reader.args[1] if reader.args[0] is node else reader.args[0]
    if other is node or not isinstance(other, fx.Node) or other.op != "get_attr":
        return None
    vector = _attribute(graph_module, other)
    return (reader, other) if isinstance(vector, nn.Parameter) and tuple(vector.shape) == (outputs,) else None


def _give_parameters(graph_module: fx.GraphModule, call: _Call, transposed: dict[nn.Parameter, nn.Parameter]) -> None:
    """Register the parameters of a call with its module; a weight that is transposed twice stays one."""
    weight = _attribute(graph_module, call.weight)
    assert isinstance(weight, nn.Parameter)
    if call.transposed:
        if weight not in transposed:
            transposed[weight] = nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
        weight = transposed[weight]
    call.module.register_parameter("weight", weight)
    if call.bias is not None:
        bias = _attribute(graph_module, call.bias)
        assert isinstance(bias, nn.Parameter)
        call.module.register_parameter("bias", bias)


def _path(graph_module: fx.GraphModule, call: _Call, called: set[str]) -> str:
    """Put the module into the graph module, at the path of its parameters where nothing else lives there."""
    owner, _, name = str(call.weight.target).rpartition(".")
    expected = {str(call.weight.target)} | ({str(call.bias.target)} if call.bias is not None else set())
    readers = {
        str(node.target)
        for node in graph_module.graph.nodes
        if node.op in ("get_attr", "call_module") and str(node.target).startswith(f"{owner}.")
    }
    names = {name, *([] if call.bias is None else [str(call.bias.target).rpartition(".")[2]])}
    alone = readers == expected and names <= {"weight", "bias"} and not call.transposed
    if owner and alone and owner not in called and all(len(read.users) == 1 for read in _reads(call)):
        graph_module.set_submodule(owner, call.module)
        return owner
    if owner in called:  # another use of a layer
        path = path_of_use(graph_module, owner)
        graph_module.add_submodule(path, call.module)
        return path
    holder = graph_module.get_submodule(owner)
    wanted = name.removesuffix("_weight") if name.endswith("_weight") else f"{name}_layer"
    unique, number = wanted, 1
    while hasattr(holder, unique):
        unique, number = f"{wanted}_{number}", number + 1
    holder.add_module(unique, call.module)
    return f"{owner}.{unique}" if owner else unique


def _reads(call: _Call) -> list[fx.Node]:
    """The nodes that read the parameters of a call."""
    return [read for read in (call.weight, call.bias) if read is not None]


def _forget(graph_module: fx.GraphModule, read: fx.Node, called: set[str]) -> None:
    """Remove the parameter that only replaced calls have read; the layer holds it now."""
    if read.users or read not in read.graph.nodes:
        return
    owner, _, name = str(read.target).rpartition(".")
    read.graph.erase_node(read)
    others = (node for node in graph_module.graph.nodes if node.op == "get_attr")
    if owner not in called and all(str(node.target) != str(read.target) for node in others):
        graph_module.get_submodule(owner)._parameters.pop(name, None)


def _parameter_shape(graph_module: fx.GraphModule, weight: Any, bias: Any) -> tuple[int, ...] | None:
    """Shape of the weight if weight and bias are parameters of the model, else None."""
    for node in (weight, bias):
        if node is None and node is not weight:
            continue
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        if not isinstance(_attribute(graph_module, node), nn.Parameter):
            return None
    value = _attribute(graph_module, weight)
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _attribute(graph_module: fx.GraphModule, node: fx.Node) -> Any:
    """The value that a ``get_attr`` node reads."""
    owner, _, name = str(node.target).rpartition(".")
    return getattr(graph_module.get_submodule(owner), name)


def _are_constant(options: Mapping[str, Any]) -> bool:
    """Whether all options of a convolution are numbers or the name of a padding."""
    return all(
        isinstance(value, int | str)
        or (isinstance(value, list | tuple) and all(isinstance(entry, int) for entry in value))
        for value in options.values()
    )


def _all_axes(value: Any, axes: int) -> Any:
    """A stride, padding or dilation for every axis."""
    if isinstance(value, str):
        return value
    entries = tuple(value) if isinstance(value, list | tuple) else (value,)
    return entries * axes if len(entries) == 1 else entries
