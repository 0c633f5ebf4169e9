"""The shipped configuration and the one in the documentation are valid."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from eqdeploy.data import DIGITS_PREPROCESSING
from eqdeploy.network import ElasticSpace
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.settings import (
    AugmentationSettings,
    CalibrationSettings,
    DistillationSettings,
    DistributionSettings,
    PreprocessingSettings,
)

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "training.md"


@pytest.fixture
def documented() -> str:
    match = re.search(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert match is not None
    return match[1]


def test_the_documented_configuration_is_valid_and_its_defaults_are_true(documented: str, tmp_path: Path) -> None:
    path = tmp_path / "documented.yaml"
    path.write_text(documented, encoding="utf-8")
    config = TrainingConfig.load(path)
    assert config.space.to_space() == ElasticSpace()
    assert isinstance(config.preprocessing, PreprocessingSettings)
    assert config.preprocessing.scale == pytest.approx(1 / 255)
    assert config.distillation == DistillationSettings()
    assert config.weight_distribution == DistributionSettings()
    assert config.calibration == CalibrationSettings()
    assert config.augmentation != AugmentationSettings()  # the example says what it chose instead


def test_the_shipped_configuration_describes_the_embedded_digits() -> None:
    with resources.as_file(resources.files("eqdeploy.embedded") / "digits.train.yaml") as path:
        config = TrainingConfig.load(path)
    assert config.data == "digits"
    assert config.model.architecture == "digits-resnet"
    assert config.preprocessing.to_preprocessing() == DIGITS_PREPROCESSING
    assert config.space.to_space() == ElasticSpace()
    assert config.threads == 1
