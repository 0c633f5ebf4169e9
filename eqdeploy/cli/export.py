"""``eqdeploy export``: from a supernet to a proven artifact for each profile."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session


def export(
    context: typer.Context,
    profile: options.Profiles = None,
    supernet: options.Supernet = None,
    model: options.Model = None,
    data: options.Data = None,
    out: Annotated[
        str | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Folder that receives one folder per profile. [default: build]"
        ),
    ] = None,
    subnet: options.Subnet = None,
    min_accuracy: options.MinAccuracy = None,
    max_drop: options.MaxDrop = None,
    seed: options.Seed = None,
    force: options.Force = False,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Export a supernet for devices and prove the files.

    Writes DIR/<profile>/ with the model, the device's own files, the report and a manifest.
    """
    session: Session = context.obj
    from eqdeploy.project import load_project

    settings = load_project(Path.cwd()).override(
        supernet=supernet,
        model=model,
        data=data,
        profiles=tuple(profile or ()),
        output=out,
        min_accuracy=min_accuracy,
        max_drop=max_drop,
        seed=seed,
    )
    # Only a function that the user names now is called, never one that a file names.
    request = settings.export_request(subnet=subnet, force=force, run_code=data is not None)
    with session.working() as progress:
        from eqdeploy import pipeline

        results = pipeline.export_profiles(request, progress)

    from eqdeploy.cli import views

    failures = [failure for result in results if (failure := result.report.failure()) is not None]
    return Answer(
        [result.to_json() for result in results],
        partial(views.view_exports, results, verbose=session.verbose),
        failures[0] if failures else None,
    )
