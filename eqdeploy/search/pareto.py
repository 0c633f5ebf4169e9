"""The table of a Pareto front, with the uniform configurations beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.search.budgets import Metric
from eqdeploy.search.genetic import ParetoFront
from eqdeploy.search.predictor import Target
from eqdeploy.search.problem import SearchProblem
from eqdeploy.search.surrogate import Predict
from eqdeploy.subnet import SubnetConfig


class PointKind(StrEnum):
    """Why a subnet stands in the table.

    Attributes:
        FRONT: No subnet that was evaluated is better in loss and in all costs of the front.
        UNIFORM: One width for all weights and one for all activations, as near as the device allows.
        CHOSEN: What the search chose.
    """

    FRONT = "front"
    UNIFORM = "uniform"
    CHOSEN = "chosen"


@dataclass(frozen=True)
class ParetoPoint:
    """One subnet.

    Attributes:
        kind: Why it stands here.
        loss: Predicted loss.
        uncertainty: Standard deviation of the ensemble's members.
        costs: Every cost.
        subnet: The subnet.
    """

    kind: PointKind
    loss: float
    uncertainty: float
    costs: Mapping[Metric, float]
    subnet: SubnetConfig


@dataclass(frozen=True)
class ParetoTable:
    """A front and what it is compared with.

    Attributes:
        target: What the loss is.
        metrics: Costs that the front trades off.
        points: The front by ascending costs, then uniform configurations, then the chosen subnet.
    """

    target: Target
    metrics: tuple[Metric, ...]
    points: tuple[ParetoPoint, ...]

    def of(self, kind: PointKind) -> tuple[ParetoPoint, ...]:
        """The points of one kind."""
        return tuple(point for point in self.points if point.kind is kind)

    def to_csv(self) -> str:
        """One line for each point: kind, predicted loss, its uncertainty, all costs, digest of the subnet."""
        metrics = list(self.points[0].costs) if self.points else []
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["kind", "predicted_loss", "uncertainty", *(str(metric) for metric in metrics), "subnet"])
        for point in self.points:
            numbers = [point.loss, point.uncertainty, *(point.costs[metric] for metric in metrics)]
            writer.writerow([point.kind.value, *(repr(number) for number in numbers), point.subnet.digest])
        return text.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``subnet`` of a point alone is a subnet file."""
        return {
            "target": self.target.value,
            "metrics": [metric.value for metric in self.metrics],
            "points": [
                {
                    "kind": point.kind.value,
                    "predicted_loss": point.loss,
                    "uncertainty": point.uncertainty,
                    "costs": {metric.value: value for metric, value in point.costs.items()},
                    "subnet_digest": point.subnet.digest,
                    "subnet": point.subnet.to_json(),
                }
                for point in self.points
            ],
        }


def pareto_table(
    problem: SearchProblem, front: ParetoFront, chosen: NDArray[np.int64], predict: Predict, target: Target
) -> ParetoTable:
    """Predict and price the front, every uniform configuration and the chosen subnet.

    Uniform configurations are left out where they break a budget that the front keeps.
    """
    uniform = problem.space.uniform()
    uniform = uniform[problem.model.feasible(uniform, problem.front_budgets)]
    parts = ((PointKind.FRONT, front.choices), (PointKind.UNIFORM, uniform), (PointKind.CHOSEN, chosen[None]))
    points: list[ParetoPoint] = []
    for kind, choices in parts:
        points += _points(problem, kind, choices, predict)
    return ParetoTable(target, problem.front, tuple(points))


def _points(
    problem: SearchProblem, kind: PointKind, choices: NDArray[np.int64], predict: Predict
) -> Sequence[ParetoPoint]:
    if not len(choices):
        return ()
    prediction, costs = predict(choices), problem.model.costs(choices)
    return [
        ParetoPoint(
            kind,
            float(prediction.loss[row]),
            float(prediction.uncertainty[row]),
            {metric: float(values[row]) for metric, values in costs.items()},
            problem.space.subnet(choices[row]),
        )
        for row in range(len(choices))
    ]
