"""Resolve a device profile for a network: a plan that says what the device gets for every layer and tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from eqdeploy.errors import ProfileError
from eqdeploy.network import NetworkDescription, OpKind, TensorInfo
from eqdeploy.plan import BiasFormat, Coverage, DevicePlan, EncodingSource, FixedEncoding, TensorPlan
from eqdeploy.profile_fields import Bias, Rounding, ScaleConstraint, Storage
from eqdeploy.profile_schema import DeviceProfile
from eqdeploy.quant.form import MAXIMUM_BITS, Form, Granularity, Symmetry
from eqdeploy.resolution.copies import merged_copies, with_copies, without_copies
from eqdeploy.resolution.coverage import encoded_tensors, float_readers, why_float
from eqdeploy.resolution.explanation import LayerRow, TensorRow, explain_layers, explain_tensors
from eqdeploy.resolution.forms import (
    ActivationForms,
    calibrated_activation,
    member_form,
    plan_weight,
    trained_activation,
)
from eqdeploy.resolution.sharing import SharedGroup, shared_groups
from eqdeploy.resolution.structure import analyze
from eqdeploy.subnet import SubnetConfig

__all__ = ["LayerRow", "TensorRow", "explain_layers", "explain_tensors", "resolve"]


def resolve(profile: DeviceProfile, network: NetworkDescription, subnet: SubnetConfig | None = None) -> DevicePlan:
    """Decide what a device gets for every layer and tensor of a network.

    Args:
        profile: The device.
        network: The network and the forms that it is trained for.
        subnet: Trained forms to use instead of the profile's defaults. Where trained tensors must share an encoding
            on the device, the form of one of them counts for all, so the plan's own subnet may differ from this one.

    Returns:
        The plan. Layers and tensors stand in network order, each tensor exactly once.

    Raises:
        ProfileError: If the supernet was not trained for what the profile needs, the subnet does not fit the
            network or the device, or the profile asks for what cannot be resolved yet. Names layer or tensor, and
            the profile's key.
    """
    _refuse_unsupported(profile, network)
    given_weights, given_activations = _given_forms(network, subnet)
    weights = tuple(plan_weight(profile, network, layer, given_weights.get(layer.name)) for layer in network.layers)
    tensors = _plan_tensors(profile, network, given_activations)
    merged = merged_copies(network, {plan.tensor: plan for plan in tensors})
    if merged:
        given = {merged.get(name, name): form for name, form in given_activations.items()}
        plans = _plan_tensors(profile, without_copies(network, merged), given)
        tensors = with_copies(network, merged, {plan.tensor: plan for plan in plans})
    return DevicePlan(
        profile=profile.name,
        subnet=SubnetConfig(
            weights=tuple((plan.layer, plan.trained) for plan in weights),
            activations=tuple(
                (plan.tensor, plan.trained)
                for plan in tensors
                if plan.trained is not None and network.tensor[plan.tensor].trained
            ),
        ),
        weights=weights,
        tensors=tensors,
        bias=BiasFormat.INT32 if profile.bias is Bias.INT32 else BiasFormat.FLOAT,
        minimum_scale=_minimum_scale(profile, tensors),
        power_of_two_scales=profile.weights.scale is ScaleConstraint.POWER_OF_TWO,
    )


def _plan_tensors(
    profile: DeviceProfile, network: NetworkDescription, given: Mapping[str, Form]
) -> tuple[TensorPlan, ...]:
    """Plan all tensors."""
    structure = analyze(profile, network)
    encoded = encoded_tensors(profile, network, structure)
    groups = {name: group for group in shared_groups(profile, network, encoded) for name in group.members}
    plans: dict[str, TensorPlan] = {}
    for tensor in network.tensors:
        if tensor.name in encoded and (tensor.name not in groups or groups[tensor.name].owner == tensor.name):
            kind = structure.kind[tensor.name]
            forms = None
            if tensor.trained:
                forms = trained_activation(profile, network, tensor, kind, given.get(tensor.name))
            plans[tensor.name] = _owner_plan(profile, tensor, kind, forms)
    for tensor in network.tensors:
        if tensor.name in encoded and tensor.name not in plans:
            form = None
            if tensor.trained:
                kind = structure.kind[tensor.name]
                form = member_form(profile, network, tensor, kind, given.get(tensor.name))
            group = groups[tensor.name]
            plans[tensor.name] = _member_plan(network, tensor, form, plans[group.owner], group)
        elif tensor.name not in encoded:
            coverage, reason = why_float(profile, network, structure, tensor)
            source = EncodingSource.NONE
            plans[tensor.name] = TensorPlan(tensor.name, coverage, source, None, None, None, None, (), reason)
    return tuple(
        replace(plans[tensor.name], float_readers=float_readers(profile, network, tensor, encoded))
        for tensor in network.tensors
    )


def _owner_plan(
    profile: DeviceProfile, tensor: TensorInfo, kind: OpKind, trained: ActivationForms | None
) -> TensorPlan:
    """Plan a tensor with an encoding of its own."""
    rule = profile.operators.fixed.get(tensor.op)
    if rule is not None:
        form = Form(rule.bits, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=rule.storage is Storage.SIGNED)
        return TensorPlan(
            tensor=tensor.name,
            coverage=Coverage.QUANTIZED,
            source=EncodingSource.FIXED,
            trained=None if trained is None else trained.trained,
            device=form,
            shares_with=None,
            fixed=FixedEncoding(rule.scale, rule.zero_point),
            float_readers=(),
            reason=f"prescribed by the device (operators.fixed.{tensor.op})",
        )
    forms = trained or calibrated_activation(profile, tensor, kind)
    return TensorPlan(
        tensor=tensor.name,
        coverage=Coverage.QUANTIZED,
        source=EncodingSource.CALIBRATED if trained is None else EncodingSource.TRAINED,
        trained=forms.trained,
        device=forms.device,
        shares_with=None,
        fixed=None,
        float_readers=(),
        reason=forms.reason,
    )


def _member_plan(
    network: NetworkDescription,
    tensor: TensorInfo,
    form: Form | None,
    owner: TensorPlan,
    group: SharedGroup,
) -> TensorPlan:
    """Plan a tensor that takes the encoding of another one."""
    same_sign = network.tensor[owner.tensor].non_negative == tensor.non_negative
    if form is not None and owner.trained is not None and same_sign:
        form = owner.trained  # the supernet is evaluated with what the device will do
    return TensorPlan(
        tensor=tensor.name,
        coverage=Coverage.QUANTIZED,
        source=EncodingSource.SHARED,
        trained=form,
        device=owner.device,
        shares_with=owner.tensor,
        fixed=None,
        float_readers=(),
        reason=f"must have the encoding of {owner.tensor} ({group.reason})",
    )


def _refuse_unsupported(profile: DeviceProfile, network: NetworkDescription) -> None:
    """Refuse what a profile can say but the simulation cannot do yet.

    Raises:
        ProfileError: Naming the key.
    """
    if profile.rounding is not Rounding.HALF_TO_EVEN:
        raise ProfileError(
            f"{profile.rounding} is not supported yet",
            where=f"{profile.name}: rounding",
            hint=f"the simulation rounds {Rounding.HALF_TO_EVEN}",
        )
    if profile.bias not in (Bias.FLOAT, Bias.INT32):
        raise ProfileError(
            f"{profile.bias} is not supported yet",
            where=f"{profile.name}: bias",
            hint=f"possible are {Bias.FLOAT} and {Bias.INT32}",
        )
    if profile.weights.scale is not profile.activations.scale:
        raise ProfileError(
            "different constraints for weights and activations are not supported yet",
            where=f"{profile.name}: weights.scale, activations.scale",
        )
    for layer in network.layers:
        if layer.op not in profile.operators.quantized:
            raise ProfileError(
                f"layer {layer.name!r} is a {layer.op}, which the profile leaves in float: not supported yet",
                where=f"{profile.name}: operators.quantized",
                hint=f"add {layer.op}, or replace the layer",
            )
    for kind, rule in profile.operators.fixed.items():
        if profile.activations.scale is ScaleConstraint.POWER_OF_TWO and math.frexp(rule.scale)[0] != 0.5:
            raise ProfileError(
                f"{rule.scale} is no power of two",
                where=f"{profile.name}: operators.fixed.{kind}.scale",
                hint="activations.scale: power_of_two allows no other scale",
            )
        if rule.bits > MAXIMUM_BITS:
            raise ProfileError(
                f"{rule.bits} bits are not supported yet", where=f"{profile.name}: operators.fixed.{kind}.bits"
            )


def _given_forms(network: NetworkDescription, subnet: SubnetConfig | None) -> tuple[dict[str, Form], dict[str, Form]]:
    """Forms of a subnet by name, after checking that it belongs to this network.

    Raises:
        ProfileError: If names are missing or unexpected.
    """
    if subnet is None:
        return {}, {}
    weights, activations = dict(subnet.weights), dict(subnet.activations)
    layers = [layer.name for layer in network.layers]
    tensors = [tensor.name for tensor in network.tensors if tensor.trained]
    for what, given, expected in (("weights", weights, layers), ("activations", activations, tensors)):
        missing = [name for name in expected if name not in given]
        unexpected = [name for name in given if name not in expected]
        if missing or unexpected:
            parts = [f"missing {', '.join(missing)}"] if missing else []
            parts += [f"unexpected {', '.join(unexpected)}"] if unexpected else []
            raise ProfileError(f"does not fit this network: {'; '.join(parts)}", where=f"subnet: {what}")
    network.refuse_different_forms(weights, where="subnet: weights")
    return weights, activations


def _minimum_scale(profile: DeviceProfile, tensors: tuple[TensorPlan, ...]) -> float:
    """Smallest scale that gives every encoding the minimum range, the narrowest one included."""
    steps = [
        plan.device.q_max - plan.device.q_min
        for plan in tensors
        if plan.device is not None and plan.source is not EncodingSource.FIXED
    ]
    narrowest = min(steps, default=1)
    return max(profile.activations.minimum_scale, profile.activations.minimum_range / narrowest)
