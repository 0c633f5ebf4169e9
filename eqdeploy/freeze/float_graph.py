"""Export the structure of a network once: a float ONNX graph with BatchNorm folded and stable names.

The weights are filled in later, so that several profiles share one export.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import (
    AddInitializersToInputsPass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)
from onnxscript import optimizer
from torch import fx, nn

from eqdeploy.freeze.agreement import check_agreement, folded_values
from eqdeploy.freeze.capture import capture
from eqdeploy.freeze.constant_shapes import make_shapes_constant
from eqdeploy.freeze.group_norm import split_group_normalization
from eqdeploy.freeze.markers import mark, remove_markers
from eqdeploy.network import NetworkDescription, OpKind
from eqdeploy.quantized_model import constant_name
from eqdeploy.supernet.inputs import positional
from eqdeploy.supernet.layers import ElasticLayer, ElasticLinear
from eqdeploy.supernet.operations import ELASTIC_MODULES, vanishes
from eqdeploy.supernet.shapes import batch_leads
from eqdeploy.supernet.supernet import ACTIVATION_QUANTIZERS, Supernet

IR_VERSION = 10


class FloatGraph:
    """The structure of a network as ONNX, without the numbers of any subnet.

    Args:
        model: Graph whose values are named like the tensors of the network description.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    @property
    def initializer_names(self) -> tuple[str, ...]:
        """Names of all initializers."""
        return tuple(self._model.graph.initializers)

    def filled(self, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
        """Return the graph with new values of initializers, by name; the others keep theirs.

        Raises:
            KeyError: If a name is no initializer.
            ValueError: If a shape or dtype differs.
        """
        with self.holding(values) as model:
            return ir.serde.serialize_model(model)

    @contextmanager
    def holding(self, values: Mapping[str, NDArray[Any]]) -> Iterator[ir.Model]:
        """Open a context in which the graph holds new values of initializers; nothing is copied.

        Raises:
            KeyError: If a name is no initializer.
            ValueError: If a shape or dtype differs.
        """
        initializers = self._model.graph.initializers
        originals = {name: initializers[name].const_value for name in values}
        for name, array in values.items():
            old = originals[name]
            assert old is not None  # every initializer of an exported graph has a value
            if tuple(old.shape) != array.shape or old.dtype.numpy() != array.dtype:
                raise ValueError(f"{name}: {array.dtype}{array.shape} does not fit {old.dtype}{tuple(old.shape)}")
        try:
            for name, array in values.items():
                # Not ascontiguousarray: it would turn a scalar into a vector.
                initializers[name].const_value = ir.Tensor(np.asarray(array, order="C"), name=name)
            yield self._model
        finally:
            for name, value in originals.items():
                initializers[name].const_value = value


def export_float_graph(supernet: Supernet) -> FloatGraph:
    """Export the structure of a supernet's network.

    Every tensor of the network is a value of its own name (tensors inside Conv+BatchNorm do not exist any more),
    each node is named after the tensor that it helps to compute, the batch axis is symbolic.

    Raises:
        UnsupportedOperationError: If torch cannot express an operation in ONNX, or writes it as another function.
    """
    module = _marked_module(supernet)
    example = positional(supernet.graph_module.graph, supernet.example)
    model = capture(module, example)
    parameters = frozenset(module.state_dict())
    _forget_names(model.graph, parameters)
    # As inputs the weights are no constants, so that folding leaves them alone.
    AddInitializersToInputsPass()(model)
    optimizer.fold_constants(model)
    RemoveInitializersFromInputsPass()(model)
    # Only now: rewriting would lose the names of values.
    remove_markers(model.graph)
    _use_global_average_pool(model.graph, supernet.network)
    split_group_normalization(model.graph)
    make_shapes_constant(model.graph)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _drop_zero_biases(model.graph, parameters)
    optimizer.remove_unused_nodes(model)
    _name_nodes(model.graph, supernet.network, parameters)
    _strip(model)
    graph = FloatGraph(model)
    with graph.holding(folded_values(supernet)) as filled:
        check_agreement(supernet, filled)
    return graph


def without_nodes(model: onnx.ModelProto, merged: Mapping[str, str]) -> onnx.ModelProto:
    """Remove nodes that only pass a value on.

    Args:
        model: The graph; changed in place.
        merged: For the output of each node to remove, the value that its readers read instead.

    Returns:
        The same graph.
    """
    if merged:
        kept = [node for node in model.graph.node if not any(name in merged for name in node.output)]
        for node in kept:
            node.input[:] = [merged.get(name, name) for name in node.input]
        values = [value for value in model.graph.value_info if value.name not in merged]
        for field, items in ((model.graph.node, kept), (model.graph.value_info, values)):
            copies = [copy.deepcopy(item) for item in items]
            del field[:]
            field.extend(copies)
    return model


def _marked_module(supernet: Supernet) -> fx.GraphModule:
    """Rewrite the supernet's graph as a plain float network with every tensor marked."""
    source, network = supernet.graph_module, supernet.network
    folded = {layer.batch_norm for layer in network.layers if layer.batch_norm is not None}
    biased = {layer.name for layer in network.layers if layer.batch_norm is not None}
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}
    for node in source.graph.nodes:
        target = str(node.target)
        skipped = node.op == "call_module" and (target in folded or target.startswith(f"{ACTIVATION_QUANTIZERS}."))
        if skipped or vanishes(source, node):
            before = values[node.args[0]]
            # The folded BatchNorm's tensor takes the place of the layer's raw output.
            values[node] = graph.call_function(mark, (before, node.name)) if target in folded else before
            continue
        tensor = network.tensor.get(node.name)
        if tensor is not None and tensor.op is OpKind.RESHAPE:
            values[node] = _reshape(graph, node, tensor.shape, values)
        else:
            values[node] = graph.node_copy(node, lambda argument: values[argument])
        inside_fold = tensor is not None and tensor.layer in biased
        if tensor is not None and not inside_fold:
            values[node] = graph.call_function(mark, (values[node], node.name))
    # Parameters that no module call reaches (scales, tokens) are read by path; the rest are whole modules.
    attributes: dict[str, Any] = {}
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            attributes[target] = _plain(source.get_submodule(target), with_bias=target in biased)
        elif node.op == "get_attr":
            owner, _, name = target.rpartition(".")
            attributes[target] = getattr(source.get_submodule(owner), name)
    module = fx.GraphModule(attributes, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _reshape(graph: fx.Graph, node: fx.Node, shape: tuple[int, ...], values: Mapping[Any, Any]) -> fx.Node:
    """Reshape to constant sizes behind the batch; as the model says where the batch is not the first axis."""
    if batch_leads(node):
        return graph.call_function(torch.reshape, (values[node.args[0]], (-1, *shape)))
    copied = graph.node_copy(node, lambda argument: values[argument])
    if copied.target == "view":  # what made the tensor contiguous has vanished
        copied.target = "reshape"
    return copied


def _plain(module: nn.Module, *, with_bias: bool) -> nn.Module:
    """Torch's own layer for an elastic one, sharing its weight; other modules as they are."""
    if not isinstance(module, ElasticLayer):
        return module
    plain = copy.copy(module)
    plain.__class__ = next(kind for kind in type(module).__mro__ if kind in ELASTIC_MODULES)
    plain._modules = {}
    # Parameters of its own: uses of one weight are different constants until they are known to be equal.
    plain._parameters = {
        name: None if value is None else nn.Parameter(value.detach(), requires_grad=False)
        for name, value in module._parameters.items()
    }
    if with_bias and plain._parameters["bias"] is None:
        channels = module.out_features if isinstance(module, ElasticLinear) else module.out_channels
        plain.bias = nn.Parameter(torch.zeros(channels))
    return plain


def _forget_names(graph: ir.Graph, parameters: Collection[str]) -> None:
    """Rename everything but inputs and parameters, so that no name of torch's is taken for one of the network's."""
    values = [value for node in graph for value in node.outputs]
    values += [value for name, value in graph.initializers.items() if name not in parameters]
    for index, value in enumerate(values):
        value.name = f"/{index}"


def _drop_zero_biases(graph: ir.Graph, parameters: Collection[str]) -> None:
    """Remove the zeros that torch adds to convolutions without bias: runtimes want integer biases or none."""
    for node in graph:
        bias = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 else None
        if bias is None or bias.name in parameters:
            continue
        values = ir.convenience.get_const_tensor(bias)
        if values is not None and not values.numpy().any():
            node.resize_inputs(2)


def _use_global_average_pool(graph: ir.Graph, network: NetworkDescription) -> None:
    """Replace ReduceMean over height and width, which no runtime fuses, by GlobalAveragePool."""
    for node in list(graph):
        tensor = network.tensor.get(node.outputs[0].name or "")
        if node.op_type != "ReduceMean" or tensor is None or tensor.op is not OpKind.GLOBAL_AVERAGE_POOL:
            continue
        old = node.outputs[0]
        pool = ir.node("GlobalAveragePool", [node.inputs[0]])
        graph.insert_before(node, pool)
        new = pool.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.name = None
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _name_nodes(graph: ir.Graph, network: NetworkDescription, parameters: Collection[str]) -> None:
    """Name each node after the tensor it computes, helper nodes and constants after the tensor they help with."""
    owners: dict[ir.Node, str] = {}
    for node in reversed(list(graph)):
        own = next((value.name for value in node.outputs if value.name in network.tensor), None)
        if own is None:
            users = [use.node for value in node.outputs for use in value.uses()]
            own = owners[users[0]] if users else str(node.outputs[0].name)
            owners[node] = own
        else:
            owners[node] = str(own)
    helpers: dict[str, int] = {}
    for node in graph:
        owner = owners[node]
        if any(value.name == owner for value in node.outputs):
            node.name = owner
            continue
        index = helpers.get(owner, 0)
        helpers[owner] = index + 1
        node.name = f"{owner}/{index}"
        for position, value in enumerate(node.outputs):
            value.name = f"{owner}/{index}" if position == 0 else f"{owner}/{index}.{position}"
    for name, constant in list(graph.initializers.items()):
        if name not in parameters:
            use = next(iter(constant.uses()))
            constant.name = constant_name(str(use.node.name), use.idx)


def _strip(model: ir.Model) -> None:
    """Drop what torch notes about its own source files, so that the same network gives the same bytes."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "eqdeploy", None
    model.doc_string = model.graph.doc_string = None
    model.graph.name = "network"
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.functions.clear()
    for domain in [domain for domain in model.opset_imports if domain not in ("",)]:
        del model.opset_imports[domain]
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
