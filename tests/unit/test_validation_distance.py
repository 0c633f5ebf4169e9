"""Distance from float: measured over all values, judged by what the widths lead to expect."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from eqdeploy.testing import sample_model
from eqdeploy.validation.distance import DistanceMeter, DistanceReport, FloatValues
from eqdeploy.validation.noise import MARGIN, SUFFICIENT_SQNR, default_floor, rounding_noise
from eqdeploy.validation.reference.integer import IntegerReference

IMAGES = np.random.default_rng(0).normal(0, 1.5, (6, 3, 8, 8)).astype(np.float32)
REFERENCE = IntegerReference(sample_model())
FOUND = REFERENCE.run(IMAGES)
EXACT: dict[str, NDArray[np.float32]] = {
    **{name: REFERENCE.graph.encodings[name].dequantize(codes) for name, codes in FOUND.codes.items()},
    **FOUND.outputs,
}
OUTPUT = REFERENCE.graph.output_names[0]


def measured(values: Mapping[str, NDArray[np.float32]], min_sqnr: float | None = None) -> DistanceReport:
    """The report for a float network with these values, added up in two batches."""

    def tensors(images: NDArray[np.float32], names: Collection[str]) -> FloatValues:
        rows = slice(0, 4) if len(images) == 4 else slice(4, 6)
        return FloatValues({name: values[name][rows] for name in names if name in values})

    meter = DistanceMeter(REFERENCE.graph, tensors)
    for part in (IMAGES[:4], IMAGES[4:]):
        meter.add(part, REFERENCE.run(part))
    return meter.report(min_sqnr)


def test_the_same_numbers_have_no_distance() -> None:
    report = measured(EXACT)
    assert report.passed
    assert report.images == 6
    assert {tensor.name for tensor in report.tensors} == set(EXACT)
    assert all(tensor.sqnr is None and tensor.largest_difference == 0 for tensor in report.tensors)


def test_noise_of_a_known_power_is_measured_in_decibels() -> None:
    exact = EXACT[OUTPUT]
    noise = np.random.default_rng(1).normal(size=exact.shape)
    noise *= np.sqrt(np.square(exact).sum() / np.square(noise).sum() / 100)  # 20 dB below
    wanted = (exact + noise).astype(np.float32)
    tensor = next(entry for entry in measured({**EXACT, OUTPUT: wanted}).tensors if entry.is_output)
    expected = 10 * np.log10(np.square(wanted.astype(float)).sum() / np.square(wanted.astype(float) - exact).sum())
    assert tensor.sqnr == pytest.approx(expected, abs=1e-9)
    assert tensor.sqnr == pytest.approx(20, abs=1)
    assert tensor.largest_difference == pytest.approx(np.abs(noise).max(), rel=1e-4)
    assert tensor.passed


@pytest.mark.parametrize("name", list(EXACT))
def test_a_tensor_that_has_nothing_to_do_with_float_fails_and_is_named(name: str) -> None:
    report = measured({**EXACT, name: np.roll(EXACT[name], 1, axis=-1) * np.float32(-1)})
    assert not report.passed
    assert [tensor.name for tensor in report.tensors if not tensor.passed] == [name]
    assert report.worst[0].name == name
    assert name in report.summary


def test_a_limit_takes_the_place_of_every_floor() -> None:
    values = {**EXACT, OUTPUT: EXACT[OUTPUT] * np.float32(1.1)}  # 20·log10(11) = 20.8 dB
    assert measured(values).passed
    assert measured(values, 20.8).passed
    assert not measured(values, 20.9).passed
    assert measured({**EXACT, OUTPUT: -EXACT[OUTPUT]}, -100.0).passed


def test_a_tensor_that_cannot_be_compared_fails() -> None:
    report = measured({name: values for name, values in EXACT.items() if name != OUTPUT})
    assert not report.passed
    assert report.missing == (OUTPUT,)
    assert OUTPUT in report.summary


def test_infinite_values_of_the_float_network_are_left_out() -> None:
    values = EXACT[OUTPUT].copy()
    values[0, 0] = -np.inf
    report = measured({**EXACT, OUTPUT: values})
    assert report.passed


def test_floors_follow_the_widths_up_to_what_is_sufficient() -> None:
    assert default_floor(rounding_noise(8)) == SUFFICIENT_SQNR - MARGIN
    assert default_floor(rounding_noise(2)) == pytest.approx(9.25 - MARGIN, abs=0.01)
    floors = [default_floor(rounding_noise(bits)) for bits in range(1, 9)]
    assert floors == sorted(floors)
    assert default_floor(10 * rounding_noise(2)) == 0  # zeros would be as near
