"""Answers as a person reads them in a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml
from rich.console import Group, RenderableType
from rich.text import Text

from eqdeploy.cli.search_view import view_search
from eqdeploy.inspection import Inspection
from eqdeploy.report import PlanSummary
from eqdeploy.report.tables import make_table, show
from eqdeploy.report.view import view_plan, view_report
from eqdeploy.results import (
    EvaluationResult,
    ExportResult,
    FitResult,
    LatencyResult,
    ResolvedPlan,
    SamplingResult,
    TrainingResult,
)
from eqdeploy.text import byte_count, printable
from eqdeploy.validation.accuracy import Accuracy

_MOST_ROWS = 30
_LONGEST_TEXT = 160


def view_exports(results: Sequence[ExportResult], *, verbose: bool) -> RenderableType:
    """Lay out the reports of artifacts, each with its folder."""
    parts: list[RenderableType] = []
    for result in results:
        if result.search is not None:
            parts.append(view_search(replace(result.search, directory=None), verbose=verbose))
        parts += [view_report(result.report, verbose=verbose), Text(f"written to {printable(str(result.directory))}")]
    return Group(*parts)


def view_resolved(resolved: ResolvedPlan) -> RenderableType:
    """Lay out a plan with its averages."""
    share = resolved.float_share
    part = f" of the {1 - share.parameter_share:.1%} that are quantized" if share.float_parameters else ""
    head = (
        f"{resolved.plan.profile} for {resolved.supernet}: weights {resolved.average_weight_bits:.2f} bits on average"
        f"{part}, activations {resolved.average_activation_bits:.2f} bits on average"
    )
    return Group(Text(printable(head)), Text(printable(share.summary)), *view_plan(PlanSummary.of(resolved.plan)))


def view_evaluation(result: EvaluationResult) -> RenderableType:
    """Lay out accuracies."""
    return Group(Text(printable(f"top-1 accuracy on {result.data}")), _accuracies(result.rows))


def view_training(result: TrainingResult) -> RenderableType:
    """Lay out what training left."""
    return Group(
        Text(
            printable(
                f"trained for {result.epochs} epochs: {result.checkpoint or result.float_weights} (log {result.log})"
            )
        ),
        *([_accuracies(result.rows)] if result.rows else []),
    )


def view_sampling(result: SamplingResult) -> RenderableType:
    """Lay out what was measured."""
    head = (
        f"{result.subnets} subnets of {result.supernet} on {result.images} images of {result.data}, calibrated on "
        f"{result.calibration_images}: {result.store}"
    )
    speed = result.subnets_per_second
    now = "none measured now" if speed is None else f"{result.measured} measured now, {speed:.2f} a second"
    document = result.to_json()
    rows = [
        (noun, *(layout.format(document[key][end]) for end in ("lowest", "mean", "highest")))
        for noun, key, layout in (
            ("accuracy", "accuracy", "{:.2%}"),
            ("cross-entropy", "cross_entropy", "{:.5f}"),
        )
    ]
    return Group(Text(printable(head)), Text(now), make_table(("", "lowest", "mean", "highest"), rows))


def view_fit(result: FitResult) -> RenderableType:
    """Lay out how well a predictor predicts."""
    head = (
        f"{result.target} of {result.held_out} subnets of {result.supernet}, predicted from {result.training} others "
        "(with 95 % confidence intervals)"
    )
    scale = "Pearson, logarithms" if result.target == "cross_entropy" else "Pearson, log-odds"
    rows = [
        (
            row.name,
            *(
                f"{number.value:.3f} ({number.low:.3f} to {number.high:.3f})"
                for number in (
                    row.agreement.kendall,
                    row.agreement.pearson,
                    row.normalized_pearson,
                    row.agreement.spearman,
                )
            ),
        )
        for row in result.rows
    ]
    tail = f"fitted to all {result.training + result.held_out}: {result.predictor}, picture {result.picture}"
    columns = ("", "Kendall tau", "Pearson", scale, "Spearman")
    return Group(Text(printable(head)), make_table(columns, rows), Text(printable(tail)))


def view_latency(result: LatencyResult) -> RenderableType:
    """Lay out the times of layers."""
    head = (
        f"{result.supernet} for {result.profile}, median of {result.runs} runs of one image with "
        f"{result.runtime} on {result.machine}, threads: {result.threads}"
    )
    rows = [(layer, f"{time:.4f}") for layer, time in result.milliseconds.items()]
    rows.append(("all layers", f"{sum(result.milliseconds.values()):.4f}"))
    tail = (
        "ONNX Runtime computes widths under 8 bits in 8-bit containers: they cost what 8 bits cost, so that a limit of "
        "the latency cannot be kept by narrower widths. Times of other devices are for you to fill in."
    )
    table = f"{result.rows} rows, the same time for all widths of a layer: {result.table}"
    return Group(Text(printable(head)), make_table(("layer", "milliseconds"), rows), Text(printable(table)), Text(tail))


def view_inspection(inspection: Inspection, *, verbose: bool) -> RenderableType:
    """Lay out what a file holds; long lists and texts are cut unless ``verbose``."""
    facts = [(name, _cut(_plain(value), verbose)) for name, value in inspection.facts.items()]
    parts: list[RenderableType] = [
        Text(printable(f"{inspection.path}: {inspection.kind}, {byte_count(inspection.size)}")),
        make_table(("", ""), facts),
    ]
    for table in inspection.tables:
        rows = table.rows if verbose else table.rows[:_MOST_ROWS]
        if rows:
            parts.append(make_table(table.columns, rows, title=table.title))
        if len(rows) < len(table.rows):
            parts.append(Text(f"... and {len(table.rows) - len(rows)} more; -v shows all"))
    return Group(*parts)


def _plain(value: object) -> str:
    """Write a value on one line; nested ones as JSON."""
    return json.dumps(value) if isinstance(value, dict | list) else show(value)


def _cut(text: str, verbose: bool) -> str:
    """Cut a long text."""
    return text if verbose or len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def view_rows(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> RenderableType:
    """Lay out plain rows."""
    return make_table(columns, ([row[column] for column in columns] for row in rows))


def view_yaml(document: Mapping[str, object]) -> RenderableType:
    """Lay out plain data as YAML."""
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100).rstrip("\n")
    # Lines must not be broken at the terminal's width. In a group, since rich forgets the setting of a text alone.
    return Group(Text(text, no_wrap=True, overflow="ignore"))


def _accuracies(rows: Sequence[Accuracy]) -> RenderableType:
    """One row per network."""
    return make_table(
        ("network", "accuracy", "correct", rows[0].noun if rows else "images"),
        ((row.name, f"{row.fraction:.2%}", row.correct, row.images) for row in rows),
    )
