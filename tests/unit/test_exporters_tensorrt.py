"""TensorRT's rules: what is written, and what is refused with the key to change."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from eqdeploy.errors import ProfileError, ValidationError
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.plan import BiasFormat
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder, sample_model
from tests.contract.networks import SIGNED

TENSORRT = get_exporter("tensorrt")
PER_TENSOR = Form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True)


def conforming() -> QuantizedModel:
    return sample_model(SIGNED, skip_only=True)


def test_model_keeps_to_the_rules(tmp_path: Path) -> None:
    export_checked(TENSORRT, conforming(), tmp_path, {})
    model = onnx.load(tmp_path / "model.onnx")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantization = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quantization:
        zero_point = values[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
    produced = {name: node for node in model.graph.node for name in node.output}
    for node in quantization:
        if node.op_type == "DequantizeLinear" and node.input[0] in produced:
            assert produced[node.input[0]].op_type == "QuantizeLinear"
    biases = [name for name in values if name.endswith(".bias")]
    assert biases
    assert {values[name].dtype for name in biases} == {np.dtype(np.float32)}
    axes = {node.name: node.attribute[0].i for node in quantization if node.attribute}
    assert axes["stem.weight/dequantize"] == axes["head.weight/dequantize"] == 0
    assert "up.weight/dequantize" not in axes  # one scale
    by_name = {node.name: node for node in model.graph.node}
    assert "pointwise/quantize" not in by_name
    assert list(by_name["add"].input) == ["pointwise", "stem_relu_dequantized"]


def test_relu6_stays_float_where_the_range_ends_early(tmp_path: Path) -> None:
    model = conforming()
    assert model.activations["depthwise_relu6"].encoding.q_max < 127
    export_checked(TENSORRT, model, tmp_path, {})
    nodes = {node.name: node for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert nodes["depthwise_relu6"].op_type == "Clip"
    assert nodes["depthwise_relu6/dequantize"].input[0] == "depthwise_relu6_quantized"


def test_seven_bit_grid_stored_signed_needs_no_clip(tmp_path: Path) -> None:
    b = ModelBuilder(SIGNED)
    x = b.encode(b.input("x", 3, 4, 4))
    b.layer("conv", "Conv", x, (4, 3, 1, 1), bias=4, kernel_shape=[1, 1])
    relu = b.encode(
        b.node("relu", "Relu", ["conv"]), encoding=Encoding.per_tensor(4 / 127, 0, -128, 127, 8, signed=True)
    )
    model = b.build(b.layer("last", "Conv", relu, (2, 4, 1, 1), bias=2, kernel_shape=[1, 1]))
    export_checked(TENSORRT, model, tmp_path, {"opset": 13})
    assert "Clip" not in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}


def with_form(
    weight: Form | None = None, activation: Form | None = None, bias: BiasFormat = BiasFormat.FLOAT
) -> QuantizedModel:
    forms = replace(SIGNED, weight=weight or PER_TENSOR, activation=activation or SIGNED.activation, bias=bias)
    return sample_model(forms, skip_only=True)


def transposed_per_channel(groups: int) -> QuantizedModel:
    b = ModelBuilder(replace(SIGNED, transposed=None))
    x = b.encode(b.input("x", 4, 3, 3))
    return b.build(b.layer("up", "ConvTranspose", x, (4, 3, 2, 2), group=groups, kernel_shape=[2, 2]))


def scales_on_the_wrong_axis() -> QuantizedModel:
    model = conforming()
    weight = model.parameters["head.weight"]
    encoding = Encoding(np.ones(6, np.float32), np.zeros(6, np.int32), -128, 127, 8, True, 1)
    return replace(model, parameters={**model.parameters, "head.weight": replace(weight, encoding=encoding)})


def per_channel_activation() -> QuantizedModel:
    model = conforming()
    tensor = model.activations["stem_relu"]
    encoding = Encoding(np.ones(8, np.float32), np.zeros(8, np.int32), -128, 127, 8, True, 1)
    return replace(model, activations={**model.activations, "stem_relu": replace(tensor, encoding=encoding)})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: with_form(bias=BiasFormat.INT32), r"stem\.bias: TensorRT does not quantize biases \(set bias: float"),
        (
            lambda: with_form(weight=Form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=False)),
            r"stem\.weight: TensorRT integers are signed \(set weights storage: signed",
        ),
        (
            lambda: with_form(weight=Form(8, Granularity.PER_CHANNEL, Symmetry.ASYMMETRIC, signed=True)),
            r"weight: zero-point 1 is not 0 \(set weights symmetry: symmetric",
        ),
        (
            lambda: with_form(activation=Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False)),
            r"x: TensorRT integers are signed \(set activations storage: signed",
        ),
        (
            lambda: with_form(activation=Form(4, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True)),
            r"x: its codes end at \[-8, 7\], which needs a Clip .*set activations\.bits: 8",
        ),
        (lambda: transposed_per_channel(1), r"up\.weight: .* no scale per output channel .*granularity: per_tensor"),
        (lambda: transposed_per_channel(2), r"up\.weight: .* no scale per output channel of a ConvTranspose"),
        (scales_on_the_wrong_axis, r"head\.weight: has its scales on axis 1; .* here axis 0"),
        (per_channel_activation, "stem_relu: TensorRT activations have one scale"),
    ],
)
def test_violations_name_the_tensor_and_the_key(
    model: Callable[[], QuantizedModel], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ProfileError, match=message):
        TENSORRT.export(model(), tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_low_bit_weights_are_plain_int8(tmp_path: Path) -> None:
    model = with_form(weight=Form(3, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True))
    export_checked(TENSORRT, model, tmp_path, {})
    assert TENSORRT.read(tmp_path).parameters["stem.weight"][1].bits == 3


def test_calibration_cache_holds_scales_in_big_endian(tmp_path: Path) -> None:
    model = conforming()
    files = export_checked(TENSORRT, model, tmp_path, {"calibration_cache": True})
    assert set(files) == {"model.onnx", "tensorrt/model.onnx", "tensorrt/calibration.cache"}
    header, *lines = (tmp_path / "tensorrt/calibration.cache").read_text().splitlines()
    assert header.startswith("TRT-")
    read = {name: struct.unpack("!f", bytes.fromhex(bits))[0] for name, bits in (line.split(": ") for line in lines)}
    assert read == {name: float(tensor.encoding.scale) for name, tensor in model.activations.items()}
    float_model = onnx.load(tmp_path / "tensorrt/model.onnx")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in float_model.graph.node}
    values = {info.name for info in float_model.graph.input} | {n for o in float_model.graph.node for n in o.output}
    assert set(read) <= values


def test_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    export_checked(TENSORRT, conforming(), tmp_path, {"calibration_cache": True})
    cache = tmp_path / "tensorrt/calibration.cache"
    cache.write_text(cache.read_text().replace("x: ", "y: ", 1))
    with pytest.raises(ValidationError, match=r"calibration\.cache: does not hold the scales"):
        TENSORRT.read(tmp_path)


def test_names_that_a_cache_cannot_hold_are_refused(tmp_path: Path) -> None:
    b = ModelBuilder(SIGNED)
    x = b.encode(b.input("x: 1", 3, 4, 4))
    model = b.build(b.layer("conv", "Conv", x, (4, 3, 1, 1), bias=4, kernel_shape=[1, 1]))
    (tmp_path / "plain").mkdir()
    export_checked(TENSORRT, model, tmp_path / "plain", {})
    with pytest.raises(ProfileError, match="x: 1: a calibration cache cannot hold"):
        TENSORRT.export(model, tmp_path, {"calibration_cache": True})


def test_reader_applies_the_rules_too(tmp_path: Path) -> None:
    get_exporter("onnx_qdq").export(sample_model(), tmp_path, {})
    with pytest.raises(ValidationError, match="TensorRT integers are signed"):
        TENSORRT.read(tmp_path)
