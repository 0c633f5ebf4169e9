"""Whether budgets can be kept at all, and which ones nearby can."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import UsageError
from eqdeploy.search.budgets import Budget, number, rounded_up
from eqdeploy.search.costs import CostModel
from eqdeploy.search.integer_program import optimum
from eqdeploy.search.tables import AdditiveTable


def check_feasible(model: CostModel, budgets: Sequence[Budget]) -> NDArray[np.int64]:
    """Refuse budgets that no subnet of a space keeps.

    Args:
        model: Costs of the space.
        budgets: Limits that hold together.

    Returns:
        Choices that keep all budgets, shape (G,).

    Raises:
        UsageError: If there are none. Names for each budget that is too small the nearest value that is possible with
            the other budgets held, or, where it does not help to change a single one, on its own.
        MissingDependencyError: If scipy is needed and not installed.
    """
    lowest = np.zeros(len(model.space.genes), np.int64)
    if model.feasible(lowest[None], budgets)[0]:
        return lowest
    # The smallest widths need not be the fastest.
    anything = AdditiveTable(tuple(np.zeros(size) for size in model.space.sizes.tolist()))
    found = optimum(anything, model, budgets)
    if found is not None:
        return found.choices
    raise _refusal(model, budgets)


def nearest_limits(model: CostModel, budgets: Sequence[Budget]) -> dict[Budget, Budget | None]:
    """For each budget the smallest one of its kind that can be kept together with the other ones.

    None where the other ones cannot be kept even without it.
    """
    nearest: dict[Budget, Budget | None] = {}
    for budget in budgets:
        found = optimum(model.table(budget.metric), model, [other for other in budgets if other is not budget])
        nearest[budget] = None if found is None else Budget(budget.metric, found.value)
    return nearest


def _refusal(model: CostModel, budgets: Sequence[Budget]) -> UsageError:
    """Say which budgets are too small and what they could be."""
    profile = model.space.profile.name
    alone = [(budget, nearest_limits(model, [budget])[budget]) for budget in budgets]
    impossible = [(budget, own) for budget, own in alone if own is not None and own.limit > budget.limit]
    if impossible:
        names = " and ".join(str(budget) for budget, _ in impossible)
        smallest = ", ".join(_proposal(own) for _, own in impossible)
        return UsageError(
            f"no subnet for {profile} keeps {names}", where="--budget", hint=f"smallest possible: {smallest}"
        )
    together = [own for own in nearest_limits(model, budgets).values() if own is not None]
    # Three budgets can exclude each other in pairs; then no single one can be changed alone.
    proposals = " or ".join(_proposal(own) for own in together) or "each is possible on its own, give fewer budgets"
    return UsageError(
        f"no subnet for {profile} keeps {' and '.join(str(budget) for budget in budgets)} together",
        where="--budget",
        hint=f"nearest with the others held: {proposals}" if together else proposals,
    )


def _proposal(budget: Budget) -> str:
    """A budget that can be kept, rounded up."""
    return f"{budget.metric}<={number(rounded_up(budget.limit))}"
