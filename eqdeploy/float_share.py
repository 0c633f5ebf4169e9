"""How much of a network stays float under a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eqdeploy.network import LAYER_KINDS, NetworkDescription, OpKind, TensorInfo
from eqdeploy.plan import DevicePlan

#: Share from which on it is said aloud.
NOTABLE_SHARE = 0.1

#: Operations in a note.
_SHOWN = 3


@dataclass(frozen=True)
class FloatShare:
    """What is quantized and what stays float.

    Biases of quantized layers and BatchNorms that are folded into them are left out: they are part of the layer.

    Attributes:
        parameters: Number of parameters.
        float_parameters: How many of them stay float.
        macs: Multiply-accumulate operations for one input.
        float_macs: How many of them multiply numbers that are not quantized.
        operations: Tensors whose operations hold what stays float, the largest first.
    """

    parameters: int
    float_parameters: int
    macs: int
    float_macs: int
    operations: tuple[str, ...]

    @property
    def parameter_share(self) -> float:
        """Float parameters over all parameters."""
        return self.float_parameters / self.parameters if self.parameters else 0.0

    @property
    def operation_share(self) -> float:
        """Float operations over all operations."""
        return self.float_macs / self.macs if self.macs else 0.0

    @property
    def is_notable(self) -> bool:
        """Whether so much stays float that a user should know."""
        return max(self.parameter_share, self.operation_share) >= NOTABLE_SHARE

    @property
    def summary(self) -> str:
        """Both shares in one sentence, with the operations that hold most."""
        if not self.float_parameters and not self.float_macs:
            return "no parameter and no operation stays float"
        names = ", ".join(self.operations[:_SHOWN]) + (", …" if len(self.operations) > _SHOWN else "")
        return (
            f"{self.parameter_share:.1%} of the parameters and {self.operation_share:.1%} of the operations stay "
            f"float ({names})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "parameters": self.parameters,
            "float_parameters": self.float_parameters,
            "parameter_share": self.parameter_share,
            "operations": self.macs,
            "float_operations": self.float_macs,
            "operation_share": self.operation_share,
            "float_tensors": list(self.operations),
        }


def float_share(
    plan: DevicePlan, network: NetworkDescription, macs: Mapping[str, int], parameters: Mapping[str, int]
) -> FloatShare:
    """Add up what stays float.

    Args:
        plan: What is quantized.
        network: Its network.
        macs: Multiply-accumulate operations by tensor name.
        parameters: Parameters outside the quantizable layers by tensor name.
    """
    floats = {name: count for name, count in macs.items() if not _is_integer(plan, network.tensor.get(name))}
    names = sorted({*floats, *parameters}, key=lambda name: (-parameters.get(name, 0), -floats.get(name, 0), name))
    others = sum(parameters.values())
    return FloatShare(
        parameters=sum(layer.parameters for layer in network.weight_owners) + others,
        float_parameters=others,
        macs=sum(macs.values()),
        float_macs=sum(floats.values()),
        operations=tuple(names),
    )


def _is_integer(plan: DevicePlan, tensor: TensorInfo | None) -> bool:
    """Whether an operation multiplies quantized numbers."""
    if tensor is None or tensor.op not in LAYER_KINDS | {OpKind.MATMUL}:
        return False
    return all(plan.tensor[name].device is not None for name in tensor.inputs)
