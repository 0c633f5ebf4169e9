"""Kernels of ONNX Runtime that do not compute what their operation means, so that their results can be recognized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding
from eqdeploy.validation.reference.graph import Graph

#: Powers of e that QLinearSoftmax keeps free above the sum of its table entries.
_RESERVE = 5.0


def table_softmax_codes(graph: Graph, name: str, observed: Mapping[str, NDArray[Any]]) -> NDArray[np.int32] | None:
    """Codes of a Softmax as ``QLinearSoftmax`` computes them.

    The kernel multiplies by ``floor(1 / s_y)`` where ``1 / s_y`` is meant, which is right only if that is a whole
    number in float32: 1/256 is safe, 1/255 is not.

    Args:
        graph: The network.
        name: An encoded tensor.
        observed: Codes by tensor name.

    Returns:
        None unless the tensor is the Softmax of an encoded tensor.
    """
    operation = graph.producers.get(name)
    if operation is None or operation.op_type != "Softmax" or not graph.reads_codes(operation, operation.inputs[0]):
        return None
    data, own = observed[operation.inputs[0]], graph.encodings[operation.inputs[0]]
    axis = int(operation.attribute("axis", -1))
    return np.moveaxis(_softmax(np.moveaxis(data, axis, -1), own, graph.encodings[name]), -1, axis)


def _softmax(codes: NDArray[Any], data: Encoding, output: Encoding) -> NDArray[np.int32]:
    """QLinearSoftmax over the last axis."""
    length = codes.shape[-1]
    scale = float(data.scale)
    limit = float(np.finfo(np.float32).max) / length
    shift = max(0.0, float(np.log(limit)) - _RESERVE) / scale
    table = np.exp((np.arange(256) - 255 + shift) * scale).astype(np.float32)
    steps = codes.astype(np.int32) - codes.max(axis=-1, keepdims=True)
    entries = table[255 + steps]
    total = np.zeros(entries.shape[:-1], np.float32)
    for index in range(length):
        total = total + entries[..., index]
    factor = np.floor(np.float32(1) / output.scale).astype(np.float32)
    rounded = np.rint(entries * factor / total[..., None]) + np.float32(output.zero_point)
    result: NDArray[np.int32] = np.clip(rounded, output.q_min, output.q_max).astype(np.int32)
    return result
