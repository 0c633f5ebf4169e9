"""How far the device's real numbers may be from the subnet's: what freezing rounds, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.origin.layers import DOUBLE_ROUNDING
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedParameter
from eqdeploy.validation.reference.exact import UNIT_ROUNDOFF, Estimate, ExactNumbers, ExactValue, estimate
from eqdeploy.validation.reference.graph import Operation
from eqdeploy.validation.reference.kernels import align_bias, as_float64, bounds_of
from eqdeploy.validation.reference.sums import linear_operator
from eqdeploy.validation.reference.values import Quantized


class FrozenNumbers(ExactNumbers):
    """Exact real arithmetic on the device's numbers, with a bound on their distance from the subnet's.

    Codes are exact; a weight or bias may be off by its bound; float32 constants by half a unit in the last place. Sums
    of products add Σ|x|·bound(w) and nothing for float32 arithmetic, as both sides compute them in float64. All other
    operations carry the bound on as in :class:`ExactNumbers`.

    Args:
        bounds: For integer weights and biases by name, how far an entry may be from the subnet's real number; float64,
            the shape of the parameter.
    """

    def __init__(self, bounds: Mapping[str, NDArray[np.float64]]) -> None:
        super().__init__()
        self._bounds = bounds

    def constant(self, array: NDArray[Any]) -> ExactValue:
        """An initializer without an encoding; rounded to float32 when the graph was written."""
        known = super().constant(array)
        assert isinstance(known, Estimate)
        if not np.issubdtype(known.value.dtype, np.floating):
            return known
        finite = np.where(np.isfinite(known.magnitude), known.magnitude, 0.0)
        return Estimate(known.value, UNIT_ROUNDOFF * finite, known.magnitude)

    def parameter(self, parameter: QuantizedParameter) -> ExactValue:
        """An integer weight or bias."""
        real = Quantized(parameter.codes, parameter.encoding).real()
        bound = self._bounds.get(parameter.name, np.zeros((), np.float64))
        return Estimate(real, bound, np.abs(real))

    def encoded(self, codes: NDArray[np.int32], encoding: Encoding) -> ExactValue:
        """What the readers of an encoded tensor see; torch sees the same."""
        real = Quantized(codes, encoding).real()
        return Estimate(real, np.zeros((), np.float64), np.abs(real))

    def _bound(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Relu and Clip: a bound that is a constant was rounded to float32, too."""
        (result,) = super()._bound(operation, inputs)
        given = [None if value is None else estimate(value).value for value in inputs[1:]]
        size = max((abs(float(bound)) for bound in bounds_of(operation, given) if np.isfinite(bound)), default=0.0)
        return [Estimate(result.value, result.error + UNIT_ROUNDOFF * size, result.magnitude)]

    def _linear(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Multiply and accumulate: Σ(|x|·bound(w) + bound(x)·|w| + bound(x)·bound(w)) and the bound of the bias."""
        data, weight, bias = [*inputs, None][:3]
        assert data is not None
        assert weight is not None
        operator = linear_operator(operation)
        factor = float(operation.attribute("alpha", 1.0))
        left, right = estimate(data), estimate(weight)
        left_size, right_size = np.abs(left.value), np.abs(right.value)
        value = factor * np.asarray(operator(as_float64(left.value), as_float64(right.value)), np.float64)
        magnitude = abs(factor) * np.asarray(operator(left_size, right_size), np.float64)
        error = abs(factor) * np.asarray(operator(left_size + left.error, right_size + right.error)) - magnitude
        if bias is not None:
            shift = float(operation.attribute("beta", 1.0))
            added = estimate(bias)
            value = value + shift * align_bias(operator, as_float64(added.value), value.ndim)
            magnitude = magnitude + abs(shift) * align_bias(operator, np.abs(added.value), value.ndim)
            error = error + abs(shift) * align_bias(
                operator, np.broadcast_to(added.error, added.value.shape), value.ndim
            )
        return [Estimate(value, np.maximum(error, 0.0) + DOUBLE_ROUNDING * magnitude, magnitude)]
