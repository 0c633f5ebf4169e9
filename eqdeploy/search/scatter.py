"""The picture of predicted against measured losses (EQ-Net, Figure 4)."""

from __future__ import annotations

import io
from pathlib import Path

from eqdeploy.files import write_atomically
from eqdeploy.search.agreement import Agreement, Floats
from eqdeploy.search.dependencies import require
from eqdeploy.search.predictor import Target

_LABELS = {Target.CROSS_ENTROPY: "cross-entropy", Target.ACCURACY: "top-1 error"}


def draw_scatter(path: Path, predicted: Floats, measured: Floats, target: Target, correlation: Agreement) -> None:
    """Draw one point for each subnet, as a PNG file; the same numbers give the same bytes.

    Args:
        path: The file.
        predicted: (N,) predicted losses.
        measured: (N,) measured losses.
        target: What they are.
        correlation: How well they agree.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    require("matplotlib.figure")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(measured, predicted, s=9, alpha=0.6, linewidths=0)
    lowest, highest = (float(end([*predicted, *measured])) for end in (min, max))
    axes.plot([lowest, highest], [lowest, highest], color="grey", linewidth=0.8)
    if target is Target.CROSS_ENTROPY and lowest > 0:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel(f"measured {_LABELS[target]}")
    axes.set_ylabel(f"predicted {_LABELS[target]}")
    kendall, pearson = correlation.kendall.value, correlation.pearson.value
    axes.set_title(f"{len(measured)} held-out subnets: τ {kendall:.3f}, Pearson {pearson:.3f}", fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    write_atomically(path, content.getvalue())
