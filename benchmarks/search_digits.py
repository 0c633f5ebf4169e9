"""Prove the search on a space of which every subnet is measured: digits, three widths, seven genes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import markdown_table, write_results
from numpy.typing import NDArray
from search_table import BITS, SEARCHED, SEED, TABLE, TrueTable, encoding, load_table, measure_all

from eqdeploy.cli.progress import make_progress
from eqdeploy.search.agreement import agreement
from eqdeploy.search.budgets import Budget, Metric, rounded_up
from eqdeploy.search.candidates import choose, collect
from eqdeploy.search.costs import CostModel
from eqdeploy.search.feasibility import check_feasible
from eqdeploy.search.fitting import fit_predictor
from eqdeploy.search.genetic import GeneticSettings, pareto_front, search
from eqdeploy.search.integer_program import minimize
from eqdeploy.search.predictor import Prediction, Predictor, Target
from eqdeploy.search.problem import SearchProblem
from eqdeploy.search.surrogate import fit_surrogate, random_choices

#: Share of all subnets that keeps each budget on its own, for each metric.
_SHARES = (0.05, 0.15, 0.3, 0.5)
_SINGLE = (Metric.AVG_WEIGHT_BITS, Metric.MODEL_BYTES, Metric.BITOPS)
_MIXTURES: tuple[dict[Metric, float], ...] = (
    {Metric.AVG_WEIGHT_BITS: 0.4, Metric.AVG_ACTIVATION_BITS: 0.4},
    {Metric.AVG_WEIGHT_BITS: 0.2, Metric.AVG_ACTIVATION_BITS: 0.5},
    {Metric.AVG_WEIGHT_BITS: 0.5, Metric.AVG_ACTIVATION_BITS: 0.2},
    {Metric.MODEL_BYTES: 0.4, Metric.BITOPS: 0.3},
    {Metric.MODEL_BYTES: 0.2, Metric.AVG_ACTIVATION_BITS: 0.5},
    {Metric.BITOPS: 0.3, Metric.AVG_ACTIVATION_BITS: 0.5},
    {Metric.BITOPS: 0.2, Metric.AVG_WEIGHT_BITS: 0.3},
    {Metric.AVG_WEIGHT_BITS: 0.4, Metric.AVG_ACTIVATION_BITS: 0.4, Metric.BITOPS: 0.15},
)
_FRONTS = (Metric.AVG_WEIGHT_BITS, Metric.MODEL_BYTES, Metric.BITOPS)
#: So few evaluations that the whole space is not tried: 1,000 of it.
_SMALL = {"population": 50, "generations": 20, "parents": 15}
#: Still fewer, a ninth of the space and less than most budgets leave.
_FEW = {"population": 20, "generations": 12, "parents": 8}
_SEEDS = range(3)
_SUBNETS = (100, 200, 400)
_KEEP = 10

Choices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Case:
    """One budget and what is true about it on one part of the images."""

    budgets: tuple[Budget, ...]
    kept: NDArray[np.bool_]

    def best(self, values: NDArray[np.float64]) -> float:
        """The smallest value of all subnets that keep the budgets."""
        return float(values[self.kept].min())


def main() -> None:
    """Measure what is missing, prove, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=Path, metavar="FILE", help="measure the table; FILE keeps what is done")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure is not None:
        measure_all(options.measure, make_progress(quiet=False, verbose=False))
    table = load_table()
    model = CostModel(table.space)
    cases = budget_cases(table, model)
    figures: dict[str, Any] = {"seed": SEED, "bits": sorted(BITS), "genes": list(SEARCHED), "table": TABLE.name}
    figures |= {"subnets": len(table.choices), "images": {part: sum(n) for part, n in table.images.items()}}
    figures["budgets"] = [[str(budget) for budget in case.budgets] for case in cases]
    tables = [summary(table)]
    for part in table.images:
        genetic = {name: true_search(table, model, cases, part, how) for name, how in (("1000", _SMALL), ("240", _FEW))}
        fronts = true_fronts(table, model, part)
        predicted = [predicted_search(table, model, cases, part, count) for count in _SUBNETS]
        figures[part] = {"genetic": genetic, "fronts": fronts, "predicted": predicted}
        tables += part_tables(part, table, genetic, fronts, predicted)
    tables.append(budget_table(table, cases))
    write_results("search-digits", "python benchmarks/search_digits.py", figures, tables)


