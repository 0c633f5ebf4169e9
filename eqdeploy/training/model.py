"""The float model of a run and the supernet that is made of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from eqdeploy.data.inputs import InputPreprocessing
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.errors import UsageError
from eqdeploy.quant.elastic_quantizer import ElasticQuantizer
from eqdeploy.supernet.inputs import call, to_inputs
from eqdeploy.supernet.modes import evaluation_mode
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.float_weights import load_float_weights
from eqdeploy.training.objective import Objective, load_loss, make_objective
from eqdeploy.training.optimizer import first_not_finite
from eqdeploy.training.settings import Guidance
from eqdeploy.zoo import build
from eqdeploy.zoo.wrappers import unwrapped


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
    model = unwrapped(model)
    if config.model.weights is not None:
        model = copy.deepcopy(model)
        load_float_weights(model, Path(config.model.weights))
    return model


def make_supernet(config: TrainingConfig, model: nn.Module, preprocessing: InputPreprocessing) -> Supernet:
    """Convert the float model, and check that it can be trained.

    Raises:
        UnsupportedOperationError: If the model cannot be converted.
        UsageError: If a parameter is not finite, or the float network is to be trained and all are frozen.
    """
    example = to_inputs(preprocessing.example(2))
    supernet = Supernet.from_float(model, example, config.space.to_space()).eval()
    _require_trainable(config, supernet, _where(config, model))
    return supernet


def find_objective(
    config: TrainingConfig,
    model: nn.Module,
    supernet: Supernet,
    preprocessing: InputPreprocessing,
    data: LabelledImages,
    *,
    run_code: bool,
) -> Objective:
    """Find out what a supernet is trained for with some data.

    Args:
        config: Names the loss, if there is one.
        model: The float model, for messages.
        supernet: On the processor.
        preprocessing: What it reads.
        data: Training samples.
        run_code: Whether the loss may be imported.

    Raises:
        UsageError: If the loss may not be run or does not exist, or there is nothing to train with.
        ProfileError: If the network's output does not fit the labels.
    """
    loss = None if config.loss is None else (config.loss, load_loss(config.loss, run_code=run_code))
    with torch.no_grad(), evaluation_mode(supernet):
        outputs: object = call(supernet, to_inputs(preprocessing.example(2)))
    trains_float = config.float_training.epochs > 0 and config.model.supernet is None
    objective = make_objective(outputs, data, loss=loss, trains_float=trains_float, where=_where(config, model))
    if not objective.has_labels:
        if config.model.supernet is not None:
            raise UsageError(
                "the data have no labels, and a run that goes on with a supernet has no float network to learn from",
                where=data.source,
                hint="store an array 'labels', or start from float weights (--weights)",
            )
        if config.distillation.guidance is Guidance.LABELS:
            raise UsageError(
                "the data have no labels, which distillation.guidance asks for",
                where=data.source,
                hint="set distillation.guidance to progressive or float",
            )
    return objective


def _where(config: TrainingConfig, model: nn.Module) -> str:
    """The model, for messages."""
    return f"model: {config.model.architecture or type(model).__name__}"


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
