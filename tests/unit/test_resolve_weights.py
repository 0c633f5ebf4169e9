"""Which trained form a weight uses, which form the device gets, and how BatchNorm is folded."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqdeploy.errors import ProfileError
from eqdeploy.network import ElasticSpace, NetworkDescription, OpKind
from eqdeploy.plan import BatchNormFolding, BiasFormat
from eqdeploy.profile import DeviceProfile, load_profile
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.resolve import explain_layers, resolve
from eqdeploy.subnet import SubnetConfig
from tests.unit.network_support import NetworkBuilder, residual_network
from tests.unit.test_profile_loading import write

CHANNEL, TENSOR = Granularity.PER_CHANNEL, Granularity.PER_TENSOR
SYMMETRIC, ASYMMETRIC = Symmetry.SYMMETRIC, Symmetry.ASYMMETRIC


def changed(tmp_path: Path, base: str, text: str) -> DeviceProfile:
    """A profile that inherits from a shipped one."""
    return load_profile(write(tmp_path, f"schema: 1\nname: changed\ndescription: c\ninherits: {base}\n{text}"))


def failure(profile: DeviceProfile, network: NetworkDescription, subnet: SubnetConfig | None = None) -> str:
    with pytest.raises(ProfileError) as caught:
        resolve(profile, network, subnet)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "trained", "device", "folding"),
    [
        ("onnxruntime-x86", Form(8, CHANNEL, SYMMETRIC, True), Form(8, CHANNEL, SYMMETRIC, True), "into_scale"),
        ("onnxruntime-w4a4", Form(4, CHANNEL, SYMMETRIC, True), Form(4, CHANNEL, SYMMETRIC, True), "into_scale"),
        ("onnxruntime-w2a4", Form(2, CHANNEL, SYMMETRIC, True), Form(2, CHANNEL, SYMMETRIC, True), "into_scale"),
        ("tensorrt", Form(8, CHANNEL, SYMMETRIC, True), Form(8, CHANNEL, SYMMETRIC, True), "into_scale"),
        ("snpe-dsp", Form(8, TENSOR, ASYMMETRIC, True), Form(8, TENSOR, ASYMMETRIC, False), "requantize"),
    ],
)
def test_inner_layer_of_each_shipped_profile(name: str, trained: Form, device: Form, folding: str) -> None:
    plan = resolve(load_profile(name), residual_network())
    weight = plan.weight["a.conv1"]
    assert (weight.trained, weight.device, weight.folding) == (trained, device, BatchNormFolding(folding))
    assert weight.reason


@pytest.mark.parametrize("name", ["onnxruntime-w4a4", "onnxruntime-w2a4"])
def test_boundary_layers_have_eight_bits(name: str) -> None:
    plan = resolve(load_profile(name), residual_network())
    assert {plan.weight["stem"].trained.bits, plan.weight["fc"].trained.bits} == {8}
    assert "boundary layer" in plan.weight["stem"].reason
    assert dict(plan.subnet.activations)["x"].bits == dict(plan.subnet.activations)["flat"].bits == 8


def test_boundary_bits_default_to_the_supernets_if_allowed(tmp_path: Path) -> None:
    network = residual_network(ElasticSpace(boundary_bits=6))
    several = changed(tmp_path, "onnxruntime-x86", "weights: {bits: [4, 6]}\n")
    assert resolve(several, network).weight["stem"].trained.bits == 6
    single = changed(tmp_path, "onnxruntime-x86", "weights: {bits: 4}\n")
    assert resolve(single, network).weight["stem"].trained.bits == 4


def test_layer_without_batch_norm_is_not_folded() -> None:
    weight = resolve(load_profile("snpe-dsp"), residual_network()).weight["fc"]
    assert weight.folding is None
    assert weight.device == Form(8, TENSOR, ASYMMETRIC, False)


def test_per_tensor_training_folds_exactly_on_a_per_channel_device() -> None:
    space = ElasticSpace(granularities=(TENSOR,))
    plan = resolve(load_profile("tensorrt"), residual_network(space))
    assert plan.weight["a.conv1"].trained.granularity is TENSOR
    assert plan.weight["a.conv1"].device.granularity is CHANNEL
    assert plan.weight["a.conv1"].folding is BatchNormFolding.INTO_SCALE
    assert "per_channel is not trained" in plan.weight["a.conv1"].reason
    assert plan.weight["fc"].device.granularity is TENSOR


def test_grouped_transposed_convolution_cannot_fold_into_the_scale() -> None:
    net = NetworkBuilder()
    up = net.layer("up", net.input(), kind=OpKind.CONV_TRANSPOSE, groups=2)
    network = net.build(net.layer("head", up, batch_norm=False))
    weight = resolve(load_profile("onnxruntime-x86"), network).weight["up"]
    assert weight.folding is BatchNormFolding.REQUANTIZE
    assert "share a scale" in weight.reason


def test_tensorrt_takes_one_scale_for_a_transposed_convolution() -> None:
    net = NetworkBuilder()
    up = net.layer("up", net.input(), kind=OpKind.CONV_TRANSPOSE)
    plan = resolve(load_profile("tensorrt"), net.build(net.layer("head", up, batch_norm=False)))
    assert plan.weight["up"].device.granularity is TENSOR
    assert plan.weight["up"].folding is BatchNormFolding.REQUANTIZE
    assert plan.weight["head"].device.granularity is CHANNEL


def test_symmetric_supernet_serves_an_asymmetric_device() -> None:
    plan = resolve(load_profile("snpe-dsp"), residual_network(ElasticSpace(symmetries=(SYMMETRIC,))))
    assert plan.weight["a.conv1"].device == Form(8, TENSOR, SYMMETRIC, False)
    assert plan.tensor["x"].device == Form(8, TENSOR, SYMMETRIC, False)


def test_narrow_training_stays_narrow_in_signed_storage_only() -> None:
    network = residual_network(ElasticSpace(narrow=True))
    assert resolve(load_profile("tensorrt"), network).weight["fc"].device.narrow
    snpe = resolve(load_profile("snpe-dsp"), residual_network(ElasticSpace(narrow=True, symmetries=(SYMMETRIC,))))
    assert snpe.weight["fc"].trained.narrow
    assert not snpe.weight["fc"].device.narrow


def test_narrow_device_needs_a_narrow_supernet(tmp_path: Path) -> None:
    profile = changed(tmp_path, "tensorrt", "weights: {range: narrow}\n")
    assert "changed: weights.range: layer 'stem' needs the narrow range" in failure(profile, residual_network())
    assert resolve(profile, residual_network(ElasticSpace(narrow=True))).weight["stem"].device.q_min == -127


def test_missing_width_names_layer_key_and_nearest_choice() -> None:
    network = residual_network(ElasticSpace(bits=(2, 3, 4), boundary_bits=4))
    line = failure(load_profile("onnxruntime-x86"), network)
    assert line.startswith("onnxruntime-x86: weights.bits: layer 'a.conv1' needs 8 bits")
    assert "trained for 2, 3, 4" in line
    assert "nearest choice: weights.bits: 4" in line


def test_missing_boundary_width_names_its_own_key() -> None:
    line = failure(load_profile("tensorrt"), residual_network(ElasticSpace(bits=(2, 4), boundary_bits=4)))
    assert "tensorrt: weights.boundary_bits: layer 'stem' needs 8 bits" in line


def test_missing_width_of_an_override_names_the_override(tmp_path: Path) -> None:
    profile = changed(tmp_path, "onnxruntime-x86", "weights: {operators: {conv: {bits: 5}}, boundary_bits: 8}\n")
    line = failure(profile, residual_network(ElasticSpace(bits=(4, 7, 8))))
    assert "changed: weights.operators.conv.bits: layer 'a.conv1' needs 5 bits" in line
    assert "nearest choice: weights.operators.conv.bits: 4" in line


def test_missing_granularity_and_symmetry(tmp_path: Path) -> None:
    line = failure(load_profile("snpe-dsp"), residual_network(ElasticSpace(granularities=(CHANNEL,))))
    assert (
        "snpe-dsp: weights.granularity: layer 'stem' needs per_tensor, the supernet is trained for per_channel" in line
    )
    line = failure(load_profile("tensorrt"), residual_network(ElasticSpace(symmetries=(ASYMMETRIC,))))
    assert "tensorrt: weights.symmetry: layer 'stem' needs symmetric, the supernet is trained for asymmetric" in line


def test_layer_that_the_device_leaves_in_float_is_refused(tmp_path: Path) -> None:
    profile = changed(tmp_path, "tensorrt", "operators: {quantized: [conv, add]}\n")
    assert "changed: operators.quantized: layer 'fc' is a linear" in failure(profile, residual_network())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rounding: half_up\n", "changed: rounding: half_up is not supported yet"),
        ("rounding: half_away_from_zero\n", "changed: rounding: half_away_from_zero"),
        ("bias: int8\n", "changed: bias: int8 is not supported yet"),
        ("bias: int40\n", "changed: bias: int40 is not supported yet"),
        ("activations: {scale: power_of_two}\n", "different constraints for weights and activations"),
        (
            "weights: {bits: 16}\n",
            "layer 'stem' needs 16 bits, the supernet is trained for 2, 3, 4, 5, 6, 7, 8 "
            "(nearest choice: weights.bits: 8)",
        ),
        ("activations: {calibrated_bits: 16}\n", "activations.calibrated_bits: tensor 'a_conv2_bn' would need 16 bits"),
    ],
)
def test_what_can_be_said_but_not_done_yet(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in failure(changed(tmp_path, "onnxruntime-x86", text), residual_network())


def test_bias_and_power_of_two_reach_the_plan(tmp_path: Path) -> None:
    assert resolve(load_profile("tensorrt"), residual_network()).bias is BiasFormat.FLOAT
    assert resolve(load_profile("snpe-dsp"), residual_network()).bias is BiasFormat.INT32
    text = "weights: {scale: power_of_two, batch_norm: requantize}\nactivations: {scale: power_of_two}\n"
    assert resolve(changed(tmp_path, "tensorrt", text), residual_network()).power_of_two_scales


class TestSubnet:
    def mixed(self, **changes: Form) -> SubnetConfig:
        """The x86 profile's own subnet with some forms changed."""
        base = resolve(load_profile("onnxruntime-x86"), residual_network()).subnet
        return SubnetConfig(
            weights=tuple((name, changes.get(name.replace(".", "_"), form)) for name, form in base.weights),
            activations=tuple((name, changes.get(name, form)) for name, form in base.activations),
        )

    def test_its_forms_are_used(self) -> None:
        given = self.mixed(
            a_conv1=Form(3, CHANNEL, SYMMETRIC, True),
            b_conv1=Form(5, TENSOR, SYMMETRIC, True),
            a_conv1_relu=Form(2, TENSOR, SYMMETRIC, False),
        )
        plan = resolve(load_profile("onnxruntime-x86"), residual_network(), given)
        assert plan.subnet == given
        assert plan.weight["a.conv1"].device.bits == 3
        assert plan.weight["b.conv1"].device == Form(5, CHANNEL, SYMMETRIC, True)
        assert plan.tensor["a_conv1_relu"].device == Form(2, TENSOR, SYMMETRIC, False)
        assert "as the subnet says" in plan.weight["a.conv1"].reason

    def test_order_of_its_entries_does_not_matter(self) -> None:
        given = self.mixed()
        shuffled = SubnetConfig(weights=given.weights[::-1], activations=given.activations[::-1])
        network, profile = residual_network(), load_profile("onnxruntime-x86")
        assert resolve(profile, network, shuffled) == resolve(profile, network, given)

    def test_names_must_match(self) -> None:
        given = self.mixed()
        other = SubnetConfig(
            weights=(*given.weights[1:], ("extra", given.weights[0][1])), activations=given.activations
        )
        line = failure(load_profile("onnxruntime-x86"), residual_network(), other)
        assert "subnet: weights: does not fit this network: missing stem; unexpected extra" in line
        fewer = SubnetConfig(weights=given.weights, activations=given.activations[1:])
        assert "subnet: activations: does not fit this network: missing x" in failure(
            load_profile("onnxruntime-x86"), residual_network(), fewer
        )

    @pytest.mark.parametrize(
        ("profile", "layer", "form", "expected"),
        [
            ("onnxruntime-x86", "a_conv1", Form(1, CHANNEL, SYMMETRIC, True), "not trained for 1-per_channel"),
            ("onnxruntime-x86", "a_conv1", Form(8, CHANNEL, ASYMMETRIC, True), "weights.symmetry: symmetric"),
            ("onnxruntime-w4a4", "a_conv1", Form(3, CHANNEL, SYMMETRIC, True), "weights.bits: 4"),
            ("onnxruntime-w4a4", "stem", Form(3, CHANNEL, SYMMETRIC, True), "weights.boundary_bits: 8, 4"),
            (
                "onnxruntime-x86",
                "a_conv1_relu",
                Form(8, TENSOR, SYMMETRIC, True),
                "nearest choice: 8-per_tensor-symmetric-unsigned",
            ),
        ],
    )
    def test_forms_must_be_allowed(self, profile: str, layer: str, form: Form, expected: str) -> None:
        base = resolve(load_profile(profile), residual_network()).subnet
        given = SubnetConfig(
            weights=tuple((name, form if name.replace(".", "_") == layer else old) for name, old in base.weights),
            activations=tuple((name, form if name == layer else old) for name, old in base.activations),
        )
        line = failure(load_profile(profile), residual_network(), given)
        assert expected in line
        assert layer in line.replace(".", "_")

    def test_signed_symmetric_device_takes_one_bit_less_on_non_negative_tensors(self) -> None:
        profile, network = load_profile("tensorrt"), residual_network()
        plan = resolve(profile, network)
        assert resolve(profile, network, plan.subnet).tensors[1:3] == plan.tensors[1:3]
        eight = SubnetConfig(
            weights=plan.subnet.weights,
            activations=tuple(
                (name, Form(8, TENSOR, SYMMETRIC, False) if name == "a_conv1_relu" else form)
                for name, form in plan.subnet.activations
            ),
        )
        line = failure(profile, network, eight)
        assert "subnet: activations.a_conv1_relu: 8 is not possible on tensorrt" in line
        assert "7" in line


def test_rows_explain_every_layer() -> None:
    network = residual_network()
    rows = explain_layers(resolve(load_profile("snpe-dsp"), network), network)
    assert [row.layer for row in rows] == [layer.name for layer in network.layers]
    assert rows[0].trained == "8-per_tensor-asymmetric-signed"
    assert rows[0].device == "8-per_tensor-asymmetric-unsigned"
    assert (rows[0].operator, rows[0].batch_norm, rows[-1].batch_norm) == ("conv", "requantize", "-")
    assert all(row.reason for row in rows)
