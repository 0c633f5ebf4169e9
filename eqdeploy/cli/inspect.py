"""``eqdeploy inspect``: what a file holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from eqdeploy.cli import options
from eqdeploy.cli.session import Answer, Session


def inspect(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint, ONNX model or JSON document.")],
    json_target: options.JsonTarget = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> Answer:
    """Show what a file holds; nothing in it is run."""
    session: Session = context.obj
    with session.bounded([file]) as progress:
        from eqdeploy.inspection import inspect_file

        progress.detail(f"reading {file}")
        inspection = inspect_file(file)
    from eqdeploy.cli import views

    return Answer(inspection.to_json(), partial(views.view_inspection, inspection, verbose=session.verbose))
