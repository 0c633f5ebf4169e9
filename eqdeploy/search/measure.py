"""Measure subnets: BatchNorm calibrated for each, then accuracy and cross-entropy on labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.inputs import InputPreprocessing
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.errors import DataError
from eqdeploy.search.compiled import CompiledEvaluation
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.inputs import Inputs, map_inputs, to_inputs
from eqdeploy.supernet.inputs import batch_size as inputs_in
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import augmented_images, seeded_generator
from eqdeploy.training.evaluate import BATCH_SIZE, even_batches

#: Memory for preprocessed images; more of them are preprocessed again for every subnet.
PREPROCESSED_BYTES = 2 << 30

#: Purposes of random numbers; see :func:`eqdeploy.training.batches.derive_seed`.
_SPLIT, _AUGMENTATION = 0, 1


@dataclass(frozen=True, eq=False)
class MeasurementImages:
    """Training images for measuring subnets, in two disjoint parts.

    Attributes:
        calibration: Images that BatchNorm statistics are estimated on.
        held_back: Labelled images that subnets are judged on.
    """

    calibration: LabelledImages
    held_back: LabelledImages


def split_training_images(data: LabelledImages, *, calibration: int, images: int, seed: int) -> MeasurementImages:
    """Draw images for calibration and for judging subnets from the training images.

    Args:
        data: The training images.
        calibration: Number of images for calibration, at least 2.
        images: Number of images for judging, at least 2.
        seed: Determines which.

    Raises:
        DataError: If the images are unlabelled or too few.
    """
    data.require_labels()
    if min(calibration, images) < 2 or calibration + images > len(data):
        raise DataError(
            f"{calibration} images for calibration and {images} for measuring, of {len(data)} training images",
            where=data.source,
            hint="both parts need two at least, and together no more than there are",
        )
    order = torch.randperm(len(data), generator=seeded_generator(seed, _SPLIT)).numpy()
    first, second = np.sort(order[:calibration]), order[calibration : calibration + images]
    return MeasurementImages(
        calibration=LabelledImages(data.images[first], data.labels[first], data.classes, data.source),
        held_back=LabelledImages(data.images[second], data.labels[second], data.classes, data.source),
    )


def calibration_tensor(
    images: LabelledImages, preprocessing: InputPreprocessing, augmentation: Augmentation, seed: int
) -> Any:
    """Calibration images as training varies them, (N, C, H, W) float32; the same seed gives the same."""
    generator = seeded_generator(seed, _AUGMENTATION)
    return augmented_images(images, preprocessing, augmentation, count=len(images), generator=generator)


class Measurer:
    """Measures one subnet after another on the same images.

    What does not depend on the subnet is done once. In eager mode the count of correct images is that of
    :func:`eqdeploy.training.evaluate.calibrated_correct` on the same images, exactly.

    Args:
        supernet: Is copied, not changed.
        calibration: Images for the BatchNorm statistics through the training augmentation, (N, C, H, W), N >= 2.
        data: Labelled images to judge on, as stored, two at least.
        preprocessing: From pixels to the network's input.
        batch_size: Images of one forward pass.
        compiled: Whether to judge with a compiled graph: faster, but the first subnet takes a minute.

    Raises:
        DataError: If the images are unlabelled or too few.
    """

    def __init__(
        self,
        supernet: Supernet,
        calibration: Inputs,
        data: LabelledImages,
        preprocessing: InputPreprocessing,
        *,
        batch_size: int = BATCH_SIZE,
        compiled: bool = False,
    ) -> None:
        data.require_labels()
        if len(data) < 2:
            raise DataError("subnets cannot be judged on a single image", where=data.source)
        if data.labels.ndim > 1:
            raise DataError(
                "subnets are judged by one class for each sample, and the labels are maps",
                where=data.source,
                hint="export with widths of your own (--subnet) instead of searching",
            )
        self._network = InferenceNetwork(supernet)
        self._evaluate = CompiledEvaluation(self._network.module) if compiled else self._network.evaluate
        self._device = next(supernet.parameters()).device
        self._calibration = even_batches(map_inputs(self._placed, calibration), batch_size)
        self._data = data
        self._preprocessing = preprocessing
        self._batch_size = batch_size
        self._labels = torch.from_numpy(data.labels).to(self._device)
        bytes_per_image = np.dtype((preprocessing.dtype, preprocessing.shape)).itemsize
        keeps = len(data) * bytes_per_image <= PREPROCESSED_BYTES
        self._kept = list(self._preprocessed()) if keeps else None

    @torch.no_grad()
    def measure(self, subnet: SubnetConfig | None) -> SubnetMeasurement:
        """Calibrate BatchNorm for a subnet, or with None for the float network, and judge it.

        Raises:
            ProfileError: If the subnet does not fit the network.
            DataError: If the calibration images do not suffice, or the cross-entropy is not finite.
        """
        self._network.activate(subnet)
        calibrate_batch_norm(self._network.module, self._calibration)
        losses = torch.empty(len(self._data), dtype=torch.float64)
        hits = torch.empty(len(self._data), dtype=torch.bool)
        start = 0
        for images in self._preprocessed() if self._kept is None else self._kept:
            rows = slice(start, start + inputs_in(images))
            logits, labels = self._evaluate(images), self._labels[rows]
            losses[rows] = functional.cross_entropy(logits.double(), labels, reduction="none")
            hits[rows] = logits.argmax(dim=1) == labels
            start = rows.stop
        if not bool(torch.isfinite(losses).all()):
            raise DataError("the cross-entropy of an image is not finite", where=self._data.source)
        first, second = (
            Score(int(hits[part::2].sum()), len(hits[part::2]), float(losses[part::2].mean())) for part in (0, 1)
        )
        return SubnetMeasurement((first, second))

    def _placed(self, tensor: Tensor) -> Tensor:
        """A tensor where the network is."""
        return tensor.to(self._device)

    def _preprocessed(self) -> Iterator[Inputs]:
        """Batches of the network's inputs."""
        for start in range(0, len(self._data), self._batch_size):
            stored = self._data.images[start : start + self._batch_size]
            yield map_inputs(self._placed, to_inputs(self._preprocessing.apply(stored)))
