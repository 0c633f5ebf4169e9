"""Content of ``report.json``; ``docs/report.md`` explains it field by field.

The report holds no time and no path, so the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter
from pydantic import ValidationError as ModelError

from eqdeploy.errors import AccuracyError, EqDeployError, ParityError, ValidationError
from eqdeploy.files import model_error, read_bounded, write_json
from eqdeploy.json_file import refuse_repeated_keys
from eqdeploy.manifest import Provenance
from eqdeploy.plan import BatchNormFolding, BiasFormat, Coverage, DevicePlan, EncodingSource
from eqdeploy.quantized_model import FoldedLayer
from eqdeploy.readable import Readable, Summary

REPORT_FILE = "report.json"

#: The largest networks have some thousand tensors of a few hundred bytes each.
MAXIMUM_BYTES = 256 << 20


class _Model(BaseModel):
    """Base of all parts: immutable, exact types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class WeightRow(_Model):
    """What became of one layer's weight.

    Attributes:
        layer: Layer name.
        trained: Form of the supernet that is active, ``bits-granularity-symmetry-range``.
        device: Form that the device gets.
        folding: How BatchNorm was folded, None if the layer has none.
        reason: Why.
    """

    layer: str
    trained: str
    device: str
    folding: BatchNormFolding | None
    reason: str


class TensorRow(_Model):
    """What became of one tensor.

    Attributes:
        tensor: Tensor name.
        coverage: Quantized, or why not.
        source: Where its scale comes from.
        trained: Form of the supernet that is active, None if the supernet owns none.
        device: Form that the device gets, None if it gets none.
        shares_with: Tensor whose encoding it takes.
        float_readers: Operations that read the unquantized value.
        reason: Why.
    """

    tensor: str
    coverage: Coverage
    source: EncodingSource
    trained: str | None
    device: str | None
    shares_with: str | None
    float_readers: tuple[str, ...]
    reason: str


class PlanSummary(_Model):
    """What the device gets, layer by layer and tensor by tensor.

    Attributes:
        bias: Format of biases.
        minimum_scale: Smallest scale that the device accepts for an activation, 0 for none.
        power_of_two_scales: Whether every scale is a power of two.
        weights: One row per layer, in network order.
        tensors: One row per tensor, in network order.
    """

    bias: BiasFormat
    minimum_scale: float
    power_of_two_scales: bool
    weights: tuple[WeightRow, ...]
    tensors: tuple[TensorRow, ...]

    @staticmethod
    def of(plan: DevicePlan) -> PlanSummary:
        """Summarize a plan."""
        return PlanSummary(
            bias=plan.bias,
            minimum_scale=plan.minimum_scale,
            power_of_two_scales=plan.power_of_two_scales,
            weights=tuple(
                WeightRow(
                    layer=weight.layer,
                    trained=weight.trained.key,
                    device=weight.device.key,
                    folding=weight.folding,
                    reason=weight.reason,
                )
                for weight in plan.weights
            ),
            tensors=tuple(
                TensorRow(
                    tensor=tensor.tensor,
                    coverage=tensor.coverage,
                    source=tensor.source,
                    trained=tensor.trained.key if tensor.trained else None,
                    device=tensor.device.key if tensor.device else None,
                    shares_with=tensor.shares_with,
                    float_readers=tensor.float_readers,
                    reason=tensor.reason,
                )
                for tensor in plan.tensors
            ),
        )


class UnquantizedTensor(_Model):
    """A tensor without an encoding.

    Attributes:
        tensor: Tensor name.
        coverage: Kind of the reason.
        reason: The reason in words.
    """

    tensor: str
    coverage: Coverage
    reason: str


class CoverageSummary(_Model):
    """Every tensor of the network, each counted once.

    Attributes:
        total: Number of tensors.
        counts: Number of tensors of each kind; adds up to ``total``.
        unquantized: Every tensor that carries no encoding, with the reason.
    """

    total: int
    counts: dict[Coverage, int]
    unquantized: tuple[UnquantizedTensor, ...]

    @staticmethod
    def of(coverage: Mapping[str, Coverage], reasons: Mapping[str, str]) -> CoverageSummary:
        """Count tensors.

        Args:
            coverage: Kind of every tensor by name.
            reasons: Reason of every tensor by name.
        """
        counts = Counter(coverage.values())
        return CoverageSummary(
            total=len(coverage),
            counts={kind: counts[kind] for kind in Coverage},
            unquantized=tuple(
                UnquantizedTensor(tensor=name, coverage=kind, reason=reasons[name])
                for name, kind in coverage.items()
                if kind is not Coverage.QUANTIZED
            ),
        )


