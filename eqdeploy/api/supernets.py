"""Supernets: loading one, making one of a float network, training one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from eqdeploy.api.arguments import SILENT, path, require
from eqdeploy.progress import Progress
from eqdeploy.requests import (
    DEFAULT_DATA,
    DEFAULT_SUPERNET,
    MAXIMUM_SEED,
    ConvertRequest,
    ModelFactory,
    TrainRequest,
)

if TYPE_CHECKING:
    from torch import nn

    from eqdeploy.data import InputPreprocessing
    from eqdeploy.results import TrainingResult
    from eqdeploy.supernet.checkpoint import Checkpoint


def load_supernet(
    supernet: str | Path = DEFAULT_SUPERNET, *, model: ModelFactory | None = None, progress: Progress = SILENT
) -> Checkpoint:
    """Load a supernet, and check that preprocessing and network give what they gave in training.

    Returns:
        The checkpoint: ``supernet`` is the network, a ``torch.nn.Module`` that computes in float until a subnet is
        activated; ``preprocessing`` makes its inputs; ``metadata`` says what it was made from.

    Raises:
        CheckpointError: If there is no such supernet, its file is damaged, or its probes give other outputs.
        UsageError: If the model cannot be made.

    Example:
        >>> checkpoint = eqdeploy.load_supernet("digits")
        >>> checkpoint.preprocessing.shape, len(checkpoint.metadata.classes)
        ((1, 8, 8), 10)
    """
    from eqdeploy.pipeline.sources import load_supernet as load

    return load(str(supernet), model, progress).checkpoint


def convert_float(
    model: nn.Module | ModelFactory,
    output: str | Path,
    *,
    preprocessing: InputPreprocessing,
    data: str | Path = DEFAULT_DATA,
    bits: Iterable[int] = (8,),
    calibration_images: int = 256,
    force: bool = False,
    run_code: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Make a supernet of a float network that is trained already: calibrated in seconds, not trained.

    Args:
        model: The trained network, which is copied and not changed, or a function that makes it.
        output: File of the checkpoint, ``.safetensors``.
        preprocessing: How what is stored becomes the inputs that the network was trained on, of
            :mod:`eqdeploy.data`.
        data: Calibration images; no labels are needed.
        bits: Widths that scales are found for, and that a profile can ask for, ascending. Below eight bits expect to
            lose accuracy; the report of the export says how much.
        calibration_images: Largest number of images used for finding scales.
        force: Whether an existing file may be replaced.
        run_code: Whether ``data`` may be ``"package.module:function"``.
        progress: Who is told what is being done.

    Returns:
        The file of the checkpoint: pass it as ``supernet``, and what makes the network as ``model``.

    Raises:
        UsageError: If the widths are none, or the model cannot be made.
        UnsupportedOperationError: If the network cannot be traced or converted.
        DataError: If the images cannot be loaded or do not fit.
        TrainingError: If a weight or an activation is not finite.
        OutputError: If the file exists or cannot be written.

    Example:
        >>> from torch import nn
        >>> from eqdeploy.data import DIGITS_PREPROCESSING
        >>> def make():
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> path = eqdeploy.convert_float(make(), "linear.safetensors", preprocessing=DIGITS_PREPROCESSING)
        >>> eqdeploy.resolve_profile("onnxruntime-x86", supernet=path, model=make)
        <ResolvedPlan onnxruntime-x86 for linear.safetensors: weights 8.00 bits, activations 8.00 bits on average>
    """
    from eqdeploy import pipeline

    require("calibration_images", calibration_images, 1)
    request = ConvertRequest(Path(output), str(data), tuple(bits), calibration_images, force, run_code)
    return pipeline.convert_float(model, preprocessing, request, progress)


def train(
    configuration: str | Path,
    output: str | Path,
    *,
    model: ModelFactory | None = None,
    data: str | Path | None = None,
    loss: str | None = None,
    seed: int | None = None,
    weights: str | Path | None = None,
    supernet: str | Path | None = None,
    probes: int | None = None,
    float_only: bool = False,
    tensorboard: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train a supernet; what is None stands in the configuration.

    Args:
        configuration: Training configuration, a YAML file, or the name of a shipped one.
        output: Folder that receives the checkpoint and the log.
        model: Makes the float network.
        data: Training data; ``"package.module:function"`` is imported and called.
        loss: ``"package.module:function"`` that is imported and called.
        seed: Seed of every random choice.
        weights: File with float weights to start from.
        supernet: Name of a shipped supernet, or a checkpoint, to go on training.
        probes: Number of held-out images that the checkpoint receives.
        float_only: Whether to stop when the float network is trained.
        tensorboard: Folder that receives event files for TensorBoard, None for no such files.
        resume: Whether to resume the run whose state lies in ``output``.
        force: Whether an existing result may be replaced.
        progress: Who is told what is being done.

    Raises:
        ProfileError: If the configuration is invalid.
        UsageError: If there is no such configuration, or the model or the loss cannot be made.
        MissingDependencyError: If event files are asked for and TensorBoard is not installed.
        CheckpointError: If the weights or the supernet to start from do not exist, are damaged or do not fit.
        DataError: If the data cannot be loaded or do not fit the network.
        TrainingError: If training cannot go on.
        OutputError: If a file exists already or cannot be written.

    Example:
        >>> eqdeploy.train("digit", "build/supernet")
        Traceback (most recent call last):
        eqdeploy.errors.UsageError: digit: no such training configuration (did you mean 'digits'?)
    """
    from eqdeploy import pipeline

    if seed is not None:
        require("seed", seed, 0, MAXIMUM_SEED)
    request = TrainRequest(
        configuration=str(configuration),
        output=Path(output),
        model=model,
        data=None if data is None else str(data),
        loss=loss,
        seed=seed,
        weights=None if weights is None else str(weights),
        supernet=None if supernet is None else str(supernet),
        probes=probes,
        float_only=float_only,
        tensorboard=path(tensorboard),
        resume=resume,
        force=force,
    )
    return pipeline.train(request, progress)
