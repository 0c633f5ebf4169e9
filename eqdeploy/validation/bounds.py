"""How far the causes that explain a differing code may move it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedParameter
from eqdeploy.validation.reference.graph import Graph, Operation
from eqdeploy.validation.reference.kernels import LINEAR

#: Two neighbours are what rounding chooses from: a tie, or a number that float32 may give on either side of it.
ROUNDING_STEPS = 1

#: Operations that never move their result further than their input was moved.
_NON_EXPANSIVE = frozenset(
    {
        *(
            "Relu",
            "Clip",
            "Sigmoid",
            "HardSigmoid",
            "Tanh",
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "Add",
            "Sub",
        ),
        *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Concat", "Identity"),
    }
)

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, eq=False)
class RoundedBias:
    """A float bias that ONNX Runtime rounds to int32 (``WeightBiasQuantization``).

    Attributes:
        layer: Name of the layer.
        parameter: The bias as the runtime holds it: int32(round_half_to_even(b / (s_x · s_w))) in float32, saturated.
        saturated: Channels whose bias does not fit into int32.
        error: Largest distance of a bias that fits from its rounded value, half a step of the grid s_x · s_w.
    """

    layer: str
    parameter: QuantizedParameter
    saturated: tuple[int, ...]
    error: float


def rounded_biases(graph: Graph) -> dict[str, RoundedBias]:
    """Float biases that ONNX Runtime rounds when it optimizes, by initializer name.

    Args:
        graph: The network.
    """
    arrays = {tensor.name: tensor for tensor in graph.model.graph.graph.initializer}
    rounded: dict[str, RoundedBias] = {}
    for operation in graph.operations:
        if operation.op_type not in LINEAR - {"MatMul"} or len(operation.inputs) < 3:
            continue
        data, weight, bias = operation.inputs[:3]
        parameter = graph.model.parameters.get(weight)
        if bias not in graph.constants or parameter is None or not graph.reads_codes(operation, data):
            continue
        scale = np.asarray(graph.encodings[data].scale * parameter.encoding.scale, np.float32)
        real = numpy_helper.to_array(arrays[bias]).astype(np.float32)
        if scale.ndim and scale.size != real.size:
            continue
        steps = np.rint(real / scale).astype(np.float64)
        codes = np.clip(steps, _INT32.min, _INT32.max).astype(np.int64).astype(np.int32)
        outside = (steps < _INT32.min) | (steps > _INT32.max)
        zero_point = np.zeros(scale.shape, np.int32)
        encoding = Encoding(scale, zero_point, int(_INT32.min), int(_INT32.max), 32, True, 0 if scale.ndim else None)
        rounded[bias] = RoundedBias(
            layer=operation.name,
            parameter=QuantizedParameter(bias, codes, encoding),
            saturated=tuple(int(channel) for channel in np.flatnonzero(outside)),
            error=float(scale.max()) / 2,
        )
    return rounded


def bias_rounding_steps(graph: Graph, name: str, biases: Mapping[str, RoundedBias]) -> int | None:
    """Largest number of codes by which rounding the biases before a tensor may move it.

    A bias that is off by at most s_x·s_w / 2 moves a result by as much, where no operation after the layer expands
    it; two numbers that are d steps apart round to codes that are at most ⌊d⌋ + 1 apart.

    Args:
        graph: The network.
        name: An encoded tensor.
        biases: What the runtime rounds.

    Returns:
        None where an operation after the layer may expand a difference.
    """
    region = graph.region(name)
    error = sum(biases[bias].error for operation in region for bias in operation.inputs if bias in biases)
    if not all(operation.op_type in LINEAR | _NON_EXPANSIVE for operation in region):
        return None
    if any(_is_linear_after_linear(operation, region) for operation in region):
        return None
    # The little more is what float32 adds to a distance.
    return math.floor(error / float(graph.encodings[name].scale) * (1 + 1e-3) + 1e-3) + 1


def saturated_layer(graph: Graph, name: str, biases: Mapping[str, RoundedBias]) -> str | None:
    """Layer and channels before a tensor whose bias the runtime saturates, None if there is none."""
    for operation in graph.region(name):
        for bias in operation.inputs:
            if bias in biases and biases[bias].saturated:
                channels = biases[bias].saturated
                shown = ", ".join(map(str, channels[:4])) + (", …" if len(channels) > 4 else "")
                return f"{biases[bias].layer} (channels {shown})"
    return None


def _is_linear_after_linear(operation: Operation, region: tuple[Operation, ...]) -> bool:
    """Whether a layer reads what another one in the same region computed."""
    if operation.op_type not in LINEAR:
        return False
    computed = {output for other in region for output in other.outputs}
    return bool(computed.intersection(operation.inputs))
