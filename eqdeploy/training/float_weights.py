"""Weights of a float network in a safetensors file, under the names that the network's own modules have.

The file is a plain state dictionary: ``model.load_state_dict(safetensors.torch.load_file(path))`` reads it, and any
network's ``safetensors.torch.save_file(model.state_dict(), path)`` writes one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from eqdeploy.errors import CheckpointError
from eqdeploy.files import write_atomically
from eqdeploy.supernet.given_model import not_finite
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.zoo.wrappers import unwrapped_names

#: What torch counts beside a BatchNorm's statistics; it has no effect on what a network computes.
_COUNTER = "num_batches_tracked"
_SHOWN = 2


def save_float_weights(model: nn.Module, supernet: Supernet, path: Path) -> None:
    """Write the weights of a supernet's float network under the names of the model that it was made of.

    Args:
        model: The original; what the supernet does not use is written as it is there.
        supernet: Its weights and BatchNorm statistics are written, without any quantizer.
        path: File to write or replace.

    Raises:
        OutputError: If the file cannot be written.
    """
    trained = supernet.graph_module.state_dict()
    original = model.state_dict(keep_vars=True)
    # A layer under two names is one tensor in the original, and under one of them in the supernet.
    by_tensor = {id(tensor): trained[name] for name, tensor in original.items() if name in trained}
    tensors = {name: by_tensor.get(id(tensor), tensor) for name, tensor in original.items()}
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    write_atomically(path, save(copies))


def load_float_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of a file into a model.

    Args:
        model: Receives every parameter and buffer, in its own types.
        path: A safetensors file. Prefixes of all its names that wrappers leave, such as ``module.`` of
            ``nn.DataParallel`` and ``_orig_mod.`` of ``torch.compile``, are passed over.

    Raises:
        CheckpointError: If the file is missing, damaged, a pickle, or does not fit the model; the message names what.
    """
    if path.is_dir():
        raise CheckpointError("cannot read the weights: it is a folder", where=str(path), hint="give a file in it")
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        hint = "pickles are not read; write safetensors.torch.save_file(model.state_dict(), ...)"
        raise CheckpointError(
            f"cannot read the weights: {error}", where=str(path), hint=hint if _is_pickle(path) else None
        ) from error
    expected = model.state_dict()
    found = unwrapped_names(found, set(expected))
    constants = dict(model.named_buffers())
    kinds = [
        [f"{name} is missing" for name in expected if name not in found and not name.endswith(_COUNTER)],
        [f"{name} is unexpected" for name in sorted(found) if name not in expected],
        [
            f"{name} is {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
        [
            f"{name} is {found[name].dtype} instead of {tensor.dtype}"
            for name, tensor in expected.items()
            if name in found and tensor.is_floating_point() and not found[name].is_floating_point()
        ],
        [
            f"{name} is not finite"
            for name, tensor in expected.items()
            if name in found and not_finite(found[name].to(tensor.dtype), constants.get(name))
        ],
    ]
    if any(kinds):
        shown = "; ".join(_shortened(problems) for problems in kinds if problems)
        raise CheckpointError(f"the weights do not fit the model: {shown}", where=str(path))
    model.load_state_dict(found, strict=False)


def _shortened(problems: list[str]) -> str:
    """The first problems of one kind, and how many there are besides."""
    more = len(problems) - _SHOWN
    return "; ".join(problems[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like what ``torch.save`` writes, now or before it wrote zip archives."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))
