"""``eqdeploy export``: from a supernet to a proven artifact for each profile."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from eqdeploy.cli import options, search_options
from eqdeploy.cli.session import Answer, Session
from eqdeploy.errors import UsageError
from eqdeploy.requests import SearchOptions


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
    search: Annotated[
        bool, typer.Option("--search", help="Search for the subnet of each profile, see eqdeploy search.")
    ] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Leave height and width of the images free, proved at two sizes.")
    ] = False,
    budget: search_options.Budgets = None,
    predictor: search_options.Predictor = None,
    latency: search_options.Latency = None,
    measurements: search_options.Measurements = None,
    samples: search_options.Samples = None,
    min_accuracy: options.MinAccuracy = None,
    max_drop: options.MaxDrop = None,
    max_export_drop: options.MaxExportDrop = None,
    min_agreement: options.MinAgreement = None,
    min_sqnr: options.MinSqnr = None,
    max_float_share: options.MaxFloatShare = None,
    seed: options.Seed = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse calibration images that do not look like training images.")
    ] = False,
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
    found = SearchOptions(tuple(budget or ()), predictor, latency, measurements, samples)
    if search and subnet is not None:
        raise UsageError("cannot be given together with --subnet", where="--search", hint="leave one of them out")
    if not search and found != SearchOptions():
        given = {"budgets": "--budget"}
        name = next(field.name for field in fields(found) if getattr(found, field.name) not in ((), None))
        raise UsageError("is for a search only", where=given.get(name, f"--{name}"), hint="add --search")
    from eqdeploy.project import load_project

    settings = load_project(Path.cwd(), session.note).override(
        supernet=supernet,
        model=model,
        data=data,
        profiles=tuple(profile or ()),
        output=out,
        min_accuracy=min_accuracy,
        max_drop=max_drop,
        max_export_drop=max_export_drop,
        min_agreement=min_agreement,
        min_sqnr=min_sqnr,
        max_float_share=max_float_share,
        seed=seed,
    )
    # Only a function that the user names now is called, never one that a file names.
    request = settings.export_request(
        subnet=subnet,
        search=found if search else None,
        force=force,
        run_code=data is not None,
        dynamic_size=dynamic_size,
        strict=strict,
    )
    with session.bounded() as progress:
        from eqdeploy import pipeline

        results = pipeline.export_profiles(request, progress)

    from eqdeploy.cli import views

    failures = [failure for result in results if (failure := result.report.failure()) is not None]
    return Answer(
        [result.to_json() for result in results],
        partial(views.view_exports, results, verbose=session.verbose),
        failures[0] if failures else None,
    )
