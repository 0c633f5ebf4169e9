"""Fake quantization with learned scale and zero-point (LSQ, LSQ+).

The forward pass is :func:`eqdeploy.quant.affine.quantize` and ``dequantize``; only the gradients live here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eqdeploy.quant.affine import dequantize, quantize
from eqdeploy.quant.form import Form


class Operands(NamedTuple):
    """All that a fake quantizer needs besides its input.

    Attributes:
        scale: Positive, float32, broadcastable to the input: one element, or one per channel with singleton axes.
        zero_point: Integer-valued, float32, inside the range, of the shape of ``scale``.
        q_min: Smallest code.
        q_max: Largest code.
        gradient_scale: Factor on the gradients of scale and zero-point.
    """

    scale: Tensor
    zero_point: Tensor
    q_min: float | Tensor
    q_max: float | Tensor
    gradient_scale: float | Tensor

    @staticmethod
    def of(form: Form, scale: Tensor, zero_point: Tensor, *, sharing: int) -> Operands:
        """Join the numbers of a form.

        Args:
            form: Gives the integer range.
            scale: See :attr:`scale`.
            zero_point: See :attr:`zero_point`.
            sharing: N, the number of values that share a scale: the gradients of scale and zero-point are
                multiplied by 1/sqrt(N · q_max) (LSQ, Eq. 4).
        """
        factor = 1.0 / math.sqrt(max(sharing, 1) * max(form.q_max, 1))
        return Operands(scale, zero_point, form.q_min, form.q_max, factor)

    def as_tensors(self) -> Operands:
        """The same with the range as tensors of shape (), for graphs that must not depend on the form."""
        return self._replace(
            q_min=self.scale.new_tensor(self.q_min),
            q_max=self.scale.new_tensor(self.q_max),
            gradient_scale=self.scale.new_tensor(self.gradient_scale),
        )


class _FakeQuantize(torch.autograd.Function):
    """Straight-through gradients of LSQ (Esser et al., 2020) and LSQ+ (Bhalgat et al., 2020).

    With v = x/s + z: inside the range dx̄/dx = 1, dx̄/ds = round(x/s) − x/s, dx̄/dz = 0; clamped at q_c they
    are 0, q_c − z and −s. "Inside" tests v before rounding. All is computed in float32, whatever the input's type:
    the quotient of a bfloat16 division would already be rounded to eight bits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        q_min: float | Tensor,
        q_max: float | Tensor,
        gradient_scale: float | Tensor,
    ) -> Tensor:
        codes = quantize(x.float(), scale, zero_point, q_min, q_max)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.range = (q_min, q_max)
        ctx.gradient_scale = gradient_scale
        return dequantize(codes, scale, zero_point)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        q_min, q_max = ctx.range
        gradient_scale = ctx.gradient_scale
        ratio = x.float() / scale
        position = ratio + zero_point
        clamped = position.clip(q_min, q_max)
        inside = position == clamped
        gradient_x = (gradient * inside).to(x.dtype) if ctx.needs_input_grad[0] else None
        scale_gradient = zero_point_gradient = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, ratio.round() - ratio, clamped - zero_point)
            scale_gradient = _sum_to(gradient * slope, scale) * gradient_scale
        if ctx.needs_input_grad[2]:
            slope = torch.where(inside, torch.zeros_like(scale), -scale)
            zero_point_gradient = _sum_to(gradient * slope, zero_point) * gradient_scale
        return gradient_x, scale_gradient, zero_point_gradient, None, None, None


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    """Sum ``values`` down to the shape of the broadcast tensor ``like``."""
    return values.sum().reshape(like.shape) if like.numel() == 1 else values.sum_to_size(like.shape)


def fake_quantize(x: Tensor, operands: Operands) -> Tensor:
    """Quantize and dequantize with gradients for ``x``, scale and zero-point.

    Args:
        x: Real values, any shape, float32 (or bfloat16 under autocast).
        operands: Scale, zero-point and range.

    Returns:
        ``scale * (codes - zero_point)``, the shape of ``x``, float32.
    """
    result: Tensor = _FakeQuantize.apply(x, *operands)  # type: ignore[no-untyped-call]
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
