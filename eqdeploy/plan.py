"""The plan: what a device gets for every layer and tensor, each choice with its reason.

Resolving a profile against a network writes a plan; freezing reads it. It holds no numbers of the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from eqdeploy.quant.form import Form
from eqdeploy.subnet import SubnetConfig


class EncodingSource(StrEnum):
    """Where the scale of a tensor comes from."""

    TRAINED = "trained"
    CALIBRATED = "calibrated"
    SHARED = "shared"
    FIXED = "fixed"
    NONE = "none"


class Coverage(StrEnum):
    """Why a tensor is quantized or not. Every tensor is exactly one of these."""

    QUANTIZED = "quantized"
    INSIDE_FUSED_GROUP = "inside_fused_group"
    FLOAT_BY_PROFILE = "float_by_profile"
    FLOAT_BY_NECESSITY = "float_by_necessity"


class BatchNormFolding(StrEnum):
    """How BatchNorm is merged into the weights before it.

    ``into_scale`` multiplies the weight scale of each channel by the gain: exact, the integers stay as
    trained, the device needs one scale per channel. ``requantize`` quantizes the folded weights again with
    the form's own granularity.
    """

    INTO_SCALE = "into_scale"
    REQUANTIZE = "requantize"


class BiasFormat(StrEnum):
    """How the device holds a bias."""

    FLOAT = "float"
    INT32 = "int32"


@dataclass(frozen=True)
class WeightPlan:
    """What becomes of one layer's weight.

    Attributes:
        layer: Layer name.
        trained: Form of the supernet that is active.
        device: Form and storage that the device gets.
        folding: How BatchNorm is folded, None if the layer has none.
        reason: Why, for people.
    """

    layer: str
    trained: Form
    device: Form
    folding: BatchNormFolding | None
    reason: str


@dataclass(frozen=True)
class FixedEncoding:
    """A scale and zero-point that the device prescribes, e.g. 1/256 and 0 after a softmax."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one tensor.

    Attributes:
        tensor: Tensor name.
        coverage: Quantized, or why not.
        source: Where its scale comes from.
        trained: Form of the supernet that is active, if the supernet owns one.
        device: Form that the device gets, None when it carries no encoding.
        shares_with: Name of the tensor whose encoding it takes when ``source`` is SHARED.
        fixed: The prescribed encoding when ``source`` is FIXED.
        float_readers: Names of the operations that read the unquantized value (the main branch of a
            residual add on TensorRT); every other reader sees the quantized value.
        reason: Why, for people.
        merged_copy: Name of its quantized copy (kind REQUANTIZE), if the device holds both in one buffer: the copy's
            trained quantizer is this tensor's then, and all readers read the quantized value.
    """

    tensor: str
    coverage: Coverage
    source: EncodingSource
    trained: Form | None
    device: Form | None
    shares_with: str | None
    fixed: FixedEncoding | None
    float_readers: tuple[str, ...]
    reason: str
    merged_copy: str | None = None


@dataclass(frozen=True)
class DevicePlan:
    """Everything that freezing needs to know about a device, resolved for one network.

    Attributes:
        profile: Name of the profile.
        subnet: Forms to activate in the supernet.
        weights: One entry per layer, in network order.
        tensors: One entry per tensor, in network order.
        bias: Bias format.
        minimum_scale: Smallest scale the device accepts for an activation, 0 for none.
        power_of_two_scales: Whether every scale must be a power of two.
    """

    profile: str
    subnet: SubnetConfig
    weights: tuple[WeightPlan, ...]
    tensors: tuple[TensorPlan, ...]
    bias: BiasFormat
    minimum_scale: float = 0.0
    power_of_two_scales: bool = False

    @cached_property
    def weight(self) -> dict[str, WeightPlan]:
        """Weight plans by layer name."""
        return {plan.layer: plan for plan in self.weights}

    @cached_property
    def tensor(self) -> dict[str, TensorPlan]:
        """Tensor plans by tensor name."""
        return {plan.tensor: plan for plan in self.tensors}
