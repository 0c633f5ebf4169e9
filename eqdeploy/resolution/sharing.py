"""Group tensors that must have one encoding, and choose whose it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eqdeploy.network import NetworkDescription, OpKind, TensorInfo
from eqdeploy.profile_schema import DeviceProfile

#: Operators whose results lie between the values of their input: their own range may be too narrow for it.
_NARROWING = frozenset({OpKind.AVERAGE_POOL, OpKind.GLOBAL_AVERAGE_POOL, OpKind.RESIZE, OpKind.RELU, OpKind.CLIP})


@dataclass(frozen=True)
class SharedGroup:
    """Tensors with one encoding.

    Attributes:
        owner: Name of the tensor whose encoding it is.
        members: All names, in network order.
        reason: Why the owner is the owner.
    """

    owner: str
    members: tuple[str, ...]
    reason: str


def shared_groups(
    profile: DeviceProfile, network: NetworkDescription, encoded: frozenset[str]
) -> tuple[SharedGroup, ...]:
    """All groups of two or more tensors, in network order.

    Args:
        profile: The device.
        network: The network.
        encoded: Tensors that carry an encoding.
    """
    sets = _DisjointSets(encoded)
    fixed = {tensor.name for tensor in network.tensors if tensor.op in profile.operators.fixed}
    # Operators with one input first: only then is it known which sets have a fixed encoding.
    for tensor in network.tensors:
        if tensor.op in profile.operators.shared and len(tensor.inputs) == 1:
            sets.join([tensor.name, *tensor.inputs])
    held = {sets.find(name) for name in fixed & encoded}
    for tensor in network.tensors:
        if len(tensor.inputs) < 2:
            continue
        if tensor.op in profile.operators.shared:
            together = [tensor.name, *tensor.inputs]
        elif tensor.op in profile.operators.shared_inputs:
            together = list(tensor.inputs)
        else:
            continue
        # A prescribed range says nothing about the other inputs: the device rescales where it meets them.
        sets.join(name for name in together if name in encoded and sets.find(name) not in held)
    members: dict[str, list[TensorInfo]] = {}
    for tensor in network.tensors:
        if tensor.name in encoded:
            members.setdefault(sets.find(tensor.name), []).append(tensor)
    return tuple(_owned(network, group, fixed) for group in members.values() if len(group) > 1)


def _owned(network: NetworkDescription, group: list[TensorInfo], fixed: set[str]) -> SharedGroup:
    """Choose the tensor whose encoding suits all members.

    A prescribed encoding comes first. Otherwise the range must reach below zero as soon as one member does, and an
    average does not give its range to what it is an average of; among those that qualify a trained tensor goes before
    a calibrated one, then the larger tensor, whose values the others are taken from (the input of a pool, the output
    of a concatenation), then the input of a boundary layer, then the first. None of this depends on a subnet, so that
    a plan's own subnet gives the same plan.
    """
    names = tuple(tensor.name for tensor in group)
    prescribed = next((name for name in names if name in fixed), None)
    if prescribed is not None:
        return SharedGroup(prescribed, names, "prescribed by the device")
    non_negative = all(tensor.non_negative for tensor in group)
    fitting = [
        tensor
        for tensor in group
        if tensor.non_negative == non_negative and not (tensor.op in _NARROWING and tensor.inputs[0] in names)
    ]
    boundary = network.boundary_tensors
    owner = max(fitting, key=lambda tensor: (tensor.trained, tensor.elements, tensor.name in boundary))
    return SharedGroup(owner.name, names, "trained" if owner.trained else "calibrated")


class _DisjointSets:
    """Union-find over encoded tensors; names without an encoding are ignored."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parent = {name: name for name in names}

    def find(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def join(self, names: Iterable[str]) -> None:
        roots = [self.find(name) for name in names if name in self._parent]
        for root in roots[1:]:
            self._parent[self.find(root)] = self.find(roots[0])
