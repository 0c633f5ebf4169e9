"""Structure of the QDQ model, and what the exporter refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from eqdeploy.errors import ProfileError, UnsupportedOperationError, ValidationError
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.exporters.opset import OPSETS, ir_version_for
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel, QuantizedParameter, QuantizedTensor
from eqdeploy.testing import ModelBuilder, SampleForms, sample_model
from eqdeploy.validation.runtime import Level, Session
from tests.contract.networks import LOW_BITS, NETWORKS

ROOT = Path(__file__).resolve().parents[2]


def export(model: QuantizedModel, directory: Path, **options: object) -> onnx.ModelProto:
    directory.mkdir(exist_ok=True)
    export_checked(get_exporter("onnx_qdq"), model, directory, options)
    return onnx.load(directory / "model.onnx")


def nodes_by_name(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def constants(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def test_weights_are_raw_integers_with_an_explicit_axis(tmp_path: Path) -> None:
    model = sample_model()
    written = export(model, tmp_path)
    values, nodes = constants(written), nodes_by_name(written)
    for name, parameter in model.parameters.items():
        assert values[name].dtype == (np.int32 if name.endswith("bias") else np.int8)
        np.testing.assert_array_equal(values[name], parameter.codes)
        assert attributes(nodes[f"{name}/dequantize"]) == {"axis": parameter.encoding.axis}
    assert all(tensor.HasField("raw_data") for tensor in written.graph.initializer)
    assert [tensor.name for tensor in written.graph.initializer if tensor.name.endswith(".min")] == []


def test_per_tensor_nodes_have_no_axis(tmp_path: Path) -> None:
    weight = Form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=False)
    written = export(sample_model(SampleForms(weight=weight)), tmp_path)
    quantization = [node for node in written.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantization
    assert not any(node.attribute for node in quantization)
    assert constants(written)["stem.weight"].dtype == np.uint8


def test_integer_clip_stands_only_where_the_container_is_wider(tmp_path: Path) -> None:
    nodes = nodes_by_name(export(sample_model(), tmp_path / "8"))
    assert [name for name in nodes if name.endswith("/clip")] == ["depthwise_relu6/clip"]
    low = export(sample_model(LOW_BITS), tmp_path / "4")
    values, nodes = constants(low), nodes_by_name(low)
    for name, tensor in sample_model(LOW_BITS).activations.items():
        limits = [values[value] for value in nodes[f"{name}/clip"].input[1:]]
        assert [limit.dtype for limit in limits] == [np.uint8, np.uint8]
        assert [int(limit) for limit in limits] == [tensor.encoding.q_min, tensor.encoding.q_max]


def test_float_clip_is_dropped_only_when_the_codes_do_its_work(tmp_path: Path) -> None:
    nodes = nodes_by_name(export(NETWORKS["clips"](), tmp_path))
    assert "dropped" not in nodes
    assert "output" not in nodes
    assert nodes["kept"].op_type == nodes["wider"].op_type == "Clip"
    assert nodes["dropped/quantize"].input[0] == "conv"


def test_names_of_tensors_follow_the_rule(tmp_path: Path) -> None:
    written = export(NETWORKS["output_read_inside"](), tmp_path)
    nodes = nodes_by_name(written)
    assert list(nodes["x/quantize"].output) == ["x_quantized"]
    assert list(nodes["x/dequantize"].output) == ["x_dequantized"]
    assert list(nodes["first"].output) == ["first_float"]
    assert list(nodes["first/dequantize"].output) == ["first"]
    assert nodes["second"].input[0] == "first"
    assert [info.name for info in written.graph.input] == ["x"]
    assert [info.name for info in written.graph.output] == ["first", "second"]
    assert [dim.dim_param for dim in written.graph.input[0].type.tensor_type.shape.dim][:1] == ["batch"]


def test_float_readers_read_the_float_value(tmp_path: Path) -> None:
    nodes = nodes_by_name(export(NETWORKS["float_reader"](), tmp_path))
    assert list(nodes["sum"].input) == ["after", "add"]
    assert nodes["after"].input[0] == "add_dequantized"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_network_comes_back_node_by_node(name: str, tmp_path: Path) -> None:
    model = NETWORKS[name]()
    export(model, tmp_path)
    restored = read_model(tmp_path / "model.onnx")
    assert_same_network(model.graph, restored.graph)
    for tensor, original in model.activations.items():
        assert restored.activations[tensor].float_readers == original.float_readers
        assert restored.activations[tensor].encoding.equals(original.encoding)


def assert_same_network(expected: onnx.ModelProto, found: onnx.ModelProto) -> None:
    """Compare nodes by name, constants by value."""
    left, right = nodes_by_name(expected), nodes_by_name(found)
    assert set(left) == set(right)
    left_values, right_values = constants(expected), constants(found)
    for name, node in left.items():
        other = right[name]
        assert (node.op_type, list(node.output)) == (other.op_type, list(other.output))
        assert attributes(node) == attributes(other)
        for one, two in zip(node.input, other.input, strict=True):
            if one in left_values:
                np.testing.assert_array_equal(left_values[one], right_values[two], strict=True)
            else:
                assert one == two
    for key in ("input", "output"):
        ends = [[info.SerializeToString() for info in getattr(model.graph, key)] for model in (expected, found)]
        assert ends[0] == ends[1]


@pytest.mark.parametrize("opset", OPSETS)
def test_ir_version_is_one_that_runtimes_load(opset: int, tmp_path: Path) -> None:
    written = export(sample_model(), tmp_path, opset=opset)
    assert written.ir_version == ir_version_for(opset)
    assert ir_version_for(21) == 10
    Session(tmp_path / "model.onnx", Level.DISABLED, where="model.onnx")
    assert [entry.key for entry in written.metadata_props] == ["eqdeploy.encodings"]
    assert not any(node.metadata_props or node.doc_string for node in written.graph.node)


def test_operation_that_an_opset_lacks_is_named(tmp_path: Path) -> None:
    b = ModelBuilder()
    x = b.encode(b.input("x", 4))
    model = b.build(b.encode(b.node("modern", "Gelu", [x])))
    with pytest.raises(ProfileError, match=r"operation Gelu \(modern\) cannot be expressed in opset 17"):
        get_exporter("onnx_qdq").export(model, tmp_path, {"opset": 17})
    export(model, tmp_path, opset=20)


def test_attributes_that_an_old_opset_lacks_go_only_when_they_say_nothing(tmp_path: Path) -> None:
    def reshaped(allowzero: int, shape: list[int]) -> QuantizedModel:
        b = ModelBuilder()
        x = b.encode(b.input("x", 4, 2))
        target = b.constant("shape", shape, np.int64)
        return b.build(b.encode(b.node("y", "Reshape", [x, target], allowzero=allowzero)))

    written = export(reshaped(1, [-1, 8]), tmp_path / "kept", opset=13)
    assert attributes(nodes_by_name(written)["y"]) == {}
    with pytest.raises(ProfileError, match="Reshape"):
        get_exporter("onnx_qdq").export(reshaped(1, [0, 8]), tmp_path, {"opset": 13})


def test_converter_keeps_names_and_weights(tmp_path: Path) -> None:
    """ReduceMean takes its axes as an attribute before opset 18: ONNX's own converter rewrites it."""
    b = ModelBuilder()
    x = b.encode(b.input("x", 3, 6, 6))
    conv = b.encode(b.layer("conv", "Conv", x, (4, 3, 3, 3), bias=4, kernel_shape=[3, 3]))
    axes = b.constant("axes", [2, 3], np.int64)
    mean = b.node("mean", "ReduceMean", [conv, axes], keepdims=1, noop_with_empty_axes=0)  # as torch writes it
    model = b.build(b.encode(mean))
    written = export(model, tmp_path, opset=17)
    onnx.checker.check_model(written)
    assert attributes(nodes_by_name(written)["mean"]) == {"axes": [2, 3], "keepdims": 1}
    np.testing.assert_array_equal(constants(written)["conv.weight"], model.parameters["conv.weight"].codes)


