"""How well predictions agree with measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.search.dependencies import require

Floats = NDArray[np.float64]

#: Resamples of the subnets for an interval, and its confidence.
_RESAMPLES = 1000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % confidence interval over subnets (percentiles of the bootstrap)."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Agreement:
    """Correlations of two lists of numbers about the same subnets; 0 where one of the lists is constant.

    Attributes:
        kendall: Kendall's rank correlation τ-b.
        pearson: Pearson's correlation.
        spearman: Spearman's rank correlation.
    """

    kendall: Interval
    pearson: Interval
    spearman: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "kendall": self.kendall.to_json(),
            "pearson": self.pearson.to_json(),
            "spearman": self.spearman.to_json(),
        }


def agreement(first: Floats, second: Floats, *, seed: int = 0) -> Agreement:
    """Correlate two lists of numbers about the same subnets.

    Args:
        first: (N,), N >= 2, finite.
        second: (N,).
        seed: Seed of the bootstrap.

    Raises:
        MissingDependencyError: If scipy is not installed.
    """
    require("scipy.stats")
    random = np.random.default_rng(seed)
    draws = random.integers(0, len(first), (_RESAMPLES, len(first)))
    values = _correlations(first, second)
    resampled = np.array([_correlations(first[rows], second[rows]) for rows in draws])
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(resampled, (tail, 100 - tail), axis=0)
    kendall, pearson, spearman = (
        Interval(float(value), float(bottom), float(top)) for value, bottom, top in zip(values, low, high, strict=True)
    )
    return Agreement(kendall, pearson, spearman)


def _correlations(first: Floats, second: Floats) -> tuple[float, float, float]:
    """Kendall, Pearson and Spearman."""
    from scipy import stats

    if np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return 0.0, 0.0, 0.0
    kendall = stats.kendalltau(first, second).statistic
    pearson = np.corrcoef(first, second)[0, 1]
    spearman = np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1]
    return float(kendall), float(pearson), float(spearman)