class FileCheck(StrEnum):
    """What was done about one file of an artifact."""

    REDERIVED = "rederived"
    COMPARED = "compared"
    NOT_COVERED = "not_covered"


class FileRow(_Model):
    """One file of an artifact.

    Attributes:
        file: Its path, with ``/`` between folders.
        check: Written again from the model and compared as a whole, compared with other files, or not looked into.
        detail: What was compared, and what is left out.
    """

    file: str
    check: FileCheck
    detail: str


class LevelStatus(StrEnum):
    """How one level of validation ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not_run"


class Level(_Model):
    """Outcome of one level of validation.

    Attributes:
        status: How it ended.
        summary: The outcome in one sentence.
        details: Everything that was measured.
    """

    status: LevelStatus
    summary: str
    details: dict[str, JsonValue] = {}

    @staticmethod
    def of(passed: bool, summary: str, details: Mapping[str, Any]) -> Level:
        """Record a level that was run.

        Args:
            passed: Whether everything held.
            summary: The outcome in one sentence.
            details: Everything that was measured, as plain JSON data.
        """
        # Through JSON, so that tuples become lists here as they would when the report is read back.
        plain = json.loads(json.dumps(dict(details), allow_nan=False))
        return Level(status=LevelStatus.PASSED if passed else LevelStatus.FAILED, summary=summary, details=plain)

    @staticmethod
    def not_run(reason: str) -> Level:
        """Record a level that could not be run, and why."""
        return Level(status=LevelStatus.NOT_RUN, summary=reason)


class CalibrationSummary(_Model):
    """What the subnet's BatchNorm statistics and ranges rest on.

    Attributes:
        images: Number of calibration images.
        float_statistics: BatchNorm statistics of the float network, the yardstick: its own, as given.
        statistics: BatchNorm statistics of the subnet: its ``own``, re-estimated on ``plain`` or on ``augmented``
            calibration images; ``none`` if the network has none.
        distances: For each that was tried, the signal-to-noise ratio of the subnet's outputs against those of the
            float network as given, in dB; 200 stands for no difference.
        reason: Why these statistics.
        probes: Whether stored inputs give the outputs that training saw.
        findings: In what the calibration images differ from those that the supernet was trained on.
    """

    images: int
    float_statistics: Literal["own"]
    statistics: Literal["own", "plain", "augmented", "none"]
    distances: dict[str, float]
    reason: str
    probes: str
    findings: tuple[str, ...]


class Verdict(StrEnum):
    """What the levels add up to."""

    VALID = "valid"
    FAILED = "failed"
    UNPROVEN = "unproven"


#: The error that tells a level's failure, for every level in the order in which failures are told.
LEVELS: Mapping[str, type[EqDeployError]] = {
    "static": ValidationError,
    "origin": ValidationError,
    "parity": ParityError,
    "distance": AccuracyError,
    "agreement": AccuracyError,
    "accuracy": AccuracyError,
    "float_share": AccuracyError,
}

#: Levels without which nothing is valid. The others need labels or decisions, which not every network has.
REQUIRED_LEVELS = ("static", "origin", "parity", "distance")


class ArtifactReport(Readable, _Model):
    """Everything about one artifact that a person or a program wants to know.

    Attributes:
        schema_version: Version of this layout.
        provenance: What the artifact was made from.
        plan: What the device gets, with reasons.
        folding: What folding BatchNorm did to each layer.
        coverage: Every tensor: quantized, or listed with a reason.
        static: Scales, zero-points, ranges and the structure of the files.
        origin: The numbers against the supernet that they were frozen from.
        parity: Integer codes of the runtime against the integer reference.
        distance: Outputs and quantized tensors against those of the float network.
        agreement: Decisions of the exported model against those of the simulated subnet.
        accuracy: Float model, simulated subnet and exported model on labelled data.
        float_share: Parameters and operations that stay float.
        operators: What the runtime fused into integer kernels, and what stayed float and why.
        files: Every file of the artifact, and what is known of it.
        calibration: What BatchNorm statistics and ranges rest on; None in reports of earlier versions.
        notes: Remarks.
    """

    schema_version: Literal[1] = 1
    provenance: Provenance
    plan: PlanSummary
    folding: tuple[FoldedLayer, ...]
    coverage: CoverageSummary
    static: Level
    origin: Level
    parity: Level
    distance: Level
    agreement: Level
    accuracy: Level
    float_share: Level
    operators: dict[str, JsonValue]
    files: tuple[FileRow, ...] = ()
    calibration: CalibrationSummary | None = None
    notes: tuple[str, ...] = ()

    @property
    def levels(self) -> dict[str, Level]:
        """All levels by name, in the order in which their failures are told."""
        return {name: getattr(self, name) for name in LEVELS}

    @property
    def verdict(self) -> Verdict:
        """Failed if a level failed, unproven if one that every valid artifact passes was not run, else valid."""
        statuses = {name: level.status for name, level in self.levels.items()}
        if LevelStatus.FAILED in statuses.values():
            return Verdict.FAILED
        unproven = any(statuses[name] is LevelStatus.NOT_RUN for name in REQUIRED_LEVELS)
        return Verdict.UNPROVEN if unproven else Verdict.VALID

    def failure(self) -> EqDeployError | None:
        """The error that tells the first level that failed, None if none did."""
        for name, level in self.levels.items():
            if level.status is LevelStatus.FAILED:
                title = "static checks" if name == "static" else name.replace("_", " ")
                return LEVELS[name](level.summary, where=f"{self.provenance.profile}: {title}")
        return None

    def summary(self) -> Summary:
        """Verdict, and the levels of the proof."""
        rows = tuple((name, str(level.status), level.summary) for name, level in self.levels.items())
        return Summary(f"{self.provenance.profile}: {self.verdict}", ("level", "status", "outcome"), rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data, the verdict included; :meth:`from_json` reads it back."""
        return {"verdict": str(self.verdict), **self.model_dump(mode="json")}

    @staticmethod
    def from_json(text: str | bytes, *, where: str) -> ArtifactReport:
        """Read a report.

        Args:
            text: JSON text.
            where: File name for error messages.

        Raises:
            ValidationError: If it is no report of this layout, or its verdict is not what its levels add up to.
        """
        try:
            document = TypeAdapter(dict[str, JsonValue]).validate_json(text)
            verdict = document.pop("verdict", None)
            report = ArtifactReport.model_validate_json(json.dumps(document, allow_nan=False))
        except ModelError as reason:
            raise model_error(reason, "a report", where, ValidationError) from reason
        except ValueError as reason:
            raise ValidationError("holds a number that is not finite", where=where) from reason
        refuse_repeated_keys(text, where, ValidationError)
        if verdict != report.verdict:
            raise ValidationError(
                f"the levels add up to {str(report.verdict)!r}, not to {verdict!r}", where=f"{where}: verdict"
            )
        return report


def write_report(directory: Path, report: ArtifactReport) -> Path:
    """Write ``report.json`` into a folder.

    Raises:
        OutputError: If the file cannot be written.
    """
    path = directory / REPORT_FILE
    write_json(path, report.to_json())
    return path


def read_report(directory: Path) -> ArtifactReport:
    """Read ``report.json`` from an artifact.

    Raises:
        ValidationError: If the file is missing or is not a report.
    """
    path = directory / REPORT_FILE
    return ArtifactReport.from_json(read_bounded(path, MAXIMUM_BYTES, ValidationError), where=str(path))


def report_json_schema() -> dict[str, Any]:
    """JSON Schema of ``report.json``."""
    schema = ArtifactReport.model_json_schema(mode="serialization")
    schema["properties"] = {
        "verdict": {
            "description": "What the levels add up to.",
            "enum": [str(verdict) for verdict in Verdict],
            "type": "string",
        },
        **schema["properties"],
    }
    schema["required"] = ["verdict", *schema["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
