"""Distance from float: how far every output and every quantized tensor of an exported model is from the float network.

It needs images, but no labels. What is measured is the signal-to-quantization-noise ratio over all values of a tensor,

    SQNR = 10 · log10(Σ x² / Σ (x − y)²)   in dB,   x of the float network, y dequantized codes,

and the largest difference |x − y|. Of what softmax alone reads, entries that it sees in neither network do not count,
and those that it sees in one only are compared with where it begins to see them: how deep a mask hides is no matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.validation.noise import decibels, default_floor, expected_noise
from eqdeploy.validation.reference.graph import Graph
from eqdeploy.validation.reference.integer import ReferenceResult

#: Tensors in a summary.
_WORST = 3


@dataclass(frozen=True, eq=False)
class FloatValues:
    """What the float network computes for a batch.

    Attributes:
        values: float32 values by tensor name.
        floors: For tensors that softmax alone reads, by name, where it begins to see them; broadcasts with the values.
    """

    values: Mapping[str, NDArray[np.float32]]
    floors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


#: Values of the float network, for preprocessed images and the names of tensors that are wanted.
FloatTensors = Callable[[NDArray[Any], Collection[str]], FloatValues]


@dataclass(frozen=True)
class TensorDistance:
    """How far one tensor is from the float network's.

    Attributes:
        name: Tensor name.
        is_output: Whether the network returns it.
        sqnr: In dB; None where nothing differs, or where the float network's values are all zero.
        floor: Smallest SQNR that is accepted, in dB.
        largest_difference: In real numbers.
    """

    name: str
    is_output: bool
    sqnr: float | None
    floor: float
    largest_difference: float

    @property
    def passed(self) -> bool:
        """Whether it is near enough."""
        return self.sqnr is None or self.sqnr >= self.floor

    @property
    def room(self) -> float:
        """How far it lies above the floor, in dB."""
        return math.inf if self.sqnr is None else self.sqnr - self.floor

    def to_json(self) -> dict[str, Any]:
        """Plain data, rounded: another machine adds in another order."""
        return {
            "tensor": self.name,
            "output": self.is_output,
            "sqnr_db": None if self.sqnr is None else round(self.sqnr, 2),
            "floor_db": round(self.floor, 2),
            "largest_difference": float(f"{self.largest_difference:.4g}"),
            "passed": self.passed,
        }


@dataclass(frozen=True)
class DistanceReport:
    """Distance from float of all tensors.

    Attributes:
        images: Number of images.
        tensors: Outputs and encoded tensors, in order of execution.
        missing: Outputs and encoded tensors that the float network does not have.
    """

    images: int
    tensors: tuple[TensorDistance, ...]
    missing: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every tensor was compared and is near enough."""
        return not self.missing and all(tensor.passed for tensor in self.tensors)

    @property
    def worst(self) -> tuple[TensorDistance, ...]:
        """The tensors with the least room above their floors."""
        return tuple(sorted(self.tensors, key=lambda tensor: tensor.room)[:_WORST])

    @property
    def summary(self) -> str:
        """The outcome in one sentence."""
        if self.missing:
            return f"the float network has no tensor {self.missing[0]} to compare with"
        outputs = [tensor.sqnr for tensor in self.tensors if tensor.is_output and tensor.sqnr is not None]
        head = f"outputs {min(outputs):.1f} dB from float" if outputs else "outputs as in float"
        failed = [tensor for tensor in self.tensors if not tensor.passed]
        if failed:
            first, worst = failed[0], min(failed, key=lambda tensor: tensor.room)
            also = "" if first is worst else f"; furthest below {worst.name}: {_against_floor(worst)}"
            return (
                f"{len(failed)} of {len(self.tensors)} tensors too far from float, the first {first.name}: "
                f"{_against_floor(first)}{also}"
            )
        nearest = self.worst[0] if self.worst else None
        tail = (
            "" if nearest is None or nearest.sqnr is None else f"; least room {nearest.name}: {_against_floor(nearest)}"
        )
        return f"{head}{tail}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "images": self.images,
            "worst": [tensor.name for tensor in self.worst],
            "missing": list(self.missing),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def _against_floor(tensor: TensorDistance) -> str:
    """SQNR and floor of a tensor whose SQNR is known."""
    return f"{tensor.sqnr:.1f} dB, at least {tensor.floor:.1f}"


@dataclass
class _Sums:
    """What was added up for one tensor."""

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0

    def add(self, wanted: NDArray[Any], found: NDArray[Any], floor: NDArray[Any] | None) -> None:
        """Add the values of one batch; what is infinite in the float network, or not seen in either, is left out."""
        if floor is not None:
            seen = (wanted > floor) | (found > floor)
            wanted, found = (np.where(seen, np.maximum(values, floor), 0.0) for values in (wanted, found))
        finite = np.isfinite(wanted)
        x = np.where(finite, wanted, 0.0).astype(np.float64)
        difference = x - np.where(finite, found, 0.0)
        self.signal += float(np.square(x).sum())
        self.noise += float(np.square(difference).sum())
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    @property
    def sqnr(self) -> float | None:
        """In dB, None if nothing differs or there is no signal."""
        return decibels(self.signal / self.noise) if self.signal > 0 and self.noise > 0 else None


@dataclass
class DistanceMeter:
    """Adds up distances batch by batch.

    Args:
        graph: The exported network.
        float_tensors: The float network.
    """

    graph: Graph
    float_tensors: FloatTensors
    images: int = 0
    _sums: dict[str, _Sums] = field(default_factory=dict)

    def add(self, images: NDArray[Any], found: ReferenceResult) -> None:
        """Compare one batch.

        Args:
            images: Preprocessed, shape (N, …), or (N,) records with a field for each input.
            found: What the exported network computes for them.
        """
        names = self._names
        known = self.float_tensors(images, names)
        for name in names:
            encoding, wanted, floor = self.graph.encodings.get(name), known.values.get(name), known.floors.get(name)
            values = found.outputs[name] if encoding is None else encoding.dequantize(found.codes[name])
            if wanted is None or wanted.size != values.size:
                continue
            if floor is not None:
                floor = np.broadcast_to(floor, wanted.shape).reshape(values.shape)
            self._sums.setdefault(name, _Sums()).add(wanted.reshape(values.shape), values, floor)
        self.images += len(images)

    def report(self, min_sqnr: float | None = None) -> DistanceReport:
        """Judge what was added up.

        Args:
            min_sqnr: Smallest SQNR of every output and encoded tensor in dB, None for what the widths lead to expect.
        """
        noise = expected_noise(self.graph)
        tensors = tuple(
            TensorDistance(
                name=name,
                is_output=name in self.graph.output_names,
                sqnr=self._sums[name].sqnr,
                floor=default_floor(noise[name]) if min_sqnr is None else min_sqnr,
                largest_difference=self._sums[name].largest,
            )
            for name in self._names
            if name in self._sums
        )
        return DistanceReport(self.images, tensors, tuple(name for name in self._names if name not in self._sums))

    @property
    def _names(self) -> tuple[str, ...]:
        """Encoded tensors and outputs, in order of execution."""
        return tuple(dict.fromkeys((*self.graph.encodings, *self.graph.output_names)))
