"""What a search found, as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from eqdeploy.report.tables import make_table
from eqdeploy.search.outcome import LayerWidths, SearchEvidence, SearchResult
from eqdeploy.text import printable

#: Layers that are shown without being asked.
_MOST_LAYERS = 30
_BAR = "█"


def view_search(result: SearchResult, *, verbose: bool) -> RenderableType:
    """Lay out what was chosen and why; every layer of a large network only if ``verbose``."""
    origin = result.origin
    limits = " and ".join(origin.budgets) or "no budget"
    head = f"{origin.supernet} for {origin.profile}, {limits}: subnet {result.subnet.digest[:12]}"
    parts: list[RenderableType] = [Text(printable(head))]
    if result.evidence is None:
        parts.append(Text("nothing to search: the profile leaves this one subnet"))
        parts.append(make_table(("cost", ""), list(result.costs.items())))
    else:
        parts += _evidence(result, result.evidence, verbose=verbose)
    parts += _widths(result.layers, verbose=verbose)
    if result.directory is not None:
        parts.append(Text(f"written to {printable(str(result.directory))}"))
    return Group(*parts)


def _evidence(result: SearchResult, evidence: SearchEvidence, *, verbose: bool) -> list[RenderableType]:
    """The rows of the report and what they rest on."""
    predictor, images = evidence.predictor, evidence.measured_on
    metrics = list(result.costs)
    rows = evidence.rows + (evidence.candidates if verbose else ())
    table = make_table(
        (
            "",
            f"predicted {predictor.target.replace('_', '-') if predictor.target == 'cross_entropy' else 'error'}",
            "cross-entropy",
            "accuracy",
            *metrics,
        ),
        [
            (
                row.name,
                row.predicted_loss,
                row.cross_entropy,
                f"{row.accuracy:.2%}",
                *(row.costs[metric] for metric in metrics),
            )
            for row in rows
        ],
    )
    gap = evidence.gap
    trust = "" if predictor.held_out_kendall is None else f", Kendall tau {predictor.held_out_kendall:.3f} held out"
    count = "" if predictor.subnets is None else f" to {predictor.subnets} subnets"
    return [
        table,
        Text(
            printable(
                f"measured on {images.images} training images of {images.data}; predictor {predictor.name} "
                f"({predictor.source}), fitted{count}{trust}"
            )
        ),
        Text(
            f"optimality gap of the additive surrogate: {gap.genetic - gap.bound:.4g} for the genetic algorithm, "
            f"{gap.chosen - gap.bound:.4g} for the chosen; it explains {gap.explained:.1%} of the predictor, by which "
            f"the genetic algorithm is {gap.gain:.1%} below the integer program"
        ),
        Text(f"Pareto front over {', '.join(evidence.front)}: {evidence.front_points} points"),
    ]


def _widths(layers: Sequence[LayerWidths], *, verbose: bool) -> list[RenderableType]:
    """A bar chart of every layer's widths; fixed ones in brackets."""
    if len(layers) > _MOST_LAYERS and not verbose:
        return [Text(f"widths of {len(layers)} layers: -v shows them")]

    def bar(bits: int, searched: bool) -> str:
        return f"{bits} {_BAR * bits}" if searched else f"{bits} (fixed)"

    return [
        make_table(
            ("layer", "weight bits", "input bits"),
            [
                (layer.layer, bar(layer.weight_bits, layer.searched[0]), bar(layer.activation_bits, layer.searched[1]))
                for layer in layers
            ],
        )
    ]
