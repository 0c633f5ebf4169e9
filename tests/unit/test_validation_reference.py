"""The parts of the integer reference, each against an independent implementation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from eqdeploy.errors import DataError, UnsupportedOperationError, ValidationError
from eqdeploy.plan import BiasFormat
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedParameter
from eqdeploy.testing import ModelBuilder, SampleForms, sample_model
from eqdeploy.validation.reference import IntegerReference
from eqdeploy.validation.reference.graph import Graph, Operation
from eqdeploy.validation.reference.resize import resize, resize_mode
from eqdeploy.validation.reference.sums import exact_sums, linear_operator, sum_bound
from eqdeploy.validation.reference.windows import Windows, accumulate

RANDOM = np.random.default_rng(0)


def operation(op_type: str, inputs: int = 2, **attributes: Any) -> Operation:
    names = [f"i{index}" for index in range(inputs)]
    node = helper.make_node(op_type, names, ["y"], name="y", **attributes)
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return Operation("y", op_type, tuple(names), ("y",), values, node, 21)


def integers(low: int, high: int, *shape: int) -> NDArray[np.int32]:
    return RANDOM.integers(low, high, shape, endpoint=True).astype(np.int32)


def images(count: int = 4) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.random.default_rng(1).normal(0, 1.5, (count, 3, 8, 8)).astype(np.float32)
    return values


@pytest.mark.parametrize(
    ("op_type", "data", "weight", "attributes"),
    [
        ("Conv", (2, 4, 7, 8), (6, 2, 3, 2), {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ("Conv", (2, 4, 7, 8), (3, 4, 3, 2), {"dilations": [1, 2], "pads": [0, 2, 1, 0]}),
        ("Conv", (2, 4, 7, 8), (3, 4, 2, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
        ("Conv", (2, 4, 7, 8), (3, 4, 2, 3), {"auto_pad": "SAME_LOWER"}),
        ("Conv", (2, 4, 7, 8), (3, 4, 2, 3), {"auto_pad": "VALID"}),
        ("Conv", (2, 4, 9), (3, 4, 4), {"pads": [0, 3]}),
        ("ConvTranspose", (2, 4, 5, 5), (4, 3, 3, 2), {"strides": [2, 3], "pads": [1, 0, 0, 1]}),
        ("ConvTranspose", (2, 4, 5, 5), (4, 2, 3, 3), {"group": 2, "strides": [2, 2], "output_padding": [1, 1]}),
        ("ConvTranspose", (1, 2, 4, 4), (2, 3, 3, 3), {"strides": [2, 2], "dilations": [2, 1]}),
        ("ConvTranspose", (1, 2, 4, 4), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [8, 8]}),
        ("ConvTranspose", (1, 2, 6), (2, 3, 3), {"strides": [3], "pads": [1, 1]}),
        ("Gemm", (3, 5), (5, 4), {}),
        ("Gemm", (5, 3), (4, 5), {"transA": 1, "transB": 1}),
        ("MatMul", (2, 3, 4, 5), (5, 6), {}),
        ("MatMul", (2, 3, 4, 5), (2, 3, 5, 2), {}),
    ],
)
def test_sums_are_those_of_onnx(
    op_type: str, data: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    node = operation(op_type, **attributes)
    x, w = integers(-255, 255, *data), integers(-128, 127, *weight)
    expected = onnx_result(node, x.astype(np.float64), w.astype(np.float64))
    found = exact_sums(linear_operator(node), x, w)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)
    assert np.abs(found).max() <= sum_bound(linear_operator(node), x, w)


def onnx_result(node: Operation, *arrays: NDArray[Any]) -> NDArray[Any]:
    """Convolutions in ONNX Runtime, matrix products by the reference implementation of ONNX."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return run_in_runtime(node, *arrays)
    (result,) = ReferenceEvaluator(node.node).run(None, dict(zip(node.inputs, arrays, strict=True)))
    return np.asarray(result)


def run_in_runtime(node: Operation, *arrays: NDArray[Any]) -> NDArray[Any]:
    """One node in ONNX Runtime in float32; the integers here are small enough for it to be exact."""
    small = [array.astype(np.float32) for array in arrays]
    graph = helper.make_graph(
        [node.node],
        "node",
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
            for name, array in zip(node.inputs, small, strict=True)
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(zip(node.inputs, small, strict=True)))[0])


