"""Which tensors carry an encoding, whose it is, and why the others have none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eqdeploy.errors import ProfileError
from eqdeploy.network import ElasticSpace, NetworkDescription, OpKind
from eqdeploy.plan import Coverage, DevicePlan, EncodingSource, FixedEncoding
from eqdeploy.profile import load_profile
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.resolve import explain_tensors, resolve
from tests.unit.network_support import NetworkBuilder, concat_network, residual_network, squeeze_excite_network
from tests.unit.test_resolve_weights import changed

TENSOR = Granularity.PER_TENSOR
SYMMETRIC, ASYMMETRIC = Symmetry.SYMMETRIC, Symmetry.ASYMMETRIC
UNSIGNED_8 = Form(8, TENSOR, SYMMETRIC, False)
SIGNED_8 = Form(8, TENSOR, SYMMETRIC, True)
ASYMMETRIC_8 = Form(8, TENSOR, ASYMMETRIC, False)


def plan_for(name: str, network: NetworkDescription) -> DevicePlan:
    return resolve(load_profile(name), network)


def sources(plan: DevicePlan) -> dict[str, str]:
    """Coverage of every tensor, in one word each."""
    short = {
        Coverage.INSIDE_FUSED_GROUP: "inside",
        Coverage.FLOAT_BY_PROFILE: "float",
        Coverage.FLOAT_BY_NECESSITY: "necessity",
    }
    return {
        tensor.tensor: (
            f"={tensor.shares_with}" if tensor.shares_with else short.get(tensor.coverage, str(tensor.source))
        )
        for tensor in plan.tensors
    }


class TestResidualNetwork:
    def test_onnxruntime_encodes_everything_that_exists(self) -> None:
        plan = plan_for("onnxruntime-x86", residual_network())
        assert sources(plan) == {
            "x": "trained",
            "stem": "inside",
            "stem_bn": "inside",
            "stem_relu": "=pool",
            "pool": "trained",
            "a_conv1": "inside",
            "a_conv1_bn": "inside",
            "a_conv1_relu": "trained",
            "a_conv2": "inside",
            "a_conv2_bn": "calibrated",
            "add_a": "inside",
            "a_relu": "trained",
            "b_conv1": "inside",
            "b_conv1_bn": "inside",
            "b_conv1_relu": "trained",
            "b_conv2": "inside",
            "b_conv2_bn": "calibrated",
            "b_down": "inside",
            "b_down_bn": "calibrated",
            "add_b": "inside",
            "b_relu": "calibrated",
            "gap": "=flat",
            "flat": "trained",
            "fc": "float",
        }
        assert plan.tensor["x"].device == plan.tensor["a_conv2_bn"].device == ASYMMETRIC_8
        assert plan.tensor["pool"].device == plan.tensor["stem_relu"].device == UNSIGNED_8
        assert "network_output" in plan.tensor["fc"].reason

    def test_snpe_encodes_the_output_too(self) -> None:
        plan = plan_for("snpe-dsp", residual_network())
        assert sources(plan)["fc"] == "calibrated"
        quantized = {name for name, source in sources(plan).items() if source != "inside"}
        assert all(plan.tensor[name].device == ASYMMETRIC_8 for name in quantized)
        assert plan.minimum_scale == pytest.approx(0.01 / 255)

    def test_low_bits_leave_calibrated_tensors_at_eight(self) -> None:
        plan = plan_for("onnxruntime-w4a4", residual_network())
        assert plan.tensor["a_conv1_relu"].device == Form(4, TENSOR, SYMMETRIC, False)
        assert plan.tensor["stem_relu"].device == Form(4, TENSOR, SYMMETRIC, False)
        assert plan.tensor["a_conv2_bn"].device == ASYMMETRIC_8
        assert plan.tensor["gap"].device == UNSIGNED_8

    def test_tensorrt_encodes_operator_inputs_and_the_skip_branch(self) -> None:
        plan = plan_for("tensorrt", residual_network())
        assert sources(plan) == {
            "x": "trained",
            "stem": "inside",
            "stem_bn": "inside",
            "stem_relu": "float",
            "pool": "trained",
            "a_conv1": "inside",
            "a_conv1_bn": "inside",
            "a_conv1_relu": "trained",
            "a_conv2": "inside",
            "a_conv2_bn": "float",
            "add_a": "inside",
            "a_relu": "trained",
            "b_conv1": "inside",
            "b_conv1_bn": "inside",
            "b_conv1_relu": "trained",
            "b_conv2": "inside",
            "b_conv2_bn": "float",
            "b_down": "inside",
            "b_down_bn": "calibrated",
            "add_b": "inside",
            "b_relu": "calibrated",
            "gap": "float",
            "flat": "trained",
            "fc": "float",
        }
        assert "main branch of add_a" in plan.tensor["a_conv2_bn"].reason
        assert all(tensor.device == SIGNED_8 for tensor in plan.tensors if tensor.device is not None)

    def test_signed_symmetric_device_gets_the_grid_of_one_bit_less(self) -> None:
        plan = plan_for("tensorrt", residual_network())
        assert plan.tensor["a_conv1_relu"].trained == Form(7, TENSOR, SYMMETRIC, False)
        assert "signed symmetric 8 bits hold unsigned 7 bits" in plan.tensor["a_conv1_relu"].reason
        assert plan.tensor["x"].trained == SIGNED_8

    def test_that_grid_must_be_trained(self) -> None:
        with pytest.raises(ProfileError, match="needs 7 bits") as caught:
            plan_for("tensorrt", residual_network(ElasticSpace(bits=(4, 8))))
        line = str(caught.value)
        assert line.startswith("tensorrt: activations.non_negative.bits: tensor 'pool' needs 7 bits (8 bits signed")
        assert "nearest choice: activations.non_negative.bits: 5, or train the supernet for 7 bits" in line

    def test_every_layer_reads_an_encoded_tensor(self) -> None:
        network = residual_network()
        for name in ("onnxruntime-x86", "snpe-dsp", "tensorrt"):
            plan = plan_for(name, network)
            assert all(plan.tensor[layer.input_tensor].device is not None for layer in network.layers)

    def test_rows_explain_every_tensor(self) -> None:
        network = residual_network()
        rows = explain_tensors(plan_for("onnxruntime-x86", network), network)
        assert [row.tensor for row in rows] == [tensor.name for tensor in network.tensors]
        by_name = {row.tensor: row for row in rows}
        assert by_name["stem_relu"].rule == "that of pool"
        assert by_name["stem"].rule == by_name["stem"].device == "-"
        assert by_name["x"].rule == "trained"
        assert all(row.reason for row in rows)


class TestResidualAdditions:
    def branches(self, *, plain_skip: bool, relu_after_main: bool) -> DevicePlan:
        net = NetworkBuilder()
        stem = net.conv_relu("stem", net.input())
        main = net.layer("main", net.conv_relu("first", stem))
        if relu_after_main:
            main = net.op(OpKind.RELU, main, name="main_relu")
        skip = stem if plain_skip else net.op(OpKind.SIGMOID, net.layer("gate", stem), name="skip")
        total = net.op(OpKind.ADD, skip, main, name="sum")
        return plan_for("tensorrt", net.build(net.layer("head", total, batch_norm=False)))

    def test_order_of_arguments_does_not_matter(self) -> None:
        assert sources(self.branches(plain_skip=True, relu_after_main=False))["main_bn"] == "float"

    def test_main_branch_may_end_in_a_fused_activation(self) -> None:
        plan = self.branches(plain_skip=True, relu_after_main=True)
        assert sources(plan)["main_relu"] == "float"

    def test_untrained_skip_is_calibrated(self) -> None:
        plan = self.branches(plain_skip=False, relu_after_main=False)
        assert sources(plan)["skip"] == "calibrated"
        assert plan.tensor["skip"].device == SIGNED_8

    def test_addition_of_two_inputs_of_layers_has_no_main_branch(self) -> None:
        net = NetworkBuilder()
        one = net.conv_relu("one", net.input())
        two = net.conv_relu("two", one)
        three = net.layer("three", two, batch_norm=False)
        total = net.op(OpKind.ADD, one, two, name="sum")
        plan = plan_for("tensorrt", net.build(total, net.op(OpKind.RELU, three, name="end")))
        assert sources(plan)["one_relu"] == sources(plan)["two_relu"] == "trained"

    def test_main_branch_that_others_read_keeps_its_encoding(self) -> None:
        net = NetworkBuilder()
        stem = net.conv_relu("stem", net.input())
        main = net.layer("main", stem)
        total = net.op(OpKind.ADD, main, stem, name="sum")
        other = net.op(OpKind.SIGMOID, main, name="other")
        joined = net.op(OpKind.MUL, total, other, name="joined")
        plan = plan_for("tensorrt", net.build(net.layer("head", joined, batch_norm=False)))
        assert sources(plan)["main_bn"] == "calibrated"
        assert plan.tensor["main_bn"].float_readers == ("other",)

    def test_longer_branch_is_the_main_one(self) -> None:
        net = NetworkBuilder()
        stem = net.conv_relu("stem", net.input())
        short = net.layer("short", stem)
        long = net.layer("long.2", net.conv_relu("long.1", stem))
        for order in ((short, long), (long, short)):
            total = net.op(OpKind.ADD, *order, name=f"sum_{order[0]}")
            network = net.build(total)
            assert sources(plan_for("tensorrt", network))["long_2_bn"] == "float"
            del net.tensors[total]


class TestGates:
    def test_onnxruntime_treats_silu_and_gates_as_ordinary_tensors(self) -> None:
        found = sources(plan_for("onnxruntime-x86", squeeze_excite_network()))
        assert found["stem_bn"] == found["gate"] == found["silu"] == found["se_gate"] == "calibrated"
        assert found["mean"] == found["scaled"] == found["project_bn"] == "trained"
        assert found["se_fc1"] == "inside"
        assert found["se_fc2"] == "calibrated"

    def test_tensorrt_reads_the_gated_tensor_in_float_where_no_quantized_operator_reads(self) -> None:
        plan = plan_for("tensorrt", squeeze_excite_network())
        assert sources(plan)["silu"] == "calibrated"
        assert plan.tensor["silu"].float_readers == ("scaled",)
        assert sources(plan)["stem_bn"] == "float"
        assert "operator_inputs" in plan.tensor["stem_bn"].reason


class TestFloatReaders:
    def plan(self, tmp_path: Path, *, pool_feeds_a_layer: bool) -> DevicePlan:
        """A calibrated skip branch that a max pool reads too, on a device whose max pools move codes."""
        net = NetworkBuilder()
        stem = net.conv_relu("stem", net.input())
        skip = net.op(OpKind.SIGMOID, net.layer("gate", stem), name="skip")
        pool = net.op(OpKind.MAX_POOL, skip, name="pool")
        total = net.op(OpKind.ADD, net.layer("main", stem), skip, name="sum")
        end = net.layer("head", pool, batch_norm=False) if pool_feeds_a_layer else net.op(OpKind.TANH, pool)
        return resolve(changed(tmp_path, "tensorrt", "operators: {shared: [max_pool]}\n"), net.build(total, end))

    def test_operator_that_moves_codes_reads_codes(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, pool_feeds_a_layer=True)
        assert sources(plan)["skip"] == "=pool"
        assert plan.tensor["skip"].float_readers == ()

    def test_but_not_when_its_output_has_no_encoding(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, pool_feeds_a_layer=False)
        assert sources(plan)["skip"] == "calibrated"
        assert plan.tensor["skip"].float_readers == ("pool",)


class TestSharedEncodings:
    def test_tensors_of_a_network_output_stay_float_through_a_reshape(self) -> None:
        net = NetworkBuilder()
        last = net.layer("last", net.conv_relu("first", net.input()), batch_norm=False)
        plan = plan_for("onnxruntime-x86", net.build(net.op(OpKind.RESHAPE, last, name="end")))
        assert sources(plan)["last"] == sources(plan)["end"] == "float"
        assert "only moved into end" in plan.tensor["last"].reason
        snpe = plan_for("snpe-dsp", net.build("end"))
        assert sources(snpe)["last"] == "calibrated"
        assert sources(snpe)["end"] == "=last"

    def test_concatenation_with_one_encoding_takes_a_range_below_zero(self, tmp_path: Path) -> None:
        profile = changed(tmp_path, "snpe-dsp", "operators: {shared: [concat]}\n")
        plan = resolve(profile, concat_network())
        assert {name for name, source in sources(plan).items() if source == "=joined"} == {
            "stem_relu",
            "left_relu",
            "right_bn",
        }
        assert plan.tensor["joined"].source is EncodingSource.TRAINED
        assert all(plan.tensor[name].device == ASYMMETRIC_8 for name in ("joined", "stem_relu", "left_relu"))
        assert plan.tensor["stem_relu"].trained == UNSIGNED_8

    def test_group_without_a_fitting_trained_tensor_is_calibrated(self, tmp_path: Path) -> None:
        net = NetworkBuilder()
        one = net.conv_relu("one", net.input())
        two = net.layer("two", one)
        joined = net.op(OpKind.CONCAT, one, two, name="joined", shape=(8, 8, 8))
        profile = changed(tmp_path, "snpe-dsp", "operators: {shared: [concat]}\n")
        plan = resolve(profile, net.build(joined))
        assert sources(plan)["joined"] == "calibrated"
        assert sources(plan)["one_relu"] == sources(plan)["two_bn"] == "=joined"
        assert plan.tensor["one_relu"].trained == UNSIGNED_8  # the supernet still needs a form for it

    def test_larger_trained_tensor_owns_the_encoding(self) -> None:
        net = NetworkBuilder()
        stem = net.conv_relu("stem", net.input())
        pool = net.op(OpKind.MAX_POOL, stem, name="pool", shape=(4, 4, 4))
        side = net.layer("side", stem, batch_norm=False)
        network = net.build(side, net.layer("head", pool, batch_norm=False))
        plan = plan_for("onnxruntime-w4a4", network)
        assert sources(plan)["stem_relu"] == "trained"
        assert sources(plan)["pool"] == "=stem_relu"
        # The last layer's input would have 8 bits; on the device it is the 4-bit buffer of the other layer's input.
        assert dict(plan.subnet.activations)["pool"] == dict(plan.subnet.activations)["stem_relu"]
        assert plan.tensor["pool"].device is not None
        assert plan.tensor["pool"].device.bits == 4

    def test_boundary_tensor_owns_the_encoding_among_equals(self) -> None:
        net = NetworkBuilder()
        stem = net.conv_relu("stem", net.input())
        side = net.layer("side", stem, batch_norm=False)
        flat = net.op(OpKind.RESHAPE, stem, name="flat", shape=(256,))
        network = net.build(side, net.layer("head", flat, kind=OpKind.LINEAR, batch_norm=False))
        plan = plan_for("onnxruntime-w4a4", network)
        assert sources(plan)["flat"] == "trained"
        assert plan.tensor["stem_relu"].device == UNSIGNED_8

    def test_inputs_of_an_operator_can_share_while_its_output_does_not(self, tmp_path: Path) -> None:
        profile = changed(tmp_path, "snpe-dsp", "operators: {shared_inputs: [add]}\n")
        plan = resolve(profile, residual_network())
        found = sources(plan)
        assert (found["pool"], found["a_conv2_bn"]) == ("=a_conv2_bn", "calibrated")
        assert found["a_relu"] == "trained"

    FIXED = "operators: {fixed: {sigmoid: {storage: unsigned, scale: 0.00390625, zero_point: 0}}"

    def test_prescribed_encoding(self, tmp_path: Path) -> None:
        plan = resolve(changed(tmp_path, "snpe-dsp", f"{self.FIXED}}}\n"), squeeze_excite_network())
        gate = plan.tensor["se_gate"]
        assert gate.source is EncodingSource.FIXED
        assert gate.fixed == FixedEncoding(1 / 256, 0)
        assert gate.device == ASYMMETRIC_8
        assert "operators.fixed.sigmoid" in gate.reason

    def test_prescribed_encoding_passes_through_a_pool_but_not_through_a_concatenation(self, tmp_path: Path) -> None:
        net = NetworkBuilder()
        stem = net.conv_relu("stem", net.input())
        gate = net.op(OpKind.SIGMOID, net.layer("gate", stem, batch_norm=False), name="sigmoid")
        pool = net.op(OpKind.MAX_POOL, gate, name="pool")
        joined = net.op(OpKind.CONCAT, pool, stem, name="joined", shape=(8, 8, 8))
        network = net.build(net.layer("head", joined, batch_norm=False))
        profile = changed(tmp_path, "snpe-dsp", f"{self.FIXED}, shared: [max_pool, concat]}}\n")
        found = sources(resolve(profile, network))
        assert (found["sigmoid"], found["pool"]) == ("fixed", "=sigmoid")
        assert (found["joined"], found["stem_relu"]) == ("trained", "=joined")

    def test_prescribed_encoding_goes_before_a_trained_one(self, tmp_path: Path) -> None:
        net = NetworkBuilder()
        gate = net.op(OpKind.SIGMOID, net.layer("first", net.input()), name="sigmoid")
        network = net.build(net.layer("second", gate, batch_norm=False))
        plan = resolve(changed(tmp_path, "snpe-dsp", f"{self.FIXED}}}\n"), network)
        assert plan.tensor["sigmoid"].source is EncodingSource.FIXED
        assert dict(plan.subnet.activations)["sigmoid"] == UNSIGNED_8


class TestFloatLayers:
    """A runtime quantizes the weights of a float layer by itself where its input is dequantized."""

    def plan(self, *, shared: bool) -> DevicePlan:
        net = NetworkBuilder()
        stem = net.conv_relu("stem", net.input())
        moved = net.op(OpKind.RESHAPE, stem, name="moved")
        deep = net.op(OpKind.OTHER, moved, name="deep")
        merged = net.op(OpKind.ADD, deep, moved if shared else deep, name="merged")
        network = net.build(net.layer("head", merged, batch_norm=False))
        tensors = [
            replace(tensor, operation="torch.nn.Conv3d") if tensor.name == "deep" else tensor
            for tensor in network.tensors
        ]
        return plan_for("onnxruntime-x86", replace(network, tensors=tuple(tensors)))

    def test_its_input_stays_float_where_nobody_else_reads_it(self) -> None:
        moved = self.plan(shared=False).tensor["moved"]
        assert moved.coverage is Coverage.FLOAT_BY_NECESSITY
        assert moved.reason == "read only by torch.nn.Conv3d, which has no integer form"

    def test_it_reads_the_unquantized_value_of_what_others_read_quantized(self) -> None:
        moved = self.plan(shared=True).tensor["moved"]
        assert moved.coverage is Coverage.QUANTIZED
        assert moved.float_readers == ("deep",)


class TestFloatTensors:
    def network(self) -> NetworkDescription:
        net = NetworkBuilder()
        stem = net.layer("stem", net.input())
        odd = net.op(OpKind.OTHER, stem, name="erf")
        odder = net.op(OpKind.OTHER, odd, name="cosine")
        hard = net.op(OpKind.HARD_SIGMOID, odder, name="hard")
        tanh = net.op(OpKind.TANH, hard, name="tanh")
        return net.build(net.layer("head", tanh, batch_norm=False))

    def test_operations_without_integer_form_are_float_by_necessity(self) -> None:
        plan = plan_for("onnxruntime-x86", self.network())
        assert sources(plan) == {
            "x": "trained",
            "stem": "inside",
            "stem_bn": "calibrated",
            "erf": "necessity",
            "cosine": "necessity",
            "hard": "float",
            "tanh": "trained",
            "head": "float",
        }
        assert "torch.other has no integer form" in plan.tensor["erf"].reason
        assert "neither hard_sigmoid nor a reader is listed in operators.quantized" in plan.tensor["hard"].reason

    def test_batch_norm_that_follows_no_layer_is_float_with_one_encoding_after_its_relu(self) -> None:
        net = NetworkBuilder()
        stem = net.layer("stem", net.input(), batch_norm=False)
        joined = net.op(OpKind.CONCAT, stem, "x", name="joined")
        alone = net.op(OpKind.BATCH_NORM, joined, name="alone")
        relu = net.op(OpKind.RELU, alone, name="relu")
        network = net.build(net.layer("head", relu, batch_norm=False))
        assert sources(plan_for("onnxruntime-x86", network)) == {
            "x": "trained",
            "stem": "calibrated",
            "joined": "calibrated",
            "alone": "inside",
            "relu": "trained",
            "head": "float",
        }
        tensorrt = plan_for("tensorrt", network)
        assert sources(tensorrt)["alone"] == "necessity"
        assert "follows no layer" in tensorrt.tensor["alone"].reason
        assert sources(tensorrt)["joined"] == "necessity"
        assert "read only by torch.batch_norm" in tensorrt.tensor["joined"].reason

    def test_tensor_read_twice_is_not_inside_a_fused_group(self) -> None:
        net = NetworkBuilder()
        stem = net.layer("stem", net.input())
        relu = net.op(OpKind.RELU, stem, name="relu")
        total = net.op(OpKind.ADD, relu, stem, name="sum")
        network = net.build(net.layer("head", total, batch_norm=False))
        found = sources(plan_for("onnxruntime-x86", network))
        assert found["stem_bn"] == found["relu"] == "calibrated"
        assert found["sum"] == "trained"

    def test_network_output_is_not_inside_a_fused_group(self) -> None:
        net = NetworkBuilder()
        stem = net.layer("stem", net.input())
        relu = net.op(OpKind.RELU, stem, name="relu")
        found = sources(plan_for("snpe-dsp", net.build(stem, relu)))
        assert found["stem_bn"] == found["relu"] == "calibrated"

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            (OpKind.AVERAGE_POOL, "=stem_relu"),
            (OpKind.RESIZE, "=stem_relu"),
            (OpKind.MAX_POOL, "trained"),
            (OpKind.GLOBAL_AVERAGE_POOL, "trained"),
            (OpKind.SIGMOID, "trained"),
        ],
    )
    def test_snpe_gives_these_the_encoding_of_their_input(self, kind: OpKind, expected: str) -> None:
        net = NetworkBuilder()
        result = net.op(kind, net.conv_relu("stem", net.input()), name="result")
        found = sources(plan_for("snpe-dsp", net.build(net.layer("head", result, batch_norm=False))))
        assert found["result"] == expected
        assert found["stem_relu"] == ("=result" if kind is OpKind.MAX_POOL else "calibrated")

    def test_snpe_gives_what_is_concatenated_one_encoding(self) -> None:
        net = NetworkBuilder()
        x = net.input()
        left, right = net.conv_relu("left", x), net.layer("right", x)
        both = net.op(OpKind.CONCAT, left, net.op(OpKind.SIGMOID, right, name="gate"), right, name="both")
        found = sources(plan_for("snpe-dsp", net.build(net.layer("head", both, batch_norm=False))))
        assert found["both"] == "trained"
        assert found[left] == found[right] == found["gate"] == "=both"

    def test_output_that_a_layer_reads_keeps_its_encoding(self) -> None:
        net = NetworkBuilder()
        first = net.conv_relu("first", net.input())
        plan = plan_for("onnxruntime-x86", net.build(first, net.layer("second", first, batch_norm=False)))
        assert sources(plan)["first_relu"] == "trained"

    @pytest.mark.parametrize("group", ["[conv, relu]", "[conv, batch_norm, relu]"])
    def test_folded_batch_norm_may_be_named_in_a_group_or_not(self, group: str, tmp_path: Path) -> None:
        profile = changed(tmp_path, "onnxruntime-x86", f"operators: {{fused: [{group}]}}\n")
        found = sources(resolve(profile, residual_network()))
        assert (found["stem"], found["stem_bn"]) == ("inside", "inside")
        assert found["add_a"] == "calibrated"

    def test_input_of_a_layer_is_never_inside_a_group(self, tmp_path: Path) -> None:
        profile = changed(tmp_path, "onnxruntime-x86", "operators: {fused: [[relu, conv]]}\n")
        assert sources(resolve(profile, residual_network()))["a_conv1_relu"] == "trained"

    def test_relu6_is_inside_its_layers_group(self) -> None:
        net = NetworkBuilder()
        clip = net.op(OpKind.CLIP, net.layer("first", net.input()), name="clip")
        plan = plan_for("onnxruntime-x86", net.build(net.layer("second", clip, batch_norm=False)))
        assert sources(plan) == {
            "x": "trained",
            "first": "inside",
            "first_bn": "inside",
            "clip": "trained",
            "second": "float",
        }

    def test_mlp_without_batch_norm(self) -> None:
        net = NetworkBuilder()
        hidden = net.layer("one", net.input(16), kind=OpKind.LINEAR, batch_norm=False)
        relu = net.op(OpKind.RELU, hidden, name="relu")
        network = net.build(net.layer("two", relu, kind=OpKind.LINEAR, batch_norm=False))
        assert sources(plan_for("snpe-dsp", network)) == {
            "x": "trained",
            "one": "inside",
            "relu": "trained",
            "two": "calibrated",
        }


class TestOverrides:
    def test_bits_of_one_operators_output(self, tmp_path: Path) -> None:
        text = "activations: {operators: {relu: {bits: 5}, conv: {bits: 6}}}\n"
        plan = resolve(changed(tmp_path, "onnxruntime-x86", text), residual_network())
        assert plan.tensor["a_conv1_relu"].device == Form(5, TENSOR, SYMMETRIC, False)
        assert plan.tensor["a_conv2_bn"].device == Form(6, TENSOR, ASYMMETRIC, False)  # BatchNorm folded into a conv
        assert plan.tensor["flat"].device == UNSIGNED_8
        assert "activations.operators.conv.bits: 6" in plan.tensor["a_conv2_bn"].reason

    def test_missing_width_of_an_override_names_the_override(self, tmp_path: Path) -> None:
        profile = changed(tmp_path, "onnxruntime-x86", "activations: {operators: {relu: {bits: 5}}}\n")
        with pytest.raises(ProfileError) as caught:
            resolve(profile, residual_network(ElasticSpace(bits=(4, 8))))
        assert "changed: activations.operators.relu.bits: tensor 'a_conv1_relu' needs 5 bits" in str(caught.value)

    def test_minimum_scale_holds_for_the_narrowest_encoding(self, tmp_path: Path) -> None:
        text = "activations: {minimum_range: 0.3, calibrated_bits: 4}\n"
        plan = resolve(changed(tmp_path, "snpe-dsp", text), residual_network())
        assert plan.minimum_scale == pytest.approx(0.3 / 15)
        text = "activations: {minimum_scale: 0.5}\n"
        assert resolve(changed(tmp_path, "snpe-dsp", text), residual_network()).minimum_scale == 0.5

    def test_signed_asymmetric_device(self, tmp_path: Path) -> None:
        text = "activations: {non_negative: {storage: signed}, signed: {storage: signed}}\n"
        plan = resolve(changed(tmp_path, "snpe-dsp", text), residual_network())
        wanted = Form(8, TENSOR, ASYMMETRIC, True)
        assert plan.tensor["a_conv1_relu"].device == plan.tensor["x"].device == wanted
        assert plan.tensor["a_conv1_relu"].trained == UNSIGNED_8

    def test_symmetric_range_in_unsigned_storage_cannot_be_calibrated_yet(self, tmp_path: Path) -> None:
        profile = changed(tmp_path, "onnxruntime-x86", "activations: {signed: {symmetry: symmetric}}\n")
        with pytest.raises(ProfileError) as caught:
            resolve(profile, residual_network())
        assert "changed: activations.signed.symmetry: tensor 'a_conv2_bn'" in str(caught.value)

    def test_narrow_activations_of_trained_tensors_are_refused(self, tmp_path: Path) -> None:
        profile = changed(tmp_path, "tensorrt", "activations: {signed: {range: narrow}}\n")
        with pytest.raises(ProfileError) as caught:
            resolve(profile, residual_network())
        assert "changed: activations.signed.range: tensor 'x' needs the narrow range" in str(caught.value)
