"""The elastic quantizer: one learned scale and zero-point for every form, one form active at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.fake_quantize import Operands, clamp_recoverably, fake_quantize, round_straight_through
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quant.initialize import minimize_error, nearest_powers_of_two, subsample

#: Scales stay inside [2^-60, 2^60]: normal float32 numbers whose products with each other are normal too.
LARGEST_EXPONENT = 60.0

#: Values over which the scales of all channels together are searched, and the fewest per channel.
_MAXIMUM_VALUES_PER_FORM = 1 << 17
_MINIMUM_ROW = 128


class ElasticQuantizer(nn.Module):
    """Fake-quantizes a tensor in the active form; without one it passes the tensor through.

    Scales are learned as log2(scale), so that no optimizer step can make one zero or negative and a step has
    the same relative size at every width. Zero-points of asymmetric forms are real parameters, clamped to the
    integer range and rounded straight-through.

    Args:
        forms: Every form to own numbers for.
        axis: Channel axis of the tensor, used by per-channel forms.
        channels: Size of that axis.
        power_of_two: Whether scales are rounded, straight-through, to powers of two.
    """

    def __init__(self, forms: Sequence[Form], *, axis: int = 0, channels: int = 1, power_of_two: bool = False) -> None:
        super().__init__()
        self.forms = tuple(forms)
        self.axis = axis
        self.channels = channels
        self.power_of_two = power_of_two
        self.active: Form | None = None
        # The active form's numbers while a compiled graph runs, which must not depend on the form itself.
        self.bound: Operands | None = None
        sizes = {form: (channels,) if form.granularity is Granularity.PER_CHANNEL else () for form in self.forms}
        self.log2_scale = nn.ParameterDict({form.key: nn.Parameter(torch.zeros(size)) for form, size in sizes.items()})
        self.zero_point = nn.ParameterDict(
            {
                form.key: nn.Parameter(torch.zeros(size))
                for form, size in sizes.items()
                if form.symmetry is Symmetry.ASYMMETRIC
            }
        )

    def activate(self, form: Form | None) -> None:
        """Choose the form that :meth:`forward` simulates; None for float.

        Raises:
            ValueError: If the quantizer has no numbers for this form.
        """
        if form is not None and form.key not in self.log2_scale:
            raise ValueError(f"not trained for {form.key}")
        self.active = form

    def numbers(self, form: Form) -> tuple[Tensor, Tensor]:
        """Differentiable scale and integer-valued zero-point of a form, each of shape () or (channels,)."""
        exponent = clamp_recoverably(self.log2_scale[form.key], -LARGEST_EXPONENT, LARGEST_EXPONENT)
        exponent = round_straight_through(exponent) if self.power_of_two else exponent
        # In float32 the last bit of exp2 depends on instruction set and size: vectors have another algorithm than what
        # is left over at their end. Rounded from float64 it is one number everywhere.
        scale = torch.exp2(exponent.double()).to(exponent.dtype)
        if form.symmetry is Symmetry.SYMMETRIC:
            return scale, torch.zeros_like(scale)
        return scale, round_straight_through(clamp_recoverably(self.zero_point[form.key], form.q_min, form.q_max))

    def operands(self, form: Form, *, shape: Sequence[int], by_channel: bool = False) -> Operands:
        """The numbers of a form in the shape in which a tensor is quantized with them.

        Args:
            form: One of :attr:`forms`.
            shape: Shape of the tensor.
            by_channel: Repeat a scale that all channels share for each of them, so that every form has one shape.
        """
        scale, zero_point = self.numbers(form)
        sharing = math.prod(shape) // max(scale.numel(), 1)
        if by_channel and not scale.ndim:
            # Copies, not views of one number: a compiled graph tells the two apart.
            scale, zero_point = scale.repeat(self.channels), zero_point.repeat(self.channels)
        if scale.ndim:
            broadcast = [1] * len(shape)
            broadcast[self.axis] = -1
            scale, zero_point = scale.reshape(broadcast), zero_point.reshape(broadcast)
        return Operands.of(form, scale, zero_point, sharing=sharing)

    def forward(self, x: Tensor) -> Tensor:
        """Simulate the active form on ``x``; same shape, float32."""
        if self.bound is not None:
            return fake_quantize(x, self.bound)
        if self.active is None:
            return x
        return fake_quantize(x, self.operands(self.active, shape=x.shape))

    @torch.no_grad()
    def encoding(self, form: Form) -> Encoding:
        """The numbers of a form, as every later stage uses them."""
        scale, zero_point = self.numbers(form)
        return Encoding(
            scale=np.asarray(scale.cpu().numpy(), dtype=np.float32),
            zero_point=np.asarray(zero_point.cpu().numpy(), dtype=np.int32),
            q_min=form.q_min,
            q_max=form.q_max,
            bits=form.bits,
            signed=form.signed,
            axis=self.axis if scale.ndim else None,
        )

    @torch.no_grad()
    def initialize(self, values: Tensor) -> None:
        """Give every form the scale and zero-point with the smallest error on ``values``.

        Args:
            values: A tensor as :meth:`forward` receives it, with ``channels`` entries along ``axis``.
        """
        whole = subsample(values.reshape(1, -1).float())
        rows = None
        for form in self.forms:
            if form.granularity is Granularity.PER_CHANNEL:
                if rows is None:
                    rows = values.movedim(self.axis, 0).reshape(self.channels, -1).float()
                    rows = subsample(rows, max(_MINIMUM_ROW, _MAXIMUM_VALUES_PER_FORM // self.channels))
                scale, zero_point = self._smallest_error(rows, form)
            else:
                scale, zero_point = (number[0] for number in self._smallest_error(whole, form))
            self.log2_scale[form.key].copy_(scale.log2())
            if form.symmetry is Symmetry.ASYMMETRIC:
                self.zero_point[form.key].copy_(zero_point)

    def _smallest_error(self, rows: Tensor, form: Form) -> tuple[Tensor, Tensor]:
        """Scale and zero-point of each row with the smallest error that the quantizer can have."""
        scale, zero_point = minimize_error(rows, form)
        return nearest_powers_of_two(rows, scale, zero_point, form) if self.power_of_two else (scale, zero_point)
