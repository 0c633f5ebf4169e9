"""Artifacts: opening one, proving one again, measuring its accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eqdeploy.api.arguments import GIVEN_BY_PROFILE, SILENT, path, require
from eqdeploy.progress import Progress
from eqdeploy.requests import (
    CALIBRATION_IMAGES,
    DEFAULT_DATA,
    DEFAULT_SUPERNET,
    MAXIMUM_SEED,
    PARITY_IMAGES,
    EvaluateRequest,
    Gates,
    ModelFactory,
    ValidateRequest,
)

if TYPE_CHECKING:
    from eqdeploy.pipeline import Artifact
    from eqdeploy.report import ArtifactReport
    from eqdeploy.results import EvaluationResult


def open_artifact(artifact: str | Path) -> Artifact:
    """Open an artifact that may come from anywhere; every file is compared with the manifest, nothing is executed.

    Args:
        artifact: Its folder.

    Returns:
        Its report, its encodings and its manifest; ``run`` computes its model in ONNX Runtime.

    Raises:
        ValidationError: If it is not an artifact, or a file is missing, changed, added or damaged.

    Example:
        >>> artifact = eqdeploy.open_artifact("build/snpe-dsp")  # doctest: +SKIP
        >>> artifact.encodings.activations["fc"].bits  # doctest: +SKIP
        8
        >>> eqdeploy.open_artifact("build")
        Traceback (most recent call last):
        eqdeploy.errors.ValidationError: build: not an artifact of eqdeploy (it holds no manifest.json)
    """
    from eqdeploy import pipeline

    return pipeline.open_artifact(Path(artifact))


def validate(
    artifact: str | Path,
    *,
    supernet: str | Path | None = None,
    model: ModelFactory | None = None,
    data: str | Path | None = None,
    gates: Gates = GIVEN_BY_PROFILE,
    seed: int = 0,
    parity_images: int = PARITY_IMAGES,
    run_code: bool = False,
    progress: Progress = SILENT,
) -> ArtifactReport:
    """Prove an artifact again from its files alone.

    Args:
        artifact: Its folder.
        supernet: Supernet that it was exported from; None for the shipped one that it names, if it names one.
        model: Makes the float network, where the checkpoint does not name a known one.
        data: Images; None for the data that the artifact names.
        gates: Limits that take the place of those of the export.
        seed: Seed of every random choice.
        parity_images: Largest number of images used for comparing integer codes.
        run_code: Whether ``data``, where it is given, may be ``"package.module:function"``.
        progress: Who is told what is being done.

    Returns:
        The new report: ``verdict`` is what its levels add up to, ``failure()`` the first level that failed.

    Raises:
        ValidationError: If a file is missing, changed or added, or the files contradict each other.
        CheckpointError: If the supernet cannot be loaded, or is not the one that the artifact was made from.
        DataError: If the images are not at hand or do not fit.
        RuntimeRefusedError: If ONNX Runtime does not load or run the model.

    Example:
        >>> eqdeploy.validate("build/snpe-dsp")  # doctest: +SKIP
        <ArtifactReport snpe-dsp: valid>
    """
    from eqdeploy import pipeline

    require("seed", seed, 0, MAXIMUM_SEED)
    require("parity_images", parity_images, 1)
    request = ValidateRequest(
        supernet=None if supernet is None else str(supernet),
        model=model,
        data=None if data is None else str(data),
        gates=gates,
        seed=seed,
        parity_images=parity_images,
        run_code=run_code,
    )
    return pipeline.validate_artifact(Path(artifact), request, progress)


def evaluate(
    target: str | Path | None = None,
    *,
    supernet: str | Path = DEFAULT_SUPERNET,
    model: ModelFactory | None = None,
    data: str | Path = DEFAULT_DATA,
    profile: str | Path | None = None,
    subnet: str | Path | None = None,
    gates: Gates = GIVEN_BY_PROFILE,
    seed: int = 0,
    calibration_images: int = CALIBRATION_IMAGES,
    run_code: bool = False,
    progress: Progress = SILENT,
) -> EvaluationResult:
    """Measure top-1 accuracy on labelled data.

    Args:
        target: Folder of an artifact, or ONNX file; None to evaluate the supernet.
        supernet: Supernet to evaluate, or the one whose preprocessing an ONNX file needs.
        model: Makes the float network, where the checkpoint does not name a known one.
        data: Labelled data.
        profile: Profile whose subnet is evaluated beside the float network; None for the float network alone.
        subnet: Subnet file to evaluate instead.
        gates: Limits on the accuracy; ``failure`` of the result tells one that is missed.
        seed: Seed of every random choice.
        calibration_images: Largest number of images used for calibration.
        run_code: Whether ``data`` may be ``"package.module:function"``.
        progress: Who is told what is being done.

    Raises:
        UsageError: If the target does not exist, or is given together with a profile or a subnet.
        ValidationError: If the target names data outside of its folder, or is not a model.
        DataError: If the data are missing, unlabelled or do not fit.
        CheckpointError: If the supernet cannot be loaded.
        ProfileError: If profile or subnet are invalid or cannot be served.
        RuntimeRefusedError: If ONNX Runtime does not run the target.

    Example:
        >>> eqdeploy.evaluate(supernet="digits")
        <EvaluationResult digits (test): float 99.50%>
    """
    from eqdeploy import pipeline

    require("seed", seed, 0, MAXIMUM_SEED)
    require("calibration_images", calibration_images, 1)
    request = EvaluateRequest(
        target=path(target),
        supernet=str(supernet),
        model=model,
        data=str(data),
        profile=None if profile is None else str(profile),
        subnet=path(subnet),
        gates=gates,
        seed=seed,
        calibration_images=calibration_images,
        run_code=run_code,
    )
    return pipeline.evaluate(request, progress)
