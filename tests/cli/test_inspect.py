"""What files hold, told without trusting them."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from eqdeploy.errors import CheckpointError, EqDeployError, UsageError, ValidationError
from eqdeploy.inspection import Inspection, inspect_file

Run = Callable[..., subprocess.CompletedProcess[str]]


def rows(inspection: Inspection, title: str) -> tuple[tuple[object, ...], ...]:
    return next(table.rows for table in inspection.tables if table.title == title)


def test_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net.bin"  # kinds are told by content
    tensors = {"conv.weight": np.zeros((4, 3, 1, 1), np.float32), "scale": np.array(0.5, np.float32)}
    save_file(tensors, path, metadata={"eqdeploy": '{"version": 1, "space": {"bits": [2, NaN]}}', "plain": "text"})
    inspection = inspect_file(path)
    assert inspection.kind == "checkpoint"
    assert inspection.facts == {
        "tensors": 2,
        "eqdeploy.version": 1,
        "eqdeploy.space": {"bits": [2, "NaN"]},
        "plain": "text",
    }
    assert rows(inspection, "tensors") == (("conv.weight", "F32", "4x3x1x1"), ("scale", "F32", "scalar"))


def header(text: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def test_numbers_beyond_a_float_stay_as_they_are_written(tmp_path: Path, eqdeploy: Run) -> None:
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "net.safetensors", metadata={"eqdeploy": '{"x": [1e999]}'})
    (tmp_path / "report.json").write_text('{"x": -1e999}')
    for name, facts in (("net.safetensors", {"tensors": 1, "eqdeploy.x": ["1e999"]}), ("report.json", {"x": "-1e999"})):
        done = eqdeploy("inspect", name, "--json", "-")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"]["facts"] == facts


@pytest.mark.parametrize(
    "content",
    [
        header(b'{"a":'),
        header(b"{}", length=1 << 62),
        header(b"{}", length=3),
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', body=b"\0" * 15),
        header(b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', body=b"\0" * 4),
        header(b'{"a": {"dtype": "pickle", "shape": [1], "data_offsets": [0, 4]}}', body=b"\0" * 4),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', body=b"\0" * 4),
        header(b'{"a":' * 20_000),
    ],
)
def test_damaged_and_hostile_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="a.safetensors: not a safetensors file"):
        inspect_file(path)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch exploded",)


def test_pickles_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        Path("a.pt").write_bytes(pickle.dumps(Bomb(), protocol=protocol))
        with pytest.raises(CheckpointError, match="pickled.*never opened"):
            inspect_file(Path("a.pt"))
    Path("a.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match="pickled.*never opened"):
        inspect_file(Path("a.pt"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("name", "members", "message"),
    [
        ("data.npz", ["images.npy", "labels.npy"], "NumPy archive, a data set.*--data"),
        ("model.dlc", ["model.params", "model"], "file of another tool; it holds 'model', 'model.params'"),
    ],
)
def test_other_archives_are_not_called_pickles(tmp_path: Path, name: str, members: list[str], message: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")
    with pytest.raises(UsageError, match=message):
        inspect_file(tmp_path / name)


def test_an_archive_with_a_pickle_in_it_is_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
        archive.writestr("archive/data/0.npy", b"x")
    with pytest.raises(CheckpointError, match="pickled.*never opened"):
        inspect_file(tmp_path / "a.pt")


def small_model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(small_model(), path)
    inspection = inspect_file(path)
    assert (inspection.kind, inspection.size) == ("onnx", path.stat().st_size)
    assert inspection.facts["opset"] == "ai.onnx 21"
    assert inspection.facts["ir_version"] == 10
    assert rows(inspection, "inputs and outputs") == (
        ("input", "x", "float", "batchx4"),
        ("output", "y", "float", "batchx4"),
    )
    assert rows(inspection, "operators") == (("Add", "ai.onnx", 1), ("Relu", "ai.onnx", 1))
    assert rows(inspection, "initializers") == (("w", "float", "4"),)


def test_an_onnx_model_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = small_model()
    model.graph.initializer[0].name = "NAME"
    path.write_bytes(model.SerializeToString().replace(b"NAME", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(ValidationError, match=r"model\.onnx: holds a name that is not UTF-8"):
        inspect_file(path)


def test_an_onnx_model_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    content = small_model().SerializeToString()
    for length in (1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises((UsageError, ValidationError)):
            inspect_file(path)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"schema": 1, "weights": {"conv": "4-per_tensor-symmetric-signed"}, "activations": {}}, "subnet"),
        (
            {"activation_encodings": {"x": [{"bitwidth": 8}]}, "param_encodings": {"w": []}, "version": "0.6.1"},
            "encodings",
        ),
        ({"artifact": "eqdeploy", "files": {"a": {"size": 3}}, "provenance": {}}, "manifest"),
        ({"artifact": "eqdeploy", "files": {"a": 3, "b": None}, "provenance": {}}, "manifest"),
        ({"verdict": "valid", "plan": {}, "coverage": {}}, "report"),
        ({"schema": 1, "weights": 3, "activations": []}, "subnet"),
        ({"anything": float("inf")}, "json"),
        ([1, 2], "json list"),
    ],
)
def test_json_documents(tmp_path: Path, eqdeploy: Run, document: object, kind: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    assert inspect_file(path).kind == kind
    done = eqdeploy("inspect", path, "--json", "-")
    assert json.loads(done.stdout, parse_constant=pytest.fail)["result"]["kind"] == kind
    assert eqdeploy("inspect", path).stdout.startswith(f"{path}: {kind}, ")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_documents_that_are_no_json(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValidationError, match="a.json: not valid JSON"):
        inspect_file(path)


@pytest.mark.parametrize(("name", "hint"), [("a.txt", "neither"), ("a.yaml", "profiles show"), ("empty", "is empty")])
def test_other_files(tmp_path: Path, name: str, hint: str) -> None:
    path = tmp_path / name
    path.write_text("" if name == "empty" else "some text")
    with pytest.raises(UsageError, match=hint):
        inspect_file(path)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a plain file"):
            inspect_file(path)


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_are_told_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    try:
        json.dumps(inspect_file(path).to_json(), allow_nan=False)
    except EqDeployError as error:
        refusal = str(error)
        assert "\n" not in refusal


def test_long_lists_are_cut_unless_everything_is_wanted(tmp_path: Path, eqdeploy: Run) -> None:
    path = tmp_path / "many.safetensors"
    save_file({f"t{index:03}": np.zeros(1, np.float32) for index in range(100)}, path, metadata={"note": "x" * 500})
    short, whole = eqdeploy("inspect", path).stdout, eqdeploy("inspect", path, "-v").stdout
    assert "and 70 more; -v shows all" in short
    assert "t099" not in short
    assert "x" * 500 not in short
    assert "t099" in whole
    assert "x" * 500 in whole
