"""Choose the trained form and the device's form of every weight and activation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from eqdeploy.errors import ProfileError
from eqdeploy.network import (
    BatchNormTraining,
    ElasticSpace,
    LayerInfo,
    NetworkDescription,
    OpKind,
    ScaleTraining,
    TensorInfo,
)
from eqdeploy.plan import BatchNormFolding, WeightPlan
from eqdeploy.profile_fields import IntegerRange, ScaleConstraint, Storage
from eqdeploy.profile_schema import ActivationRule, DeviceProfile, WeightRule
from eqdeploy.quant.form import MAXIMUM_BITS, Form, Granularity, Symmetry

_Choice = TypeVar("_Choice")


@dataclass(frozen=True)
class ActivationForms:
    """Forms of one activation.

    Attributes:
        trained: Form of the supernet, None for a tensor without trained scales.
        device: Form that the device gets.
        reason: Why.
    """

    trained: Form | None
    device: Form
    reason: str


@dataclass(frozen=True)
class _Request:
    """What is being chosen, for messages.

    Attributes:
        profile: Name of the profile.
        subject: ``"layer 'conv1'"`` or ``"tensor 'relu'"``.
        key: Key path of the rule in the profile.
    """

    profile: str
    subject: str
    key: str

    def error(self, message: str, hint: str) -> ProfileError:
        return ProfileError(f"{self.subject} {message}", where=f"{self.profile}: {self.key}", hint=hint)


def plan_weight(
    profile: DeviceProfile, network: NetworkDescription, layer: LayerInfo, given: Form | None
) -> WeightPlan:
    """Choose the forms of one layer's weight and how BatchNorm is folded into it.

    Args:
        profile: The device.
        network: The network and its elastic space.
        layer: One of its layers.
        given: The trained form that a subnet prescribes, or None for the profile's default.

    Raises:
        ProfileError: If the profile's form is not trained, or the given form is not allowed.
    """
    rule, space = profile.weights.rule(layer.op), network.space
    boundary = layer.name in network.boundary_layers
    bits = _allowed_bits(rule.bits, profile.weights.boundary_bits, space.boundary_bits, boundary=boundary)

    def request(field: str) -> _Request:
        name = "boundary_bits" if field == "bits" and boundary and profile.weights.boundary_bits else field
        return _Request(
            profile.name, f"layer {layer.name!r}", _key("weights", profile.weights.operators, layer.op, name)
        )

    if given is not None:
        where = f"subnet: weights.{layer.name}"
        _check_member(given, space.weight_forms(), where)
        _check_allowed(given.bits, bits, request("bits"), where)
        _check_allowed(given.granularity, rule.granularity, request("granularity"), where)
        _check_allowed(given.symmetry, rule.symmetry, request("symmetry"), where)
        trained, reasons = given, ["as the subnet says"]
    else:
        granularity = _first_trained(rule.granularity, space.granularities, request("granularity"))
        symmetry = _first_trained(rule.symmetry, space.symmetries, request("symmetry"))
        trained = space.weight_form(_trained_bits(bits[0], space.bits, request("bits")), granularity, symmetry)
        reasons = [f"{request('bits').key}: {bits[0]}"]
        reasons += [_second_choice("granularity", rule.granularity, granularity)]
        reasons += [_second_choice("symmetry", rule.symmetry, symmetry)]
    if rule.range is IntegerRange.NARROW and not trained.narrow:
        raise request("range").error(
            "needs the narrow range, the supernet is trained on the full one",
            "write range: full if the device accepts the lowest integer, or train with a narrow space",
        )
    folding, folding_reason = _folding(profile, layer, rule, space)
    reasons += [folding_reason, _scale_reason(profile, space, folding)]
    reasons += [f"one weight with {layer.shares_weight_with}" if layer.shares_weight_with else ""]
    return WeightPlan(
        layer=layer.name,
        trained=trained,
        device=_device_weight_form(trained, rule, folding, space),
        folding=folding,
        reason="; ".join(filter(None, ["boundary layer" if boundary else "", *reasons])),
    )


def _scale_reason(profile: DeviceProfile, space: ElasticSpace, folding: BatchNormFolding | None) -> str:
    """Say that weights whose folding leaves them as trained are quantized again for the sake of their scales."""
    if profile.weights.scale is not ScaleConstraint.POWER_OF_TWO or space.scales is ScaleTraining.POWER_OF_TWO:
        return ""
    if folding is BatchNormFolding.REQUANTIZE:
        return ""
    return "quantized again on powers of two: the supernet is trained with free scales"


def _folding(
    profile: DeviceProfile, layer: LayerInfo, rule: WeightRule, space: ElasticSpace
) -> tuple[BatchNormFolding | None, str]:
    """How the BatchNorm behind a layer is folded, and why so."""
    if layer.batch_norm is None:
        return None, ""
    if space.batch_norm is BatchNormTraining.FOLDED and profile.weights.scale is ScaleConstraint.POWER_OF_TWO:
        return (
            BatchNormFolding.REQUANTIZE,
            f"{layer.batch_norm} folded, weights quantized again: its gain is no power of two",
        )
    if space.batch_norm is not BatchNormTraining.SEPARATE:
        return BatchNormFolding.INTO_SCALE, f"{layer.batch_norm} was folded before training"
    if rule.batch_norm is BatchNormFolding.REQUANTIZE:
        return rule.batch_norm, f"{layer.batch_norm} folded, weights quantized again (batch_norm: requantize)"
    if layer.op is OpKind.CONV_TRANSPOSE and layer.groups > 1:
        return (
            BatchNormFolding.REQUANTIZE,
            f"{layer.batch_norm} folded, weights quantized again: channels of different groups share a scale",
        )
    return rule.batch_norm, f"{layer.batch_norm} folded into the scale of each channel, exact"


def _device_weight_form(trained: Form, rule: WeightRule, folding: BatchNormFolding | None, space: ElasticSpace) -> Form:
    """The trained integers in the device's storage; a gain per channel in the scale makes one scale per channel."""
    per_channel = folding is BatchNormFolding.INTO_SCALE and space.batch_norm is BatchNormTraining.SEPARATE
    signed = rule.storage is Storage.SIGNED
    return Form(
        bits=trained.bits,
        granularity=Granularity.PER_CHANNEL if per_channel else trained.granularity,
        symmetry=trained.symmetry,
        signed=signed,
        narrow=signed and trained.narrow,
    )


