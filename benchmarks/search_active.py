"""Whether the predictor's own uncertainty chooses better subnets to measure next than chance: on a table of truths."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import markdown_table, write_results
from numpy.typing import NDArray
from scipy import stats
from search_table import TrueTable, encoding, load_table

from eqdeploy.search.fitting import fit_predictor
from eqdeploy.search.predictor import Predictor
from eqdeploy.search.surrogate import random_choices

_PART = "held_back"
_START, _STEP, _END = 60, 40, 180
_SEEDS = range(4)
_STRATEGIES = ("random", "spread", "uncertain")
#: Subnets with the smallest losses: a search needs to know these best.
_BEST = 0.1


def main() -> None:
    """Compare and write the table."""
    torch.set_num_threads(1)
    table = load_table()
    curves = {strategy: [grow(table, strategy, seed) for seed in _SEEDS] for strategy in _STRATEGIES}
    counts = list(range(_START, _END + 1, _STEP))
    figures: dict[str, Any] = {"seeds": list(_SEEDS), "counts": counts, "curves": curves}
    differences = {
        key: [
            (np.array(curves["uncertain"][seed][key]) - np.array(curves["random"][seed][key])).tolist()
            for seed in _SEEDS
        ]
        for key in ("tau", "pearson", "tau_of_the_best")
    }
    figures["uncertain_minus_random"] = differences
    rows = [
        [
            count,
            *(
                f"{np.mean([curve[key][index] for curve in curves[strategy]]):.3f}"
                for key in ("tau", "pearson", "tau_of_the_best")
                for strategy in _STRATEGIES
            ),
            f"{sum(row[index] > 0 for row in differences['tau'])} of {len(_SEEDS)}",
            f"{sum(row[index] > 0 for row in differences['tau_of_the_best'])} of {len(_SEEDS)}",
        ]
        for index, count in enumerate(counts)
    ]
    header = ["subnets measured"]
    header += [
        f"{what}, {strategy}" for what in ("tau", "Pearson", "tau of the best tenth") for strategy in _STRATEGIES
    ]
    words = (
        f"From {_START} subnets with evenly spread average widths on, {_STEP} more at a time of the "
        f"{len(table.choices):,} in the table of `search-digits`: random ones of the table, more with evenly spread "
        "average widths, as `eqdeploy sample` draws them, or those about which the ensemble disagrees most (standard "
        "deviation of its members on the scale that is predicted on). Judged on all subnets that are not measured; "
        f"mean over {len(_SEEDS)} seeds."
    )
    write_results(
        "search-active",
        "python benchmarks/search_active.py",
        figures,
        [
            words,
            markdown_table(
                [
                    *header,
                    *(f"seeds in which uncertain beats random, {what}" for what in ("tau", "tau of the best tenth")),
                ],
                rows,
            ),
        ],
    )


def grow(table: TrueTable, strategy: str, seed: int) -> dict[str, list[float]]:
    """Measure more and more subnets, and judge a predictor after each step."""
    random = np.random.default_rng(seed)
    drawn = table.rows(random_choices(table.space, 40 * _END, random)).tolist()
    order = list(dict.fromkeys(drawn))
    known = order[:_START]
    curve: dict[str, list[float]] = {"tau": [], "pearson": [], "tau_of_the_best": []}
    while True:
        predictor = fitted(table, known, seed)
        others = np.setdiff1d(np.arange(len(table.choices)), known)
        prediction = predictor.on(table.space)(table.choices[others])
        judge(curve, prediction.loss, table.loss(_PART)[others])
        if len(known) >= _END:
            return curve
        if strategy == "random":
            known = known + random.choice(others, _STEP, replace=False).tolist()
        elif strategy == "spread":
            known = order[: len(known) + _STEP]
        else:
            doubt = prediction.uncertainty / predictor.target.slope(prediction.loss)
            known = known + others[np.argsort(-doubt, kind="stable")[:_STEP]].tolist()


def fitted(table: TrueTable, rows: list[int], seed: int) -> Predictor:
    """A predictor of some rows."""
    subnets = [table.space.subnet(table.choices[row]) for row in rows]
    return fit_predictor(encoding(table), subnets, [table.measurement(row, _PART) for row in rows], seed=seed)


def judge(curve: dict[str, list[float]], predicted: NDArray[np.float64], losses: NDArray[np.float64]) -> None:
    """Add how well predictions agree with the truth."""
    best = losses <= np.quantile(losses, _BEST)
    curve["tau"].append(float(stats.kendalltau(predicted, losses).statistic))
    curve["pearson"].append(float(np.corrcoef(np.log(predicted), np.log(losses))[0, 1]))
    curve["tau_of_the_best"].append(float(stats.kendalltau(predicted[best], losses[best]).statistic))


if __name__ == "__main__":
    main()
