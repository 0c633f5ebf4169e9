"""Compare what an artifact says was measured in calibration with what measuring again gives, perhaps elsewhere.

On another processor sums of float32 numbers have other last bits, so that some codes move by one step, and with them
statistics and ranges. How far they may move without being wrong is what this module bounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from eqdeploy.calibration.measured import Range
from eqdeploy.calibration.record import CalibrationRecord
from eqdeploy.origin.checks import Fault, OriginCheck
from eqdeploy.origin.grid import Grid, pooled_samples
from eqdeploy.plan import DevicePlan, EncodingSource
from eqdeploy.quant.form import Form
from eqdeploy.quant.initialize import minimize_error

_NAME = "calibration"

#: Statistics may move by this part of what another draw of as many images would move them by (its standard error).
STANDARD_ERRORS = 0.25
#: Smallest such bound, in standard deviations: float32 sums of any number of images.
_FLOAT32_DEVIATIONS = 2.0**-12
#: How much larger the error of a recorded range may be than that of the range which is found now.
WORSE = 2.0**-11
#: Errors below this part of a step are no errors: a grid may represent all values exactly.
_STEP = 2.0**-8
#: The search is repeated on values that are moved by this part of themselves, as another processor moves them.
_MOVED = 2.0**-12
_REPETITIONS = 8
#: A recorded scale is one that a repetition finds if it is this near.
_SAME_SCALE = 2.0**-10
#: How much larger the error of a power of two may be than that of the best: the choice is between few.
_WORSE_POWER = 1e-3


def compare_exactly(
    record: CalibrationRecord, statistics: Mapping[str, Tensor], ranges: Mapping[str, Range]
) -> OriginCheck:
    """Hold the record of an artifact against what was measured again with the arithmetic of the export.

    Args:
        record: Of the artifact, with the names of the subnet's.
        statistics: BatchNorm statistics that were measured again.
        ranges: Ranges that were searched again.
    """
    faults: list[Fault] = [
        (name, "is not what the calibration images give")
        for name, value in statistics.items()
        if not torch.equal(record.statistics[name].reshape(-1), value.cpu().reshape(-1))
    ]
    faults += [
        (name, "is not the range that the calibration images give")
        for name, found in ranges.items()
        if record.ranges[name] != found
    ]
    return OriginCheck.of(_NAME, "calibrating again gives every bit of the record", faults, largest_distance=0.0)


def compare_recorded_statistics(
    record: CalibrationRecord, statistics: Mapping[str, Tensor], images: int
) -> OriginCheck:
    """Hold recorded statistics against those that another processor measures.

    A mean may be off by a quarter of the standard error that a mean of as many images has, a variance by twice that
    part of itself.

    Args:
        record: Of the artifact, with the names and sizes of the subnet's.
        statistics: BatchNorm statistics that were measured again.
        images: Number of calibration images.
    """
    allowed = max(STANDARD_ERRORS / float(np.sqrt(max(images, 1))), _FLOAT32_DEVIATIONS)
    moved = {name: _moved(name, record.statistics, statistics) for name in statistics}
    faults: list[Fault] = [
        (name, f"is {distance:.2g} standard deviations from what the calibration images give, {allowed:.2g} is allowed")
        for name, distance in moved.items()
        if not distance <= allowed
    ]
    largest = max(moved.values(), default=0.0)
    return OriginCheck.of(
        _NAME,
        f"statistics measured on this processor are at most {largest:.2g} standard deviations from the record, "
        f"{allowed:.2g} is allowed",
        faults,
        largest_distance=largest if np.isfinite(largest) else None,
        allowed_distance=allowed,
    )


def compare_recorded_ranges(
    plan: DevicePlan, record: CalibrationRecord, ranges: Mapping[str, Range], samples: Mapping[str, Tensor]
) -> OriginCheck:
    """Hold recorded ranges against those that are found on samples of another processor.

    A range may have an error that is larger than that of the one found here by 2^-11, or be the one that the same
    search finds on values moved by 2^-12 of themselves: it may end in either of two minima that are nearly equal.

    Args:
        plan: Where every encoding comes from.
        record: Of the artifact, with the names of the subnet's.
        ranges: What the search finds on the samples.
        samples: Values of tensors under the recorded statistics, shape (1, M).
    """
    texts = {name: _range_fault(plan, name, record.ranges[name], ranges[name], samples) for name in ranges}
    faults: list[Fault] = [(name, text) for name, text in texts.items() if text is not None]
    return OriginCheck.of(_NAME, f"{len(ranges)} recorded ranges are as good as those found on this processor", faults)


def record_faults(
    record: CalibrationRecord, statistics: Mapping[str, Tensor], ranges: Mapping[str, Range]
) -> list[Fault]:
    """Names and sizes in which a record is not one of this subnet.

    Args:
        record: Of the artifact.
        statistics: The supernet's.
        ranges: What the plan measures.
    """
    faults = [
        (name, "is not what calibration measures of this subnet")
        for ours, theirs in ((record.statistics, statistics), (record.ranges, ranges))
        for name in dict.fromkeys((*theirs, *ours))
        if name not in ours or name not in theirs
    ]
    faults += [
        (name, f"has {record.statistics[name].numel()} values instead of {value.numel()}")
        for name, value in statistics.items()
        if name in record.statistics and record.statistics[name].numel() != value.numel()
    ]
    return faults


def _moved(name: str, held: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> float:
    """Largest distance of a mean in standard deviations of its channel, half of that of a variance in parts of it."""
    found, wanted = held[name].double().reshape(-1), again[name].double().cpu().reshape(-1)
    if name.endswith("running_var"):
        size, parts = wanted.abs(), 2.0
    else:
        variance = again.get(name.removesuffix("running_mean") + "running_var")
        deviation = wanted.abs() if variance is None else variance.double().cpu().reshape(-1).abs().sqrt()
        # Of a channel that is constant, float32 knows the mean to its last bits.
        size, parts = deviation + 2.0**-10 * wanted.abs(), 1.0
    distance = (found - wanted).abs() / (parts * size.clamp(min=1e-12))
    return float(distance.nan_to_num(nan=torch.inf).max()) if distance.numel() else 0.0


def _range_fault(plan: DevicePlan, name: str, found: Range, here: Range, samples: Mapping[str, Tensor]) -> str | None:
    """Why a recorded range is not one that calibration may find, None if it is."""
    tensor = plan.tensor[name]
    form, values = tensor.device, pooled_samples(plan, name, samples)
    assert form is not None  # promised by the plan
    assert values is not None  # measured tensors were sampled
    if found == here:
        return None
    error, best = (_grid(part, form).error(values) for part in (found, here))
    if plan.power_of_two_scales:
        power = float(np.frexp(found.scale)[0]) == 0.5
        right = power and error <= (1.0 + _WORSE_POWER) * best
    else:
        right = error <= (1.0 + WORSE) * best + (_STEP * here.scale) ** 2
        right = right or (tensor.source is EncodingSource.CALIBRATED and _is_found_nearby(found, values, form))
    ratio = error / max(best, 1e-300)
    return None if right else f"its mean squared error is {ratio:.5g} times that of the range found here"


def _is_found_nearby(found: Range, values: Tensor, form: Form) -> bool:
    """Whether the search ends in this range on values that are moved a little."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(_REPETITIONS):
        noise = torch.rand(values.shape, generator=generator) * 2.0 - 1.0
        scale, zero_point = (float(part[0]) for part in minimize_error(values * (1.0 + _MOVED * noise), form))
        if int(zero_point) == found.zero_point and abs(found.scale - scale) <= _SAME_SCALE * scale:
            return True
    return False


def _grid(found: Range, form: Form) -> Grid:
    return Grid(found.scale, form.q_min - found.zero_point, form.q_max - found.zero_point)
