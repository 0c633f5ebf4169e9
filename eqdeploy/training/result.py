"""What a finished training run made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.supernet.checkpoint import ArchitectureReference, metadata_of, save_checkpoint
from eqdeploy.supernet.inputs import Inputs
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
) -> None:
    """Write a trained supernet, with the BatchNorm statistics of its float network.

    Args:
        supernet: Is deactivated and put in evaluation mode, with these statistics.
        path: File to write or replace.
        config: How it was trained.
        images: What it was trained on.
        calibration: Images for the statistics, (N, C, H, W), N >= 2, on the supernet's device.
        start_digest: SHA-256 of the weights or the supernet that the run started from, None for random weights.
        float_accuracy: Of the pre-trained float network, 0 to 1; None where there is no accuracy.
        evaluation: The grid of the trained supernet; None where there is no accuracy.

    Raises:
        OutputError: If the file cannot be written.
    """
    supernet.deactivate()
    calibrate_batch_norm(supernet, even_batches(calibration))
    supernet.eval()
    model = config.model
    metadata = metadata_of(
        supernet,
        architecture=ArchitectureReference(name=model.architecture, arguments=dict(model.arguments)),
        preprocessing=config.preprocessing.to_preprocessing(),
        augmentation=Augmentation(**dict(config.augmentation)),
        classes=images.classes,
        provenance={
            "configuration": config.digest,
            "data": images.source,
            "data_digest": images.digest,
            **({} if start_digest is None else {"weights_digest": start_digest}),
            **({} if float_accuracy is None else {FLOAT_ACCURACY: float_accuracy}),
            **({} if evaluation is None else {"supernet_float_accuracy": evaluation.float_accuracy}),
            **({} if config.loss is None else {"loss": config.loss}),
            "torch": torch.__version__,
        },
    )
    save_checkpoint(supernet, metadata, path)
