"""What a report says about the images that everything is measured on."""

from __future__ import annotations

import numpy as np
import pytest

from eqdeploy.data.labelled import LabelledImages
from eqdeploy.pipeline.remarks import remarks_on
from eqdeploy.pipeline.sources import ImageSets, load_supernet
from eqdeploy.progress import SilentProgress
from eqdeploy.supernet.checkpoint import SUPERNET_FLOAT_ACCURACY
from eqdeploy.validation.agreement import Answers

CLASSES = tuple("0123456789")
GENERATOR = np.random.default_rng(0)
METADATA = load_supernet("digits", None).checkpoint.metadata  # 99.5 % when it was trained


def pictures(count: int) -> LabelledImages:
    pixels = GENERATOR.integers(0, 256, (count, 1, 8, 8), np.uint8)
    return LabelledImages(pixels, np.arange(count) % 10, CLASSES, "noise")


CALIBRATION, HELD_OUT = pictures(50), pictures(100)


def remarks(correct: int, calibration: LabelledImages = CALIBRATION) -> tuple[str, ...]:
    decisions = (HELD_OUT.labels + (np.arange(100) >= correct)) % 10
    answers = Answers("float", decisions, HELD_OUT.labels)
    return remarks_on(ImageSets("noise", calibration, HELD_OUT), answers, METADATA, SilentProgress())


@pytest.mark.parametrize(("correct", "told"), [(100, False), (91, False), (88, True), (0, True)])
def test_labels_that_the_float_network_does_not_know_are_told(correct: int, told: bool) -> None:
    assert bool(remarks(correct)) is told
    assert all("99.50% when it was trained" in remark for remark in remarks(correct))


def test_a_supernet_without_a_record_says_nothing() -> None:
    answers = Answers("float", (HELD_OUT.labels + 1) % 10, HELD_OUT.labels)
    provenance = {key: value for key, value in METADATA.provenance.items() if key != SUPERNET_FLOAT_ACCURACY}
    bare = METADATA.model_copy(update={"provenance": provenance})
    assert remarks_on(ImageSets("noise", CALIBRATION, HELD_OUT), answers, bare, SilentProgress()) == ()


@pytest.mark.parametrize(("common", "told"), [(5, False), (6, True), (50, True)])
def test_calibration_images_that_are_judged_are_told(common: int, told: bool) -> None:
    pixels = np.concatenate([HELD_OUT.images[:common], CALIBRATION.images[common:]])
    found = remarks(100, LabelledImages(pixels, CALIBRATION.labels, CLASSES, "noise"))
    assert bool(found) is told
    assert all(f"{common} of 50" in remark for remark in found)
