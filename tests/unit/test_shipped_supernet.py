"""The supernet that is shipped is as good as its documents say, in every form, on images that it was not trained on."""

from __future__ import annotations

import json
from importlib import resources

import pytest
import torch

from eqdeploy.data import load_data
from eqdeploy.pipeline.sources import load_supernet
from eqdeploy.training.batches import augmented_images
from eqdeploy.training.evaluate import Evaluation, evaluate_grid

#: Largest loss in points against the float network at the same widths for weights and activations.
GOALS = {8: 1.0, 4: 2.0, 3: 5.0}


@pytest.fixture(scope="module")
def grid() -> Evaluation:
    checkpoint = load_supernet("digits", None).checkpoint
    training, held_out = (
        load_data("digits", split=split, preprocessing=checkpoint.preprocessing) for split in ("train", "test")
    )
    calibration = augmented_images(
        training,
        checkpoint.preprocessing,
        checkpoint.augmentation,
        count=1024,
        generator=torch.Generator().manual_seed(0),
    )
    return evaluate_grid(
        checkpoint.supernet, calibration=calibration, data=held_out, preprocessing=checkpoint.preprocessing
    )


@pytest.mark.parametrize("bits", sorted(GOALS))
def test_every_form_is_close_to_float(grid: Evaluation, bits: int) -> None:
    rows = [row for row in grid.rows if row.bits == bits]
    assert len(rows) == 4  # two granularities, two symmetries
    for row in rows:
        assert row.accuracy >= grid.float_accuracy - GOALS[bits] / 100, row.name


def test_the_training_log_tells_the_same(grid: Evaluation) -> None:
    log = (resources.files("eqdeploy.embedded") / "digits.training.jsonl").read_text(encoding="utf-8").splitlines()
    logged = json.loads(log[-1])
    assert logged["phase"] == "evaluation"
    for row, measured in zip(logged["rows"], grid.rows, strict=True):
        assert (row["bits"], row["granularity"], row["symmetry"]) == (
            measured.bits,
            measured.granularity,
            measured.symmetry,
        )
        assert abs(row["correct"] - measured.correct) <= 2  # another processor may round sums differently
