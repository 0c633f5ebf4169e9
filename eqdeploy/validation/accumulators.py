"""How large the integer sums of each layer can become, whatever the image."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding
from eqdeploy.validation.reference.graph import Graph, Operation
from eqdeploy.validation.reference.kernels import LINEAR
from eqdeploy.validation.reference.sums import linear_operator
from eqdeploy.validation.reference.values import Quantized

#: Largest number that a 32-bit accumulator holds.
INT32_LIMIT = int(np.iinfo(np.int32).max)


def accumulator_bounds(graph: Graph) -> dict[str, int]:
    """Largest magnitude that each integer sum can reach.

    For every output channel: Σ |q_w − z_w| · max |q_x − z_x| + |b|. No order of additions exceeds it.

    Args:
        graph: The network.

    Returns:
        Bounds by node name, for all operations that multiply codes.
    """
    bounds = {}
    for operation in graph.operations:
        if operation.op_type not in LINEAR:
            continue
        data, weight = operation.inputs[:2]
        if not graph.reads_codes(operation, data):
            continue
        reach = largest_step(graph.encodings[data])
        if weight in graph.model.parameters:
            bounds[operation.name] = _weight_bound(graph, operation, reach)
        elif graph.reads_codes(operation, weight):
            terms = _terms(graph, operation, weight)
            if terms is not None:
                bounds[operation.name] = terms * reach * largest_step(graph.encodings[weight])
    return bounds


def largest_step(encoding: Encoding) -> int:
    """Largest distance of a code from the zero-point."""
    zero_point = encoding.zero_point.astype(np.int64)
    return int(np.maximum(encoding.q_max - zero_point, zero_point - encoding.q_min).max())


def _weight_bound(graph: Graph, operation: Operation, reach: int) -> int:
    """Bound of a layer with an integer weight, bias included."""
    parameters = graph.model.parameters
    parameter = parameters[operation.inputs[1]]
    sums = _channel_sums(operation, np.abs(Quantized(parameter.codes, parameter.encoding).steps.astype(np.int64)))
    totals = sums * reach
    bias = parameters.get(operation.inputs[2]) if len(operation.inputs) > 2 else None
    if bias is not None:
        magnitudes = np.abs(Quantized(bias.codes, bias.encoding).steps.astype(np.int64)).reshape(-1)
        totals = totals + magnitudes if magnitudes.size in (1, totals.size) else totals + magnitudes.max(initial=0)
    return int(totals.max(initial=0))


def _channel_sums(operation: Operation, magnitudes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the magnitudes that one output channel adds up."""
    if operation.op_type == "ConvTranspose":
        groups = int(operation.attribute("group", 1))
        grouped = magnitudes.reshape(groups, magnitudes.shape[0] // groups, magnitudes.shape[1], -1)
        sums: NDArray[np.int64] = grouped.sum(axis=(1, 3))
    else:
        axis = linear_operator(operation).weight_axis(magnitudes.ndim)
        sums = magnitudes.sum(axis=tuple(index for index in range(magnitudes.ndim) if index != axis))
    return sums.reshape(-1)


def _terms(graph: Graph, operation: Operation, weight: str) -> int | None:
    """Length of the axis that a product of two activations sums over; None if the graph does not tell."""
    infos: list[onnx.ValueInfoProto] = [*graph.model.graph.graph.value_info, *graph.model.graph.graph.input]
    shape = next((info.type.tensor_type.shape for info in infos if info.name == weight), None)
    if shape is None or len(shape.dim) < 2:
        return None
    size = int(shape.dim[-1 if operation.attribute("transB", 0) else -2].dim_value)
    return size or None