def test_clip_of_quantized_values_stays(tmp_path: Path) -> None:
    """Without it a DQ would meet a Q of another scale, a pair that ONNX Runtime merges into one."""
    written = export(NETWORKS["clip_of_codes"](), tmp_path)
    assert nodes_by_name(written)["clip/quantize"].input[0] == "clip"


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_bytes_do_not_depend_on_the_process(hash_seed: str, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from eqdeploy.testing import sample_model\n"
        "from eqdeploy.exporters.contract import get_exporter\n"
        "get_exporter('snpe').export(sample_model(), pathlib.Path(sys.argv[1]), {})"
    )
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    files = get_exporter("snpe").export(sample_model(), here, {})
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-c", program, str(there)], cwd=ROOT, env=environment, check=True)
    for name in files:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


def with_encoding(name: str, **changes: Any) -> QuantizedModel:
    """The sample model with one activation's encoding changed."""
    model = sample_model()
    tensor = model.activations[name]
    encoding = replace(tensor.encoding, **changes)
    return replace(model, activations={**model.activations, name: replace(tensor, encoding=encoding)})


def with_parameter(name: str, **changes: Any) -> QuantizedModel:
    """The sample model with one parameter changed."""
    model = sample_model()
    parameter = replace(model.parameters[name], **changes)
    return replace(model, parameters={**model.parameters, name: parameter})


