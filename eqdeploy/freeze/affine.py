"""BatchNorm and bias of a layer as one gain and one shift per output channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from eqdeploy.freeze.folding import ChannelAffine
from eqdeploy.network import LayerInfo, OpKind
from eqdeploy.supernet.supernet import Supernet


def channel_affine(supernet: Supernet, layer: LayerInfo) -> ChannelAffine:
    """What follows a layer's product: BatchNorm with its current statistics, and the layer's own bias.

    Returns:
        In float64; not finite where the variance is not positive or a parameter is damaged.
    """
    module = supernet.graph_module.get_submodule(layer.name)
    channels = layer.weight_shape[1] * layer.groups if layer.op is OpKind.CONV_TRANSPOSE else layer.weight_shape[0]
    bias = _optional(module, "bias", np.zeros(channels))
    if layer.batch_norm is None:
        return ChannelAffine(np.ones(channels), bias)
    norm = supernet.graph_module.get_submodule(layer.batch_norm)
    gamma, beta = _optional(norm, "weight", np.ones(channels)), _optional(norm, "bias", np.zeros(channels))
    mean, epsilon = _optional(norm, "running_mean", np.zeros(channels)), norm.eps
    assert isinstance(epsilon, float)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if norm.running_var is not None:
            gamma = gamma / np.sqrt(to_numpy(norm.running_var).astype(np.float64) + epsilon)
        gain = np.array(np.broadcast_to(gamma, channels))  # trained folded, a layer has one gain
        return ChannelAffine(gain, beta + (bias - mean) * gain)


def to_numpy(tensor: Any) -> NDArray[Any]:
    """A parameter or buffer as an array."""
    assert isinstance(tensor, Tensor)
    return np.asarray(tensor.detach().cpu().numpy())


def _optional(module: nn.Module, name: str, default: NDArray[np.float64]) -> NDArray[np.float64]:
    """A parameter in float64, or the default where the module has none."""
    parameter = getattr(module, name, None)
    return default if parameter is None else to_numpy(parameter).astype(np.float64)
