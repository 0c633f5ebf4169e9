"""What a network needs that a file declares, counted before anything of it is allocated.

A checkpoint names an architecture, its arguments and the shape of an input in a few bytes. All three may ask for any
amount of memory. On torch's device ``meta`` a network has shapes and no data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqdeploy.errors import CheckpointError
from eqdeploy.supernet.inputs import Inputs, call, map_inputs
from eqdeploy.supernet.shapes import tensors_in

#: Bytes of all results of all layers for the two inputs that a network is converted with: a ResNet-50 on 224×224 has
#: 0.3 GiB, on 1024×1024 6 GiB.
MAXIMUM_ACTIVATION_BYTES = 8 << 30

#: Weights of the network for each byte of the file. A supernet has all of them, but for parts that only training runs.
_WEIGHTS_PER_BYTE = 4

#: Weights that are built whatever the file holds, so that a file that lacks some is told which.
_SMALL_BYTES = 64 << 20

#: What torch raises where something needs data, which nothing on this device has.
_NEEDS_DATA = (NotImplementedError, RuntimeError, TypeError, ValueError)

_HINT = "if the file is yours, pass the network with --model package.module:factory"


def check_declared_size(build: Callable[[], nn.Module], example: Inputs, stored_bytes: int, *, where: str) -> None:
    """Refuse a network with far more weights than its file holds, or with results that are too large.

    Args:
        build: Makes the network.
        example: Two inputs.
        stored_bytes: Size of all tensors in the file.
        where: The file, for messages.

    Raises:
        CheckpointError: If it needs more.
    """
    try:
        with torch.device("meta"):
            network = build().eval()
    except _NEEDS_DATA:  # nothing is known; what is wrong besides, building it with data says
        return
    weights = sum(_bytes(parameter) for parameter in network.parameters())
    if weights > max(_SMALL_BYTES, _WEIGHTS_PER_BYTE * stored_bytes):
        raise CheckpointError(
            f"the network that it names has {weights:,} bytes of weights, the file {stored_bytes:,}", where=where
        )
    needed = activation_bytes(network, map_inputs(lambda tensor: torch.empty_like(tensor, device="meta"), example))
    if needed is not None and needed > MAXIMUM_ACTIVATION_BYTES:
        raise CheckpointError(
            f"two inputs of this shape make {needed / (1 << 30):.1f} GiB of results of the layers",
            where=f"{where}: input_shape",
            hint=_HINT,
        )


def activation_bytes(network: nn.Module, inputs: Inputs) -> int | None:
    """Size of the results of all layers, counted on the device ``meta``.

    Args:
        network: A network on that device.
        inputs: Inputs on it.

    Returns:
        Bytes; None if the network computes something that has no shape without data.
    """
    total = 0

    def count(module: nn.Module, arguments: object, result: object) -> None:
        nonlocal total
        total += sum(_bytes(tensor) for tensor in tensors_in(result))

    hooks = [module.register_forward_hook(count) for module in network.modules() if not any(module.children())]
    try:
        with torch.no_grad():
            call(network, inputs)
    except _NEEDS_DATA:
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _bytes(tensor: Tensor) -> int:
    """Size of a tensor's data."""
    return tensor.numel() * tensor.element_size()
