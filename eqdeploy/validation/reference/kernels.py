"""Operations as integer kernels compute them; this is the reference.

Where operands are encoded, sums and products are exact integers, and results are rounded with the float32
arithmetic of ONNX Runtime's fused kernels. Everything else is computed in float64 from the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedParameter
from eqdeploy.validation.reference.arithmetic import logistic
from eqdeploy.validation.reference.graph import Operation
from eqdeploy.validation.reference.moves import MOVES, evaluate, moves_of
from eqdeploy.validation.reference.resize import resize, resize_mode
from eqdeploy.validation.reference.sums import LinearOperator, exact_sums, linear_operator
from eqdeploy.validation.reference.values import (
    Bounded,
    Concatenated,
    ElementWise,
    GlobalMean,
    Looked,
    Moved,
    Quantized,
    Real,
    Sums,
    Value,
    WindowMean,
)
from eqdeploy.validation.reference.windows import Windows, accumulate

#: Operations that multiply by a weight and accumulate.
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

Handler = Callable[[Operation, Sequence[Value | None]], list[Value]]


class IntegerKernels:
    """The semantics of the integer reference."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {
            **dict.fromkeys(LINEAR, self._linear),
            **dict.fromkeys(MOVES, self._move),
            "Add": self._add,
            "Mul": self._multiply,
            "Relu": self._bound,
            "Clip": self._bound,
            "GlobalAveragePool": self._global_mean,
            "AveragePool": self._window_mean,
            "Sigmoid": self._look_up,
            "LeakyRelu": self._look_up,
            "Concat": self._concatenate,
        }

    def image(self, images: NDArray[np.float32]) -> Value:
        """The network's input, kept in float32, in which a runtime quantizes it."""
        return Real(images)

    def constant(self, array: NDArray[Any]) -> Value:
        """An initializer without an encoding."""
        return Real(array)

    def parameter(self, parameter: QuantizedParameter) -> Value:
        """An integer weight or bias."""
        return Quantized(parameter.codes, parameter.encoding)

    def encoded(self, codes: NDArray[np.int32], encoding: Encoding) -> Value:
        """What the readers of an encoded tensor see."""
        return Quantized(codes, encoding)

    def apply(self, operation: Operation, inputs: Sequence[Value | None]) -> Sequence[Value]:
        """Outputs of one operation."""
        handler = self._handlers.get(operation.op_type, self._float)
        if handler is not self._float and (not inputs or inputs[0] is None):
            raise operation.unsupported("its first input is missing")
        return handler(operation, inputs)

    def numbers(self, value: Value | None) -> NDArray[Any]:
        """The real numbers of a value."""
        if value is None:
            raise ValueError("an input is missing")
        return value.real()

    def _float(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """Any operation in float64."""
        arrays = [None if value is None else as_float64(value.real()) for value in inputs]
        return [Real(array) for array in evaluate(operation, arrays)]

    def _linear(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """Multiply and accumulate: integers where data and weight are integers, else float64."""
        data, weight, bias = [*inputs, None][:3]
        assert data is not None
        if weight is None:
            raise operation.unsupported("it has no weight")
        operator = linear_operator(operation)
        factor = float(operation.attribute("alpha", 1.0))
        result: Value
        if isinstance(data, Quantized) and isinstance(weight, Quantized) and is_linear_in_codes(operator, data, weight):
            scale, exact_scale = sum_scales(operator, data, weight, factor)
            result = Sums(exact_sums(operator, data.steps, weight.steps), scale, exact_scale)
        else:
            result = Real(factor * operator(as_float64(data.real()), as_float64(weight.real())))
        if bias is None:
            return [result]
        shift = float(operation.attribute("beta", 1.0))
        if isinstance(result, Sums) and isinstance(bias, Quantized) and shift == 1.0:
            biased = add_integer_bias(result, bias, operator)
            if biased is not None:
                return [biased]
        aligned = align_bias(operator, as_float64(bias.real()), result.real().ndim)
        return [Real(as_float64(result.real()) + shift * aligned)]

    def _add(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """Add codes, or an integer bias to integer sums, or real numbers."""
        first, second = _pair(operation, inputs)
        for sums, bias in ((first, second), (second, first)):
            if isinstance(sums, Sums) and isinstance(bias, Quantized):
                biased = add_integer_bias(sums, bias, None)
                if biased is not None:
                    return [biased]
        if isinstance(first, Quantized) and isinstance(second, Quantized):
            return [ElementWise(first, second, multiplies=False)]
        return [Real(as_float64(first.real()) + as_float64(second.real()))]

    def _multiply(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """Multiply codes or real numbers."""
        first, second = _pair(operation, inputs)
        if isinstance(first, Quantized) and isinstance(second, Quantized):
            return [ElementWise(first, second, multiplies=True)]
        return [Real(as_float64(first.real()) * as_float64(second.real()))]

    def _bound(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """Relu and Clip."""
        assert inputs[0] is not None
        low, high = bounds_of(operation, [_array(value) for value in inputs[1:]])
        return [Bounded(inputs[0], low, high)]

    def _move(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """Rearrange entries, of codes where they are known already."""
        data = inputs[0]
        assert data is not None
        arguments = [_array(value) for value in inputs[1:]]
        zero = int(data.encoding.zero_point) if isinstance(data, Quantized) and data.encoding.axis is None else 0
        moves = moves_of(operation, arguments, zero)
        if moves is None and operation.op_type == "Resize" and resize_mode(operation) != "other":
            return [Real(resize(operation, arguments, as_float64(data.real())))]
        if moves is None:
            return self._float(operation, inputs)
        if isinstance(data, Real):
            return [Real(move(data.array)) for move in moves]
        if isinstance(data, Quantized) and data.encoding.axis is None:
            return [Quantized(move(data.integers), data.encoding) for move in moves]
        # The zero-point is only known once codes are: padding waits for them.
        return self._float(operation, inputs) if operation.op_type == "Pad" else [Moved(data, move) for move in moves]

    def _global_mean(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """GlobalAveragePool."""
        data = inputs[0]
        assert data is not None
        if isinstance(data, Quantized) and data.encoding.axis is None:
            return [_mean_of_codes(data)]
        real = as_float64(data.real())
        return [Real(real.mean(axis=tuple(range(2, real.ndim)), keepdims=True))]

    def _window_mean(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """AveragePool."""
        data = inputs[0]
        assert data is not None
        include_padding = bool(operation.attribute("count_include_pad", 0))
        if not isinstance(data, Quantized) or data.encoding.axis is not None:
            real = as_float64(data.real())
            windows = Windows.of(operation, real.shape)
            counts = windows.counts(include_padding=include_padding)
            return [Real(accumulate(windows.slices(real, 0), np.add) / counts)]
        windows = Windows.of(operation, data.integers.shape)
        if windows.covers_everything:
            return [_mean_of_codes(data)]
        return [
            WindowMean(
                accumulate(windows.slices(data.encoding.dequantize(data.integers), 0), np.add),
                accumulate(windows.slices(data.steps.astype(np.int64), 0), np.add),
                windows.counts(include_padding=include_padding),
                data.encoding,
            )
        ]

    def _look_up(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """Sigmoid and LeakyRelu."""
        data = inputs[0]
        if not isinstance(data, Quantized):
            return self._float(operation, inputs)
        if operation.op_type == "Sigmoid":
            return [Looked(data, logistic, sigmoid)]
        slope = np.float32(operation.attribute("alpha", 0.01))
        return [Looked(data, lambda x: np.where(x >= 0, x, slope * x), lambda x: np.where(x >= 0, x, float(slope) * x))]

    def _concatenate(self, operation: Operation, inputs: Sequence[Value | None]) -> list[Value]:
        """Concat; what is not encoded yet is rounded like a float result."""
        parts = [value for value in inputs if value is not None]
        if all(isinstance(part, Real) for part in parts):
            return [Real(np.concatenate([part.real() for part in parts], int(operation.attribute("axis", 0))))]
        parts = [part if isinstance(part, Quantized) else Real(part.real()) for part in parts]
        return [Concatenated(parts, int(operation.attribute("axis", 0)))]


def as_float64(array: NDArray[Any]) -> NDArray[Any]:
    """Floating-point numbers in float64, others unchanged."""
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sigmoid in float64, without overflow."""
    result: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * x))
    return result


def is_linear_in_codes(operator: LinearOperator, data: Quantized, weight: Quantized) -> bool:
    """Whether one scale per output channel turns integer sums into real sums."""
    if data.encoding.axis is not None:
        return False
    axis = weight.encoding.axis
    rank = weight.integers.ndim
    return axis is None or (rank > 1 and axis % rank == operator.weight_axis(rank))


def sum_scales(
    operator: LinearOperator, data: Quantized, weight: Quantized, factor: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Real value of one unit of the integer sums: in float32 as kernels compute it, and exactly in float64."""
    rounded = (np.float32(factor) * data.encoding.scale) * weight.encoding.scale
    exact = factor * data.encoding.scale.astype(np.float64) * weight.encoding.scale.astype(np.float64)
    if weight.encoding.axis is None:
        return np.asarray(rounded), np.asarray(exact)
    rank = max(data.integers.ndim, weight.integers.ndim)
    shape = [1] * rank
    shape[operator.channel_axis] = -1
    return operator.channel_values(rounded).reshape(shape), operator.channel_values(exact).reshape(shape)


def align_bias(operator: LinearOperator | None, bias: NDArray[Any], rank: int) -> NDArray[Any]:
    """Shape a bias so that it is added to the right axis of an output with ``rank`` axes."""
    if operator is None or operator.channel_axis == -1 or bias.ndim != 1:
        return bias
    return bias.reshape([-1 if index == operator.channel_axis else 1 for index in range(rank)])


def add_integer_bias(sums: Sums, bias: Quantized, operator: LinearOperator | None) -> Sums | None:
    """Add a 32-bit bias that counts in the units of the sums; None if it counts in others."""
    if bias.encoding.bits <= 8:
        return None
    scale = bias.encoding.scale
    if bias.encoding.axis is not None:
        scale = np.broadcast_to(scale.reshape(-1), bias.integers.shape)
    aligned = align_bias(operator, scale, sums.sums.ndim) if bias.encoding.axis is not None else scale
    shape = np.broadcast_shapes(aligned.shape, sums.scale.shape)
    if not np.array_equal(np.broadcast_to(aligned, shape), np.broadcast_to(sums.scale, shape)):
        return None
    steps = align_bias(operator, bias.steps.astype(np.int64), sums.sums.ndim)
    return Sums(sums.sums + steps, sums.scale, sums.exact_scale)


def bounds_of(operation: Operation, arguments: Sequence[NDArray[Any] | None]) -> tuple[np.float32, np.float32]:
    """Bounds of a Relu or Clip node, infinite where there is none."""
    if operation.op_type == "Relu":
        return np.float32(0), np.float32(np.inf)
    low, high = [*arguments, None, None][:2]
    return (
        np.float32(operation.attribute("min", -np.inf) if low is None else low.reshape(-1)[0]),
        np.float32(operation.attribute("max", np.inf) if high is None else high.reshape(-1)[0]),
    )


def _mean_of_codes(data: Quantized) -> GlobalMean:
    """Sums over all positions."""
    spatial = tuple(range(2, data.integers.ndim))
    count = int(np.prod([data.integers.shape[axis] for axis in spatial]))
    return GlobalMean(data.steps.astype(np.int64).sum(axis=spatial, keepdims=True), count, data.encoding)


def _array(value: Value | None) -> NDArray[Any] | None:
    """The numbers of an argument such as a shape."""
    return None if value is None else value.real()


def _pair(operation: Operation, inputs: Sequence[Value | None]) -> tuple[Value, Value]:
    """Both operands."""
    first, second = inputs
    if first is None or second is None:
        raise operation.unsupported("an operand is missing")
    return first, second