def trained_activation(
    profile: DeviceProfile, network: NetworkDescription, tensor: TensorInfo, kind: OpKind, given: Form | None
) -> ActivationForms:
    """Choose the forms of a tensor with trained scales.

    A device that wants signed symmetric b bits on a tensor that is never negative gets the grid that was trained
    for unsigned b − 1 bits: the two hold the same values, the negative half is never used.

    Args:
        profile: The device.
        network: The network and its elastic space.
        tensor: One of its trained tensors.
        kind: Operator that computes it.
        given: The trained form that a subnet prescribes, or None for the profile's default.

    Raises:
        ProfileError: If the profile's form is not trained, or the given form is not allowed.
    """
    activations, space = profile.activations, network.space
    rule = activations.rule(kind, non_negative=tensor.non_negative)
    boundary = tensor.name in network.boundary_tensors
    bits = _allowed_bits(rule.bits, activations.boundary_bits, space.boundary_bits, boundary=boundary)
    halved = _loses_negative_half(rule, tensor)

    def request(field: str) -> _Request:
        if field == "bits" and boundary and activations.boundary_bits:
            return _Request(profile.name, f"tensor {tensor.name!r}", "activations.boundary_bits")
        base = "activations.non_negative" if tensor.non_negative else "activations.signed"
        key = _key(base, activations.operators, kind, field, "activations")
        return _Request(profile.name, f"tensor {tensor.name!r}", key)

    if given is not None:
        where = f"subnet: activations.{tensor.name}"
        _check_member(given, space.activation_forms(non_negative=tensor.non_negative), where)
        trained_bits = tuple(width - 1 for width in bits) if halved else bits
        _check_allowed(given.bits, trained_bits, request("bits"), where)
        if not tensor.non_negative:
            _check_allowed(given.symmetry, rule.symmetry, request("symmetry"), where)
        trained, reasons = given, ["as the subnet says"]
        symmetry = rule.symmetry[0] if tensor.non_negative else given.symmetry
    else:
        symmetry = rule.symmetry[0]
        if not tensor.non_negative:
            symmetry = _first_trained(rule.symmetry, space.symmetries, request("symmetry"))
        width = _trained_bits(bits[0], space.bits, request("bits"), halved=halved)
        trained = space.activation_form(width, symmetry, non_negative=tensor.non_negative)
        reasons = [f"{request('bits').key}: {bits[0]}"]
        reasons += ["" if tensor.non_negative else _second_choice("symmetry", rule.symmetry, symmetry)]
    if rule.range is IntegerRange.NARROW and not halved:
        raise request("range").error(
            "needs the narrow range, which no activation is trained on: not supported yet", "write range: full"
        )
    device = _device_activation_form(trained.bits + int(halved), symmetry, rule)
    if halved:
        reasons.append(f"never negative, so signed symmetric {device.bits} bits hold unsigned {trained.bits} bits")
    text = "; ".join(filter(None, ["input of a boundary layer" if boundary else "layer input", *reasons]))
    return ActivationForms(trained, device, text)


