"""The report of an artifact: what was decided, what was proved, and the verdict that follows."""

from eqdeploy.report.model import (
    ArtifactReport,
    CalibrationSummary,
    CoverageSummary,
    FileCheck,
    FileRow,
    Level,
    LevelStatus,
    PlanSummary,
    TensorRow,
    UnquantizedTensor,
    Verdict,
    WeightRow,
    read_report,
    report_json_schema,
    write_report,
)

__all__ = [
    "ArtifactReport",
    "CalibrationSummary",
    "CoverageSummary",
    "FileCheck",
    "FileRow",
    "Level",
    "LevelStatus",
    "PlanSummary",
    "TensorRow",
    "UnquantizedTensor",
    "Verdict",
    "WeightRow",
    "read_report",
    "report_json_schema",
    "write_report",
]
