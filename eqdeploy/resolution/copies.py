"""Quantized copies of tensors that additions read unquantized in training: which are buffers of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from eqdeploy.network import NetworkDescription, OpKind
from eqdeploy.plan import Coverage, EncodingSource, TensorPlan


def merged_copies(network: NetworkDescription, plans: Mapping[str, TensorPlan]) -> dict[str, str]:
    """Copies that have the width of the tensor that they are copies of: on the device both are one buffer.

    Args:
        network: The network.
        plans: Plans of all its tensors, made as if every copy were a buffer of its own.

    Returns:
        Names of the tensors by the names of their copies.
    """
    merged: dict[str, str] = {}
    for copy in network.tensors:
        if copy.op is OpKind.REQUANTIZE:
            forms = [plans[name].device for name in (copy.name, copy.inputs[0])]
            if len({None if form is None else form.bits for form in forms}) == 1:
                merged[copy.name] = copy.inputs[0]
    return merged


def without_copies(network: NetworkDescription, merged: Mapping[str, str]) -> NetworkDescription:
    """The network in which the layers read the tensors themselves, which own the trained scales then.

    Args:
        network: The network.
        merged: Names of tensors by the names of their copies.
    """
    if not merged:
        return network
    order = {tensor.name: position for position, tensor in enumerate(network.tensors)}
    readers = {tensor.name: set(tensor.readers) for tensor in network.tensors}
    for copy, source in merged.items():
        readers[source] = (readers[source] - {copy}) | readers[copy]
    return replace(
        network,
        layers=tuple(
            replace(layer, input_tensor=merged.get(layer.input_tensor, layer.input_tensor)) for layer in network.layers
        ),
        tensors=tuple(
            replace(
                tensor,
                inputs=tuple(dict.fromkeys(merged.get(name, name) for name in tensor.inputs)),
                readers=tuple(sorted(readers[tensor.name], key=order.__getitem__)),
                trained=tensor.trained or tensor.name in merged.values(),
            )
            for tensor in network.tensors
            if tensor.name not in merged
        ),
    )


def with_copies(
    network: NetworkDescription, merged: Mapping[str, str], plans: Mapping[str, TensorPlan]
) -> tuple[TensorPlan, ...]:
    """Plans of all tensors, copies included, from those of the network without the merged copies."""
    copies = {source: copy for copy, source in merged.items()}
    complete: list[TensorPlan] = []
    for tensor in network.tensors:
        if tensor.name not in merged:
            complete.append(replace(plans[tensor.name], merged_copy=copies.get(tensor.name)))
            continue
        complete.append(
            TensorPlan(
                tensor=tensor.name,
                coverage=Coverage.INSIDE_FUSED_GROUP,
                source=EncodingSource.NONE,
                trained=plans[merged[tensor.name]].trained,
                device=None,
                shares_with=None,
                fixed=None,
                float_readers=(),
                reason=f"one buffer with {merged[tensor.name]}, which has the same width",
            )
        )
    return tuple(complete)
