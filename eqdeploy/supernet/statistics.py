"""The BatchNorm statistics of a network, taken out and put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eqdeploy.supernet.operations import BATCH_NORM_MODULES

_NAMES = ("running_mean", "running_var")


def read_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all running means and variances by path, e.g. ``bn1.running_mean``."""
    return {
        f"{path}.{name}": buffer.clone()
        for path, module in model.named_modules()
        if isinstance(module, BATCH_NORM_MODULES)
        for name in _NAMES
        if (buffer := getattr(module, name, None)) is not None
    }


@torch.no_grad()
def write_statistics(model: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Put statistics that :func:`read_statistics` took from a network of the same structure into another."""
    buffers = dict(model.named_buffers())
    for path, value in statistics.items():
        buffers[path].copy_(value)
