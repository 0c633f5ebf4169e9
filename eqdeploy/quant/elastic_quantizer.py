"""The elastic quantizer: one learned scale and zero-point for every form, one form active at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.fake_quantize import clamp_recoverably, fake_quantize, round_straight_through
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quant.initialize import minimize_error, subsample

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
    """

    def __init__(self, forms: Sequence[Form], *, axis: int = 0, channels: int = 1) -> None:
        super().__init__()
        self.forms = tuple(forms)
        self.axis = axis
        self.channels = channels
        self.active: Form | None = None
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
        scale = torch.exp2(clamp_recoverably(self.log2_scale[form.key], -LARGEST_EXPONENT, LARGEST_EXPONENT))
        if form.symmetry is Symmetry.SYMMETRIC:
            return scale, torch.zeros_like(scale)
        return scale, round_straight_through(clamp_recoverably(self.zero_point[form.key], form.q_min, form.q_max))

    def forward(self, x: Tensor) -> Tensor:
        """Simulate the active form on ``x``; same shape, float32."""
        form = self.active
        if form is None:
            return x
        scale, zero_point = self.numbers(form)
        if scale.ndim:
            shape = [1] * x.ndim
            shape[self.axis] = -1
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        return fake_quantize(x, scale, zero_point, form)

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
                scale, zero_point = minimize_error(rows, form)
            else:
                scale, zero_point = (number[0] for number in minimize_error(whole, form))
            self.log2_scale[form.key].copy_(scale.log2())
            if form.symmetry is Symmetry.ASYMMETRIC:
                self.zero_point[form.key].copy_(zero_point)
