"""Fold every BatchNorm into the layer before it, once, before a supernet is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eqdeploy.network import BatchNormTraining, LayerInfo
from eqdeploy.supernet.folded_norm import FOLDED_NORMS, FoldedNorm, LearnedBias
from eqdeploy.supernet.shared_layers import expand_channels
from eqdeploy.supernet.supernet import Supernet


@torch.no_grad()
def fold_batch_norms(supernet: Supernet) -> None:
    """Move the gain γ/√(σ² + ε) of each BatchNorm into its layer's weight, with the statistics it has now.

    In place of each BatchNorm comes the module that the space names, which also takes over the layer's own bias;
    module paths stay. The float network in
    evaluation mode computes what it did, up to rounding. A BatchNorm that follows no layer stays. Does nothing where
    the space says ``separate``, and nothing to layers that are folded already.

    Call it with the BatchNorm statistics of the float network, before scales are initialized and before an optimizer,
    an average or a distributed wrapper takes hold of the parameters; and likewise before a saved state of a folded
    supernet is loaded.

    Args:
        supernet: Changed in place.
    """
    kind = supernet.network.space.batch_norm
    if kind is BatchNormTraining.SEPARATE:
        return
    for layer in supernet.network.layers:
        if layer.batch_norm is not None:
            norm = supernet.graph_module.get_submodule(layer.batch_norm)
            if not isinstance(norm, FoldedNorm):
                folded = _fold(norm, supernet.graph_module.get_submodule(layer.name), layer, FOLDED_NORMS[kind])
                supernet.graph_module.set_submodule(layer.batch_norm, folded)
    supernet.update_accumulator_scales()


def _fold(norm: nn.Module, module: nn.Module, layer: LayerInfo, kind: type[FoldedNorm]) -> FoldedNorm:
    """Multiply a layer by the gains of its BatchNorm; return what takes the BatchNorm's place."""
    assert isinstance(norm, _BatchNorm)
    mean, variance, weight = norm.running_mean, norm.running_var, module.weight
    assert mean is not None  # a foldable BatchNorm keeps statistics
    assert variance is not None
    assert isinstance(weight, Tensor)
    scale, shift = norm._parameters["weight"], norm._parameters["bias"]  # None stands for 1 and 0
    gain = torch.rsqrt(variance.double() + norm.eps)
    gain = gain if scale is None else gain * scale
    weight.copy_(weight * expand_channels(gain, layer))
    if isinstance(module.bias, Tensor):
        mean = mean - module.bias
        module.register_parameter("bias", None)  # all of a layer's bias is in one place, where it can be rounded
    folded = kind(mean.numel(), eps=norm.eps, momentum=norm.momentum).to(mean.device, mean.dtype)
    folded.train(norm.training)
    center = mean.double() * gain
    of_layer = (gain.square() * variance).mean()
    if shift is not None:
        folded.bias.copy_(shift)
    for name, value in (
        ("running_mean", center),
        ("running_var", of_layer),
        ("weight", (of_layer + norm.eps).sqrt()),  # undoes the division by the layer's standard deviation
        ("num_batches_tracked", norm.num_batches_tracked),
    ):
        tensor = getattr(folded, name)
        if tensor is not None and value is not None:
            tensor.copy_(value)
    if isinstance(folded, LearnedBias):
        folded.bias.sub_(center)
    return folded
