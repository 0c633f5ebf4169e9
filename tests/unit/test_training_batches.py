"""Which images belong to a step."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.errors import DataError, UsageError
from eqdeploy.training.batches import Batch, TrainingBatches, augmented_images, derive_seed, seeded_generator

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


RESIZED = Augmentation(flip=True, crop_scale=(0.3, 1.0), brightness=0.3, contrast=0.3, saturation=0.3)


@given(
    world_size=st.integers(1, 5),
    share=st.integers(1, 4),
    spare=st.integers(0, 9),
    step=st.integers(0, 40),
    seed=st.integers(0, 99),
    augmentation=st.sampled_from([Augmentation(), Augmentation(shift=1, flip=True), RESIZED]),
)
def test_shares_of_processes_are_the_batch_of_one(
    world_size: int, share: int, spare: int, step: int, seed: int, augmentation: Augmentation
) -> None:
    size = max(2, world_size * share)
    world_size = world_size if size % world_size == 0 else 1

    def batch(rank: int, processes: int) -> tuple[Batch, torch.Tensor]:
        generator = seeded_generator(seed, step)
        source = TrainingBatches(
            numbered(size + spare),
            PREPROCESSING,
            augmentation,
            batch_size=size,
            seed=seed,
            rank=rank,
            world_size=processes,
        )
        return source.batch(step, generator), generator.get_state()

    whole, after = batch(0, 1)
    shares = [batch(rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat([part.images for part, _ in shares]), whole.images)
    assert torch.equal(torch.cat([part.labels for part, _ in shares]), whole.labels)
    assert all(torch.equal(state, after) for _, state in shares)


@pytest.mark.parametrize(("count", "size", "world_size"), [(100, 10, 3), (7, 64, 2), (100, 2, 4)])
def test_batches_that_cannot_be_shared_equally_are_refused(count: int, size: int, world_size: int) -> None:
    with pytest.raises(UsageError, match=f"batch_size: a batch of {min(count, size)} images .* {world_size} processes"):
        TrainingBatches(
            numbered(count), PREPROCESSING, Augmentation(), batch_size=size, seed=0, rank=1, world_size=world_size
        )


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_processes_that_do_not_exist_are_refused(rank: int, world_size: int) -> None:
    with pytest.raises(UsageError, match="no process"):
        TrainingBatches(
            numbered(8), PREPROCESSING, Augmentation(), batch_size=4, seed=0, rank=rank, world_size=world_size
        )


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(0, 3))
def test_images_mapped_from_a_file_make_the_same_batches(steps: list[int], seed: int) -> None:
    data = numbered(11)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data.images.tobytes())
        file.flush()
        mapped = LabelledImages(
            np.memmap(file.name, np.uint8, "r", shape=(11, 1, 2, 2)), data.labels, data.classes, "mapped"
        )
        sources = [
            TrainingBatches(images, PREPROCESSING, RESIZED, batch_size=3, seed=seed) for images in (data, mapped)
        ]
        for step in [*steps, 2, 3, 4]:
            first, second = (source.batch(step, seeded_generator(seed)) for source in sources)
            assert torch.equal(first.images, second.images)
            assert torch.equal(first.labels, second.labels)


def test_stored_images_stay_as_they_are() -> None:
    data = numbered(8)
    data.images.flags.writeable = False  # as those mapped from a cache
    source = TrainingBatches(data, PREPROCESSING, RESIZED, batch_size=4, seed=0)
    assert source.batch(0, torch.Generator()).images.shape == (4, 1, 2, 2)
    assert len(augmented_images(data, PREPROCESSING, RESIZED, count=99, generator=torch.Generator())) == 8


def test_calibration_images_are_spread_and_augmented_repeatably() -> None:
    def draw(seed: int) -> torch.Tensor:
        images: torch.Tensor = augmented_images(
            numbered(64), PREPROCESSING, Augmentation(shift=1), count=16, generator=seeded_generator(seed)
        )
        return images

    assert draw(0).shape == (16, 1, 2, 2)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    plain = augmented_images(numbered(8), PREPROCESSING, Augmentation(), count=99, generator=seeded_generator(0))
    assert torch.equal(plain[:, 0, 0, 0], (torch.arange(8.0) / 64 - 0.5) / 0.25)


def test_derived_seeds_differ_by_seed_and_purpose() -> None:
    seeds = {derive_seed(seed, *purpose) for seed in range(4) for purpose in [(0,), (1,), (0, 0), (0, 1), (1, 0)]}
    assert len(seeds) == 20
    assert all(0 <= seed < 1 << 64 for seed in seeds)
