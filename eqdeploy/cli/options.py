"""Options that several commands share, each defined once."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from eqdeploy.cli.session import Session
from eqdeploy.requests import MAXIMUM_SEED


def fraction(text: str) -> float:
    """Read a number between 0 and 1.

    Raises:
        typer.BadParameter: If it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise typer.BadParameter(f"{text!r} is not a fraction between 0 and 1, e.g. 0.95 for 95 %")
    return value


def decibels(text: str) -> float:
    """Read a finite number.

    Raises:
        typer.BadParameter: If it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"{text!r} is not a number of dB, e.g. 20")
    return value


def seed(text: str) -> int:
    """Read a seed.

    Raises:
        typer.BadParameter: If it is none.
    """
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) > MAXIMUM_SEED:
        raise typer.BadParameter(f"{text[:40]!r} is not an integer from 0 to 2^63 - 1")
    return int(text)


def _remember(context: typer.Context, parameter: typer.CallbackParam, value: object) -> object:
    """Keep an option of every command in the session, wherever on the line it stands."""
    session = context.obj
    if isinstance(session, Session) and value not in (None, False):
        setattr(session, parameter.name, value)
    return value


JsonTarget = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="PATH|-",
        help="Write the result as one JSON document; - for standard output.",
        callback=_remember,
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.", callback=_remember)]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show details.", callback=_remember)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_remember)]

Supernet = Annotated[
    str | None,
    typer.Option(
        "--supernet", metavar="NAME|FILE", help="Checkpoint of the supernet. [default: digits, the one that is shipped]"
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PACKAGE.MODULE:FACTORY",
        help="Function that makes the float model, for a checkpoint of no known architecture.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="Images, labelled or not. [default: digits, those that are shipped]"),
]
Profiles = Annotated[
    list[str] | None,
    typer.Option("--profile", metavar="NAME|FILE", help="Device profile; may be repeated."),
]
Profile = Annotated[str | None, typer.Option("--profile", metavar="NAME|FILE", help="Device profile.")]
Subnet = Annotated[
    Path | None,
    typer.Option("--subnet", metavar="FILE", help="Subnet that takes the place of the profile's own choice of bits."),
]
MinAccuracy = Annotated[
    float | None,
    typer.Option(
        "--min-accuracy", metavar="X", parser=fraction, help="Fail below this top-1 accuracy, a fraction (0.95)."
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="X",
        parser=fraction,
        help="Fail above this loss against the float model, a fraction (0.01).",
    ),
]
MaxExportDrop = Annotated[
    float | None,
    typer.Option(
        "--max-export-drop",
        metavar="X",
        parser=fraction,
        help="Accept this loss of accuracy against the simulated subnet beyond chance, a fraction. [default: 0]",
    ),
]
MinAgreement = Annotated[
    float | None,
    typer.Option(
        "--min-agreement",
        metavar="X",
        parser=fraction,
        help="Fail below this fraction of the simulated subnet's decisions. [default: 0.75]",
    ),
]
MinSqnr = Annotated[
    float | None,
    typer.Option(
        "--min-sqnr",
        metavar="DB",
        parser=decibels,
        help="Fail where an output or a quantized tensor is nearer to noise than this. [default: by its widths]",
    ),
]
MaxFloatShare = Annotated[
    float | None,
    typer.Option(
        "--max-float-share",
        metavar="X",
        parser=fraction,
        help="Fail above this share of parameters or operations that stay float, a fraction.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", parser=seed, help="Seed of every random choice. [default: 0]"),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what an earlier run wrote.")]
