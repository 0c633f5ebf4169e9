"""BatchNorm statistics are chosen by measurement; the float network keeps its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.choice import MARGIN_DB, Statistics, choose_statistics, signal_to_noise
from eqdeploy.calibration.images import augmented_batches
from eqdeploy.data import DIGITS_PREPROCESSING, LabelledImages, load_data
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.pipeline.sources import supernet_path
from eqdeploy.pipeline.subnets import activate_calibrated
from eqdeploy.progress import SilentProgress
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.checkpoint import Checkpoint, load_checkpoint
from eqdeploy.supernet.statistics import read_statistics, write_statistics
from eqdeploy.zoo import build

IMAGES = load_data("digits", split="train", preprocessing=DIGITS_PREPROCESSING).spread(256)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return load_checkpoint(supernet_path("digits"), build)


def subnet(checkpoint: Checkpoint, bits: int) -> SubnetConfig:
    return SubnetConfig.uniform(
        checkpoint.supernet.network,
        weight_bits=bits,
        activation_bits=bits,
        granularity=Granularity.PER_CHANNEL,
        weight_symmetry=Symmetry.SYMMETRIC,
        activation_symmetry=Symmetry.SYMMETRIC,
    )


def statistics(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return read_statistics(checkpoint.supernet.graph_module)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_few_bits_want_statistics_of_their_own(checkpoint: Checkpoint) -> None:
    choice, measured = choose_statistics(checkpoint, subnet(checkpoint, 2), IMAGES, 0)
    assert measured.images == len(IMAGES)
    distances = dict(choice.distances)
    assert choice.chosen is Statistics.PLAIN
    assert distances[Statistics.PLAIN] > distances[Statistics.OWN] + 5.0
    assert "dB from the float network as given (own" in choice.reason
    estimated = statistics(checkpoint)
    checkpoint.supernet.activate(subnet(checkpoint, 2))
    calibrate_batch_norm(
        checkpoint.supernet, augmented_batches(IMAGES, checkpoint.preprocessing, checkpoint.augmentation, 0)
    )
    assert equal(statistics(checkpoint), estimated)


def test_the_float_network_keeps_its_own_after_any_subnet(checkpoint: Checkpoint) -> None:
    own = dict(checkpoint.statistics)
    activate_calibrated(checkpoint, subnet(checkpoint, 2), IMAGES, 0, SilentProgress())
    assert not equal(statistics(checkpoint), own)
    choice, _ = activate_calibrated(checkpoint, None, IMAGES, 0, SilentProgress())
    assert choice.chosen is Statistics.OWN
    assert equal(statistics(checkpoint), own)


def test_own_statistics_win_where_calibration_images_mislead(checkpoint: Checkpoint) -> None:
    black = LabelledImages(IMAGES.images * 0, IMAGES.labels, IMAGES.classes, "black")
    mixed = dataclasses.replace(black, images=black.images.copy(), digest="")
    mixed.images[::8] = IMAGES.images[::8]
    assert choose_statistics(checkpoint, subnet(checkpoint, 8), mixed, 0)[0].chosen is Statistics.OWN


def test_augmented_images_are_told_from_plain_ones(checkpoint: Checkpoint) -> None:
    varied = dataclasses.replace(checkpoint, augmentation=Augmentation(shift=3))
    config = subnet(checkpoint, 4)
    choice, _ = choose_statistics(varied, config, IMAGES, 0)
    assert [source for source, _ in choice.distances] == [Statistics.AUGMENTED, Statistics.PLAIN, Statistics.OWN]
    assert choice.chosen is Statistics.PLAIN  # the network was trained without any shift
    chosen = statistics(varied)
    again, _ = choose_statistics(varied, config, IMAGES, 0, only=Statistics.PLAIN)
    assert equal(statistics(varied), chosen)
    assert (again.chosen, again.reason) == (Statistics.PLAIN, "as the export chose")


def test_a_choice_does_not_depend_on_the_one_before(checkpoint: Checkpoint) -> None:
    config = subnet(checkpoint, 4)
    first, _ = choose_statistics(checkpoint, config, IMAGES, 0)
    chosen = statistics(checkpoint)
    write_statistics(checkpoint.supernet.graph_module, {name: torch.ones_like(value) for name, value in chosen.items()})
    assert choose_statistics(checkpoint, config, IMAGES, 0)[0] == first
    assert equal(statistics(checkpoint), chosen)


def test_signal_to_noise() -> None:
    ones = [torch.ones(4), torch.ones(2, 3)]
    assert signal_to_noise(ones, [torch.full((4,), 1.1), torch.full((2, 3), 1.1)]) == pytest.approx(20.0, abs=1e-4)
    assert signal_to_noise(ones, ones) == 200.0
    assert signal_to_noise(ones, [torch.full((4,), float("nan")), torch.ones(2, 3)]) == -200.0
    assert signal_to_noise([torch.zeros(2)], [torch.ones(2)]) == -200.0
    assert MARGIN_DB > 0
