"""The files for Qualcomm's SDK: names, grids, what is refused, and what the reader notices."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from eqdeploy.errors import ProfileError, ValidationError
from eqdeploy.exporters.comparison import same_model
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.plan import BiasFormat
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel, constant_name
from eqdeploy.testing import ModelBuilder, SampleForms, sample_model
from tests.contract.networks import ASYMMETRIC, NETWORKS, SIGNED

SNPE = get_exporter("snpe")


def export(model: QuantizedModel, directory: Path, **options: object) -> tuple[dict[str, Any], onnx.ModelProto]:
    """Export and return the encodings and the float model."""
    files = export_checked(SNPE, model, directory, options)
    assert set(files) >= {"model.onnx", "snpe/model.onnx", "snpe/model.encodings", "snpe/convert.sh"}
    document = json.loads((directory / "snpe/model.encodings").read_text())
    return document, onnx.load(directory / "snpe/model.onnx")


def test_float_model_has_no_quantization_and_weights_on_their_grid(tmp_path: Path) -> None:
    model = sample_model(ASYMMETRIC)
    document, written = export(model, tmp_path)
    assert not {"QuantizeLinear", "DequantizeLinear", "BatchNormalization"} & {n.op_type for n in written.graph.node}
    assert [entry.version for entry in written.opset_import] == [13]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    for name, parameter in model.parameters.items():
        assert values[name].dtype == np.float32
        np.testing.assert_array_equal(values[name], parameter.encoding.dequantize(parameter.codes))
        if name.endswith("weight"):
            entry = document["param_encodings"][name][0]
            # The converter's own arithmetic: step from min and max, then round(w / step) - offset.
            step = (entry["max"] - entry["min"]) / (2 ** entry["bitwidth"] - 1)
            codes = np.rint(values[name] / np.float32(step)) - entry["offset"]
            np.testing.assert_array_equal(codes, parameter.encoding.stored_as(signed=False).quantize(values[name]))
            np.testing.assert_array_equal(codes, parameter.codes)


def test_every_tensor_is_keyed_by_its_onnx_name(tmp_path: Path) -> None:
    model = sample_model(ASYMMETRIC)
    document, written = export(model, tmp_path)
    values = {info.name for info in written.graph.input} | {name for n in written.graph.node for name in n.output}
    assert set(document["activation_encodings"]) == set(model.activations) <= values
    weights = {name for name in model.parameters if name.endswith("weight")}
    assert set(document["param_encodings"]) == weights <= {tensor.name for tensor in written.graph.initializer}


def test_relu6_keeps_the_whole_grid_and_its_clip(tmp_path: Path) -> None:
    model = sample_model(ASYMMETRIC)
    encoding = model.activations["depthwise_relu6"].encoding
    assert encoding.q_max < 255
    document, written = export(model, tmp_path)
    entry = document["activation_encodings"]["depthwise_relu6"][0]
    assert entry["max"] == float(encoding.scale) * 255
    assert "Clip" in {node.op_type for node in written.graph.node}
    recovered = SNPE.read(tmp_path).activations["depthwise_relu6"]
    assert recovered.q_max == encoding.q_max


def test_the_proof_model_gives_the_same_float_model_again(tmp_path: Path) -> None:
    """A ReLU6 whose Clip the proof model leaves out comes back under the names of an exported structure."""
    builder = ModelBuilder(ASYMMETRIC)
    builder.layer("conv", "Conv", builder.encode(builder.input("x", 3, 4, 4)), (4, 3, 1, 1), kernel_shape=[1, 1])
    bounds = [builder.constant(constant_name("relu6", place), bound) for place, bound in ((1, 0.0), (2, 2.0))]
    builder.encode(builder.node("relu6", "Clip", ["conv", *bounds]), non_negative=True, upper_bound=2.0)
    folders = tmp_path / "first", tmp_path / "again"
    for folder in folders:
        folder.mkdir()
    export(builder.build("relu6"), folders[0])
    assert "relu6" not in {node.name for node in onnx.load(folders[0] / "model.onnx").graph.node}
    export(read_model(folders[0] / "model.onnx"), folders[1])
    assert same_model(*(folder / "snpe/model.onnx" for folder in folders))


def test_per_channel_weights_get_one_entry_for_each_channel(tmp_path: Path) -> None:
    model = sample_model()
    document, _ = export(model, tmp_path)
    for name, entries in document["param_encodings"].items():
        encoding = model.parameters[name].encoding
        assert [entry["scale"] for entry in entries] == encoding.scale.tolist()
        assert {(entry["offset"], entry["is_symmetric"]) for entry in entries} == {(-128, "True")}
    assert document["quantizer_args"]["per_channel_quantization"] == "True"


def test_commands_are_valid_shell_and_quote_names(tmp_path: Path) -> None:
    b = ModelBuilder(ASYMMETRIC)
    x = b.encode(b.input("image of $(x)", 3, 4, 4))
    export(b.build(b.encode(b.node("y", "Relu", [x]))), tmp_path)
    script = tmp_path / "snpe/convert.sh"
    text = script.read_text()
    assert "--input_dim 'image of $(x)' 1,3,4,4 " in text
    for option in ("--quantization_overrides model.encodings", "--override_params", "--bias_bitwidth 32"):
        assert option in text
    subprocess.run(["sh", "-n", str(script)], check=True)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_low_widths_need_permission(bits: int, tmp_path: Path) -> None:
    forms = SampleForms(weight=Form(bits, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True))
    with pytest.raises(ProfileError, match=rf"weights\.bits: stem\.weight: has {bits} bits.*allow_low_bits"):
        SNPE.export(sample_model(forms), tmp_path, {})
    assert not list(tmp_path.iterdir())
    document, _ = export(sample_model(forms), tmp_path, allow_low_bits=True)
    assert document["param_encodings"]["stem.weight"][0]["bitwidth"] == bits


def narrow_activation() -> QuantizedModel:
    model = sample_model(ASYMMETRIC)
    tensor = model.activations["stem_relu"]
    narrow = replace(tensor.encoding, q_max=200)
    return replace(model, activations={**model.activations, "stem_relu": replace(tensor, encoding=narrow)})


def bias_without_input_encoding() -> QuantizedModel:
    model = sample_model(ASYMMETRIC)
    return replace(model, activations={name: t for name, t in model.activations.items() if name != "x"})


def scales_on_the_input_channels() -> QuantizedModel:
    b = ModelBuilder(SampleForms(bias=BiasFormat.FLOAT))
    x = b.encode(b.input("x", 3, 4, 4))
    model = b.build(b.encode(b.layer("conv", "Conv", x, (5, 3, 1, 1), kernel_shape=[1, 1])))
    weight = model.parameters["conv.weight"]
    other = Encoding(np.full(3, 1 / 64, np.float32), np.zeros(3, np.int32), -128, 127, 8, True, 1)
    return replace(model, parameters={"conv.weight": replace(weight, encoding=other)})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NETWORKS["float_reader"], "add: sum would read the float value"),
        (narrow_activation, r"stem_relu: nothing in the network keeps its codes inside \[0, 200\]"),
        (bias_without_input_encoding, r"stem\.bias: an integer bias of SNPE counts in units of"),
        (scales_on_the_input_channels, r"conv\.weight: has its scales on axis 1; .* means axis 0"),
    ],
)
def test_what_the_format_cannot_say_is_refused(
    model: Callable[[], QuantizedModel], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ProfileError, match=message):
        SNPE.export(model(), tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["output_read_inside", "matrix_layers", "grouped_transposed", "transposed_weight"])
def test_special_networks_survive(name: str, tmp_path: Path) -> None:
    export(NETWORKS[name](), tmp_path)


def test_large_biases_come_back_without_codes(tmp_path: Path) -> None:
    """A float32 holds 24 bits: larger bias codes cannot be told apart, and the reader says so."""
    model = sample_model(ASYMMETRIC)
    bias = model.parameters["head.bias"]
    large = replace(bias, codes=(bias.codes + (1 << 26)).astype(np.int32))
    model = replace(model, parameters={**model.parameters, "head.bias": large})
    export(model, tmp_path)
    recovered = SNPE.read(tmp_path)
    assert recovered.parameters["head.bias"][0] is None
    codes, _ = recovered.parameters["stem.bias"]
    np.testing.assert_array_equal(codes, model.parameters["stem.bias"].codes)


@given(
    bits=st.integers(1, 8),
    exponent=st.floats(-30, 5.5),
    symmetry=st.sampled_from(list(Symmetry)),
    granularity=st.sampled_from(list(Granularity)),
    signed=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_scale_survives_the_files(
    bits: int,
    exponent: float,
    symmetry: Symmetry,
    granularity: Granularity,
    signed: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    b = ModelBuilder(SampleForms(weight=Form(bits, granularity, symmetry, signed=signed)), seed=bits)
    x = b.encode(b.input("x", 3, 2, 2))
    model = b.build(b.encode(b.layer("conv", "Conv", x, (4, 3, 1, 1), kernel_shape=[1, 1])))
    weight = model.parameters["conv.weight"]
    scaled = replace(weight.encoding, scale=(weight.encoding.scale * np.float32(10.0**exponent)).astype(np.float32))
    model = replace(model, parameters={"conv.weight": replace(weight, encoding=scaled)})
    export(model, tmp_path_factory.mktemp("scale"), allow_low_bits=True)


def edit_encodings(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Edit the encodings file of an export."""

    def edit(directory: Path) -> None:
        path = directory / "snpe/model.encodings"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit


