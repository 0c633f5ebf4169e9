"""``eqdeploy train``: train a supernet from a configuration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import TrainRequest


def train(
    context: typer.Context,
    configuration: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="Training configuration, e.g. digits, the one that is shipped.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder that receives the checkpoint and the log.")
    ] = Path("build/supernet"),
    model: options.Model = None,
    data: options.Data = None,
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss",
            metavar="MODULE:FUNCTION",
            help="Loss of your own, called with outputs and labels. [default: cross entropy of classes]",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            parser=options.seed,
            help="Seed of every random choice. [default: the configuration's]",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Float weights to start from, a safetensors file. [default: the configuration's]",
        ),
    ] = None,
    supernet: Annotated[
        str | None,
        typer.Option("--supernet", metavar="NAME|FILE", help="Supernet to go on training, without a float phase."),
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(
            "--probes",
            metavar="N",
            min=0,
            help="Held-out images that the checkpoint holds to check preprocessing by; 0 for none."
            " [default: the configuration's]",
        ),
    ] = None,
    float_only: Annotated[
        bool, typer.Option("--float-only", help="Stop when the float network is trained and its weights are written.")
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            "--tensorboard",
            metavar="DIR",
            help="Folder that receives curves and histograms for TensorBoard, which must be installed.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was stopped.")] = False,
    force: options.Force = False,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer | None:
    """Train an elastic supernet.

    One set of weights serves every form of its space. torchrun --nproc-per-node N -m eqdeploy train ... trains with N
    processes.
    """
    session: Session = context.obj
    request = TrainRequest(
        configuration,
        out,
        model=model,
        data=data,
        loss=loss,
        seed=seed,
        weights=weights,
        supernet=supernet,
        probes=probes,
        float_only=float_only,
        tensorboard=tensorboard,
        resume=resume,
        force=force,
    )
    with session.bounded_in_memory() as progress:
        from eqdeploy import pipeline
        from eqdeploy.cli.training_view import TrainingView
        from eqdeploy.training.workers import join_workers

        observers = () if isinstance(progress, SilentProgress) else (TrainingView(progress),)
        with join_workers() as workers:
            result = pipeline.train(request, progress, workers, observers)
    if not workers.is_main:
        return None
    from eqdeploy.cli import views

    return Answer(result.to_json(), partial(views.view_training, result))
