"""Elastic layers: torch's layers with an elastic quantizer on the weight, sharing the float weight."""

from __future__ import annotations

from collections.abc import Sequence

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


class ElasticConvTranspose2d(nn.ConvTranspose2d):
    """ConvTranspose2d with the fake-quantized weight."""

    weight_quantizer: ElasticQuantizer

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Same shapes as ``nn.ConvTranspose2d`` without ``output_size``."""
        if output_size is not None:
            raise ValueError("output_size is not supported; set output_padding instead")
        return F.conv_transpose2d(
            input,
            self.weight_quantizer(self.weight),
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.output_padding,
            self.groups,
            self.dilation,
        )


class ElasticLinear(nn.Linear):
    """Linear with the fake-quantized weight."""

    weight_quantizer: ElasticQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """Same shapes as ``nn.Linear``."""
        return F.linear(input, self.weight_quantizer(self.weight), self.bias)


ElasticLayer = ElasticConv1d | ElasticConv2d | ElasticConvTranspose2d | ElasticLinear


def channel_axis(layer: nn.Module) -> int:
    """Axis of a weight along which per-channel scales run: 1 for ConvTranspose, else 0."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def make_elastic(layer: nn.Module, forms: Sequence[Form], *, power_of_two: bool = False) -> ElasticLayer:
    """Return the elastic counterpart of a layer; both share weight and bias.

    Args:
        layer: Conv1d, Conv2d, ConvTranspose2d or Linear (exactly; subclasses may compute something else).
        forms: Forms to own scales for.
        power_of_two: Whether scales are powers of two.

    Raises:
        TypeError: If the layer is of another type.
    """
    elastic: ElasticLayer
    # Made on the meta device: the constructor would otherwise fill weights that are replaced at once.
    if type(layer) is nn.Linear:
        elastic = ElasticLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    elif type(layer) in (nn.Conv1d, nn.Conv2d) and isinstance(layer, nn.Conv1d | nn.Conv2d):
        kind = ElasticConv1d if isinstance(layer, nn.Conv1d) else ElasticConv2d
        elastic = kind(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",
        )
    elif type(layer) is nn.ConvTranspose2d:
        elastic = ElasticConvTranspose2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.output_padding,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            layer.dilation,  # type: ignore[arg-type]
            layer.padding_mode,
            device="meta",
        )
    else:
        raise TypeError(f"{type(layer).__name__} is no quantizable layer")
    elastic.weight = layer.weight
    elastic.bias = layer.bias
    axis = channel_axis(layer)
    elastic.weight_quantizer = ElasticQuantizer(
        forms, axis=axis, channels=layer.weight.shape[axis], power_of_two=power_of_two
    )
    elastic.train(layer.training)
    return elastic
