"""``eqdeploy resolve``: what a device would get, and why."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session


def resolve(
    context: typer.Context,
    profile: options.Profile = None,
    supernet: options.Supernet = None,
    model: options.Model = None,
    subnet: options.Subnet = None,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Show what a device would get, each choice with its reason.

    Lists every layer's form and every tensor's encoding rule.
    """
    session: Session = context.obj
    from eqdeploy.project import load_project

    settings = load_project(Path.cwd(), session.note).override(
        supernet=supernet, model=model, profiles=(profile,) if profile is not None else ()
    )
    request = settings.resolve_request(subnet=subnet)
    with session.bounded() as progress:
        from eqdeploy import pipeline

        resolved = pipeline.resolve_profile(request, progress)
    from eqdeploy.cli import views

    return Answer(resolved.to_json(), partial(views.view_resolved, resolved))
