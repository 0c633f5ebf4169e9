"""All commands in one application."""

from __future__ import annotations

from typing import Annotated

import typer

from eqdeploy import __version__
from eqdeploy.cli import (
    evaluate,
    export,
    fit,
    inspect,
    latency,
    options,
    profiles,
    resolve,
    sample,
    search,
    train,
    validate,
)
from eqdeploy.errors import UsageError

application = typer.Typer(
    name="eqdeploy",
    help="Train one elastic quantized network, then ship a proven model to every device from it.",
    epilog="Settings are read from eqdeploy.yaml in the working directory; options take their place.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        typer.echo(f"eqdeploy {__version__}")
        raise typer.Exit


@application.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    if context.invoked_subcommand is None:
        raise UsageError("no command given", hint="'eqdeploy --help' lists them")
    context.obj.command = context.invoked_subcommand


application.command("export")(export.export)
application.command("resolve")(resolve.resolve)
application.command("validate")(validate.validate)
application.command("eval")(evaluate.evaluate)
application.command("train")(train.train)
application.command("sample")(sample.sample)
application.command("fit")(fit.fit)
application.command("search")(search.search)
application.command("latency")(latency.latency)
application.command("inspect")(inspect.inspect)
application.add_typer(profiles.commands, name="profiles")
