"""Accuracy of a supernet over the grid of uniform forms, each with BatchNorm calibrated for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.supernet import Supernet

#: Images of one forward pass.
BATCH_SIZE = 256


@dataclass(frozen=True)
class EvaluationRow:
    """Accuracy of one subnet with the same form everywhere, first and last layer at the boundary width.

    Attributes:
        bits: Width of weights and activations.
        granularity: Granularity of the weights.
        symmetry: Symmetry of weights and activations.
        correct: Number of images whose largest score is their class.
        images: Number of images.
    """

    bits: int
    granularity: Granularity
    symmetry: Symmetry
    correct: int
    images: int

    @property
    def name(self) -> str:
        """What was measured, e.g. ``"W4A4 per_tensor symmetric"``."""
        return f"W{self.bits}A{self.bits} {self.granularity} {self.symmetry}"

    @property
    def accuracy(self) -> float:
        """Share of images classified correctly, 0 to 1."""
        return self.correct / self.images

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "bits": self.bits,
            "granularity": str(self.granularity),
            "symmetry": str(self.symmetry),
            "correct": self.correct,
            "images": self.images,
        }


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over the grid.

    Attributes:
        float_correct: Images that the supernet's weights classify correctly without any quantization.
        images: Number of images.
        rows: One row for each width, granularity and symmetry of the space, in the space's order.
    """

    float_correct: int
    images: int
    rows: tuple[EvaluationRow, ...]

    @property
    def float_accuracy(self) -> float:
        """Share of images classified correctly in float, 0 to 1."""
        return self.float_correct / self.images

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "float_correct": self.float_correct,
            "images": self.images,
            "rows": [row.to_json() for row in self.rows],
        }


def evaluate_grid(
    supernet: Supernet,
    *,
    calibration: Tensor,
    data: LabelledImages,
    preprocessing: Preprocessing,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure the float network and every uniform form of the supernet's space.

    Args:
        supernet: Is deactivated afterwards; its BatchNorm statistics and mode are as before.
        calibration: Training images through the training augmentation, (N, C, H, W), N >= 2.
        data: Held-out, labelled images as stored.
        preprocessing: From pixels to the network's input.
        batch_size: Images of one forward pass.
        advance: Called with 1 after every network that is measured.

    Returns:
        Counts of correct images.

    Raises:
        DataError: If the images are unlabelled or the calibration images do not suffice.
    """
    data.require_labels()
    space = supernet.network.space
    rows: list[EvaluationRow] = []

    def correct() -> int:
        return calibrated_correct(supernet, calibration, data, preprocessing, batch_size=batch_size)

    with _statistics_restored(supernet):
        supernet.deactivate()
        float_correct = correct()
        _advance(advance)
        for bits in space.bits:
            for granularity in space.granularities:
                for symmetry in space.symmetries:
                    supernet.activate(
                        SubnetConfig.uniform(
                            supernet.network,
                            weight_bits=bits,
                            activation_bits=bits,
                            granularity=granularity,
                            weight_symmetry=symmetry,
                            activation_symmetry=symmetry,
                        )
                    )
                    rows.append(EvaluationRow(bits, granularity, symmetry, correct(), len(data)))
                    _advance(advance)
        supernet.deactivate()
    return Evaluation(float_correct=float_correct, images=len(data), rows=tuple(rows))


@torch.no_grad()
def calibrated_correct(
    supernet: Supernet,
    calibration: Tensor,
    data: LabelledImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int = BATCH_SIZE,
) -> int:
    """Calibrate BatchNorm for the active subnet and count the images that it classifies correctly.

    The new statistics stay in the supernet; its mode is as before.

    Args:
        supernet: With a subnet active, or deactivated for float.
        calibration: Images for the statistics, (N, C, H, W), N >= 2.
        data: Labelled images to classify, as stored.
        preprocessing: From pixels to the network's input.
        batch_size: Images of one forward pass.
    """
    calibrate_batch_norm(supernet, even_batches(calibration, batch_size))
    training = supernet.training
    supernet.eval()
    try:
        correct = 0
        for start in range(0, len(data), batch_size):
            rows = slice(start, start + batch_size)
            predicted = supernet(torch.from_numpy(preprocessing.apply(data.images[rows]))).argmax(dim=1)
            correct += int((predicted == torch.from_numpy(data.labels[rows])).sum())
        return correct
    finally:
        supernet.train(training)


def even_batches(images: Tensor, batch_size: int = BATCH_SIZE) -> list[Tensor]:
    """Split images into batches of nearly equal size, so that no last batch is too small for statistics."""
    return list(images.tensor_split(-(-len(images) // batch_size)))


def _advance(advance: Callable[[int], None] | None) -> None:
    """Report one network."""
    if advance is not None:
        advance(1)


@contextmanager
def _statistics_restored(supernet: Supernet) -> Iterator[None]:
    """Put every buffer back as it was."""
    saved = [(buffer, buffer.clone()) for buffer in supernet.buffers()]
    try:
        yield
    finally:
        for buffer, before in saved:
            buffer.copy_(before)