def with_activation(name: str, listed_as: str | None = None, **changes: Any) -> QuantizedModel:
    """The sample model with one more encoded tensor."""
    model = sample_model()
    tensor = replace(QuantizedTensor(name, model.activations["x"].encoding), **changes)
    return replace(model, activations={**model.activations, listed_as or name: tensor})


def renamed_node(old: str, new: str) -> QuantizedModel:
    """The sample model with a node under another name."""
    model = sample_model()
    graph = onnx.ModelProto()
    graph.CopyFrom(model.graph)
    nodes_by_name(graph)[old].name = new
    return replace(model, graph=graph)


def wrong_bias_scale() -> QuantizedModel:
    bias = sample_model().parameters["stem.bias"].encoding
    return with_parameter("stem.bias", encoding=replace(bias, scale=np.nextafter(bias.scale, np.float32(1))))


def codes_out_of_range() -> QuantizedModel:
    codes = sample_model().parameters["head.weight"].codes.copy()
    codes[2, 3] = 200
    return with_parameter("head.weight", codes=codes)


def real_values_too_large() -> QuantizedModel:
    encoding = sample_model().parameters["head.weight"].encoding
    huge = replace(encoding, scale=np.full_like(encoding.scale, 1e38))
    return with_parameter("head.weight", encoding=huge)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: with_activation("nobody"), "nobody: carries an encoding but is no tensor"),
        (lambda: with_activation("stem.weight"), r"stem\.weight: carries an encoding but is no tensor"),
        (lambda: with_activation("stem", listed_as="stern"), "stem: is listed under the name 'stern'"),
        (lambda: with_activation("stem", float_readers=frozenset({"stem_relu"})), "stem: .*nobody reads"),
        (lambda: with_encoding("gap", bits=9), "at most 8 bits"),
        (lambda: with_encoding("gap", scale=np.array(1e-39, np.float32)), "gap: scale .* is denormal"),
        (lambda: with_parameter("head.weight", codes=np.zeros((5, 5), np.int32)), r"needs int32 \(5, 6\)"),
        (lambda: with_parameter("head.weight", codes=np.zeros((5, 6), np.int64)), "codes are int64"),
        (codes_out_of_range, r"head\.weight: codes from -\d+ to 200 leave the range"),
        (real_values_too_large, r"head\.weight: real values exceed float32"),
        (wrong_bias_scale, r"stem\.bias: the scale of this bias is not input scale times weight scale"),
        (lambda: renamed_node("gap", "flatten"), "flatten: 2 nodes share this name"),
        (lambda: renamed_node("gap", ""), "output gap: a GlobalAveragePool node has no name"),
    ],
)
def test_inconsistent_models_are_refused(model: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        get_exporter("onnx_qdq").export(model(), tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("axis", "count", "message"),
    [(2, 8, r"head\.weight: axis 2 does not exist in a tensor of rank 2"), (1, 5, "5 scales for 6 channels on axis 1")],
)
def test_wrong_axes_are_refused(axis: int, count: int, message: str, tmp_path: Path) -> None:
    scale = np.ones(count, np.float32)
    encoding = Encoding(scale, np.zeros(count, np.int32), -128, 127, 8, True, axis)
    with pytest.raises(ValidationError, match=message):
        get_exporter("onnx_qdq").export(with_parameter("head.weight", encoding=encoding), tmp_path, {})


def test_parameter_that_is_computed_is_refused(tmp_path: Path) -> None:
    model = sample_model()
    stray = QuantizedParameter("gap", np.zeros((), np.int32), model.parameters["stem.weight"].encoding)
    with pytest.raises(ValidationError, match="gap: is not a constant initializer"):
        get_exporter("onnx_qdq").export(replace(model, parameters={**model.parameters, "gap": stray}), tmp_path, {})


def test_network_that_returns_its_input_is_refused(tmp_path: Path) -> None:
    b = ModelBuilder()
    x = b.encode(b.input("x", 4))
    model = b.build(b.node("y", "Relu", [x]))
    model.graph.graph.output.append(model.graph.graph.input[0])
    with pytest.raises(ValidationError, match="x: is input and output of the network at once"):
        get_exporter("onnx_qdq").export(model, tmp_path, {})


def test_subgraphs_are_refused(tmp_path: Path) -> None:
    b = ModelBuilder()
    x = b.encode(b.input("x", 4))
    b.constant("condition", True, np.bool_)
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inner"], name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    model = b.build(b.node("y", "If", ["condition"], then_branch=branch, else_branch=branch), b.node("z", "Relu", [x]))
    with pytest.raises(UnsupportedOperationError, match="If, Loop, Scan"):
        get_exporter("onnx_qdq").export(model, tmp_path, {})
