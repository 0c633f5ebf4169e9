"""Calibration images that do not look like training images are told; those that do are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from eqdeploy.calibration.examination import examine
from eqdeploy.calibration.likeness import FEWEST
from eqdeploy.data import DIGITS_PREPROCESSING, LabelledImages, load_data
from eqdeploy.pipeline.sources import supernet_path
from eqdeploy.supernet.checkpoint import Checkpoint, load_checkpoint
from eqdeploy.zoo import build

TRAIN, TEST = (load_data("digits", split=split, preprocessing=DIGITS_PREPROCESSING) for split in ("train", "test"))


@pytest.fixture(scope="module", params=["stored statistics", "BatchNorm alone"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    loaded = load_checkpoint(supernet_path("digits"), build)
    assert loaded.metadata.training_data is not None
    if request.param == "stored statistics":
        return loaded
    metadata = loaded.metadata.model_copy(update={"training_data": None})
    return dataclasses.replace(loaded, metadata=metadata)


def of(images: np.ndarray) -> LabelledImages:
    return LabelledImages(images, np.full(len(images), -1), (), "images")


def picked(count: int, seed: int, data: LabelledImages = TRAIN) -> np.ndarray:
    return data.images[np.random.default_rng(seed).choice(len(data), count, replace=False)]


@pytest.mark.parametrize("data", [TRAIN, TEST], ids=["train", "test"])
@pytest.mark.parametrize("count", [FEWEST, 64, 512])
def test_subsets_of_the_data_look_alike(checkpoint: Checkpoint, data: LabelledImages, count: int) -> None:
    for seed in range(5):
        assert examine(checkpoint, of(picked(count, seed, data))) == ()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: (x / 16.0).astype(np.float32),
        lambda x: x * 0,
        lambda x: x * np.float32(0.5),
        lambda x: 16 - x,
        lambda x: np.random.default_rng(0).integers(0, 17, x.shape, dtype=np.uint8),
    ],
    ids=["scale", "black", "half", "inverted", "noise"],
)
def test_spoilt_images_are_told(checkpoint: Checkpoint, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    (finding, *_) = examine(checkpoint, of(spoil(picked(256, 0))))
    assert "standard deviations" in finding


def test_a_single_class_is_told(checkpoint: Checkpoint) -> None:
    stored = checkpoint.metadata.training_data is not None
    for label in range(10) if stored else (0,):  # BatchNorm alone does not see every class
        assert examine(checkpoint, of(TRAIN.images[TRAIN.labels == label]))


def test_a_finding_says_what_and_by_how_much() -> None:
    checkpoint = load_checkpoint(supernet_path("digits"), build)
    pixels, outputs = examine(checkpoint, of(picked(256, 0) * 0))
    assert pixels.startswith("pixels have a mean of -0.811, those of training images ")
    assert outputs.startswith("outputs have a mean")


@pytest.mark.parametrize("count", [1, FEWEST - 1])
def test_too_few_are_told(checkpoint: Checkpoint, count: int) -> None:
    assert examine(checkpoint, of(picked(count, 0)))[0].startswith(f"there are only {count}, ")
