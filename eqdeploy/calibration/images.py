"""Batches of images, or other inputs, for calibration and evaluation, as the network reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray

from eqdeploy.data import InputPreprocessing, LabelledImages, Preprocessing
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.supernet.inputs import Inputs, batch_size, concatenate, to_inputs

BATCH_SIZE = 128


def plain_batches(data: LabelledImages, preprocessing: InputPreprocessing) -> Iterator[Inputs]:
    """Preprocessed images in order, float32 batches of shape (N, C, H, W); other inputs likewise."""
    for start in range(0, len(data), BATCH_SIZE):
        yield to_inputs(preprocessing.apply(data.images[start : start + BATCH_SIZE]))


def augmented_batches(
    data: LabelledImages, preprocessing: InputPreprocessing, augmentation: Augmentation, seed: int
) -> Iterator[Inputs]:
    """Preprocessed images in order, varied as in training; the same seed gives the same images.

    A single image left over at the end joins the batch before it: BatchNorm needs two.
    """
    generator = torch.Generator().manual_seed(seed)
    pending: Inputs | None = None
    for start in range(0, len(data), BATCH_SIZE):
        # Copied: stored images may be mapped from a file that is not to be written.
        varied = vary_stored(data.images[start : start + BATCH_SIZE].copy(), preprocessing, augmentation, generator)
        if pending is not None:
            if batch_size(varied) == 1:
                varied = concatenate([pending, varied])
            else:
                yield pending
        pending = varied
    if pending is not None:
        yield pending


def vary_stored(
    stored: NDArray[Any], preprocessing: InputPreprocessing, augmentation: Augmentation, generator: torch.Generator
) -> Inputs:
    """Samples as stored through augmentation and preprocessing; only images are varied.

    Args:
        stored: (N, …), not to be written to by anybody else.
        preprocessing: What the network reads.
        augmentation: How training images vary.
        generator: Source of the augmentation's randomness.
    """
    if not isinstance(preprocessing, Preprocessing):
        return to_inputs(preprocessing.apply(stored))
    images = torch.from_numpy(stored)
    return augmentation.vary(images, preprocessing, augmentation.draw(len(images), generator))
