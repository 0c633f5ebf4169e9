"""What a search answers: plain data that the command line shows and ``search.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eqdeploy.readable import Readable, Summary
from eqdeploy.subnet import SubnetConfig

SEARCH_FORMAT = "eqdeploy-search"
SEARCH_SCHEMA = 1

#: Names of the rows of a report.
CHOSEN = "chosen"
GENETIC = "genetic algorithm"
PROGRAM = "integer program"
UNIFORM = "uniform"
RANDOM = "random"


@dataclass(frozen=True)
class SearchRow:
    """A subnet that was measured, or the mean of several.

    Attributes:
        name: What it is.
        predicted_loss: The predicted loss, of the predictor's target.
        uncertainty: Standard deviation of the ensemble's members.
        cross_entropy: Measured mean cross-entropy in nats.
        accuracy: Measured top-1 accuracy, a fraction.
        costs: Cost by metric.
        digest: SHA-256 of the subnet; None for a mean.
    """

    name: str
    predicted_loss: float
    uncertainty: float
    cross_entropy: float
    accuracy: float
    costs: Mapping[str, float]
    digest: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "costs": dict(self.costs)}


@dataclass(frozen=True)
class LayerWidths:
    """Widths of one layer on the device.

    Attributes:
        layer: Its name.
        weight_bits: Width of its weight, as trained.
        activation_bits: Width of the tensor that it reads.
        searched: Whether the width of the weight and that of the input could be chosen.
    """

    layer: str
    weight_bits: int
    activation_bits: int
    searched: tuple[bool, bool]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "layer": self.layer,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "weight_searched": self.searched[0],
            "activation_searched": self.searched[1],
        }


@dataclass(frozen=True)
class OptimalityGap:
    """How far the search can be from the best there is.

    What a predictor of any shape can promise at best nobody can prove. The sum of what each choice adds to it on
    average, the surrogate, has a proven optimum under the budgets. Surrogate losses are on the scale on which the
    predictor works: logarithms of cross-entropies, or log-odds of errors.

    Attributes:
        explained: Share of the predictor's variance over random subnets that the surrogate explains, at most 1.
        bound: No subnet that keeps the budgets has a smaller surrogate loss.
        program: Surrogate loss of the integer program's subnet, equal to the bound where it was solved to the end.
        genetic: Surrogate loss of the genetic algorithm's best subnet.
        chosen: Surrogate loss of the chosen subnet.
        gain: By how much the genetic algorithm's best has a smaller predicted loss than the integer program's subnet,
            as a share of the latter.
    """

    explained: float
    bound: float
    program: float
    genetic: float
    chosen: float
    gain: float

    def to_json(self) -> dict[str, float]:
        """Plain data, with the gap of the genetic algorithm and of the chosen subnet."""
        return {**asdict(self), "genetic_gap": self.genetic - self.bound, "chosen_gap": self.chosen - self.bound}


@dataclass(frozen=True)
class PredictorRecord:
    """Which predictor a search went by.

    Attributes:
        source: ``"file"`` that was given, ``"shipped"``, or ``"fitted"`` to measurements by the search itself.
        name: Name of its file.
        digest: SHA-256 of its file.
        target: What it predicts: ``"cross_entropy"`` or ``"accuracy"``.
        subnets: How many measured subnets it was fitted to, None if it does not say.
        held_out_kendall: Rank correlation with held-out subnets, None if it does not say.
    """

    source: str
    name: str
    digest: str
    target: str
    subnets: int | None
    held_out_kendall: float | None


@dataclass(frozen=True)
class MeasuredOn:
    """The images that decided; training images, all of them.

    Attributes:
        data: Name of the data.
        data_digest: SHA-256 of all its training images.
        images: Number of images that subnets were judged on.
        calibration_images: Number of other images that BatchNorm was calibrated on.
        seed: Seed that drew both.
    """

    data: str
    data_digest: str
    images: int
    calibration_images: int
    seed: int


@dataclass(frozen=True)
class SearchOrigin:
    """What a search was about.

    Attributes:
        profile: Name of the device profile.
        profile_digest: SHA-256 of the profile.
        supernet: Name of the supernet.
        supernet_digest: SHA-256 of the checkpoint.
        seed: Seed of the search.
        budgets: Limits, as they are written.
        settings: Settings of the search by name.
        latency_digest: SHA-256 of the table of times, None without one.
        versions: Versions of the programs that can change a number.
    """

    profile: str
    profile_digest: str
    supernet: str
    supernet_digest: str
    seed: int
    budgets: tuple[str, ...]
    settings: Mapping[str, Any]
    latency_digest: str | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class SearchEvidence:
    """Why a subnet was chosen.

    Attributes:
        predictor: What it was searched with.
        measured_on: What it was chosen on.
        rows: The chosen subnet beside what it is compared with.
        candidates: Every subnet that was measured.
        gap: How far from the best there is.
        evaluations: Subnets that the genetic algorithm asked the predictor about.
        front: Metrics of the Pareto front.
        front_points: Number of its points.
    """

    predictor: PredictorRecord
    measured_on: MeasuredOn
    rows: tuple[SearchRow, ...]
    candidates: tuple[SearchRow, ...]
    gap: OptimalityGap
    evaluations: int
    front: tuple[str, ...]
    front_points: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "predictor": asdict(self.predictor),
            "measured_on": asdict(self.measured_on),
            "rows": [row.to_json() for row in self.rows],
            "candidates": [row.to_json() for row in self.candidates],
            "gap": self.gap.to_json(),
            "evaluations": self.evaluations,
            "front": {"metrics": list(self.front), "points": self.front_points},
        }


@dataclass(frozen=True, repr=False)
class SearchResult(Readable):
    """The subnet that a search chose.

    Attributes:
        origin: What was searched.
        subnet: The chosen subnet.
        subnets: How many subnets the device allows; 1 where there was nothing to search.
        genes: How many widths could be chosen.
        costs: Its cost by metric.
        layers: Its widths, layer by layer.
        evidence: Why it was chosen; None where there was nothing to search.
        directory: Folder that holds the files; None while there is none.
    """

    origin: SearchOrigin
    subnet: SubnetConfig
    subnets: int
    genes: int
    costs: Mapping[str, float]
    layers: tuple[LayerWidths, ...]
    evidence: SearchEvidence | None
    directory: Path | None = None

    def summary(self) -> Summary:
        """Costs, and the widths of all layers."""
        costs = ", ".join(f"{metric} {cost:.6g}" for metric, cost in self.costs.items())
        line = f"{self.origin.profile} for {self.origin.supernet}: {costs}"
        widths = ((row.layer, str(row.weight_bits), str(row.activation_bits)) for row in self.layers)
        return Summary(line, ("layer", "weight bits", "input bits"), tuple(widths))

    def document(self) -> dict[str, Any]:
        """Content of ``search.json``: nothing of when and where it was written."""
        origin = {
            **asdict(self.origin),
            "budgets": list(self.origin.budgets),
            "settings": dict(self.origin.settings),
            "versions": dict(self.origin.versions),
        }
        return {
            "format": SEARCH_FORMAT,
            "schema_version": SEARCH_SCHEMA,
            "origin": origin,
            "space": {"genes": self.genes, "subnets": self.subnets},
            "subnet_digest": self.subnet.digest,
            "costs": dict(self.costs),
            "layers": [layer.to_json() for layer in self.layers],
            "evidence": None if self.evidence is None else self.evidence.to_json(),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``subnet`` alone is a subnet file."""
        return {
            "directory": None if self.directory is None else self.directory.as_posix(),
            **self.document(),
            "subnet": self.subnet.to_json(),
        }
