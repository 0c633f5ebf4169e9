"""What every layer of a subnet computes, taken from torch's own modules: integers, gain and shift."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqdeploy.network import LayerInfo, OpKind
from eqdeploy.quant.form import Form
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.folded_norm import FoldedNorm
from eqdeploy.supernet.shared_layers import expand_channels
from eqdeploy.supernet.supernet import Supernet

#: Relative error of float64 arithmetic in a few operations.
DOUBLE_ROUNDING = 2.0**-40


@dataclass(frozen=True, eq=False)
class LayerTarget:
    """A layer of the subnet: y = gain · (layer(x, scale · steps)) + shift.

    Attributes:
        layer: The layer.
        form: Its active form.
        steps: Integers of the supernet's quantizer without zero-point, int64, the shape of the weight.
        scale: Scale of the supernet's quantizer, float64, shape () or (channels of the axis,).
        gain: float64, shape (C,), C the output channels.
        shift: float64, shape (C,); the layer's own bias is part of it.
        slack: What float64 arithmetic may have moved the shift by, shape (C,); 0 where it is the layer's own bias.
        has_bias: Whether a device needs a bias.
    """

    layer: LayerInfo
    form: Form
    steps: NDArray[np.int64]
    scale: NDArray[np.float64]
    gain: NDArray[np.float64]
    shift: NDArray[np.float64]
    slack: NDArray[np.float64]
    has_bias: bool

    @property
    def trained(self) -> NDArray[np.float64]:
        """The fake-quantized weight, without the gain."""
        return along(self.scale, self.layer.channel_axis, self.steps.ndim) * self.steps

    @property
    def weight(self) -> NDArray[np.float64]:
        """The folded weight that a device should hold."""
        gain = expand_channels(torch.from_numpy(self.gain), self.layer).numpy()
        return np.asarray(self.trained * gain, np.float64)


@torch.no_grad()
def layer_targets(supernet: Supernet, subnet: SubnetConfig) -> dict[str, LayerTarget]:
    """Every layer of a subnet, with the BatchNorm statistics as they are now.

    Args:
        supernet: Is left as it is.
        subnet: Which of its forms.
    """
    forms = dict(subnet.weights)
    return {layer.name: _target(supernet, layer, forms[layer.name]) for layer in supernet.network.layers}


def along(values: NDArray[np.float64], axis: int, rank: int) -> NDArray[np.float64]:
    """Shape one value per channel so that it lines up with a tensor of ``rank`` axes; a single value stays one."""
    if not values.ndim:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _target(supernet: Supernet, layer: LayerInfo, form: Form) -> LayerTarget:
    module = supernet.graph_module.get_submodule(layer.name)
    weight = module.weight
    assert isinstance(weight, Tensor)
    scale, zero_point = supernet.weight_quantizer(layer.name).numbers(form)
    shape = [1] * weight.ndim
    shape[layer.channel_axis] = -1
    divisor, offset = (value.reshape(shape) if value.ndim else value for value in (scale, zero_point))
    codes = torch.clamp(torch.round(weight / divisor) + offset, form.q_min, form.q_max)
    gain, shift, size = _affine(supernet, layer, getattr(module, "bias", None))
    return LayerTarget(
        layer=layer,
        form=form,
        steps=(codes - offset).round().to(torch.int64).cpu().numpy(),
        scale=scale.double().cpu().numpy(),
        gain=gain,
        shift=shift,
        slack=DOUBLE_ROUNDING * size,
        has_bias=layer.batch_norm is not None or getattr(module, "bias", None) is not None,
    )


def _affine(
    supernet: Supernet, layer: LayerInfo, bias: Tensor | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Gain, shift and the magnitudes in the shift: the values of torch's own module at 0 and 1, in float64."""
    channels = layer.weight_shape[1] * layer.groups if layer.op is OpKind.CONV_TRANSPOSE else layer.weight_shape[0]
    own = torch.zeros(channels, dtype=torch.float64) if bias is None else bias.detach().double().cpu()
    if layer.batch_norm is None:
        return np.ones(channels), own.numpy(), np.zeros(channels)  # nothing was computed
    norm = in_double(supernet.graph_module.get_submodule(layer.batch_norm))
    # As many axes as the tensor itself has: torch's BatchNorm1d and 2d insist on it.
    rank = len(supernet.network.tensor[layer.output_tensor].shape) + 1
    values = [norm(x.reshape(1, -1, *[1] * (rank - 2))).reshape(-1) for x in (own, own + 1.0, torch.zeros_like(own))]
    shift, above, at_zero = values
    gain = above - shift
    size = shift.abs() + at_zero.abs() + (gain * own).abs()
    mean = norm.running_mean
    if isinstance(mean, Tensor):
        size = size + (gain * mean).abs()
    return gain.numpy(), shift.numpy(), size.numpy()


def in_double(module: nn.Module) -> nn.Module:
    """A copy of a normalization in float64 and evaluation mode; a folded one with its bias not rounded to a grid.

    The supernet rounds that bias to the grid of its own scales; here it is the device's grid that counts.
    """
    return convert_to_double(copy.deepcopy(module).cpu())


def convert_to_double(module: nn.Module) -> nn.Module:
    """Convert a module, as :func:`in_double` does with a copy.

    Tables that are only looked up stay as they are: no operation rounds what comes out of them, and in float64 the
    largest of all weights would take twice its memory.

    Args:
        module: Is changed; its parameters are replaced, not converted in place.

    Returns:
        The same module.
    """
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.max_norm is None:
            continue
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_floating_point():
                setattr(part, name, nn.Parameter(parameter.detach().double(), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(part, name, buffer.double())
        if isinstance(part, FoldedNorm):
            part.accumulator_scale = torch.zeros_like(part.bias)
    return module.eval()
