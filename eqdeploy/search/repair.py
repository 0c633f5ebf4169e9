"""Make choices keep budgets by moving them step by step towards choices that do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eqdeploy.search.budgets import Budget
from eqdeploy.search.costs import CostModel

#: Genes that are tried when a budget is filled.
_ATTEMPTS = 8


class Repair:
    """Lowers widths in random order until all budgets are kept.

    The widths go towards those of ``anchor``, which keeps the budgets: with costs that grow with widths these are the
    smallest ones, so only what is needed is lowered. Genes that no broken budget depends on change last.

    Args:
        model: Costs of the space.
        budgets: Limits that hold together.
        anchor: Choices that keep them, shape (G,).

    Raises:
        ValueError: If ``anchor`` does not keep the budgets.
    """

    def __init__(self, model: CostModel, budgets: Sequence[Budget], anchor: NDArray[np.int64]) -> None:
        self._model, self._budgets = model, tuple(budgets)
        self._limits = model.limits(budgets)
        self._anchor = anchor
        self._most_steps = int(np.maximum(model.space.sizes - 1, 0).max(initial=0))
        genes = [table.genes for table, _ in self._limits]
        self._matters = np.array(genes, np.bool_).reshape(len(genes), len(anchor))
        if not self.feasible(anchor[None])[0]:
            raise ValueError("the anchor must keep all budgets")

    def feasible(self, choices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether choices keep all budgets, shape (P,), for choices of shape (P, G)."""
        return self._model.feasible(choices, self._budgets)

    def __call__(self, choices: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """Choices that keep all budgets, shape (P, G); rows that do already stay as they are."""
        if not self._limits:
            return choices
        broken = np.stack([table(choices) > limit for table, limit in self._limits], axis=1)
        rows = np.flatnonzero(broken.any(axis=1))
        if not len(rows):
            return choices
        repaired = choices.copy()
        repaired[rows] = self._moved(choices[rows], broken[rows] @ self._matters, random)
        return repaired

    def filled(
        self, choices: NDArray[np.int64], sizes: NDArray[np.int64], random: np.random.Generator
    ) -> NDArray[np.int64]:
        """Raise random genes, each by one width, where the budgets are still kept.

        Args:
            choices: Choices that keep the budgets, shape (P, G).
            sizes: Number of choices of each gene, shape (G,).
            random: Source of randomness.
        """
        for _ in range(_ATTEMPTS):
            choices = self._raised(choices, random.integers(len(sizes), size=len(choices)), sizes)
        return choices

    def exhausted(
        self, choices: NDArray[np.int64], sizes: NDArray[np.int64], random: np.random.Generator
    ) -> NDArray[np.int64]:
        """Raise genes in random order, a width at a time, until no gene can be raised without breaking a budget.

        Args:
            choices: Choices that keep the budgets, shape (P, G).
            sizes: Number of choices of each gene, shape (G,).
            random: Source of randomness.
        """
        while True:
            before = choices
            for genes in random.permuted(np.tile(np.arange(len(sizes)), (len(choices), 1)), axis=1).T:
                choices = self._raised(choices, genes, sizes)
            if np.array_equal(choices, before):
                return choices

    def _raised(
        self, choices: NDArray[np.int64], genes: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Each row with one gene, of shape (P,), a width up, where it can be and the budgets are still kept."""
        rows = np.arange(len(choices))
        raised = choices.copy()
        raised[rows, genes] = np.minimum(raised[rows, genes] + 1, sizes[genes] - 1)
        return np.where(self.feasible(raised)[:, None], raised, choices)

    def _moved(
        self, choices: NDArray[np.int64], useful: NDArray[np.bool_], random: np.random.Generator
    ) -> NDArray[np.int64]:
        """Take the fewest steps of a random order after which a row keeps the budgets."""
        distance = self._anchor - choices
        turn = random.random((*choices.shape, self._most_steps))
        turn += ~useful[:, :, None]
        turn[np.arange(self._most_steps) >= np.abs(distance)[:, :, None]] = 3.0  # no such step
        order = np.sort(turn.reshape(len(choices), -1), axis=1)
        direction = np.sign(distance)

        def after(steps: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
            last = order[rows, steps - 1]
            return np.asarray(
                choices[rows] + direction[rows] * (turn[rows] <= last[:, None, None]).sum(axis=2), np.int64
            )

        # Bisection: after `kept` steps a row keeps the budgets, after `broken` steps it does not.
        broken = np.zeros(len(choices), np.int64)
        kept = np.abs(distance).sum(axis=1)
        while len(rows := np.flatnonzero(kept - broken > 1)):
            middle = (broken[rows] + kept[rows]) // 2
            fits = self.feasible(after(middle, rows))
            kept[rows[fits]] = middle[fits]
            broken[rows[~fits]] = middle[~fits]
        return after(kept, np.arange(len(choices)))
