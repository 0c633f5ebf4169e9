"""Exact optima of sums of tables under budgets: an integer program that HiGHS solves.

Each gene has one binary variable for each choice, of which exactly one is 1. A table over two genes has one continuous
variable for each pair of choices; its rows and columns add up to the binary variables, so it is 0 or 1 on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import EqDeployError
from eqdeploy.search.budgets import Budget
from eqdeploy.search.costs import CostModel
from eqdeploy.search.dependencies import require
from eqdeploy.search.tables import AdditiveTable, PairTable

#: Coefficients of rows are scaled to this magnitude: HiGHS accepts absolute errors of 1e-6.
_MAGNITUDE = 1e4

#: Solutions that break a limit by less than HiGHS notices are cut off one by one, but not forever: limits of sums of
#: whole numbers lie between two of them, so that it notices.
_MOST_CUTS = 100

#: Up to here neighbouring whole numbers are different floats.
_EXACT = float(1 << 53)

#: Status codes of scipy.optimize.milp.
_OPTIMAL, _LIMIT_REACHED, _INFEASIBLE = 0, 1, 2

Limits = Sequence[tuple[AdditiveTable, float]]


@dataclass(frozen=True)
class Optimum:
    """What the integer program found.

    Attributes:
        choices: The best choices, shape (G,).
        value: Their value.
        bound: No choices that keep the budgets have a smaller value. Equal to ``value`` up to rounding where the
            program was solved to the end.
    """

    choices: NDArray[np.int64]
    value: float
    bound: float


def optimum(
    surrogate: AdditiveTable, model: CostModel, budgets: Sequence[Budget], *, node_limit: int | None = None
) -> Optimum | None:
    """Choices with the smallest value that keep all budgets.

    Args:
        surrogate: What is minimized, e.g. an additive estimate of the loss.
        model: Costs of the same space.
        budgets: Limits that hold together.
        node_limit: Give up to prove optimality after this many nodes of the search tree. Never, if None.

    Returns:
        The optimum, or None if no choices keep the budgets.

    Raises:
        MissingDependencyError: If scipy is not installed.
        UsageError: If the latency is limited and there is no table of times.
        EqDeployError: If the solver fails, or finds nothing within ``node_limit``.
    """
    return minimize(surrogate, model.limits(budgets), node_limit=node_limit)


def minimize(objective: AdditiveTable, limits: Limits, *, node_limit: int | None = None) -> Optimum | None:
    """Like :func:`optimum`, for any tables over the same genes.

    Args:
        objective: What is minimized.
        limits: Tables with the largest value that each may have.
        node_limit: See :func:`optimum`.
    """
    if not objective.singles:
        nothing = np.zeros(0, np.int64)
        if not _within(limits, nothing):
            return None
        value = float(objective(nothing[None])[0])
        return Optimum(nothing, value, value)
    program = _Program(objective, limits)
    for _ in range(_MOST_CUTS):
        found = program.solve(node_limit)
        if found is None or _within(limits, found.choices):
            return found
        program.cut_off(found.choices)
    raise EqDeployError(f"the solver found nothing that keeps the budgets exactly in {_MOST_CUTS} attempts")


class _Program:
    """The variables and rows of one integer program."""

    def __init__(self, objective: AdditiveTable, limits: Limits) -> None:
        self._objective = objective
        self._sizes = [len(values) for values in objective.singles]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]).tolist()
        self._pairs: dict[tuple[int, int], int] = {}
        self._count = self._starts[-1]
        for table in (objective, *(table for table, _ in limits)):
            for pair in table.pairs:
                if (pair.first, pair.second) not in self._pairs:
                    self._pairs[pair.first, pair.second] = self._count
                    self._count += pair.values.size
        self._rows: list[NDArray[np.float64]] = []
        self._columns: list[NDArray[np.int64]] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._one_choice_each()
        self._pairs_agree()
        for table, limit in limits:
            self._limit(table, limit)

    def solve(self, node_limit: int | None) -> Optimum | None:
        """Solve what is written so far."""
        require("scipy.optimize")
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        coefficients = self._coefficients(self._objective)
        span = float(np.ptp(coefficients)) or 1.0
        indices = np.concatenate(self._columns)
        pointers = np.concatenate([[0], np.cumsum([len(columns) for columns in self._columns])])
        matrix = csr_array((np.concatenate(self._rows), indices, pointers), shape=(len(self._rows), self._count))
        integral = np.zeros(self._count)
        integral[: self._starts[-1]] = 1
        options: dict[str, float] = {"mip_rel_gap": 0.0}
        if node_limit is not None:
            options["node_limit"] = node_limit
        result = milp(
            coefficients / span,
            integrality=integral,
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, self._lower, self._upper),
            options=options,
        )
        if result.status == _INFEASIBLE:
            return None
        if result.x is None or result.status not in (_OPTIMAL, _LIMIT_REACHED):
            raise EqDeployError(f"the solver failed: {result.message}")
        choices = np.array(
            [
                int(np.argmax(result.x[start : start + size]))
                for start, size in zip(self._starts, self._sizes, strict=False)
            ],
            np.int64,
        )
        value = float(self._objective(choices[None])[0])
        bound = (float(result.mip_dual_bound) * span + self._objective.constant) / self._objective.divisor
        return Optimum(choices, value, min(bound, value))

    def cut_off(self, choices: NDArray[np.int64]) -> None:
        """Forbid one solution."""
        columns = np.array(self._starts[:-1], np.int64) + choices
        self._add(columns, np.ones(len(columns)), -np.inf, len(columns) - 1)

    def _one_choice_each(self) -> None:
        for start, size in zip(self._starts, self._sizes, strict=False):
            self._add(np.arange(start, start + size), np.ones(size), 1, 1)

    def _pairs_agree(self) -> None:
        """Tie the variables of pairs to those of their genes."""
        for (first, second), start in self._pairs.items():
            cells = start + np.arange(self._sizes[first] * self._sizes[second]).reshape(self._sizes[first], -1)
            for gene, lines in ((first, cells), (second, cells.T)):
                for choice, line in enumerate(lines):
                    columns = np.append(line, self._starts[gene] + choice)
                    self._add(columns, np.append(np.ones(len(line)), -1.0), 0, 0)

    def _limit(self, table: AdditiveTable, limit: float) -> None:
        """Limit the value of a table."""
        coefficients = self._coefficients(table)
        columns = np.flatnonzero(coefficients)
        scale = _MAGNITUDE / max(float(np.abs(coefficients).max()), np.finfo(float).tiny)
        largest = (_largest_total(table, limit) - table.constant) * scale
        if len(columns):
            self._add(columns, coefficients[columns] * scale, -np.inf, largest)
        elif table.constant / table.divisor > limit:
            self._add(np.zeros(1, np.int64), np.ones(1), 2, np.inf)  # nothing helps

    def _coefficients(self, table: AdditiveTable) -> NDArray[np.float64]:
        """The factor of every variable in a table's sum."""
        factors = np.zeros(self._count)
        factors[: self._starts[-1]] = np.concatenate(table.singles)
        for pair in table.pairs:
            factors[self._slice(pair)] += pair.values.ravel()
        return factors

    def _slice(self, pair: PairTable) -> slice:
        start = self._pairs[pair.first, pair.second]
        return slice(start, start + pair.values.size)

    def _add(self, columns: NDArray[np.int64], values: NDArray[np.float64], lower: float, upper: float) -> None:
        self._columns.append(columns)
        self._rows.append(values)
        self._lower.append(lower)
        self._upper.append(upper)


def _largest_total(table: AdditiveTable, limit: float) -> float:
    """A bound on the sum before the division that tells what keeps a limit from what does not.

    Of whole numbers the next one above the largest that keeps the limit is a whole step away: the bound is half a step
    above, far from both.
    """
    total = limit * table.divisor
    parts = [*table.singles, *(pair.values for pair in table.pairs), np.array([table.constant])]
    if not abs(total) < _EXACT or any((part != np.rint(part)).any() for part in parts):
        return total
    # The product is rounded: what counts is the quotient, as the table computes it.
    whole = np.rint(total)
    whole = whole - 1 if whole / table.divisor > limit else whole
    return float(whole) + 0.5


def _within(limits: Limits, choices: NDArray[np.int64]) -> bool:
    """Whether choices keep limits exactly."""
    return all(float(table(choices[None])[0]) <= limit for table, limit in limits)
