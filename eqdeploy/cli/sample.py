"""``eqdeploy sample``: measure subnets for a predictor."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session
from eqdeploy.requests import DEFAULT_DATA, DEFAULT_SUPERNET, SampleRequest


def sample(
    context: typer.Context,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Number of subnets.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder of the measurements; one that exists is gone on with."
        ),
    ],
    supernet: options.Supernet = None,
    model: options.Model = None,
    data: options.Data = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            metavar="N",
            min=2,
            help="Training images that subnets are judged on. [default: 10000, or all that calibration leaves]",
        ),
    ] = None,
    calibration_images: Annotated[
        int | None,
        typer.Option(
            "--calibration-images",
            metavar="N",
            min=2,
            help="Training images that BatchNorm is calibrated on. [default: 1024, at most a sixth of all]",
        ),
    ] = None,
    forms: Annotated[
        Literal["per_network", "per_layer"],
        typer.Option("--forms", help="Whether granularity and symmetry are one for a subnet or one for each layer."),
    ] = "per_network",
    seed: options.Seed = None,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer | None:
    """Measure subnets, as many as a predictor needs.

    Every subnet is calibrated and judged on training images. A run that was stopped goes on where it stood. torchrun
    --nproc-per-node N -m eqdeploy sample ... measures with N processes.
    """
    session: Session = context.obj
    from eqdeploy.project import load_project

    settings = load_project(Path.cwd(), session.note).override(supernet=supernet, model=model, data=data, seed=seed)
    request = SampleRequest(
        output,
        count,
        supernet=settings.supernet or DEFAULT_SUPERNET,
        model=settings.model,
        data=settings.data or DEFAULT_DATA,
        images=images,
        calibration_images=calibration_images,
        forms=forms,
        seed=settings.seed or 0,
        # Only a function that the user names now is called, never one that a file names.
        run_code=data is not None,
    )
    with session.bounded() as progress:
        from eqdeploy import pipeline
        from eqdeploy.training.workers import join_workers

        with join_workers() as workers:
            result = pipeline.sample(request, progress, workers)
    if not workers.is_main:
        return None
    from eqdeploy.cli import views

    return Answer(result.to_json(), partial(views.view_sampling, result))
