"""Batches of images for calibration and evaluation, as the network reads them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.data.augmentation import Augmentation

BATCH_SIZE = 128


def plain_batches(data: LabelledImages, preprocessing: Preprocessing) -> Iterator[Tensor]:
    """Preprocessed images in order, float32 batches of shape (N, C, H, W)."""
    for start in range(0, len(data), BATCH_SIZE):
        yield torch.from_numpy(preprocessing.apply(data.images[start : start + BATCH_SIZE]))


def augmented_batches(
    data: LabelledImages, preprocessing: Preprocessing, augmentation: Augmentation, seed: int
) -> Iterator[Tensor]:
    """Preprocessed images in order, varied as in training; the same seed gives the same images.

    A single image left over at the end joins the batch before it: BatchNorm needs two.
    """
    generator = torch.Generator().manual_seed(seed)
    pending: Tensor | None = None
    for start in range(0, len(data), BATCH_SIZE):
        # Copied: stored images may be mapped from a file that is not to be written.
        images = torch.from_numpy(data.images[start : start + BATCH_SIZE].copy())
        varied = augmentation.vary(images, preprocessing, augmentation.draw(len(images), generator))
        if pending is not None:
            if len(varied) == 1:
                varied = torch.cat([pending, varied])
            else:
                yield pending
        pending = varied
    if pending is not None:
        yield pending
