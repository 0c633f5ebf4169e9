"""Evolutionary search: the genetic algorithm of EQ-Net (section 3.5) for one budget, NSGA-II for a whole front.

Every subnet that is evaluated keeps all budgets: random starts, mutants and crossovers are repaired. None is evaluated
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqdeploy.progress import Progress, SilentProgress
from eqdeploy.search.breeding import Breeding
from eqdeploy.search.budgets import Budget, Metric
from eqdeploy.search.costs import CostModel
from eqdeploy.search.dependencies import require
from eqdeploy.search.feasibility import check_feasible
from eqdeploy.search.repair import Repair

#: Purpose of random numbers.
_FIRST_GENERATION = 3

#: Estimated loss, shape (P,), of choices of shape (P, G); lower is better.
Objective = Callable[[NDArray[np.int64]], NDArray[np.floating]]


@dataclass(frozen=True)
class GeneticSettings:
    """Settings of the search; the defaults are those of EQ-Net's code.

    Attributes:
        population: Subnets that are evaluated in each generation.
        generations: Number of generations, the random start included.
        parents: The best subnets so far that stay and from which a generation of the genetic algorithm is made. In
            NSGA-II the whole population is.
        mutation_probability: Probability that a mutant differs from its parent in a gene.
        mutants: Share of mutants in a generation, between 0 and 1; the others are crossovers.
        seed: Seed of every random choice.

    Raises:
        ValueError: If a number is out of range.
    """

    population: int = 100
    generations: int = 500
    parents: int = 25
    mutation_probability: float = 0.1
    mutants: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.population, self.generations, self.parents) < 1:
            raise ValueError("population, generations and parents must be at least 1")
        if not (0 <= self.mutation_probability <= 1 and 0 <= self.mutants <= 1):
            raise ValueError("mutation_probability and mutants must lie between 0 and 1")


@dataclass(frozen=True)
class SearchResult:
    """What the genetic algorithm found.

    Attributes:
        choices: The best subnets that were evaluated, best first, each once, shape (N, G).
        losses: Their estimated losses, shape (N,).
        history: Smallest loss after each generation.
        evaluations: Number of subnets that were evaluated.
    """

    choices: NDArray[np.int64]
    losses: NDArray[np.float64]
    history: NDArray[np.float64]
    evaluations: int


@dataclass(frozen=True)
class ParetoFront:
    """The subnets of which none is better in loss and all costs than another one.

    Attributes:
        choices: The subnets by ascending costs, one for each point, shape (N, G).
        losses: Their estimated losses, shape (N,).
        costs: Their costs by metric, each of shape (N,).
        evaluations: Number of subnets that were evaluated.
    """

    choices: NDArray[np.int64]
    losses: NDArray[np.float64]
    costs: dict[Metric, NDArray[np.float64]]
    evaluations: int


def search(
    objective: Objective,
    model: CostModel,
    budgets: Sequence[Budget],
    *,
    seeds: NDArray[np.int64] | None = None,
    settings: GeneticSettings | None = None,
    keep: int = 100,
    progress: Progress | None = None,
) -> SearchResult:
    """Search for the subnets with the smallest estimated loss that keep all budgets.

    Args:
        objective: Estimates the losses of many subnets.
        model: Costs of the space that is searched.
        budgets: Limits that hold together; may be empty.
        seeds: Choices to begin with, shape (S, G). The result is never worse than those that keep the budgets; the
            other ones are repaired.
        settings: Settings, EQ-Net's by default.
        keep: Largest number of subnets to return.
        progress: Listener.

    Raises:
        UsageError: If no subnet keeps the budgets; names the nearest ones that can be kept.
        ValueError: If the objective returns something else than one finite number for each row, or seeds have the
            wrong shape.
        MissingDependencyError: If pymoo is not installed.
    """
    settings = settings or GeneticSettings()
    breeding, first = _begin(model, budgets, seeds, settings)
    require("pymoo")
    from eqdeploy.search.evolution import run_genetic

    evaluation = Evaluation(objective, model, ())
    with (progress or SilentProgress()).stage("searching", total=settings.generations) as advance:
        run_genetic(evaluation, breeding, first, settings, advance)
    order = np.argsort(evaluation.values[:, 0], kind="stable")[:keep]
    lows = np.cumsum(evaluation.counts) - 1
    return SearchResult(
        choices=evaluation.choices[order],
        losses=evaluation.values[order, 0],
        history=np.minimum.accumulate(evaluation.values[:, 0])[lows],
        evaluations=len(evaluation.values),
    )


def pareto_front(
    objective: Objective,
    model: CostModel,
    metrics: Sequence[Metric],
    budgets: Sequence[Budget] = (),
    *,
    seeds: NDArray[np.int64] | None = None,
    settings: GeneticSettings | None = None,
    progress: Progress | None = None,
) -> ParetoFront:
    """Search for the subnets with the best trade-offs of estimated loss and costs (NSGA-II).

    Args:
        objective: Estimates the losses of many subnets.
        model: Costs of the space that is searched.
        metrics: Costs to trade off, at least one.
        budgets: Limits that all subnets keep; may be empty.
        seeds: Choices to begin with, shape (S, G).
        settings: Settings.
        progress: Listener.

    Returns:
        The front of everything that was evaluated, not only of the last generation.

    Raises:
        UsageError: If no subnet keeps the budgets, or a metric needs a table of times.
        ValueError: As for :func:`search`, or if there is no metric.
        MissingDependencyError: If pymoo is not installed.
    """
    if not metrics:
        raise ValueError("a front needs at least one cost")
    settings = settings or GeneticSettings()
    breeding, first = _begin(model, budgets, seeds, settings)
    require("pymoo")
    from eqdeploy.search.evolution import non_dominated, run_nsga2

    evaluation = Evaluation(objective, model, tuple(dict.fromkeys(metrics)))
    with (progress or SilentProgress()).stage("searching the Pareto front", total=settings.generations) as advance:
        run_nsga2(evaluation, breeding, first, settings, advance)
    values = evaluation.values
    order = np.lexsort(np.roll(values, -1, axis=1).T[::-1])  # by costs, then by loss
    best = order[non_dominated(values[order])]
    return ParetoFront(
        choices=evaluation.choices[best],
        losses=values[best, 0],
        costs={metric: values[best, index] for index, metric in enumerate(evaluation.metrics, start=1)},
        evaluations=len(values),
    )


class Evaluation:
    """Evaluates generations and remembers everything.

    Args:
        objective: Estimates losses.
        model: Costs.
        metrics: Costs that are objectives beside the loss.
    """

    def __init__(self, objective: Objective, model: CostModel, metrics: tuple[Metric, ...]) -> None:
        self.metrics = metrics
        self.genes = len(model.space.genes)
        self._objective = objective
        self._tables = [model.table(metric) for metric in metrics]
        self._choices: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float64]] = []

    def __call__(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Loss and costs, shape (P, 1 + metrics).

        Raises:
            ValueError: If the losses are not one finite number for each row.
        """
        losses = np.asarray(self._objective(choices), np.float64)
        if losses.shape != (len(choices),) or not np.isfinite(losses).all():
            raise ValueError(f"the objective must return {len(choices)} finite numbers")
        values = np.stack([losses, *(table(choices) for table in self._tables)], axis=1)
        self._choices.append(choices)
        self._values.append(values)
        return values

    @property
    def choices(self) -> NDArray[np.int64]:
        """All choices that were evaluated, shape (N, G)."""
        return np.concatenate(self._choices)

    @property
    def values(self) -> NDArray[np.float64]:
        """Loss and costs of all of them, shape (N, 1 + metrics)."""
        return np.concatenate(self._values)

    @property
    def counts(self) -> list[int]:
        """Number of subnets in each generation."""
        return [len(values) for values in self._values]


def _begin(
    model: CostModel, budgets: Sequence[Budget], seeds: NDArray[np.int64] | None, settings: GeneticSettings
) -> tuple[Breeding, NDArray[np.int64]]:
    """What makes new choices, and the first generation."""
    sizes = model.space.sizes
    given = np.zeros((0, len(sizes)), np.int64) if seeds is None else np.asarray(seeds, np.int64)
    if given.ndim != 2 or given.shape[1] != len(sizes) or (given < 0).any() or (given >= sizes).any():
        raise ValueError(f"seeds must be choices of {len(sizes)} genes, got an array of shape {given.shape}")
    repair = Repair(model, budgets, check_feasible(model, budgets))
    breeding = Breeding(sizes, repair, settings.mutation_probability)
    # Not the stream that pymoo draws from with the same seed.
    random = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(_FIRST_GENERATION,)))
    return breeding, breeding.first_generation(given, settings.population, random)
