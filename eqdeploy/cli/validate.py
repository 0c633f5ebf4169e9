"""``eqdeploy validate``: prove an artifact again from its files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session


def validate(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the artifact.")],
    supernet: options.Supernet = None,
    model: options.Model = None,
    data: options.Data = None,
    min_accuracy: options.MinAccuracy = None,
    max_drop: options.MaxDrop = None,
    max_export_drop: options.MaxExportDrop = None,
    min_agreement: options.MinAgreement = None,
    min_sqnr: options.MinSqnr = None,
    max_float_share: options.MaxFloatShare = None,
    seed: options.Seed = None,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Prove an artifact again from its files.

    Checks its files, its numbers, the integers that the runtime computes, and the accuracy.
    """
    session: Session = context.obj
    from eqdeploy.project import load_project

    # The artifact may be anybody's, and so may the folder that it came in: code is what the options name, no more.
    project = load_project(Path.cwd(), session.note).without_code()
    settings = project.override(
        supernet=supernet,
        model=model,
        data=data,
        min_accuracy=min_accuracy,
        max_drop=max_drop,
        max_export_drop=max_export_drop,
        min_agreement=min_agreement,
        min_sqnr=min_sqnr,
        max_float_share=max_float_share,
        seed=seed,
    )
    # Only a function that the user names now is called, never one that a file names.
    request = settings.validate_request(run_code=data is not None)
    with session.bounded() as progress:
        from eqdeploy import pipeline

        report = pipeline.validate_artifact(directory, request, progress)
    from eqdeploy.report.view import view_report

    return Answer(report.to_json(), partial(view_report, report, verbose=session.verbose), report.failure())
