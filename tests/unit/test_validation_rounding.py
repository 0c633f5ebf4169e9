"""What rounding itself amounts to, and what a runtime's differences may amount to beside it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder, sample_model
from eqdeploy.validation.differences import Examiner, TensorDifferences
from eqdeploy.validation.reference.integer import IntegerReference
from eqdeploy.validation.rounding import RoundingNoise, finer

#: Differences of two inputs that are nearly alike, twenty-fold: rounding in front of it is twenty-fold, too.
GAIN = 20.0
IMAGES = np.random.default_rng(0).normal(0, 20, (64, 1, 16)).astype(np.float32).repeat(2, 1).reshape(64, 32)
IMAGES[:, 16:] += np.random.default_rng(1).normal(0, 0.7, (64, 16)).astype(np.float32)
GRID = Encoding.per_tensor(1.0, 128, 0, 255, 8, signed=False)


def amplifier() -> QuantizedModel:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 32), encoding=GRID)
    matrix = GAIN * np.vstack([np.eye(16), -np.eye(16)])
    builder.encode(builder.node("y", "MatMul", [x, builder.constant("matrix", matrix)]), encoding=GRID)
    return builder.build("y")


MODEL = amplifier()
REFERENCE = IntegerReference(MODEL)
EXPECTED = REFERENCE.run(IMAGES).codes


def differences(moved: NDArray[np.bool_]) -> dict[str, TensorDifferences]:
    """What is found where a runtime gives some codes of ``x`` one step more, and all after it rightly."""
    x = (EXPECTED["x"].astype(np.int32) + moved).astype(np.uint8)
    observed = {"x": x, "y": REFERENCE.follow(IMAGES, {"x": x}).codes["y"]}
    return Examiner(REFERENCE).compare(IMAGES, EXPECTED, observed, [])


def test_rounding_is_measured_against_real_numbers() -> None:
    noise = RoundingNoise(MODEL).squares(IMAGES, EXPECTED)
    steps = EXPECTED["x"].astype(float) - 128
    assert noise["x"] == pytest.approx(np.square(IMAGES - steps).sum(), rel=1e-3)
    real = np.clip(GAIN * (IMAGES[:, :16] - IMAGES[:, 16:]), -128, 127)
    assert noise["y"] == pytest.approx(np.square(real - (EXPECTED["y"].astype(float) - 128)).sum(), rel=1e-2)
    assert noise["y"] > 50 * len(IMAGES) * 16  # 20² · 2/12 = 67 squared steps


def test_differences_that_a_network_amplifies_may_be_as_loud_as_its_rounding() -> None:
    few = differences(np.random.default_rng(2).random(IMAGES.shape) < 0.05)
    assert few["y"].squares > few["y"].codes
    assert not few["y"].is_excessive
    alone = Examiner(REFERENCE)
    alone._rounding_noise = _Silent()  # type: ignore[assignment]
    x = (EXPECTED["x"].astype(np.int32) + (np.random.default_rng(2).random(IMAGES.shape) < 0.05)).astype(np.uint8)
    observed = {"x": x, "y": REFERENCE.follow(IMAGES, {"x": x}).codes["y"]}
    assert alone.compare(IMAGES, EXPECTED, observed, [])["y"].is_excessive


def test_differences_that_are_louder_than_rounding_fail() -> None:
    half = np.zeros(IMAGES.shape, np.bool_)
    half[:, 16:] = True
    assert differences(half)["y"].is_excessive


def test_the_finer_network_has_the_same_ranges_and_parameters() -> None:
    model = sample_model()
    fine = finer(model)
    assert fine.parameters == model.parameters
    for name, tensor in model.activations.items():
        coarse, found = tensor.encoding, fine.activations[name].encoding
        for end in ("q_min", "q_max"):
            ends = [
                (getattr(encoding, end) - int(encoding.zero_point)) * float(encoding.scale)
                for encoding in (coarse, found)
            ]
            assert ends[0] == ends[1]
        assert float(found.scale) * 1024 == float(coarse.scale)


class _Silent:
    """A network whose rounding moves nothing."""

    def squares(self, images: NDArray[np.float32], codes: dict[str, NDArray[np.uint8]]) -> dict[str, float]:
        return dict.fromkeys(codes, 0.0)
