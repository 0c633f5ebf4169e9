"""Where the numbers of a network stop being finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from eqdeploy.supernet.inputs import Inputs, parts, positional
from eqdeploy.supernet.supernet import ACTIVATION_QUANTIZERS, Supernet


@torch.no_grad()
def first_output_not_finite(supernet: Supernet, images: Inputs) -> str | None:
    """Run images through the active subnet and find the first operation that makes NaN or infinity of finite values.

    In float32 first; if nothing overflows there, in bfloat16, whose range is a little smaller. BatchNorm statistics
    and random generators may be changed.

    Args:
        supernet: In the mode in which the numbers overflowed.
        images: The batch, (N, ...) float32.

    Returns:
        The layer or operation, by the name that the network's description gives it; None if the images themselves
        are not finite, or everything is.
    """
    if not all(bool(torch.isfinite(part).all()) for part in parts(images)):
        return None
    for lower in (False, True):
        search = _Search(supernet.graph_module)
        with torch.autocast(parts(images)[0].device.type, torch.bfloat16, enabled=lower):
            search.run(*positional(supernet.graph_module.graph, images))
        if search.found is not None:
            return search.found.removeprefix(f"{ACTIVATION_QUANTIZERS}.")
    return None


class _Search(fx.Interpreter):
    """Runs a graph operation by operation, and remembers the first whose output is not finite."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.found: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation."""
        result = super().run_node(n)
        if self.found is None and not _finite(result):
            self.found = str(n.target) if n.op == "call_module" else n.name
        return result


def _finite(value: Any) -> bool:
    """Whether all numbers are finite; a split tensor is a tuple of tensors."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_finite, value))
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())
