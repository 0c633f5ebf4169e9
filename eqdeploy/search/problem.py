"""What is searched: a space, what its subnets cost, and the limits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import UsageError
from eqdeploy.network import NetworkDescription
from eqdeploy.profile import DeviceProfile
from eqdeploy.requests import SearchOptions
from eqdeploy.search.budgets import Budget, Metric, parse_budgets
from eqdeploy.search.costs import CostModel
from eqdeploy.search.feasibility import check_feasible
from eqdeploy.search.latency import LatencyTable
from eqdeploy.search.outcome import LayerWidths
from eqdeploy.search.space import SearchSpace, search_space


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """Limits that can be kept, and what can be chosen.

    Attributes:
        space: What can be chosen.
        model: What it costs.
        budgets: Limits that hold together.
        front: Costs that are traded off against the loss; empty where there is nothing to search.
        anchor: Choices that keep the budgets, shape (G,).
        latency_digest: SHA-256 of the table of times, None without one.
    """

    space: SearchSpace
    model: CostModel
    budgets: tuple[Budget, ...]
    front: tuple[Metric, ...]
    anchor: NDArray[np.int64]
    latency_digest: str | None

    @property
    def front_budgets(self) -> tuple[Budget, ...]:
        """Limits that the Pareto front keeps, too: those on what it does not trade off."""
        return tuple(budget for budget in self.budgets if budget.metric not in self.front)


def make_problem(profile: DeviceProfile, network: NetworkDescription, options: SearchOptions) -> SearchProblem:
    """Find out what can be chosen and what it costs, and refuse budgets that nothing keeps.

    Raises:
        ProfileError: If the supernet cannot serve the profile.
        UsageError: If a budget or metric is none, a table of times is wrong or missing, or nothing keeps the budgets.
        MissingDependencyError: If scipy is needed and not installed.
    """
    budgets = parse_budgets(options.budgets)
    front = _front(options.front, budgets)
    space = search_space(profile, network)
    latency = None if options.latency is None else LatencyTable.read(options.latency)
    model = CostModel(space, latency)
    anchor = check_feasible(model, budgets)  # before the front, which without being asked for is the first budget's
    for metric in front:
        if metric not in model.tables:
            raise UsageError(
                f"{metric} needs a table of measured times", where="--front", hint="give one with --latency FILE.csv"
            )
    return SearchProblem(
        space=space,
        model=model,
        budgets=budgets,
        front=front if space.genes else (),
        anchor=anchor,
        latency_digest=None if options.latency is None else _digest(options.latency),
    )


def layer_widths(space: SearchSpace, choices: NDArray[np.int64]) -> tuple[LayerWidths, ...]:
    """Widths of every layer's weight and input on the device, for choices of shape (G,)."""
    plan = space.plan(choices)
    tensors = {row.merged_copy or row.tensor: row.device.bits for row in plan.tensors if row.device is not None}
    searched = {(gene.role.value, name) for gene in space.genes for name in gene.names}
    return tuple(
        LayerWidths(
            layer.name,
            plan.weight[layer.name].trained.bits,
            tensors[layer.input_tensor],
            (("weight", layer.name) in searched, ("activation", layer.input_tensor) in searched),
        )
        for layer in space.network.layers
    )


def _front(names: Sequence[str], budgets: Sequence[Budget]) -> tuple[Metric, ...]:
    """Metrics of the Pareto front: those asked for, else that of the first budget."""
    for name in names:
        if name not in list(Metric):
            raise UsageError(f"unknown metric {name!r}", where="--front", hint=f"possible are {', '.join(Metric)}")
    if names:
        return tuple(dict.fromkeys(Metric(name) for name in names))
    return (budgets[0].metric,) if budgets else (Metric.AVG_WEIGHT_BITS,)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
