"""Operations that multiply and accumulate: convolutions and matrix products, exact where the numbers are integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from eqdeploy.validation.reference.graph import Operation

#: Integer sums below this bound are exact in float32, whatever the order of the additions.
EXACT_IN_FLOAT32 = 1 << 24

#: The same for float64.
EXACT_IN_FLOAT64 = 1 << 53

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


class LinearOperator(Protocol):
    """A bilinear operation between data and a weight."""

    @property
    def channel_axis(self) -> int:
        """Axis of the output that belongs to the weight's output channels."""
        ...

    def weight_axis(self, rank: int) -> int:
        """Axis of the output channels in a weight of that rank."""
        ...

    def terms(self, weight_shape: Sequence[int]) -> int:
        """Largest number of products in one output."""
        ...

    def channel_values(self, values: NDArray[Any]) -> NDArray[Any]:
        """Repeat one value per entry of the weight's channel axis to one per output channel."""
        ...

    def __call__(self, data: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        """Apply the operation; float32 or float64, the dtype of the inputs."""
        ...


def linear_operator(operation: Operation) -> LinearOperator:
    """The bilinear part of a Conv, ConvTranspose, Gemm or MatMul node, without bias and factors."""
    if operation.op_type == "Gemm":
        return MatrixProduct(bool(operation.attribute("transA", 0)), bool(operation.attribute("transB", 0)))
    if operation.op_type == "MatMul":
        return MatrixProduct(transpose_data=False, transpose_weight=False)
    return Convolution(operation, transposed=operation.op_type == "ConvTranspose")


@dataclass(frozen=True)
class MatrixProduct:
    """``A · B`` of Gemm or MatMul, with the transpositions of Gemm.

    Attributes:
        transpose_data: Whether the first matrix is transposed.
        transpose_weight: Whether the second matrix is transposed.
    """

    transpose_data: bool
    transpose_weight: bool

    channel_axis = -1

    def weight_axis(self, rank: int) -> int:
        """The rows of a transposed second matrix, else the last axis."""
        return 0 if self.transpose_weight else rank - 1

    def terms(self, weight_shape: Sequence[int]) -> int:
        """Length of the axis that is summed over."""
        if len(weight_shape) == 1:
            return int(weight_shape[0])
        return int(weight_shape[-1 if self.transpose_weight else -2])

    def channel_values(self, values: NDArray[Any]) -> NDArray[Any]:
        """As they are."""
        return values

    def __call__(self, data: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        """Multiply matrices, or stacks of matrices."""
        left = data.T if self.transpose_data else data
        right = weight.T if self.transpose_weight else weight
        product: NDArray[Any] = np.matmul(left, right)
        return product


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution or transposed convolution of any rank that torch has, as ONNX defines it.

    Attributes:
        operation: The node, for strides, padding, dilation and groups.
        transposed: Whether it is a transposed convolution.
    """

    operation: Operation
    transposed: bool

    channel_axis = 1

    def weight_axis(self, rank: int) -> int:
        """0, or 1 for transposed convolutions, whose weights are (C_in, C_out / groups, …)."""
        return 1 if self.transposed else 0

    def terms(self, weight_shape: Sequence[int]) -> int:
        """Taps of the kernel times input channels of a group."""
        channels = weight_shape[0] // self._groups if self.transposed else weight_shape[1]
        return int(channels) * math.prod(weight_shape[2:])

    def channel_values(self, values: NDArray[Any]) -> NDArray[Any]:
        """Every group of a transposed convolution uses the same values."""
        return np.tile(values, self._groups) if self.transposed else values

    def __call__(self, data: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        """Convolve."""
        rank = weight.ndim - 2
        if rank not in _CONVOLUTIONS or data.ndim != weight.ndim:
            raise self.operation.unsupported(f"data of shape {data.shape} with a weight of shape {weight.shape}")
        kernel = self.operation.attribute("kernel_shape", list(weight.shape[2:]))
        if list(kernel) != list(weight.shape[2:]):
            raise self.operation.unsupported(f"kernel_shape {kernel} with a weight of shape {weight.shape}")
        convolve = self._transposed if self.transposed else self._plain
        with torch.inference_mode():
            result = convolve(torch.from_numpy(np.ascontiguousarray(data)), torch.from_numpy(weight.copy()), rank)
            array: NDArray[Any] = result.numpy()
        return array

    @property
    def _groups(self) -> int:
        return int(self.operation.attribute("group", 1))

    def _per_axis(self, name: str, default: int, rank: int) -> list[int]:
        return [int(value) for value in self.operation.attribute(name, [default] * rank)]

    def _plain(self, data: torch.Tensor, weight: torch.Tensor, rank: int) -> torch.Tensor:
        strides, dilations = self._per_axis("strides", 1, rank), self._per_axis("dilations", 1, rank)
        before, after = padding(self.operation, list(data.shape[2:]), list(weight.shape[2:]), strides, dilations)
        if any(before) or any(after):
            data = functional.pad(data, [size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair])
        convolve = partial(_CONVOLUTIONS[rank], stride=strides, dilation=dilations, groups=self._groups)
        result: torch.Tensor = convolve(data, weight)
        return result

    def _transposed(self, data: torch.Tensor, weight: torch.Tensor, rank: int) -> torch.Tensor:
        strides, dilations = self._per_axis("strides", 1, rank), self._per_axis("dilations", 1, rank)
        convolve = partial(_TRANSPOSED[rank], stride=strides, dilation=dilations, groups=self._groups)
        full: torch.Tensor = convolve(data, weight)
        extra = self._per_axis("output_padding", 0, rank)
        before, after = self._cropping(list(full.shape[2:]), list(data.shape[2:]), strides, extra)
        # A negative crop is padding with zeros: outputs that no input reaches.
        crop = [-size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair]
        return functional.pad(full, crop)

    def _cropping(
        self, full: list[int], data: list[int], strides: list[int], extra: list[int]
    ) -> tuple[list[int], list[int]]:
        """How much of the full result is cut off before and after each axis (ONNX ConvTranspose)."""
        rank = len(full)
        auto_pad = self.operation.attribute("auto_pad", b"NOTSET").decode()
        shape = self.operation.attribute("output_shape", None)
        if shape is None and auto_pad.startswith("SAME"):
            shape = [size * stride for size, stride in zip(data, strides, strict=True)]
        if shape is None:
            pads = [0] * (2 * rank) if auto_pad == "VALID" else self._per_axis("pads", 0, 2 * rank)
            return pads[:rank], [end - more for end, more in zip(pads[rank:], extra, strict=True)]
        totals = [size + more - int(wanted) for size, more, wanted in zip(full, extra, shape[-rank:], strict=True)]
        small = [total // 2 for total in totals]
        large = [total - half for total, half in zip(totals, small, strict=True)]
        before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        return before, [end - more for end, more in zip(after, extra, strict=True)]


def padding(
    operation: Operation, data: list[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis of a convolution or pooling, with ``auto_pad`` resolved.

    Args:
        operation: Conv or a pooling.
        data: Sizes of the spatial axes.
        kernel: Sizes of the kernel.
        strides: Strides.
        dilations: Dilations.
    """
    rank = len(data)
    auto_pad = operation.attribute("auto_pad", b"NOTSET").decode()
    if auto_pad in ("NOTSET", ""):
        pads = [int(size) for size in operation.attribute("pads", [0] * (2 * rank))]
        return pads[:rank], pads[rank:]
    if auto_pad == "VALID":
        return [0] * rank, [0] * rank
    totals = [
        max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        for size, width, stride, dilation in zip(data, kernel, strides, dilations, strict=True)
    ]
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def exact_sums(operator: LinearOperator, data: NDArray[np.int32], weight: NDArray[np.int32]) -> NDArray[np.int64]:
    """Apply a linear operator to integers without any rounding.

    Args:
        operator: The operator.
        data: Integers, zero-point already subtracted.
        weight: Integers, zero-point already subtracted.

    Returns:
        int64.

    Raises:
        OverflowError: If the sums could exceed 2^53.
    """
    bound = sum_bound(operator, data, weight)
    if bound >= EXACT_IN_FLOAT64:
        raise OverflowError(f"sums of up to {bound} cannot be computed exactly")
    # Every partial sum is an integer below the bound, so float32 is exact where the bound allows it, and faster.
    dtype = np.float32 if bound < EXACT_IN_FLOAT32 else np.float64
    return operator(data.astype(dtype), weight.astype(dtype)).astype(np.int64)


def sum_bound(operator: LinearOperator, data: NDArray[np.int32], weight: NDArray[np.int32]) -> int:
    """Largest magnitude that a sum of these integers can reach, for any output."""
    if data.size == 0 or weight.size == 0:
        return 0
    magnitudes = np.abs(weight.astype(np.int64))
    largest_sum = operator.terms(weight.shape) * int(magnitudes.max())
    if weight.ndim > 1:
        axis = operator.weight_axis(weight.ndim)
        others = tuple(index for index in range(weight.ndim) if index != axis)
        largest_sum = min(largest_sum, int(magnitudes.sum(axis=others).max()))
    return int(np.abs(data.astype(np.int64)).max()) * largest_sum
