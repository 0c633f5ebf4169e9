"""Measured subnets without measuring: a loss that depends on step sizes, as a real one does, and noise."""

from __future__ import annotations

import numpy as np

from eqdeploy.network import ElasticSpace, NetworkDescription
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.search.sampling import sample_subnets
from eqdeploy.subnet import SubnetConfig
from tests.unit.training_support import small_supernet

IMAGES = 500


def network() -> NetworkDescription:
    return small_supernet(ElasticSpace(bits=(2, 3, 4, 6, 8))).network


def invented_loss(subnet: SubnetConfig) -> float:
    """Layers matter differently, and two of them together more than each."""
    noise = [(1 + index) * 4.0**-form.bits for index, (_, form) in enumerate((*subnet.weights, *subnet.activations))]
    return 0.05 + sum(noise) + 4 * noise[1] * noise[-1]


def invented_measurement(subnet: SubnetConfig, *, spread: float = 0.02) -> SubnetMeasurement:
    """Deterministic: the noise is a function of the subnet."""
    random = np.random.default_rng(int(subnet.digest[:8], 16))
    halves = []
    for _ in range(2):
        loss = invented_loss(subnet) * float(np.exp(spread * random.normal()))
        halves.append(Score(IMAGES - int(random.binomial(IMAGES, 1 - np.exp(-loss))), IMAGES, loss))
    return SubnetMeasurement((halves[0], halves[1]))


def measured(count: int, *, spread: float = 0.02) -> dict[SubnetConfig, SubnetMeasurement]:
    subnets = sample_subnets(network(), count, seed=3)
    return {subnet: invented_measurement(subnet, spread=spread) for subnet in subnets}