def budget_cases(table: TrueTable, model: CostModel) -> list[Case]:
    """20 budgets: single metrics and mixtures."""
    wanted = [{metric: share} for metric in _SINGLE for share in _SHARES] + list(_MIXTURES)
    costs = model.costs(table.choices)
    cases = []
    for limits in wanted:
        budgets = tuple(
            Budget(metric, rounded_up(float(np.quantile(costs[metric], share)))) for metric, share in limits.items()
        )
        cases.append(Case(budgets, model.feasible(table.choices, budgets)))
    return cases


def true_search(
    table: TrueTable, model: CostModel, cases: Sequence[Case], part: str, how: dict[str, int]
) -> dict[str, Any]:
    """How often the genetic algorithm finds the true optimum of the true losses."""
    losses = table.loss(part)
    objective = looked_up(table, losses)
    found, evaluations, by_chance = [], [], []
    for seed in _SEEDS:
        settings = GeneticSettings(seed=seed, **how)
        hits = []
        for case in cases:
            result = search(objective, model, case.budgets, seeds=table.space.uniform(), settings=settings)
            hits.append(bool(result.losses[0] <= case.best(losses)))
            evaluations.append(result.evaluations)
            by_chance.append(min(1.0, result.evaluations / int(case.kept.sum())))
        found.append(hits)
    return {
        "settings": how,
        "found_of_20": [sum(hits) for hits in found],
        "found": found,
        "evaluations_mean": float(np.mean(evaluations)),
        "expected_of_20_by_chance": len(cases) * float(np.mean(by_chance)),
    }


def true_fronts(table: TrueTable, model: CostModel, part: str) -> dict[str, Any]:
    """Share of the true front's hypervolume that NSGA-II finds on the true losses."""
    losses = table.loss(part)
    shares: dict[str, list[float]] = {}
    for metric in _FRONTS:
        costs = model.cost(metric, table.choices)
        for name, scale in (("loss", lambda x: x), ("log loss", np.log)):
            values = scale(losses)
            objective = looked_up(table, values)
            reference = (float(costs.max()) * 1.01, float(values.max()) + 0.01 * float(np.ptp(values)))
            whole = hypervolume(costs, values, reference)
            shares[f"{metric}, {name}"] = [
                hypervolume(front.costs[metric], front.losses, reference) / whole
                for seed in _SEEDS
                for front in [
                    pareto_front(
                        objective,
                        model,
                        [metric],
                        seeds=table.space.uniform(),
                        settings=GeneticSettings(seed=seed, **_SMALL),
                    )
                ]
            ]
    return {"hypervolume": shares, "smallest": min(min(values) for values in shares.values())}


def predicted_search(
    table: TrueTable, model: CostModel, cases: Sequence[Case], part: str, count: int
) -> dict[str, Any]:
    """What a predictor fitted to some subnets costs in true accuracy, on its own and with a choice by measurement."""
    losses, accuracies = table.loss(part), table.accuracy(part)
    rows: dict[str, list[float]] = {"tau": [], "pearson": []}
    regrets: dict[str, list[list[float]]] = {"predictor alone": [], "best of the measured": []}
    by_loss: dict[str, list[list[float]]] = {name: [] for name in regrets}
    random_loss = []
    excess: dict[str, list[float]] = {"predictor alone": [], "best of the measured": [], "random": []}
    for seed in _SEEDS:
        predictor, others = fitted(table, part, count, seed)
        predict = predictor.on(table.space)
        agreed = agreement(predict(table.choices[others]).loss, losses[others], seed=seed)
        rows["tau"].append(agreed.kendall.value)
        rows["pearson"].append(agreed.pearson.value)
        for name in regrets:
            regrets[name].append([])
            by_loss[name].append([])
        for case in cases:
            chosen = dict(zip(regrets, chosen_rows(table, model, case, predict, part, seed), strict=True))
            optimum = int(np.flatnonzero(case.kept)[np.argmin(losses[case.kept])])
            for name, row in chosen.items():
                regrets[name][-1].append(100 * float(accuracies[case.kept].max() - accuracies[row]))
                by_loss[name][-1].append(100 * float(accuracies[optimum] - accuracies[row]))
            least = case.best(losses)
            for name, row in chosen.items():
                excess[name].append(100 * (float(losses[row]) / least - 1))
            excess["random"].append(100 * (float(losses[case.kept].mean()) / least - 1))
            random_loss.append(100 * float(accuracies[case.kept].max() - accuracies[case.kept].mean()))
    return {
        "subnets": count,
        **rows,
        "regret_points": {name: float(np.mean(values)) for name, values in regrets.items()},
        "regret_points_to_the_optimum_of_the_loss": {name: float(np.mean(values)) for name, values in by_loss.items()},
        "regret_points_of_a_random_subnet": float(np.mean(random_loss)),
        "excess_cross_entropy_percent": {name: float(np.mean(values)) for name, values in excess.items()},
        "regret_points_by_seed_and_budget": regrets,
    }


