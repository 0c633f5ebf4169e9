"""The one definition of quantize and dequantize, for numpy arrays and torch tensors alike.

    q = clamp(round_half_to_even(x / s) + z, q_min, q_max)        (EQ-Net, Eq. 1)
    x̄ = s · (q − z)

The order of operations is that of ONNX ``QuantizeLinear``: divide by the scale (multiplying by its inverse
differs at ties), round, then add the zero-point, then saturate. Training, the integer reference, the
exporters and the tests all call these functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = TypeVar("Array", np.ndarray[Any, Any], torch.Tensor)


def quantize(x: Array, scale: Any, zero_point: Any, q_min: Any, q_max: Any) -> Array:
    """Quantize real values to integer codes, kept in the dtype of ``x``.

    Args:
        x: Real values, any shape; float32 for what a runtime computes.
        scale: Positive, broadcastable to ``x``.
        zero_point: Integer-valued, inside ``[q_min, q_max]``, broadcastable to ``x``.
        q_min: Smallest code.
        q_max: Largest code.

    Returns:
        Integer-valued array of the shape and dtype of ``x``.

    >>> import numpy as np
    >>> quantize(np.array([0.5, 1.5, 2.5, 99.0]), 1.0, 0, -8, 7)
    array([0., 2., 2., 7.])
    """
    # Both libraries round half to even in ``round`` and share the name ``clip``.
    codes: Array = x / scale
    if hasattr(codes, "round_"):  # in place where the library can: memory traffic is most of the cost
        codes.round_().add_(zero_point).clip_(q_min, q_max)
    else:
        codes = (codes.round() + zero_point).clip(q_min, q_max)
    return codes


def dequantize(codes: Array, scale: Any, zero_point: Any) -> Array:
    """Turn integer codes back into real values.

    Args:
        codes: Integer-valued, any shape, in the float dtype of the result.
        scale: Positive, broadcastable to ``codes``.
        zero_point: Integer-valued, broadcastable to ``codes``.

    Returns:
        Real values, ``scale * (codes - zero_point)``.
    """
    values: Array = (codes - zero_point) * scale
    return values


def quantize_dequantize(
    x: torch.Tensor, scale: float, zero_point: float, q_min: int, q_max: int, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Both steps with plain numbers: equal to ``dequantize(quantize(...))``, with fewer passes over memory.

    Args:
        x: Real values, any shape, float32.
        scale: Positive, a float32 number.
        zero_point: Integer-valued, inside ``[q_min, q_max]``.
        q_min: Smallest code.
        q_max: Largest code.
        out: Where the result goes, ``x`` to overwrite it; None for a new tensor.
    """
    import torch

    codes = torch.div(x, scale, out=out).round_()
    if zero_point:  # adding zero changes nothing
        codes.add_(zero_point)
    codes.clamp_(q_min, q_max)
    if zero_point:
        codes.sub_(zero_point)
    return codes.mul_(scale)
