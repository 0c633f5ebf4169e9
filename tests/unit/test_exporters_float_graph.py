"""What the operations of a float graph imply about ranges, channel axes and bias scales."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from eqdeploy.exporters.float_graph import (
    bounds_before_quantization,
    expected_bias_scales,
    implied,
    to_ir,
    weight_channel_axis,
)
from eqdeploy.plan import BiasFormat
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder, SampleForms
from tests.contract.networks import NETWORKS

INFINITE = float("inf")


def builder() -> ModelBuilder:
    return ModelBuilder(SampleForms(bias=BiasFormat.FLOAT))


def graph_of(model: QuantizedModel) -> ir.Graph:
    return to_ir(model.graph).graph


def bounds_of(b: ModelBuilder, name: str) -> tuple[float, float]:
    model = b.build(name)
    encodings = {tensor: entry.encoding for tensor, entry in model.activations.items()}
    return bounds_before_quantization(graph_of(model), encodings)[name]


@pytest.mark.parametrize(
    ("op_type", "attributes", "expected"),
    [
        ("Relu", {}, (0.0, INFINITE)),
        ("Sigmoid", {}, (0.0, 1.0)),
        ("HardSigmoid", {}, (0.0, 1.0)),
        ("Softmax", {"axis": 1}, (0.0, 1.0)),
        ("Tanh", {}, (-1.0, 1.0)),
        ("LeakyRelu", {}, (-INFINITE, INFINITE)),
        ("GlobalAveragePool", {}, (-INFINITE, INFINITE)),
    ],
)
def test_operations_with_bounds_of_their_own(
    op_type: str, attributes: dict[str, int], expected: tuple[float, float]
) -> None:
    b = builder()
    assert bounds_of(b, b.node("y", op_type, [b.input("x", 3, 4, 4)], **attributes)) == expected


@pytest.mark.parametrize(
    ("op_type", "attributes", "expected"),
    [
        ("MaxPool", {"kernel_shape": [2, 2]}, (0.5, 2.0)),
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}, (0.0, 2.0)),
        ("GlobalAveragePool", {}, (0.5, 2.0)),
        ("Flatten", {}, (0.5, 2.0)),
        ("Transpose", {"perm": [0, 2, 3, 1]}, (0.5, 2.0)),
        ("Relu", {}, (0.5, 2.0)),
        ("Neg", {}, (-INFINITE, INFINITE)),
    ],
)
def test_bounds_pass_through_operations_that_keep_them(
    op_type: str, attributes: dict[str, list[int]], expected: tuple[float, float]
) -> None:
    b = builder()
    clipped = b.clip("clipped", b.input("x", 3, 4, 4), 0.5, 2.0)
    assert bounds_of(b, b.node("y", op_type, [clipped], **attributes)) == expected


def test_concat_takes_the_widest_of_its_parts() -> None:
    b = builder()
    x = b.input("x", 3, 4, 4)
    parts = [b.clip("low", x, -3.0, 1.0), b.clip("high", x, 0.0, 6.0)]
    assert bounds_of(b, b.node("y", "Concat", parts, axis=1)) == (-3.0, 6.0)


def test_clip_with_one_bound_or_with_computed_bounds() -> None:
    b = builder()
    x = b.input("x", 4)
    b.node("one", "Clip", [x, "", b.constant("six", 6.0)])
    b.node("highest", "ReduceMax", [x], keepdims=0)
    b.node("computed", "Clip", [x, "", "highest"])
    bounds = bounds_before_quantization(graph_of(b.build("one", "computed")), {})
    assert bounds["one"] == (-INFINITE, 6.0)
    assert bounds["computed"] == (-INFINITE, INFINITE)


def test_readers_see_dequantized_codes_which_may_lie_beyond_the_bound() -> None:
    """With a step of 0.75, 2.0 becomes code 3, which reads 2.25: behind a pool 2.0 is no bound any more."""
    b = builder()
    clipped = b.clip("clipped", b.input("x", 3, 4, 4), 0.0, 2.0)
    b.encode(clipped, encoding=Encoding.per_tensor(0.75, 0, 0, 3, 8, signed=False))
    pooled = b.node("pooled", "MaxPool", [clipped], kernel_shape=[2, 2])
    model = b.build(pooled)
    bounds = bounds_before_quantization(graph_of(model), {"clipped": model.activations["clipped"].encoding})
    assert bounds["clipped"] == (0.0, 2.0)
    assert bounds["pooled"] == (0.0, 2.25)


@pytest.mark.parametrize(
    ("q_max", "bounds", "expected"),
    [
        (255, (-INFINITE, INFINITE), True),
        (12, (0.0, 6.0), True),
        (12, (-INFINITE, 6.0), True),
        (11, (0.0, 6.0), False),
        (12, (0.0, INFINITE), False),
        (12, (0.0, 6.25), True),  # a tie goes to the even code 12
        (12, (0.0, 6.26), False),
    ],
)
def test_ranges_follow_from_bounds(q_max: int, bounds: tuple[float, float], expected: bool) -> None:
    encoding = Encoding.per_tensor(0.5, 0, 0, q_max, 8, signed=False)
    assert implied(encoding, bounds, widest=(0, 255)) is expected


def test_channel_axis_follows_the_operation() -> None:
    b = builder()
    x = b.input("x", 4, 6, 6)
    conv = b.layer("conv", "Conv", x, (4, 4, 1, 1), kernel_shape=[1, 1])
    up = b.layer("up", "ConvTranspose", conv, (4, 4, 1, 1), kernel_shape=[1, 1])
    flat = b.node("flat", "Flatten", [up])
    model = b.build(b.layer("one", "Gemm", flat, (9, 144), transB=1), b.layer("two", "Gemm", flat, (144, 9)))
    graph = graph_of(model)
    axes = {name: weight_channel_axis(graph.initializers[name]) for name in model.parameters}
    assert axes == {"conv.weight": 0, "up.weight": 1, "one.weight": 0, "two.weight": 1}
    bare = NETWORKS["transposed_weight"]()
    del bare.graph.graph.value_info[:]  # torch's exporter notes no shape between a weight and its layer
    transposed = graph_of(bare)
    assert weight_channel_axis(transposed.initializers["dead.weight"]) == 0
    stored = graph_of(NETWORKS["matrix_layers"]())
    assert weight_channel_axis(stored.initializers["stored.weight"]) == 1


def test_constant_without_a_layer_has_no_channel_axis() -> None:
    b = builder()
    x = b.input("x", 4)
    b.node("y", "Mul", [x, b.constant("gain", [1.0, 2.0, 3.0, 4.0])])
    assert weight_channel_axis(graph_of(b.build("y")).initializers["gain"]) is None


def test_bias_scale_is_found_behind_reshapes_and_for_every_group() -> None:
    b = ModelBuilder()
    x = b.encode(b.input("x", 4, 5, 5))
    b.layer("up", "ConvTranspose", x, (4, 3, 2, 2), bias=6, group=2, kernel_shape=[2, 2])
    up = b.encode("up")
    flat = b.node("flat", "Flatten", [up])
    model = b.build(b.layer("head", "Gemm", flat, (7, 216), transB=1), "up")
    encodings = {name: tensor.encoding for name, tensor in model.activations.items()}
    weights = {name: parameter.encoding for name, parameter in model.parameters.items()}
    (scale,) = expected_bias_scales(graph_of(model).initializers["up.bias"], encodings, weights)
    expected = np.tile(encodings["x"].scale * weights["up.weight"].scale, 2)
    np.testing.assert_array_equal(scale, expected, strict=True)


def test_bias_scale_of_a_matmul_and_its_add() -> None:
    b = ModelBuilder()
    x = b.encode(b.input("x", 6, 8))
    b.layer("product", "MatMul", x, (8, 5))
    model = b.build(b.node("y", "Add", ["product", b.constant("y.bias", np.zeros(5))]))
    weights = {name: parameter.encoding for name, parameter in model.parameters.items()}
    encodings = {name: tensor.encoding for name, tensor in model.activations.items()}
    bias = graph_of(model).initializers["y.bias"]
    (scale,) = expected_bias_scales(bias, encodings, weights)
    np.testing.assert_array_equal(scale, encodings["x"].scale * weights["product.weight"].scale)
    assert expected_bias_scales(bias, {}, weights) == []
    assert expected_bias_scales(bias, encodings, {}) == []
