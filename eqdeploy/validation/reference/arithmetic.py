"""Float32 arithmetic in the order in which integer kernels do it, exact to the last bit.

Each function mirrors the instructions of ONNX Runtime's x86 kernels (MLAS). Two results that differ in the last
bit of a float32 can round to different codes, so the order of operations is part of the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding


def multiply_add(a: Any, b: Any, c: Any) -> NDArray[np.float32]:
    """Compute ``a · b + c`` with one rounding, as a fused multiply-add instruction does.

    The product of two float32 numbers is exact in float64. The sum is rounded to odd there before it is rounded
    to float32, which avoids rounding twice (Boldo and Melquiond, 2008).

    Args:
        a: float32, broadcastable.
        b: float32, broadcastable.
        c: float32, broadcastable.

    Returns:
        float32, the broadcast shape.
    """
    product = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32).astype(np.float64)
    addend = np.asarray(c, np.float32).astype(np.float64)
    total = np.asarray(product + addend)
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    is_even = (total.view(np.int64) & 1) == 0
    toward_lost = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    result: NDArray[np.float32] = np.where((lost != 0) & is_even, toward_lost, total).astype(np.float32)
    return result


def requantize(sums: NDArray[np.int64], input_scale: NDArray[np.float32], output: Encoding) -> NDArray[np.int32]:
    """Bring exact integer sums to the grid of an output (MLAS ``MlasRequantizeOutput``).

        q = clamp(round_half_to_even(float32(sum) · float32(input_scale / s_y)) + z_y)

    Args:
        sums: Integer sums, any shape.
        input_scale: float32, real value of one unit of the sums, broadcastable.
        output: Per-tensor encoding.

    Returns:
        Codes, int32, the shape of ``sums``.
    """
    multiplier = (input_scale / output.scale).astype(np.float32)
    return saturate(sums.astype(np.float32) * multiplier, output)


def saturate(steps: NDArray[Any], output: Encoding) -> NDArray[np.int32]:
    """Round values that count in steps of the output's scale, before its zero-point is added.

    Args:
        steps: float32 or float64, any shape.
        output: Per-tensor encoding.

    Returns:
        Codes, int32, the shape of ``steps``.
    """
    zero_point = int(output.zero_point)
    codes = np.clip(np.rint(steps), output.q_min - zero_point, output.q_max - zero_point).astype(np.int32)
    result: NDArray[np.int32] = codes + np.int32(zero_point)
    return result


def saturate_shifted(steps: NDArray[np.float32], output: Encoding) -> NDArray[np.int32]:
    """Round values to which the zero-point was added already, as element-wise kernels do.

    With an odd zero-point ties go the other way than in :func:`saturate`.

    Args:
        steps: float32, any shape.
        output: Per-tensor encoding.

    Returns:
        Codes, int32, the shape of ``steps``.
    """
    codes: NDArray[np.int32] = np.clip(np.rint(steps), output.q_min, output.q_max).astype(np.int32)
    return codes


def add_codes(
    first: tuple[NDArray[np.int32], Encoding],
    second: tuple[NDArray[np.int32], Encoding],
    output: Encoding,
) -> NDArray[np.int32]:
    """Add two quantized tensors (MLAS ``QLinearAdd``, AVX2).

    With r = s / s_y for each input, all in float32 and ``fma`` for one rounding:

        constant = z_y − fma(r_1, z_1, r_2·z_2)
        q = clamp(round_half_to_even(fma(q_1, r_1, fma(q_2, r_2, constant))))

    The kernel takes the input that is constant along the innermost axis as the second one.

    Args:
        first: Codes and per-tensor encoding.
        second: Codes and per-tensor encoding, broadcastable to the first.
        output: Per-tensor encoding.

    Returns:
        Codes, int32, the broadcast shape.
    """
    if _is_constant_along_innermost_axis(first[0].shape, second[0].shape):
        first, second = second, first
    (first_codes, first_encoding), (second_codes, second_encoding) = first, second
    first_ratio = first_encoding.scale / output.scale
    second_ratio = second_encoding.scale / output.scale
    second_offset = second_ratio * np.float32(second_encoding.zero_point)
    offset = multiply_add(first_ratio, np.float32(first_encoding.zero_point), second_offset)
    constant = np.float32(output.zero_point) - offset
    partial = multiply_add(second_codes.astype(np.float32), second_ratio, constant)
    return saturate_shifted(multiply_add(first_codes.astype(np.float32), first_ratio, partial), output)


def multiply_codes(
    first: tuple[NDArray[np.int32], Encoding],
    second: tuple[NDArray[np.int32], Encoding],
    output: Encoding,
) -> NDArray[np.int32]:
    """Multiply two quantized tensors (MLAS ``QLinearMul``, SSE2: no fused multiply-add).

        q = clamp(round_half_to_even(float32(p)·r + z_y)),  p = (q_1 − z_1)(q_2 − z_2),  r = s_1·s_2 / s_y

    Args:
        first: Codes and per-tensor encoding.
        second: Codes and per-tensor encoding, broadcastable to the first.
        output: Per-tensor encoding.

    Returns:
        Codes, int32, the broadcast shape.
    """
    product = (first[0] - first[1].zero_point) * (second[0] - second[1].zero_point)
    ratio = (first[1].scale * second[1].scale) / output.scale
    return saturate_shifted(product.astype(np.float32) * ratio + np.float32(output.zero_point), output)


def logistic(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rational approximation of the sigmoid in ``MlasComputeLogistic`` (from Eigen), with fused multiply-add.

    Args:
        x: float32, any shape.

    Returns:
        float32, the shape of ``x``; within 1.7e-7 of the exact sigmoid.
    """
    x = np.clip(x, np.float32(-18), np.float32(18))
    square = x * x
    numerator = _polynomial(square, _LOGISTIC_NUMERATOR) * x
    denominator = _polynomial(square, _LOGISTIC_DENOMINATOR)
    result: NDArray[np.float32] = np.clip(numerator / denominator + np.float32(0.5), np.float32(0), np.float32(1))
    return result


#: Coefficients of ``MlasLogisticConstants``, highest power of x² first.
_LOGISTIC_NUMERATOR = (
    4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01,
)  # fmt: skip
_LOGISTIC_DENOMINATOR = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03, 1.16817656904453e-01,
    9.93151921023180e-01,
)  # fmt: skip


def _polynomial(x: NDArray[np.float32], coefficients: tuple[float, ...]) -> NDArray[np.float32]:
    """Evaluate by Horner's rule with fused multiply-add."""
    value = np.full_like(x, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        value = multiply_add(value, x, np.float32(coefficient))
    return value


def _is_constant_along_innermost_axis(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether only the first of two broadcast shapes has size 1 on the innermost axis that has more than one entry."""
    rank = max(len(shape), len(other))
    pairs = zip((1,) * (rank - len(shape)) + shape, (1,) * (rank - len(other)) + other, strict=True)
    innermost = next((pair for pair in reversed(list(pairs)) if pair != (1, 1)), (1, 1))
    return innermost[0] == 1 and innermost[1] > 1
