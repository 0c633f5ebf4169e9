"""``eqdeploy eval``: accuracy on labelled data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session


def evaluate(
    context: typer.Context,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR|FILE]", help="Artifact or ONNX file; without it the supernet is evaluated."),
    ] = None,
    profile: options.Profile = None,
    supernet: options.Supernet = None,
    model: options.Model = None,
    data: options.Data = None,
    subnet: options.Subnet = None,
    min_accuracy: options.MinAccuracy = None,
    max_drop: options.MaxDrop = None,
    seed: options.Seed = None,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Measure top-1 accuracy on labelled data.

    Evaluates an exported model, the subnet of a profile or of a file, or else the float model.
    """
    session: Session = context.obj
    from eqdeploy.project import load_project

    project = load_project(Path.cwd(), session.note)
    # A model file or an artifact may be anybody's, and so may the folder that it came in.
    settings = (project if target is None else project.without_code()).override(
        supernet=supernet, model=model, data=data, min_accuracy=min_accuracy, max_drop=max_drop, seed=seed
    )
    # Only a function that the user names now is called, never one that a file names.
    run_code = data is not None
    request = settings.evaluate_request(target=target, profile=profile, subnet=subnet, run_code=run_code)
    foreign = None if target is None else (target, request.supernet, request.data)
    with session.bounded(foreign) as progress:
        from eqdeploy import pipeline

        result = pipeline.evaluate(request, progress)
    from eqdeploy.cli import views

    return Answer(result.to_json(), partial(views.view_evaluation, result), result.failure)
