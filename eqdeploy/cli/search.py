"""``eqdeploy search``: the best subnet of a device within budgets."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from eqdeploy.cli import options, search_options
from eqdeploy.cli.session import Answer, Session
from eqdeploy.requests import SearchOptions


def search(
    context: typer.Context,
    profile: options.Profile = None,
    budget: search_options.Budgets = None,
    supernet: options.Supernet = None,
    model: options.Model = None,
    data: options.Data = None,
    predictor: search_options.Predictor = None,
    latency: search_options.Latency = None,
    measurements: search_options.Measurements = None,
    samples: search_options.Samples = None,
    keep: search_options.Keep = SearchOptions.keep,
    front: search_options.Front = None,
    population: search_options.Population = SearchOptions.population,
    generations: search_options.Generations = SearchOptions.generations,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Folder that receives the files. [default: build/search/<profile>]"
        ),
    ] = None,
    seed: options.Seed = None,
    force: options.Force = False,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Search for the subnet of a device that loses least within budgets.

    Measures and fits a predictor where there is none, searches with it, measures the best on training images and
    chooses by measurement. Writes subnet.json, which export --subnet takes.
    """
    session: Session = context.obj
    from eqdeploy.project import load_project

    settings = load_project(Path.cwd(), session.note).override(
        supernet=supernet,
        model=model,
        data=data,
        profiles=(profile,) if profile is not None else (),
        seed=seed,
    )
    search = SearchOptions(
        budgets=tuple(budget or ()),
        predictor=predictor,
        latency=latency,
        measurements=measurements,
        samples=samples,
        keep=keep,
        front=tuple(front or ()),
        population=population,
        generations=generations,
    )
    # Only a function that the user names now is called, never one that a file names.
    request = settings.search_request(search, output=out, force=force, run_code=data is not None)
    with session.bounded() as progress:
        from eqdeploy import pipeline

        result = pipeline.search(request, progress)
    from eqdeploy.cli import search_view

    return Answer(result.to_json(), partial(search_view.view_search, result, verbose=session.verbose))