def test_sums_beyond_float32_are_exact() -> None:
    node = linear_operator(operation("Gemm"))
    x, w = np.full((1, 70_000), 255, np.int32), np.full((70_000, 1), -128, np.int32)
    w[0] = -127
    assert exact_sums(node, x, w).item() == -255 * 128 * 70_000 + 255


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("size", [5, 8, 9])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1), (3, 3, 0)])
def test_windows_are_those_of_torch(kernel: int, stride: int, pad: int, size: int, ceil_mode: int) -> None:
    x = RANDOM.normal(size=(2, 3, size, size))
    geometry = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "ceil_mode": ceil_mode}
    windows = Windows.of(operation("MaxPool", 1, **geometry), x.shape)
    largest = accumulate(windows.slices(x, -np.inf), np.maximum)
    tensor, ceil = torch.from_numpy(x), bool(ceil_mode)
    expected = torch.nn.functional.max_pool2d(tensor, kernel, stride, pad, ceil_mode=ceil)
    assert np.array_equal(largest, expected.numpy())
    for include in (False, True):
        means = accumulate(windows.slices(x, 0), np.add) / windows.counts(include_padding=include)
        expected = torch.nn.functional.avg_pool2d(tensor, kernel, stride, pad, ceil, include)
        np.testing.assert_allclose(means, expected.numpy(), rtol=1e-12, atol=1e-14)


def test_windows_take_dilation_and_automatic_padding() -> None:
    x = RANDOM.normal(size=(1, 2, 9, 9))
    windows = Windows.of(operation("MaxPool", 1, kernel_shape=[3, 2], dilations=[2, 3]), x.shape)
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(x), (3, 2), 1, 0, (2, 3))
    assert np.array_equal(accumulate(windows.slices(x, -np.inf), np.maximum), expected.numpy())
    same = Windows.of(operation("MaxPool", 1, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER"), x.shape)
    assert (same.size, same.before, same.after) == ((5, 5), (1, 1), (0, 0))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    "transformation", ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize("scale", [2.0, 0.5, 1.5])
def test_resize_is_that_of_onnx(mode: str, transformation: str, scale: float) -> None:
    x = RANDOM.normal(size=(1, 2, 4, 6))
    scales = np.array([1, 1, scale, 2], np.float32)
    for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil") if mode == "nearest" else ("floor",):
        node = helper.make_node(
            "Resize", ["x", "", "scales"], ["y"], mode=mode, nearest_mode=rounding,
            coordinate_transformation_mode=transformation,
        )  # fmt: skip
        (result,) = ReferenceEvaluator(node, opsets={"": 19}).run(None, {"x": x, "scales": scales})
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        parsed = replace(operation("Resize"), attributes=attributes)
        assert resize_mode(parsed) == mode
        np.testing.assert_allclose(resize(parsed, [None, scales], x), np.asarray(result), rtol=1e-6, atol=1e-6)


def test_what_resize_leaves_to_onnx() -> None:
    assert resize_mode(operation("Resize", mode="cubic")) == "other"
    assert resize_mode(operation("Resize", mode="linear", antialias=1)) == "other"
    assert resize_mode(operation("Resize", coordinate_transformation_mode="tf_crop_and_resize")) == "other"


def test_codes_are_stored_like_on_the_device() -> None:
    model = sample_model(SampleForms(activation=Form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True)))
    result = IntegerReference(model).run(images())
    assert set(result.codes) == set(model.activations)
    assert {codes.dtype for codes in result.codes.values()} == {np.dtype(np.int8)}
    assert all(len(codes) == 4 for codes in result.codes.values())
    assert result.outputs["head"].dtype == np.float32
    expected = model.activations["head"].encoding.dequantize(result.codes["head"])
    assert np.array_equal(result.outputs["head"], expected)


def test_batches_do_not_influence_each_other() -> None:
    reference = IntegerReference(sample_model())
    together = reference.run(images(5))
    for index in range(5):
        alone = reference.run(images(5)[index : index + 1])
        assert all(np.array_equal(alone.codes[name][0], codes[index]) for name, codes in together.codes.items())


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_stay_inside_their_range_and_use_it(bits: int) -> None:
    form = Form(bits, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False)
    model = sample_model(SampleForms(activation=form))
    for name, codes in IntegerReference(model).run(images(16)).codes.items():
        encoding = model.activations[name].encoding
        assert encoding.q_min <= codes.min() <= codes.max() <= encoding.q_max
    assert len(np.unique(IntegerReference(model).run(images(16)).codes["x"])) > 0.9 * 2**bits


def test_the_sum_of_a_layer_is_the_formula() -> None:
    builder = ModelBuilder(SampleForms(), seed=3)
    x = builder.encode(builder.input("x", 5))
    builder.encode(builder.layer("fc", "Gemm", x, (3, 5), bias=3, transB=1))
    model = builder.build("fc")
    weight, bias = model.parameters["fc.weight"], model.parameters["fc.bias"]
    source, target = model.activations["x"].encoding, model.activations["fc"].encoding
    batch = np.random.default_rng(2).normal(size=(50, 5)).astype(np.float32)
    codes = source.quantize(batch).astype(np.int64)
    steps = weight.codes - weight.encoding.zero_point.reshape(-1, 1)
    total = (codes - int(source.zero_point)) @ steps.T + bias.codes
    multiplier = (source.scale * weight.encoding.scale) / target.scale
    expected = np.clip(np.rint(total.astype(np.float32) * multiplier) + target.zero_point, target.q_min, target.q_max)
    assert np.array_equal(IntegerReference(model).run(batch).codes["fc"], expected)


def test_readers_that_the_plan_leaves_float_see_the_unquantized_value() -> None:
    grid = Encoding.per_tensor(1.0, 0, -8, 7, 4, signed=True)

    def network(float_readers: tuple[str, ...]) -> IntegerReference:
        builder = ModelBuilder()
        x = builder.encode(builder.input("x", 4), encoding=grid, float_readers=float_readers)
        builder.node("kept", "Neg", [x])
        builder.node("other", "Neg", [x])
        return IntegerReference(builder.build("kept", "other"))

    batch = np.array([[0.4, -0.4, 1.6, 20.0]], np.float32)
    outputs = network(("kept",)).run(batch).outputs
    assert np.array_equal(outputs["kept"], -batch)
    assert outputs["other"].tolist() == [[0, 0, -2, -7]]
    assert network(()).run(batch).outputs["kept"].tolist() == [[0, 0, -2, -7]]


def test_padding_of_codes_is_a_real_zero() -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 1, 2, 2), encoding=Encoding.per_tensor(0.5, 100, 0, 255, 8, signed=False))
    builder.constant("pads", [0, 0, 1, 0, 0, 0, 0, 1], np.int64)
    padded = builder.encode(builder.node("padded", "Pad", [x, "pads"]), encoding=builder.encoded[x].encoding)
    codes = IntegerReference(builder.build(padded)).run(np.ones((1, 1, 2, 2), np.float32)).codes["padded"]
    assert codes[0, 0].tolist() == [[100, 100, 100], [102, 102, 100], [102, 102, 100]]


