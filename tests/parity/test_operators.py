"""Every operation at every width, granularity and symmetry, against real ONNX Runtime sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.testing import SampleForms
from eqdeploy.validation.differences import Kind
from eqdeploy.validation.parity import LevelParity, check_parity
from eqdeploy.validation.runtime import Exposure, Level
from tests.parity.networks import CHANNELS, SIZE, UNFUSED, calibrated, exported, noise

IMAGES = noise(6, 11, CHANNELS, SIZE, SIZE)


def forms(bits: int, granularity: Granularity, symmetry: Symmetry, *, signed: bool, power_of_two: bool) -> SampleForms:
    return SampleForms(
        weight=Form(bits, granularity, symmetry, signed=True),
        activation=Form(
            bits, Granularity.PER_TENSOR, Symmetry.SYMMETRIC if signed else Symmetry.ASYMMETRIC, signed=signed
        ),
        power_of_two=power_of_two,
    )


def assert_explained(level: LevelParity) -> None:
    for name, tensor in level.tensors.items():
        assert Kind.UNEXPLAINED not in tensor.kinds, (level.level, name, tensor)
        assert sum(tensor.kinds.values()) == tensor.differing
        assert tensor.max_lsb <= 2, (level.level, name, tensor)
    assert level.outputs_explained, level.level
    assert level.exposure is not Exposure.DISTURBING


@pytest.mark.parametrize("symmetry", list(Symmetry))
@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("bits", range(1, 9))
def test_fused_kernels_compute_the_codes_of_the_reference(
    bits: int, granularity: Granularity, symmetry: Symmetry, tmp_path: Path
) -> None:
    seed = 100 * bits + 10 * (granularity is Granularity.PER_CHANNEL) + (symmetry is Symmetry.ASYMMETRIC)
    chosen = forms(bits, granularity, symmetry, signed=False, power_of_two=seed % 2 == 0)
    model = calibrated(chosen, IMAGES, seed, odd=bits % 3 != 0)
    report = check_parity(model, exported(model, tmp_path), IMAGES)
    for level in report.levels:
        assert_explained(level)
    for name in (Level.EXTENDED, Level.ALL):
        level = report.level(name)
        differing = {tensor for tensor, found in level.tensors.items() if found.differing}
        assert differing <= UNFUSED
        assert level.operators is not None
        assert {item.name for item in level.operators.float_operators} == UNFUSED
        assert level.operators.fused["QLinearConv"] == 8
        for operator, count in {
            "QLinearAdd": 2, "QLinearMul": 3, "QLinearSigmoid": 1, "QLinearLeakyRelu": 1, "QLinearConcat": 1,
            "QLinearGlobalAveragePool": 1, "QLinearAveragePool": 3, "QGemm": 2, "QLinearMatMul": 2, "Resize": 1,
        }.items():  # fmt: skip
            assert level.operators.fused[operator] == count, operator


@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_signed_activations_are_explained_where_the_runtime_stays_float(
    bits: int, granularity: Granularity, tmp_path: Path
) -> None:
    chosen = forms(bits, granularity, Symmetry.SYMMETRIC, signed=True, power_of_two=bits == 5)
    model = calibrated(chosen, IMAGES, bits, odd=False)
    report = check_parity(model, exported(model, tmp_path), IMAGES)
    for level in report.levels:
        assert_explained(level)
