"""What a device lets a subnet choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eqdeploy.budget import average_bits
from eqdeploy.errors import ProfileError
from eqdeploy.network import ElasticSpace, NetworkDescription, OpKind, Residual
from eqdeploy.profile import DeviceProfile, load_profile, shipped_profiles
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.resolve import resolve
from eqdeploy.search.space import Role, SearchSpace, search_space
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.zoo import build
from tests.unit import test_resolve_properties, test_resolve_residual
from tests.unit.network_support import NetworkBuilder, concat_network, residual_network, squeeze_excite_network
from tests.unit.search_spaces import TENSORRT, X86, device_widths, everything, small_space, with_overrides, with_widths

SHARING = test_resolve_properties.SHARED_CONCAT["onnxruntime-x86"]
MANY_WIDTHS = (8, 7, 6, 5, 4, 3)
profiles = st.sampled_from(
    [
        *test_resolve_properties.PROFILES.values(),
        *test_resolve_properties.SHARED_CONCAT.values(),
        with_widths(TENSORRT, *MANY_WIDTHS),
        with_widths(test_resolve_properties.SHARED_CONCAT["tensorrt"], *MANY_WIDTHS),
        with_overrides(X86),
        with_overrides(SHARING),
        with_overrides(with_widths(SHARING, 4, 6, 8, boundary=8)),
    ]
)
networks = st.one_of(test_resolve_properties.networks(), test_resolve_residual.networks())


def made(profile: DeviceProfile, network: NetworkDescription) -> SearchSpace | None:
    """The space, None where the profile cannot be resolved for the network at all."""
    try:
        return search_space(profile, network)
    except ProfileError:
        return None


@settings(max_examples=60, deadline=None)
@given(network=networks, profile=profiles, seed=st.integers(0, 10_000))
def test_every_choice_resolves_to_itself_with_the_widths_of_its_genes(
    network: NetworkDescription, profile: DeviceProfile, seed: int
) -> None:
    space = made(profile, network)
    if space is None:
        return
    random = np.random.default_rng(seed)
    for _ in range(3):
        choices = np.asarray(random.integers(space.sizes), np.int64)
        subnet = space.subnet(choices)
        plan = resolve(profile, network, subnet)
        assert plan.subnet == subnet
        assert space.choices(subnet).tolist() == choices.tolist()
        widths = device_widths(plan)
        for gene, choice in zip(space.genes, choices.tolist(), strict=True):
            for name in gene.names:
                bits = plan.weight[name].device.bits if gene.role is Role.WEIGHT else widths[name]
                assert bits == gene.bits[choice]


@settings(max_examples=60, deadline=None)
@given(network=networks, profile=profiles)
def test_the_base_is_what_the_profile_gives_without_a_subnet(
    network: NetworkDescription, profile: DeviceProfile
) -> None:
    try:
        default = resolve(profile, network)
    except ProfileError:
        return
    space = search_space(profile, network)
    assert space.base_plan.subnet == default.subnet
    assert space.subnet(space.choices(default.subnet)) == default.subnet


@settings(max_examples=60, deadline=None)
@given(network=networks, profile=profiles)
def test_genes_are_real_decisions_about_what_lies_between_the_boundaries(
    network: NetworkDescription, profile: DeviceProfile
) -> None:
    space = made(profile, network)
    if space is None:
        return
    names = [(gene.role, name) for gene in space.genes for name in gene.names]
    assert len(names) == len(set(names))
    for gene in space.genes:
        assert len(gene.bits) > 1
        assert list(gene.bits) == sorted(set(gene.bits))
        assert len(gene.forms) == len(gene.bits)
        boundary = network.boundary_layers if gene.role is Role.WEIGHT else network.boundary_tensors
        assert not set(gene.names) & set(boundary)


@pytest.mark.parametrize("name", [name for name in shipped_profiles() if name != "onnxruntime-x86"])
def test_profiles_with_one_width_leave_nothing_to_search(name: str) -> None:
    space = search_space(load_profile(name), residual_network())
    assert space.genes == ()
    assert space.subnets == 1
    nothing = np.zeros(0, np.int64)
    assert space.subnet(nothing) == resolve(load_profile(name), residual_network()).subnet
    assert space.choices(space.subnet(nothing)).tolist() == []
    assert space.uniform().shape == (1, 0)


def test_every_width_that_is_trained_and_allowed_can_be_chosen() -> None:
    network = residual_network(ElasticSpace(bits=(2, 3, 4, 8)))
    space = search_space(with_widths(X86, 8, 6, 4, 2), network)
    weights = [gene for gene in space.genes if gene.role is Role.WEIGHT]
    assert [gene.names for gene in weights] == [
        (name,) for name in ("a.conv1", "a.conv2", "b.conv1", "b.conv2", "b.down")
    ]
    assert all(gene.bits == (2, 4, 8) for gene in space.genes)
    # the input of the stem and the input of the linear layer are fixed, every other tensor is decided once
    assert [gene.names for gene in space.genes if gene.role is Role.ACTIVATION] == [
        ("pool",), ("a_conv1_relu",), ("a_relu",), ("b_conv1_relu",)
    ]  # fmt: skip


def test_a_default_width_that_is_not_trained_does_not_stop_the_search() -> None:
    network = residual_network(ElasticSpace(bits=(2, 4, 8)))
    profile = with_widths(X86, 6, 4, 2, boundary=8)
    with pytest.raises(ProfileError, match="needs 6 bits"):
        resolve(profile, network)
    space = search_space(profile, network)
    assert {gene.bits for gene in space.genes} == {(2, 4)}
    assert {form.bits for _, form in space.base.weights} == {4, 8}


def test_widths_that_are_all_untrained_are_refused_with_the_resolvers_words() -> None:
    network = residual_network(ElasticSpace(bits=(2, 4, 8)))
    with pytest.raises(ProfileError, match="needs 7 bits, the supernet is trained for 2, 4, 8"):
        search_space(with_widths(X86, 7, 5, boundary=8), network)


def test_granularity_and_symmetry_are_the_first_trained_ones_of_the_profile() -> None:
    weights = X86.weights.model_copy(update={"granularity": (Granularity.PER_TENSOR, Granularity.PER_CHANNEL)})
    profile = X86.model_copy(update={"weights": weights})
    space = search_space(profile, residual_network())
    forms = {form for gene in space.genes if gene.role is Role.WEIGHT for choice in gene.forms for form in choice}
    assert {(form.granularity, form.symmetry) for form in forms} == {(Granularity.PER_TENSOR, Symmetry.SYMMETRIC)}


def test_signed_symmetric_devices_count_one_bit_more_than_is_trained() -> None:
    space = search_space(with_widths(TENSORRT, 8, 5, 3), residual_network())
    gene = next(gene for gene in space.genes if gene.names == ("a_conv1_relu",))
    assert gene.bits == (3, 5, 8)
    assert [choice[0].bits for choice in gene.forms] == [2, 4, 7]


def test_tensors_with_one_encoding_are_one_gene() -> None:
    net = NetworkBuilder()
    stem = net.conv_relu("stem", net.input())
    left, right = net.conv_relu("left", stem), net.layer("right", stem)
    for name, source in (("after_left", left), ("after_right", right)):
        net.layer(name, source)
    joined = net.op(OpKind.CONCAT, left, right, name="joined", shape=(8, 8, 8))
    network = net.build(net.layer("head", net.conv_relu("body", joined)))
    space = search_space(SHARING, network)
    shared = next(gene for gene in space.genes if "joined" in gene.names)
    assert set(shared.names) == {"joined", left, right}
    assert shared.names[0] == "joined"  # its range reaches below zero and it is the largest
    assert sum(gene.role is Role.ACTIVATION for gene in space.genes) == 2  # that of the stem and the shared one


def test_a_tensor_that_several_layers_read_is_one_gene_and_copies_are_their_own() -> None:
    torch.manual_seed(0)
    for residual, copies in ((Residual.QUANTIZED, 0), (Residual.FLOAT, 7)):
        elastic = ElasticSpace(bits=(2, 4, 8), residual=residual)
        network = Supernet.from_float(build("cifar-resnet20", {}), torch.zeros(2, 3, 16, 16), elastic).network
        space = search_space(X86, network)
        names = [name for gene in space.genes if gene.role is Role.ACTIVATION for name in gene.names]
        assert sum(network.tensor[name].op is OpKind.REQUANTIZE for name in names) == copies
        readers = {layer.input_tensor for layer in network.layers} - set(network.boundary_tensors)
        assert set(names) == readers
        assert sum(gene.role is Role.WEIGHT for gene in space.genes) == len(network.layers) - 2


def test_uniform_configurations_are_exactly_uniform() -> None:
    network = squeeze_excite_network()
    space = search_space(X86, network)
    seen = set()
    for row in space.uniform():
        bits = average_bits(space.plan(row), network)
        assert bits.searchable_weights == int(bits.searchable_weights)
        assert bits.searchable_activations == int(bits.searchable_activations)
        seen.add((bits.searchable_weights, bits.searchable_activations))
    assert seen == {(w, a) for w in range(2, 9) for a in range(2, 9)}


def test_uniform_configurations_take_the_nearest_width_where_one_lacks() -> None:
    space = search_space(with_overrides(X86), concat_network())
    rows = space.uniform()
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    relu = next(index for index, gene in enumerate(space.genes) if gene.names == ("left_relu",))
    assert space.genes[relu].bits == (4, 8)
    assert set(rows[:, relu].tolist()) == {0, 1}


def test_choices_of_foreign_subnets_are_refused() -> None:
    space = small_space()
    subnet = space.subnet(space.uniform()[0])
    weights = tuple(
        (name, form if index else space.network.space.weight_form(2, form.granularity, form.symmetry))
        for index, (name, form) in enumerate(subnet.weights)
    )
    with pytest.raises(ProfileError, match=r"subnet: conv0: .*not in the search space of onnxruntime-x86"):
        space.choices(type(subnet)(weights, subnet.activations))
    with pytest.raises(ValueError, match="one index for each of 4 genes"):
        space.subnet(np.array([0, 0, 0, 3]))
    with pytest.raises(ValueError, match="one index for each of 4 genes"):
        space.subnet(np.zeros(3, np.int64))


def test_different_choices_are_different_subnets() -> None:
    space = small_space()
    rows = everything(space)
    assert len(rows) == space.subnets == 81
    assert len({space.subnet(row).digest for row in rows}) == 81
