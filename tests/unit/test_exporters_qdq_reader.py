"""The reader of QDQ files believes nothing: each kind of damage is named, with the tensor where it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from eqdeploy.errors import EqDeployError, ValidationError
from eqdeploy.exporters.contract import get_exporter
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.testing import sample_model
from tests.contract.networks import LOW_BITS, SIGNED

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with integer Clips and a dropped float Clip."""
    folder = tmp_path_factory.mktemp("written")
    get_exporter("onnx_qdq").export(sample_model(LOW_BITS), folder, {})
    return (folder / "model.onnx").read_bytes()


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def set_constant(name: str, array: Any) -> Edit:
    """Replace an initializer."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))

    return edit


def set_fact(*path: str, value: Any) -> Edit:
    """Change one value of the metadata."""

    def edit(model: onnx.ModelProto) -> None:
        facts = json.loads(model.metadata_props[0].value)
        place = facts
        for key in path[:-1]:
            place = place[key]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        model.metadata_props[0].value = json.dumps(facts)

    return edit


def set_input(name: str, index: int, value: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node(model, name).input[index] = value

    return edit


def rename(old: str, new: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node(model, old).name = new

    return edit


def set_axis(name: str, axis: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node(model, name).attribute.append(helper.make_attribute("axis", axis))

    return edit


def drop_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def stray_quantize(model: onnx.ModelProto) -> None:
    inputs = ["gap_dequantized", "gap_scale", "gap_zero_point"]
    model.graph.node.append(helper.make_node("QuantizeLinear", inputs, ["stray"], name="stray/quantize"))


def stray_dequantize(model: onnx.ModelProto) -> None:
    inputs = ["gap_clipped", "gap_scale", "gap_zero_point"]
    model.graph.node.append(helper.make_node("DequantizeLinear", inputs, ["stray"], name="stray/dequantize"))


def second_reader_of_integers(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["head.weight"], ["copy"], name="copy"))


def return_integers(model: onnx.ModelProto) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info("gap_quantized", onnx.TensorProto.UINT8, ["batch", 6, 1, 1])
    )


def constant_as_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("gap_scale", onnx.TensorProto.FLOAT, []))
    remaining = [tensor for tensor in model.graph.initializer if tensor.name != "gap_scale"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(remaining)


def external_data(location: str) -> Edit:
    """Claim that a weight lies in another file."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_constant("gap_scale", np.float32(np.nan)), "gap: a scale is not finite and positive"),
        (set_constant("gap_scale", np.float32(np.inf)), "gap: a scale is not finite and positive"),
        (set_constant("gap_scale", np.float32(0)), "gap: a scale is not finite and positive"),
        (set_constant("gap_scale", np.float32(-1)), "gap: a scale is not finite and positive"),
        (set_constant("gap_scale", np.float32(1e-40)), "gap: scale .* is denormal"),
        (set_constant("gap_zero_point", np.int8(0)), "not valid ONNX|zero-point is int8"),
        (set_constant("gap_zero_point", np.uint8(77)), r"gap: a zero-point lies outside \[0, 15\]"),
        (set_constant("head.weight", np.zeros((5, 6), np.uint8)), "not valid ONNX|not int8"),
        (set_constant("head.weight", np.full((5, 6), 9, np.int8)), r"head\.weight: codes from 9 to 9 leave the range"),
        (set_constant("head.weight", np.zeros((5, 7), np.int8)), "is not valid ONNX"),
        (set_constant("head.weight_scale", np.ones(4, np.float32)), "is not valid ONNX"),
        (set_constant("gap_q_max", np.uint8(14)), r"gap: its integer Clip is not \[0, 15\]"),
        (set_fact("activations", "gap", "q_max", value=14), r"gap: .*Clip is not \[0, 14\]"),
        (set_fact("activations", "gap", "bits", value=3), r"gap: the range \[0, 15\] does not fit in 3 bits"),
        (set_fact("activations", "gap", "bits", value=8), None),
        (set_fact("activations", "gap", "bits", value="4"), r"eqdeploy\.encodings: .*activations\.gap\.bits"),
        (set_fact("activations", "gap", "signed", value=True), "gap: its zero-point is uint8, the metadata needs int8"),
        (set_fact("activations", "gap", value=None), "gap/quantize: this Q belongs to no known activation"),
        (set_fact("parameters", "head.weight", value=None), r"head\.weight/dequantize: this DQ belongs to no Q"),
        (set_fact("parameters", "head.weight", "axis", value=1), r"head\.weight: axis is 0 in the graph and 1"),
        (set_fact("parameters", "head.weight", "axis", value=None), "axis is 0 in the graph and None"),
        (set_fact("parameters", "ghost", value={"bits": 8, "q_min": 0, "q_max": 1, "signed": True}), "ghost: .*no DQ"),
        (set_fact("activations", "ghost", value={"bits": 8, "q_min": 0, "q_max": 1, "signed": True}), "ghost: .*no Q"),
        (set_fact("version", value=2), "version"),
        (set_fact("surplus", value=2), "surplus"),
        (set_axis("head.weight/dequantize", 7), "not valid ONNX|axis is 7"),
        (set_axis("gap/dequantize", 1), None),
        (set_input("gap/dequantize", 1, "depthwise_relu6_scale"), "gap: its Q and DQ have different scales"),
        (set_input("gap/dequantize", 0, "up_relu_clipped"), "is not valid ONNX"),
        (set_input("flatten/dequantize", 0, "head_weight"), "is not valid ONNX"),
        (set_input("gap/dequantize", 0, "gap_quantized"), "not read by exactly one DQ"),
        (set_input("add_relu/quantize", 0, "add"), "add_relu: its Q and DQ stand on another tensor"),
        (set_input("head", 1, "narrow.weight_dequantized"), "is not valid ONNX"),
        (rename("gap/quantize", "gap"), "gap: this Q belongs to no known activation"),
        (rename("gap/quantize", "flatten/quantize"), "this Q belongs to no known activation|stand on another tensor"),
        (rename("head.weight/dequantize", "narrow.weight/dequantize"), "this DQ belongs to no Q"),
        (rename("gap", "flatten"), "flatten: 2 nodes share this name"),
        (drop_metadata, r"has no metadata entry eqdeploy\.encodings"),
        (stray_quantize, "stray/quantize: this Q belongs to no known activation"),
        (stray_dequantize, "gap: the integers after its Clip are not read by exactly one DQ"),
        (second_reader_of_integers, r"head\.weight: its integers or real values are used in another way"),
        (return_integers, "gap: the integers after its QuantizeLinear are not read by exactly one DQ"),
        (constant_as_input, "gap: its scale or zero-point is not a constant"),
        (external_data("/etc/passwd"), r"head\.weight: its data lies outside the model's folder"),
        (external_data("../secret"), "outside the model's folder"),
        (external_data("inside/../../secret"), "outside the model's folder"),
        (external_data(""), "no single location"),
        (external_data("missing.bin"), "its data file is missing"),
    ],
)
def test_each_kind_of_damage_is_named(edit: Edit, message: str | None, written: bytes, tmp_path: Path) -> None:
    model = onnx.load_from_string(written)
    edit(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    if message is None:  # a change without meaning
        read_model(path)
        return
    with pytest.raises(ValidationError, match=message) as caught:
        read_model(path)
    assert "model.onnx" in str(caught.value)


def test_range_that_nothing_enforces_is_refused(tmp_path: Path) -> None:
    get_exporter("tensorrt").export(sample_model(SIGNED, skip_only=True), tmp_path, {})
    model = onnx.load(tmp_path / "model.onnx")
    set_fact("activations", "stem_relu", "q_max", value=100)(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValidationError, match="stem_relu: nothing in the graph keeps its codes inside"):
        read_model(tmp_path / "model.onnx")


def test_link_out_of_the_folder_is_refused(written: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(30))
    (folder / "weights.bin").symlink_to(tmp_path / "secret")
    model = onnx.load_from_string(written)
    external_data("weights.bin")(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValidationError, match="outside the model's folder"):
        read_model(folder / "model.onnx")


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    get_exporter("onnx_qdq").export(sample_model(), tmp_path, {"external_data_threshold": 1})
    data = (tmp_path / "model.onnx.data").read_bytes()
    (tmp_path / "model.onnx.data").write_bytes(data[:100])
    with pytest.raises(ValidationError):
        read_model(tmp_path / "model.onnx")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for name in ("onnx_qdq", "snpe", "tensorrt"):
        with pytest.raises(ValidationError, match="cannot read"):
            get_exporter(name).read(tmp_path)
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ValidationError, match=r"model\.onnx: cannot read"):
        get_exporter("onnx_qdq").read(tmp_path)


def test_text_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\n" * 40)
    with pytest.raises(ValidationError, match="not an ONNX file|not valid ONNX"):
        read_model(tmp_path / "model.onnx")


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_never_escapes_as_another_error(seed: int, written: bytes, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    path = tmp_path / "model.onnx"
    messages = []
    for _ in range(60):
        damaged = bytearray(written)
        start = int(random.integers(len(damaged)))
        if random.random() < 0.5:
            damaged[start] = int(random.integers(256))
        else:
            del damaged[start : start + int(random.integers(1, 20))]
        path.write_bytes(damaged)
        try:
            read_model(path)
        except EqDeployError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)


def test_a_quantized_tensor_that_no_output_depends_on_is_refused(tmp_path: Path) -> None:
    get_exporter("onnx_qdq").export(sample_model(), tmp_path, {})  # 8 bits: no integer Clip keeps the codes in range
    model = onnx.load(tmp_path / "model.onnx")
    add = node(model, "add")
    add.input[0] = add.input[1]  # the other branch is read by nobody now
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValidationError, match="no output depends on it"):
        read_model(tmp_path / "model.onnx")
