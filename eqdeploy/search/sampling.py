"""Draw subnets to measure from all that a supernet is trained for, so that every average width is there.

Widths that are drawn independently average to about the same in nearly every subnet; a predictor would know nothing of
the ends. So the average is drawn first, evenly, and then the widths from the least committal distribution that has it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from eqdeploy.errors import UsageError
from eqdeploy.network import NetworkDescription
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.settings import FormSampling

Value = TypeVar("Value")

#: The averages lie between the smallest and the largest width, this share of the way away from both.
_MARGIN = 0.05

#: Steps of the additive recurrence that fills the unit square most evenly (Roberts' R2 sequence): 1/g and 1/g² with
#: g³ = g + 1.
_STEPS = (0.7548776662466927, 0.5698402909980532)

#: Draws in a row that may be known already before the space counts as exhausted.
_MOST_REPEATS = 1000

#: Purpose of the random numbers; see :func:`eqdeploy.training.batches.derive_seed`.
_SUBNETS = 2


def sample_subnets(
    network: NetworkDescription, count: int, *, seed: int = 0, forms: FormSampling = FormSampling.PER_NETWORK
) -> list[SubnetConfig]:
    """The first ``count`` subnets of an endless list without repetition.

    First come the networks with one form and one width everywhere. In the others the average widths of weights and of
    activations are evenly spread, in every stretch of the list. The list depends on nothing but network, seed and
    ``forms``: a longer one begins with a shorter one.

    Args:
        network: The network; its space gives the choices. The first and the last layer, and the tensors that they
            read, have the boundary width.
        count: Number of subnets.
        seed: Seed of the list.
        forms: Whether granularity and symmetries are drawn once for each subnet (symmetries of weights and of
            activations apart), or for every layer and tensor.

    Raises:
        UsageError: If there are not so many subnets, or next to none is left that was not drawn.
    """
    if count < 1:
        raise UsageError(f"{count} subnets asked for", where="--count", hint="ask for at least one")
    found: dict[SubnetConfig, None] = {}
    repeats = 0
    for subnet in itertools.chain(uniform_subnets(network), _drawn(network, seed, forms)):
        if len(found) == count:
            break
        repeats = repeats + 1 if subnet in found else 0
        if repeats > _MOST_REPEATS:
            raise UsageError(
                f"the space has about {len(found)} different subnets", where="--count", hint="ask for fewer"
            )
        found[subnet] = None
    return list(found)


def uniform_subnets(network: NetworkDescription) -> Iterator[SubnetConfig]:
    """Every width with every granularity and symmetry, the same in the whole network."""
    space = network.space
    for bits, granularity, symmetry in itertools.product(space.bits, space.granularities, space.symmetries):
        yield SubnetConfig.uniform(
            network,
            weight_bits=bits,
            activation_bits=bits,
            granularity=granularity,
            weight_symmetry=symmetry,
            activation_symmetry=symmetry,
        )


def width_probabilities(bits: Sequence[int], mean: float) -> list[float]:
    """The distribution of largest entropy over widths that has a given mean: P(b) ∝ exp(λ·b).

    Args:
        bits: Widths, ascending.
        mean: Strictly between the smallest and the largest, or the only one.

    Raises:
        ValueError: If no distribution has this mean.

    >>> [round(share, 3) for share in width_probabilities((2, 4, 8), 14 / 3)]
    [0.333, 0.333, 0.333]
    """
    if len(bits) == 1 and mean == bits[0]:
        return [1.0]
    if not bits[0] < mean < bits[-1]:
        raise ValueError(f"no widths of {list(bits)} average to {mean}")

    def shares(slope: float) -> list[float]:
        largest = max(slope * bits[0], slope * bits[-1])
        weights = [math.exp(slope * width - largest) for width in bits]
        return [weight / sum(weights) for weight in weights]

    # The mean grows with λ; beyond ±64 all of it lies on one end.
    low, high = -64.0, 64.0
    for _ in range(100):
        middle = (low + high) / 2
        average = sum(width * share for width, share in zip(bits, shares(middle), strict=True))
        low, high = (middle, high) if average < mean else (low, middle)
    return shares((low + high) / 2)


def _drawn(network: NetworkDescription, seed: int, forms: FormSampling) -> Iterator[SubnetConfig]:
    """Endlessly many subnets; each is a function of the seed and its position."""
    start = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SUBNETS,))).random(2)
    for index in itertools.count():
        sequence = np.random.SeedSequence(seed, spawn_key=(_SUBNETS, index))
        spread = [(offset + step * index) % 1.0 for offset, step in zip(start, _STEPS, strict=True)]
        yield _draw(network, np.random.default_rng(sequence), spread, forms)


def _draw(
    network: NetworkDescription, random: np.random.Generator, spread: Sequence[float], forms: FormSampling
) -> SubnetConfig:
    """Draw one subnet whose average widths are at the given places, 0 to 1, of the range."""
    space = network.space
    weight_bits, activation_bits = (_width_drawer(space.bits, place, random) for place in spread)
    granularity = _drawer(space.granularities, random, forms)
    weight_symmetry = _drawer(space.symmetries, random, forms)
    activation_symmetry = _drawer(space.symmetries, random, forms)
    layers, tensors = set(network.boundary_layers), set(network.boundary_tensors)
    weights = {}
    for layer in network.weight_owners:
        drawn = weight_bits()
        bits = space.boundary_bits if layer.name in layers else drawn
        weights[layer.name] = space.weight_form(bits, granularity(), weight_symmetry())
    activations = []
    for tensor in network.tensors:
        if tensor.trained:
            drawn, symmetry = activation_bits(), activation_symmetry()
            bits = space.boundary_bits if tensor.name in tensors else drawn
            form = space.activation_form(bits, symmetry, non_negative=tensor.non_negative)
            activations.append((tensor.name, form))
    return SubnetConfig(network.with_owners_forms(weights), tuple(activations))


def _width_drawer(bits: Sequence[int], place: float, random: np.random.Generator) -> Callable[[], int]:
    """Draws widths whose average is at a place, 0 to 1, of the range."""
    if len(bits) == 1:
        return lambda: bits[0]
    mean = bits[0] + (bits[-1] - bits[0]) * (_MARGIN + (1 - 2 * _MARGIN) * place)
    limits = list(itertools.accumulate(width_probabilities(bits, mean)))

    def draw() -> int:
        value = random.random()
        return next((width for width, limit in zip(bits, limits, strict=True) if value < limit), bits[-1])

    return draw


def _drawer(choices: Sequence[Value], random: np.random.Generator, forms: FormSampling) -> Callable[[], Value]:
    """Draws choices evenly, once or every time."""

    def draw() -> Value:
        return choices[int(random.random() * len(choices))]

    if forms is FormSampling.PER_LAYER:
        return draw
    chosen = draw()
    return lambda: chosen
