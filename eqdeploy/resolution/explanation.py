"""Put a plan into words, one row per layer and per tensor."""

from __future__ import annotations

from dataclasses import dataclass

from eqdeploy.network import NetworkDescription
from eqdeploy.plan import DevicePlan, EncodingSource, TensorPlan


@dataclass(frozen=True)
class LayerRow:
    """One layer of a plan.

    Attributes:
        layer: Its name.
        operator: Its kind.
        trained: Key of the supernet's form.
        device: Key of the device's form.
        batch_norm: How BatchNorm is folded, or ``-``.
        reason: Why.
    """

    layer: str
    operator: str
    trained: str
    device: str
    batch_norm: str
    reason: str


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a plan.

    Attributes:
        tensor: Its name.
        operator: Kind of the operation that produces it.
        coverage: Quantized, or why not.
        rule: Where its scale comes from, in words.
        trained: Key of the supernet's form, or ``-``.
        device: Key of the device's form, or ``-``.
        reason: Why.
    """

    tensor: str
    operator: str
    coverage: str
    rule: str
    trained: str
    device: str
    reason: str


def explain_layers(plan: DevicePlan, network: NetworkDescription) -> tuple[LayerRow, ...]:
    """One row per layer, in network order."""
    return tuple(
        LayerRow(
            layer=weight.layer,
            operator=str(network.layer[weight.layer].op),
            trained=weight.trained.key,
            device=weight.device.key,
            batch_norm=str(weight.folding or "-"),
            reason=weight.reason,
        )
        for weight in plan.weights
    )


def explain_tensors(plan: DevicePlan, network: NetworkDescription) -> tuple[TensorRow, ...]:
    """One row per tensor, in network order."""
    return tuple(
        TensorRow(
            tensor=tensor.tensor,
            operator=str(network.tensor[tensor.tensor].op),
            coverage=str(tensor.coverage),
            rule=_rule(tensor),
            trained=tensor.trained.key if tensor.trained else "-",
            device=tensor.device.key if tensor.device else "-",
            reason=tensor.reason,
        )
        for tensor in plan.tensors
    )


def _rule(tensor: TensorPlan) -> str:
    """Where the scale of a tensor comes from."""
    if tensor.source is EncodingSource.NONE:
        return "-"
    text = str(tensor.source)
    if tensor.source is EncodingSource.SHARED:
        text = f"that of {tensor.shares_with}"
    elif tensor.fixed is not None:
        text = f"fixed: scale {tensor.fixed.scale:g}, zero-point {tensor.fixed.zero_point}"
    return f"{text}; in float for {', '.join(tensor.float_readers)}" if tensor.float_readers else text
