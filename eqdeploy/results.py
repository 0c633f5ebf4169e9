"""What the pipeline answers: plain data that the command line shows and writes as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqdeploy.errors import EqDeployError
from eqdeploy.float_share import FloatShare
from eqdeploy.plan import DevicePlan
from eqdeploy.readable import Readable, Summary
from eqdeploy.report import ArtifactReport, PlanSummary
from eqdeploy.search.agreement import Agreement, Interval
from eqdeploy.search.outcome import SearchResult
from eqdeploy.validation.accuracy import Accuracy


@dataclass(frozen=True, repr=False)
class ExportResult(Readable):
    """One artifact that was written.

    Attributes:
        directory: Its folder.
        report: Its report, the verdict included.
        search: The search that chose its subnet, None without one.
    """

    directory: Path
    report: ArtifactReport
    search: SearchResult | None = None

    @property
    def failure(self) -> EqDeployError | None:
        """The first level of its proof that failed, as an error to raise; None if none did."""
        return self.report.failure()

    def summary(self) -> Summary:
        """Verdict and folder, and the levels of the proof."""
        report = self.report.summary()
        return Summary(f"{report.line}, in {self.directory}", report.columns, report.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data; without a search there is no such key."""
        document = {"directory": self.directory.as_posix(), "report": self.report.to_json()}
        return document if self.search is None else {**document, "search": self.search.to_json()}


