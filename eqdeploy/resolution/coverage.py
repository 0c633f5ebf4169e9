"""Decide which tensors carry an encoding, who reads them in float, and why the others have none."""

from __future__ import annotations

import re

from eqdeploy.network import NetworkDescription, OpKind, TensorInfo
from eqdeploy.plan import Coverage
from eqdeploy.profile_fields import Encode
from eqdeploy.profile_schema import DeviceProfile
from eqdeploy.resolution.structure import Structure

#: Operations that stay float unless a profile says otherwise, and why.
_FLOAT_KINDS = frozenset({OpKind.OTHER, OpKind.BATCH_NORM})
_WHY_FLOAT = {OpKind.OTHER: "has no integer form", OpKind.BATCH_NORM: "follows no layer that it could be folded into"}

#: Operations without integer form that become Conv, ConvTranspose or Gemm. Where their input is dequantized, ONNX
#: Runtime quantizes their float weights by itself (``weight_bias_quantization.cc``), to 8 bits with one scale.
_FLOAT_LAYERS = re.compile(r"(conv|linear|addmm)[^.]*$", re.IGNORECASE)


def encoded_tensors(profile: DeviceProfile, network: NetworkDescription, structure: Structure) -> frozenset[str]:
    """Names of all tensors that carry an encoding.

    What feeds a layer always does: it was trained so. Everything else follows ``activations.encode``.
    """
    encoded: set[str] = set()
    for tensor in reversed(network.tensors):  # readers first: a reshape of a float output stays float
        if tensor.integer or tensor.name in structure.inside or tensor.name in structure.main_branch:
            continue
        if tensor.trained or _is_wanted(profile, network, structure, tensor, encoded):
            encoded.add(tensor.name)
    return frozenset(encoded)


def float_readers(
    profile: DeviceProfile, network: NetworkDescription, tensor: TensorInfo, encoded: frozenset[str]
) -> tuple[str, ...]:
    """Operations that read the unquantized value of a tensor that has an encoding for others.

    Training has all readers of a layer's input see the quantized value, so only tensors without trained scales
    are split: on devices that encode the inputs of quantized operators only, and before layers that stay float.
    """
    if tensor.trained or tensor.name not in encoded:
        return ()
    if profile.activations.encode is Encode.ALL:
        return tuple(name for name in tensor.readers if _is_float_layer(network.tensor[name]))
    operators = profile.operators
    return tuple(
        name
        for name in tensor.readers
        if network.tensor[name].op not in operators.quantized
        and not (network.tensor[name].op in operators.shared and name in encoded)
    )


def why_float(
    profile: DeviceProfile, network: NetworkDescription, structure: Structure, tensor: TensorInfo
) -> tuple[Coverage, str]:
    """Coverage and reason of a tensor without encoding."""
    if tensor.name in structure.inside:
        return Coverage.INSIDE_FUSED_GROUP, structure.inside[tensor.name]
    if tensor.integer:
        return Coverage.FLOAT_BY_NECESSITY, "holds integers, which pass through as they are"
    if tensor.name in structure.main_branch:
        addition = structure.main_branch[tensor.name]
        return Coverage.FLOAT_BY_PROFILE, f"main branch of {addition} (activations.residual_add: skip_only)"
    quantized = (*profile.operators.quantized, *profile.operators.shared)
    kind = structure.kind[tensor.name]
    if kind in _FLOAT_KINDS and kind not in quantized:
        return Coverage.FLOAT_BY_NECESSITY, f"{tensor.operation} {_WHY_FLOAT[kind]}"
    if tensor.is_output and not profile.activations.network_output:
        return Coverage.FLOAT_BY_PROFILE, "network output (activations.network_output: false)"
    readers = [network.tensor[name] for name in tensor.readers]
    if readers and all(structure.kind[reader.name] in _FLOAT_KINDS - {*quantized} for reader in readers):
        return Coverage.FLOAT_BY_NECESSITY, f"read only by {readers[0].operation}, which has no integer form"
    if profile.activations.encode is Encode.OPERATOR_INPUTS:
        return Coverage.FLOAT_BY_PROFILE, "no quantized operator reads it (activations.encode: operator_inputs)"
    if readers and kind in quantized:
        return Coverage.FLOAT_BY_PROFILE, f"only moved into {readers[0].name}, which is float"
    return Coverage.FLOAT_BY_PROFILE, f"neither {kind} nor a reader is listed in operators.quantized"


def _is_wanted(
    profile: DeviceProfile, network: NetworkDescription, structure: Structure, tensor: TensorInfo, encoded: set[str]
) -> bool:
    """Whether the profile asks for an encoding of an ordinary tensor whose readers are decided already."""
    operators, activations = profile.operators, profile.activations
    readers = [network.tensor[name] for name in tensor.readers]
    if activations.encode is Encode.OPERATOR_INPUTS:
        if any(reader.op in operators.quantized for reader in readers):
            return True
        return _is_encoded_output(profile, structure, tensor)
    if all(_is_float_layer(reader) for reader in readers):
        return _is_encoded_output(profile, structure, tensor)
    only_moved = all(
        reader.op in operators.shared and len(reader.inputs) == 1 and reader.name not in encoded for reader in readers
    )
    if only_moved:
        return _is_encoded_output(profile, structure, tensor)
    on_integers = {*operators.quantized, *operators.shared}
    return structure.producer[tensor.name] in on_integers or any(reader.op in on_integers for reader in readers)


def _is_float_layer(tensor: TensorInfo) -> bool:
    """Whether an operation is a layer that stays float, weights and all."""
    return tensor.op is OpKind.OTHER and _FLOAT_LAYERS.search(tensor.operation) is not None


def _is_encoded_output(profile: DeviceProfile, structure: Structure, tensor: TensorInfo) -> bool:
    """Whether a tensor is a network output that the device computes on integers and wants encoded."""
    on_integers = (*profile.operators.quantized, *profile.operators.shared)
    return tensor.is_output and profile.activations.network_output and structure.producer[tensor.name] in on_integers
