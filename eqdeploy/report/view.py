"""A report as a person reads it in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from eqdeploy.plan import Coverage
from eqdeploy.report.model import ArtifactReport, FileCheck, LevelStatus, PlanSummary, Verdict
from eqdeploy.report.tables import make_table, show, show_nested, tables_of
from eqdeploy.text import printable

_STYLES = {
    LevelStatus.PASSED: "green",
    LevelStatus.FAILED: "bold red",
    LevelStatus.NOT_RUN: "yellow",
    Verdict.VALID: "bold green",
    Verdict.FAILED: "bold red",
    Verdict.UNPROVEN: "bold yellow",
}


def view_report(report: ArtifactReport, *, verbose: bool = False) -> RenderableType:
    """Lay out a report.

    Args:
        report: The report.
        verbose: Whether to show every layer, every tensor and everything that was measured.
    """
    parts: list[RenderableType] = [_headline(report), _levels(report)]
    parts.append(Text(f"coverage: {_coverage_line(report)}"))
    parts += _fused_line(report)
    inexact = [row for row in report.folding if not row.exact]
    if inexact and not verbose:
        worst = max(inexact, key=lambda row: row.relative_error)
        parts.append(
            Text(
                f"folding: {len(inexact)} of {len(report.folding)} layers quantized again, largest relative error "
                f"{worst.relative_error:.3g} in {printable(worst.layer)}"
            )
        )
    if verbose:
        parts += _everything(report)
    parts += _files_lines(report)
    parts += [Text(f"note: {printable(note)}") for note in report.notes]
    return Group(*parts)


def view_plan(plan: PlanSummary) -> list[RenderableType]:
    """Lay out a plan: one row per layer, one per tensor, each with its reason."""
    return [
        make_table(
            ("layer", "trained", "device", "folding", "reason"),
            ((row.layer, row.trained, row.device, row.folding, row.reason) for row in plan.weights),
            title=f"weights (bias {plan.bias})",
        ),
        make_table(
            ("tensor", "coverage", "source", "device", "reason"),
            (
                (
                    row.tensor,
                    row.coverage,
                    f"{row.source} {row.shares_with}" if row.shares_with else row.source,
                    row.device,
                    row.reason,
                )
                for row in plan.tensors
            ),
            title="tensors",
        ),
    ]


def _headline(report: ArtifactReport) -> Text:
    """Profile and verdict."""
    made_from = report.provenance
    line = Text(f"{printable(made_from.profile)}: ")
    line.append(str(report.verdict), style=_STYLES[report.verdict])
    line.append(
        f"  (supernet {printable(made_from.supernet)}, data {printable(made_from.data)}, seed {made_from.seed})"
    )
    return line


def _levels(report: ArtifactReport) -> RenderableType:
    """One line per level of validation."""
    lines: list[Text] = []
    for name, level in report.levels.items():
        line = Text(f"  {name.replace('_', ' '):<11} ")
        line.append(f"{str(level.status).replace('_', ' '):<8}", style=_STYLES[level.status])
        line.append(f" {printable(level.summary)}")
        lines.append(line)
    return Group(*lines)


def _coverage_line(report: ArtifactReport) -> str:
    """How many tensors of each kind there are."""
    counts = report.coverage.counts
    kinds = ", ".join(
        f"{counts[kind]} {str(kind).replace('_', ' ')}"
        for kind in Coverage
        if counts.get(kind) or kind is Coverage.QUANTIZED
    )
    return f"{report.coverage.total} tensors: {kinds}"


def _fused_line(report: ArtifactReport) -> list[RenderableType]:
    """What the runtime makes of the model when it optimizes most, if that was found out."""
    level, operators = next(reversed(report.operators.items()), ("", None))
    if not isinstance(operators, dict):
        return []
    kept = operators.get("float")
    remaining = f"{len(kept)} operators stay float" if isinstance(kept, list) and kept else "nothing stays float"
    return [Text(printable(f"fused at level {level}: {show_nested(operators.get('fused'))}; {remaining}"))]


def _files_lines(report: ArtifactReport) -> list[RenderableType]:
    """How many files were written again or compared, and which were not looked into."""
    if not report.files:
        return []
    names = {check: [row.file for row in report.files if row.check is check] for check in FileCheck}
    rederived, compared, left = (names[check] for check in FileCheck)
    text = f"files: {len(rederived)} written again and the same, {len(compared)} compared"
    return [Text(printable(f"{text}, not covered: {', '.join(left) if left else 'none'}"))]


def _everything(report: ArtifactReport) -> list[RenderableType]:
    """All tables."""
    parts = view_plan(report.plan)
    parts.append(
        make_table(
            ("layer", "method", "exact", "relative error", "negated", "dead", "widened"),
            (
                (
                    row.layer,
                    row.method,
                    show(row.exact),
                    row.relative_error,
                    row.negated_channels,
                    row.dead_channels,
                    row.widened_channels,
                )
                for row in report.folding
            ),
            title="folding",
        )
    )
    rows = ((row.file, row.check, row.detail) for row in report.files)
    parts.append(make_table(("file", "check", "detail"), rows, title="files"))
    for name, level in report.levels.items():
        parts += tables_of(level.details, name)
    parts += tables_of(report.operators, "operators")
    return parts