def fitted(table: TrueTable, part: str, count: int, seed: int) -> tuple[Predictor, NDArray[np.int64]]:
    """A predictor of some random subnets, and the rows of the others."""
    random = np.random.default_rng(seed)
    drawn = table.rows(random_choices(table.space, 20 * count, random))
    known = np.array(list(dict.fromkeys(drawn.tolist()))[:count], np.int64)
    predictor = fit_predictor(
        encoding(table),
        [table.space.subnet(table.choices[row]) for row in known],
        [table.measurement(int(row), part) for row in known],
        seed=seed,
    )
    return predictor, np.setdiff1d(np.arange(len(table.choices)), known)


def chosen_rows(
    table: TrueTable, model: CostModel, case: Case, predict: Callable[[Choices], Prediction], part: str, seed: int
) -> tuple[int, int]:
    """Rows that the search chooses: by the predictor alone, and by measurement, as ``eqdeploy search`` does."""
    anchor = check_feasible(model, case.budgets)
    problem = SearchProblem(table.space, model, case.budgets, (), anchor, None)
    surrogate = fit_surrogate(predict, Target.CROSS_ENTROPY, model, case.budgets, anchor, seed)
    program = minimize(surrogate.table, model.limits(case.budgets))
    assert program is not None
    genetic = search(
        lambda choices: predict(choices).loss,
        model,
        case.budgets,
        seeds=np.concatenate([program.choices[None], table.space.uniform()]),
        settings=GeneticSettings(seed=seed, **_SMALL),
        keep=_KEEP,
    )
    candidates = collect(problem, genetic.choices, program.choices, seed).choices
    rows = table.rows(candidates)
    measurements = [table.measurement(int(row), part) for row in rows]
    measured = int(rows[choose(measurements, predict(candidates), Target.CROSS_ENTROPY)])
    return int(table.rows(genetic.choices[:1])[0]), measured


def looked_up(table: TrueTable, values: NDArray[np.float64]) -> Callable[[Choices], NDArray[np.float64]]:
    """The true losses as an objective."""
    return lambda choices: values[table.rows(choices)]


def hypervolume(costs: NDArray[np.float64], losses: NDArray[np.float64], reference: tuple[float, float]) -> float:
    """Area that points dominate, both coordinates minimized."""
    area, height = 0.0, reference[1]
    for cost, loss in sorted(zip(costs.tolist(), losses.tolist(), strict=True)):
        if loss < height:
            area += (reference[0] - cost) * (height - loss)
            height = loss
    return area


