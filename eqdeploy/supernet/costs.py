"""Parameters and multiply-accumulate operations of every part of a network, counted without computing a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from eqdeploy.supernet.copies import copy_sharing_weights, copy_without_data
from eqdeploy.supernet.inputs import Inputs, map_inputs, positional
from eqdeploy.supernet.supernet import ACTIVATION_QUANTIZERS, Supernet


@dataclass(frozen=True)
class NetworkCosts:
    """What the operations of a network cost.

    Attributes:
        macs: Multiply-accumulate operations for one input by tensor name, as torch's own counter counts them;
            operations that multiply no matrices are left out.
        parameters: Parameters outside the quantizable layers and the BatchNorms that are folded into them, by the
            name of the tensor that they help to compute; each is counted once.
    """

    macs: Mapping[str, int]
    parameters: Mapping[str, int]


def count_costs(supernet: Supernet) -> NetworkCosts:
    """Count what a network costs.

    The operations are counted on tensors without data; where one of them needs data, on zeros.
    """
    example = map_inputs(lambda part: part[:1], supernet.example)
    try:
        # Without data it takes no time, and torch has no fused kernels there that its counter does not know.
        bare = copy_without_data(supernet).eval()
        macs = _count(bare, map_inputs(lambda part: part.to("meta"), example))
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        macs = _count(copy_sharing_weights(supernet).eval(), example)
    return NetworkCosts(macs=macs, parameters=_other_parameters(supernet))


class _Counter(fx.Interpreter):
    """Runs a graph and attributes operations to nodes."""

    def __init__(self, graph_module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(graph_module)
        self.counter = counter
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        flops = self.counter.get_total_flops() - before
        if flops:
            self.macs[n.name] = flops // 2
        return result


def _count(supernet: Supernet, example: Inputs) -> dict[str, int]:
    """Multiply-accumulate operations by tensor name."""
    supernet.deactivate()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        interpreter = _Counter(supernet.graph_module, counter)
        interpreter.run(*positional(supernet.graph_module.graph, example))
    return interpreter.macs


def _other_parameters(supernet: Supernet) -> dict[str, int]:
    """Parameters that are neither of a quantizable layer nor folded into one."""
    layers = supernet.network.layers
    own = {layer.name for layer in layers} | {layer.batch_norm for layer in layers if layer.batch_norm is not None}
    counted: set[int] = set()
    found: dict[str, int] = {}
    for node in supernet.graph_module.graph.nodes:
        target = str(node.target)
        if (
            node.op not in ("call_module", "get_attr")
            or target in own
            or target.startswith(f"{ACTIVATION_QUANTIZERS}.")
        ):
            continue
        new = [parameter for parameter in _parameters(supernet.graph_module, node) if id(parameter) not in counted]
        counted.update(id(parameter) for parameter in new)
        if new:
            found[node.name] = sum(parameter.numel() for parameter in new)
    return found


def _parameters(graph_module: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    """Parameters that a node uses."""
    if node.op == "call_module":
        return list(graph_module.get_submodule(str(node.target)).parameters())
    parent, _, name = str(node.target).rpartition(".")
    value = getattr(graph_module.get_submodule(parent), name)
    return [value] if isinstance(value, nn.Parameter) else []
