"""What may differ between processors in a record of calibration, and what may not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from eqdeploy.calibration.measured import Range
from eqdeploy.calibration.record import CalibrationRecord
from eqdeploy.freeze.ranges import search_ranges
from eqdeploy.origin.checks import OriginCheck
from eqdeploy.origin.recorded import (
    compare_exactly,
    compare_recorded_ranges,
    compare_recorded_statistics,
    record_faults,
)
from eqdeploy.plan import DevicePlan
from tests.unit.test_origin import calibrated, frozen, plan_for, prepared

STATISTICS = {"norm.running_mean": torch.tensor([0.5, -2.0]), "norm.running_var": torch.tensor([4.0, 1.0])}
IMAGES = 100  # a quarter of the standard error is a fortieth of the standard deviation


def statistics_with(mean: float = 0.0, variance: float = 1.0) -> CalibrationRecord:
    """Shift the first mean, in standard deviations, and scale the first variance."""
    means, variances = STATISTICS["norm.running_mean"].clone(), STATISTICS["norm.running_var"].clone()
    means[0] += 2.0 * mean
    variances[0] *= variance
    return CalibrationRecord({"norm.running_mean": means, "norm.running_var": variances}, {})


@pytest.mark.parametrize(
    ("record", "passed"),
    [
        (statistics_with(), True),
        (statistics_with(mean=0.024), True),
        (statistics_with(mean=-0.026), False),
        (statistics_with(variance=1.048), True),
        (statistics_with(variance=0.948), False),
        (statistics_with(mean=float("nan")), False),
        (statistics_with(variance=float("inf")), False),
    ],
)
def test_statistics_may_move_by_a_quarter_of_their_standard_error(record: CalibrationRecord, passed: bool) -> None:
    assert compare_recorded_statistics(record, STATISTICS, IMAGES).passed is passed


def test_more_images_leave_less_room() -> None:
    record = statistics_with(mean=0.024)
    assert compare_recorded_statistics(record, STATISTICS, IMAGES).passed
    assert not compare_recorded_statistics(record, STATISTICS, 4 * IMAGES).passed


def test_one_variance_for_a_layer_has_one_value() -> None:
    statistics = {"norm.running_mean": torch.tensor([0.5, -2.0]), "norm.running_var": torch.tensor(4.0)}
    record = CalibrationRecord({name: value.reshape(-1) for name, value in statistics.items()}, {})
    assert record_faults(record, statistics, {}) == []
    assert compare_recorded_statistics(record, statistics, IMAGES).passed
    assert compare_exactly(record, statistics, {}).passed


@cache
def measured(profile: str = "snpe-dsp") -> tuple[DevicePlan, dict[str, Range], dict[str, Tensor]]:
    plan = plan_for(profile)
    calibrated(plan)
    _, samples = frozen(plan)
    return plan, dict(search_ranges(prepared()[0], plan, samples).ranges), samples


def ranges_with(**changes: float) -> OriginCheck:
    """Compare a record in which the last range has other numbers."""
    plan, ranges, samples = measured()
    name = list(ranges)[-1]
    found = Range(
        ranges[name].scale * changes.get("factor", 1.0), ranges[name].zero_point + int(changes.get("steps", 0))
    )
    return compare_recorded_ranges(plan, CalibrationRecord({}, {**ranges, name: found}), ranges, samples)


def test_ranges_that_are_found_here_pass() -> None:
    assert ranges_with().passed


@pytest.mark.parametrize("factor", [1.0 + 2.0**-16, 1.0 - 2.0**-16])
def test_a_range_may_move_by_rounding(factor: float) -> None:
    assert ranges_with(factor=factor).passed


@pytest.mark.parametrize("changes", [{"factor": 1.03}, {"factor": 1 / 1.03}, {"factor": 2.0}, {"steps": 3}])
def test_a_range_that_is_worse_fails(changes: dict[str, float]) -> None:
    assert "mean squared error" in ranges_with(**changes).detail


def test_the_end_of_a_search_on_values_of_another_processor_passes() -> None:
    plan, ranges, samples = measured()
    noise = torch.Generator().manual_seed(5)
    for _ in range(3):
        moved = {name: v * (1 + 2.0**-13 * torch.randn(v.shape, generator=noise)) for name, v in samples.items()}
        elsewhere = search_ranges(prepared()[0], plan, moved).ranges
        check = compare_recorded_ranges(plan, CalibrationRecord({}, elsewhere), ranges, samples)
        assert check.passed, check.detail


def test_with_the_same_arithmetic_every_bit_counts() -> None:
    record = CalibrationRecord(STATISTICS, {"x": Range(0.5, 3)})
    assert compare_exactly(record, STATISTICS, {"x": Range(0.5, 3)}).passed
    assert not compare_exactly(record, STATISTICS, {"x": Range(0.5, 4)}).passed
    mean = torch.nextafter(STATISTICS["norm.running_mean"], torch.tensor(9.0))
    moved = replace(record, statistics={**STATISTICS, "norm.running_mean": mean})
    assert compare_exactly(moved, STATISTICS, {"x": Range(0.5, 3)}).tensors == ("norm.running_mean",)


def test_a_record_has_the_names_and_sizes_of_the_subnet() -> None:
    ranges = {"x": Range(0.5, 3)}
    assert record_faults(CalibrationRecord(STATISTICS, ranges), STATISTICS, ranges) == []
    assert record_faults(CalibrationRecord({}, ranges), STATISTICS, ranges)
    assert record_faults(CalibrationRecord(STATISTICS, {}), STATISTICS, ranges)
    assert record_faults(CalibrationRecord(STATISTICS, {**ranges, "y": Range(1.0, 0)}), STATISTICS, ranges)
    longer = {**STATISTICS, "norm.running_var": torch.ones(3)}
    assert record_faults(CalibrationRecord(longer, ranges), STATISTICS, ranges)
