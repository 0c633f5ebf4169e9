"""Values on the edges of the graph, as integer hardware sees them.

An operation on codes does not produce numbers yet: the arithmetic with which its result is rounded depends on the
encoding of the tensor where it ends. So a value knows how to become codes of a given encoding, and what real
numbers it stands for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding
from eqdeploy.validation.reference.arithmetic import (
    add_codes,
    multiply_codes,
    requantize,
    saturate,
    saturate_shifted,
)

#: Rearranges, selects or takes the largest of an array's entries; the same for codes and for real numbers.
Move = Callable[[NDArray[Any]], NDArray[Any]]


class Value(ABC):
    """A tensor on an edge of the graph."""

    @abstractmethod
    def real(self) -> NDArray[Any]:
        """The real numbers, float64 (float32 for what a user hands in); other dtypes for constants only."""

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """Codes in a per-tensor encoding, int32, by default rounded from the real numbers."""
        return encoding.quantize(self.real())

    def output(self) -> NDArray[Any]:
        """What the network returns for this value, float32; other dtypes for constants only."""
        real = self.real()
        return real.astype(np.float32) if np.issubdtype(real.dtype, np.floating) else real


@dataclass(frozen=True, eq=False)
class Real(Value):
    """Numbers that no integer kernel produced: the input, constants, results of float operations."""

    array: NDArray[Any]

    def real(self) -> NDArray[Any]:
        """The array."""
        return self.array


@dataclass(frozen=True, eq=False)
class Quantized(Value):
    """Integers with an encoding: an encoded tensor, an integer weight or bias."""

    integers: NDArray[np.int32]
    encoding: Encoding

    @property
    def steps(self) -> NDArray[np.int32]:
        """Integers with the zero-point subtracted, so that 0 is a real zero."""
        encoding = self.encoding
        if encoding.axis is None:
            return self.integers - encoding.zero_point
        return self.integers - encoding.zero_point.reshape(_along(encoding.axis, self.integers.ndim))

    def real(self) -> NDArray[Any]:
        """Exact in float64: 9 bits of steps times 24 bits of scale."""
        scale = self.encoding.scale.astype(np.float64)
        axis = self.encoding.axis
        real: NDArray[Any] = self.steps * (scale if axis is None else scale.reshape(_along(axis, self.integers.ndim)))
        return real

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """The integers themselves on the same grid, else ``DequantizeLinear`` and ``QuantizeLinear`` in float32."""
        own = self.encoding
        if own.axis is None and own.scale == encoding.scale and own.zero_point == encoding.zero_point:
            return np.clip(self.integers, encoding.q_min, encoding.q_max)
        return encoding.quantize(self.encoding.dequantize(self.integers))

    def output(self) -> NDArray[Any]:
        """``DequantizeLinear``."""
        return self.encoding.dequantize(self.integers)


@dataclass(frozen=True, eq=False)
class Sums(Value):
    """Exact integer sums of products (QLinearConv, QGemm, QLinearMatMul, and the same for ConvTranspose).

    Attributes:
        sums: int64, the integer bias included.
        scale: float32, real value of one unit, computed as ``float32(factor · s_x) · s_w``; broadcastable.
        exact_scale: The same without rounding, float64.
    """

    sums: NDArray[np.int64]
    scale: NDArray[np.float32]
    exact_scale: NDArray[np.float64]

    def real(self) -> NDArray[Any]:
        """Sums times scale in float64."""
        real: NDArray[Any] = self.sums * self.exact_scale
        return real

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """One float32 multiplication, then rounding."""
        return requantize(self.sums, self.scale, encoding)

    def output(self) -> NDArray[Any]:
        """Sums times scale in float32, as QGemm and MatMulIntegerToFloat return them."""
        output: NDArray[Any] = self.sums.astype(np.float32) * self.scale
        return output


@dataclass(frozen=True, eq=False)
class ElementWise(Value):
    """The sum or product of two encoded tensors (QLinearAdd, QLinearMul).

    Attributes:
        first: First operand.
        second: Second operand, broadcastable.
        multiplies: Product if true, else sum.
    """

    first: Quantized
    second: Quantized
    multiplies: bool

    def real(self) -> NDArray[Any]:
        """In float64."""
        combine = np.multiply if self.multiplies else np.add
        real: NDArray[Any] = combine(self.first.real(), self.second.real())
        return real

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """The integer kernel where both operands and the result are stored alike, else rounded real numbers."""
        operands = (self.first.encoding, self.second.encoding)
        if any(operand.container != encoding.container or operand.axis is not None for operand in operands):
            return super().codes(encoding)
        kernel = multiply_codes if self.multiplies else add_codes
        first, second = self.first, self.second
        return kernel((first.integers, first.encoding), (second.integers, second.encoding), encoding)


@dataclass(frozen=True, eq=False)
class GlobalMean(Value):
    """The mean over all positions of an encoded tensor (QLinearGlobalAveragePool).

    Attributes:
        sums: int64, shape (N, C, 1, …), zero-points subtracted.
        count: Number of positions.
        operand: Encoding of the operand.
    """

    sums: NDArray[np.int64]
    count: int
    operand: Encoding

    def real(self) -> NDArray[Any]:
        """In float64."""
        real: NDArray[Any] = self.sums * float(self.operand.scale) / self.count
        return real

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """Sums times ``s_x / (s_y · count)`` in float32, then rounding."""
        if self.operand.container != encoding.container:
            return super().codes(encoding)
        multiplier = self.operand.scale / (encoding.scale * np.float32(self.count))
        return saturate(self.sums.astype(np.float32) * multiplier, encoding)


@dataclass(frozen=True, eq=False)
class WindowMean(Value):
    """Means over windows of an encoded tensor (QLinearAveragePool, which adds dequantized float32 numbers).

    Attributes:
        float_sums: float32, window entries added one after the other.
        sums: int64, the same sums in steps of the operand.
        counts: Number of entries of each window, broadcastable.
        operand: Encoding of the operand.
    """

    float_sums: NDArray[np.float32]
    sums: NDArray[np.int64]
    counts: NDArray[np.int64]
    operand: Encoding

    def real(self) -> NDArray[Any]:
        """In float64."""
        real: NDArray[Any] = self.sums * float(self.operand.scale) / self.counts
        return real

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """Divide by the count and by the scale in float32, add the zero-point, round."""
        if self.operand.container != encoding.container:
            return super().codes(encoding)
        means = (self.float_sums / self.counts.astype(np.float32)).astype(np.float32)
        return saturate_shifted(means / encoding.scale + np.float32(encoding.zero_point), encoding)


@dataclass(frozen=True, eq=False)
class Looked(Value):
    """A function of an encoded tensor that kernels evaluate once per code (QLinearSigmoid, QLinearLeakyRelu).

    Attributes:
        operand: The encoded tensor.
        float32_function: The function as the kernel computes it.
        function: The function in float64.
    """

    operand: Quantized
    float32_function: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def real(self) -> NDArray[Any]:
        """In float64."""
        return self.function(self.operand.real())

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """``QuantizeLinear`` of the float32 function of ``DequantizeLinear``, through a table."""
        own = self.operand.encoding
        if own.container != encoding.container or own.axis is not None:
            return super().codes(encoding)
        entries = np.arange(own.q_min, own.q_max + 1, dtype=np.int32)
        table = encoding.quantize(self.float32_function(own.dequantize(entries)))
        codes: NDArray[np.int32] = table[self.operand.integers - own.q_min]
        return codes


@dataclass(frozen=True, eq=False)
class Bounded(Value):
    """A value after Relu or Clip. Rounding is monotonic, so codes are bounded by the codes of the bounds.

    Attributes:
        inner: The value before.
        low: Lower bound, −∞ for none.
        high: Upper bound, ∞ for none.
    """

    inner: Value
    low: np.float32
    high: np.float32

    def real(self) -> NDArray[Any]:
        """Clip the real numbers."""
        real: NDArray[Any] = np.minimum(np.maximum(self.inner.real(), self.low), self.high)
        return real

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """Clip the codes."""
        low, high = (int(encoding.quantize(np.asarray(bound))) for bound in (self.low, self.high))
        codes: NDArray[np.int32] = np.minimum(np.maximum(self.inner.codes(encoding), low), high)
        return codes

    def output(self) -> NDArray[Any]:
        """Clip the output."""
        output: NDArray[Any] = np.minimum(np.maximum(self.inner.output(), self.low), self.high)
        return output


@dataclass(frozen=True, eq=False)
class Moved(Value):
    """A value whose entries were rearranged, selected or pooled by maximum before it was rounded.

    Attributes:
        inner: The value before.
        move: What happened to the entries.
    """

    inner: Value
    move: Move

    def real(self) -> NDArray[Any]:
        """Move the real numbers."""
        return self.move(self.inner.real())

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """Move the codes."""
        return self.move(self.inner.codes(encoding))

    def output(self) -> NDArray[Any]:
        """Move the output."""
        return self.move(self.inner.output())


@dataclass(frozen=True, eq=False)
class Concatenated(Value):
    """Several values side by side (QLinearConcat rescales each on its own).

    Attributes:
        parts: The values.
        axis: Axis along which they are joined.
    """

    parts: Sequence[Value]
    axis: int

    def real(self) -> NDArray[Any]:
        """Join the real numbers."""
        real: NDArray[Any] = np.concatenate([part.real() for part in self.parts], self.axis)
        return real

    def codes(self, encoding: Encoding) -> NDArray[np.int32]:
        """Join the codes."""
        codes: NDArray[np.int32] = np.concatenate([part.codes(encoding) for part in self.parts], self.axis)
        return codes

    def output(self) -> NDArray[Any]:
        """Join the outputs."""
        output: NDArray[Any] = np.concatenate([part.output() for part in self.parts], self.axis)
        return output


def _along(axis: int, rank: int) -> list[int]:
    """Shape that lines up one value per channel with a tensor of ``rank`` axes."""
    return [-1 if index == axis % rank else 1 for index in range(rank)]
