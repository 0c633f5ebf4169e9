"""What a finished training run made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.examination import EXAMINED_IMAGES, data_statistics
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.inputs import InputPreprocessing
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.statistics import DataStatistics
from eqdeploy.supernet.checkpoint import (
    SUPERNET_FLOAT_ACCURACY,
    ArchitectureReference,
    metadata_of,
    save_checkpoint,
)
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.inputs import Inputs
from eqdeploy.supernet.probes import Probes
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.evaluate import Evaluation, even_batches
from eqdeploy.training.start import FLOAT_ACCURACY
from eqdeploy.training.state import Position


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run made.

    Attributes:
        checkpoint: The supernet, None for a run that trained the float network only.
        float_weights: The float network; None if the run started from a supernet, or if the file has been removed.
        log: The training log beside it.
        float_accuracy: Share of held-out images that the pre-trained float network classifies correctly, before
            any quantization-aware step: the yardstick for the grid. None where there is no accuracy.
        images: Number of held-out images, or of their labels where each has a map of them.
        evaluation: Accuracy of every uniform form, None for a run that trained the float network only, and where
            there is no accuracy.
        resumed_at: Where an earlier run was taken up, None for a run from the start.
    """

    checkpoint: Path | None
    float_weights: Path | None
    log: Path
    float_accuracy: float | None
    images: int
    evaluation: Evaluation | None
    resumed_at: Position | None


def write_checkpoint(
    supernet: Supernet,
    path: Path,
    *,
    config: TrainingConfig,
    images: LabelledImages,
    calibration: Inputs,
    start_digest: str | None,
    float_accuracy: float | None,
    evaluation: Evaluation | None,
    held_out: LabelledImages,
    as_given: bool,
) -> None:
    """Write a trained supernet, with the BatchNorm statistics of its float network.

    Whoever loads it can prove with the probes in it, unless there are to be none, that preprocessing and network give
    what they give here, and compare calibration images with those of the training.

    Args:
        supernet: Is moved to the processor, deactivated and put in evaluation mode, with these statistics.
        path: File to write or replace.
        config: How it was trained.
        images: What it was trained on.
        calibration: Images for the statistics, (N, C, H, W), N >= 2, on the supernet's device.
        start_digest: SHA-256 of the weights or the supernet that the run started from, None for random weights.
        float_accuracy: Of the pre-trained float network, 0 to 1; None where there is no accuracy.
        evaluation: The grid of the trained supernet; None where there is no accuracy.
        held_out: Held-out samples as stored, images in the network's size: some of them become the probes.
        as_given: Whether no step changed the weights that were given: their own statistics then stay.

    Raises:
        OutputError: If the file cannot be written.
    """
    supernet.deactivate()
    if not as_given:
        calibrate_batch_norm(supernet, even_batches(calibration))
    supernet.eval().to("cpu")
    model, preprocessing = config.model, config.preprocessing.to_preprocessing()
    metadata = metadata_of(
        supernet,
        architecture=ArchitectureReference(name=model.architecture, arguments=dict(model.arguments)),
        preprocessing=preprocessing,
        augmentation=Augmentation(**dict(config.augmentation)),
        classes=images.classes,
        provenance={
            "configuration": config.digest,
            "data": images.source,
            "data_digest": images.digest,
            **({} if start_digest is None else {"weights_digest": start_digest}),
            **({} if float_accuracy is None else {FLOAT_ACCURACY: float_accuracy}),
            **({} if evaluation is None else {SUPERNET_FLOAT_ACCURACY: evaluation.float_accuracy}),
            **({} if config.loss is None else {"loss": config.loss}),
            "torch": torch.__version__,
        },
        training_data=training_statistics(supernet, images, preprocessing),
    )
    save_checkpoint(supernet, metadata, path, _probes(supernet, held_out, preprocessing, count=config.probes))


def _probes(
    supernet: Supernet, held_out: LabelledImages, preprocessing: InputPreprocessing, *, count: int
) -> Probes | None:
    """Probes for a checkpoint; None if none are wanted, for inputs that are no images and for several outputs."""
    outputs = sum(tensor.is_output for tensor in supernet.network.tensors)
    if count == 0 or outputs != 1 or not isinstance(preprocessing, Preprocessing):
        return None
    return Probes.of(supernet, held_out.spread(count).images, preprocessing)


def training_statistics(
    supernet: Supernet, images: LabelledImages, preprocessing: InputPreprocessing
) -> DataStatistics | None:
    """What calibration images are compared with later; None for inputs that are no images.

    Args:
        supernet: Deactivated, in evaluation mode, on the processor.
        images: What it was trained on; of images that are stored larger than the network reads, the centre counts.
        preprocessing: What the network reads.
    """
    if not isinstance(preprocessing, Preprocessing):
        return None
    chosen = images.spread(EXAMINED_IMAGES)
    (height, width), stored = preprocessing.image_size, chosen.images.shape[2:]
    top, left = (stored[0] - height) // 2, (stored[1] - width) // 2
    seen = chosen.images[:, :, top : top + height, left : left + width]
    network = InferenceNetwork(supernet)
    network.activate(None)
    return data_statistics(network, replace(chosen, images=seen, digest=chosen.digest), preprocessing)
