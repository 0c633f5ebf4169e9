"""Which trained forms a device allows for each weight and for each set of tensors that share an encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from eqdeploy.errors import ProfileError
from eqdeploy.network import ElasticSpace, LayerInfo, NetworkDescription, OpKind, TensorInfo
from eqdeploy.profile import DeviceProfile
from eqdeploy.quant.form import Form, Symmetry
from eqdeploy.resolution.coverage import encoded_tensors
from eqdeploy.resolution.forms import plan_weight, trained_activation
from eqdeploy.resolution.sharing import shared_groups
from eqdeploy.resolution.structure import analyze
from eqdeploy.subnet import SubnetConfig

_Plan = TypeVar("_Plan")


class Role(StrEnum):
    """What a gene decides about."""

    WEIGHT = "weight"
    ACTIVATION = "activation"


@dataclass(frozen=True)
class Gene:
    """One decision: the width of a weight, or of all trained tensors that share an encoding on the device.

    Attributes:
        role: Weight or activation.
        names: The layer, or all that share its weight; or the tensors. The one whose encoding the others take stands
            first.
        forms: For each choice the trained form of each name.
        bits: Width on the device for each choice, ascending. A weight counts its trained width. An activation that is
            never negative has one bit more than its trained form where the device stores it signed and symmetric.
    """

    role: Role
    names: tuple[str, ...]
    forms: tuple[tuple[Form, ...], ...]
    bits: tuple[int, ...]


@dataclass(frozen=True)
class Genes:
    """Everything about a network, decided or not.

    Attributes:
        genes: One for each weight and for each set of trained tensors with one encoding, also where there is a single
            choice; those of weights first.
        base: The profile's default forms.
    """

    genes: tuple[Gene, ...]
    base: SubnetConfig


def find_genes(profile: DeviceProfile, network: NetworkDescription) -> Genes:
    """Ask the resolver what a device allows.

    A quantized copy of a tensor counts as a tensor of its own: it has the width of its own choice whether or not the
    device merges it with what it is a copy of, which it does where the widths are equal.

    Args:
        profile: The device.
        network: The network and the forms that it is trained for.

    Raises:
        ProfileError: If none of the trained forms is possible for a layer or tensor.
    """
    weights = [_weight_gene(profile, network, layer) for layer in network.weight_owners]
    activations = _activation_genes(profile, network)
    forms = {name: form for _, default in activations for name, form in default.items()}
    return Genes(
        genes=(*(gene for gene, _ in weights), *(gene for gene, _ in activations)),
        base=SubnetConfig(
            weights=network.with_owners_forms({gene.names[0]: form for gene, form in weights}),
            activations=tuple((tensor.name, forms[tensor.name]) for tensor in network.tensors if tensor.trained),
        ),
    )


def _weight_gene(profile: DeviceProfile, network: NetworkDescription, layer: LayerInfo) -> tuple[Gene, Form]:
    """The gene of a weight, whose first layer is ``layer``, and its default form."""
    rule, space = profile.weights.rule(layer.op), network.space
    granularities = [choice for choice in rule.granularity if choice in space.granularities]
    symmetries = [choice for choice in rule.symmetry if choice in space.symmetries]
    candidates = [
        space.weight_form(bits, granularity, symmetry)
        for granularity in granularities[:1]
        for symmetry in symmetries[:1]
        for bits in space.bits
    ]
    if layer.name in network.boundary_layers:
        candidates = []
    plans = _allowed(lambda form: plan_weight(profile, network, layer, form), candidates)
    forms = [plan.trained for plan in plans]
    default = min(forms, key=lambda form: _preference(rule.bits, form.bits))
    bits = tuple(form.bits for form in forms)
    names = network.uses[layer.name]
    return Gene(Role.WEIGHT, names, tuple((form,) * len(names) for form in forms), bits), default


def _activation_genes(profile: DeviceProfile, network: NetworkDescription) -> list[tuple[Gene, dict[str, Form]]]:
    """Genes of all trained tensors in the order of the network's tensors, each with its default forms by name."""
    structure = analyze(profile, network)
    encoded = encoded_tensors(profile, network, structure)
    groups = {name: group for group in shared_groups(profile, network, encoded) for name in group.members}
    genes: list[tuple[Gene, dict[str, Form]]] = []
    done: set[str] = set()
    for tensor in network.tensors:
        if not tensor.trained or tensor.name in done:
            continue
        group = groups.get(tensor.name)
        owner = network.tensor[tensor.name if group is None else group.owner]
        names = (tensor.name,) if group is None else group.members
        members = [network.tensor[name] for name in names if network.tensor[name].trained and name != owner.name]
        if owner.trained and owner.op not in profile.operators.fixed:
            genes.append(_owned_gene(profile, network, structure.kind, owner, members))
            done.update(genes[-1][0].names)
        else:  # the device or calibration decides about the encoding, not a subnet
            form = _own_form(profile, network, tensor, structure.kind[tensor.name])
            genes.append((Gene(Role.ACTIVATION, (tensor.name,), ((form,),), (form.bits,)), {tensor.name: form}))
            done.add(tensor.name)
    return genes


