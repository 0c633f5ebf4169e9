"""Which images belong to a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.errors import DataError
from eqdeploy.training.batches import TrainingBatches, augmented_images, derive_seed, seeded_generator

PREPROCESSING = Preprocessing((2, 2), 1, (0.5,), (0.25,), scale=1 / 64)


def numbered(count: int) -> LabelledImages:
    """Image and label ``i`` hold the number ``i``."""
    images = np.repeat(np.arange(count, dtype=np.uint8), 4).reshape(count, 1, 2, 2)
    return LabelledImages(images, np.arange(count), tuple(str(index) for index in range(count)), "numbers")


def batches(count: int, size: int, *, seed: int = 0) -> TrainingBatches:
    return TrainingBatches(numbered(count), PREPROCESSING, Augmentation(), batch_size=size, seed=seed)


def labels_of(source: TrainingBatches, step: int) -> list[int]:
    return [int(label) for label in source.batch(step, torch.Generator()).labels]


def test_an_epoch_shows_every_image_once_and_leaves_an_incomplete_batch_out() -> None:
    source = batches(11, 3)
    assert source.steps_per_epoch == 3
    seen = [label for step in range(3) for label in labels_of(source, step)]
    assert len(seen) == len(set(seen)) == 9


def test_every_epoch_has_its_own_order() -> None:
    source = batches(12, 12)
    assert labels_of(source, 0) != labels_of(source, 1)
    assert sorted(labels_of(source, 1)) == list(range(12))


def test_a_step_is_the_same_whatever_came_before() -> None:
    running = batches(20, 4)
    expected = [labels_of(running, step) for step in range(15)]
    for step in (14, 3, 9):
        assert labels_of(batches(20, 4), step) == expected[step]


def test_the_seed_decides_the_order() -> None:
    assert labels_of(batches(20, 20, seed=1), 0) != labels_of(batches(20, 20, seed=2), 0)


def test_images_are_preprocessed_and_stay_with_their_labels() -> None:
    batch = batches(10, 5).batch(0, torch.Generator())
    expected = (batch.labels.float() / 64 - 0.5) / 0.25
    assert torch.equal(batch.images, expected[:, None, None, None].expand(5, 1, 2, 2))


def test_what_shifts_in_is_black() -> None:
    source = TrainingBatches(numbered(32), PREPROCESSING, Augmentation(shift=1), batch_size=32, seed=0)
    batch = source.batch(0, torch.Generator().manual_seed(0))
    own = (batch.labels.float() / 64 - 0.5) / 0.25
    black = torch.tensor(-2.0)
    assert bool(((batch.images == own[:, None, None, None]) | (batch.images == black)).all())
    assert bool((batch.images[batch.labels > 0] == black).any())


def test_a_small_data_set_is_one_batch() -> None:
    source = batches(5, 64)
    assert (source.steps_per_epoch, sorted(labels_of(source, 0))) == (1, list(range(5)))


def test_a_single_image_is_refused() -> None:
    with pytest.raises(DataError, match="two images"):
        batches(1, 4)


def test_calibration_images_are_spread_and_augmented_repeatably() -> None:
    def draw(seed: int) -> torch.Tensor:
        return augmented_images(
            numbered(64), PREPROCESSING, Augmentation(shift=1), count=16, generator=seeded_generator(seed)
        )

    assert draw(0).shape == (16, 1, 2, 2)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    plain = augmented_images(numbered(8), PREPROCESSING, Augmentation(), count=99, generator=seeded_generator(0))
    assert torch.equal(plain[:, 0, 0, 0], (torch.arange(8.0) / 64 - 0.5) / 0.25)


def test_derived_seeds_differ_by_seed_and_purpose() -> None:
    seeds = {derive_seed(seed, *purpose) for seed in range(4) for purpose in [(0,), (1,), (0, 0), (0, 1), (1, 0)]}
    assert len(seeds) == 20
    assert all(0 <= seed < 1 << 64 for seed in seeds)
