"""The integer program against brute force, and budgets that nothing keeps."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqdeploy.errors import MissingDependencyError, UsageError
from eqdeploy.profile import load_profile
from eqdeploy.search.budgets import Budget, parse_budget, parse_budgets
from eqdeploy.search.costs import CostModel, LatencyTable, Metric
from eqdeploy.search.dependencies import require
from eqdeploy.search.feasibility import check_feasible, nearest_limits
from eqdeploy.search.integer_program import minimize, optimum
from eqdeploy.search.space import search_space
from eqdeploy.search.tables import AdditiveTable, PairTable
from tests.unit.network_support import residual_network
from tests.unit.search_spaces import everything, small_space
from tests.unit.test_search_costs import times


def random_surrogate(sizes: list[int], random: np.random.Generator, *, pairs: bool) -> AdditiveTable:
    parts: tuple[PairTable, ...] = ()
    if pairs:
        parts = tuple(PairTable(g, g + 1, random.normal(size=sizes[g : g + 2])) for g in range(0, len(sizes) - 1, 2))
    return AdditiveTable(tuple(random.normal(size=size) for size in sizes), parts, random.normal(), 3.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), pairs=st.booleans(), metrics=st.sets(st.sampled_from(Metric), max_size=3))
def test_the_optimum_is_that_of_brute_force(seed: int, pairs: bool, metrics: set[Metric]) -> None:
    random = np.random.default_rng(seed)
    space = small_space(4, seed=seed)
    model = CostModel(space, times(space, seed))
    rows = everything(space)
    costs = model.costs(rows)
    # a limit that is exactly the cost of some subnet: rounding must neither lose nor break it
    budgets = [Budget(metric, float(random.choice(costs[metric]))) for metric in sorted(metrics)]
    surrogate = random_surrogate(space.sizes.tolist(), random, pairs=pairs)
    kept = model.feasible(rows, budgets)
    found = optimum(surrogate, model, budgets)
    if not kept.any():
        assert found is None
        return
    assert found is not None
    assert model.feasible(found.choices[None], budgets)[0]
    assert found.value == surrogate(found.choices[None])[0]
    assert found.value == pytest.approx(surrogate(rows[kept]).min(), abs=1e-6)
    assert found.bound == pytest.approx(found.value, abs=1e-5)


def test_a_limit_that_differs_in_the_last_digit_is_kept_exactly() -> None:
    values = (np.array([0.1, 0.2]), np.array([0.2, 0.4]))
    table = AdditiveTable(values)
    best = AdditiveTable((np.array([1.0, 0.0]), np.array([1.0, 0.0])))
    exact = float(table(np.array([[1, 0]]))[0])
    found = minimize(best, [(table, float(np.nextafter(exact, 0)))])
    assert found is not None
    assert found.choices.tolist() == [0, 0]
    found = minimize(best, [(table, exact)])
    assert found is not None
    assert found.choices.tolist() == [1, 0]


def test_nothing_to_choose_is_the_optimum_or_too_expensive() -> None:
    space = search_space(load_profile("snpe-dsp"), residual_network())
    model = CostModel(space)
    surrogate = AdditiveTable((), (), 2.0)
    found = optimum(surrogate, model, [Budget(Metric.AVG_WEIGHT_BITS, 8.0)])
    assert found is not None
    assert (found.choices.shape, found.value, found.bound) == ((0,), 2.0, 2.0)
    assert optimum(surrogate, model, [Budget(Metric.AVG_WEIGHT_BITS, 7.9)]) is None
    with pytest.raises(UsageError, match=r"no subnet for snpe-dsp keeps .* \(smallest possible: avg_weight_bits<=8\)"):
        check_feasible(model, [Budget(Metric.AVG_WEIGHT_BITS, 7.9)])


@pytest.mark.parametrize(
    "texts",
    [
        ["avg_weight_bits<=1.5"],
        ["avg_weight_bits<=1.5", "avg_activation_bits<=1"],
        ["model_bytes<=10", "avg_weight_bits<=3"],
        ["bitops<=1", "avg_weight_bits<=3", "latency_ms<=0.001"],
    ],
)
def test_infeasible_budgets_propose_values_that_are_feasible(texts: list[str]) -> None:
    space = small_space(5)
    model = CostModel(space, times(space))
    rows = everything(space)
    budgets = parse_budgets(texts)
    with pytest.raises(UsageError, match="smallest possible") as caught:
        check_feasible(model, budgets)
    proposed = [parse_budget(text) for text in re.findall(r"\w+<=[\d.]+", str(caught.value.hint))]
    assert proposed
    for proposal in proposed:
        smallest = model.cost(proposal.metric, rows).min()
        assert smallest <= proposal.limit <= smallest + 1e-4
        # a bit less is refused
        assert not model.feasible(rows, [Budget(proposal.metric, proposal.limit - 2e-4)]).any()
    named = {proposal.metric for proposal in proposed}
    assert named == {budget.metric for budget in budgets if model.cost(budget.metric, rows).min() > budget.limit}


def opposed_model() -> CostModel:
    """A device on which narrow weights are slow."""
    space = small_space(4)
    slow = {key: float(10 - key[1]) for key in times(space).milliseconds}
    return CostModel(space, LatencyTable(slow, "times.csv"))


def test_budgets_that_exclude_each_other_name_the_nearest_value_of_each() -> None:
    model = opposed_model()
    rows = everything(model.space)
    budgets = parse_budgets(["avg_weight_bits<=2.5", "latency_ms<=10"])
    assert all(model.feasible(rows, [budget]).any() for budget in budgets)
    with pytest.raises(
        UsageError, match="together .*nearest with the others held: avg_weight_bits<=.* or latency_ms<="
    ):
        check_feasible(model, budgets)
    for budget, nearest in nearest_limits(model, budgets).items():
        assert nearest is not None
        others = [other for other in budgets if other is not budget]
        assert nearest.limit == model.cost(budget.metric, rows[model.feasible(rows, others)]).min()
        assert model.feasible(rows, [nearest, *others]).any()


def test_choices_are_found_where_the_smallest_widths_are_not_the_cheapest() -> None:
    model = opposed_model()
    lowest = model.cost(Metric.LATENCY_MS, np.zeros((1, 4), np.int64))[0]
    budgets = [Budget(Metric.LATENCY_MS, float(lowest) - 1), Budget(Metric.AVG_WEIGHT_BITS, 7.5)]
    found = check_feasible(model, budgets)
    assert model.feasible(found[None], budgets)[0]


def test_tables_must_fit() -> None:
    with pytest.raises(ValueError, match="finite"):
        AdditiveTable((np.array([0.0, np.nan]),))
    with pytest.raises(ValueError, match="need a table of shape"):
        AdditiveTable((np.zeros(2), np.zeros(3)), (PairTable(0, 1, np.zeros((3, 2))),))
    with pytest.raises(ValueError, match="divisor"):
        AdditiveTable((), divisor=0.0)


def test_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(
        MissingDependencyError, match=r"searching needs no_such_solver \(pip install 'eqdeploy\[search\]'"
    ):
        require("no_such_solver.optimize")
