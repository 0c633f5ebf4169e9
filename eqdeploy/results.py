"""What the pipeline answers: plain data that the command line shows and writes as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqdeploy.errors import EqDeployError
from eqdeploy.plan import DevicePlan
from eqdeploy.report import ArtifactReport, PlanSummary
from eqdeploy.validation.accuracy import Accuracy


@dataclass(frozen=True)
class ExportResult:
    """One artifact that was written.

    Attributes:
        directory: Its folder.
        report: Its report, the verdict included.
    """

    directory: Path
    report: ArtifactReport

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"directory": self.directory.as_posix(), "report": self.report.to_json()}


@dataclass(frozen=True)
class ResolvedPlan:
    """How one profile is resolved for one network.

    Attributes:
        profile_digest: SHA-256 of the profile.
        supernet: Name of the supernet.
        plan: The plan.
        average_weight_bits: Mean width of a weight, weighted by the number of weights.
        average_activation_bits: Mean width of an encoded activation, weighted by the number of values.
    """

    profile_digest: str
    supernet: str
    plan: DevicePlan
    average_weight_bits: float
    average_activation_bits: float

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``subnet`` alone is a subnet file."""
        return {
            "profile": self.plan.profile,
            "profile_digest": self.profile_digest,
            "supernet": self.supernet,
            "average_weight_bits": self.average_weight_bits,
            "average_activation_bits": self.average_activation_bits,
            "plan": PlanSummary.of(self.plan).model_dump(mode="json"),
            "subnet": self.plan.subnet.to_json(),
        }


@dataclass(frozen=True)
class EvaluationResult:
    """Accuracy on labelled data.

    Attributes:
        data: Name of the data.
        rows: One row per network that was evaluated.
        failure: The gate that was missed, if one was.
    """

    data: str
    rows: tuple[Accuracy, ...]
    failure: EqDeployError | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"data": self.data, "rows": [{"name": row.name, **row.to_json()} for row in self.rows]}


@dataclass(frozen=True)
class TrainingResult:
    """A supernet that was trained.

    Attributes:
        checkpoint: File of the supernet, None if only the float network was trained.
        float_weights: File of the float network's weights; None if the run started from a supernet.
        log: File with one line per step.
        epochs: Number of epochs that were trained in all, resumed ones included.
        rows: Accuracy of the float model and of some subnets on held-out data.
    """

    checkpoint: Path | None
    float_weights: Path | None
    log: Path
    epochs: int
    rows: tuple[Accuracy, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "checkpoint": None if self.checkpoint is None else self.checkpoint.as_posix(),
            "float_weights": None if self.float_weights is None else self.float_weights.as_posix(),
            "log": self.log.as_posix(),
            "epochs": self.epochs,
            "rows": [{"name": row.name, **row.to_json()} for row in self.rows],
        }
