"""Copies of a network that do not copy its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copy_sharing_weights(module: ModuleT, but: Iterable[nn.Parameter] = ()) -> ModuleT:
    """Copy a module with its buffers; the parameters are the same tensors, without gradients.

    For who runs another subnet or other statistics beside the original, and changes no weight that is shared.

    Args:
        module: Is left as it is.
        but: Parameters that are copied, too.
    """
    copied = {id(parameter) for parameter in but}
    shared: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in module.parameters()
        if id(parameter) not in copied
    }
    return copy.deepcopy(module, shared).requires_grad_(requires_grad=False)


def copy_without_data(module: ModuleT) -> ModuleT:
    """Copy a module to torch's device ``meta``, where tensors have shapes and no data.

    Args:
        module: Is left as it is.
    """
    bare: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, bare).to("meta")
