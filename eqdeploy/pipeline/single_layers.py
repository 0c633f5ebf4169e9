"""Cut a frozen network into its layers, each a model of its own as an exporter writes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import onnx
import onnx_ir as ir
from onnx import helper, shape_inference

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.exporters.qdq_graph import CLIP, DEQUANTIZE, QUANTIZE, build_qdq
from eqdeploy.network import NetworkDescription
from eqdeploy.plan import Coverage
from eqdeploy.quantized_model import QuantizedModel, operation_of

_MULTIPLYING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def single_layers(model: QuantizedModel, network: NetworkDescription, opset: int) -> Iterator[tuple[str, bytes]]:
    """Each layer with what is fused into it, from the integers that it reads to the integers that it writes.

    The Q in front of a layer and the DQ behind it belong to its neighbours: a network has one of each between two
    layers, and runtimes that compute with integers have none. A layer whose output carries no encoding writes floats.

    Args:
        model: The frozen network.
        network: Its description.
        opset: ONNX opset of the result.

    Yields:
        Name of a layer and a QDQ model with a symbolic batch, in the order of ``network.layers``.

    Raises:
        UnsupportedOperationError: If a layer's weight is read by something else than one product.
    """
    graph = shape_inference.infer_shapes(model.graph, strict_mode=True, data_prop=True).graph
    for layer in network.layers:
        single = _cut_out(model, graph, f"{layer.name}.weight", layer.name)
        proto = ir.to_proto(build_qdq(single, opset).model)
        yield layer.name, _between_integers(proto).SerializeToString(deterministic=True)


def _cut_out(model: QuantizedModel, graph: onnx.GraphProto, weight: str, layer: str) -> QuantizedModel:
    """The part of a network that computes one layer."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = [node for node in graph.node if weight in node.input]
    while len(readers) == 1 and readers[0].op_type not in _MULTIPLYING:  # a weight that is transposed first
        readers = [node for node in graph.node if readers[0].output[0] in node.input]
    if len(readers) != 1:
        raise UnsupportedOperationError("its weight is not read by exactly one operation", where=layer)
    own = operation_of(readers[0].name)
    nodes = [node for node in graph.node if operation_of(node.name) == own]
    made = {output for node in nodes for output in node.output}
    result = nodes[-1].output[0]
    while result not in model.activations:
        following = [node for node in graph.node if result in node.input]
        inputs = {name for node in following for name in node.input if name} - made - set(constants)
        if len(following) != 1 or inputs or len(following[0].output) != 1:
            break
        nodes.append(following[0])
        result = following[0].output[0]
        made.add(result)
    read = {name for node in nodes for name in node.input if name}
    sources = sorted(read - made - set(constants))
    values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            graph.name or "layer",
            [values[name] for name in sources],
            [values[result]],
            [tensor for name, tensor in constants.items() if name in read],
        ),
        opset_imports=list(model.graph.opset_import),
        ir_version=model.graph.ir_version,
    )
    operations = {operation_of(node.name) for node in nodes}
    kept = [name for name in model.activations if name in (*sources, result)]
    return QuantizedModel(
        graph=proto,
        activations={
            name: replace(tensor, float_readers=tensor.float_readers & operations)
            for name, tensor in model.activations.items()
            if name in kept
        },
        parameters={name: parameter for name, parameter in model.parameters.items() if name in read},
        coverage=dict.fromkeys(kept, Coverage.QUANTIZED),
        reasons=dict.fromkeys(kept, "single layer"),
    )


def _between_integers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take the first Q, its Clip and the last DQ away."""
    graph = proto.graph
    nodes = {node.name: node for node in graph.node}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    removed: list[str] = []
    for value in graph.input:
        quantize, dequantize = nodes.get(value.name + QUANTIZE), nodes.get(value.name + DEQUANTIZE)
        if quantize is None or dequantize is None or _reads(graph, value.name) != {quantize.name}:
            continue  # some operation reads the float value
        removed += [quantize.name, value.name + CLIP]
        value.type.tensor_type.elem_type = types[quantize.input[2]]
        dequantize.input[0] = value.name
    for value in graph.output:
        dequantize = nodes.get(value.name + DEQUANTIZE)
        if dequantize is None or dequantize.output[0] != value.name:
            continue
        removed.append(dequantize.name)
        codes = dequantize.input[0]
        value.type.tensor_type.elem_type = types[dequantize.input[2]]
        value.name = codes
    kept = [node for node in graph.node if node.name not in removed]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]  # types have changed
    _drop_unread(graph)
    return proto


def _reads(graph: onnx.GraphProto, name: str) -> Collection[str]:
    """Names of the nodes that read a value."""
    return {node.name for node in graph.node if name in node.input}


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove constants that no node reads."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
