"""New choices from old ones: Monte-Carlo sampling, mutation and uniform crossover, whole generations at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eqdeploy.search.repair import Repair

#: Draws before giving up to find choices that were not seen before.
_MOST_ROUNDS = 5

#: Genes that lose a width at most when widths are exchanged.
_MOST_LOWERED = 3

Choices = NDArray[np.int64]


class Breeding:
    """Makes choices that keep the budgets, none of them twice.

    Args:
        sizes: Number of choices of each gene, shape (G,), each at least 2. Without genes there are no children.
        repair: Makes choices keep the budgets.
        mutation_probability: Probability that a mutant differs from its parent in a gene; one always differs.
    """

    def __init__(self, sizes: NDArray[np.int64], repair: Repair, mutation_probability: float) -> None:
        self._sizes = sizes
        self._repair = repair
        self._probability = mutation_probability
        self._seen: set[bytes] = set()

    def first_generation(self, seeds: Choices, count: int, random: np.random.Generator) -> Choices:
        """Seeds that keep the budgets, the repaired other ones, and random choices up to ``count``."""
        kept = self._repair.feasible(seeds)
        given = self.unseen(np.concatenate([seeds[kept], self._repair(seeds[~kept], random)]))
        drawn = self._filled(lambda missing: self._random(missing, random), count - len(given), random)
        return np.concatenate([given, drawn])

    def children(self, first: Choices, second: Choices, third: Choices, random: np.random.Generator) -> Choices:
        """Mutants of the first parents and crossovers of the second with the third; others instead of duplicates.

        A third of the mutants exchanges widths between genes: near a limit, random changes are mostly undone again.

        Args:
            first: Parents of mutants, shape (M, G).
            second: Parents of crossovers, shape (N, G).
            third: Their other parents, shape (N, G).
            random: Source of randomness.

        Returns:
            M + N children, fewer if no more new ones were found.
        """
        if not len(self._sizes):
            return np.zeros((0, 0), np.int64)
        exchanged, mutated = np.split(first, [len(first) // 3])
        bred = np.concatenate(
            [self._exchanged(exchanged, random), self._mutated(mutated, random), _crossed(second, third, random)]
        )
        new = self.unseen(self._repair(bred, random))
        missing = len(first) + len(second) - len(new)
        parents = np.concatenate([first, second, third])

        def mutants_of_crossovers(count: int) -> Choices:
            one, other = parents[random.integers(len(parents), size=(2, count))]
            return self._mutated(_crossed(one, other, random), random)

        again = self._filled(mutants_of_crossovers, missing, random)
        rest = self._filled(lambda count: self._random(count, random), missing - len(again), random)
        return np.concatenate([new, again, rest])

    def _exchanged(self, parents: Choices, random: np.random.Generator) -> Choices:
        """A few genes a width down, then others up as far as the budgets allow."""
        lowered = parents.copy()
        rows = np.arange(len(parents))
        times = random.integers(1, _MOST_LOWERED, size=len(parents), endpoint=True)
        for turn in range(_MOST_LOWERED):
            active = rows[times > turn]
            genes = random.integers(len(self._sizes), size=len(active))
            lowered[active, genes] = np.maximum(lowered[active, genes] - 1, 0)
        return self._repair.filled(self._repair(lowered, random), self._sizes, random)

    def _mutated(self, parents: Choices, random: np.random.Generator) -> Choices:
        """Other choices, each equally likely, in a few genes."""
        changes = random.random(parents.shape) < self._probability
        changes[np.arange(len(parents)), random.integers(len(self._sizes), size=len(parents))] |= ~changes.any(axis=1)
        shift = random.integers(1, self._sizes, size=parents.shape)
        return np.asarray(np.where(changes, (parents + shift) % self._sizes, parents), np.int64)

    def _random(self, count: int, random: np.random.Generator) -> Choices:
        return np.asarray(random.integers(self._sizes, size=(count, len(self._sizes))), np.int64)

    def _filled(self, draw: Callable[[int], Choices], count: int, random: np.random.Generator) -> Choices:
        """Draw until there are ``count`` new choices that keep the budgets, or new ones become rare."""
        found = [np.zeros((0, len(self._sizes)), np.int64)]
        for _ in range(_MOST_ROUNDS):
            if count <= 0:
                break
            found.append(self.unseen(self._repair(draw(count), random)))
            count -= len(found[-1])
        return np.concatenate(found)

    def unseen(self, choices: Choices) -> Choices:
        """The rows that appear for the first time."""
        new: list[int] = []
        for index, key in enumerate(choices):
            data = key.tobytes()
            if data not in self._seen:
                self._seen.add(data)
                new.append(index)
        return choices[new]


def _crossed(one: Choices, other: Choices, random: np.random.Generator) -> Choices:
    """Every gene from either parent."""
    return np.where(random.random(one.shape) < 0.5, one, other)
