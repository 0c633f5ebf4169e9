"""``eqdeploy train``: a supernet from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from importlib import resources
from pathlib import Path

import torch
from torch import nn

from eqdeploy.errors import UsageError
from eqdeploy.pipeline.sources import supernet_path
from eqdeploy.progress import Progress
from eqdeploy.requests import ModelFactory, TrainRequest
from eqdeploy.results import TrainingResult
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.observer import TrainingObserver
from eqdeploy.training.tensorboard import TensorBoardLog
from eqdeploy.training.trainer import train as run_training
from eqdeploy.training.workers import ALONE, Workers
from eqdeploy.validation.accuracy import Accuracy
from eqdeploy.yaml_file import suggest
from eqdeploy.zoo import load_factory

_SUFFIX = ".train.yaml"


def shipped_configurations() -> tuple[str, ...]:
    """Names of the training configurations that come with eqdeploy."""
    folder = resources.files("eqdeploy.embedded")
    return tuple(sorted(entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX)))


def train(
    request: TrainRequest,
    progress: Progress,
    workers: Workers = ALONE,
    observers: Sequence[TrainingObserver] = (),
) -> TrainingResult:
    """Train a supernet and write its checkpoint and log.

    Args:
        request: What to train.
        progress: Who listens.
        workers: The processes that train together; all of them make this call.
        observers: Who is told every measurement, besides the event files that are asked for; of the first process
            only.

    Raises:
        ProfileError: If the configuration is invalid.
        UsageError: If there is no such configuration.
        MissingDependencyError: If event files are asked for and TensorBoard is not installed.
        CheckpointError: If the weights or the supernet to start from do not exist, are damaged or do not fit.
        DataError: If the data cannot be loaded or do not fit the network.
        TrainingError: If training cannot go on.
        OutputError: If a file exists already or cannot be written.
        ReportedError: In all processes but the first, in the place of these.
    """
    with workers.together():
        config = TrainingConfig.load(_configuration_path(request.configuration))
        supernet = None if request.supernet is None else str(supernet_path(request.supernet))
        config = config.overridden(
            data=request.data,
            seed=request.seed,
            weights=request.weights,
            supernet=supernet,
            loss=request.loss,
            probes=request.probes,
        )
        event_files = _event_files(request) if workers.is_main else None
        model = None if request.model is None else _own_model(request.model, config.seed)
    with event_files or nullcontext():
        result = run_training(
            config,
            request.output,
            resume=request.resume,
            overwrite=request.force,
            float_only=request.float_only,
            model=model,
            # Only a function that the user names now is called, never one that a file names.
            run_code=request.data is not None,
            run_loss=request.loss is not None,
            progress=progress,
            observers=(*observers, *([event_files] if event_files else [])),
            workers=workers,
        )
    rows: list[Accuracy] = []
    if result.float_accuracy is not None:
        float_correct = round(result.float_accuracy * result.images)
        rows.append(Accuracy("float, before quantization-aware training", float_correct, result.images))
    epochs = config.float_training.epochs + (0 if request.float_only else config.supernet_training.epochs)
    grid = result.evaluation
    if grid is not None:
        rows.append(Accuracy("supernet's weights without quantization", grid.float_correct, grid.images))
        rows += [Accuracy(row.name, row.correct, row.images) for row in grid.rows]
    return TrainingResult(
        checkpoint=result.checkpoint,
        float_weights=result.float_weights,
        log=result.log,
        epochs=epochs,
        rows=tuple(rows),
    )


def _event_files(request: TrainRequest) -> TensorBoardLog | None:
    """Prepare the event files that are asked for."""
    if request.tensorboard is None:
        return None
    return TensorBoardLog(request.tensorboard, resume=request.resume, overwrite=request.force)


def _own_model(reference: ModelFactory, seed: int) -> nn.Module:
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
