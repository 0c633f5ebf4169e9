"""Read from a network what runs as one on a device: folded BatchNorm, fused groups, residual additions."""

from __future__ import annotations

from dataclasses import dataclass

from eqdeploy.network import LAYER_KINDS, NetworkDescription, OpKind, TensorInfo
from eqdeploy.profile_fields import ResidualAdd
from eqdeploy.profile_schema import DeviceProfile


@dataclass(frozen=True)
class Structure:
    """What runs as one.

    Attributes:
        inside: Tensors that do not exist on the device, with the reason.
        kind: Operator that computes a tensor: the layer, if it is a BatchNorm that is folded into one. A quantized
            copy has the kind of what it is a copy of.
        producer: Operator that a tensor comes out of: the first one of its fused group.
        main_branch: Tensors that an addition reads in float because the addition is fused into the layer before
            it, with the name of the addition.
    """

    inside: dict[str, str]
    kind: dict[str, OpKind]
    producer: dict[str, OpKind]
    main_branch: dict[str, str]


def analyze(profile: DeviceProfile, network: NetworkDescription) -> Structure:
    """Find everything that runs as one on the device."""
    kind = {tensor.name: tensor.op for tensor in network.tensors}
    inside: dict[str, str] = {}
    folded = _folded_batch_norms(network)
    for name, layer in folded.items():
        inside[network.layer[layer].output_tensor] = f"{network.layer[layer].batch_norm} is folded into {layer}"
        kind[name] = network.layer[layer].op
    copies = {tensor.name: tensor.inputs[0] for tensor in network.tensors if tensor.op is OpKind.REQUANTIZE}
    kind |= {copy: kind[source] for copy, source in copies.items()}
    producer = dict(kind)
    for tensor in network.tensors:
        chain = _longest_chain(profile, network, tensor, folded)
        for passed in chain[:-1]:
            text = " + ".join(network.tensor[name].op for name in chain)
            inside.setdefault(passed, f"inside the fused group {text}")
        if chain:
            producer[chain[-1]] = producer[tensor.name]
    producer |= {copy: producer[source] for copy, source in copies.items()}
    return Structure(inside, kind, producer, _main_branches(profile, network, producer))


def only_reader(network: NetworkDescription, tensor: TensorInfo) -> TensorInfo | None:
    """The one operation that reads a tensor, None if others need its value too."""
    if tensor.is_output or tensor.trained or len(tensor.readers) != 1:
        return None
    return network.tensor[tensor.readers[0]]


def _folded_batch_norms(network: NetworkDescription) -> dict[str, str]:
    """Tensors of BatchNorms that are folded, with the name of their layer."""
    folded: dict[str, str] = {}
    for layer in network.layers:
        reader = only_reader(network, network.tensor[layer.output_tensor])
        if layer.batch_norm is not None and reader is not None and reader.op is OpKind.BATCH_NORM:
            folded[reader.name] = layer.name
    return folded


def _longest_chain(
    profile: DeviceProfile, network: NetworkDescription, start: TensorInfo, folded: dict[str, str]
) -> list[str]:
    """Names of the tensors of the longest fused group that begins with the operation of ``start``."""
    chains = [_follow(network, start, group[1:], folded) for group in profile.operators.fused if group[0] is start.op]
    return max(chains, key=len, default=[])


def _follow(
    network: NetworkDescription, start: TensorInfo, kinds: tuple[OpKind, ...], folded: dict[str, str]
) -> list[str]:
    """Names of the tensors along a chain of operators, empty if the network differs from it."""
    chain = [start]
    for kind in kinds:
        reader = only_reader(network, chain[-1])
        if reader is not None and reader.name in folded and kind is not OpKind.BATCH_NORM:
            chain.append(reader)
            reader = only_reader(network, reader)
        if reader is None or reader.op is not kind:
            return []
        chain.append(reader)
    return [tensor.name for tensor in chain]


def _main_branches(profile: DeviceProfile, network: NetworkDescription, producer: dict[str, OpKind]) -> dict[str, str]:
    """For every residual addition, the input that comes straight out of the layer it is fused into.

    Where both inputs do, as with a convolution in the skip branch, it is the one with more operations behind it;
    the later one if that decides nothing. An addition of which no input does has no main branch.
    """
    if profile.activations.residual_add is not ResidualAdd.SKIP_ONLY:
        return {}
    depth: dict[str, int] = {}
    for tensor in network.tensors:
        depth[tensor.name] = 1 + max((depth[name] for name in tensor.inputs), default=0)
    order = {tensor.name: position for position, tensor in enumerate(network.tensors)}
    branches: dict[str, str] = {}
    for addition in network.tensors:
        if addition.op is not OpKind.ADD or len(addition.inputs) < 2:
            continue
        out_of_layers = [
            name
            for name in addition.inputs
            if producer[name] in LAYER_KINDS and only_reader(network, network.tensor[name]) is addition
        ]
        if out_of_layers:
            main = max(out_of_layers, key=lambda name: (depth[name], order[name]))
            branches[main] = addition.name
    return branches
