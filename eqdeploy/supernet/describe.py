"""Read a traced graph into a :class:`~eqdeploy.network.NetworkDescription`."""

from __future__ import annotations

import math
import operator
from collections import Counter
from dataclasses import dataclass, replace

from torch import fx, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.network import (
    BOUND_PRESERVING_KINDS,
    LAYER_KINDS,
    ElasticSpace,
    LayerInfo,
    NetworkDescription,
    OpKind,
    TensorInfo,
)
from eqdeploy.supernet.layers import channel_axis
from eqdeploy.supernet.operations import Operation, adds_zeros, classify, keeps_bounds, module_of, vanishes
from eqdeploy.supernet.shapes import holds_tensor, tensor_dtype, tensor_shape


@dataclass
class _Draft:
    """A tensor while its readers are still being collected."""

    node: fx.Node
    operation: Operation
    inputs: tuple[str, ...]
    bounds: tuple[float, float]
    readers: list[str]
    trained: bool = False


def describe(graph_module: fx.GraphModule, space: ElasticSpace) -> NetworkDescription:
    """List the layers and tensors of a traced, canonical graph.

    Args:
        graph_module: What :func:`eqdeploy.supernet.tracing.trace` returns, without quantizers.
        space: Forms that the network is to be trained for.

    Raises:
        UnsupportedOperationError: If a quantizable layer is called twice, two layers share a weight, a layer
            does not read a tensor of the graph, or there is no quantizable layer at all.
    """
    _refuse_shared_layers(graph_module)
    sources = tensor_sources(graph_module)
    drafts: dict[str, _Draft] = {}
    for node in graph_module.graph.nodes:
        if node.op in ("output", "get_attr") or sources.get(node) != (node.name,) or tensor_shape(node) is None:
            continue
        inputs = _inputs(node, sources)
        operation = _named_by_module(graph_module, node, classify(graph_module, node))
        bounds = _propagate_bounds(graph_module, node, operation, inputs, drafts)
        drafts[node.name] = _Draft(node, operation, inputs, bounds, [])
        for name in inputs:
            drafts[name].readers.append(node.name)
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    returned = set(_inputs(output, sources))
    layers = _layers(graph_module, drafts, returned)
    for layer in layers:
        drafts[layer.input_tensor].trained = True
    return NetworkDescription(
        layers=layers,
        tensors=tuple(_tensor_info(draft, draft.node.name in returned) for draft in drafts.values()),
        space=space,
    )


