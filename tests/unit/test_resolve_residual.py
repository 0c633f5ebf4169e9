"""Tensors that additions read unquantized: when the layers' copy is a buffer of its own, and when both are one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eqdeploy.budget import average_bits
from eqdeploy.network import LAYER_KINDS, ElasticSpace, NetworkDescription, OpKind, Residual
from eqdeploy.plan import Coverage, DevicePlan, EncodingSource, TensorPlan
from eqdeploy.profile import DeviceProfile, load_profile, shipped_profiles
from eqdeploy.quant.form import Form
from eqdeploy.resolution.copies import without_copies
from eqdeploy.resolve import resolve
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.zoo import build
from tests.unit.network_support import NetworkBuilder
from tests.unit.supernet_parts import made
from tests.unit.test_resolve_properties import ONE_INPUT, TWO_INPUTS, profiles, spaces
from tests.unit.test_supernet_residual import CASES, SHAPE

EIGHT_BITS = ("onnxruntime-x86", "snpe-dsp", "tensorrt")
FEW_BITS = ("onnxruntime-w4a4", "onnxruntime-w2a4")


def resnet(residual: Residual) -> NetworkDescription:
    torch.manual_seed(0)
    space = ElasticSpace(bits=(2, 4, 7, 8), residual=residual)
    return Supernet.from_float(build("cifar-resnet20", {}), torch.zeros(2, 3, 16, 16), space).network


def all_copies(network: NetworkDescription) -> dict[str, str]:
    return {tensor.name: tensor.inputs[0] for tensor in network.tensors if tensor.op is OpKind.REQUANTIZE}


def plain(plan: TensorPlan) -> TensorPlan:
    return replace(plan, merged_copy=None)


@pytest.mark.parametrize("name", CASES)
def test_without_its_copies_the_network_is_the_one_that_trains_quantized_additions(name: str) -> None:
    case, expected = CASES[name]
    networks = {
        residual: Supernet.from_float(
            made(case), torch.zeros(2, *SHAPE), ElasticSpace(bits=(2, 8), residual=residual)
        ).network
        for residual in Residual
    }
    copies = all_copies(networks[Residual.FLOAT])
    assert len(copies) == len(expected)
    merged = without_copies(networks[Residual.FLOAT], copies)
    assert replace(merged, space=networks[Residual.QUANTIZED].space) == networks[Residual.QUANTIZED]


@pytest.mark.parametrize("profile", EIGHT_BITS)
def test_at_eight_bits_the_device_gets_what_it_gets_with_quantized_additions(profile: str) -> None:
    network = resnet(Residual.FLOAT)
    plan = resolve(load_profile(profile), network)
    today = resolve(load_profile(profile), resnet(Residual.QUANTIZED))
    copies = all_copies(network)
    assert plan.weights == today.weights
    assert [plain(tensor) for tensor in plan.tensors if tensor.tensor not in copies] == list(today.tensors)
    for copy, source in copies.items():
        assert plan.tensor[source].merged_copy == copy
        assert (plan.tensor[copy].coverage, plan.tensor[copy].device) == (Coverage.INSIDE_FUSED_GROUP, None)
        assert dict(plan.subnet.activations)[copy] == dict(today.subnet.activations)[source]
        assert source not in dict(plan.subnet.activations)
    bits, bits_today = average_bits(plan, network), average_bits(today, resnet(Residual.QUANTIZED))
    assert bits == bits_today


@pytest.mark.parametrize("profile", FEW_BITS)
def test_with_fewer_bits_additions_read_eight_bits_and_layers_the_trained_form(profile: str) -> None:
    network = resnet(Residual.FLOAT)
    plan = resolve(load_profile(profile), network)
    copies = all_copies(network)
    assert len(copies) == 7
    for copy, source in copies.items():
        tensor, own = plan.tensor[source], plan.tensor[copy]
        assert (tensor.source, tensor.trained, tensor.merged_copy) == (EncodingSource.CALIBRATED, None, None)
        assert tensor.device is not None
        assert (tensor.device.bits, tensor.float_readers) == (8, ())
        assert own.source is EncodingSource.TRAINED
        assert own.device is not None
        assert own.device.bits == 4


def test_a_subnet_says_which_copies_are_buffers_of_their_own() -> None:
    network = resnet(Residual.FLOAT)
    profile = load_profile("onnxruntime-x86")
    plan = resolve(profile, network)
    narrow = "layer2_0_relu_1_requantize"
    forms = {
        name: network.space.activation_form(2, form.symmetry, non_negative=True) if name == narrow else form
        for name, form in plan.subnet.activations
    }
    mixed = resolve(profile, network, replace(plan.subnet, activations=tuple(forms.items())))
    assert [tensor.merged_copy for tensor in mixed.tensors if tensor.merged_copy] == [
        copy for copy in all_copies(network) if copy != narrow
    ]
    own = mixed.tensor[narrow].device
    assert own is not None
    assert own.bits == 2


def test_a_copy_follows_the_profiles_rules_for_what_it_is_a_copy_of() -> None:
    profile = load_profile("onnxruntime-w4a4")
    activations = profile.activations.model_copy(
        update={"operators": {OpKind.RELU: profile.activations.non_negative.model_copy(update={"bits": (2,)})}}
    )
    network = resnet(Residual.FLOAT)
    plan = resolve(profile.model_copy(update={"activations": activations}), network)
    tensor = plan.tensor["layer2_0_relu_1"]
    assert tensor.merged_copy == "layer2_0_relu_1_requantize"  # the rule binds both
    assert tensor.device is not None
    assert tensor.device.bits == 2


@st.composite
def networks(draw: st.DrawFn) -> NetworkDescription:
    """A random acyclic network in which layers read some tensors through copies."""
    net = NetworkBuilder()
    names = [net.input()]
    for step in range(draw(st.integers(1, 12))):
        source = draw(st.sampled_from(names[-4:]))
        kind = draw(st.sampled_from([*LAYER_KINDS, *LAYER_KINDS, *LAYER_KINDS, *ONE_INPUT, *TWO_INPUTS, OpKind.ADD]))
        if kind in LAYER_KINDS:
            copy = f"{source}_requantize"
            if not net.tensors[source].trained and (copy in net.tensors or draw(st.booleans())):
                source = copy if copy in net.tensors else net.op(OpKind.REQUANTIZE, source, name=copy)
            names.append(net.layer(f"layer{step}", source, kind=kind, batch_norm=draw(st.booleans())))
        elif kind in TWO_INPUTS:
            names.append(net.op(kind, source, draw(st.sampled_from(names))))
        else:
            names.append(net.op(kind, source))
    read = {name for tensor in net.tensors.values() for name in tensor.inputs}
    return net.build(*{name for name in net.tensors if name not in read}, space=draw(spaces))


def random_subnet(network: NetworkDescription, plan: DevicePlan, widths: Mapping[str, int]) -> SubnetConfig:
    """The plan's subnet with other widths of activations."""
    forms = []
    for name, form in plan.subnet.activations:
        non_negative = network.tensor[name].non_negative
        forms.append((name, network.space.activation_form(widths[name], form.symmetry, non_negative=non_negative)))
    return replace(plan.subnet, activations=tuple(forms))


