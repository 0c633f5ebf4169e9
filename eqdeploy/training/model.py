"""The float model of a run and the supernet that is made of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import ProfileError, UnsupportedOperationError, UsageError
from eqdeploy.quant.elastic_quantizer import ElasticQuantizer
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.float_weights import load_float_weights
from eqdeploy.training.optimizer import first_not_finite
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
        UnsupportedOperationError: If the model cannot be converted, or returns something else than one tensor.
        UsageError: If a parameter is not finite, or the float network is to be trained and all are frozen.
        ProfileError: If the network's output does not fit the data.
    """
    supernet = Supernet.from_float(model, torch.zeros((2, *preprocessing.shape)), config.space.to_space())
    supernet.eval()
    with torch.no_grad():
        output: object = supernet(torch.zeros((2, *preprocessing.shape)))
    where = f"model: {config.model.architecture or type(model).__name__}"
    if not isinstance(output, Tensor):
        raise UnsupportedOperationError(
            f"the network returns a {type(output).__name__}, not one tensor of scores",
            where=where,
            hint="wrap it in a module that returns the scores",
        )
    if output.ndim != 2 or output.shape[1] != len(data.classes):
        raise ProfileError(
            f"the network returns {tuple(output.shape[1:])} for an image, the data have {len(data.classes)} classes",
            where=where,
            hint="set the number of classes in model.arguments",
        )
    _require_trainable(config, supernet, where)
    return supernet


def _require_trainable(config: TrainingConfig, supernet: Supernet, where: str) -> None:
    """Refuse a network that training could only fail on, before anything is written."""
    damaged = first_not_finite(supernet)
    if damaged is not None:
        raise UsageError(f"{damaged} is not finite before training", where=where, hint="start from other weights")
    if config.float_training.epochs and not any(parameter.requires_grad for parameter in _float_parameters(supernet)):
        raise UsageError(
            "every parameter is frozen (requires_grad is False)",
            where=where,
            hint="unfreeze it, or set float_training.epochs to 0",
        )


def _float_parameters(supernet: Supernet) -> Iterator[nn.Parameter]:
    """Parameters of a supernet that its float network has, too."""
    quantizers = {
        id(parameter)
        for module in supernet.modules()
        if isinstance(module, ElasticQuantizer)
        for parameter in module.parameters()
    }
    return (parameter for parameter in supernet.parameters() if id(parameter) not in quantizers)
