"""Fake quantization with learned scale and zero-point (LSQ, LSQ+).

The forward pass is :func:`eqdeploy.quant.affine.quantize` and ``dequantize``; only the gradients live here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eqdeploy.quant.affine import dequantize, quantize
from eqdeploy.quant.form import Form


class _FakeQuantize(torch.autograd.Function):
    """Straight-through gradients of LSQ (Esser et al., 2020) and LSQ+ (Bhalgat et al., 2020).

    With v = x/s + z: inside the range dx̄/dx = 1, dx̄/ds = round(x/s) − x/s, dx̄/dz = 0; clamped at q_c they
    are 0, q_c − z and −s. "Inside" tests v before rounding.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, gradient_scale: float
    ) -> Tensor:
        codes = quantize(x, scale, zero_point, q_min, q_max)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.range = (q_min, q_max)
        ctx.gradient_scale = gradient_scale
        return dequantize(codes, scale, zero_point)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        q_min, q_max = ctx.range
        ratio = x / scale
        position = ratio + zero_point
        clamped = position.clip(q_min, q_max)
        inside = position == clamped
        gradient_x = gradient * inside if ctx.needs_input_grad[0] else None
        gradient_scale = gradient_zero_point = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, ratio.round() - ratio, clamped - zero_point)
            gradient_scale = _sum_to(gradient * slope, scale) * ctx.gradient_scale
        if ctx.needs_input_grad[2]:
            slope = torch.where(inside, torch.zeros_like(scale), -scale)
            gradient_zero_point = _sum_to(gradient * slope, zero_point) * ctx.gradient_scale
        return gradient_x, gradient_scale, gradient_zero_point, None, None, None


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    """Sum ``values`` down to the shape of the broadcast tensor ``like``."""
    return values.sum().reshape(like.shape) if like.numel() == 1 else values.sum_to_size(like.shape)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, form: Form) -> Tensor:
    """Quantize and dequantize with gradients for ``x``, ``scale`` and ``zero_point``.

    Args:
        x: Real values, any shape, float32.
        scale: Positive, broadcastable to ``x``: one element, or one per channel with singleton axes.
        zero_point: Integer-valued float tensor of the shape of ``scale``, inside the form's range.
        form: Gives the integer range.

    Returns:
        ``scale * (codes - zero_point)``, the shape of ``x``. The gradients of scale and zero-point are
        multiplied by 1/sqrt(N · q_max), N the number of elements that share a scale (LSQ, Eq. 4).
    """
    sharing = x.numel() // max(scale.numel(), 1)
    gradient_scale = 1.0 / math.sqrt(max(sharing, 1) * max(form.q_max, 1))
    result: Tensor = _FakeQuantize.apply(x, scale, zero_point, form.q_min, form.q_max, gradient_scale)  # type: ignore[no-untyped-call]
    return result


class _ClampRecoverably(torch.autograd.Function):
    """Clamp whose gradient is blocked only where a descent step would lead further out of the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (low, high)
        return x.clamp(low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        outwards = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
        return gradient.masked_fill(outwards, 0.0), None, None


def clamp_recoverably(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp a parameter; one that an optimizer step has moved outside can come back.

    The gradient of an ordinary clamp is zero outside the range, so that such a parameter would stay there for good.
    """
    result: Tensor = _ClampRecoverably.apply(x, low, high)  # type: ignore[no-untyped-call]
    return result


def round_straight_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged."""
    return x + (x.round() - x).detach()
