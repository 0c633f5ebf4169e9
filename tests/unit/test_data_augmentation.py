"""Augmentation on tensors: what moves where, colours, and dependence on the generator alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from eqdeploy.data import Preprocessing
from eqdeploy.data.augmentation import Augmentation, Variation, crop_and_resize, shift_images, vary_colours
from eqdeploy.errors import DataError

COLOUR = Preprocessing((8, 8), 3, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
EVERYTHING = Augmentation(flip=True, crop_scale=(0.3, 1.0), brightness=0.4, contrast=0.3, saturation=0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int, *, side: int = 8, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator(seed))


def vary(augmentation: Augmentation, images: Tensor, seed: int = 0, preprocessing: Preprocessing = COLOUR) -> Tensor:
    return augmentation.vary(images, preprocessing, augmentation.draw(len(images), generator(seed)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_shift_moves_each_image_whole(dtype: torch.dtype) -> None:
    images = torch.arange(1, 1 + 200 * 2 * 4 * 5).reshape(200, 2, 4, 5).remainder(251).add(1).to(dtype)
    offsets = Augmentation(shift=1).draw(200, generator()).offsets
    assert offsets is not None
    shifted = shift_images(images, offsets, 1)
    assert shifted.dtype == dtype
    assert shifted.shape == images.shape
    seen = set()
    for before, after in zip(images, shifted, strict=True):
        padded = functional.pad(before, (1, 1, 1, 1))
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
    images = pixels(1000)
    plain, flipped = vary(Augmentation(), images), vary(Augmentation(flip=True), images)
    mirrored = [torch.equal(after, before.flip(2)) for before, after in zip(plain, flipped, strict=True)]
    kept = [torch.equal(after, before) for before, after in zip(plain, flipped, strict=True)]
    assert np.logical_xor(mirrored, kept).all()
    assert 400 < sum(mirrored) < 600


def test_without_changes_it_is_the_preprocessing_bit_for_bit() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8).repeat(1, 3, 1, 1)
    for stored in (images, images.float() / 3):
        before = stored.clone()
        assert torch.equal(vary(Augmentation(), stored), torch.from_numpy(COLOUR.apply(stored.numpy())))
        assert torch.equal(stored, before)


def test_images_of_one_channel_have_the_usual_strides() -> None:
    # An axis of length 1 may have any stride; with that of channels_last, convolutions take another kernel.
    grey = Preprocessing((8, 8), 1, (0.5,), (0.25,))
    images = torch.as_strided(pixels(4, channels=1), (4, 1, 8, 8), (64, 1, 8, 1))
    for augmentation in (Augmentation(), Augmentation(shift=1, flip=True, brightness=0.4, contrast=0.3)):
        assert vary(augmentation, images, preprocessing=grey).stride() == (64, 64, 8, 1)


def test_shift_and_flip_are_those_of_the_first_version_bit_for_bit() -> None:
    """Checkpoints of earlier versions can be trained again only if order and kind of the drawn numbers stay."""
    images = pixels(32)
    drawn = generator(7)
    normalized = torch.from_numpy(COLOUR.apply(images.numpy()))
    padded = torch.from_numpy(COLOUR.black).reshape(1, 3, 1, 1).repeat(32, 1, 12, 12)
    padded[:, :, 2:10, 2:10] = normalized
    offsets = torch.randint(0, 5, (2, 32, 1), generator=drawn)[:, :, 0].tolist()
    shifted = torch.stack(
        [padded[i, :, row : row + 8, column : column + 8] for i, (row, column) in enumerate(zip(*offsets, strict=True))]
    )
    mirrored = torch.rand(32, generator=drawn) < 0.5
    expected = torch.where(mirrored.reshape(-1, 1, 1, 1), shifted.flip(3), shifted)
    used = generator(7)
    augmentation = Augmentation(shift=2, flip=True)
    assert torch.equal(augmentation.vary(images, COLOUR, augmentation.draw(32, used)), expected)
    assert torch.equal(used.get_state(), drawn.get_state())


@pytest.mark.parametrize("augmentation", [EVERYTHING, Augmentation(shift=2, flip=True), Augmentation(contrast=0.2)])
def test_only_the_generator_decides(augmentation: Augmentation) -> None:
    images = pixels(16)
    first = vary(augmentation, images, 3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(first, vary(augmentation, images, 3))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, vary(augmentation, images, 4))


@given(
    st.integers(2, 12),
    st.integers(1, 4),
    st.sampled_from([EVERYTHING, Augmentation(shift=3, flip=True, saturation=1.0), Augmentation()]),
)
def test_part_of_a_batch_is_changed_as_in_the_whole(count: int, parts: int, augmentation: Augmentation) -> None:
    images = pixels(count, side=11 if augmentation.crop_scale else 8)
    variation = augmentation.draw(count, generator(count))
    bounds = [count * part // parts for part in range(parts + 1)]
    shares = [slice(*pair) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    made = [augmentation.vary(images[rows], COLOUR, variation.rows(rows)) for rows in shares]
    assert torch.equal(torch.cat(made), augmentation.vary(images, COLOUR, variation))


def boxes_of(augmentation: Augmentation, count: int, size: tuple[int, int]) -> Tensor:
    drawn = augmentation.draw(count, generator())
    assert drawn.boxes is not None
    assert drawn.positions is not None
    return augmentation._boxes(drawn.boxes, drawn.positions, size)


@pytest.mark.parametrize("size", [(64, 64), (48, 90), (1, 1), (3, 200)])
def test_boxes_lie_inside_the_image_on_whole_pixels(size: tuple[int, int]) -> None:
    top, left, height, width = boxes_of(Augmentation(crop_scale=(0.08, 1.0)), 2000, size).unbind(dim=1)
    for start, extent, side in ((top, height, size[0]), (left, width, size[1])):
        assert torch.equal(start, start.floor())
        assert torch.equal(extent, extent.floor())
        assert bool((start >= 0).all() & (extent >= 1).all() & (start + extent <= side).all())


def test_boxes_have_the_asked_for_areas_and_ratios_and_lie_everywhere() -> None:
    top, left, height, width = boxes_of(Augmentation(crop_scale=(0.1, 0.5)), 20_000, (100, 100)).unbind(dim=1)
    area, ratio = height * width / 10_000, width / height
    assert 0.095 < float(area.min()) < 0.11
    assert 0.48 < float(area.max()) < 0.51
    assert abs(float(area.mean()) - 0.3) < 0.01
    assert 0.72 < float(ratio.min()) < 0.77
    assert 1.30 < float(ratio.max()) < 1.38
    assert abs(float(ratio.log().mean())) < 0.01
    for start, extent in ((top, height), (left, width)):
        free = 100 - extent
        assert abs(float((start / free.clamp(min=1)).mean()) - 0.5) < 0.02
        assert bool((start == 0).any())
        assert bool((start == free).any())


def test_where_no_box_fits_the_largest_one_in_the_centre_is_taken() -> None:
    """A flat image has no box of its whole area with an allowed ratio."""
    boxes = boxes_of(Augmentation(crop_scale=(1.0, 1.0)), 50, (10, 100))
    assert torch.equal(boxes, torch.tensor([[0.0, 44.0, 10.0, 13.0]]).repeat(50, 1))


def test_a_box_is_resized_bilinearly() -> None:
    images = pixels(3, side=20)
    boxes = torch.tensor([[2.0, 4.0, 16.0, 16.0], [0.0, 0.0, 20.0, 20.0], [4.0, 1.0, 5.0, 9.0]])
    found = crop_and_resize(images, boxes, (40, 40))
    for image, box, made in zip(images, boxes.int().tolist(), found, strict=True):
        top, left, height, width = box
        part = image[None, :, top : top + height, left : left + width].float()
        expected = functional.interpolate(part, (40, 40), mode="bilinear", align_corners=False)[0]
        # At the box's own edge the neighbours outside are seen, where torchvision repeats the edge.
        assert (made - expected)[:, 5:-5, 5:-5].abs().max() < 0.02


def test_a_box_of_the_whole_image_is_the_image() -> None:
    images = pixels(4)
    whole = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert torch.allclose(vary(whole, images), vary(Augmentation(), images), atol=1e-4)


def test_larger_stored_images_are_cropped() -> None:
    images = pixels(4, side=14)
    assert torch.equal(vary(Augmentation(), images), vary(Augmentation(), images[:, :, 3:11, 3:11]))
    cropped = vary(Augmentation(crop_scale=(0.5, 1.0)), images)
    assert cropped.shape == (4, 3, 8, 8)


def test_random_boxes_are_cut_from_the_resized_image() -> None:
    resizing = replace(COLOUR, image_size=(224, 192), resize_shorter_side=256)
    cropping = Augmentation(crop_scale=(0.1, 1.0))
    assert cropping.stored(resizing) == replace(resizing, image_size=(256, 256))
    assert cropping.stored(COLOUR) == COLOUR
    assert Augmentation(shift=4).stored(resizing) == resizing


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 7), (2, 3, 7, 8)])
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="the network reads"):
        vary(Augmentation(), torch.zeros(shape, dtype=torch.uint8))


def factors(*values: float) -> Tensor:
    return torch.tensor(values)


def test_brightness_scales_and_clips() -> None:
    values = torch.rand(2, 3, 4, 4, generator=generator())
    changed = vary_colours(values.clone(), Variation(brightness=factors(0.5, 1.8)))
    assert torch.allclose(changed[0], values[0] * 0.5)
    assert torch.allclose(changed[1], (values[1] * 1.8).clamp(max=1))


def test_contrast_keeps_the_mean_luminance_and_saturation_that_of_each_pixel() -> None:
    weights = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
    values = 0.3 + 0.4 * torch.rand(2, 3, 6, 6, generator=generator())
    grey = (values * weights).sum(1, keepdim=True)
    flat = vary_colours(values.clone(), Variation(contrast=factors(0.0, 1.2)))
    assert torch.allclose(flat[0], grey[0].mean().expand(3, 6, 6), atol=1e-6)
    assert torch.allclose(flat[1], grey[1].mean() + 1.2 * (values[1] - grey[1].mean()), atol=1e-6)
    pale = vary_colours(values.clone(), Variation(saturation=factors(0.0, 1.2)))
    assert torch.allclose(pale[0], grey[0].expand(3, 6, 6), atol=1e-6)
    assert torch.allclose(pale[1], grey[1] + 1.2 * (values[1] - grey[1]), atol=1e-6)
    lone = torch.rand(2, 1, 4, 4, generator=generator())
    assert torch.allclose(vary_colours(lone.clone(), Variation(saturation=factors(0.0, 2.0))), lone, atol=1e-6)


def test_factors_span_their_range() -> None:
    drawn = Augmentation(brightness=0.4, contrast=3.0).draw(5000, generator())
    assert drawn.brightness is not None
    assert drawn.contrast is not None
    assert drawn.saturation is None
    assert 0.6 <= float(drawn.brightness.min()) < 0.61
    assert 1.39 < float(drawn.brightness.max()) <= 1.4
    assert 0 <= float(drawn.contrast.min()) < 0.01
    assert 3.98 < float(drawn.contrast.max()) <= 4


def test_white_is_what_the_scale_says() -> None:
    digits = Preprocessing((8, 8), 1, (0.0,), (1.0,), scale=1 / 16)
    bright = vary(Augmentation(brightness=1.0), torch.full((64, 1, 8, 8), 16, dtype=torch.uint8), preprocessing=digits)
    assert float(bright.max()) == 1.0


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"shift": -1}, "shift"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 0.4)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.1)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.0), "shift": 1}, "crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"brightness": -0.1}, "brightness"),
        ({"contrast": float("nan")}, "contrast"),
        ({"saturation": 11.0}, "saturation"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Augmentation(**settings)
