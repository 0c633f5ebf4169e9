"""Augmentation on tensors: shapes, what moves where, and dependence on the generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eqdeploy.data.augmentation import Augmentation, random_flip, random_shift


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_shift_moves_each_image_whole(dtype: torch.dtype) -> None:
    images = torch.arange(1, 1 + 200 * 2 * 4 * 5).reshape(200, 2, 4, 5).remainder(251).add(1).to(dtype)
    fill = torch.tensor([0.0, 255.0])
    shifted = random_shift(images, 1, generator(), fill=fill)
    assert shifted.dtype == dtype
    assert shifted.shape == images.shape
    seen = set()
    for before, after in zip(images, shifted, strict=True):
        padded = torch.cat([torch.full((1, 6, 7), 0, dtype=dtype), torch.full((1, 6, 7), 255, dtype=dtype)])
        padded[:, 1:5, 1:6] = before
        found = [
            (row, column)
            for row in range(3)
            for column in range(3)
            if torch.equal(padded[:, row : row + 4, column : column + 5], after)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 9


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.rand(1000, 3, 4, 5, generator=generator(1))
    flipped = random_flip(images, generator())
    mirrored = [torch.equal(after, before.flip(2)) for before, after in zip(images, flipped, strict=True)]
    kept = [torch.equal(after, before) for before, after in zip(images, flipped, strict=True)]
    assert np.logical_xor(mirrored, kept).all()
    assert 400 < sum(mirrored) < 600


def test_only_the_generator_decides() -> None:
    images = torch.rand(16, 1, 8, 8, generator=generator(2))
    augmentation = Augmentation(shift=2, flip=True)
    fill = torch.zeros(1)
    first = augmentation.apply(images, generator(3), fill=fill)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(first, augmentation.apply(images, generator(3), fill=fill))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, augmentation.apply(images, generator(4), fill=fill))


def test_no_augmentation_changes_nothing() -> None:
    images = torch.rand(4, 1, 8, 8, generator=generator())
    assert torch.equal(Augmentation().apply(images, generator(), fill=torch.zeros(1)), images)


def test_negative_shift_is_refused() -> None:
    with pytest.raises(ValueError, match="shift"):
        Augmentation(shift=-1)
