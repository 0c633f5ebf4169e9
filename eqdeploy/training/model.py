"""The float model of a run and the supernet that is made of it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import ProfileError, UsageError
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.float_weights import load_float_weights
from eqdeploy.zoo import build


def make_model(config: TrainingConfig, model: nn.Module | None) -> nn.Module:
    """Build the float model, or take the given one, with the weights to start from.

    Raises:
        UsageError: If the configuration names no model and none is given, or one that does not exist.
        CheckpointError: If the weights are damaged or do not fit.
    """
    if model is None:
        if config.model.architecture is None:
            raise UsageError(
                "the configuration names no architecture and no model is given", where="model.architecture"
            )
        model = build(config.model.architecture, config.model.arguments)
    if config.model.weights is not None:
        model = copy.deepcopy(model)
        load_float_weights(model, Path(config.model.weights))
    return model


def make_supernet(
    config: TrainingConfig, model: nn.Module, preprocessing: Preprocessing, data: LabelledImages
) -> Supernet:
    """Convert the float model, and check that it fits the data.

    Raises:
        UnsupportedOperationError: If the model cannot be converted.
        ProfileError: If the network's output does not fit the data.
    """
    supernet = Supernet.from_float(model, torch.zeros((2, *preprocessing.shape)), config.space.to_space())
    supernet.eval()
    with torch.no_grad():
        output: Tensor = supernet(torch.zeros((2, *preprocessing.shape)))
    if output.ndim != 2 or output.shape[1] != len(data.classes):
        name = config.model.architecture or type(model).__name__
        raise ProfileError(
            f"the network returns {tuple(output.shape[1:])} for an image, the data have {len(data.classes)} classes",
            where=f"model: {name}",
            hint="set the number of classes in model.arguments",
        )
    return supernet