def member_form(
    profile: DeviceProfile, network: NetworkDescription, tensor: TensorInfo, kind: OpKind, given: Form | None
) -> Form | None:
    """Trained form of a tensor that takes the encoding of another one; the profile's rules bind only that one.

    Raises:
        ProfileError: If the supernet is not trained for the form.
    """
    if given is not None:
        _check_member(
            given,
            network.space.activation_forms(non_negative=tensor.non_negative),
            f"subnet: activations.{tensor.name}",
        )
        return given
    return trained_activation(profile, network, tensor, kind, None).trained


def calibrated_activation(profile: DeviceProfile, tensor: TensorInfo, kind: OpKind) -> ActivationForms:
    """Choose the device's form of a tensor that training gave no scale.

    Args:
        profile: The device.
        tensor: The tensor.
        kind: Operator that computes it.

    Raises:
        ProfileError: If the form cannot be calibrated yet.
    """
    activations = profile.activations
    rule = activations.rule(kind, non_negative=tensor.non_negative)
    override = activations.operators.get(kind)
    base = "activations.non_negative" if tensor.non_negative else "activations.signed"
    if override is not None and override.bits is not None:
        key, bits = f"activations.operators.{kind}.bits", override.bits[0]
    elif activations.calibrated_bits is not None:
        key, bits = "activations.calibrated_bits", activations.calibrated_bits
    else:
        key, bits = f"{base}.bits", rule.bits[0]
    request = _Request(profile.name, f"tensor {tensor.name!r}", key)
    if bits > MAXIMUM_BITS:
        raise request.error(f"would need {bits} bits", f"at most {MAXIMUM_BITS} bits are supported yet")
    symmetry = rule.symmetry[0]
    if symmetry is Symmetry.SYMMETRIC and rule.storage is Storage.UNSIGNED and not tensor.non_negative:
        raise _Request(profile.name, f"tensor {tensor.name!r}", f"{base}.symmetry").error(
            "may be negative and has no trained scale: calibrating a symmetric range in unsigned storage is not "
            "supported yet",
            "write symmetry: [asymmetric, symmetric] or storage: signed",
        )
    return ActivationForms(
        None, _device_activation_form(bits, symmetry, rule), f"feeds no layer, range calibrated; {key}: {bits}"
    )


