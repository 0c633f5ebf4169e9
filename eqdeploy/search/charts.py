"""Pictures of a search: the Pareto front beside uniform configurations, and the widths of every layer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eqdeploy.files import write_atomically
from eqdeploy.search.budgets import Budget, Metric
from eqdeploy.search.dependencies import require
from eqdeploy.search.outcome import LayerWidths
from eqdeploy.search.pareto import ParetoTable, PointKind
from eqdeploy.search.predictor import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOSSES = {Target.CROSS_ENTROPY: "predicted cross-entropy", Target.ACCURACY: "predicted top-1 error"}
_COSTS = {
    Metric.AVG_WEIGHT_BITS: "average weight bits",
    Metric.AVG_ACTIVATION_BITS: "average activation bits",
    Metric.MODEL_BYTES: "model bytes",
    Metric.BITOPS: "BitOps",
    Metric.LATENCY_MS: "latency in ms",
}

#: Layers that have their name beside the axis; of more only some.
_MOST_NAMES = 60
_DOTS_PER_INCH = 150


def draw_pareto(path: Path, table: ParetoTable, budgets: Sequence[Budget]) -> None:
    """Draw the front against each of its costs, as a PNG file; the same numbers give the same bytes.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    figure = _figure(5.0 * len(table.metrics), 4.0)
    limits = {budget.metric: budget.limit for budget in budgets}
    for index, metric in enumerate(table.metrics, start=1):
        axes = figure.add_subplot(1, len(table.metrics), index)
        _draw_points(axes, table, metric)
        if metric in limits:
            axes.axvline(limits[metric], color="grey", linewidth=0.8, linestyle="--", label="budget")
        axes.set_xlabel(_COSTS[metric])
        axes.set_ylabel(_LOSSES[table.target])
        if min(point.loss for point in table.points) > 0:
            axes.set_yscale("log")
        if index == 1:
            axes.legend(fontsize=8)
    _write(path, figure)


def draw_bits(path: Path, layers: Sequence[LayerWidths], title: str) -> None:
    """Draw the widths of every layer's weight and input, as a PNG file; what could not be chosen is pale.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    figure = _figure(7.0, max(2.5, min(14.0, 0.22 * len(layers) + 1.0)))
    places = list(range(len(layers)))
    widest = max(max(layer.weight_bits, layer.activation_bits) for layer in layers)
    for index, (heading, color) in enumerate((("weight bits", "tab:blue"), ("input bits", "tab:orange"))):
        axes = figure.add_subplot(1, 2, index + 1)
        bits = [(layer.weight_bits, layer.activation_bits)[index] for layer in layers]
        bars = axes.barh(places, bits, color=color)
        for bar, layer in zip(bars, layers, strict=True):
            bar.set_alpha(1.0 if layer.searched[index] else 0.35)
        axes.invert_yaxis()
        axes.set_xlim(0, widest)
        axes.set_xlabel(heading)
        step = -(-len(layers) // _MOST_NAMES)
        names = [layer.layer for layer in layers[::step]]
        axes.set_yticks(places[::step], names if index == 0 else [""] * len(names), fontsize=7, parse_math=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    _write(path, figure)


def _draw_points(axes: Axes, table: ParetoTable, metric: Metric) -> None:
    """Draw the three kinds of points."""
    styles = (
        (PointKind.UNIFORM, "tab:grey", "x", 22, "uniform"),
        (PointKind.FRONT, "tab:blue", "o", 10, "Pareto front"),
        (PointKind.CHOSEN, "tab:red", "*", 110, "chosen"),
    )
    for kind, color, marker, size, label in styles:
        points = table.of(kind)
        axes.scatter(
            [point.costs[metric] for point in points],
            [point.loss for point in points],
            color=color,
            marker=marker,
            s=size,
            label=label,
        )


def _figure(width: float, height: float) -> Figure:
    """An empty picture that belongs to no window."""
    require("matplotlib.figure")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write(path: Path, figure: Figure) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    write_atomically(path, content.getvalue())
