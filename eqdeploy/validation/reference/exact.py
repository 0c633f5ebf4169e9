"""Operations on exact real numbers, together with a bound on what float32 arithmetic makes of them.

A runtime that computes an operation in float32 returns some number near the exact one. The bound says how near it
must be: the standard forward error bounds (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §3.1
and §4.2) with unit roundoff u = 2^-24 and γ_n = n·u / (1 − n·u), valid for any order of summation, with or without
fused multiply-add. Kernels that add integers exactly round only at the end; :class:`ExactIntegerSums` holds them to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedParameter
from eqdeploy.validation.reference.graph import Operation
from eqdeploy.validation.reference.kernels import (
    LINEAR,
    align_bias,
    as_float64,
    bounds_of,
    is_linear_in_codes,
    sigmoid,
    sum_scales,
)
from eqdeploy.validation.reference.moves import MOVES, evaluate, moves_of
from eqdeploy.validation.reference.resize import resize, resize_mode
from eqdeploy.validation.reference.sums import LinearOperator, exact_sums, linear_operator
from eqdeploy.validation.reference.values import Quantized
from eqdeploy.validation.reference.windows import Windows, accumulate

#: Unit roundoff of float32.
UNIT_ROUNDOFF = 2.0**-24

#: Roundings of a kernel that scales an exact integer sum.
_SCALING = 6

#: Largest error of ONNX Runtime's float32 sigmoid, a rational approximation (measured: 1.61e-7).
_SIGMOID_ERROR = 2.5e-7


@dataclass(frozen=True, eq=False)
class Estimate:
    """Exact numbers and how far float32 arithmetic may be from them.

    Attributes:
        value: float64, or any dtype for arguments such as shapes.
        error: float64, broadcastable to ``value``; not negative.
        magnitude: Sum of the magnitudes that were added up last, float64, broadcastable. Kernels that scale
            codes before they subtract zero-points round relative to it.
    """

    value: NDArray[Any]
    error: NDArray[np.float64]
    magnitude: NDArray[np.float64]


ExactValue = Estimate | Quantized
Handler = Callable[[Operation, Sequence[ExactValue | None]], list[Estimate]]


class ExactNumbers:
    """The semantics that explains differences: exact real arithmetic on the codes, with error bounds."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {
            **dict.fromkeys(LINEAR, self._linear),
            **dict.fromkeys(MOVES, self._move),
            "Add": self._add,
            "Sub": self._add,
            "Mul": self._multiply,
            "Relu": self._bound,
            "Clip": self._bound,
            "GlobalAveragePool": self._global_mean,
            "AveragePool": self._window_mean,
            "Sigmoid": self._sigmoid,
            "Concat": self._concatenate,
        }

    def image(self, images: NDArray[np.float32]) -> ExactValue:
        """The network's input, which is exact."""
        return _known(images)

    def constant(self, array: NDArray[Any]) -> ExactValue:
        """An initializer without an encoding."""
        return _known(array)

    def parameter(self, parameter: QuantizedParameter) -> ExactValue:
        """An integer weight or bias."""
        return Quantized(parameter.codes, parameter.encoding)

    def encoded(self, codes: NDArray[np.int32], encoding: Encoding) -> ExactValue:
        """What the readers of an encoded tensor see."""
        return Quantized(codes, encoding)

    def apply(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> Sequence[ExactValue]:
        """Outputs of one operation."""
        return self._handlers.get(operation.op_type, self._other)(operation, inputs)

    def numbers(self, value: ExactValue | None) -> NDArray[Any]:
        """The numbers of a value, without their error."""
        if value is None:
            raise ValueError("an input is missing")
        return estimate(value).value

    def _linear(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Multiply and accumulate: γ of the number of terms times the sum of their magnitudes."""
        data, weight, bias = [*inputs, None][:3]
        assert data is not None
        assert weight is not None
        operator = linear_operator(operation)
        factor = float(operation.attribute("alpha", 1.0))
        left, right = estimate(data), estimate(weight)
        value = _product(operator, data, weight, factor)
        large = np.abs(left.value) + left.error, np.abs(right.value) + right.error
        magnitude = abs(factor) * operator(*large)
        spread = magnitude - abs(factor) * operator(np.abs(left.value), np.abs(right.value))
        if bias is not None:
            shift = float(operation.attribute("beta", 1.0))
            added = estimate(bias)
            value = value + shift * align_bias(operator, as_float64(added.value), value.ndim)
            magnitude = magnitude + abs(shift) * align_bias(operator, np.abs(added.value) + added.error, value.ndim)
            spread = spread + abs(shift) * align_bias(operator, added.error, value.ndim)
        terms = operator.terms(right.value.shape)
        # Besides the additions: the product, its two factors, and the scalings of fused kernels.
        return [Estimate(value, np.maximum(spread, 0) + gamma(terms + 6) * magnitude, magnitude)]

    def _add(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Add or subtract."""
        first, second = (_present(operation, value) for value in inputs)
        sign = 1 if operation.op_type == "Add" else -1
        value = first.value + sign * second.value
        if not np.issubdtype(value.dtype, np.floating):
            return [_known(value)]
        error = first.error + second.error
        magnitude = _kernel_magnitude(inputs[0], first) + _kernel_magnitude(inputs[1], second)
        return [Estimate(value, error + UNIT_ROUNDOFF * (np.abs(value) + error), magnitude)]

    def _multiply(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Multiply."""
        first, second = (_present(operation, value) for value in inputs)
        value = first.value * second.value
        if not np.issubdtype(value.dtype, np.floating):
            return [_known(value)]
        error = np.abs(first.value) * second.error + np.abs(second.value) * first.error + first.error * second.error
        return [Estimate(value, error + UNIT_ROUNDOFF * (np.abs(value) + error), np.abs(value))]

    def _bound(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Relu and Clip do not enlarge differences."""
        data = _present(operation, inputs[0])
        low, high = bounds_of(operation, [None if value is None else estimate(value).value for value in inputs[1:]])
        return [Estimate(np.clip(data.value, float(low), float(high)), data.error, data.magnitude)]

    def _move(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Rearrange values and errors alike; the maximum of a window errs at most by its largest error."""
        data = _present(operation, inputs[0])
        arguments = [None if value is None else estimate(value).value for value in inputs[1:]]
        interpolates = operation.op_type == "Resize" and resize_mode(operation) == "linear"
        moves = (
            [lambda array: resize(operation, arguments, array)] if interpolates else moves_of(operation, arguments, 0)
        )
        if moves is None:
            return self._other(operation, inputs)
        if not np.issubdtype(data.value.dtype, np.floating):
            return [_known(move(data.value)) for move in moves]
        error = np.broadcast_to(data.error, data.value.shape)
        magnitude = np.broadcast_to(data.magnitude, data.value.shape)
        rounding = gamma(8) if interpolates else 0.0
        return [Estimate(move(data.value), move(error) + rounding * move(magnitude), move(magnitude)) for move in moves]

    def _global_mean(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Add all positions and divide."""
        data = _present(operation, inputs[0])
        axes = tuple(range(2, data.value.ndim))
        count = int(np.prod([data.value.shape[axis] for axis in axes]))
        value = _exact_mean(inputs[0], data, axes, count)
        error = np.broadcast_to(data.error, data.value.shape).mean(axis=axes, keepdims=True)
        magnitude = np.abs(data.value).mean(axis=axes, keepdims=True) + error
        return [Estimate(value, error + gamma(count + 4) * magnitude, magnitude)]

    def _window_mean(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Add the entries of each window and divide."""
        data = _present(operation, inputs[0])
        windows = Windows.of(operation, data.value.shape)
        counts = windows.counts(include_padding=bool(operation.attribute("count_include_pad", 0)))
        source = inputs[0]
        if isinstance(source, Quantized) and source.encoding.axis is None:
            sums = accumulate(windows.slices(source.steps.astype(np.int64), 0), np.add)
            value = sums * float(source.encoding.scale) / counts
        else:
            value = accumulate(windows.slices(data.value, 0), np.add) / counts
        errors = np.broadcast_to(data.error, data.value.shape)
        error = accumulate(windows.slices(errors, 0), np.add) / counts
        magnitude = accumulate(windows.slices(np.abs(data.value), 0), np.add) / counts + error
        return [Estimate(value, error + gamma(windows.entries + 4) * magnitude, magnitude)]

    def _sigmoid(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """The slope is at most 1/4; runtimes approximate the function itself."""
        data = _present(operation, inputs[0])
        value = sigmoid(as_float64(data.value))
        return [Estimate(value, 0.25 * data.error + _SIGMOID_ERROR, value)]

    def _concatenate(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Join values and errors."""
        parts = [estimate(value) for value in inputs if value is not None]
        axis = int(operation.attribute("axis", 0))
        value = np.concatenate([part.value for part in parts], axis)
        error = np.concatenate([np.broadcast_to(part.error, part.value.shape) for part in parts], axis)
        magnitude = np.concatenate([np.broadcast_to(part.magnitude, part.value.shape) for part in parts], axis)
        return [Estimate(value, error, magnitude)]

    def _other(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Any other operation.

        Its error is estimated, not proved: the inputs are moved by their errors in both directions, and 64 roundings
        of the largest result in reach are allowed for the operation itself.
        """
        estimates = [None if value is None else estimate(value) for value in inputs]
        values = [None if item is None else as_float64(item.value) for item in estimates]
        results = evaluate(operation, values)
        moved = [
            evaluate(
                operation,
                [None if item is None else _shifted(item, direction) for item in estimates],
            )
            for direction in (-1, 1)
        ]
        outputs = []
        for index, result in enumerate(results):
            if not np.issubdtype(result.dtype, np.floating):
                outputs.append(_known(result))
                continue
            spread = np.maximum(np.abs(moved[0][index] - result), np.abs(moved[1][index] - result))
            magnitude = np.abs(result)
            largest = magnitude.max(initial=0.0)
            outputs.append(Estimate(result, 2 * spread + gamma(64) * np.maximum(magnitude, largest), magnitude))
        return outputs


class ExactIntegerSums(ExactNumbers):
    """The same numbers with the bounds of fused integer kernels: sums of codes are exact, only scaling rounds."""

    def _linear(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Multiply and accumulate: a conversion, a product and two scales round."""
        (result,) = super()._linear(operation, inputs)
        if all(value is None or isinstance(value, Quantized) for value in inputs):
            return [Estimate(result.value, gamma(_SCALING) * np.abs(result.value), np.abs(result.value))]
        return [result]

    def _global_mean(self, operation: Operation, inputs: Sequence[ExactValue | None]) -> list[Estimate]:
        """Add all positions and divide: the same."""
        (result,) = super()._global_mean(operation, inputs)
        if isinstance(inputs[0], Quantized):
            return [Estimate(result.value, gamma(_SCALING) * np.abs(result.value), np.abs(result.value))]
        return [result]


def gamma(roundings: int) -> float:
    """Bound on the relative error after a number of float32 roundings."""
    return roundings * UNIT_ROUNDOFF / (1 - roundings * UNIT_ROUNDOFF)


def estimate(value: ExactValue) -> Estimate:
    """Numbers and errors of a value; ``DequantizeLinear`` rounds once."""
    if isinstance(value, Estimate):
        return value
    real = value.real()
    return Estimate(real, UNIT_ROUNDOFF * np.abs(real), np.abs(real))


@dataclass(frozen=True, eq=False)
class ExactCodes:
    """Where exact numbers lie on the grid of an encoding.

    Attributes:
        steps: float64, the number divided by the scale, before rounding and without the zero-point.
        error: float64, how far float32 arithmetic may move the steps.
        encoding: The grid.
    """

    steps: NDArray[np.float64]
    error: NDArray[np.float64]
    encoding: Encoding

    @staticmethod
    def of(value: ExactValue, encoding: Encoding) -> ExactCodes:
        """Divide exact numbers by the scale of an encoding."""
        exact = estimate(value)
        scale = float(encoding.scale)
        steps = np.asarray(exact.value, np.float64) / scale
        reach = np.abs(steps) + exact.magnitude / scale + abs(int(encoding.zero_point)) + 1
        error = exact.error / scale + gamma(6) * reach
        return ExactCodes(steps, np.broadcast_to(error, steps.shape), encoding)

    def codes(self) -> NDArray[np.int32]:
        """The correctly rounded codes."""
        return self._round(np.rint(self.steps))

    def lowest(self) -> NDArray[np.int32]:
        """The smallest codes that float32 arithmetic may give; both neighbours of a tie count."""
        return self._round(np.ceil(self.steps - self.error - 0.5))

    def highest(self) -> NDArray[np.int32]:
        """The largest codes that float32 arithmetic may give; both neighbours of a tie count."""
        return self._round(np.floor(self.steps + self.error + 0.5))

    def is_tie(self, tolerance: float) -> NDArray[np.bool_]:
        """Whether the steps lie half-way between two codes, up to ``tolerance`` steps."""
        result: NDArray[np.bool_] = np.abs(np.abs(self.steps - np.rint(self.steps)) - 0.5) <= tolerance
        return result

    def _round(self, steps: NDArray[np.float64]) -> NDArray[np.int32]:
        zero_point = int(self.encoding.zero_point)
        low, high = self.encoding.q_min - zero_point, self.encoding.q_max - zero_point
        codes: NDArray[np.int32] = np.clip(steps, low, high).astype(np.int32) + np.int32(zero_point)
        return codes


def _known(array: NDArray[Any]) -> Estimate:
    """Numbers without an error."""
    value = as_float64(array)
    magnitude = np.abs(value) if np.issubdtype(value.dtype, np.floating) else np.zeros((), np.float64)
    return Estimate(value, np.zeros((), np.float64), magnitude)


def _present(operation: Operation, value: ExactValue | None) -> Estimate:
    """An input that must be there."""
    if value is None:
        raise operation.unsupported("an input is missing")
    return estimate(value)


def _product(operator: LinearOperator, data: ExactValue, weight: ExactValue, factor: float) -> NDArray[np.float64]:
    """The linear part, with exact integer sums where both are codes."""
    if isinstance(data, Quantized) and isinstance(weight, Quantized) and is_linear_in_codes(operator, data, weight):
        _, scale = sum_scales(operator, data, weight, factor)
        product: NDArray[np.float64] = exact_sums(operator, data.steps, weight.steps) * scale
        return product
    return np.asarray(factor * operator(estimate(data).value, estimate(weight).value), np.float64)


def _exact_mean(source: ExactValue | None, data: Estimate, axes: tuple[int, ...], count: int) -> NDArray[np.float64]:
    """A mean over axes, with exact integer sums where the data are codes."""
    if isinstance(source, Quantized) and source.encoding.axis is None:
        mean: NDArray[np.float64] = (
            source.steps.astype(np.int64).sum(axis=axes, keepdims=True) * float(source.encoding.scale) / count
        )
        return mean
    return np.asarray(data.value.mean(axis=axes, keepdims=True))


def _kernel_magnitude(source: ExactValue | None, data: Estimate) -> NDArray[np.float64]:
    """Magnitudes that QLinearAdd adds up for one operand: scaled code and scaled zero-point apart."""
    if isinstance(source, Quantized) and source.encoding.axis is None:
        scale, zero_point = float(source.encoding.scale), abs(int(source.encoding.zero_point))
        magnitude: NDArray[np.float64] = scale * (np.abs(source.integers) + zero_point)
        return magnitude
    return np.asarray(np.abs(data.value) + data.error, np.float64)


def _shifted(item: Estimate, direction: int) -> NDArray[Any]:
    """Values moved by their errors."""
    value = as_float64(item.value)
    return value + direction * item.error if np.issubdtype(value.dtype, np.floating) else value
