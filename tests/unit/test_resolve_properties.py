"""Rules that hold for every network and every shipped profile."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from eqdeploy.network import LAYER_KINDS, ElasticSpace, NetworkDescription, OpKind
from eqdeploy.plan import BatchNormFolding, Coverage, DevicePlan, EncodingSource
from eqdeploy.profile import DeviceProfile, load_profile, shipped_profiles
from eqdeploy.profile_fields import Encode, Storage
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.resolve import resolve
from tests.unit.network_support import NetworkBuilder

PROFILES = {name: load_profile(name) for name in shipped_profiles()}
SHARED_CONCAT = {
    name: profile.model_copy(
        update={
            "operators": profile.operators.model_copy(
                update={
                    "shared": (OpKind.MAX_POOL, OpKind.RESHAPE, OpKind.TRANSPOSE, OpKind.CONCAT, OpKind.AVERAGE_POOL),
                    "shared_inputs": (OpKind.ADD,),
                }
            )
        }
    )
    for name, profile in PROFILES.items()
}
ONE_INPUT = (
    OpKind.RELU,
    OpKind.CLIP,
    OpKind.SIGMOID,
    OpKind.HARD_SIGMOID,
    OpKind.TANH,
    OpKind.SOFTMAX,
    OpKind.MAX_POOL,
    OpKind.AVERAGE_POOL,
    OpKind.GLOBAL_AVERAGE_POOL,
    OpKind.RESHAPE,
    OpKind.TRANSPOSE,
    OpKind.RESIZE,
    OpKind.BATCH_NORM,
    OpKind.OTHER,
)
TWO_INPUTS = (OpKind.ADD, OpKind.MUL, OpKind.CONCAT, OpKind.MATMUL)

spaces = st.builds(
    ElasticSpace,
    bits=st.just((2, 3, 4, 5, 6, 7, 8)),
    granularities=st.just((Granularity.PER_TENSOR, Granularity.PER_CHANNEL)),
    symmetries=st.sampled_from([(Symmetry.SYMMETRIC, Symmetry.ASYMMETRIC), (Symmetry.SYMMETRIC,)]),
    narrow=st.booleans(),
    boundary_bits=st.sampled_from([4, 8]),
)


@st.composite
def networks(draw: st.DrawFn) -> NetworkDescription:
    """A random acyclic network of up to a dozen operations."""
    net = NetworkBuilder()
    names = [net.input()]
    for step in range(draw(st.integers(1, 12))):
        source = draw(st.sampled_from(names[-4:]))
        kind = draw(st.sampled_from([*LAYER_KINDS, *LAYER_KINDS, *ONE_INPUT, *TWO_INPUTS]))
        if kind in LAYER_KINDS:
            groups = draw(st.sampled_from([1, 2]))
            names.append(net.layer(f"layer{step}", source, kind=kind, batch_norm=draw(st.booleans()), groups=groups))
        elif kind in TWO_INPUTS:
            names.append(net.op(kind, source, draw(st.sampled_from(names))))
        else:
            names.append(net.op(kind, source))
    read = {name for tensor in net.tensors.values() for name in tensor.inputs}
    extra = draw(st.sets(st.sampled_from(names), max_size=1))
    return net.build(*{name for name in net.tensors if name not in read} | extra, space=draw(spaces))


profiles = st.sampled_from([*PROFILES.values(), *SHARED_CONCAT.values()])


def allowed_activation(profile: DeviceProfile, form: Form) -> bool:
    """Whether the profile has a rule under which this form is possible, judged from the rules alone."""
    activations = profile.activations
    extra = {activations.calibrated_bits, activations.boundary_bits}
    return any(
        form.bits in {*rule.bits, *extra}
        and form.symmetry in rule.symmetry
        and form.signed == (rule.storage is Storage.SIGNED)
        and form.granularity is Granularity.PER_TENSOR
        for rule in (activations.non_negative, activations.signed)
    )


@settings(max_examples=80, deadline=None)
@given(network=networks(), profile=profiles)
def test_every_tensor_stands_once_in_network_order_with_a_reason(
    network: NetworkDescription, profile: DeviceProfile
) -> None:
    plan = resolve(profile, network)
    assert [tensor.tensor for tensor in plan.tensors] == [tensor.name for tensor in network.tensors]
    assert [weight.layer for weight in plan.weights] == [layer.name for layer in network.layers]
    assert all(tensor.reason for tensor in plan.tensors)
    assert all(weight.reason for weight in plan.weights)


@settings(max_examples=80, deadline=None)
@given(network=networks(), profile=profiles)
def test_fields_of_a_tensor_plan_agree(network: NetworkDescription, profile: DeviceProfile) -> None:
    plan = resolve(profile, network)
    for tensor in plan.tensors:
        assert (tensor.coverage is Coverage.QUANTIZED) == (tensor.source is not EncodingSource.NONE)
        assert (tensor.device is not None) == (tensor.source is not EncodingSource.NONE)
        assert (tensor.shares_with is not None) == (tensor.source is EncodingSource.SHARED)
        assert (tensor.fixed is not None) == (tensor.source is EncodingSource.FIXED)
        assert (tensor.trained is not None) == network.tensor[tensor.tensor].trained
        assert tensor.source is not EncodingSource.TRAINED or tensor.trained is not None


@settings(max_examples=80, deadline=None)
@given(network=networks(), profile=profiles)
def test_no_device_form_leaves_the_profile(network: NetworkDescription, profile: DeviceProfile) -> None:
    plan = resolve(profile, network)
    assert all(allowed_activation(profile, tensor.device) for tensor in plan.tensors if tensor.device is not None)
    for weight in plan.weights:
        rule = profile.weights.rule(network.layer[weight.layer].op)
        boundary = {profile.weights.boundary_bits} if weight.layer in network.boundary_layers else set()
        assert weight.device.bits in {*rule.bits, *boundary}
        assert weight.device.granularity in rule.granularity
        assert weight.device.symmetry in rule.symmetry
        assert weight.device.signed == (rule.storage is Storage.SIGNED)


@settings(max_examples=80, deadline=None)
@given(network=networks(), profile=profiles)
def test_trained_forms_are_the_supernets_and_hold_the_devices_values(
    network: NetworkDescription, profile: DeviceProfile
) -> None:
    plan = resolve(profile, network)
    for weight in plan.weights:
        assert weight.trained in network.space.weight_forms()
        assert weight.device.bits == weight.trained.bits
        assert (weight.folding is None) == (network.layer[weight.layer].batch_norm is None)
        if weight.folding is BatchNormFolding.INTO_SCALE:
            assert weight.device.granularity is Granularity.PER_CHANNEL
    for tensor in plan.tensors:
        if tensor.trained is None:
            continue
        info = network.tensor[tensor.tensor]
        assert tensor.trained in network.space.activation_forms(non_negative=info.non_negative)
        if tensor.source is EncodingSource.TRAINED:
            assert tensor.device is not None
            # The device's integers hold exactly the trained codes, none of them cut off.
            codes = tensor.trained.q_max - tensor.trained.q_min
            half = info.non_negative and tensor.device.signed and tensor.device.symmetry is Symmetry.SYMMETRIC
            assert codes == (tensor.device.q_max if half else tensor.device.q_max - tensor.device.q_min)


@settings(max_examples=80, deadline=None)
@given(network=networks(), profile=profiles)
def test_shared_encodings_are_equal_and_reach_below_zero_when_a_member_does(
    network: NetworkDescription, profile: DeviceProfile
) -> None:
    plan = resolve(profile, network)
    for tensor in plan.tensors:
        if tensor.shares_with is None:
            continue
        owner = plan.tensor[tensor.shares_with]
        assert owner.shares_with is None
        assert owner.device == tensor.device
        if not network.tensor[tensor.tensor].non_negative:
            assert not network.tensor[owner.tensor].non_negative


@settings(max_examples=80, deadline=None)
@given(network=networks(), profile=profiles)
def test_operators_that_only_move_codes_have_one_encoding_on_both_sides(
    network: NetworkDescription, profile: DeviceProfile
) -> None:
    plan = resolve(profile, network)
    for info in network.tensors:
        if info.op not in profile.operators.shared or info.op in profile.operators.fixed:
            continue
        sides = [plan.tensor[name] for name in (info.name, *info.inputs)]
        owners = {side.shares_with or side.tensor for side in sides if side.device is not None}
        assert len(owners) <= 1 or any(plan.tensor[owner].fixed for owner in owners)


@settings(max_examples=80, deadline=None)
@given(network=networks(), profile=profiles)
def test_float_readers_read_the_tensor_and_run_in_float(network: NetworkDescription, profile: DeviceProfile) -> None:
    plan = resolve(profile, network)
    for tensor in plan.tensors:
        readers = network.tensor[tensor.tensor].readers
        assert set(tensor.float_readers) <= set(readers)
        assert not tensor.float_readers or tensor.device is not None
        assert not any(network.tensor[name].op in profile.operators.quantized for name in tensor.float_readers)


@settings(max_examples=80, deadline=None)
@given(network=networks(), profile=profiles)
def test_layers_read_encodings_and_their_inputs_are_never_inside_a_group(
    network: NetworkDescription, profile: DeviceProfile
) -> None:
    plan = resolve(profile, network)
    for layer in network.layers:
        assert plan.tensor[layer.input_tensor].device is not None
    for tensor in plan.tensors:
        if tensor.coverage is Coverage.INSIDE_FUSED_GROUP:
            assert len(network.tensor[tensor.tensor].readers) == 1
            assert not network.tensor[tensor.tensor].is_output


@settings(max_examples=80, deadline=None)
@given(network=networks(), profile=profiles)
def test_own_subnet_resolves_to_the_same_forms(network: NetworkDescription, profile: DeviceProfile) -> None:
    def forms(plan: DevicePlan) -> list[tuple[Form | None, Form | None]]:
        weights = [(weight.trained, weight.device) for weight in plan.weights]
        return [*weights, *((tensor.trained, tensor.device) for tensor in plan.tensors)]

    plan = resolve(profile, network)
    again = resolve(profile, network, plan.subnet)
    assert forms(again) == forms(plan)
    assert again.subnet == plan.subnet


@settings(max_examples=100, deadline=None)
@given(network=networks(), name=st.sampled_from(sorted(PROFILES)))
def test_encode_all_leaves_nothing_float_without_cause(network: NetworkDescription, name: str) -> None:
    profile = PROFILES[name]
    if profile.activations.encode is not Encode.ALL:
        return
    plan = resolve(profile, network)
    integer = {*profile.operators.quantized, *profile.operators.shared}
    for tensor in plan.tensors:
        info = network.tensor[tensor.tensor]
        if tensor.coverage in (Coverage.FLOAT_BY_PROFILE, Coverage.FLOAT_BY_NECESSITY):
            assert not any(network.tensor[reader].op in profile.operators.quantized for reader in info.readers)
            assert info.is_output or info.op not in integer or not profile.activations.network_output
