"""Options of a search, which ``search`` and ``export`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="METRIC<=LIMIT",
        help="Limit such as 'avg_weight_bits<=3.5', 'model_bytes<=200KiB' or 'bitops<=1.2G'; may be repeated.",
    ),
]
Predictor = Annotated[
    Path | None,
    typer.Option(
        "--predictor",
        metavar="FILE",
        help="Predictor that eqdeploy fit wrote. [default: the shipped one, or one that is fitted to measurements]",
    ),
]
Latency = Annotated[
    Path | None,
    typer.Option(
        "--latency", metavar="FILE", help="CSV file with a time for each layer and its widths, for latency_ms."
    ),
]
Measurements = Annotated[
    Path | None,
    typer.Option(
        "--measurements",
        metavar="DIR",
        help="Fit a predictor to the measurements in this folder, even if one is shipped; what is missing is measured. "
        "[default, without a predictor: a folder in build/measurements]",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="N",
        min=1,
        help="Fit a predictor to so many subnets, even if one is shipped. [default, without a predictor: 400, or more]",
    ),
]
Keep = Annotated[
    int, typer.Option("--keep", metavar="N", min=1, help="How many of the best predicted subnets are measured.")
]
Front = Annotated[
    list[str] | None,
    typer.Option(
        "--front",
        metavar="METRIC",
        help="Cost to trade off against the loss in the Pareto front; may be repeated. [default: the first budget's]",
    ),
]
Population = Annotated[
    int, typer.Option("--population", metavar="N", min=2, help="Subnets in each generation of the genetic algorithm.")
]
Generations = Annotated[int, typer.Option("--generations", metavar="N", min=1, help="Generations.")]
