"""Resize along one axis after the other: ONNX's own implementation visits every entry in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.validation.reference.graph import Operation

_ROUNDINGS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize_mode(operation: Operation) -> str:
    """``nearest`` or ``linear`` where this module evaluates the node, else ``other``."""
    mode = str(operation.attribute("mode", b"nearest").decode())
    plain = (
        operation.attribute("coordinate_transformation_mode", b"half_pixel") != b"tf_crop_and_resize"
        and operation.attribute("keep_aspect_ratio_policy", b"stretch") == b"stretch"
        and not operation.attribute("antialias", 0)
        and not operation.attribute("exclude_outside", 0)
    )
    return mode if plain and mode in ("nearest", "linear") else "other"


def resize(operation: Operation, arguments: Sequence[NDArray[Any] | None], data: NDArray[Any]) -> NDArray[Any]:
    """Resize an array, by selection or by linear interpolation.

    Args:
        operation: A Resize node with another :func:`resize_mode` than ``other``.
        arguments: ``roi``, ``scales`` and ``sizes``, None where absent.
        data: Any dtype for ``nearest``, floating point for ``linear``.
    """
    _, scales, sizes = [*arguments, None, None, None][:3]
    rank = data.ndim
    axes = [int(axis) % rank for axis in operation.attribute("axes", range(rank))]
    for place, axis in enumerate(axes):
        length = data.shape[axis]
        if scales is not None and scales.size:
            scale = float(scales[place])
            size = int(np.floor(length * scale))
        elif sizes is not None:
            size = int(sizes[place])
            scale = size / length
        else:
            raise operation.unsupported("neither scales nor sizes are constant")
        if size != length or scale != 1.0:
            data = _resize_axis(operation, data, axis, _source_positions(operation, length, size, scale))
    return data


def _resize_axis(operation: Operation, data: NDArray[Any], axis: int, positions: NDArray[np.float64]) -> NDArray[Any]:
    """Take entries at fractional positions along one axis."""
    last = data.shape[axis] - 1
    if resize_mode(operation) == "nearest":
        rounding = _ROUNDINGS[operation.attribute("nearest_mode", b"round_prefer_floor").decode()]
        return np.take(data, np.clip(rounding(positions), 0, last).astype(np.int64), axis)
    lower = np.floor(positions)
    fraction = (positions - lower).reshape([-1 if index == axis else 1 for index in range(data.ndim)])
    left = np.take(data, np.clip(lower, 0, last).astype(np.int64), axis)
    right = np.take(data, np.clip(lower + 1, 0, last).astype(np.int64), axis)
    blended: NDArray[Any] = left * (1 - fraction) + right * fraction
    return blended


def _source_positions(operation: Operation, length: int, size: int, scale: float) -> NDArray[np.float64]:
    """Where each entry of a resized axis lies on the original axis (ONNX Resize, coordinate_transformation_mode)."""
    index = np.arange(size, dtype=np.float64)
    mode = operation.attribute("coordinate_transformation_mode", b"half_pixel").decode()
    if mode == "asymmetric":
        return index / scale
    if mode == "align_corners":
        return index * ((length - 1) / (size - 1)) if size > 1 else np.zeros(size)
    if mode == "pytorch_half_pixel" and size == 1:
        return np.zeros(size)
    if mode == "half_pixel_symmetric":
        return length / 2 * (1 - size / (length * scale)) + (index + 0.5) / scale - 0.5
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (index + 0.5) / scale - 0.5
    raise operation.unsupported(f"coordinate_transformation_mode {mode}")
