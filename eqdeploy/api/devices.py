"""What a device gets of a supernet: resolved, searched for, exported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from eqdeploy.api.arguments import GIVEN_BY_PROFILE, SILENT, path, require, texts
from eqdeploy.progress import Progress
from eqdeploy.requests import (
    CALIBRATION_IMAGES,
    DEFAULT_DATA,
    DEFAULT_OUTPUT,
    DEFAULT_SUPERNET,
    MAXIMUM_SEED,
    PARITY_IMAGES,
    ExportRequest,
    Gates,
    ModelFactory,
    ResolveRequest,
    SearchOptions,
    SearchRequest,
)

if TYPE_CHECKING:
    from eqdeploy.results import ExportResult, ResolvedPlan
    from eqdeploy.search.outcome import SearchResult


def resolve_profile(
    profile: str | Path,
    *,
    supernet: str | Path = DEFAULT_SUPERNET,
    model: ModelFactory | None = None,
    subnet: str | Path | None = None,
    progress: Progress = SILENT,
) -> ResolvedPlan:
    """Tell what a device would get, layer by layer and tensor by tensor, each with its reason; computes no number.

    Args:
        profile: Device profile.
        supernet: Supernet to resolve it for.
        model: Makes the float network, where the checkpoint does not name a known one.
        subnet: Subnet file, in the place of the profile's own choice of bits.
        progress: Who is told what is being done.

    Raises:
        ProfileError: If the profile or the subnet is invalid, or the supernet cannot serve it.
        CheckpointError: If the supernet cannot be loaded.

    Example:
        >>> resolved = eqdeploy.resolve_profile("snpe-dsp", supernet="digits")
        >>> resolved
        <ResolvedPlan snpe-dsp for digits: weights 8.00 bits, activations 8.00 bits on average>
        >>> eqdeploy.resolve_profile("snpe-dps")
        Traceback (most recent call last):
        eqdeploy.errors.ProfileError: there is no profile 'snpe-dps' (did you mean snpe-dsp? ...)
    """
    from eqdeploy import pipeline

    return pipeline.resolve_profile(ResolveRequest(str(profile), str(supernet), model, path(subnet)), progress)


def search_subnet(
    profile: str | Path,
    *,
    budgets: str | Iterable[str] = (),
    predictor: str | Path | None = None,
    latency: str | Path | None = None,
    measurements: str | Path | None = None,
    samples: int | None = None,
    keep: int = 10,
    front: Iterable[str] = (),
    population: int = 100,
    generations: int = 500,
    supernet: str | Path = DEFAULT_SUPERNET,
    model: ModelFactory | None = None,
    data: str | Path = DEFAULT_DATA,
    output: str | Path | None = None,
    workspace: str | Path = DEFAULT_OUTPUT,
    force: bool = False,
    seed: int = 0,
    run_code: bool = False,
    progress: Progress = SILENT,
) -> SearchResult:
    """Search for the subnet of a device that loses least within budgets.

    Args:
        profile: Device profile, which says what the device allows.
        budgets: Limits such as ``"avg_weight_bits<=3.5"``, one or several that hold together.
        predictor: File of a predictor; None for the shipped one of the supernet and the data, or one that is fitted to
            measurements.
        latency: CSV file of measured times of each layer, for budgets of ``latency_ms``.
        measurements: Folder of measurements to fit a predictor to; None for one beside the output.
        samples: Number of subnets that the folder has to hold.
        keep: How many of the genetic algorithm's best are truly measured.
        front: Metrics of the Pareto front; that of the first budget by default.
        population: Subnets that are evaluated in each generation.
        generations: Number of generations.
        supernet: Supernet to search.
        model: Makes the float network, where the checkpoint does not name a known one.
        data: Labelled data; only its training images are used.
        output: Folder that receives the files; None for ``search/<profile>`` in ``workspace``.
        workspace: Folder of what several runs share.
        force: Whether what an earlier search wrote may be replaced.
        seed: Seed of the search. Which subnets and images are measured does not depend on it.
        run_code: Whether ``data`` may be ``"package.module:function"``.
        progress: Who is told what is being done.

    Returns:
        The subnet with its costs; ``directory / "subnet.json"`` is what ``export`` takes as ``subnet``.

    Raises:
        ProfileError: If the profile is invalid, or the supernet cannot serve it.
        CheckpointError: If the supernet or the predictor cannot be loaded.
        UsageError: If a budget is none or nothing keeps it, or an option is out of range.
        DataError: If the images cannot be loaded, are unlabelled or too few.
        OutputError: If the folder exists or cannot be written.
        MissingDependencyError: If pymoo, scipy or matplotlib are not installed.

    Example:
        >>> eqdeploy.search_subnet("onnxruntime-x86", budgets="avg_weight_bits<=0.5")
        Traceback (most recent call last):
        eqdeploy.errors.UsageError: --budget: no subnet for onnxruntime-x86 keeps avg_weight_bits<=0.5 (...)
    """
    from eqdeploy import pipeline

    require("seed", seed, 0, MAXIMUM_SEED)
    options = SearchOptions(
        budgets=texts(budgets),
        predictor=path(predictor),
        latency=path(latency),
        measurements=path(measurements),
        samples=samples,
        keep=keep,
        front=texts(front),
        population=population,
        generations=generations,
    )
    request = SearchRequest(
        profile=str(profile),
        options=options,
        supernet=str(supernet),
        model=model,
        data=str(data),
        output=path(output),
        workspace=Path(workspace),
        force=force,
        seed=seed,
        run_code=run_code,
    )
    return pipeline.search(request, progress)


def export(
    profile: str | Path,
    *,
    supernet: str | Path = DEFAULT_SUPERNET,
    model: ModelFactory | None = None,
    data: str | Path = DEFAULT_DATA,
    output: str | Path = DEFAULT_OUTPUT,
    subnet: str | Path | None = None,
    search: SearchOptions | None = None,
    gates: Gates = GIVEN_BY_PROFILE,
    force: bool = False,
    seed: int = 0,
    calibration_images: int = CALIBRATION_IMAGES,
    parity_images: int = PARITY_IMAGES,
    dynamic_size: bool = False,
    run_code: bool = False,
    strict: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Export a supernet for a device, and prove the files that are written.

    An artifact whose proof fails is written, too: its report says why, and so does ``failure`` of the result.

    Args:
        profile: Device profile.
        supernet: Supernet to export.
        model: Makes the float network, where the checkpoint does not name a known one.
        data: Calibration images, which also give accuracy where they are labelled.
        output: Folder that receives the artifact, a folder with the profile's name.
        subnet: Subnet file, in the place of the profile's own choice of bits.
        search: How to search for a subnet instead, e.g. ``SearchOptions(budgets=("avg_weight_bits<=3",))``.
        gates: Limits that the artifact is judged by, e.g. ``Gates(max_drop=0.01)``.
        force: Whether an existing artifact may be replaced.
        seed: Seed of every random choice.
        calibration_images: Largest number of images used for calibration.
        parity_images: Largest number of images used for comparing integer codes.
        dynamic_size: Whether height and width of the images are free in the files, where the network allows it.
        run_code: Whether ``data`` may be ``"package.module:function"``.
        strict: Whether to refuse calibration images that do not look like training images.
        progress: Who is told what is being done.

    Raises:
        ProfileError: If the profile or the subnet is invalid, or the supernet cannot serve it.
        CheckpointError: If the supernet cannot be loaded.
        DataError: If the images cannot be loaded or do not fit, or are refused by ``strict``.
        OutputError: If the artifact exists or cannot be written.
        UsageError: If a subnet is given and searched for, or an option is out of range.
        MissingDependencyError: If a package is not installed that the search needs.

    Example:
        >>> result = eqdeploy.export("snpe-dsp", output="build")  # doctest: +SKIP
        >>> result  # doctest: +SKIP
        <ExportResult snpe-dsp: valid, in build/snpe-dsp>
        >>> result.failure is None  # doctest: +SKIP
        True
    """
    from eqdeploy import pipeline

    require("seed", seed, 0, MAXIMUM_SEED)
    require("calibration_images", calibration_images, 1)
    require("parity_images", parity_images, 1)
    request = ExportRequest(
        profiles=(str(profile),),
        supernet=str(supernet),
        model=model,
        data=str(data),
        output=Path(output),
        subnet=path(subnet),
        search=search,
        gates=gates,
        force=force,
        seed=seed,
        calibration_images=calibration_images,
        parity_images=parity_images,
        dynamic_size=dynamic_size,
        run_code=run_code,
        strict=strict,
    )
    (result,) = pipeline.export_profiles(request, progress)
    return result
