"""How loud quantization noise may be expected to be at a tensor, from the widths before it.

Two facts of the literature, put together:

* A Gaussian value, quantized uniformly with the step that suits it best, keeps a noise whose power is a known
  fraction of the signal's (J. Max, "Quantizing for minimum distortion", IRE Transactions on Information Theory 6,
  1960, table II).
* Where a layer multiplies noisy inputs by noisy weights, the fractions add up, and they do so from layer to layer
  (D. Lin, S. Talathi, S. Annapureddy, "Fixed point quantization of deep convolutional networks", ICML 2016, sections
  3.2 and 3.3).
"""

from __future__ import annotations

import math

from eqdeploy.validation.reference.graph import Graph, Operation

#: Noise over signal of a Gaussian value quantized uniformly to 1 to 8 bits with the best step.
_GAUSSIAN_NOISE = (0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001041, 0.0003035, 0.00008714)

#: A tensor need not be nearer to float than this many dB, however many bits there are: trained ranges clip on purpose,
#: and training moves the numbers of a subnet away from those of the float network.
SUFFICIENT_SQNR = 15.0

#: How many dB below what its widths lead to expect, or below what is sufficient, a tensor may lie.
MARGIN = 3.0

#: Below 0 dB a tensor says less about the float network's than zeros would.
SMALLEST_FLOOR = 0.0

#: Operations that multiply their first two inputs: relative errors add up.
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "Einsum"})


def rounding_noise(bits: int) -> float:
    """Noise over signal that quantizing to a width adds; widths over 8 bits count as 8.

    >>> round(-decibels(rounding_noise(4)), 1)
    19.4
    """
    return _GAUSSIAN_NOISE[min(bits, len(_GAUSSIAN_NOISE)) - 1]


def decibels(ratio: float) -> float:
    """A ratio of powers in dB; −∞ for 0."""
    return 10.0 * math.log10(ratio) if ratio > 0 else -math.inf


def default_floor(noise: float) -> float:
    """The smallest signal-to-quantization-noise ratio that is accepted by default, in dB.

    Args:
        noise: Noise over signal that is expected, from :func:`expected_noise`.
    """
    return max(min(-decibels(noise), SUFFICIENT_SQNR) - MARGIN, SMALLEST_FLOOR)


def expected_noise(graph: Graph) -> dict[str, float]:
    """Noise over signal to be expected at every encoded tensor, its own rounding included, and at every output.

    Args:
        graph: The network; its encodings say how many bits there are where.
    """
    before: dict[str, float] = dict.fromkeys(graph.input_names, 0.0)
    for operation in graph.operations:
        noise = _of_operation(graph, operation, before)
        before.update(dict.fromkeys(operation.outputs, noise))
    encoded = {name: before[name] + rounding_noise(encoding.bits) for name, encoding in graph.encodings.items()}
    return {**encoded, **{name: before[name] for name in graph.output_names if name not in encoded}}


def _of_operation(graph: Graph, operation: Operation, before: dict[str, float]) -> float:
    """Noise over signal of what one operation returns."""
    inputs = [_of_input(graph, operation, name, before) for name in operation.inputs]
    if operation.op_type in _PRODUCTS:
        return sum(inputs[:2])
    # A sum of independent signals has a mean of their fractions, weighted by their powers: at most the largest.
    return max(inputs, default=0.0)


def _of_input(graph: Graph, operation: Operation, name: str, before: dict[str, float]) -> float:
    """Noise over signal of what an operation reads."""
    parameter = graph.model.parameters.get(name)
    if parameter is not None:
        return rounding_noise(parameter.encoding.bits)
    rounding = rounding_noise(graph.encodings[name].bits) if graph.reads_codes(operation, name) else 0.0
    return before.get(name, 0.0) + rounding
