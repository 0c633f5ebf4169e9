"""Choose the BatchNorm statistics of a subnet by measurement.

The weights of a subnet are other numbers than those that the network's own statistics were collected with, so its
statistics are usually re-estimated. Which images serve best depends on the network: weights that were trained on
augmented images want augmented ones (on CIFAR-10, plain ones cost the shipped supernet five points), a network that
was trained elsewhere may want none. The yardstick is the float network exactly as given, its own statistics included:
that choice is best whose outputs are nearest to its outputs. No labels are needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from eqdeploy.calibration.batch_norm import BatchNormCalibration, calibrate_batch_norm
from eqdeploy.calibration.images import augmented_batches, plain_batches
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.progress import Advance
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.checkpoint import Checkpoint
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.supernet.statistics import read_statistics, write_statistics

#: Images on which distances are measured; on 256 they vary by about 0.2 dB.
REFERENCE_IMAGES = 256

#: A choice that training did not make must be nearer by this: rounding on another machine must not change it.
MARGIN_DB = 1.0

#: What an exact agreement counts as.
_LARGEST_DB = 200.0


class Statistics(StrEnum):
    """Where BatchNorm statistics come from.

    Attributes:
        OWN: The network's own, as the checkpoint has them.
        AUGMENTED: Re-estimated on calibration images, varied as in training.
        PLAIN: Re-estimated on calibration images as they are.
        NONE: The network has none.
    """

    OWN = "own"
    AUGMENTED = "augmented"
    PLAIN = "plain"
    NONE = "none"


@dataclass(frozen=True)
class StatisticsChoice:
    """The BatchNorm statistics that a network was given, and why.

    Attributes:
        chosen: Where they come from.
        distances: For each that was tried, the signal-to-noise ratio of the subnet's outputs against those of the
            float network as given, in dB; 200 stands for no difference.
        images: Number of images that the distances were measured on; 0 if nothing was measured.
        reason: The choice in words.
    """

    chosen: Statistics
    distances: tuple[tuple[Statistics, float], ...]
    images: int
    reason: str


AS_GIVEN = StatisticsChoice(Statistics.OWN, (), 0, "the float network keeps its own statistics")
_WITHOUT = StatisticsChoice(Statistics.NONE, (), 0, "the network has no BatchNorm statistics")


def restore_own_statistics(checkpoint: Checkpoint) -> None:
    """Give the supernet the statistics that its checkpoint has."""
    write_statistics(checkpoint.supernet.graph_module, checkpoint.statistics)


@torch.no_grad()
def choose_statistics(
    checkpoint: Checkpoint,
    subnet: SubnetConfig,
    images: LabelledImages,
    seed: int,
    *,
    only: Statistics | None = None,
    advance: Advance | None = None,
) -> tuple[StatisticsChoice, BatchNormCalibration]:
    """Give the supernet the BatchNorm statistics that bring a subnet nearest to the float network as given.

    Args:
        checkpoint: The supernet; its statistics are replaced, nothing else.
        subnet: The subnet that will be active.
        images: Calibration images.
        seed: Seed of the augmentation.
        only: The statistics to take without measuring, those of an earlier choice; None to choose.
        advance: Called with the number of images of each finished calibration batch.

    Returns:
        The choice, and what estimating the chosen statistics measured. Of two that differ by less than a decibel, what
        training used is chosen.

    Raises:
        DataError: If the images are too few or not finite.
    """
    restore_own_statistics(checkpoint)
    if not checkpoint.statistics:
        return _WITHOUT, BatchNormCalibration(len(images), 0)
    network = InferenceNetwork(checkpoint.supernet)
    reference = images.spread(REFERENCE_IMAGES)
    network.activate(None)
    expected = _outputs(network, reference, checkpoint)
    network.activate(subnet)
    candidates = _candidates(checkpoint.augmentation) if only is None else (only,)
    found: dict[Statistics, tuple[dict[str, Tensor], BatchNormCalibration]] = {}
    distances: dict[Statistics, float] = {}
    for source in candidates:
        found[source] = _statistics(network, source, checkpoint, images, seed, advance)
        distances[source] = signal_to_noise(expected, _outputs(network, reference, checkpoint))
    chosen = _choose(distances)
    statistics, measured = found[chosen]
    write_statistics(checkpoint.supernet.graph_module, statistics)
    told = tuple((source, round(distance, 2)) for source, distance in distances.items())
    reason = _reason(chosen, distances, told=only is not None)
    return StatisticsChoice(chosen, told, len(reference), reason), measured


def signal_to_noise(expected: list[Tensor], found: list[Tensor]) -> float:
    """Ratio of the power of all expected values to that of their differences, in dB, at most 200."""
    pairs = list(zip(expected, found, strict=True))
    signal = sum(float(wanted.double().square().sum()) for wanted, _ in pairs)
    noise = sum(float((wanted.double() - got.double()).square().sum()) for wanted, got in pairs)
    if not math.isfinite(noise) or signal <= 0.0:
        return -_LARGEST_DB
    return _LARGEST_DB if noise <= 0.0 else min(_LARGEST_DB, 10.0 * math.log10(signal / noise))


def _candidates(augmentation: Augmentation) -> tuple[Statistics, ...]:
    """What is tried, in order of preference."""
    if augmentation.changes_images:
        return (Statistics.AUGMENTED, Statistics.PLAIN, Statistics.OWN)
    return (Statistics.PLAIN, Statistics.OWN)


def _statistics(
    network: InferenceNetwork,
    source: Statistics,
    checkpoint: Checkpoint,
    images: LabelledImages,
    seed: int,
    advance: Advance | None,
) -> tuple[dict[str, Tensor], BatchNormCalibration]:
    """Give the active subnet its statistics from one source, and read them."""
    measured = BatchNormCalibration(0, 0)
    if source is Statistics.OWN:
        write_statistics(network.module, checkpoint.statistics)
    else:
        augmentation = checkpoint.augmentation if source is Statistics.AUGMENTED else Augmentation()
        batches = augmented_batches(images, checkpoint.preprocessing, augmentation, seed)
        measured = calibrate_batch_norm(network.module, batches, advance)
        # By the paths that the layers have in the supernet.
        measured = replace(measured, moments={f"graph_module.{path}": held for path, held in measured.moments.items()})
    return read_statistics(network.module), measured


def _outputs(network: InferenceNetwork, images: LabelledImages, checkpoint: Checkpoint) -> list[Tensor]:
    """All outputs of the active subnet for images as they are."""

    def batches() -> Iterator[list[Tensor]]:
        for batch in plain_batches(images, checkpoint.preprocessing):
            yield [tensor.clone() for tensor in tensors_in(network.evaluate(batch))]

    return [torch.cat(parts) for parts in zip(*batches(), strict=True)]


def _choose(distances: dict[Statistics, float]) -> Statistics:
    """The first, which training used, unless another is clearly nearer."""
    first = next(iter(distances))
    best = max(distances, key=lambda source: distances[source])
    return best if distances[best] > distances[first] + MARGIN_DB else first


def _reason(chosen: Statistics, distances: dict[Statistics, float], *, told: bool) -> str:
    """The choice in words."""
    if told:
        return "as the export chose"
    others = [f"{source} {distance:.1f}" for source, distance in distances.items() if source is not chosen]
    return f"{distances[chosen]:.1f} dB from the float network as given ({', '.join(others)})"