@dataclass(frozen=True, repr=False)
class ResolvedPlan(Readable):
    """How one profile is resolved for one network.

    Attributes:
        profile_digest: SHA-256 of the profile.
        supernet: Name of the supernet.
        plan: The plan.
        average_weight_bits: Mean width of a weight, weighted by the number of weights.
        average_activation_bits: Mean width of an encoded activation, weighted by the number of values.
        float_share: What stays float.
    """

    profile_digest: str
    supernet: str
    plan: DevicePlan
    average_weight_bits: float
    average_activation_bits: float
    float_share: FloatShare

    def summary(self) -> Summary:
        """Averages, and what every layer and tensor gets."""
        line = (
            f"{self.plan.profile} for {self.supernet}: weights {self.average_weight_bits:.2f} bits, "
            f"activations {self.average_activation_bits:.2f} bits on average"
        )
        plan = PlanSummary.of(self.plan)
        weights = ((f"{row.layer} (weight)", row.device, row.reason) for row in plan.weights)
        tensors = ((row.tensor, row.device or "float", row.reason) for row in plan.tensors)
        return Summary(line, ("tensor", "device", "reason"), (*weights, *tensors))

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``subnet`` alone is a subnet file."""
        return {
            "profile": self.plan.profile,
            "profile_digest": self.profile_digest,
            "supernet": self.supernet,
            "average_weight_bits": self.average_weight_bits,
            "average_activation_bits": self.average_activation_bits,
            "float_share": self.float_share.to_json(),
            "plan": PlanSummary.of(self.plan).model_dump(mode="json"),
            "subnet": self.plan.subnet.to_json(),
        }


@dataclass(frozen=True, repr=False)
class EvaluationResult(Readable):
    """Accuracy on labelled data.

    Attributes:
        data: Name of the data.
        rows: One row per network that was evaluated.
        failure: The gate that was missed, if one was.
    """

    data: str
    rows: tuple[Accuracy, ...]
    failure: EqDeployError | None = None

    def summary(self) -> Summary:
        """The accuracies."""
        shares = ", ".join(f"{row.name} {row.fraction:.2%}" for row in self.rows)
        failure = "" if self.failure is None else f"; {self.failure}"
        return Summary(f"{self.data}: {shares}{failure}", _ACCURACY, _accuracies(self.rows))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"data": self.data, "rows": [{"name": row.name, **row.to_json()} for row in self.rows]}


@dataclass(frozen=True, repr=False)
class TrainingResult(Readable):
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

    def summary(self) -> Summary:
        """What was written, and the accuracies."""
        line = f"{self.checkpoint or self.float_weights}: trained for {self.epochs} epochs"
        return Summary(line, _ACCURACY if self.rows else (), _accuracies(self.rows))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "checkpoint": None if self.checkpoint is None else self.checkpoint.as_posix(),
            "float_weights": None if self.float_weights is None else self.float_weights.as_posix(),
            "log": self.log.as_posix(),
            "epochs": self.epochs,
            "rows": [{"name": row.name, **row.to_json()} for row in self.rows],
        }


@dataclass(frozen=True)
class SamplingResult:
    """Subnets that were measured.

    Attributes:
        store: Folder of the measurements.
        supernet: Name of the supernet.
        data: Name of the images.
        subnets: Number of subnets that were asked for, all of which the folder holds.
        measured: How many of them were measured by this very run.
        seconds: Time that it took.
        images: Images that each was judged on.
        calibration_images: Images that BatchNorm was calibrated on for each.
        accuracies: Top-1 accuracy of each, fractions between 0 and 1.
        cross_entropies: Mean cross-entropy of each, in nats.
    """

    store: Path
    supernet: str
    data: str
    subnets: int
    measured: int
    seconds: float
    images: int
    calibration_images: int
    accuracies: tuple[float, ...]
    cross_entropies: tuple[float, ...]

    @property
    def subnets_per_second(self) -> float | None:
        """Subnets measured in a second of this run, None if there were none to measure."""
        return self.measured / self.seconds if self.measured else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "store": self.store.as_posix(),
            "supernet": self.supernet,
            "data": self.data,
            "subnets": self.subnets,
            "measured": self.measured,
            "seconds": self.seconds,
            "subnets_per_second": self.subnets_per_second,
            "images": self.images,
            "calibration_images": self.calibration_images,
            "accuracy": _range(self.accuracies),
            "cross_entropy": _range(self.cross_entropies),
        }


@dataclass(frozen=True)
class FitRow:
    """How well something predicts the loss of held-out subnets.

    Attributes:
        name: What predicts.
        agreement: Correlations of predicted and measured losses.
        normalized_pearson: Pearson's correlation on the scale on which is predicted: of logarithms of cross-entropies,
            of log-odds of errors.
    """

    name: str
    agreement: Agreement
    normalized_pearson: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            **self.agreement.to_json(),
            "normalized_pearson": self.normalized_pearson.to_json(),
        }


@dataclass(frozen=True)
class FitResult:
    """A predictor that was fitted.

    Attributes:
        predictor: Its file; it was fitted to all subnets.
        picture: Predicted against measured losses of the held-out subnets.
        target: What is predicted.
        supernet: Name of the supernet.
        training: Number of subnets that the predictor in ``rows`` was fitted to.
        held_out: Number of other subnets that ``rows`` are about.
        rows: The predictor, what it is compared with, and one half of the images for the other.
    """

    predictor: Path
    picture: Path
    target: str
    supernet: str
    training: int
    held_out: int
    rows: tuple[FitRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "predictor": self.predictor.as_posix(),
            "picture": self.picture.as_posix(),
            "target": self.target,
            "supernet": self.supernet,
            "training": self.training,
            "held_out": self.held_out,
            "rows": [row.to_json() for row in self.rows],
        }


@dataclass(frozen=True)
class LatencyResult:
    """Times of all layers that were measured.

    Attributes:
        table: The file.
        profile: Name of the profile.
        supernet: Name of the supernet.
        rows: Number of rows: one for each layer, width of its weight and width of its input.
        milliseconds: Median time of one image by layer, the same for all widths.
        runs: Measurements of each layer.
        threads: Threads inside an operator.
        machine: Kind of processor.
        runtime: Name and version of the runtime.
    """

    table: Path
    profile: str
    supernet: str
    rows: int
    milliseconds: Mapping[str, float]
    runs: int
    threads: int
    machine: str
    runtime: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "table": self.table.as_posix(),
            "profile": self.profile,
            "supernet": self.supernet,
            "rows": self.rows,
            "milliseconds": dict(self.milliseconds),
            "total_milliseconds": sum(self.milliseconds.values()),
            "container_bits": 8,
            "runs": self.runs,
            "threads": self.threads,
            "machine": self.machine,
            "runtime": self.runtime,
        }


def _range(values: tuple[float, ...]) -> dict[str, float]:
    """Smallest, mean and largest of some numbers."""
    return {"lowest": min(values), "mean": sum(values) / len(values), "highest": max(values)}


#: Columns of a table of accuracies.
_ACCURACY = ("network", "top-1", "correct", "of")


def _accuracies(rows: tuple[Accuracy, ...]) -> tuple[tuple[str, ...], ...]:
    """Rows of such a table."""
    return tuple((row.name, f"{row.fraction:.2%}", str(row.correct), str(row.images)) for row in rows)
