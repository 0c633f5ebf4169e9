"""Training batches: which images belong to a step is a function of seed and step, so resuming needs no memory."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqdeploy.calibration.images import vary_stored
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.inputs import InputPreprocessing
from eqdeploy.data.labelled import LabelledImages, spread_indices
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError, UsageError
from eqdeploy.supernet.inputs import map_inputs, to_inputs

#: Images as they are stored, uint8 or float32, and their labels.
_Stored = tuple[NDArray[Any], NDArray[Any]]


class Batch(NamedTuple):
    """Images as the network reads them, (N, C, H, W) float32, or other inputs, and their classes, (N,) int64.

    Several inputs are a dictionary of tensors (:data:`~eqdeploy.supernet.inputs.Inputs`). Labels are whatever the data
    set holds: maps of classes are (N, …), targets float32.
    """

    images: Any
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
    """Shuffles, preprocesses and augments a labelled data set.

    Every epoch is a new permutation; its last, incomplete batch is left out. Where the images are mapped from a file,
    those of the next step are read in the background: which they are depends on nothing but the step.

    Several processes divide every batch among them: all draw the same permutation and the same random numbers for
    the whole batch, and each makes its own share of it. The shares one after another are the batch of one process,
    bit for bit.

    Args:
        data: Labelled images as stored, of the network's size or larger: see :meth:`Augmentation.vary`.
        preprocessing: From pixels to the network's input.
        augmentation: Variation of each image.
        batch_size: Images of one batch of all processes; a smaller data set makes one batch of all its images.
        seed: Determines the permutations.
        rank: Which process this is, from 0.
        world_size: Number of processes.
        device: Where batches are made and left; pixels travel there as they are stored. None for the processor.

    Raises:
        DataError: If there are fewer than two images: BatchNorm needs two.
        UsageError: If the batch cannot be divided into equal shares: their mean gradient would not be the batch's.
    """

    def __init__(
        self,
        data: LabelledImages,
        preprocessing: InputPreprocessing,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if len(data) < 2:
            raise DataError("training needs at least two images", where=data.source)
        if not 0 <= rank < world_size:
            raise UsageError(f"there is no process {rank} of {world_size}")
        self.data = data
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.batch_size = min(batch_size, len(data))
        if self.batch_size % world_size:
            raise UsageError(
                f"a batch of {self.batch_size} images cannot be divided equally among {world_size} processes",
                where="batch_size",
                hint=f"{max(self.batch_size // world_size, 1) * world_size} can",
            )
        self.steps_per_epoch = len(data) // self.batch_size
        self._seed = seed
        self._device = device
        share = self.batch_size // world_size
        self._share = slice(rank * share, (rank + 1) * share)
        self._epoch = -1
        self._order = np.empty(0, np.int64)
        mapped = isinstance(data.images, np.memmap)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead") if mapped else None
        self._ahead: tuple[int, Future[_Stored]] | None = None

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """This process's share of the batch of a step.

        Args:
            step: Index of the step, counted over all epochs.
            generator: Source of the augmentation's randomness, in the same state in all processes.
        """
        stored, classes = self._stored(step)
        labels = torch.from_numpy(classes).to(device=self._device)
        if not isinstance(self.preprocessing, Preprocessing):
            inputs = to_inputs(self.preprocessing.apply(stored))
            return Batch(images=map_inputs(lambda part: part.to(device=self._device), inputs), labels=labels)
        variation = self.augmentation.draw(self.batch_size, generator).rows(self._share)
        images = torch.from_numpy(stored).to(device=self._device)
        return Batch(images=self.augmentation.vary(images, self.preprocessing, variation), labels=labels)

    def _stored(self, step: int) -> _Stored:
        """Images and labels of this process's share, as stored."""
        ahead, self._ahead = self._ahead, None
        found = ahead[1].result() if ahead and ahead[0] == step else self._read(self._rows(step))
        if self._reader is not None:
            self._ahead = step + 1, self._reader.submit(self._read, self._rows(step + 1))
        return found

    def _read(self, rows: NDArray[np.int64]) -> _Stored:
        """Copies of some images and labels."""
        return self.data.images[rows], self.data.labels[rows]

    def _rows(self, step: int) -> NDArray[np.int64]:
        """Which images are this process's share of a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.data), generator=seeded_generator(self._seed, epoch))
            self._epoch, self._order = epoch, order.numpy()
        return self._order[index * self.batch_size : (index + 1) * self.batch_size][self._share]


def augmented_images(
    data: LabelledImages,
    preprocessing: InputPreprocessing,
    augmentation: Augmentation,
    *,
    count: int,
    generator: torch.Generator,
) -> Any:
    """Images for calibration: evenly spread over the data, through the training augmentation.

    Args:
        data: Training images as stored, of the network's size or larger.
        preprocessing: From pixels to the network's input.
        augmentation: The variation that training uses.
        count: Number of images; all of them if there are no more.
        generator: Source of the augmentation's randomness.

    Returns:
        (N, C, H, W) float32, or other :data:`~eqdeploy.supernet.inputs.Inputs`.
    """
    # Copied: stored images may be mapped from a file that is not to be written.
    return vary_stored(data.images[spread_indices(len(data), count)], preprocessing, augmentation, generator)
