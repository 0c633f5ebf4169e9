"""The second record of all numbers finds a change of any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from eqdeploy.encoding_table import ENCODINGS_FILE, check_encodings, write_encodings
from eqdeploy.errors import ValidationError
from eqdeploy.exporters.contract import get_exporter
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.testing import sample_model
from tests.contract.networks import SIGNED


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder with a TensorRT model, whose biases are float, and its table."""
    get_exporter("tensorrt").export(sample_model(SIGNED, skip_only=True), tmp_path, {})
    write_encodings(tmp_path, read_model(tmp_path / "model.onnx"))
    return tmp_path


def edited(folder: Path, change: Callable[[onnx.GraphProto], object]) -> None:
    """Change the model and compare what is read from it with the table."""
    model = onnx.load(folder / "model.onnx")
    change(model.graph)
    onnx.save(model, folder / "model.onnx")
    check_encodings(folder, read_model(folder / "model.onnx"))


def raise_a_bias(graph: onnx.GraphProto) -> None:
    bias = next(tensor for tensor in graph.initializer if tensor.name == "head.bias")
    value = numpy_helper.to_array(bias).copy()
    value[0] = np.nextafter(value[0], np.float32(np.inf))
    bias.CopyFrom(numpy_helper.from_array(value, bias.name))


def add_a_node(graph: onnx.GraphProto) -> None:
    output = graph.output[0].name
    producer = next(node for node in graph.node if output in node.output)
    producer.output[0] = "before"
    graph.node.append(helper.make_node("Neg", ["before"], [output], name="planted"))


def change_an_attribute(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "Gemm")
    node.attribute.append(helper.make_attribute("alpha", 0.5))


def test_the_table_of_an_unchanged_model_agrees(exported: Path) -> None:
    edited(exported, lambda graph: None)


@pytest.mark.parametrize(
    ("change", "name"),
    [(raise_a_bias, "head.bias"), (add_a_node, "planted|head"), (change_an_attribute, "head")],
)
def test_a_change_that_no_encoding_shows_is_named(
    exported: Path, change: Callable[[onnx.GraphProto], object], name: str
) -> None:
    with pytest.raises(ValidationError, match=f"(?:{name}).*the model file and the table of encodings disagree"):
        edited(exported, change)


def test_tables_of_the_first_layout_are_refused(exported: Path) -> None:
    path = exported / ENCODINGS_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))
    with pytest.raises(ValidationError, match=r"schema 2 \(export the artifact again\)"):
        edited(exported, lambda graph: None)
