"""Which subnets are worth a measurement, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eqdeploy.search.fitting import total_score
from eqdeploy.search.measurement import SubnetMeasurement
from eqdeploy.search.outcome import CHOSEN, GENETIC, PROGRAM, RANDOM, UNIFORM, SearchRow
from eqdeploy.search.predictor import Prediction, Target
from eqdeploy.search.problem import SearchProblem
from eqdeploy.search.repair import Repair
from eqdeploy.search.surrogate import random_choices

#: Random subnets for comparison.
_RANDOM = 5

#: Purpose of random numbers.
_PURPOSE = 2

Choices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Subnets that keep the budgets, each once, and where they come from.

    Attributes:
        choices: The subnets, shape (N, G).
        genetic: Rows of the genetic algorithm's best, best first; never empty.
        program: Row of the integer program's subnet.
        uniform: Rows of the uniform configurations.
        random: Rows of random subnets.
    """

    choices: Choices
    genetic: tuple[int, ...]
    program: int
    uniform: tuple[int, ...]
    random: tuple[int, ...]

    def names(self) -> tuple[str, ...]:
        """Where each row comes from."""
        sources = ((GENETIC, self.genetic), (PROGRAM, (self.program,)), (UNIFORM, self.uniform), (RANDOM, self.random))
        return tuple(", ".join(name for name, rows in sources if row in rows) for row in range(len(self.choices)))


def collect(problem: SearchProblem, genetic: Choices, program: Choices, seed: int) -> Candidates:
    """Put together what is worth a measurement.

    All uniform configurations that keep the budgets are among it, so that what is chosen is worse than none of them.

    Args:
        problem: What is searched.
        genetic: The genetic algorithm's best, best first, shape (K, G).
        program: The integer program's subnet, shape (G,).
        seed: Seed of the random subnets.
    """
    rows: dict[tuple[int, ...], int] = {}

    def add(choices: Choices) -> tuple[int, ...]:
        places = [rows.setdefault(tuple(row), len(rows)) for row in choices.tolist()]
        return tuple(dict.fromkeys(places))

    uniform = problem.space.uniform()
    parts = (
        add(genetic),
        add(program[None]),
        add(uniform[problem.model.feasible(uniform, problem.budgets)]),
        add(_random(problem, seed)),
    )
    choices = np.array(list(rows), np.int64).reshape(len(rows), len(problem.space.genes))
    return Candidates(choices, parts[0], parts[1][0], parts[2], parts[3])


def choose(measurements: Sequence[SubnetMeasurement], prediction: Prediction, target: Target) -> int:
    """Row of the candidate with the smallest measured loss; of equal ones the smaller predicted, then the first."""
    losses = target.losses([total_score(measurement) for measurement in measurements])
    return int(np.lexsort((prediction.loss, losses))[0])


def measured_rows(
    problem: SearchProblem,
    candidates: Candidates,
    measurements: Sequence[SubnetMeasurement],
    prediction: Prediction,
) -> tuple[SearchRow, ...]:
    """One row for each candidate."""
    costs = problem.model.costs(candidates.choices)
    return tuple(
        SearchRow(
            name=name,
            predicted_loss=float(prediction.loss[row]),
            uncertainty=float(prediction.uncertainty[row]),
            cross_entropy=measurements[row].cross_entropy,
            accuracy=measurements[row].accuracy,
            costs={metric.value: float(values[row]) for metric, values in costs.items()},
            digest=problem.space.subnet(candidates.choices[row]).digest,
        )
        for row, name in enumerate(candidates.names())
    )


def report_rows(
    candidates: Candidates, rows: Sequence[SearchRow], chosen: int, target: Target
) -> tuple[SearchRow, ...]:
    """The chosen subnet beside the best of each source."""

    def best(places: Sequence[int]) -> SearchRow:
        key = _by_accuracy if target is Target.ACCURACY else _by_cross_entropy
        return min((rows[place] for place in places), key=key)

    found = [_named(rows[chosen], CHOSEN), _named(rows[candidates.genetic[0]], f"{GENETIC}, best predicted")]
    if len(candidates.genetic) > 1:
        found.append(_named(best(candidates.genetic), f"{GENETIC}, best of {len(candidates.genetic)} measured"))
    found.append(_named(rows[candidates.program], PROGRAM))
    if candidates.uniform:
        found.append(_named(best(candidates.uniform), f"{UNIFORM}, best of {len(candidates.uniform)} measured"))
    several = [rows[place] for place in candidates.random]
    if several:
        found.append(_mean(several, f"{RANDOM}, mean of {len(several)}"))
        found.append(_named(best(candidates.random), f"{RANDOM}, best of {len(several)} measured"))
    return tuple(found)


def _random(problem: SearchProblem, seed: int) -> Choices:
    """Random subnets in which no width can be raised without breaking a budget."""
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PURPOSE,)))
    repair = Repair(problem.model, problem.budgets, problem.anchor)
    kept = repair(random_choices(problem.space, _RANDOM, random), random)
    return repair.exhausted(kept, problem.space.sizes, random) if problem.budgets else kept


def _by_accuracy(row: SearchRow) -> tuple[float, float]:
    return -row.accuracy, row.predicted_loss


def _by_cross_entropy(row: SearchRow) -> tuple[float, float]:
    return row.cross_entropy, row.predicted_loss


def _named(row: SearchRow, name: str) -> SearchRow:
    return replace(row, name=name)


def _mean(rows: Sequence[SearchRow], name: str) -> SearchRow:
    """The mean of every number."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return SearchRow(
        name=name,
        predicted_loss=mean([row.predicted_loss for row in rows]),
        uncertainty=mean([row.uncertainty for row in rows]),
        cross_entropy=mean([row.cross_entropy for row in rows]),
        accuracy=mean([row.accuracy for row in rows]),
        costs={metric: mean([row.costs[metric] for row in rows]) for metric in rows[0].costs},
        digest=None,
    )
