"""Functions of a vector of choices that are sums of tables: costs, and surrogates of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PairTable:
    """A part that depends on two genes.

    Attributes:
        first: Index of one gene.
        second: Index of another one.
        values: Its values, shape (choices of the first, choices of the second).
    """

    first: int
    second: int
    values: NDArray[np.float64]


@dataclass(frozen=True)
class AdditiveTable:
    """``(constant + Σ_g singles[g][x_g] + Σ_p values_p[x_first, x_second]) / divisor``.

    Attributes:
        singles: For each gene its values, shape (choices,).
        pairs: Parts that depend on two genes.
        constant: The part that depends on none.
        divisor: Makes a mean of a sum, above 0. Sums of whole numbers are exact until this division.

    Raises:
        ValueError: If a value is not finite, the divisor is not above 0, or the shapes of pairs do not fit.
    """

    singles: tuple[NDArray[np.float64], ...]
    pairs: tuple[PairTable, ...] = ()
    constant: float = 0.0
    divisor: float = 1.0

    def __post_init__(self) -> None:
        if not self.divisor > 0:
            raise ValueError(f"the divisor must be above 0, got {self.divisor}")
        for pair in self.pairs:
            shape = (len(self.singles[pair.first]), len(self.singles[pair.second]))
            if pair.first == pair.second or pair.values.shape != shape:
                raise ValueError(f"genes {pair.first} and {pair.second} need a table of shape {shape}")
        parts = [*self.singles, *(pair.values for pair in self.pairs), np.array([self.constant, self.divisor])]
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("values must be finite")

    def __call__(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """The values, shape (P,), for choices of shape (P, G)."""
        return np.asarray(self.total(choices) / self.divisor, np.float64)

    def total(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """The values before the division."""
        total = np.full(len(choices), self.constant)
        genes, table = self._stacked_singles
        if len(genes):
            total += table[np.arange(len(genes)), choices[:, genes]].sum(axis=1)
        if self.pairs:
            first, second, values = self._stacked_pairs
            total += values[np.arange(len(first)), choices[:, first], choices[:, second]].sum(axis=1)
        return total

    @cached_property
    def genes(self) -> NDArray[np.bool_]:
        """Which genes matter, shape (G,)."""
        matters = np.array([bool(np.ptp(values)) for values in self.singles], np.bool_)
        for pair in self.pairs:
            matters[[pair.first, pair.second]] = True
        return matters

    @cached_property
    def _stacked_singles(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Genes with values other than 0, and these, shape (genes, most choices)."""
        genes = [gene for gene, values in enumerate(self.singles) if values.any()]
        return np.array(genes, np.int64), _padded([self.singles[gene] for gene in genes])

    @cached_property
    def _stacked_pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """First genes, second genes, and values, shape (pairs, most choices, most choices)."""
        size = max(max(pair.values.shape) for pair in self.pairs)
        values = np.zeros((len(self.pairs), size, size))
        for index, pair in enumerate(self.pairs):
            values[index, : pair.values.shape[0], : pair.values.shape[1]] = pair.values
        first = np.array([pair.first for pair in self.pairs], np.int64)
        second = np.array([pair.second for pair in self.pairs], np.int64)
        return first, second, values


def _padded(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Rows of different length under each other."""
    table = np.zeros((len(rows), max((len(row) for row in rows), default=0)))
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table
