"""Consistency of a quantized model, checked before any format is written."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from eqdeploy.errors import ValidationError
from eqdeploy.exporters.float_graph import all_values, constant, expected_bias_scales, reads_quantized
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel, QuantizedParameter

#: Smallest normal float32. Below it a product with a code loses bits, and many devices flush to zero.
SMALLEST_SCALE = np.finfo(np.float32).tiny


def check_model(model: QuantizedModel, graph: ir.Graph) -> None:
    """Check that names, shapes, ranges and scales of a model fit together.

    Args:
        model: The model.
        graph: Its float graph.

    Raises:
        ValidationError: Names the first tensor or node that is wrong.
    """
    _check_names(graph)
    values = all_values(graph)
    for name, tensor in model.activations.items():
        if tensor.name != name:
            raise ValidationError(f"is listed under the name {name!r}", where=tensor.name)
        _check_activation(name, values.get(name), tensor.encoding, tensor.float_readers)
    for name, parameter in model.parameters.items():
        if parameter.name != name:
            raise ValidationError(f"is listed under the name {name!r}", where=parameter.name)
        value = graph.initializers.get(name)
        if value is None or value.const_value is None or value in graph.inputs or value.is_graph_output():
            raise ValidationError("is not a constant initializer of the graph", where=name)
        shape = value.const_value.shape.numpy()
        if parameter.codes.shape != shape or parameter.codes.dtype != np.int32:
            raise ValidationError(
                f"codes are {parameter.codes.dtype} {parameter.codes.shape}, the initializer needs int32 {shape}",
                where=name,
            )
        check_encoding(name, parameter.encoding, shape)
        check_codes(name, parameter)
    _check_bias_scales(model, graph)


def check_encoding(name: str, encoding: Encoding, shape: tuple[int | None, ...] | None) -> None:
    """Check one encoding against the shape of its tensor.

    Args:
        name: Tensor name for messages.
        encoding: Its encoding.
        shape: Sizes of the tensor, None for each that is not static, or None if the rank is unknown.

    Raises:
        ValidationError: If a scale is denormal or the axis does not fit.
    """
    if float(encoding.scale.min()) < SMALLEST_SCALE:
        raise ValidationError(
            f"scale {float(encoding.scale.min())!r} is denormal in float32",
            where=name,
            hint="a dead channel needs a scale of ordinary size",
        )
    if encoding.axis is None or shape is None:
        return
    if not 0 <= encoding.axis < len(shape):
        raise ValidationError(f"axis {encoding.axis} does not exist in a tensor of rank {len(shape)}", where=name)
    if shape[encoding.axis] not in (None, encoding.scale.size):
        raise ValidationError(
            f"{encoding.scale.size} scales for {shape[encoding.axis]} channels on axis {encoding.axis}", where=name
        )


def check_codes(name: str, parameter: QuantizedParameter) -> None:
    """Check that integer codes lie in their range and that their real values are finite in float32.

    Raises:
        ValidationError: If one does not.
    """
    codes, encoding = parameter.codes, parameter.encoding
    if codes.size == 0:
        return
    first, last = int(codes.min()), int(codes.max())
    if not encoding.q_min <= first <= last <= encoding.q_max:
        raise ValidationError(
            f"codes from {first} to {last} leave the range [{encoding.q_min}, {encoding.q_max}]", where=name
        )
    steps = max(last - int(encoding.zero_point.min()), int(encoding.zero_point.max()) - first)
    if steps * float(encoding.scale.max()) > float(np.finfo(np.float32).max):
        raise ValidationError("real values exceed float32", where=name)


def _check_names(graph: ir.Graph) -> None:
    """Every node and every value has a name of its own: encodings and float readers refer to it."""
    outputs = [value for node in graph for value in node.outputs if value.name]
    owners = dict.fromkeys((*graph.inputs, *graph.initializers.values(), *outputs))
    values = Counter(str(value.name) for value in owners)
    for value, count in values.items():
        if count > 1:
            raise ValidationError(f"{count} tensors share this name", where=value)
    counts = Counter(node.name for node in graph)
    for node in graph:
        if not node.name:
            raise ValidationError(f"a {node.op_type} node has no name", where=f"output {node.outputs[0].name}")
        if counts[node.name] > 1:
            raise ValidationError(f"{counts[node.name]} nodes share this name", where=node.name)


def _check_activation(name: str, value: ir.Value | None, encoding: Encoding, float_readers: frozenset[str]) -> None:
    """Check that an encoded activation exists, is read, and has an encoding that Q/DQ nodes can hold."""
    if value is None or constant(value) is not None:
        raise ValidationError("carries an encoding but is no tensor that the graph computes", where=name)
    if value.is_graph_input() and value.is_graph_output():
        raise ValidationError("is input and output of the network at once", where=name)
    if value.dtype is not None and value.dtype != ir.DataType.FLOAT:
        raise ValidationError(f"carries an encoding but is {value.dtype}, not float32", where=name)
    if encoding.bits > 8:
        raise ValidationError(f"activations have at most 8 bits, got {encoding.bits}", where=name)
    if not value.is_graph_output() and not any(reads_quantized(use.node, float_readers) for use in value.uses()):
        raise ValidationError("carries an encoding that nobody reads", where=name)
    shape = None if value.shape is None else tuple(size if isinstance(size, int) else None for size in value.shape)
    check_encoding(name, encoding, shape)


def _check_bias_scales(model: QuantizedModel, graph: ir.Graph) -> None:
    """An integer kernel adds bias codes to products of codes, so the bias must count in their unit."""
    encodings = {name: tensor.encoding for name, tensor in model.activations.items()}
    parameters = {name: parameter.encoding for name, parameter in model.parameters.items()}
    for name, parameter in model.parameters.items():
        if parameter.encoding.bits <= 8:
            continue
        if bool(np.any(parameter.encoding.zero_point)):
            raise ValidationError("an integer bias has zero-point 0", where=name)
        scale = parameter.encoding.scale
        for expected in expected_bias_scales(graph.initializers[name], encodings, parameters):
            fits = expected.size in (1, scale.size) or scale.size == 1
            if not fits or not bool(np.all(expected == scale)):
                raise ValidationError("the scale of this bias is not input scale times weight scale", where=name)
