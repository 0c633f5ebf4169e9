"""Sliding windows of poolings: one array per position inside the window, in the order in which kernels visit them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.validation.reference.graph import Operation
from eqdeploy.validation.reference.sums import padding


@dataclass(frozen=True)
class Windows:
    """The geometry of a pooling for one size of data.

    Attributes:
        kernel: Sizes of the window.
        strides: Strides.
        dilations: Distances between the entries of a window.
        before: Padding before each spatial axis.
        after: Padding after each spatial axis as the operation states it.
        size: Sizes of the spatial axes of the output.
        reach: Sizes of the padded spatial axes that the windows touch; beyond the stated padding with ``ceil_mode``.
        data: Sizes of the spatial axes of the data.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    size: tuple[int, ...]
    reach: tuple[int, ...]
    data: tuple[int, ...]

    @staticmethod
    def of(operation: Operation, shape: tuple[int, ...]) -> Windows:
        """The windows of a MaxPool or AveragePool over data of shape (N, C, …)."""
        data = list(shape[2:])
        kernel = [int(width) for width in operation.attribute("kernel_shape", [])]
        if len(kernel) != len(data):
            raise operation.unsupported(f"kernel_shape {kernel} over data of shape {shape}")
        rank = len(kernel)
        strides = [int(stride) for stride in operation.attribute("strides", [1] * rank)]
        dilations = [int(step) for step in operation.attribute("dilations", [1] * rank)]
        before, after = padding(operation, data, kernel, strides, dilations)
        size, reach = [], []
        for axis in range(rank):
            extent = (kernel[axis] - 1) * dilations[axis] + 1
            room = data[axis] + before[axis] + after[axis] - extent
            count = room // strides[axis] + 1
            if operation.attribute("ceil_mode", 0):
                count = -(-room // strides[axis]) + 1
                # A window must start inside the data or the padding before it.
                count -= int((count - 1) * strides[axis] >= data[axis] + before[axis])
            size.append(count)
            reach.append(max((count - 1) * strides[axis] + extent, data[axis] + before[axis]))
        return Windows(
            tuple(kernel), tuple(strides), tuple(dilations), tuple(before), tuple(after), tuple(size), tuple(reach),
            tuple(data),
        )  # fmt: skip

    @property
    def covers_everything(self) -> bool:
        """Whether there is one window and it is exactly the data."""
        return self.kernel == self.data and not any(self.before) and not any(self.after)

    def slices(self, data: NDArray[Any], fill: Any) -> Iterator[NDArray[Any]]:
        """The entries at each position of all windows, row by row.

        Args:
            data: Shape (N, C, …).
            fill: Value of the padding.

        Yields:
            Arrays of shape (N, C, *size), of the dtype of ``data``.
        """
        margins = [(0, 0), (0, 0)]
        margins += [
            (before, reach - before - size)
            for before, reach, size in zip(self.before, self.reach, self.data, strict=True)
        ]
        padded = np.pad(data, margins, constant_values=fill)
        for position in itertools.product(*(range(width) for width in self.kernel)):
            index: list[slice] = [slice(None), slice(None)]
            for axis, entry in enumerate(position):
                start = entry * self.dilations[axis]
                stop = start + (self.size[axis] - 1) * self.strides[axis] + 1
                index.append(slice(start, stop, self.strides[axis]))
            yield padded[tuple(index)]

    def counts(self, *, include_padding: bool) -> NDArray[np.int64]:
        """Number of entries that an average divides by.

        Args:
            include_padding: Whether entries of the stated padding count (``count_include_pad``). Entries beyond it,
                which only ``ceil_mode`` reaches, never do.

        Returns:
            int64, shape (1, 1, *size).
        """
        ones = np.ones((1, 1, *self.data), np.int64)
        if include_padding:
            margins = [(0, 0), (0, 0), *zip(self.before, self.after, strict=True)]
            ones = np.pad(ones, margins, constant_values=1)
            whole = Windows(
                self.kernel, self.strides, self.dilations, (0,) * len(self.before), (0,) * len(self.after), self.size,
                tuple(map(max, self.reach, ones.shape[2:])), tuple(ones.shape[2:]),
            )  # fmt: skip
            return accumulate(whole.slices(ones, 0), np.add)
        return accumulate(self.slices(ones, 0), np.add)

    @property
    def entries(self) -> int:
        """Entries of a full window."""
        return math.prod(self.kernel)


def accumulate(
    slices: Iterator[NDArray[Any]], combine: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
) -> NDArray[Any]:
    """Combine the entries of each window one after the other."""
    total = next(slices).copy()
    for entry in slices:
        total = combine(total, entry)
    return total
