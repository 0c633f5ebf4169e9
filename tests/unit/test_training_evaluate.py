"""The evaluation grid: every uniform form, each with its own BatchNorm statistics, and nothing left changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.errors import DataError
from eqdeploy.progress import SilentProgress
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.evaluate import calibrated_correct, evaluate_grid, even_batches
from eqdeploy.training.execution import StepMode, prepare
from eqdeploy.training.settings import Precision
from tests.unit.training_support import small_supernet

PREPROCESSING = Preprocessing((8, 8), 1, (0.5,), (0.25,))


def held_out(count: int = 40) -> LabelledImages:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return LabelledImages(images, random.integers(0, 4, count), ("a", "b", "c", "d"), "random")


def calibration() -> Tensor:
    return torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_grid_has_a_row_for_every_form_and_agrees_with_one_by_one() -> None:
    supernet, data = small_supernet(), held_out()
    evaluation = evaluate_grid(supernet, calibration=calibration(), data=data, preprocessing=PREPROCESSING)
    assert [(row.bits, row.granularity, row.symmetry) for row in evaluation.rows] == [
        (bits, granularity, symmetry) for bits in (2, 4, 8) for granularity in Granularity for symmetry in Symmetry
    ]
    images = torch.from_numpy(PREPROCESSING.apply(data.images))
    for row in evaluation.rows:
        supernet.activate(
            SubnetConfig.uniform(
                supernet.network,
                weight_bits=row.bits,
                activation_bits=row.bits,
                granularity=row.granularity,
                weight_symmetry=row.symmetry,
                activation_symmetry=row.symmetry,
            )
        )
        calibrate_batch_norm(supernet, [calibration()])
        with torch.no_grad():
            predicted = supernet.eval()(images).argmax(dim=1).numpy()
        assert row.correct == int((predicted == data.labels).sum())
        assert row.accuracy == row.correct / 40
    assert len({row.correct for row in evaluation.rows}) > 1  # random weights: the forms do differ


def test_the_inference_network_counts_as_the_supernet_does() -> None:
    supernet, data = small_supernet(), held_out()
    with torch.no_grad():
        plain = evaluate_grid(
            supernet, calibration=calibration(), data=data, preprocessing=PREPROCESSING, forward=supernet
        )
    assert evaluate_grid(supernet, calibration=calibration(), data=data, preprocessing=PREPROCESSING) == plain


@pytest.mark.parametrize("precision", list(Precision))
def test_without_compilation_a_training_evaluates_with_the_inference_network(precision: Precision) -> None:
    mode = StepMode(precision, channels_last=False, compile=False)
    assert prepare(small_supernet(), mode, SilentProgress()).evaluate is None


def test_nothing_about_the_supernet_changes() -> None:
    supernet = small_supernet().train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    evaluate_grid(supernet, calibration=calibration(), data=held_out(), preprocessing=PREPROCESSING)
    assert supernet.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_batches_do_not_change_the_count() -> None:
    supernet, data = small_supernet(), held_out()
    whole = calibrated_correct(supernet, calibration(), data, PREPROCESSING)
    supernet.eval()
    images = torch.from_numpy(PREPROCESSING.apply(data.images))
    with torch.no_grad():
        assert whole == int((supernet(images).argmax(dim=1).numpy() == data.labels).sum())


def test_progress_counts_networks() -> None:
    steps: list[int] = []
    evaluate_grid(
        small_supernet(), calibration=calibration(), data=held_out(), preprocessing=PREPROCESSING, advance=steps.append
    )
    assert steps == [1] * 13


def test_unlabelled_images_are_refused() -> None:
    data = held_out()
    unlabelled = LabelledImages(data.images, np.full(40, -1), (), "no labels")
    with pytest.raises(DataError, match="no labels"):
        evaluate_grid(small_supernet(), calibration=calibration(), data=unlabelled, preprocessing=PREPROCESSING)


@pytest.mark.parametrize(("images", "size"), [(513, 256), (2, 256), (257, 256), (10, 3)])
def test_calibration_batches_are_of_nearly_equal_size(images: int, size: int) -> None:
    sizes = [len(batch) for batch in even_batches(torch.zeros(images, 1), size)]
    assert sum(sizes) == images
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= size