def test_regions_end_at_encoded_tensors() -> None:
    graph = Graph.of(sample_model(skip_only=True))
    assert [operation.name for operation in graph.region("stem_relu")] == ["stem", "stem_relu"]
    assert graph.region_inputs("add_relu") == ("depthwise_relu6", "stem_relu")
    assert [operation.name for operation in graph.region("add_relu")] == ["pointwise", "add", "add_relu"]
    assert graph.region("x") == ()


def test_following_codes_changes_only_what_comes_after_them() -> None:
    reference = IntegerReference(sample_model())
    original = reference.run(images())
    altered = {name: codes.copy() for name, codes in original.codes.items()}
    altered["narrow_relu"][0, 0, 0, 0] ^= 1
    followed = reference.follow(images(), altered).codes
    changed = [name for name, codes in followed.items() if not np.array_equal(codes, original.codes[name])]
    assert changed[0] == "concat"
    assert np.array_equal(followed["narrow_relu"], original.codes["narrow_relu"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 3, 8, 9), np.float32), r"expected \(images, 3, 8, 8\)"),
        (np.zeros((2, 3, 8), np.float32), "shape"),
        (np.zeros((2, 3, 8, 8), np.float64), "float32"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "not finite"),
    ],
)
def test_images_that_do_not_fit_are_refused(wrong: NDArray[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        IntegerReference(sample_model()).run(wrong)


def test_models_that_contradict_themselves_are_refused() -> None:
    model = sample_model()
    head = model.activations["head"]
    with pytest.raises(ValidationError, match="nothing: carries an encoding"):
        IntegerReference(replace(model, activations={"nothing": replace(head, name="nothing")}))
    grid = head.encoding
    scale, zero = np.ones(5, np.float32), np.zeros(5, np.int32)
    channels = Encoding(scale, zero, grid.q_min, grid.q_max, grid.bits, grid.signed, axis=1)
    with pytest.raises(ValidationError, match="head: an activation has one scale"):
        IntegerReference(replace(model, activations={"head": replace(head, encoding=channels)}))


def test_operations_of_other_domains_are_refused() -> None:
    model = sample_model(SampleForms(bias=BiasFormat.FLOAT))
    proto = onnx.ModelProto()
    proto.CopyFrom(model.graph)
    proto.graph.node[3].domain = "com.example"
    with pytest.raises(UnsupportedOperationError, match="com.example"):
        IntegerReference(replace(model, graph=proto))


def test_an_operation_that_cannot_be_evaluated_is_named() -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 4))
    builder.node("odd", "Softplus", [x])
    model = builder.build("odd")
    model.graph.graph.node[0].op_type = "NoSuchOperation"
    with pytest.raises(UnsupportedOperationError, match="odd: .*NoSuchOperation"):
        IntegerReference(model).run(np.zeros((1, 4), np.float32))


