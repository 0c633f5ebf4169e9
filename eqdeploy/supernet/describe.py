"""Read a traced graph into a :class:`~eqdeploy.network.NetworkDescription`."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.network import (
    BOUND_PRESERVING_KINDS,
    LAYER_KINDS,
    BatchNormTraining,
    ElasticSpace,
    LayerInfo,
    NetworkDescription,
    OpKind,
    TensorInfo,
)
from eqdeploy.supernet.layers import channel_axis
from eqdeploy.supernet.operations import Operation, adds_zeros, classify, keeps_bounds, module_of, vanishes
from eqdeploy.supernet.shapes import holds_tensor, tensor_dtype, tensor_shape
from eqdeploy.supernet.shared_layers import float_parameters, weight_owners


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
        UnsupportedOperationError: If a weight is read outside layers, too, or by layers of different kinds, a layer
            does not read a tensor of the graph, a shared weight or BatchNorm is to be trained folded, or there is no
            quantizable layer at all.
    """
    owners = weight_owners(graph_module)
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
    layers = _layers(graph_module, drafts, returned, owners)
    if space.batch_norm is not BatchNormTraining.SEPARATE:
        _refuse_shared_folding(layers)
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


def _layers(
    graph_module: fx.GraphModule, drafts: dict[str, _Draft], returned: set[str], owners: Mapping[str, str]
) -> tuple[LayerInfo, ...]:
    """List the quantizable layers in order of execution."""
    layers: list[LayerInfo] = []
    batch_norms = _foldable_batch_norms(graph_module, drafts, returned, owners)
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
                batch_norm=batch_norms.get(draft.node.name),
                macs=_macs(draft, drafts, tuple(weight.shape)),
                bias=getattr(module, "bias", None) is not None,
                shares_weight_with=None if owners[name] == name else owners[name],
            )
        )
    if not layers:
        raise UnsupportedOperationError(
            "the model has no quantizable layer",
            hint="convolutions, transposed convolutions and Linear are quantized",
        )
    return tuple(layers)


def _foldable_batch_norms(
    graph_module: fx.GraphModule, drafts: dict[str, _Draft], returned: set[str], owners: Mapping[str, str]
) -> dict[str, str]:
    """Paths of the BatchNorms that can be folded, by the tensors that they read.

    One that is called several times is folded into every layer before it, or into none: its parameters are one set.
    """
    calls = Counter(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    elsewhere = float_parameters(graph_module, owners.keys())
    paths = {
        name: path
        for name, draft in drafts.items()
        if name not in returned
        and draft.operation.kind in LAYER_KINDS
        and (path := _foldable_batch_norm(graph_module, draft, drafts, elsewhere)) is not None
    }
    folded = Counter(paths.values())
    return {name: path for name, path in paths.items() if folded[path] == calls[path]}


def _foldable_batch_norm(
    graph_module: fx.GraphModule, draft: _Draft, drafts: dict[str, _Draft], elsewhere: frozenset[int]
) -> str | None:
    """Path of the BatchNorm that is the only reader of a layer's output and keeps statistics.

    Where a module that stays float has the layer's weight, too, there is none: the weight must not change its signs.
    """
    if len(draft.readers) != 1:
        return None
    reader = drafts[draft.readers[0]]
    module, layer = module_of(graph_module, reader.node), module_of(graph_module, draft.node)
    if reader.operation.kind is not OpKind.BATCH_NORM or getattr(module, "running_mean", None) is None:
        return None
    # BatchNorm normalizes axis 1; on sequences (N, L, C) that is not the axis of a Linear's output channels.
    if draft.operation.kind is OpKind.LINEAR and len(tensor_shape(draft.node) or ()) != 2:
        return None
    return None if id(getattr(layer, "weight", None)) in elsewhere else str(reader.node.target)


def _refuse_shared_folding(layers: tuple[LayerInfo, ...]) -> None:
    """Refuse to train shared weights and BatchNorms folded: each use has a grid of its own for its bias.

    Raises:
        UnsupportedOperationError: Naming the first such layer.
    """
    norms = Counter(layer.batch_norm for layer in layers)
    weights = Counter(layer.weight_owner for layer in layers)
    for layer in layers:
        if layer.batch_norm is not None and max(norms[layer.batch_norm], weights[layer.weight_owner]) > 1:
            raise UnsupportedOperationError(
                f"its weight or {layer.batch_norm} is used several times, which cannot be trained folded",
                where=layer.name,
                hint="set space.batch_norm: separate, or give each use its own layer and BatchNorm",
            )


def _macs(draft: _Draft, drafts: dict[str, _Draft], weight_shape: tuple[int, ...]) -> int:
    """Multiply-accumulate operations of a layer for one image."""
    first = next(iter(drafts.values()))  # the network's input
    batch = (tensor_shape(first.node) or (1,))[0]
    # Each output of a layer sums over one filter; each input of a transposed one is spread over one.
    counted = drafts[draft.inputs[0]] if draft.operation.kind is OpKind.CONV_TRANSPOSE else draft
    return math.prod(tensor_shape(counted.node) or ()) // batch * math.prod(weight_shape[1:])