def tensor_sources(graph_module: fx.GraphModule) -> dict[fx.Node, tuple[str, ...]]:
    """Map each node to the tensors of the description that its value comes from.

    An ordinary tensor comes from itself, a dropped-out one from the tensor before the dropout, a tuple of tensors
    from what it was computed from, a size or a parameter from none.
    """
    sources: dict[fx.Node, tuple[str, ...]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" or not holds_tensor(node):
            sources[node] = ()
        elif node.op == "output":
            continue
        elif node.op == "placeholder" or (tensor_shape(node) is not None and not vanishes(graph_module, node)):
            sources[node] = (node.name,)
        else:
            sources[node] = _inputs(node, sources)
    return sources


def _inputs(node: fx.Node, sources: dict[fx.Node, tuple[str, ...]]) -> tuple[str, ...]:
    """Tensors that a node is computed from, each once, in argument order."""
    names: dict[str, None] = {}
    for argument in node.all_input_nodes:
        names.update(dict.fromkeys(sources.get(argument, ())))
    return tuple(names)


def _propagate_bounds(
    graph_module: fx.GraphModule,
    node: fx.Node,
    operation: Operation,
    inputs: tuple[str, ...],
    drafts: dict[str, _Draft],
) -> tuple[float, float]:
    """Smallest and largest value of a tensor that the graph guarantees."""
    given = [drafts[name].bounds for name in inputs]
    if any(argument.op == "get_attr" for argument in node.all_input_nodes):
        given.append((-math.inf, math.inf))  # parameters are trained: nothing is known of them
    low = min((bounds[0] for bounds in given), default=-math.inf)
    high = max((bounds[1] for bounds in given), default=math.inf)
    if operation.kind in BOUND_PRESERVING_KINDS or keeps_bounds(graph_module, node):
        return (low, high)
    if adds_zeros(graph_module, node):
        return (min(low, 0.0), max(high, 0.0))
    if operation.kind is OpKind.CLIP:
        return (max(operation.bounds[0], min(low, operation.bounds[1])), operation.bounds[1])
    if operation.kind in (OpKind.ADD, OpKind.MUL) and low >= 0.0:
        return (0.0, math.inf)
    if operation.kind is OpKind.RELU:
        return (0.0, max(high, 0.0))
    return operation.bounds


def _tensor_info(draft: _Draft, is_output: bool) -> TensorInfo:
    """Freeze a draft."""
    shape = tensor_shape(draft.node)
    low, high = draft.bounds
    return TensorInfo(
        name=draft.node.name,
        shape=tuple((shape or ())[1:]),
        op=draft.operation.kind,
        operation=draft.operation.text,
        inputs=draft.inputs,
        readers=tuple(draft.readers),
        layer=str(draft.node.target) if draft.operation.kind in LAYER_KINDS else None,
        non_negative=low >= 0.0,
        upper_bound=high if math.isfinite(high) else None,
        trained=draft.trained,
        is_output=is_output,
        integer=_is_integer(draft.node),
    )


def _named_by_module(graph_module: fx.GraphModule, node: fx.Node, operation: Operation) -> Operation:
    """An operation under the name of the module whose result it picks out of several, as of an LSTM."""
    source = node.args[0] if node.target is operator.getitem else None
    while isinstance(source, fx.Node) and source.target is operator.getitem:
        source = source.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_module" or tensor_shape(source) is not None:
        return operation
    return replace(operation, text=classify(graph_module, source).text)


def _is_integer(node: fx.Node) -> bool:
    """Whether a node's tensor holds integers or truth values."""
    dtype = tensor_dtype(node)
    return dtype is not None and not dtype.is_floating_point


def _layers(graph_module: fx.GraphModule, drafts: dict[str, _Draft], returned: set[str]) -> tuple[LayerInfo, ...]:
    """List the quantizable layers in order of execution."""
    layers: list[LayerInfo] = []
    calls = Counter(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    for draft in drafts.values():
        module = module_of(graph_module, draft.node)
        if draft.operation.kind not in LAYER_KINDS or module is None:
            continue
        name = str(draft.node.target)
        if len(draft.inputs) != 1:
            raise UnsupportedOperationError("the layer does not read one tensor of the graph", where=name)
        weight = module.weight
        assert isinstance(weight, nn.Parameter)  # the kinds in LAYER_KINDS all have one
        layers.append(
            LayerInfo(
                name=name,
                op=draft.operation.kind,
                weight_shape=tuple(weight.shape),
                channel_axis=channel_axis(module),
                groups=getattr(module, "groups", 1),
                input_tensor=draft.inputs[0],
                output_tensor=draft.node.name,
                batch_norm=(
                    None if draft.node.name in returned else _foldable_batch_norm(graph_module, draft, drafts, calls)
                ),
                macs=_macs(draft, drafts, tuple(weight.shape)),
                bias=getattr(module, "bias", None) is not None,
            )
        )
    if not layers:
        raise UnsupportedOperationError(
            "the model has no quantizable layer",
            hint="convolutions, transposed convolutions and Linear are quantized",
        )
    return tuple(layers)


def _foldable_batch_norm(
    graph_module: fx.GraphModule, draft: _Draft, drafts: dict[str, _Draft], calls: Counter[str]
) -> str | None:
    """Path of the BatchNorm that is the only reader of a layer's output, serves no other layer and keeps statistics."""
    if len(draft.readers) != 1:
        return None
    reader = drafts[draft.readers[0]]
    module = module_of(graph_module, reader.node)
    path = str(reader.node.target)
    if reader.operation.kind is not OpKind.BATCH_NORM or getattr(module, "running_mean", None) is None:
        return None
    # BatchNorm normalizes axis 1; on sequences (N, L, C) that is not the axis of a Linear's output channels.
    if calls[path] != 1 or (draft.operation.kind is OpKind.LINEAR and len(tensor_shape(draft.node) or ()) != 2):
        return None
    return path


def _macs(draft: _Draft, drafts: dict[str, _Draft], weight_shape: tuple[int, ...]) -> int:
    """Multiply-accumulate operations of a layer for one image."""
    first = next(iter(drafts.values()))  # the network's input
    batch = (tensor_shape(first.node) or (1,))[0]
    # Each output of a layer sums over one filter; each input of a transposed one is spread over one.
    counted = drafts[draft.inputs[0]] if draft.operation.kind is OpKind.CONV_TRANSPOSE else draft
    return math.prod(tensor_shape(counted.node) or ()) // batch * math.prod(weight_shape[1:])


def _refuse_shared_layers(graph_module: fx.GraphModule) -> None:
    """Refuse layers that are called twice and weights that two layers share."""
    seen: dict[str, fx.Node] = {}
    owners: dict[int, str] = {}
    read_directly = {
        str(node.target).rpartition(".")[0]
        for node in graph_module.graph.nodes
        if node.op == "get_attr" and any(holds_tensor(user) for user in node.users)  # its device may be asked for
    }
    for node in graph_module.graph.nodes:
        if classify(graph_module, node).kind not in LAYER_KINDS:
            continue
        path = str(node.target)
        if path in seen:
            raise UnsupportedOperationError(
                f"the layer is called twice ({seen[path].name} and {node.name})",
                where=path,
                hint="give each call its own module",
            )
        seen[path] = node
        if path in read_directly:
            raise UnsupportedOperationError(
                "a parameter of the layer is also read outside it", where=path, hint="clone the parameter"
            )
        for name, parameter in graph_module.get_submodule(path).named_parameters():
            owner = owners.setdefault(id(parameter), path)
            if owner != path:
                raise UnsupportedOperationError(
                    f"the {name} is shared with {owner}", where=path, hint="clone the parameter"
                )
