"""Elastic layers: torch's layers with an elastic quantizer on the weight, sharing the float weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.quant.elastic_quantizer import ElasticQuantizer
from eqdeploy.quant.form import Form


class ElasticConv1d(nn.Conv1d):
    """Conv1d that convolves with the fake-quantized weight."""

    weight_quantizer: ElasticQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """Same shapes as ``nn.Conv1d``."""
        result: Tensor = self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)
        return result


class ElasticConv2d(nn.Conv2d):
    """Conv2d that convolves with the fake-quantized weight."""

    weight_quantizer: ElasticQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """Same shapes as ``nn.Conv2d``."""
        result: Tensor = self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)
        return result


class ElasticConv3d(nn.Conv3d):
    """Conv3d that convolves with the fake-quantized weight."""

    weight_quantizer: ElasticQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """Same shapes as ``nn.Conv3d``."""
        result: Tensor = self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)
        return result


def _transposed(function: Callable[..., Tensor], layer: Any, input: Tensor, output_size: list[int] | None) -> Tensor:
    """A transposed convolution with the fake-quantized weight of a layer."""
    if output_size is not None:
        raise ValueError("output_size is not supported; set output_padding instead")
    return function(
        input,
        layer.weight_quantizer(layer.weight),
        layer.bias,
        layer.stride,
        layer.padding,
        layer.output_padding,
        layer.groups,
        layer.dilation,
    )


class ElasticConvTranspose1d(nn.ConvTranspose1d):
    """ConvTranspose1d with the fake-quantized weight."""

    weight_quantizer: ElasticQuantizer

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Same shapes as ``nn.ConvTranspose1d`` without ``output_size``."""
        return _transposed(F.conv_transpose1d, self, input, output_size)


class ElasticConvTranspose2d(nn.ConvTranspose2d):
    """ConvTranspose2d with the fake-quantized weight."""

    weight_quantizer: ElasticQuantizer

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Same shapes as ``nn.ConvTranspose2d`` without ``output_size``."""
        return _transposed(F.conv_transpose2d, self, input, output_size)


class ElasticConvTranspose3d(nn.ConvTranspose3d):
    """ConvTranspose3d with the fake-quantized weight."""

    weight_quantizer: ElasticQuantizer

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Same shapes as ``nn.ConvTranspose3d`` without ``output_size``."""
        return _transposed(F.conv_transpose3d, self, input, output_size)


class ElasticLinear(nn.Linear):
    """Linear with the fake-quantized weight."""

    weight_quantizer: ElasticQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """Same shapes as ``nn.Linear``."""
        return F.linear(input, self.weight_quantizer(self.weight), self.bias)


ElasticConvolution = ElasticConv1d | ElasticConv2d | ElasticConv3d
ElasticTransposed = ElasticConvTranspose1d | ElasticConvTranspose2d | ElasticConvTranspose3d
ElasticLayer = ElasticConvolution | ElasticTransposed | ElasticLinear

_CONVOLUTIONS: Mapping[type[nn.Module], type[ElasticConvolution]] = {
    nn.Conv1d: ElasticConv1d,
    nn.Conv2d: ElasticConv2d,
    nn.Conv3d: ElasticConv3d,
}
_TRANSPOSED: Mapping[type[nn.Module], type[ElasticTransposed]] = {
    nn.ConvTranspose1d: ElasticConvTranspose1d,
    nn.ConvTranspose2d: ElasticConvTranspose2d,
    nn.ConvTranspose3d: ElasticConvTranspose3d,
}


def channel_axis(layer: nn.Module) -> int:
    """Axis of a weight along which per-channel scales run: 1 for ConvTranspose, else 0."""
    return 1 if isinstance(layer, tuple(_TRANSPOSED)) else 0


def make_elastic(layer: nn.Module, forms: Sequence[Form], *, power_of_two: bool = False) -> ElasticLayer:
    """Return the elastic counterpart of a layer; both share weight and bias.

    Args:
        layer: A convolution, transposed convolution or Linear (exactly; subclasses may compute something else).
        forms: Forms to own scales for.
        power_of_two: Whether scales are powers of two.

    Raises:
        TypeError: If the layer is of another type.
    """
    elastic: ElasticLayer
    # Made on the meta device: the constructor would otherwise fill weights that are replaced at once.
    if type(layer) is nn.Linear:
        elastic = ElasticLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    elif type(layer) in _CONVOLUTIONS:
        elastic = _CONVOLUTIONS[type(layer)](**_options(layer), device="meta")
    elif type(layer) in _TRANSPOSED:
        options = {**_options(layer), "output_padding": layer.output_padding}
        elastic = _TRANSPOSED[type(layer)](**options, device="meta")
    else:
        raise TypeError(f"{type(layer).__name__} is no quantizable layer")
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    elastic.weight = weight
    elastic.register_parameter("bias", layer._parameters["bias"])
    axis = channel_axis(layer)
    elastic.weight_quantizer = ElasticQuantizer(
        forms, axis=axis, channels=weight.shape[axis], power_of_two=power_of_two
    )
    elastic.train(layer.training)
    return elastic


def _options(layer: nn.Module) -> dict[str, Any]:
    """What convolutions of every kind are built with."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {**{name: getattr(layer, name) for name in names}, "bias": layer.bias is not None}