def summary(table: TrueTable) -> str:
    """What the table is."""
    ranges = "; ".join(
        f"{part.replace('_', ' ')}: accuracy {table.accuracy(part).min():.2%} to {table.accuracy(part).max():.2%}, "
        f"cross-entropy {table.loss(part).min():.5f} to {table.loss(part).max():.5f} on {sum(images)} images"
        for part, images in table.images.items()
    )
    return (
        f"All {len(table.choices):,} subnets of the shipped digits supernet in which {', '.join(SEARCHED)} have one of "
        f"{', '.join(map(str, sorted(BITS)))} bits and everything else {BITS[0]} (first and last layer 8), per-channel "
        f"symmetric weights: `results/{TABLE.name}`, measured once with `python benchmarks/search_digits.py --measure "
        f"FILE`. {ranges}. The test images serve as a second set of numbers to optimize here, no claim about "
        "generalization is made with them. The genetic algorithm and NSGA-II evaluate at most "
        f"{_SMALL['population'] * _SMALL['generations']:,} subnets (the defaults' 50,000 would be the whole space many "
        f"times), start from the uniform configurations, with seeds 0 to {max(_SEEDS)}."
    )


def part_tables(
    part: str, table: TrueTable, genetic: dict[str, Any], fronts: dict[str, Any], predicted: Sequence[dict[str, Any]]
) -> list[str]:
    """Lay out the results on one part of the images."""
    head = f"## {part.replace('_', ' ').capitalize()} images"
    found_many, found_few = (", ".join(map(str, genetic[name]["found_of_20"])) for name in ("1000", "240"))
    few, many = genetic["240"], genetic["1000"]
    text = (
        f"The genetic algorithm on the true losses finds the true optimum under {found_few} of 20 budgets (3 seeds) "
        f"with {few['evaluations_mean']:.0f} evaluations of {len(table.choices):,} subnets on average; as many random "
        f"subnets within the budgets would have it in {few['expected_of_20_by_chance']:.1f} of 20. With "
        f"{many['evaluations_mean']:.0f} evaluations, which is nearly all that most budgets leave "
        f"({many['expected_of_20_by_chance']:.1f} by chance), it is {found_many}. NSGA-II finds at least "
        f"{fronts['smallest']:.2%} of the true front's hypervolume:"
    )
    front_rows = [[name, *(f"{value:.3%}" for value in values)] for name, values in fronts["hypervolume"].items()]
    rows = [
        [
            row["subnets"],
            f"{np.mean(row['tau']):.3f}",
            f"{np.mean(row['pearson']):.3f}",
            *(f"{value:.3f}" for value in row["regret_points"].values()),
            *(f"{value:.3f}" for value in row["regret_points_to_the_optimum_of_the_loss"].values()),
            f"{row['regret_points_of_a_random_subnet']:.3f}",
            *(f"{value:.2f} %" for value in row["excess_cross_entropy_percent"].values()),
        ]
        for row in predicted
    ]
    header = [
        *("subnets fitted to", "Kendall tau", "Pearson"),
        *("regret, predictor alone", f"regret, best of the {_KEEP} and seeds measured"),
        *("to the loss's optimum, predictor alone", "same, measured", "regret of a random subnet"),
        *("excess cross-entropy, predictor alone", "same, measured", "same, random subnet"),
    ]
    words = (
        "With a predictor, the regret in true accuracy: points under the most accurate of all subnets that keep the "
        "budget (and under the one with the smallest cross-entropy), and by how much its cross-entropy is above the "
        "smallest, mean over 20 budgets and three seeds. Predictor and choice go by cross-entropy: what is left of the "
        "regret where the optimum of the cross-entropy is found is the difference of the two measures."
    )
    return [
        head,
        text,
        markdown_table(["metric", *(f"seed {seed}" for seed in _SEEDS)], front_rows),
        words,
        markdown_table(header, rows),
    ]


def budget_table(table: TrueTable, cases: Sequence[Case]) -> str:
    """The budgets, and what is best under each."""
    rows = []
    for case in cases:
        row = [" and ".join(map(str, case.budgets)), f"{case.kept.sum():,}"]
        for part in table.images:
            row.append(f"{case.best(table.loss(part)):.5f}")
            row.append(f"{table.accuracy(part)[case.kept].max():.2%}")
        rows.append(row)
    columns = [f"{what}, {part.replace('_', ' ')}" for part in table.images for what in ("best loss", "best accuracy")]
    return "## Budgets\n\n" + markdown_table(["budget", "subnets that keep it", *columns], rows)


if __name__ == "__main__":
    main()
