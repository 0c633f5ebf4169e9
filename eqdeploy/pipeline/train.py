"""``eqdeploy train``: a supernet from a configuration."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from torch import nn

from eqdeploy.errors import UsageError
from eqdeploy.progress import Progress
from eqdeploy.requests import TrainRequest
from eqdeploy.results import TrainingResult
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.trainer import train as run_training
from eqdeploy.validation.accuracy import Accuracy
from eqdeploy.yaml_file import suggest
from eqdeploy.zoo import load_factory

_SUFFIX = ".train.yaml"


def shipped_configurations() -> tuple[str, ...]:
    """Names of the training configurations that come with eqdeploy."""
    folder = resources.files("eqdeploy.embedded")
    return tuple(sorted(entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX)))


def train(request: TrainRequest, progress: Progress) -> TrainingResult:
    """Train a supernet and write its checkpoint and log.

    Raises:
        ProfileError: If the configuration is invalid.
        UsageError: If there is no such configuration.
        DataError: If the data cannot be loaded or do not fit the network.
        TrainingError: If training cannot go on.
        OutputError: If a file exists already or cannot be written.
    """
    config = TrainingConfig.load(_configuration_path(request.configuration))
    config = config.overridden(data=request.data, seed=request.seed)
    result = run_training(
        config,
        request.output,
        resume=request.resume,
        overwrite=request.force,
        model=None if request.model is None else _own_model(request.model, config.seed),
        progress=progress,
    )
    grid = result.evaluation
    float_correct = round(result.float_accuracy * grid.images)
    rows = [Accuracy("float, before quantization-aware training", float_correct, grid.images)]
    rows.append(Accuracy("supernet's weights without quantization", grid.float_correct, grid.images))
    rows += [Accuracy(row.name, row.correct, row.images) for row in grid.rows]
    return TrainingResult(
        checkpoint=result.checkpoint,
        log=result.log,
        epochs=config.float_training.epochs + config.supernet_training.epochs,
        rows=tuple(rows),
    )


def _own_model(reference: str, seed: int) -> nn.Module:
    """Make the user's model with weights drawn from the run's seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_factory(reference)


def _configuration_path(reference: str) -> Path:
    """File of a configuration, given by the name of a shipped one or by its path."""
    names = shipped_configurations()
    if reference in names:
        return Path(str(resources.files("eqdeploy.embedded") / f"{reference}{_SUFFIX}"))
    if not Path(reference).exists():
        raise UsageError(
            "no such training configuration",
            where=reference,
            hint=suggest(reference, names) or f"give a YAML file or one of: {', '.join(names)}",
        )
    return Path(reference)
