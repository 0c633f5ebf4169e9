"""What a plan costs, in numbers that can be recomputed from the exported model."""

from __future__ import annotations

from dataclasses import dataclass

from eqdeploy.network import NetworkDescription
from eqdeploy.plan import DevicePlan


@dataclass(frozen=True)
class AverageBits:
    """Mean widths, weights by their number, activations by their number of values for one image.

    Attributes:
        weights: Over all layers.
        activations: Over all tensors that carry an encoding.
        searchable_weights: Without the first and the last layer, as papers report it; 0 if there is no other.
        searchable_activations: Over the trained tensors that neither of them reads; 0 if there is no other.
    """

    weights: float
    activations: float
    searchable_weights: float
    searchable_activations: float


def average_bits(plan: DevicePlan, network: NetworkDescription) -> AverageBits:
    """Compute the mean widths of a plan.

    The width of a weight is that of its trained form: what a device stores more widely (a 4-bit weight in an int8
    container) still counts 4. An activation counts the width of its device form.
    """
    weights = {layer.name: (plan.weight[layer.name].trained.bits, layer.parameters) for layer in network.weight_owners}
    activations = {
        tensor.merged_copy or tensor.tensor: (tensor.device.bits, network.tensor[tensor.tensor].elements)
        for tensor in plan.tensors
        if tensor.device is not None
    }
    edge_layers, edge_tensors = set(network.boundary_layers), set(network.boundary_tensors)
    return AverageBits(
        weights=_mean(list(weights.values())),
        activations=_mean(list(activations.values())),
        searchable_weights=_mean([value for name, value in weights.items() if name not in edge_layers]),
        searchable_activations=_mean(
            [value for name, value in activations.items() if network.tensor[name].trained and name not in edge_tensors]
        ),
    )


def _mean(rows: list[tuple[int, int]]) -> float:
    """Mean of the first numbers weighted by the second ones, 0 for none."""
    total = sum(count for _, count in rows)
    return sum(bits * count for bits, count in rows) / total if total else 0.0
