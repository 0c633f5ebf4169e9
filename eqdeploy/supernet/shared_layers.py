"""Layers that a model applies several times, and weights that several layers share.

Each use is a layer of its own, because a device quantizes what each reads and writes apart; the weight and its
quantizer are one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, fx, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.network import LAYER_KINDS, LayerInfo, OpKind
from eqdeploy.supernet.operations import ELASTIC_MODULES, classify
from eqdeploy.supernet.shapes import holds_tensor


def separate_uses(graph_module: fx.GraphModule) -> None:
    """Give every call of a quantizable layer a path of its own.

    The first keeps the layer's path, the others get it with ``_use_2``, ``_use_3`` … behind it. All paths lead to one
    module.

    Args:
        graph_module: A traced graph; changed in place.
    """
    called: set[str] = set()
    for node in graph_module.graph.nodes:
        path = str(node.target)
        if node.op != "call_module" or type(graph_module.get_submodule(path)) not in ELASTIC_MODULES:
            continue
        if path in called:
            node.target = path_of_use(graph_module, path)
            graph_module.add_submodule(node.target, graph_module.get_submodule(path))
        called.add(path)


def path_of_use(graph_module: nn.Module, path: str) -> str:
    """A free path for another use of the layer at ``path``."""
    owner, _, name = path.rpartition(".")
    holder, number = graph_module.get_submodule(owner), 2
    while hasattr(holder, f"{name}_use_{number}"):
        number += 1
    return f"{path}_use_{number}"


def weight_owners(graph_module: fx.GraphModule) -> dict[str, str]:
    """For each quantizable layer, in order of execution, the first one that has the same weight.

    Raises:
        UnsupportedOperationError: If something else than a layer reads a layer's parameter from the graph, or layers
            of different kinds share a weight.
    """
    kinds = {
        str(node.target): kind
        for node in graph_module.graph.nodes
        if (kind := classify(graph_module, node).kind) in LAYER_KINDS
    }
    weights = {path: graph_module.get_submodule(path).weight for path in kinds}
    _refuse_other_readers(graph_module, weights)
    owners: dict[int, str] = {}
    found: dict[str, str] = {}
    for path, kind in kinds.items():
        owner = found[path] = owners.setdefault(id(weights[path]), path)
        if kind is not kinds[owner]:
            raise UnsupportedOperationError(
                f"a {kind} shares its weight with {owner}, a {kinds[owner]}: their scales run along different axes",
                where=path,
                hint="give each its own weight",
            )
    return found


def float_parameters(graph_module: fx.GraphModule, layers: Collection[str]) -> frozenset[int]:
    """Identities of the parameters of modules that are no quantizable layers, such as an embedding's table.

    Args:
        graph_module: A traced graph.
        layers: Paths of its quantizable layers.
    """
    return frozenset(
        id(parameter)
        for node in graph_module.graph.nodes
        if node.op == "call_module" and str(node.target) not in layers
        for parameter in graph_module.get_submodule(str(node.target)).parameters()
    )


def _refuse_other_readers(graph_module: fx.GraphModule, weights: Iterable[str]) -> None:
    """Refuse to let a parameter be quantized in a layer and read as it is elsewhere."""
    layers: dict[int, str] = {}
    for path in weights:
        for parameter in graph_module.get_submodule(path).parameters():
            layers.setdefault(id(parameter), path)
    for node in graph_module.graph.nodes:
        if node.op != "get_attr" or not any(holds_tensor(user) for user in node.users):  # its device may be asked for
            continue
        owner, _, name = str(node.target).rpartition(".")
        layer = layers.get(id(getattr(graph_module.get_submodule(owner), name, None)))
        if layer is not None:
            raise UnsupportedOperationError(
                "a parameter of the layer is also read outside it",
                where=layer,
                hint="apply it there by the layer itself or by its function (F.linear, F.conv2d), which makes it "
                "another use of the layer, look it up by an nn.Embedding that has it, or clone the parameter",
            )


@torch.no_grad()
def make_gains_positive(graph_module: fx.GraphModule, layers: Iterable[LayerInfo]) -> None:
    """Negate channels with a negative BatchNorm gain, weights and gain alike: exact in float.

    The statistics follow: the layer's output changes sign, so does its mean. A tensor that several layers share is
    negated once.

    Args:
        graph_module: A graph without quantizers; changed in place.
        layers: Its layers.

    Raises:
        UnsupportedOperationError: If layers that share a weight would need it with different signs.
    """
    flips: dict[int, tuple[Tensor, Tensor, str]] = {}
    for layer in layers:
        module = graph_module.get_submodule(layer.name)
        norm = None if layer.batch_norm is None else graph_module.get_submodule(layer.batch_norm)
        weight, gain = module.weight, getattr(norm, "weight", None)
        assert isinstance(weight, Tensor)
        channels = layer.weight_shape[1] * layer.groups if layer.op is OpKind.CONV_TRANSPOSE else layer.weight_shape[0]
        sign = weight.new_ones(channels) if gain is None else torch.where(gain < 0, -1.0, 1.0)
        wanted = [(weight, expand_channels(sign, layer))]
        for part in (gain, getattr(norm, "running_mean", None), module.bias):
            wanted += [(part, sign)] if isinstance(part, Tensor) else []
        for tensor, signs in wanted:
            known = flips.setdefault(id(tensor), (tensor, signs, layer.name))
            if not torch.equal(known[1], signs):
                raise UnsupportedOperationError(
                    f"it shares a weight or bias with {known[2]}, but the BatchNorm behind only one of them multiplies "
                    "some channel by a negative number, which is folded into the weight",
                    where=layer.name,
                    hint="give each use its own layer, or train with positive gains",
                )
    for tensor, signs, _ in flips.values():
        if bool((signs < 0).any()):
            tensor.mul_(signs)


def expand_channels(values: Tensor, layer: LayerInfo) -> Tensor:
    """Shape one value per output channel so that it multiplies the layer's weight."""
    trailing = [1] * (len(layer.weight_shape) - 2)
    if layer.channel_axis == 0:
        return values.reshape(-1, 1, *trailing)
    # ConvTranspose keeps its weight as (groups · inputs, outputs of one group, …).
    rows = values.reshape(layer.groups, 1, -1).expand(-1, layer.weight_shape[0] // layer.groups, -1)
    return rows.reshape(layer.weight_shape[0], -1, *trailing)


def own_tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All parameters and buffers, each once.

    Args:
        module: Any module.

    Returns:
        Each tensor of the state dictionary under its first name; and for every other name that it has, the first.
    """
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        if known == name:
            tensors[name] = tensor.detach()
        else:
            others[name] = known
    return tensors, others
