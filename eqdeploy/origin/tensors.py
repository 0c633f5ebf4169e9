"""Compare the device's numbers with the subnet's, tensor by tensor: each from the same codes before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.origin.checks import Fault, OriginCheck
from eqdeploy.origin.simulation import Simulation
from eqdeploy.origin.tolerance import FrozenNumbers
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.validation.reference.exact import Estimate, ExactValue, estimate, gamma
from eqdeploy.validation.reference.graph import Walk
from eqdeploy.validation.reference.integer import IntegerReference

#: Steps that the float32 arithmetic of an integer kernel may be off where it scales codes and zero-points apart:
#: six roundings of numbers up to 2^11 steps.
_KERNEL_STEPS = 2.0**-10


@dataclass(frozen=True)
class _Distance:
    """The entry of a tensor that departs most, in relation to what is allowed.

    Attributes:
        steps: Its distance from the subnet's number.
        allowed: The bound at this entry, in the same unit.
    """

    steps: float
    allowed: float

    @property
    def within(self) -> bool:
        """Whether the bound holds; false for NaN."""
        return self.steps <= self.allowed


def compare_tensors(
    model: QuantizedModel,
    simulation: Simulation,
    bounds: Mapping[str, NDArray[np.float64]],
    images: NDArray[Any],
) -> tuple[OriginCheck, OriginCheck]:
    """Compare every encoded tensor and every output.

    The integer reference gives the codes. From them torch computes the subnet's real value of each tensor, and the
    exact numbers of the device's graph theirs: the two may differ by what freezing rounded. The reference's code must
    be the rounded one of the subnet's value, to the same bound.

    Args:
        model: The frozen network.
        simulation: The subnet.
        bounds: How far weights and biases may be from the subnet's; see :class:`FrozenNumbers`.
        images: Shape (N, …) of the network's input, or (N,) records with a field for each input.

    Returns:
        The checks ``tensors`` and ``outputs``.
    """
    reference = IntegerReference(model)
    graph = reference.graph
    codes = reference.run(images).codes
    values, outputs = simulation.run(images, codes)
    exact: dict[str, Estimate] = {}

    def encode(name: str, value: ExactValue) -> NDArray[np.int32]:
        exact[name] = estimate(value)
        return codes[name].astype(np.int32)

    walk: Walk[ExactValue] = Walk(graph, FrozenNumbers(bounds))
    results = walk.run(images, encode)
    faults: list[Fault] = []
    worst, where = _Distance(0.0, 0.0), ""
    for name, encoding in graph.encodings.items():
        if name not in values:
            faults.append((name, "the supernet has no such tensor"))
            continue
        distance, rounding = _distances(values[name], exact[name], codes[name].astype(np.int64), encoding)
        if not distance.within:
            faults.append(
                (name, f"is {distance.steps:.3g} steps from the subnet's, {distance.allowed:.3g} are allowed")
            )
        elif not rounding.within:
            faults.append(
                (name, f"a code is {rounding.steps:.3g} steps from what it stands for, at most half is right")
            )
        if not distance.steps <= worst.steps:
            worst, where = distance, name
    size = sum(array.size for array in codes.values())
    checked = OriginCheck.of(
        "tensors",
        f"{len(graph.encodings)} tensors on {len(images)} images are at most {worst.steps:.3g} steps from the subnet's",
        faults,
        images=len(images),
        codes=size,
        worst_tensor=where,
        worst_steps=_finite(worst.steps),
        allowed_steps=_finite(worst.allowed),
    )
    read = {
        name: FrozenNumbers({}).encoded(codes[name].astype(np.int32), graph.encodings[name]) for name in graph.encodings
    }
    return checked, _outputs(graph.output_names, {**results, **read}, outputs)


def _distances(
    value: NDArray[np.float64], exact: Estimate, codes: NDArray[np.int64], encoding: Encoding
) -> tuple[_Distance, _Distance]:
    """How far the device's numbers are from the subnet's, and its codes from these, in steps of the scale."""
    scale, zero_point = float(encoding.scale), int(encoding.zero_point)
    if value.shape != exact.value.shape or value.shape != codes.shape:
        return _Distance(np.inf, 0.0), _Distance(np.inf, 0.5)
    # Both below the range, or both above it, are one number to all readers: what hides from softmax may be −∞ in the
    # subnet and a finite number on the device.
    low, high = scale * (encoding.q_min - zero_point - 1), scale * (encoding.q_max - zero_point + 1)
    same = ((value < low) & (exact.value < low)) | ((value > high) & (exact.value > high))
    steps = np.where(same, 0.0, np.abs(np.where(same, 0.0, value) - np.where(same, 0.0, exact.value)) / scale)
    reach = np.where(same, 0.0, np.abs(value) / scale) + abs(zero_point) + 1
    error, magnitude = (
        np.where(same, 0.0, np.broadcast_to(part, same.shape)) for part in (exact.error, exact.magnitude)
    )
    allowed = error / scale + 2.0**-40 * reach
    kernel = gamma(6) * (reach + magnitude / scale) + _KERNEL_STEPS
    inside = np.clip(value / scale, encoding.q_min - zero_point, encoding.q_max - zero_point)
    return _worst(steps, allowed), _worst(np.abs(codes - zero_point - inside), 0.5 + allowed + kernel)


def _worst(steps: NDArray[np.float64], allowed: NDArray[np.float64]) -> _Distance:
    """The entry that exceeds its bound most, else the one with the largest distance."""
    if not steps.size:
        return _Distance(0.0, 0.0)
    excess = np.nan_to_num(steps - allowed, nan=np.inf)
    place = int(np.argmax(excess if excess.max() > 0 else steps))
    return _Distance(float(steps.reshape(-1)[place]), float(allowed.reshape(-1)[place]))


def _outputs(
    names: Sequence[str], results: Mapping[str, ExactValue], outputs: Sequence[NDArray[np.float64]]
) -> OriginCheck:
    """Compare the outputs of both networks as real numbers."""
    faults: list[Fault] = []
    largest = 0.0
    if len(outputs) != len(names):
        faults.append(("outputs", f"the device returns {len(names)}, the subnet {len(outputs)}"))
    for name, value in zip(names, outputs, strict=False):
        exact = estimate(results[name])
        if value.shape != exact.value.shape:
            faults.append((name, f"has shape {exact.value.shape} instead of {value.shape}"))
            continue
        same = value == exact.value
        difference = np.where(same, 0.0, np.abs(value - np.where(same, 0.0, exact.value)))
        distance = _worst(difference, np.broadcast_to(exact.error, difference.shape) + 2.0**-40 * np.abs(value))
        largest = max(largest, distance.steps)
        if not distance.within:
            faults.append((name, f"is {distance.steps:.3g} from the subnet's, {distance.allowed:.3g} is allowed"))
    holds = f"{len(outputs)} outputs are at most {largest:.3g} from the subnet's"
    return OriginCheck.of("outputs", holds, faults, largest_difference=_finite(largest))


def _finite(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if np.isfinite(value) else None
