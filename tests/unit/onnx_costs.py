"""Costs of a subnet recomputed from its QDQ file alone: nodes, shapes, and the widths in the metadata."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from eqdeploy.search.costs import Metric

#: Operations that move values without changing them.
_MOVES = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"})


@dataclass(frozen=True)
class _Layer:
    """One node with a quantized weight."""

    weights: int
    weight_bits: int
    source: str
    source_elements: int
    source_bits: int
    bias_bytes: int
    macs: int


def costs_of_file(path: Path) -> dict[Metric, float]:
    """Recompute everything but the latency.

    Args:
        path: A ``model.onnx`` with one input whose first axis is the batch.
    """
    layers = _layers(onnx.load(path))
    inner = layers[1:-1]
    edges = {layer.source for layer in (layers[0], layers[-1])}
    sources = {layer.source: layer for layer in inner if layer.source not in edges}.values()
    return {
        Metric.AVG_WEIGHT_BITS: _mean([(layer.weight_bits, layer.weights) for layer in inner]),
        Metric.AVG_ACTIVATION_BITS: _mean([(layer.source_bits, layer.source_elements) for layer in sources]),
        Metric.MODEL_BYTES: sum(
            math.ceil(layer.weights * layer.weight_bits / 8) + layer.bias_bytes for layer in layers
        ),
        Metric.BITOPS: sum(layer.macs * layer.weight_bits * layer.source_bits for layer in layers),
    }


def _layers(model: onnx.ModelProto) -> list[_Layer]:
    """Nodes with a quantized weight in the order of the file."""
    (entry,) = [prop.value for prop in model.metadata_props if prop.key == "eqdeploy.encodings"]
    facts = json.loads(entry)
    for graph_input in model.graph.input:
        graph_input.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    layers = []
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        weight = _stored(node.input[1], makers)
        if weight not in constants:
            continue  # a product of two activations
        codes, fact = constants[weight], facts["parameters"][weight]
        assert fact["q_min"] <= int(codes.min()) <= int(codes.max()) <= fact["q_max"]
        assert fact["q_max"] - fact["q_min"] < 2 ** fact["bits"]
        source = node.input[0]
        while makers[source].op_type in _MOVES:
            source = makers[source].input[0]
        name = makers[source].name.removesuffix("/dequantize")
        output = math.prod(shapes[node.output[0]][1:])
        if node.op_type == "ConvTranspose":
            macs = math.prod(shapes[node.input[0]][2:]) * codes.size
        elif node.op_type == "Conv":
            macs = output * codes.size // codes.shape[0]
        else:
            macs = math.prod(shapes[node.output[0]][:-1]) * codes.size
        layers.append(
            _Layer(
                weights=codes.size,
                weight_bits=fact["bits"],
                source=name,
                source_elements=math.prod(shapes[source]),
                source_bits=_activation_bits(name, facts, makers, constants),
                bias_bytes=4 * _bias_values(node, graph, makers, constants),
                macs=macs,
            )
        )
    return layers


def _stored(value: str, makers: dict[str, onnx.NodeProto]) -> str:
    """Where a value comes from that is dequantized and moved at most."""
    while value in makers and makers[value].op_type in (*_MOVES, "DequantizeLinear"):
        value = makers[value].input[0]
    return value


def _activation_bits(
    name: str,
    facts: dict[str, dict[str, dict[str, int]]],
    makers: dict[str, onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
) -> int:
    """The width in the metadata, which must be that of the integer Clip, or of the container without one."""
    fact = facts["activations"][name]
    (dequantize,) = [node for node in makers.values() if node.name == f"{name}/dequantize"]
    codes = makers[dequantize.input[0]]
    if codes.op_type == "Clip":
        low, high = (int(constants[bound]) for bound in codes.input[1:])
    else:
        assert codes.op_type == "QuantizeLinear"
        low, high = fact["q_min"], fact["q_max"]
    assert (low, high) == (fact["q_min"], fact["q_max"])
    assert high - low < 2 ** fact["bits"]
    return fact["bits"]


def _bias_values(
    node: onnx.NodeProto, graph: onnx.GraphProto, makers: dict[str, onnx.NodeProto], constants: dict[str, NDArray[Any]]
) -> int:
    """Number of biases; a matrix product has them in an addition behind it."""
    if len(node.input) > 2:
        return int(constants[_stored(node.input[2], makers)].size)
    if node.op_type != "MatMul":
        return 0
    for reader in graph.node:
        if reader.op_type == "Add" and node.output[0] in reader.input:
            found = [_stored(value, makers) for value in reader.input if value != node.output[0]]
            if found[0] in constants and found[0].endswith(".bias"):
                return int(constants[found[0]].size)
    return 0


def _mean(rows: list[tuple[int, int]]) -> float:
    """Mean of the first numbers weighted by the second ones, 0 for none."""
    total = sum(count for _, count in rows)
    return sum(bits * count for bits, count in rows) / total if total else 0.0
