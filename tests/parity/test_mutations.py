"""Every deliberate corruption of a file is noticed when the file is compared with the network it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from eqdeploy.errors import EqDeployError, ValidationError
from eqdeploy.plan import Coverage
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import SampleForms, sample_model
from eqdeploy.validation.differences import Kind
from eqdeploy.validation.parity import ParityVerdict, check_parity
from eqdeploy.validation.runtime import Level
from eqdeploy.validation.static import check_static
from tests.parity.mutations import COMPUTED, FORMAL
from tests.parity.networks import exported, noise

IMAGES = noise(16, 3, 3, 8, 8) * 1.5
FORMS = SampleForms(
    weight=Form(4, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True),
    activation=Form(5, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False),
)


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    return sample_model(FORMS)


@pytest.fixture(scope="module")
def original(model: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(model, tmp_path_factory.mktemp("original"))


def corrupt(original: Path, name: str, folder: Path) -> Path:
    proto = onnx.load(original)
    before = proto.SerializeToString(deterministic=True)
    {**COMPUTED, **FORMAL}[name](proto)
    assert proto.SerializeToString(deterministic=True) != before
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def static_notices(model: QuantizedModel, path: Path) -> bool:
    try:
        return not check_static(model, path).passed
    except ValidationError:
        return True


def parity_notices(model: QuantizedModel, path: Path) -> bool:
    try:
        report = check_parity(model, path, IMAGES, levels=(Level.DISABLED, Level.ALL))
    except EqDeployError:
        return True
    return report.verdict is ParityVerdict.FAILED


def test_the_original_passes(model: QuantizedModel, original: Path) -> None:
    assert check_static(model, original).passed
    assert check_parity(model, original, IMAGES).verdict is not ParityVerdict.FAILED


def test_there_are_enough_corruptions() -> None:
    assert len(COMPUTED) >= 20
    assert len(FORMAL) >= 15


@pytest.mark.parametrize("name", list(COMPUTED))
def test_both_levels_notice_other_numbers(name: str, model: QuantizedModel, original: Path, tmp_path: Path) -> None:
    path = corrupt(original, name, tmp_path)
    assert static_notices(model, path)
    assert parity_notices(model, path)


@pytest.mark.parametrize("name", list(FORMAL))
def test_static_checks_notice_a_malformed_file(
    name: str, model: QuantizedModel, original: Path, tmp_path: Path
) -> None:
    assert static_notices(model, corrupt(original, name, tmp_path))


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_a_truncated_file_is_one_error(size: int, model: QuantizedModel, original: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(original.read_bytes()[:size])
    for check in (lambda: check_static(model, path), lambda: check_parity(model, path, IMAGES)):
        with pytest.raises(ValidationError) as failure:
            check()
        assert str(path) in str(failure.value)


def test_the_failing_check_names_the_tensor(model: QuantizedModel, original: Path, tmp_path: Path) -> None:
    report = check_static(model, corrupt(original, "clip_ends_one_code_early", tmp_path))
    (failed,) = (check for check in report.checks if not check.passed)
    assert failed.name == "ranges"
    assert failed.tensors == ("stem_relu",)
    assert "(0, 30)" in failed.detail
    assert failed.detail in report.summary


def test_the_first_diverging_tensor_is_named(model: QuantizedModel, original: Path, tmp_path: Path) -> None:
    report = check_parity(model, corrupt(original, "bias_is_altered", tmp_path), IMAGES)
    for level in report.levels:
        assert level.first_differing == "narrow_relu"
        assert level.tensors["narrow_relu"].kinds[Kind.UNEXPLAINED] > 0
        assert set(level.tensors["concat"].kinds) == {Kind.PROPAGATED}
    assert "narrow_relu" in report.summary


def test_a_tensor_that_is_not_listed_fails(model: QuantizedModel, original: Path) -> None:
    for coverage, reasons, tensor in (
        ({key: value for key, value in model.coverage.items() if key != "add"}, model.reasons, "add"),
        ({**model.coverage, "add": Coverage.QUANTIZED}, model.reasons, "add"),
        ({**model.coverage, "x": Coverage.FLOAT_BY_PROFILE}, model.reasons, "x"),
        (model.coverage, {**model.reasons, "pool": " "}, "pool"),
    ):
        report = check_static(replace(model, coverage=coverage, reasons=reasons), original)
        (failed,) = (check for check in report.checks if not check.passed)
        assert (failed.name, failed.tensors) == ("coverage", (tensor,))
