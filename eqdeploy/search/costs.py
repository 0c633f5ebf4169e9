"""What the subnets of a search space cost, for many of them at once.

Every cost is a sum over layers or tensors. It is kept as tables over choices: one for each gene, and for costs that
depend on the widths of a layer's weight and of its input together, one for each such pair of genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import UsageError
from eqdeploy.network import LayerInfo, OpKind
from eqdeploy.search.budgets import Budget, Metric, parse_budget, parse_budgets
from eqdeploy.search.genes import Role
from eqdeploy.search.latency import LatencyTable
from eqdeploy.search.space import SearchSpace
from eqdeploy.search.tables import AdditiveTable, PairTable

__all__ = [
    "Budget",
    "CostModel",
    "LatencyTable",
    "Metric",
    "parse_budget",
    "parse_budgets",
]

_BYTES_PER_BIAS = 4

#: Times are added up as whole nanoseconds: sums of fractions depend on their order in the last digit, and then a limit
#: that is exactly kept seems broken.
_NANOSECONDS = 1e6
_MOST_NAMED = 3

#: Cost of one layer for a width of its weight and a width of its input.
_LayerCost = Callable[[LayerInfo, int, int], float]


@dataclass(frozen=True)
class _Widths:
    """Widths on the device that a weight or a tensor can have.

    Attributes:
        gene: Index of the gene that decides, None if nothing does.
        bits: For each choice; a single one without a gene.
    """

    gene: int | None
    bits: tuple[int, ...]


class CostModel:
    """Costs of the subnets of a space.

    Args:
        space: The space.
        latency: Measured times, None to do without :attr:`Metric.LATENCY_MS`.

    Raises:
        UsageError: If times of layers or of widths are missing, or a layer is unknown.
    """

    def __init__(self, space: SearchSpace, latency: LatencyTable | None = None) -> None:
        self.space = space
        self._weights = _weight_widths(space)
        self._tensors = _tensor_widths(space)
        self.tables: Mapping[Metric, AdditiveTable] = {
            Metric.AVG_WEIGHT_BITS: self._average_weight_bits(),
            Metric.AVG_ACTIVATION_BITS: self._average_activation_bits(),
            Metric.MODEL_BYTES: self._by_layer(_model_bytes),
            Metric.BITOPS: self._by_layer(_bitops),
        }
        if latency is not None:
            self._check_complete(latency)
            times = {key: float(round(time * _NANOSECONDS)) for key, time in latency.milliseconds.items()}
            self.tables = {
                **self.tables,
                Metric.LATENCY_MS: self._by_layer(lambda layer, w, a: times[layer.name, w, a], divisor=_NANOSECONDS),
            }

    @property
    def widths(self) -> Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """For each layer the widths that its weight, and those that its input can have on the device."""
        return {
            layer.name: (self._weights[layer.name].bits, self._tensors[layer.input_tensor].bits)
            for layer in self.space.network.layers
        }

    def costs(self, choices: NDArray[np.int64]) -> dict[Metric, NDArray[np.float64]]:
        """All costs.

        Args:
            choices: One row for each subnet, shape (P, G).

        Returns:
            For each metric an array of shape (P,).
        """
        return {metric: table(choices) for metric, table in self.tables.items()}

    def cost(self, metric: Metric, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """One cost, shape (P,), of choices of shape (P, G).

        Raises:
            UsageError: If it is the latency and there is no table of times.
        """
        return self.table(metric)(choices)

    def table(self, metric: Metric) -> AdditiveTable:
        """The cost as a sum of tables.

        Raises:
            UsageError: If it is the latency and there is no table of times.
        """
        if metric not in self.tables:
            raise UsageError(
                f"{metric} needs a table of measured times", where="--budget", hint="give one with --latency FILE.csv"
            )
        return self.tables[metric]

    def limits(self, budgets: Sequence[Budget]) -> tuple[tuple[AdditiveTable, float], ...]:
        """Tables of the limited metrics with their limits.

        Raises:
            UsageError: If one is the latency and there is no table of times.
        """
        return tuple((self.table(budget.metric), budget.limit) for budget in budgets)

    def feasible(self, choices: NDArray[np.int64], budgets: Sequence[Budget]) -> NDArray[np.bool_]:
        """Whether subnets keep all budgets, shape (P,), for choices of shape (P, G)."""
        kept = np.ones(len(choices), np.bool_)
        for table, limit in self.limits(budgets):
            kept &= table(choices) <= limit
        return kept

    def _average_weight_bits(self) -> AdditiveTable:
        """Mean over all but the first and the last layer, as ``eqdeploy.budget`` counts it."""
        network = self.space.network
        return self._mean(
            [
                (self._weights[layer.name], layer.parameters)
                for layer in network.weight_owners
                if layer.name not in network.boundary_layers
            ]
        )

    def _average_activation_bits(self) -> AdditiveTable:
        """Mean over the inputs of all but the first and the last layer, as ``eqdeploy.budget`` counts it."""
        network = self.space.network
        return self._mean(
            [
                (self._tensors[tensor.name], tensor.elements)
                for tensor in network.tensors
                if tensor.trained and tensor.name not in network.boundary_tensors
            ]
        )

    def _mean(self, rows: list[tuple[_Widths, int]]) -> AdditiveTable:
        """Mean width weighted by counts; whole numbers until the division, so that it is exact."""
        table = self._empty(divisor=float(sum(count for _, count in rows)) or 1.0)
        for widths, count in rows:
            table.add_single(widths.gene, np.array(widths.bits, np.float64) * count)
        return table.finished()

    def _by_layer(self, cost: _LayerCost, *, divisor: float = 1.0) -> AdditiveTable:
        """Sum over all layers of whole numbers."""
        table = self._empty(divisor=divisor)
        for layer in self.space.network.layers:
            weight, source = self._weights[layer.name], self._tensors[layer.input_tensor]
            values = np.array([[cost(layer, w, a) for a in source.bits] for w in weight.bits], np.float64)
            table.add_pair(weight.gene, source.gene, values)
        return table.finished()

    def _empty(self, *, divisor: float) -> _TableBuilder:
        return _TableBuilder([np.zeros(size) for size in self.space.sizes.tolist()], divisor)

    def _check_complete(self, latency: LatencyTable) -> None:
        """Refuse a table of times that belongs to another network or lacks widths that can be chosen."""
        widths = self.widths
        unknown = sorted({name for name, _, _ in latency.milliseconds} - set(widths))
        if unknown:
            raise UsageError(f"the network has no layer {unknown[0]!r}", where=latency.where)
        missing = [
            f"{layer} W{w}A{a}"
            for layer, (weight_bits, activation_bits) in widths.items()
            for w in weight_bits
            for a in activation_bits
            if (layer, w, a) not in latency.milliseconds
        ]
        if missing:
            more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
            raise UsageError(
                f"no time for {', '.join(missing[:_MOST_NAMED])}{more}",
                where=latency.where,
                hint="every layer needs a time for each width of weight and input that the profile allows",
            )


class _TableBuilder:
    """Adds up a cost."""

    def __init__(self, singles: list[NDArray[np.float64]], divisor: float) -> None:
        self._constant = 0.0
        self._singles = singles
        self._pairs: list[PairTable] = []
        self._divisor = divisor

    def add_single(self, gene: int | None, values: NDArray[np.float64]) -> None:
        """Add what depends on one gene or, without it, on none."""
        if gene is None:
            self._constant += float(values[0])
        else:
            self._singles[gene] += values

    def add_pair(self, first: int | None, second: int | None, values: NDArray[np.float64]) -> None:
        """Add what depends on two genes; as something simpler, where it does not depend on both."""
        if first is None or np.all(values == values[:1]):
            self.add_single(second, values[0])
        elif second is None or np.all(values == values[:, :1]):
            self.add_single(first, values[:, 0])
        else:
            self._pairs.append(PairTable(first, second, values))

    def finished(self) -> AdditiveTable:
        """The table."""
        return AdditiveTable(tuple(self._singles), tuple(self._pairs), self._constant, self._divisor)


def _weight_widths(space: SearchSpace) -> dict[str, _Widths]:
    """Widths of all weights by layer."""
    widths = {plan.layer: _Widths(None, (plan.device.bits,)) for plan in space.base_plan.weights}
    return widths | _gene_widths(space, Role.WEIGHT)


def _tensor_widths(space: SearchSpace) -> dict[str, _Widths]:
    """Widths on the device of all tensors that layers read; of two merged ones under the name of the copy."""
    widths = {
        plan.merged_copy or plan.tensor: _Widths(None, (plan.device.bits,))
        for plan in space.base_plan.tensors
        if plan.device is not None
    }
    return widths | _gene_widths(space, Role.ACTIVATION)


def _gene_widths(space: SearchSpace, role: Role) -> dict[str, _Widths]:
    return {
        name: _Widths(index, gene.bits)
        for index, gene in enumerate(space.genes)
        if gene.role is role
        for name in gene.names
    }


def _model_bytes(layer: LayerInfo, weight_bits: int, activation_bits: int) -> float:
    """Packed weights, and 32 bits for each bias; a weight that layers share counts with the first, a bias with each."""
    channels = layer.weight_shape[layer.channel_axis]
    if layer.op is OpKind.CONV_TRANSPOSE:
        channels *= layer.groups  # its axis counts the channels of one group
    biased = layer.bias or layer.batch_norm is not None
    packed = -(-layer.parameters * weight_bits // 8) if layer.shares_weight_with is None else 0
    return float(packed + (_BYTES_PER_BIAS * channels if biased else 0))


def _bitops(layer: LayerInfo, weight_bits: int, activation_bits: int) -> float:
    return float(layer.macs * weight_bits * activation_bits)
