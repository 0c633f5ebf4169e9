"""The kit for a float model beside a file of encodings: grids, what is refused, and the float model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqdeploy.errors import ProfileError, ValidationError
from eqdeploy.exporters.comparison import same_model
from eqdeploy.exporters.contract import get_exporter
from eqdeploy.exporters.float_graph import constant
from eqdeploy.exporters.float_sidecar import (
    Grid,
    SideFile,
    SideFileRules,
    float_model,
    is_integer_bias,
    whole_range,
    write_float_model,
)
from eqdeploy.exporters.metadata import read_facts
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.plan import BiasFormat
from eqdeploy.profile import load_profile
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.resolve import resolve
from eqdeploy.testing import ModelBuilder, SampleForms, sample_model
from tests.contract.networks import ASYMMETRIC, NETWORKS, SIGNED
from tests.unit.network_support import squeeze_excite_network

RULES = SideFileRules("the device")


@given(
    scales=st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=4),
    bits=st.integers(1, 8),
    signed=st.booleans(),
    counted_signed=st.booleans(),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_grid_gives_back_the_encoding_it_was_taken_from(
    scales: list[float], bits: int, signed: bool, counted_signed: bool, data: st.DataObject
) -> None:
    first, last = whole_range(bits, signed=signed)
    zero_points = data.draw(st.lists(st.integers(first, last), min_size=len(scales), max_size=len(scales)))
    axis = 1 if len(scales) > 1 or data.draw(st.booleans()) else None
    shape = () if axis is None else (len(scales),)
    encoding = Encoding(
        np.array(scales, np.float32).reshape(shape),
        np.array(zero_points, np.int32).reshape(shape),
        first,
        last,
        bits,
        signed,
        axis,
    )
    grid = Grid.of(encoding, signed=counted_signed)
    assert (grid.signed, grid.per_channel) == (counted_signed, axis is not None)
    assert grid.encoding(axis, "t").stored_as(signed=signed).equals(encoding)
    assert Grid.of(encoding).zero_points == tuple(zero_points)


@pytest.mark.parametrize(
    ("zero_points", "signed", "symmetric"),
    [
        ((0,), True, True),
        ((128,), False, True),
        ((0,), False, False),
        ((0, 1), True, False),
        ((128, 127), False, False),
    ],
)
def test_symmetric_means_zero_in_the_middle(zero_points: tuple[int, ...], signed: bool, symmetric: bool) -> None:
    grid = Grid((1.0,) * len(zero_points), zero_points, 8, signed=signed, per_channel=len(zero_points) > 1)
    assert grid.is_symmetric is symmetric


@pytest.mark.parametrize(
    ("grid", "axis", "message"),
    [
        (Grid((1.0, 1.0), (0, 0), 8, signed=True, per_channel=True), None, "2 entries for a tensor with one scale"),
        (Grid((1.0,), (0,), 8, signed=True, per_channel=True), None, "1 entries for a tensor with one scale"),
        (Grid((), (), 8, signed=True, per_channel=False), None, "0 entries"),
        (Grid((1.0,), (0, 0), 8, signed=True, per_channel=False), None, "1 scales, 2 zero-points"),
        (Grid((1.0,), (0,), 0, signed=True, per_channel=False), None, "0 bits"),
        (Grid((1.0,), (0,), 33, signed=True, per_channel=False), None, "33 bits"),
        (Grid((0.1,), (0,), 8, signed=True, per_channel=False), None, "not a float32 number"),
        (Grid((1e300,), (0,), 8, signed=True, per_channel=False), None, "not a float32 number"),
        (Grid((float("nan"),), (0,), 8, signed=True, per_channel=False), None, "not a float32 number"),
        (Grid((-1.0,), (0,), 8, signed=True, per_channel=False), None, "not finite and positive"),
        (Grid((1.0,), (128,), 8, signed=True, per_channel=False), None, "zero-point lies outside"),
        (Grid((1.0,), (1 << 40,), 8, signed=True, per_channel=False), None, "int32|out of bounds"),
    ],
)
def test_impossible_grids_are_refused(grid: Grid, axis: int | None, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        grid.encoding(axis, "tensor")
    assert caught.value.where == "tensor"


def test_a_side_file_holds_every_tensor_but_the_biases_in_alphabetical_order() -> None:
    model = sample_model(ASYMMETRIC)
    side_file = SideFile.of(model, signed=False)
    assert list(side_file.activations) == sorted(model.activations)
    assert list(side_file.weights) == sorted(name for name in model.parameters if name.endswith(".weight"))
    assert {is_integer_bias(model.parameters[name].encoding) for name in side_file.weights} == {False}
    assert not any(grid.signed for grid in (*side_file.activations.values(), *side_file.weights.values()))
    kept = SideFile.of(sample_model())
    assert {grid.signed for grid in kept.weights.values()} == {True}
    assert {grid.signed for grid in kept.activations.values()} == {False}


def unexplained_range() -> QuantizedModel:
    model = sample_model(ASYMMETRIC)
    tensor = model.activations["stem_relu"]
    narrow = replace(tensor, encoding=replace(tensor.encoding, q_max=200))
    return replace(model, activations={**model.activations, "stem_relu": narrow})


def bias_without_a_unit() -> QuantizedModel:
    model = sample_model(ASYMMETRIC)
    return replace(model, activations={name: t for name, t in model.activations.items() if name != "x"})


def scales_of_the_input_channels() -> QuantizedModel:
    b = ModelBuilder(SampleForms(bias=BiasFormat.FLOAT))
    x = b.encode(b.input("x", 3, 4, 4))
    model = b.build(b.encode(b.layer("conv", "Conv", x, (5, 3, 1, 1), kernel_shape=[1, 1])))
    weight = model.parameters["conv.weight"]
    other = Encoding(np.full(3, 1 / 64, np.float32), np.zeros(3, np.int32), -128, 127, 8, True, 1)
    return replace(model, parameters={"conv.weight": replace(weight, encoding=other)})


def free_zero_points() -> QuantizedModel:
    return sample_model(SampleForms(weight=Form(8, Granularity.PER_CHANNEL, Symmetry.ASYMMETRIC, signed=False)))


def contradicting() -> QuantizedModel:
    model = sample_model(ASYMMETRIC)
    weight = model.parameters["stem.weight"]
    return replace(model, parameters={**model.parameters, "stem.weight": replace(weight, codes=weight.codes + 300)})


@pytest.mark.parametrize(
    ("rules", "model", "error", "message"),
    [
        (RULES, NETWORKS["float_reader"], ProfileError, "add: sum would read the float value"),
        (
            RULES,
            unexplained_range,
            ProfileError,
            r"stem_relu: nothing in .* keeps its codes inside \[0, 200\]",
        ),
        (RULES, bias_without_a_unit, ProfileError, r"stem\.bias: an integer bias of the device counts in units"),
        (RULES, scales_of_the_input_channels, ProfileError, r"conv\.weight: has its scales on axis 1.*means axis 0"),
        (RULES, contradicting, ValidationError, r"stem\.weight: codes from .* leave the range"),
        (replace(RULES, weight_bits=(1, 7)), sample_model, ProfileError, r"weights\.bits: stem\.weight: has 8 bits"),
        (replace(RULES, activation_bits=(9, 16)), sample_model, ProfileError, r"activations\.bits: x: .* 9 to 16"),
        (
            replace(RULES, symmetric_weights=True),
            free_zero_points,
            ProfileError,
            r"stem\.weight: has a zero-point of its own.*weights symmetry: symmetric",
        ),
        (replace(RULES, symmetric_activations=True), sample_model, ProfileError, "activations symmetry: symmetric"),
    ],
)
def test_what_a_side_file_cannot_hold_is_refused(
    rules: SideFileRules, model: Callable[[], QuantizedModel], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rules.check_model(model())


@pytest.mark.parametrize(
    ("profile", "rules", "message"),
    [
        ("tensorrt", RULES, "silu: scaled would read the float value of an encoded tensor"),
        ("snpe-dsp", replace(RULES, symmetric_weights=True), "set weights symmetry: symmetric"),
        ("snpe-dsp", replace(RULES, symmetric_activations=True), "set activations symmetry: symmetric"),
        ("snpe-dsp", replace(RULES, weight_bits=(1, 7)), r"weights\.bits: stem: has 8 bits; .* holds 1 to 7"),
        ("snpe-dsp", replace(RULES, activation_bits=(9, 16)), r"activations\.bits: \w+: has 8 bits; .* holds 9 to 16"),
    ],
)
def test_a_plan_is_refused_for_what_its_model_would_be(profile: str, rules: SideFileRules, message: str) -> None:
    network = squeeze_excite_network()
    RULES.check_plan(resolve(load_profile("snpe-dsp"), network))
    with pytest.raises(ProfileError, match=message):
        rules.check_plan(resolve(load_profile(profile), network))


def test_a_symmetric_device_takes_symmetric_models() -> None:
    rules = SideFileRules("the device", symmetric_activations=True, symmetric_weights=True)
    unsigned = Form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=False)
    middle = ModelBuilder(SampleForms(activation=unsigned))
    x = middle.encode(middle.input("x", 3, 4, 4))
    for model in (sample_model(SIGNED, skip_only=True), middle.build(middle.encode(middle.node("y", "Neg", [x])))):
        rules.check_model(model)


@pytest.mark.parametrize("opset", [None, 17])
def test_the_float_model_holds_the_real_values_and_what_no_side_file_says(opset: int | None) -> None:
    model = sample_model(ASYMMETRIC)
    before = model.graph.SerializeToString(deterministic=True)
    network = float_model(model, opset)
    assert network.graph.opset_imports[""] == (opset or 13)
    assert {node.op_type for node in network.graph}.isdisjoint({"QuantizeLinear", "DequantizeLinear"})
    for name, parameter in model.parameters.items():
        real = parameter.encoding.dequantize(parameter.codes)
        np.testing.assert_array_equal(constant(network.graph.initializers[name]), real)
    facts = read_facts(network, "float model")
    assert facts.activations["depthwise_relu6"].q_max == model.activations["depthwise_relu6"].encoding.q_max < 255
    assert model.graph.SerializeToString(deterministic=True) == before


def test_an_opset_that_cannot_express_the_network_is_refused_only_if_it_is_asked_for() -> None:
    b = ModelBuilder()
    b.encode(b.input("x", 3, 4, 4))
    model = b.build(b.node("y", "Gelu", ["x"]))  # known from opset 20 on
    assert float_model(model).graph.opset_imports[""] == 20
    with pytest.raises(ProfileError, match=r"Gelu \(y\) cannot be expressed in opset 13"):
        float_model(model, 13)


@pytest.mark.parametrize("threshold", [1 << 30, 1000])
def test_the_model_read_back_gives_the_same_files(threshold: int, tmp_path: Path) -> None:
    model = sample_model(ASYMMETRIC)
    get_exporter("onnx_qdq").export(model, tmp_path, {})
    restored = read_model(tmp_path / "model.onnx")
    assert list(restored.graph.graph.initializer) != list(model.graph.graph.initializer)
    for folder, source in (("first", model), ("again", restored)):
        files = write_float_model(float_model(source), tmp_path, f"{folder}/m.onnx", external_data_threshold=threshold)
        assert len(files) == (1 if threshold > 1000 else 2)
    assert same_model(tmp_path / "first" / "m.onnx", tmp_path / "again" / "m.onnx")
    if threshold == 1000:
        first, again = ((tmp_path / folder / "m.onnx.data").read_bytes() for folder in ("first", "again"))
        assert first == again
        written = ir.load(tmp_path / "again" / "m.onnx")
        for name, parameter in model.parameters.items():
            real = parameter.encoding.dequantize(parameter.codes)
            np.testing.assert_array_equal(constant(written.graph.initializers[name]), real)
