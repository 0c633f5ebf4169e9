"""Look at calibration images before anything rests on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.images import augmented_batches, plain_batches
from eqdeploy.calibration.likeness import compare, too_few
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.statistics import DataStatistics, channel_statistics
from eqdeploy.supernet.checkpoint import Checkpoint
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.statistics import read_statistics, write_statistics

#: Images that are looked at, evenly spread over the set.
EXAMINED_IMAGES = 1024

#: Without stored statistics, BatchNorm tells: root mean square over a layer's channels of the shift of the mean, in
#: standard deviations, and median change of the variance, as a factor. Random subsets of 64 training or test images
#: reach 0.07 and 1.15 on digits; wrong scales, black images, noise and single classes exceed one of these limits.
_LARGEST_SHIFT, _LARGEST_FACTOR = 0.25, 1.5


def data_statistics(network: InferenceNetwork, images: LabelledImages, preprocessing: Preprocessing) -> DataStatistics:
    """Measure images, and what the active network makes of them.

    Args:
        network: The float network as given.
        images: Images as stored; all are used.
        preprocessing: What the network reads.
    """
    # Network and images may be on a GPU; sums are made on the processor.
    device = next(network.module.parameters()).device
    batches = [batch for batch in plain_batches(images, preprocessing) if isinstance(batch, Tensor)]
    outputs = [network.evaluate(batch.to(device)) for batch in batches]
    return DataStatistics(
        images=len(images),
        input=channel_statistics(batch.numpy() for batch in batches),
        output=channel_statistics(np.asarray(_first(output).float().cpu()) for output in outputs),
    )


def examine(checkpoint: Checkpoint, images: LabelledImages) -> tuple[str, ...]:
    """Say in what calibration images differ from those that a supernet was trained on.

    Compared are the statistics of the training images in the checkpoint; in their absence, the network's own BatchNorm
    statistics with those that the images give it.

    Args:
        checkpoint: The supernet; it is left as it is.
        images: Calibration images.

    Returns:
        One sentence for each finding.
    """
    if not isinstance(checkpoint.preprocessing, Preprocessing):
        return too_few(len(images))
    network = InferenceNetwork(checkpoint.supernet)
    network.activate(None)
    write_statistics(network.module, checkpoint.statistics)
    expected, seen = checkpoint.metadata.training_data, images.spread(EXAMINED_IMAGES)
    if expected is not None:
        return compare(data_statistics(network, seen, checkpoint.preprocessing), expected)
    findings = too_few(len(images))
    if not findings and checkpoint.statistics:
        calibrate_batch_norm(
            network.module, augmented_batches(seen, checkpoint.preprocessing, checkpoint.augmentation, seed=0)
        )
        findings = _drift(checkpoint.statistics, read_statistics(network.module))
    return findings


def _drift(before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[str, ...]:
    """Compare BatchNorm statistics; tell the layer that changed most."""
    worst, told = 1.0, ""
    for name, variance in before.items():
        path, _, kind = name.rpartition(".")
        mean = f"{path}.running_mean"
        if kind != "running_var" or mean not in before:
            continue
        shift = ((after[mean] - before[mean]) / variance.clamp(min=1e-12).sqrt()).square().mean().sqrt().item()
        ratio = after[name].clamp(min=1e-12) / variance.clamp(min=1e-12)
        factor = float(torch.exp(torch.log(ratio).abs().median()))
        excess = max(shift / _LARGEST_SHIFT, np.log(factor) / np.log(_LARGEST_FACTOR))
        if excess > worst:
            worst = excess
            told = (
                f"they shift the means of {path} by {shift:.2g} standard deviations and change its variances "
                f"{factor:.2g}-fold"
            )
    return (told,) if told else ()


def _first(output: object) -> Tensor:
    """The output, the first one of several."""
    while isinstance(output, list | tuple):
        output = output[0]
    assert isinstance(output, Tensor)
    return output
