"""``eqdeploy profiles``: list, show and validate device profiles."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session
from eqdeploy.errors import UsageError

commands = typer.Typer(help="List, show and validate device profiles.", rich_markup_mode=None)

Reference = Annotated[str, typer.Argument(metavar="NAME|FILE", help="Name of a shipped profile, or a YAML file.")]


@commands.callback(invoke_without_command=True)
def _profiles(
    context: typer.Context,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    if context.invoked_subcommand is None:
        raise UsageError("no command given", where="eqdeploy profiles", hint="list, show or validate")
    session: Session = context.obj
    session.command = f"profiles {context.invoked_subcommand}"


@commands.command("list")
def list_profiles(
    context: typer.Context,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """List the profiles that are shipped."""
    session: Session = context.obj
    with session.working():
        from eqdeploy.profile import load_profile, shipped_profiles

        loaded = [load_profile(name) for name in shipped_profiles()]
    from eqdeploy.cli import views

    rows = [{"name": profile.name, "device": profile.device, "description": profile.description} for profile in loaded]
    return Answer(rows, partial(views.view_rows, ("name", "device", "description"), rows))


@commands.command("show")
def show_profile(
    context: typer.Context,
    reference: Reference,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Show a profile with everything that it inherits; what is printed is a complete profile file."""
    session: Session = context.obj
    with session.bounded([reference]) as progress:
        from eqdeploy.profile import load_profile

        progress.detail(f"reading {reference}")
        profile = load_profile(reference)
    from eqdeploy.cli import views

    document = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    return Answer({**document, "digest": profile.digest}, partial(views.view_yaml, document))


@commands.command("validate")
def validate_profiles(
    context: typer.Context,
    references: Annotated[
        list[str], typer.Argument(metavar="NAME|FILE...", help="Names of shipped profiles, or YAML files.")
    ],
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Check profiles without a network."""
    session: Session = context.obj
    with session.bounded(references) as progress:
        from eqdeploy.profile import load_profile

        rows = []
        for reference in references:
            progress.detail(f"reading {reference}")
            profile = load_profile(reference)
            rows.append({"reference": reference, "name": profile.name, "digest": profile.digest})
    from eqdeploy.cli import views

    return Answer(rows, partial(views.view_rows, ("reference", "name", "digest"), rows))
