"""``eqdeploy fit``: a predictor from measured subnets."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session
from eqdeploy.requests import FitRequest


def fit(
    context: typer.Context,
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder that eqdeploy sample wrote.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="File of the predictor, a .safetensors file.")
    ],
    target: Annotated[
        Literal["cross_entropy", "accuracy"], typer.Option("--target", help="What is predicted.")
    ] = "cross_entropy",
    held_out: Annotated[
        int | None,
        typer.Option("--held-out", metavar="N", help="Subnets that the predictor is judged on. [default: a third]"),
    ] = None,
    seed: options.Seed = None,
    force: options.Force = False,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Fit a predictor of what a subnet loses.

    It is judged on subnets that it was not fitted to, beside ridge regression, no fit at all, and how well one half of
    the images, measured, predicts the other; a picture is drawn beside it.
    """
    session: Session = context.obj
    from eqdeploy.project import load_project

    settings = load_project(Path.cwd(), session.note).override(seed=seed)
    request = FitRequest(store, output, target, held_out=held_out, seed=settings.seed or 0, force=force)
    with session.bounded() as progress:
        from eqdeploy import pipeline

        result = pipeline.fit(request, progress)
    from eqdeploy.cli import views

    return Answer(result.to_json(), partial(views.view_fit, result))
