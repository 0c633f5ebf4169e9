"""Subnets to measure: all averages, no repetition, and the same list whoever asks for how much of it."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqdeploy.errors import UsageError
from eqdeploy.network import ElasticSpace, NetworkDescription
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.search.sampling import sample_subnets, uniform_subnets, width_probabilities
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.settings import FormSampling
from tests.unit.training_support import small_supernet

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)


def network(space: ElasticSpace | None = None) -> NetworkDescription:
    return small_supernet(space or ElasticSpace(bits=ALL_BITS)).network


def widths(network: NetworkDescription, subnet: SubnetConfig) -> tuple[list[int], list[int]]:
    """Widths of the weights and activations that are not at the boundary."""
    layers, tensors = network.boundary_layers, network.boundary_tensors
    return (
        [form.bits for name, form in subnet.weights if name not in layers],
        [form.bits for name, form in subnet.activations if name not in tensors],
    )


@pytest.mark.parametrize("forms", FormSampling)
def test_a_longer_list_begins_with_a_shorter_one_and_repeats_nothing(forms: FormSampling) -> None:
    made = network()
    longer = sample_subnets(made, 120, seed=7, forms=forms)
    assert sample_subnets(made, 50, seed=7, forms=forms) == longer[:50]
    assert len(set(longer)) == 120
    assert sample_subnets(made, 120, seed=8, forms=forms)[28:] != longer[28:]


def test_uniform_networks_come_first() -> None:
    made = network()
    uniform = list(uniform_subnets(made))
    assert len(uniform) == 28
    assert sample_subnets(made, 40)[:28] == uniform
    assert sample_subnets(made, 5) == uniform[:5]


@pytest.mark.parametrize("forms", FormSampling)
def test_subnets_are_of_the_network_with_the_boundary_as_it_is_deployed(forms: FormSampling) -> None:
    supernet = small_supernet(ElasticSpace(bits=ALL_BITS))
    made = supernet.network
    for subnet in sample_subnets(made, 60, forms=forms):
        supernet.activate(subnet)  # refuses what it was not trained for
        for name, form in (*subnet.weights, *subnet.activations):
            if name in (*made.boundary_layers, *made.boundary_tensors):
                assert form.bits == 8


def test_averages_are_evenly_spread_in_every_stretch() -> None:
    made = network()
    subnets = sample_subnets(made, 28 + 600)[28:]
    for stretch in (subnets[:300], subnets[300:]):
        for kind in (0, 1):
            means = sorted(statistics.mean(widths(made, subnet)[kind]) for subnet in stretch)
            # Independent widths of this network would give 5 ± 1.4 for weights: hardly any below 3 or above 7.
            assert 0.1 < sum(mean < 3 for mean in means) / 300 < 0.35
            assert 0.1 < sum(mean > 7 for mean in means) / 300 < 0.35
            assert statistics.mean(means) == pytest.approx(5, abs=0.3)


def test_forms_are_one_for_a_subnet_or_one_for_each_layer() -> None:
    made = network()

    def weight_forms(subnet: SubnetConfig) -> set[tuple[Granularity, Symmetry]]:
        return {(form.granularity, form.symmetry) for _, form in subnet.weights}

    whole = sample_subnets(made, 100)[28:]
    assert {len(weight_forms(subnet)) for subnet in whole} == {1}
    assert len(set.union(*map(weight_forms, whole))) == 4
    single = sample_subnets(made, 100, forms=FormSampling.PER_LAYER)[28:]
    assert max(len(weight_forms(subnet)) for subnet in single) > 2


def test_weights_and_activations_differ_in_symmetry_too() -> None:
    made = network()
    symmetries = set()
    for subnet in sample_subnets(made, 100)[28:]:
        signed = next(form for name, form in subnet.activations if not made.tensor[name].non_negative)
        symmetries.add((subnet.weights[0][1].symmetry, signed.symmetry))
    assert symmetries == set(itertools.product(Symmetry, Symmetry))


def test_a_small_space_is_exhausted_and_says_so() -> None:
    space = ElasticSpace(
        bits=(2, 8), granularities=(Granularity.PER_TENSOR,), symmetries=(Symmetry.SYMMETRIC,), boundary_bits=8
    )
    made = network(space)
    weights, activations = widths(made, next(uniform_subnets(made)))
    total = 2 ** (len(weights) + len(activations))
    assert len(sample_subnets(made, total)) == total
    with pytest.raises(UsageError, match=f"about {total} different subnets"):
        sample_subnets(made, total + 1)


def test_no_subnets_are_refused() -> None:
    with pytest.raises(UsageError, match="0 subnets"):
        sample_subnets(network(), 0)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.lists(st.integers(1, 8), min_size=2, max_size=8, unique=True).map(sorted),
    place=st.floats(0.02, 0.98),
)
def test_probabilities_have_the_mean_and_the_largest_entropy(bits: list[int], place: float) -> None:
    mean = bits[0] + place * (bits[-1] - bits[0])
    shares = width_probabilities(bits, mean)
    assert sum(shares) == pytest.approx(1)
    assert sum(width * share for width, share in zip(bits, shares, strict=True)) == pytest.approx(mean, abs=1e-6)
    # P(b) ∝ exp(λ·b): equal steps of the width multiply by equal factors.
    for low, middle, high in itertools.combinations(range(len(bits)), 3):
        if min(shares) > 1e-12 and bits[middle] - bits[low] == bits[high] - bits[middle]:
            assert shares[middle] ** 2 == pytest.approx(shares[low] * shares[high], rel=1e-6)


@pytest.mark.parametrize("mean", [1.9, 2.0, 8.0, 9.0])
def test_impossible_means_are_refused(mean: float) -> None:
    with pytest.raises(ValueError, match="average"):
        width_probabilities((2, 4, 8), mean)