def _owned_gene(
    profile: DeviceProfile,
    network: NetworkDescription,
    kinds: dict[str, OpKind],
    owner: TensorInfo,
    members: list[TensorInfo],
) -> tuple[Gene, dict[str, Form]]:
    """The gene of tensors that take the encoding of a trained one, and its default forms by name."""
    space, kind = network.space, kinds[owner.name]
    rule = profile.activations.rule(kind, non_negative=owner.non_negative)
    symmetries = [choice for choice in rule.symmetry if choice in space.symmetries] or list(space.symmetries)
    candidates = [space.activation_form(bits, symmetries[0], non_negative=owner.non_negative) for bits in space.bits]
    boundary = set(network.boundary_tensors)
    if owner.name in boundary:
        candidates = []
    plans = _allowed(lambda form: trained_activation(profile, network, owner, kind, form), candidates)
    default = min(plans, key=lambda plan: _preference(rule.bits, plan.device.bits))
    if boundary & {tensor.name for tensor in members}:
        plans = [default]
    names = (owner.name, *(tensor.name for tensor in members))
    forms = [
        tuple(_taken_form(space, owner, tensor, plan.trained, plan.device) for tensor in (owner, *members))
        for plan in plans
    ]
    gene = Gene(Role.ACTIVATION, names, tuple(forms), tuple(plan.device.bits for plan in plans))
    return gene, dict(zip(names, forms[plans.index(default)], strict=True))


def _taken_form(space: ElasticSpace, owner: TensorInfo, tensor: TensorInfo, trained: Form | None, device: Form) -> Form:
    """The trained form of a tensor that has the encoding of another one on the device.

    A tensor that is never negative uses half of a symmetric range, all of an asymmetric one.
    """
    if trained is not None and owner.non_negative == tensor.non_negative:
        return trained
    used = device.bits - int(device.symmetry is Symmetry.SYMMETRIC)
    return space.activation_form(_nearest(space.bits, used), device.symmetry, non_negative=tensor.non_negative)


def _own_form(profile: DeviceProfile, network: NetworkDescription, tensor: TensorInfo, kind: OpKind) -> Form:
    """The default form of a tensor whose device form is decided elsewhere."""
    try:
        default = trained_activation(profile, network, tensor, kind, None).trained
    except ProfileError:  # its rule does not bind it
        default = None
    if default is not None:
        return default
    space, rule = network.space, profile.activations.rule(kind, non_negative=tensor.non_negative)
    return space.activation_form(
        _nearest(space.bits, rule.bits[0]), space.symmetries[0], non_negative=tensor.non_negative
    )


def _allowed(plan: Callable[[Form | None], _Plan], candidates: Iterable[Form]) -> list[_Plan]:
    """Plans of the candidates that the resolver accepts; without any, its own default.

    Raises:
        ProfileError: If there is no default either.
    """
    plans: list[_Plan] = []
    for form in candidates:
        try:
            plans.append(plan(form))
        except ProfileError:  # not possible on this device
            continue
    return plans or [plan(None)]


def _preference(widths: tuple[int, ...], bits: int) -> int:
    """Position in the profile's order; widths outside it are those of boundary layers, which have no other."""
    return widths.index(bits) if bits in widths else len(widths)


def _nearest(widths: tuple[int, ...], bits: int) -> int:
    """The nearest trained width, the larger of two."""
    return min(widths, key=lambda width: (abs(width - bits), -width))