def _loses_negative_half(rule: ActivationRule, tensor: TensorInfo) -> bool:
    """Whether half of the device's integers cannot occur."""
    return tensor.non_negative and rule.storage is Storage.SIGNED and rule.symmetry[0] is Symmetry.SYMMETRIC


def _device_activation_form(bits: int, symmetry: Symmetry, rule: ActivationRule) -> Form:
    return Form(
        bits=bits,
        granularity=Granularity.PER_TENSOR,
        symmetry=symmetry,
        signed=rule.storage is Storage.SIGNED,
        narrow=rule.range is IntegerRange.NARROW,
    )


def _allowed_bits(rule: tuple[int, ...], boundary_bits: int | None, trained: int, *, boundary: bool) -> tuple[int, ...]:
    """Widths that may be used, the default first."""
    if not boundary:
        return rule
    default = boundary_bits or (trained if trained in rule else rule[0])
    return tuple(dict.fromkeys((default, *rule)))


def _trained_bits(bits: int, trained: tuple[int, ...], request: _Request, *, halved: bool = False) -> int:
    """The trained width behind a width of the device."""
    wanted = bits - int(halved)
    if wanted in trained:
        return wanted
    note = f" ({bits} bits signed symmetric on a tensor that is never negative)" if halved else ""
    possible = [width + int(halved) for width in trained if width + int(halved) <= MAXIMUM_BITS]
    nearest = min(possible, key=lambda width: (abs(width - bits), -width), default=None)
    hints = [] if nearest is None else [f"nearest choice: {request.key}: {nearest}"]
    if wanted <= MAXIMUM_BITS:
        hints.append(f"train the supernet for {wanted} bits")
    raise request.error(
        f"needs {wanted} bits{note}, the supernet is trained for {_listed(trained)}",
        ", or ".join(hints) or f"supernets are trained for at most {MAXIMUM_BITS} bits",
    )


def _first_trained(allowed: tuple[_Choice, ...], trained: tuple[_Choice, ...], request: _Request) -> _Choice:
    """The most preferred choice that the supernet is trained for."""
    for choice in allowed:
        if choice in trained:
            return choice
    raise request.error(
        f"needs {_listed(allowed)}, the supernet is trained for {_listed(trained)}",
        f"nearest choice: {request.key}: {trained[0]} if the device can do it, or train the supernet for {allowed[0]}",
    )


def _second_choice(what: str, allowed: tuple[Any, ...], chosen: object) -> str:
    """Say that the preferred choice was not available."""
    return "" if chosen == allowed[0] else f"{what} {chosen} because {allowed[0]} is not trained"


def _check_member(given: Form, trained: tuple[Form, ...], where: str) -> None:
    """A subnet can only use forms that the supernet owns."""
    if given not in trained:
        nearest = min(trained, key=lambda form: (_distance(form, given), abs(form.bits - given.bits)))
        raise ProfileError(
            f"the supernet is not trained for {given.key}", where=where, hint=f"nearest choice: {nearest.key}"
        )


def _distance(one: Form, other: Form) -> int:
    """In how many ways two forms differ, width aside."""
    pairs = (
        (one.granularity, other.granularity),
        (one.symmetry, other.symmetry),
        (one.range_name, other.range_name),
    )
    return sum(first != second for first, second in pairs)


def _check_allowed(given: object, allowed: tuple[Any, ...], request: _Request, where: str) -> None:
    """A subnet can only use forms that the device can execute."""
    if given not in allowed:
        raise ProfileError(
            f"{given} is not possible on {request.profile}", where=where, hint=f"{request.key}: {_listed(allowed)}"
        )


def _key(base: str, overrides: Mapping[OpKind, Any], kind: OpKind, field: str, owner: str | None = None) -> str:
    """Key path of the rule that decides ``field``: the override's if it has one."""
    if kind in overrides and getattr(overrides[kind], field, None) is not None:
        return f"{owner or base}.operators.{kind}.{field}"
    return f"{base}.{field}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