def forms(plan: DevicePlan) -> list[tuple[Form | None, Form | None, str | None]]:
    return [(tensor.trained, tensor.device, tensor.merged_copy) for tensor in plan.tensors]


@settings(max_examples=150, deadline=None)
@given(network=networks(), profile=profiles)
def test_plans_of_networks_with_copies_are_whole(network: NetworkDescription, profile: DeviceProfile) -> None:
    plan = resolve(profile, network)
    assert [tensor.tensor for tensor in plan.tensors] == [tensor.name for tensor in network.tensors]
    assert [name for name, _ in plan.subnet.activations] == [t.name for t in network.tensors if t.trained]
    owners = {tensor.merged_copy: tensor for tensor in plan.tensors if tensor.merged_copy is not None}
    for tensor in plan.tensors:
        info = network.tensor[tensor.tensor]
        assert tensor.reason
        assert (tensor.coverage is Coverage.QUANTIZED) == (tensor.device is not None)
        assert (tensor.device is None) == (tensor.source is EncodingSource.NONE)
        assert (tensor.trained is not None) == (info.trained or tensor.merged_copy is not None)
        if tensor.trained is not None:
            assert tensor.trained in network.space.activation_forms(non_negative=info.non_negative)
        if tensor.merged_copy is not None:
            assert network.tensor[tensor.merged_copy].inputs == (tensor.tensor,)
        if info.trained:
            assert (tensor.tensor in owners) == (tensor.device is None)
        assert not set(tensor.float_readers) & set(owners)
    for copy, source in all_copies(network).items():
        own, other = plan.tensor[copy].device, plan.tensor[source].device
        # Two buffers of one width would be merged by runtimes, with one scale of their choice.
        assert own is None or other is None or own.bits != other.bits


@settings(max_examples=150, deadline=None)
@given(network=networks(), profile=profiles, data=st.data())
def test_own_subnet_resolves_to_the_same_forms(
    network: NetworkDescription, profile: DeviceProfile, data: st.DataObject
) -> None:
    plan = resolve(profile, network)
    assert forms(resolve(profile, network, plan.subnet)) == forms(plan)
    widths = profile.activations.non_negative.bits
    if len(widths) == 1:
        return
    chosen = {name: data.draw(st.sampled_from(widths)) for name, _ in plan.subnet.activations}
    mixed = resolve(profile, network, random_subnet(network, plan, chosen))
    again = resolve(profile, network, mixed.subnet)
    assert forms(again) == forms(mixed)
    assert again.subnet == mixed.subnet


def test_the_shipped_profiles_are_all_covered() -> None:
    assert {*EIGHT_BITS, *FEW_BITS} == set(shipped_profiles())
