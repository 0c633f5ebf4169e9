"""Training batches: which images belong to a step is a function of seed and step, so resuming needs no memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError


class Batch(NamedTuple):
    """Images as the network reads them, (N, C, H, W) float32, and their classes, (N,) int64."""

    images: Tensor
    labels: Tensor


def derive_seed(seed: int, *purpose: int) -> int:
    """Derive an independent seed of 64 bits for each purpose from the seed of a run.

    Args:
        seed: Seed of the run, not negative.
        purpose: Non-negative numbers that tell one purpose from the others.
    """
    return int(np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1, np.uint64)[0])


def seeded_generator(seed: int, *purpose: int) -> torch.Generator:
    """Make a generator with its own derived seed; see :func:`derive_seed`."""
    # torch takes seeds up to 2^63 - 1 without reading them as negative numbers.
    return torch.Generator().manual_seed(derive_seed(seed, *purpose) >> 1)


class TrainingBatches:
    """Shuffles, preprocesses and augments a labelled data set in memory.

    Every epoch is a new permutation; its last, incomplete batch is left out.

    Args:
        data: Labelled images as stored.
        preprocessing: From pixels to the network's input.
        augmentation: Variation of each image.
        batch_size: Images of one batch; a smaller data set makes one batch of all its images.
        seed: Determines the permutations.

    Raises:
        DataError: If there are fewer than two images: BatchNorm needs two.
    """

    def __init__(
        self,
        data: LabelledImages,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        if len(data) < 2:
            raise DataError("training needs at least two images", where=data.source)
        self.data = data
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.batch_size = min(batch_size, len(data))
        self.steps_per_epoch = len(data) // self.batch_size
        self._seed = seed
        self._fill = torch.from_numpy(preprocessing.black)
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """The batch of a step.

        Args:
            step: Index of the step, counted over all epochs.
            generator: Source of the augmentation's randomness.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.data), generator=seeded_generator(self._seed, epoch))
            self._epoch, self._order = epoch, order.numpy()
        rows = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        images = torch.from_numpy(self.preprocessing.apply(self.data.images[rows]))
        return Batch(
            images=self.augmentation.apply(images, generator, fill=self._fill),
            labels=torch.from_numpy(self.data.labels[rows]),
        )


def augmented_images(
    data: LabelledImages,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Images for calibration: evenly spread over the data, through the training augmentation.

    Args:
        data: Training images as stored.
        preprocessing: From pixels to the network's input.
        augmentation: The variation that training uses.
        count: Number of images; all of them if there are no more.
        generator: Source of the augmentation's randomness.

    Returns:
        (N, C, H, W) float32.
    """
    images = torch.from_numpy(preprocessing.apply(data.spread(count).images))
    return augmentation.apply(images, generator, fill=torch.from_numpy(preprocessing.black))
