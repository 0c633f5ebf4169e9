"""An additive surrogate of a predictor: what each choice adds to the loss on average.

Sums have exact optima under budgets, see :mod:`eqdeploy.search.integer_program`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqdeploy.search.budgets import Budget
from eqdeploy.search.costs import CostModel
from eqdeploy.search.genes import Role
from eqdeploy.search.predictor import Prediction, Target
from eqdeploy.search.repair import Repair
from eqdeploy.search.space import SearchSpace
from eqdeploy.search.tables import AdditiveTable

#: Predicts the losses of many vectors of choices, (P, G).
Predict = Callable[[NDArray[np.int64]], Prediction]

#: Random subnets that the surrogate is fitted to, and how many for each choice of each gene at least.
_SUBNETS = 4096
_SUBNETS_PER_CHOICE = 16

#: How far the widths of one subnet may lean to one end: the logarithm of the odds of the largest and the smallest.
_LARGEST_LEANING = 6.0

#: Keeps the equations solvable: one choice of each gene follows from the others.
_RIDGE = 1e-3

#: Purpose of random numbers.
_PURPOSE = 1


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A sum over genes that is near a predictor.

    Attributes:
        table: The loss on the scale on which the predictor works, see :meth:`Target.normalized`.
        explained: Share of the predictor's variance over the random subnets that it explains, at most 1.
    """

    table: AdditiveTable
    explained: float


def fit_surrogate(
    predict: Predict, target: Target, model: CostModel, budgets: Sequence[Budget], anchor: NDArray[np.int64], seed: int
) -> Surrogate:
    """Fit a sum over genes to a predictor by least squares.

    Half of the random subnets keeps the budgets, near their limits, as the optimum does; the others are from
    everywhere.

    Args:
        predict: The predictor on the space.
        target: What it predicts.
        model: Costs of the space.
        budgets: Limits that hold together.
        anchor: Choices that keep them, shape (G,).
        seed: Seed of the subnets.
    """
    sizes = model.space.sizes
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PURPOSE,)))
    drawn = random_choices(model.space, max(_SUBNETS, _SUBNETS_PER_CHOICE * int(sizes.sum())), random)
    half = len(drawn) // 2
    choices = np.concatenate([drawn[:half], Repair(model, budgets, anchor)(drawn[half:], random)])
    values = target.normalized(predict(choices).loss)
    features = np.zeros((len(choices), int(sizes.sum())))
    offsets = np.cumsum(sizes) - sizes
    np.put_along_axis(features, choices + offsets, 1.0, axis=1)
    mean, level = features.mean(axis=0), float(values.mean())
    centred = features - mean
    slopes = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(len(mean)), centred.T @ (values - level))
    residual = values - level - centred @ slopes
    variance = float(values.var())
    return Surrogate(
        AdditiveTable(
            tuple(np.split(slopes, offsets[1:])) if len(sizes) else (), constant=level - float(mean @ slopes)
        ),
        explained=1.0 - float(residual.var()) / variance if variance else 1.0,
    )


def random_choices(space: SearchSpace, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Random choices, shape (count, G), whose mean widths are spread over the whole range.

    Widths that are drawn evenly would average to the same in nearly every subnet. So in each subnet all weights and
    all activations lean to one end, P(choice i of n) ∝ exp(λ·i/(n − 1)), with one λ for each of both.
    """
    sizes = space.sizes
    leaning = random.uniform(-_LARGEST_LEANING, _LARGEST_LEANING, (count, 2))
    weights = np.array([gene.role is Role.WEIGHT for gene in space.genes], np.bool_)
    slope = np.where(weights, leaning[:, :1], leaning[:, 1:])
    place = np.arange(sizes.max(initial=1)) / np.maximum(sizes - 1, 1)[:, None]
    scores = slope[:, :, None] * place + random.gumbel(size=(count, *place.shape))
    scores[:, place > 1.0] = -np.inf
    return np.asarray(scores.argmax(axis=2), np.int64)