def test_other_operations_are_computed_in_float64() -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 6))
    names = [builder.node(op.lower(), op, [x]) for op in ("Tanh", "Softplus", "HardSwish", "Erf", "Exp")]
    model = builder.build(*names)
    batch = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    outputs = IntegerReference(model).run(batch).outputs
    grid = model.activations["x"].encoding
    real = float(grid.scale) * (grid.quantize(batch) - grid.zero_point).astype(np.float64)
    assert np.array_equal(outputs["tanh"], np.tanh(real).astype(np.float32))
    assert np.array_equal(outputs["exp"], np.exp(real).astype(np.float32))
    assert all(output.dtype == np.float32 for output in outputs.values())


def test_a_mul_by_a_constant_and_an_add_of_a_constant_stay_real() -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 3), encoding=Encoding.per_tensor(0.5, 0, -128, 127, 8, signed=True))
    builder.constant("gain", [3.0])
    builder.node("scaled", "Mul", [x, "gain"])
    builder.node("shifted", "Add", ["scaled", "gain"])
    outputs = IntegerReference(builder.build("scaled", "shifted")).run(np.array([[1, 2, -1]], np.float32)).outputs
    assert outputs["scaled"].tolist() == [[3, 6, -3]]
    assert outputs["shifted"].tolist() == [[6, 9, 0]]


def test_bias_of_a_matmul_is_added_to_its_sums() -> None:
    builder = ModelBuilder(SampleForms(), seed=5)
    x = builder.encode(builder.input("x", 4, 6))
    builder.layer("product", "MatMul", x, (6, 5))
    builder.constant("bias", np.zeros(5))
    builder.encode(builder.node("added", "Add", ["product", "bias"]))
    model = builder.build("added")
    weight = model.parameters["product.weight"].encoding
    scale = model.activations["x"].encoding.scale * weight.scale
    grid = Encoding(scale, np.zeros(5, np.int32), -(2**31), 2**31 - 1, 32, signed=True, axis=0)
    bias = QuantizedParameter("bias", np.array([900, -70, 4000, -2500, 1], np.int32), grid)
    model = replace(model, parameters={**model.parameters, "bias": bias})
    batch = np.random.default_rng(3).normal(size=(7, 4, 6)).astype(np.float32)
    source, target, parameters = model.activations["x"].encoding, model.activations["added"].encoding, model.parameters
    steps = parameters["product.weight"].codes - weight.zero_point
    total = (source.quantize(batch).astype(np.int64) - int(source.zero_point)) @ steps + parameters["bias"].codes
    scaled = total.astype(np.float32) * ((source.scale * weight.scale) / target.scale)
    expected = np.clip(np.rint(scaled) + target.zero_point, target.q_min, target.q_max)
    assert np.array_equal(IntegerReference(model).run(batch).codes["added"], expected)


@pytest.mark.parametrize(("low", "high"), [(0, 15), (3, 9), (0, 4), (4, 15)])
def test_the_same_grid_keeps_its_codes_but_for_the_range(low: int, high: int) -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 8), encoding=Encoding.per_tensor(0.3, 4, 0, 15, 4, signed=False))
    narrow = Encoding.per_tensor(0.3, 4, low, high, 4, signed=False)
    name = builder.encode(builder.node("moved", "Identity", [x]), encoding=narrow)
    codes = IntegerReference(builder.build(name)).run(np.linspace(-3, 6, 8, dtype=np.float32)[None]).codes
    assert np.array_equal(codes["moved"], np.clip(codes["x"], low, high))
