"""The sandwich rule: which subnets share a step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from eqdeploy.network import ElasticSpace, LayerInfo, NetworkDescription, OpKind, TensorInfo
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.sampling import sample_sandwich, sample_subnet
from eqdeploy.training.settings import FormSampling

BITS = (2, 4, 6, 8)
PER_LAYER, PER_NETWORK = FormSampling


def chain(layers: int, space: ElasticSpace | None = None) -> NetworkDescription:
    """Layer ``l<i>`` reads tensor ``t<i>``; every other tensor can be negative."""
    tensors = [
        TensorInfo(
            name=f"t{index}",
            shape=(4, 8, 8),
            op=OpKind.RELU if index % 2 else OpKind.INPUT,
            operation="",
            inputs=(),
            readers=(),
            non_negative=bool(index % 2),
            trained=index < layers,
        )
        for index in range(layers + 1)
    ]
    infos = [
        LayerInfo(
            name=f"l{index}",
            op=OpKind.CONV,
            weight_shape=(4, 4, 3, 3),
            channel_axis=0,
            groups=1,
            input_tensor=f"t{index}",
            output_tensor=f"t{index + 1}",
            batch_norm=None,
            macs=1,
        )
        for index in range(layers)
    ]
    return NetworkDescription(tuple(infos), tuple(tensors), space or ElasticSpace(bits=BITS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def searchable_bits(config: SubnetConfig) -> tuple[list[int], list[int]]:
    return [form.bits for _, form in config.weights[1:-1]], [form.bits for _, form in config.activations[1:-1]]


def test_highest_and_lowest_have_one_width_everywhere_inside() -> None:
    sandwich = sample_sandwich(chain(9), generator(), PER_LAYER)
    assert searchable_bits(sandwich.highest) == ([8] * 7, [8] * 7)
    assert searchable_bits(sandwich.lowest) == ([2] * 7, [2] * 7)


@pytest.mark.parametrize("boundary", BITS)
def test_first_and_last_layer_keep_the_boundary_width_in_all_three(boundary: int) -> None:
    network = chain(5, ElasticSpace(bits=BITS, boundary_bits=boundary))
    for config in sample_sandwich(network, generator(), PER_LAYER):
        weights, activations = dict(config.weights), dict(config.activations)
        assert {weights["l0"].bits, weights["l4"].bits, activations["t0"].bits, activations["t4"].bits} == {boundary}


def test_a_subnet_names_every_layer_and_every_trained_tensor_in_order() -> None:
    network = chain(4)
    for config in sample_sandwich(network, generator(), PER_LAYER):
        assert [name for name, _ in config.weights] == ["l0", "l1", "l2", "l3"]
        assert [name for name, _ in config.activations] == ["t0", "t1", "t2", "t3"]


def test_every_form_is_one_that_the_space_trains() -> None:
    network = chain(12, ElasticSpace(bits=BITS, narrow=True))
    source = generator()
    for _ in range(20):
        for config in sample_sandwich(network, source, PER_LAYER):
            assert {form for _, form in config.weights} <= set(network.space.weight_forms())
            for name, form in config.activations:
                non_negative = network.tensor[name].non_negative
                assert form in network.space.activation_forms(non_negative=non_negative)


def test_all_choices_are_drawn_equally_often() -> None:
    network, source, draws = chain(42), generator(), 50
    counts: Counter[object] = Counter()
    for _ in range(draws):
        config = sample_subnet(network, source, bits=BITS, sampling=PER_LAYER)
        for _, form in config.weights[1:-1]:
            counts.update([("weight", form.bits), form.granularity, ("weight", form.symmetry)])
        counts.update(("activation", form.bits) for _, form in config.activations[1:-1])
        # Only tensors that can be negative have a choice of symmetry: 20 of the 40 inside.
        counts.update(("activation", form.symmetry) for _, form in config.activations[2:-1:2])
    total = draws * 40
    for bits in BITS:
        assert counts["weight", bits] == pytest.approx(total / 4, rel=0.15)
        assert counts["activation", bits] == pytest.approx(total / 4, rel=0.15)
    for granularity in Granularity:
        assert counts[granularity] == pytest.approx(total / 2, rel=0.1)
    for symmetry in Symmetry:
        assert counts["weight", symmetry] == pytest.approx(total / 2, rel=0.1)
        assert counts["activation", symmetry] == pytest.approx(total / 4, rel=0.1)


def test_weight_and_activation_widths_are_independent() -> None:
    network, source = chain(42), generator()
    pairs: Counter[tuple[int, int]] = Counter()
    for _ in range(100):
        weights, activations = searchable_bits(sample_subnet(network, source, bits=BITS, sampling=PER_LAYER))
        pairs.update(zip(weights, activations, strict=True))
    assert len(pairs) == len(BITS) ** 2
    assert min(pairs.values()) > 0.7 * 4000 / 16
    assert max(pairs.values()) < 1.3 * 4000 / 16


def test_granularity_and_symmetry_are_random_in_highest_and_lowest_too() -> None:
    sandwich = sample_sandwich(chain(30), generator(), PER_LAYER)
    for config in (sandwich.highest, sandwich.lowest):
        assert {form.granularity for _, form in config.weights} == set(Granularity)
        assert {form.symmetry for _, form in config.weights} == set(Symmetry)


def test_per_network_sampling_draws_one_granularity_and_one_symmetry_for_a_subnet() -> None:
    network, source = chain(9), generator()
    counts: Counter[tuple[Granularity, Symmetry]] = Counter()
    steps = 400
    for _ in range(steps):
        sandwich = sample_sandwich(network, source, PER_NETWORK)
        for config in sandwich:
            ((granularity, symmetry),) = {(form.granularity, form.symmetry) for _, form in config.weights}
            counts[granularity, symmetry] += 1
            forms = dict(config.activations)
            assert {form.granularity for form in forms.values()} == {Granularity.PER_TENSOR}
            # A tensor that cannot be negative has no choice.
            assert {form.symmetry for form in forms.values() if form.signed} <= {symmetry}
            assert forms["t0"].symmetry is forms["t2"].symmetry is symmetry
        assert searchable_bits(sandwich.highest) == ([8] * 7, [8] * 7)
        assert searchable_bits(sandwich.lowest) == ([2] * 7, [2] * 7)
    assert len(counts) == 4
    for count in counts.values():
        assert count == pytest.approx(steps * 3 / 4, rel=0.15)


def test_per_network_sampling_draws_every_width_on_its_own() -> None:
    network, source = chain(42), generator()
    pairs: Counter[tuple[int, int]] = Counter()
    for _ in range(100):
        weights, activations = searchable_bits(sample_subnet(network, source, bits=BITS, sampling=PER_NETWORK))
        pairs.update(zip(weights, activations, strict=True))
    assert len(pairs) == len(BITS) ** 2
    assert min(pairs.values()) > 0.7 * 4000 / 16
    assert max(pairs.values()) < 1.3 * 4000 / 16


def test_the_seed_decides() -> None:
    network = chain(8)
    assert sample_sandwich(network, generator(3), PER_LAYER) == sample_sandwich(network, generator(3), PER_LAYER)
    assert sample_sandwich(network, generator(3), PER_LAYER) != sample_sandwich(network, generator(4), PER_LAYER)


def test_torchs_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    sample_sandwich(chain(8), generator(), PER_LAYER)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampling", FormSampling)
def test_a_space_with_one_form_leaves_nothing_to_draw(sampling: FormSampling) -> None:
    space = ElasticSpace((8,), (Granularity.PER_TENSOR,), (Symmetry.SYMMETRIC,))
    sandwich = sample_sandwich(chain(3, space), generator(), sampling)
    assert sandwich.highest == sandwich.random == sandwich.lowest


def test_a_network_of_one_layer_is_all_boundary() -> None:
    for config in sample_sandwich(chain(1), generator(), PER_LAYER):
        assert [form.bits for _, form in config.weights] == [8]
