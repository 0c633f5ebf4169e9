"""How much noise is expected at a tensor."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from eqdeploy.testing import ModelBuilder, sample_model
from eqdeploy.validation.noise import decibels, expected_noise, rounding_noise
from eqdeploy.validation.reference.graph import Graph

NORMAL = NormalDist()


def noise_of_step(levels: int, step: float) -> float:
    """Mean squared error of a standard Gaussian on ``levels`` uniform levels, integrated in closed form."""
    edges = [-math.inf, *((np.arange(1, levels) - levels / 2) * step).tolist(), math.inf]
    values = (np.arange(levels) - levels / 2 + 0.5) * step

    def moments(edge: float) -> tuple[float, float, float]:
        if math.isinf(edge):
            return float(edge > 0), 0.0, float(edge > 0)
        density = NORMAL.pdf(edge)
        return NORMAL.cdf(edge), -density, NORMAL.cdf(edge) - edge * density

    total = 0.0
    for low, high, value in zip(edges, edges[1:], values, strict=False):
        mass, first, second = (b - a for a, b in zip(moments(low), moments(high), strict=True))
        total += second - 2 * value * first + value**2 * mass
    return total


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_table_is_the_smallest_noise_of_a_gaussian(bits: int) -> None:
    steps = np.geomspace(8.0 / 2**bits * 0.3, 8.0 / 2**bits * 1.5, 400)
    smallest = min(noise_of_step(2**bits, float(step)) for step in steps)
    assert rounding_noise(bits) == pytest.approx(smallest, rel=2e-2)


def test_wider_than_the_table_counts_as_its_end() -> None:
    assert rounding_noise(16) == rounding_noise(8) < rounding_noise(7)
    assert decibels(0.0) == -math.inf


def test_noise_grows_along_the_network() -> None:
    graph = Graph.of(sample_model())
    noise = expected_noise(graph)
    assert set(noise) == {*graph.encodings, *graph.output_names}
    first = next(iter(graph.encodings))
    assert noise[first] == rounding_noise(graph.encodings[first].bits)
    assert min(noise.values()) == noise[first]
    # An output has passed a weight and an activation more than any input of its layer.
    assert noise[graph.output_names[0]] > max(rounding_noise(encoding.bits) for encoding in graph.encodings.values())


def test_a_product_adds_up_what_its_factors_carry() -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 3))
    builder.layer("y", "Gemm", x, (4, 3), transB=1)
    assert expected_noise(Graph.of(builder.build("y")))["y"] == pytest.approx(2 * rounding_noise(8))
