"""The genetic algorithm and NSGA-II in pymoo, with our problem and our way to make new generations.

Importing this module needs pymoo. Its own operators work individual by individual; here a generation is made at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.soo.nonconvex.ga import GA, FitnessSurvival
from pymoo.core.callback import Callback
from pymoo.core.duplicate import NoDuplicateElimination
from pymoo.core.infill import InfillCriterion
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.termination.max_gen import MaximumGenerationTermination
from pymoo.util.nds.non_dominated_sorting import find_non_dominated

from eqdeploy.progress import Advance
from eqdeploy.search.breeding import Breeding
from eqdeploy.search.genetic import Evaluation, GeneticSettings


def run_genetic(
    evaluation: Evaluation,
    breeding: Breeding,
    first: NDArray[np.int64],
    settings: GeneticSettings,
    advance: Advance,
) -> None:
    """Run the genetic algorithm of EQ-Net: the best parents stay, mutants and crossovers are made from them."""
    algorithm = GA(
        pop_size=settings.parents,
        n_offsprings=settings.population,
        sampling=first,
        mating=_FromBest(breeding, settings),
        survival=FitnessSurvival(),
        eliminate_duplicates=NoDuplicateElimination(),
        advance_after_initial_infill=True,
        output=None,
        seed=settings.seed,
        callback=_Report(advance),
    )
    _run(algorithm, evaluation, settings)


def run_nsga2(
    evaluation: Evaluation,
    breeding: Breeding,
    first: NDArray[np.int64],
    settings: GeneticSettings,
    advance: Advance,
) -> None:
    """Run NSGA-II: parents win tournaments by rank, then by crowding distance."""
    algorithm = NSGA2(
        pop_size=settings.population,
        sampling=first,
        mating=_FromTournaments(breeding, settings),
        eliminate_duplicates=NoDuplicateElimination(),
        output=None,
        seed=settings.seed,
        callback=_Report(advance),
    )
    _run(algorithm, evaluation, settings)


def non_dominated(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ascending indices of the rows that no other row is better than; of equal rows the first."""
    _, firsts = np.unique(values, axis=0, return_index=True)
    firsts = np.sort(firsts)
    return np.asarray(firsts[np.sort(find_non_dominated(values[firsts]))], np.int64)


def _run(algorithm: Any, evaluation: Evaluation, settings: GeneticSettings) -> None:
    termination = MaximumGenerationTermination(settings.generations)
    algorithm.setup(_SubnetProblem(evaluation), termination=termination)
    algorithm.run()


class _SubnetProblem(Problem):
    """Loss and costs of choices. There are no constraints: everything that is bred keeps the budgets."""

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__(n_var=evaluation.genes, n_obj=1 + len(evaluation.metrics), vtype=int)
        self._evaluation = evaluation

    def _evaluate(self, x: NDArray[np.int64], out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        out["F"] = self._evaluation(x)


class _Mating(InfillCriterion):
    """Makes a generation from chosen parents."""

    def __init__(self, breeding: Breeding, settings: GeneticSettings) -> None:
        super().__init__()
        self._breeding = breeding
        self._mutants = round(settings.mutants * settings.population)
        self._parents = settings.parents

    def do(self, problem: Any, pop: Any, n_offsprings: int, random_state: np.random.Generator, **kwargs: Any) -> Any:
        """Make ``n_offsprings`` new individuals, fewer if no more can be found."""
        mutants = self._mutants
        chosen = self.select(pop, 2 * n_offsprings - mutants, random_state)
        parents = np.stack([pop[index].X for index in chosen])
        first, second, third = np.split(parents, [mutants, n_offsprings])
        children = self._breeding.children(first, second, third, random_state)
        return Population.new(X=children) if len(children) else Population.empty()

    def select(self, pop: Any, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Choose parents."""
        raise NotImplementedError


class _FromBest(_Mating):
    """Parents are drawn from the best individuals; survival has sorted them."""

    def select(self, pop: Any, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        return random.integers(min(len(pop), self._parents), size=count)


class _FromTournaments(_Mating):
    """Of two random individuals the one of better rank, then of larger crowding distance, becomes a parent."""

    def select(self, pop: Any, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        rank, crowding = pop.get("rank", "crowding")
        first, second = random.integers(len(pop), size=(2, count))
        better = (rank[first] < rank[second]) | ((rank[first] == rank[second]) & (crowding[first] >= crowding[second]))
        return np.asarray(np.where(better, first, second), np.int64)


class _Report(Callback):
    """Reports each generation."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self._advance = advance

    def notify(self, algorithm: Any) -> None:
        self._advance(1)
