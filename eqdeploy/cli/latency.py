"""``eqdeploy latency``: times of all layers on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session
from eqdeploy.requests import LatencyRequest


def latency(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Table of times, a .csv file.")],
    profile: options.Profile = None,
    supernet: options.Supernet = None,
    model: options.Model = None,
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Measurements of each layer.")] = 50,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads inside an operator.")] = 1,
    force: options.Force = False,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Measure how long each layer takes in ONNX Runtime, for budgets of latency.

    There, widths under 8 bits take as long as 8 bits. For another device, measure on it and write the same table.
    """
    session: Session = context.obj
    from eqdeploy.project import load_project

    settings = load_project(Path.cwd(), session.note).override(
        supernet=supernet, model=model, profiles=(profile,) if profile is not None else ()
    )
    resolved = settings.resolve_request(subnet=None)
    request = LatencyRequest(
        output,
        resolved.profile,
        supernet=resolved.supernet,
        model=resolved.model,
        runs=runs,
        threads=threads,
        force=force,
    )
    with session.bounded() as progress:
        from eqdeploy import pipeline

        result = pipeline.measure_latency(request, progress)
    from eqdeploy.cli import views

    return Answer(result.to_json(), partial(views.view_latency, result))
