"""The genetic algorithm and NSGA-II against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eqdeploy.errors import UsageError
from eqdeploy.profile import load_profile
from eqdeploy.progress import Advance, SilentProgress
from eqdeploy.search.budgets import Budget, parse_budgets
from eqdeploy.search.costs import CostModel, Metric
from eqdeploy.search.feasibility import check_feasible
from eqdeploy.search.genetic import GeneticSettings, Objective, pareto_front, search
from eqdeploy.search.integer_program import optimum
from eqdeploy.search.repair import Repair
from eqdeploy.search.space import search_space
from eqdeploy.search.tables import AdditiveTable
from tests.unit.network_support import residual_network
from tests.unit.search_spaces import everything, hypervolume, small_space
from tests.unit.test_search_costs import times
from tests.unit.test_search_integer_program import opposed_model

QUICK = GeneticSettings(population=40, generations=30, parents=10)
FEW = GeneticSettings(population=20, generations=15, parents=8)


def interacting_loss(sizes: NDArray[np.int64], seed: int) -> Objective:
    """A loss that falls with widths, every two of which interact."""
    random = np.random.default_rng(seed)
    genes = len(sizes)
    weight = random.random(genes) ** 2
    mixed = random.normal(size=(genes, genes)) * 0.2

    def loss(choices: NDArray[np.int64]) -> NDArray[np.float64]:
        noise = weight * 4.0 ** -choices.astype(np.float64)
        return np.asarray(noise.sum(axis=1) + np.einsum("pi,ij,pj->p", noise, mixed, noise), np.float64)

    return loss


def random_budgets(model: CostModel, rows: NDArray[np.int64], random: np.random.Generator) -> list[Budget]:
    """One or two budgets that a twentieth to a half of all subnets keep each."""
    metrics = random.choice(np.array(Metric), size=int(random.integers(1, 3)), replace=False)
    return [
        Budget(Metric(metric), float(np.quantile(model.cost(Metric(metric), rows), random.uniform(0.05, 0.5))))
        for metric in metrics
    ]


def test_the_true_optimum_is_found_in_a_fifth_of_what_budgets_leave() -> None:
    found = lucky = cases = 0
    seeds = itertools.count()
    while cases < 20:
        seed = next(seeds)
        space = small_space(6, seed=seed)  # 6561 subnets
        model = CostModel(space, times(space, seed))
        rows = everything(space)
        random = np.random.default_rng(seed)
        budgets = random_budgets(model, rows, random)
        kept = rows[model.feasible(rows, budgets)]
        if not len(kept):
            with pytest.raises(UsageError):
                check_feasible(model, budgets)
        if len(kept) < 5 * FEW.population * FEW.generations:
            continue
        cases += 1
        loss = interacting_loss(space.sizes, seed)
        least = loss(kept).min() + 1e-12
        result = search(loss, model, budgets, settings=FEW)
        assert result.evaluations <= len(kept) // 5
        assert model.feasible(result.choices, budgets).all()
        found += bool(result.losses[0] <= least)
        lucky += bool(loss(random.choice(kept, result.evaluations, replace=False)).min() <= least)
    assert found >= 19
    assert lucky <= 10  # without a search


def test_the_optimum_of_a_sum_is_found_in_a_space_that_nobody_can_enumerate() -> None:
    space = small_space(21, 2, 3, 4, 5, 6, 7, 8)  # 7 to the power of 38 subnets
    model = CostModel(space)
    budgets = parse_budgets(["avg_weight_bits<=3.5", "avg_activation_bits<=3.5"])
    random = np.random.default_rng(0)
    table = AdditiveTable(tuple(random.random() * 4.0 ** -np.arange(size) for size in space.sizes))
    program = optimum(table, model, budgets)
    assert program is not None
    result = search(table, model, budgets, seeds=space.uniform(), settings=GeneticSettings())
    assert result.evaluations == 50_000
    assert result.losses[0] <= program.value * 1.001
    assert result.losses[0] >= program.bound - 1e-9


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_subnet_that_is_evaluated_keeps_every_budget_and_none_comes_twice(seed: int) -> None:
    space = small_space(5, 2, 3, 5, 8, seed=seed)
    model = CostModel(space, times(space, seed))
    random = np.random.default_rng(seed)
    rows = everything(space)
    anchor = rows[random.integers(len(rows))]
    budgets = [
        Budget(metric, float(model.cost(metric, anchor[None])[0])) for metric in random.choice(np.array(Metric), 2)
    ]
    inner = interacting_loss(space.sizes, seed)
    seen: set[bytes] = set()

    def loss(choices: NDArray[np.int64]) -> NDArray[np.floating]:
        assert model.feasible(choices, budgets).all()
        new = {row.tobytes() for row in choices}
        assert len(new) == len(choices)
        assert not new & seen
        seen.update(new)
        return inner(choices)

    seeds = rows[random.integers(len(rows), size=5)]
    given_seeds = seeds[model.feasible(seeds, budgets)]
    for step in (
        lambda: search(loss, model, budgets, seeds=seeds, settings=QUICK).losses[0],
        lambda: pareto_front(loss, model, [Metric.BITOPS], budgets, seeds=seeds, settings=QUICK).losses.min(),
    ):
        seen.clear()
        best = step()
        assert best <= inner(given_seeds).min(initial=np.inf)


def test_results_depend_on_the_seed_alone() -> None:
    space = small_space(8, 2, 3, 4, 5, 6, 7, 8)
    model = CostModel(space)
    loss = interacting_loss(space.sizes, 1)
    budgets = parse_budgets(["avg_weight_bits<=4", "avg_activation_bits<=4"])
    runs = [
        search(loss, model, budgets, settings=GeneticSettings(population=30, generations=5, parents=8, seed=seed))
        for seed in (3, 3, 4)
    ]
    assert (runs[0].choices == runs[1].choices).all()
    assert (runs[0].history == runs[1].history).all()
    assert not np.array_equal(runs[0].choices, runs[2].choices)
    fronts = [
        pareto_front(
            loss, model, [Metric.MODEL_BYTES], settings=GeneticSettings(population=30, generations=5, seed=seed)
        )
        for seed in (3, 3)
    ]
    assert (fronts[0].choices == fronts[1].choices).all()


def test_the_best_subnets_come_first_and_history_never_rises() -> None:
    space = small_space(6)
    model = CostModel(space)
    result = search(interacting_loss(space.sizes, 0), model, [], settings=QUICK, keep=25)
    assert result.choices.shape == (25, 8)
    assert (np.diff(result.losses) >= 0).all()
    assert len(np.unique(result.choices, axis=0)) == 25
    assert len(result.history) == 30
    assert (np.diff(result.history) <= 0).all()
    assert result.history[-1] == result.losses[0]


def test_a_space_smaller_than_the_population_is_evaluated_whole() -> None:
    space = small_space(3)
    model = CostModel(space)
    result = search(interacting_loss(space.sizes, 0), model, [], seeds=space.uniform())
    assert result.evaluations == space.subnets == 9
    budgets = parse_budgets(["avg_weight_bits<=2"])
    assert search(interacting_loss(space.sizes, 0), model, budgets).evaluations == 3


def test_nothing_to_search_is_returned_as_it_is() -> None:
    space = search_space(load_profile("tensorrt"), residual_network())
    model = CostModel(space)

    def loss(choices: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.full(len(choices), 0.5)

    result = search(loss, model, [])
    assert (result.choices.shape, result.losses.tolist(), result.evaluations) == ((1, 0), [0.5], 1)
    front = pareto_front(loss, model, [Metric.BITOPS])
    assert (front.choices.shape, front.losses.tolist()) == ((1, 0), [0.5])
    with pytest.raises(UsageError, match="smallest possible"):
        search(loss, model, [Budget(Metric.AVG_WEIGHT_BITS, 4.0)])


@pytest.mark.parametrize("seed", range(5))
def test_the_front_has_the_hypervolume_of_brute_force(seed: int) -> None:
    space = small_space(6, seed=seed)
    model = CostModel(space)
    rows = everything(space)
    loss = interacting_loss(space.sizes, seed)
    budgets = parse_budgets(["avg_activation_bits<=7.5"])
    metric = (Metric.AVG_WEIGHT_BITS, Metric.BITOPS)[seed % 2]
    rows = rows[model.feasible(rows, budgets)]
    costs, losses = model.cost(metric, rows), loss(rows)
    reference = (float(costs.max()) * 1.01, float(losses.max()) * 1.01)
    front = pareto_front(loss, model, [metric], budgets, seeds=space.uniform(), settings=QUICK)
    assert model.feasible(front.choices, budgets).all()
    assert (front.costs[metric] == model.cost(metric, front.choices)).all()
    assert (np.diff(front.costs[metric]) > 0).all()
    assert (np.diff(front.losses) < 0).all()
    whole = hypervolume(list(zip(costs.tolist(), losses.tolist(), strict=True)), reference)
    found = hypervolume(list(zip(front.costs[metric].tolist(), front.losses.tolist(), strict=True)), reference)
    assert front.evaluations <= 1200 + 9
    assert 0.99 * whole <= found <= whole * (1 + 1e-12)


def test_several_costs_make_one_front() -> None:
    space = small_space(4)
    model = CostModel(space)
    loss = interacting_loss(space.sizes, 0)
    metrics = [Metric.AVG_WEIGHT_BITS, Metric.AVG_ACTIVATION_BITS]
    front = pareto_front(loss, model, metrics, settings=QUICK)
    rows = everything(space)
    points = np.stack([loss(rows), *(model.cost(metric, rows) for metric in metrics)], axis=1)
    none_worse = np.all(points[None] <= points[:, None], axis=2)
    one_better = np.any(points[None] < points[:, None], axis=2)
    expected = np.unique(points[~np.any(none_worse & one_better, axis=1)], axis=0)
    found = np.stack([front.losses, *(front.costs[metric] for metric in metrics)], axis=1)
    assert front.evaluations == 81
    np.testing.assert_array_equal(np.unique(found, axis=0), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_repair_only_moves_towards_the_anchor_and_only_what_breaks_a_budget(seed: int) -> None:
    space = small_space(5, 2, 3, 4, 8, seed=seed)
    model = CostModel(space)
    random = np.random.default_rng(seed)
    budgets = [Budget(Metric.AVG_WEIGHT_BITS, float(random.uniform(2.1, 6)))]
    repair = Repair(model, budgets, np.zeros(len(space.genes), np.int64))
    choices = np.asarray(random.integers(space.sizes, size=(50, len(space.genes))), np.int64)
    repaired = repair(choices, random)
    kept = model.feasible(choices, budgets)
    assert model.feasible(repaired, budgets).all()
    assert (repaired[kept] == choices[kept]).all()
    assert (repaired <= choices).all()
    assert (repaired[:, 3:] == choices[:, 3:]).all()  # activations cost no weight bits
    filled = repair.filled(repaired, space.sizes, random)
    assert model.feasible(filled, budgets).all()
    assert (filled >= repaired).all()
    assert (filled < space.sizes).all()
    exhausted = repair.exhausted(repaired, space.sizes, random)
    assert model.feasible(exhausted, budgets).all()
    assert (exhausted >= repaired).all()
    for gene, size in enumerate(space.sizes):
        raised = exhausted[exhausted[:, gene] < size - 1]
        raised[:, gene] += 1
        assert not model.feasible(raised, budgets).any(), "nothing more fits"


def test_repair_works_where_narrow_weights_are_slow() -> None:
    model = opposed_model()
    budgets = parse_budgets(["latency_ms<=14", "avg_weight_bits<=7.9"])
    anchor = check_feasible(model, budgets)
    repair = Repair(model, budgets, anchor)
    rows = everything(model.space)
    assert model.feasible(repair(rows, np.random.default_rng(0)), budgets).all()
    with pytest.raises(ValueError, match="anchor"):
        Repair(model, budgets, np.zeros_like(anchor))


def test_wrong_objectives_seeds_and_settings_are_refused() -> None:
    space = small_space(4)
    model = CostModel(space)
    for wrong in (np.zeros(3), np.full(40, np.nan)):
        with pytest.raises(ValueError, match="40 finite numbers"):
            search(lambda choices, wrong=wrong: wrong, model, [], settings=QUICK)  # type: ignore[misc]
    for seeds in (np.zeros((2, 3), np.int64), np.full((1, 4), 3)):
        with pytest.raises(ValueError, match="seeds must be choices of 4 genes"):
            search(interacting_loss(space.sizes, 0), model, [], seeds=seeds)
    with pytest.raises(ValueError, match="at least one cost"):
        pareto_front(interacting_loss(space.sizes, 0), model, [])
    with pytest.raises(ValueError, match="at least 1"):
        GeneticSettings(population=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        GeneticSettings(mutants=1.5)


def test_progress_counts_generations() -> None:
    class Listener(SilentProgress):
        done = 0
        total: int | None = None

        @contextmanager
        def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
            self.total = total

            def advance(amount: int) -> None:
                self.done += amount

            yield advance

    listener = Listener()
    space = small_space(6)
    search(interacting_loss(space.sizes, 0), CostModel(space), [], settings=QUICK, progress=listener)
    assert (listener.done, listener.total) == (30, 30)
