"""Small search spaces and brute force over them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eqdeploy.network import ElasticSpace, NetworkDescription, OpKind
from eqdeploy.plan import DevicePlan
from eqdeploy.profile import DeviceProfile, load_profile
from eqdeploy.profile_schema import ActivationOverride, WeightOverride
from eqdeploy.quant.form import Symmetry
from eqdeploy.search.space import SearchSpace, search_space
from tests.unit.network_support import NetworkBuilder

X86 = load_profile("onnxruntime-x86")
TENSORRT = load_profile("tensorrt")


def with_widths(profile: DeviceProfile, *bits: int, boundary: int | None = None) -> DeviceProfile:
    """A profile with other widths of weights and activations."""
    activations = profile.activations
    rules = {name: getattr(activations, name).model_copy(update={"bits": bits}) for name in ("non_negative", "signed")}
    return profile.model_copy(
        update={
            "weights": profile.weights.model_copy(update={"bits": bits, "boundary_bits": boundary}),
            "activations": activations.model_copy(update={**rules, "boundary_bits": boundary}),
        }
    )


def with_overrides(profile: DeviceProfile) -> DeviceProfile:
    """Other widths of some layers and of what some operators produce, and another symmetry after concat."""
    weights = {OpKind.LINEAR: WeightOverride(bits=(8,)), OpKind.CONV: WeightOverride(bits=(4, 2))}
    activations = {
        OpKind.RELU: ActivationOverride(bits=(4, 8)),
        OpKind.MAX_POOL: ActivationOverride(bits=(8, 4, 2)),
        OpKind.CONCAT: ActivationOverride(symmetry=(Symmetry.SYMMETRIC, Symmetry.ASYMMETRIC)),
    }
    return profile.model_copy(
        update={
            "weights": profile.weights.model_copy(update={"operators": weights}),
            "activations": profile.activations.model_copy(update={"operators": activations}),
        }
    )


def chain(layers: int, *, space: ElasticSpace | None = None, seed: int = 0) -> NetworkDescription:
    """Convolutions of different size, each with ReLU."""
    net = NetworkBuilder()
    tensor = net.input()
    for index in range(layers):
        tensor = net.conv_relu(f"conv{index}", tensor)
    return resized(net.build(tensor, space=space), seed)


def resized(network: NetworkDescription, seed: int) -> NetworkDescription:
    """The same network with weights and operation counts of different size; some layers without bias."""
    random = np.random.default_rng(seed)
    layers = []
    for layer in network.layers:
        shape = (layer.groups * int(random.integers(1, 9)), int(random.integers(1, 17)), 3, 3)
        macs = int(random.integers(1, 1000))
        layers.append(replace(layer, weight_shape=shape, macs=macs, bias=bool(random.integers(2))))
    return replace(network, layers=tuple(layers))


def small_space(layers: int = 4, *bits: int, seed: int = 0) -> SearchSpace:
    """A space of ``layers - 2`` weights and as many activations, of widths 2, 4 and 8 unless told."""
    return search_space(with_widths(X86, *reversed(bits or (2, 4, 8))), chain(layers, seed=seed))


def everything(space: SearchSpace) -> NDArray[np.int64]:
    """All choices of a space."""
    rows = list(itertools.product(*(range(size) for size in space.sizes.tolist())))
    return np.array(rows, np.int64).reshape(len(rows), len(space.genes))


def device_widths(plan: DevicePlan) -> dict[str, int]:
    """Width of every tensor that a layer can read."""
    return {plan.merged_copy or plan.tensor: plan.device.bits for plan in plan.tensors if plan.device is not None}


def model_bytes(plan: DevicePlan, network: NetworkDescription) -> int:
    """Recomputed layer by layer."""
    total = 0
    for layer in network.layers:
        total += math.ceil(math.prod(layer.weight_shape) * plan.weight[layer.name].device.bits / 8)
        if layer.bias or layer.batch_norm:
            outputs = layer.weight_shape[layer.channel_axis]
            total += 4 * outputs * (layer.groups if layer.op is OpKind.CONV_TRANSPOSE else 1)
    return total


def bitops(plan: DevicePlan, network: NetworkDescription) -> int:
    """Recomputed layer by layer."""
    widths = device_widths(plan)
    return sum(
        layer.macs * plan.weight[layer.name].device.bits * widths[layer.input_tensor] for layer in network.layers
    )


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that points dominate, both coordinates minimized."""
    area, height = 0.0, reference[1]
    for x, y in sorted(points):
        if y < height and x < reference[0]:
            area += (reference[0] - x) * (height - y)
            height = y
    return area