def nudge_weight(directory: Path) -> None:
    """Move one float weight off its grid."""
    model = onnx.load(directory / "snpe/model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] = np.nextafter(array[0, 0], np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(array, "head.weight"))
    onnx.save(model, directory / "snpe/model.onnx")


def shorten_range(directory: Path) -> None:
    """Claim in the float model that a range ends early."""
    model = onnx.load(directory / "snpe/model.onnx")
    facts = json.loads(model.metadata_props[0].value)
    facts["activations"]["stem_relu"]["q_max"] = 100
    model.metadata_props[0].value = json.dumps(facts)
    onnx.save(model, directory / "snpe/model.onnx")


def other_proof_model(directory: Path) -> None:
    """Put the proof model of other weights beside the device's files."""
    get_exporter("onnx_qdq").export(sample_model(ASYMMETRIC, seed=1), directory, {})


def edit_network(change: Callable[[onnx.GraphProto], None]) -> Callable[[Path], None]:
    """Change the device's float model behind the back of the proof model."""

    def edit(directory: Path) -> None:
        path = directory / "snpe/model.onnx"
        written = onnx.load(path)
        change(written.graph)
        onnx.save(written, path)

    return edit


def negate_relu(graph: onnx.GraphProto) -> None:
    """Another operation of the same shape under the same name."""
    next(node for node in graph.node if node.op_type == "Relu").op_type = "Neg"


def shift_padding(graph: onnx.GraphProto) -> None:
    """Another attribute that leaves every shape as it is."""
    paddings = [attribute for node in graph.node for attribute in node.attribute if attribute.name == "pads"]
    padding = next(attribute for attribute in paddings if list(attribute.ints) == [1, 1, 1, 1])
    padding.ints[:] = [2, 1, 0, 1]


def widen_clip(graph: onnx.GraphProto) -> None:
    """Another constant."""
    name = next(node for node in graph.node if node.op_type == "Clip").input[2]
    bound = next(tensor for tensor in graph.initializer if tensor.name == name)
    bound.CopyFrom(numpy_helper.from_array(np.float32(7) * np.ones(tuple(bound.dims), np.float32), name))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_network(negate_relu), r"model\.onnx: node \w+: is another one in the proof model"),
        (edit_network(shift_padding), r"model\.onnx: node \w+: is another one in the proof model"),
        (edit_network(widen_clip), "node depthwise_relu6: is another one in the proof model|keeps its codes inside"),
        (edit_encodings(lambda d: d["activation_encodings"].pop("gap")), "gap: is in only one of"),
        (edit_encodings(lambda d: d["param_encodings"].pop("head.weight")), r"head\.weight: is in only one of"),
        (
            edit_encodings(lambda d: d["param_encodings"].update(gap=d["activation_encodings"]["gap"])),
            "gap: stands in both sections",
        ),
        (edit_encodings(lambda d: d["activation_encodings"]["gap"].clear()), "at least 1 item"),
        (
            edit_encodings(lambda d: d["activation_encodings"]["gap"].append(d["activation_encodings"]["gap"][0])),
            "gap: 2 entries for a tensor with one scale",
        ),
        (edit_encodings(lambda d: d["activation_encodings"]["gap"][0].update(bitwidth=7)), "min and max are not"),
        (edit_encodings(lambda d: d.update(version="1.0.0")), "version"),
        (edit_encodings(lambda d: d.pop("version")), "version"),
        (nudge_weight, r"head\.weight: float weights do not lie on the grid"),
        (shorten_range, "stem_relu: nothing in the float model keeps its codes inside"),
        (other_proof_model, r"weight: .* integer codes differ in the files"),
    ],
)
def test_files_that_disagree_are_refused(edit: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    SNPE.export(sample_model(ASYMMETRIC), tmp_path, {})
    edit(tmp_path)
    with pytest.raises(ValidationError, match=message):
        SNPE.read(tmp_path)


def test_signed_activations_move_to_the_unsigned_grid(tmp_path: Path) -> None:
    forms = replace(SIGNED, bias=BiasFormat.INT32)
    document, _ = export(sample_model(forms), tmp_path)
    for entries in document["activation_encodings"].values():
        assert (entries[0]["offset"], entries[0]["is_symmetric"]) == (-128, "True")
