"""The additive surrogate of a predictor, and which candidates are put together."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from eqdeploy.requests import SearchOptions
from eqdeploy.search.candidates import choose, collect
from eqdeploy.search.costs import CostModel, parse_budgets
from eqdeploy.search.feasibility import check_feasible
from eqdeploy.search.genes import Role
from eqdeploy.search.integer_program import optimum
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.search.predictor import Prediction, Target
from eqdeploy.search.problem import make_problem
from eqdeploy.search.surrogate import fit_surrogate, random_choices
from tests.unit.search_spaces import X86, chain, everything, small_space, with_widths

BUDGETS = parse_budgets(["avg_weight_bits<=4", "avg_activation_bits<=5"])


def logarithm(choices: NDArray[np.int64], interaction: float) -> NDArray[np.float64]:
    """Each gene matters differently; the first two together more than each."""
    errors = 4.0 ** -(1.0 + choices) * (1 + np.arange(choices.shape[1]))
    total: NDArray[np.float64] = errors.sum(axis=1) + interaction * errors[:, 0] * errors[:, 1] - 3
    return total


@pytest.mark.parametrize("target", list(Target))
def test_a_sum_is_recovered_and_its_optimum_found(target: Target) -> None:
    space = small_space(5)
    model = CostModel(space)
    anchor = check_feasible(model, BUDGETS)

    def predict(choices: NDArray[np.int64]) -> Prediction:
        return Prediction(target.restored(logarithm(choices, 0.0)), np.zeros(len(choices)))

    surrogate = fit_surrogate(predict, target, model, BUDGETS, anchor, seed=1)
    rows = everything(space)
    assert surrogate.explained == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(surrogate.table(rows), logarithm(rows, 0.0), atol=1e-3)
    found = optimum(surrogate.table, model, BUDGETS)
    assert found is not None
    kept = rows[model.feasible(rows, BUDGETS)]
    best = logarithm(kept, 0.0).min()
    assert logarithm(found.choices[None], 0.0)[0] == pytest.approx(best, abs=2e-3)


def test_what_is_no_sum_is_explained_in_part() -> None:
    space = small_space(5)
    model = CostModel(space)

    def predict(choices: NDArray[np.int64]) -> Prediction:
        return Prediction(np.exp(logarithm(choices, 30.0)), np.zeros(len(choices)))

    surrogate = fit_surrogate(predict, Target.CROSS_ENTROPY, model, (), np.zeros(6, np.int64), seed=1)
    assert 0.5 < surrogate.explained < 0.999


def test_random_subnets_reach_both_ends() -> None:
    space = small_space(10)
    choices = random_choices(space, 2000, np.random.default_rng(0))
    assert choices.min() == 0
    assert np.all(choices.max(axis=0) == space.sizes - 1)
    weights = np.array([gene.role is Role.WEIGHT for gene in space.genes])
    for part in (choices[:, weights], choices[:, ~weights]):
        spread = np.quantile(part.mean(axis=1), (0.1, 0.9))
        assert spread[0] < 0.5
        assert spread[1] > 1.5


def test_candidates_are_distinct_and_keep_the_budgets() -> None:
    options = SearchOptions(budgets=tuple(map(str, BUDGETS)))
    problem = make_problem(with_widths(X86, 8, 4, 2), chain(5), options)
    lowest = np.zeros((1, len(problem.space.genes)), np.int64)
    genetic = np.concatenate([lowest, lowest])
    genetic[0, 0] = 1
    candidates = collect(problem, genetic, lowest[0], seed=0)
    assert len(np.unique(candidates.choices, axis=0)) == len(candidates.choices)
    assert problem.model.feasible(candidates.choices, problem.budgets).all()
    assert (candidates.genetic, candidates.program) == ((0, 1), 1)
    assert candidates.names()[0] == "genetic algorithm"
    assert candidates.names()[1].startswith("genetic algorithm, integer program, uniform")
    uniform = problem.space.uniform()
    expected = uniform[problem.model.feasible(uniform, problem.budgets)]
    assert {tuple(row) for row in expected.tolist()} == {
        tuple(candidates.choices[row].tolist()) for row in candidates.uniform
    }
    assert 1 <= len(candidates.random) <= 5


def test_the_smallest_measured_loss_is_chosen_not_the_smallest_predicted() -> None:
    prediction = Prediction(np.array([0.1, 0.3, 0.2, 0.4]), np.zeros(4))

    def measurement(correct: int, loss: float) -> SubnetMeasurement:
        return SubnetMeasurement((Score(correct, 100, loss), Score(correct, 100, loss)))

    measured = [measurement(99, 0.5), measurement(98, 0.25), measurement(98, 0.25), measurement(97, 0.3)]
    assert choose(measured, prediction, Target.CROSS_ENTROPY) == 2
    assert choose(measured, prediction, Target.ACCURACY) == 0
