"""The float network as a guide of the supernet that started from it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from eqdeploy.progress import Progress
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.execution import Forward, StepMode, prepare
from eqdeploy.training.float_weights import load_float_weights
from eqdeploy.training.model import make_supernet
from eqdeploy.training.workers import Workers


def make_teacher(
    config: TrainingConfig,
    model: nn.Module,
    weights: Path,
    mode: StepMode,
    device: torch.device,
    progress: Progress,
    workers: Workers,
) -> Forward:
    """The float network of a file, as a function without gradients.

    Args:
        config: Of the run.
        model: Its float model; is copied.
        weights: The trained weights, which the first process reads.
        mode: How to compute; not compiled.
        device: Where to compute.
        progress: Listener.
        workers: The processes; all of them make this call.

    Raises:
        CheckpointError: If the weights are missing or do not fit.
        ReportedError: In all processes but the first, in its place.
    """
    with workers.together():
        model = copy.deepcopy(model)
        if workers.is_main:
            load_float_weights(model, weights)
        teacher = make_supernet(config, model, config.preprocessing.to_preprocessing()).to(device)
    workers.broadcast(teacher)
    run = prepare(teacher, mode, progress).train
    return torch.no_grad()(run)
