"""Top-1 decisions, how often two networks make the same, and what chance allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Probability with which chance alone may explain a result; what is less likely fails.
SIGNIFICANCE = 0.001


def decisions(output: NDArray[Any]) -> NDArray[np.int64]:
    """Top-1 decisions of an output: the class of each image, or of each pixel of a map.

    Args:
        output: Shape (N, classes) or (N, classes, …).

    Returns:
        int64, shape (N,) or (N, …). An output without an axis of classes makes no decisions.
    """
    if output.ndim < 2 or output.shape[1] < 2:
        return np.zeros(0, np.int64)
    return np.asarray(output.argmax(axis=1), np.int64)


@dataclass(frozen=True)
class Agreement:
    """How often two networks decide alike.

    Attributes:
        decisions: Number of decisions.
        differing: How many of them differ.
        floor: Smallest fraction of equal ones that is accepted.
    """

    decisions: int
    differing: int
    floor: float

    @property
    def fraction(self) -> float:
        """Equal decisions over all decisions."""
        return 1.0 - self.differing / self.decisions

    @property
    def passed(self) -> bool:
        """Whether as many differing decisions may come about by chance where a fraction of ``floor`` is equal."""
        return (
            self.fraction >= self.floor
            or binomial_tail(self.differing, self.decisions, 1.0 - self.floor) >= SIGNIFICANCE
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "decisions": self.decisions,
            "differing": self.differing,
            "agreement": self.fraction,
            "min_agreement": self.floor,
        }


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Probability of at least so many successes.

    >>> round(binomial_tail(10, 10, 0.5) * 1024, 6)
    1.0
    """
    if successes <= 0:
        return 1.0
    if probability <= 0.0 or successes > trials:
        return 0.0
    if probability >= 1.0:
        return 1.0
    odds = math.log(probability), math.log1p(-probability)
    ways = math.lgamma(trials + 1)
    # From the largest term of the tail on, terms fall geometrically: those that no longer count are left out.
    total, mode = 0.0, (trials + 1) * probability
    for count in range(successes, trials + 1):
        log_term = (
            ways
            - math.lgamma(count + 1)
            - math.lgamma(trials - count + 1)
            + count * odds[0]
            + (trials - count) * odds[1]
        )
        term = math.exp(log_term)
        total += term
        if count > mode and term < 1e-12 * total + 1e-300:
            break
    return min(1.0, total)
