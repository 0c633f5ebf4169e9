"""Compare the numbers of an artifact with those that freezing the supernet again gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eqdeploy.origin.checks import Fault, OriginCheck
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.supernet.supernet import Supernet

#: How far figures of the report may move, relative: norms are float64 sums in an order of the processor's.
_NORMS = 2.0**-40
_FIGURES = "figures of the report about folding"


def calibration_digest(supernet: Supernet, samples: Mapping[str, Tensor]) -> str:
    """SHA-256 over everything that calibration measured: equal where float32 arithmetic gave the same bits.

    Args:
        supernet: Calibrated.
        samples: Values of the tensors whose range was calibrated.
    """
    digest = hashlib.sha256()
    measured = {
        name: value for name, value in supernet.named_buffers() if name.endswith(("running_mean", "running_var"))
    }
    for name, value in sorted({**measured, **samples}.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Numbers:
    """Scale, codes or a constant of one name, before and after."""

    name: str
    what: str
    held: NDArray[np.generic]
    again: NDArray[np.generic]

    def differs(self) -> int:
        """Number of entries that differ; a figure differs if it is further off than a sum in another order."""
        if self.what == _FIGURES:
            held, again = (array.astype(np.float64) for array in (self.held, self.again))
            return int(np.count_nonzero(~(np.abs(held - again) <= _NORMS * np.abs(again))))
        return int(np.count_nonzero(self.held != self.again))


def compare_repeated(held: QuantizedModel, again: QuantizedModel) -> OriginCheck:
    """Compare every number of two frozen networks of one structure, bit for bit.

    Args:
        held: The network of an artifact.
        again: What freezing again gave, with the measurements that the artifact records.
    """
    faults: list[Fault] = [*_name_faults(held, again)]
    differing = 0
    if not faults:
        for numbers in _all_numbers(held, again):
            count = numbers.differs()
            differing += count
            if count:
                faults.append(
                    (numbers.name, f"{count} of {numbers.held.size} {numbers.what} are not those of the supernet")
                )
    holds = "freezing the supernet again gives every number, bit for bit"
    return OriginCheck.of("numbers", holds, faults, differing=differing)


def _name_faults(held: QuantizedModel, again: QuantizedModel) -> Iterator[Fault]:
    """Tensors and parameters that only one has, and encodings of another kind."""
    for what, ours, theirs in (
        ("encoding", held.activations, again.activations),
        ("integers", held.parameters, again.parameters),
    ):
        for name in dict.fromkeys((*theirs, *ours)):
            if name not in ours or name not in theirs:
                yield name, f"has {'no' if name not in ours else 'an unexpected'} {what}"
    for name, encoding, other in _encodings(held, again):
        keys = ("q_min", "q_max", "bits", "signed", "axis")
        wrong = next((key for key in keys if getattr(encoding, key) != getattr(other, key)), None)
        if wrong is not None:
            yield name, f"{wrong} is {getattr(encoding, wrong)} instead of {getattr(other, wrong)}"
        elif encoding.scale.shape != other.scale.shape:
            yield name, f"has {encoding.scale.size} scales instead of {other.scale.size}"
    if held.folded != again.folded and [row.layer for row in held.folded] != [row.layer for row in again.folded]:
        yield "folding", "the report names other layers"


def _encodings(held: QuantizedModel, again: QuantizedModel) -> Iterator[tuple[str, Encoding, Encoding]]:
    for name, tensor in held.activations.items():
        if name in again.activations:
            yield name, tensor.encoding, again.activations[name].encoding
    for name, parameter in held.parameters.items():
        if name in again.parameters:
            yield name, parameter.encoding, again.parameters[name].encoding


def _all_numbers(held: QuantizedModel, again: QuantizedModel) -> Iterator[_Numbers]:
    """Pairs of everything that is a number."""
    for name, encoding, other in _encodings(held, again):
        yield _numbers(name, "scales", encoding.scale, other.scale)
        yield _numbers(name, "zero-points", encoding.zero_point, other.zero_point)
    for name, parameter in held.parameters.items():
        yield _numbers(name, "codes", parameter.codes, again.parameters[name].codes)
    theirs = again.constants
    for name, constant in held.constants.items():
        if name in theirs and constant.dtype.kind == "f":
            yield _numbers(name, "constants", constant, theirs[name])
    rows = {row.layer: row for row in again.folded}
    for row in held.folded:
        other_row = rows[row.layer]
        keys = ("relative_error", "exact", "negated_channels", "dead_channels", "widened_channels")
        figures = [np.asarray([float(getattr(item, key)) for key in keys]) for item in (row, other_row)]
        yield _numbers(row.layer, _FIGURES, *figures)


def _numbers(name: str, what: str, held: NDArray[np.generic], again: NDArray[np.generic]) -> _Numbers:
    shape = np.broadcast_shapes(held.shape, again.shape) if held.size and again.size else held.shape
    left, right = (np.broadcast_to(array, shape) for array in (held, again))
    return _Numbers(name, what, left, right)
