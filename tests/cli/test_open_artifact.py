"""``eqdeploy.open_artifact``: what an artifact says, whoever made it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data

import eqdeploy
from eqdeploy.data import load_data
from eqdeploy.errors import RuntimeRefusedError, ValidationError
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.manifest import Provenance, read_manifest, write_manifest


def provenance(artifact: Path) -> Provenance:
    return read_manifest(artifact).provenance


def test_report_manifest_and_encodings_are_those_of_the_files(artifact: Path) -> None:
    opened = eqdeploy.open_artifact(artifact)
    assert opened.report.to_json() == json.loads((artifact / "report.json").read_text())
    assert set(opened.manifest.files) == {
        path.relative_to(artifact).as_posix() for path in artifact.rglob("*") if path.is_file()
    } - {"manifest.json"}
    assert opened.model == artifact / "model.onnx"
    model = read_model(opened.model)
    assert set(opened.encodings.activations) == set(model.activations)
    assert set(opened.encodings.parameters) == set(model.parameters)
    assert all(opened.encodings.activations[name].equals(row.encoding) for name, row in model.activations.items())
    assert all(opened.encodings.parameters[name].equals(row.encoding) for name, row in model.parameters.items())
    assert repr(opened) == f"<Artifact snpe-dsp: valid, in {artifact}>"


def test_its_model_runs(artifact: Path) -> None:
    opened = eqdeploy.open_artifact(str(artifact))
    images = load_data("digits", split="test", preprocessing=opened.preprocessing)
    (logits,) = opened.run(opened.preprocessing.apply(images.images)).values()
    accuracy = float((logits.argmax(axis=1) == images.labels).mean())
    assert opened.report.accuracy.summary.endswith(f"exported {accuracy:.2%} of {len(images)} images")
    assert len(opened.classes) == logits.shape[1]


def test_inputs_that_do_not_fit_are_refused_in_one_line(artifact: Path) -> None:
    with pytest.raises(RuntimeRefusedError, match=r"model\.onnx"):
        eqdeploy.open_artifact(artifact).run(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize("name", ["model.onnx", "encodings.json", "report.json", "config.json"])
def test_a_changed_file_is_found(artifact: Path, name: str) -> None:
    (artifact / name).write_bytes((artifact / name).read_bytes() + b" ")
    with pytest.raises(ValidationError, match=f"{name} "):
        eqdeploy.open_artifact(artifact)


def test_nothing_of_the_folder_is_executed(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is a project file obeyed nor a module imported, though the working directory is the artifact."""
    trap = tmp_path / "trapped"
    (artifact / "onnxruntime.py").write_text(f"open({str(trap)!r}, 'w')")
    (artifact / "json.py").write_text(f"open({str(trap)!r}, 'w')")
    (artifact / "eqdeploy.yaml").write_text("model: json:loads\n")
    write_manifest(artifact, provenance(artifact))
    monkeypatch.chdir(artifact)
    opened = eqdeploy.open_artifact(".")
    opened.run(opened.preprocessing.example(1))
    assert not trap.exists()


def test_data_outside_of_the_folder_are_not_read(artifact: Path) -> None:
    """Whoever writes the model writes its manifest, too."""
    model = onnx.load(artifact / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.dims)
    (artifact.parent / "secret").write_bytes(numpy_helper.to_array(tensor).tobytes())
    set_external_data(tensor, "../secret")
    tensor.ClearField("raw_data")
    onnx.save(model, artifact / "model.onnx")
    write_manifest(artifact, provenance(artifact))
    opened = eqdeploy.open_artifact(artifact)
    with pytest.raises(ValidationError, match=r"model\.onnx"):
        opened.run(opened.preprocessing.example(1))


def edited(artifact: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the table of encodings and the manifest with it, as somebody who can write every file would."""
    path = artifact / "encodings.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    write_manifest(artifact, provenance(artifact))


@pytest.mark.parametrize(
    "entry",
    [
        {"scale": "1", "zero_point": 0},
        {"scale": 1.0, "zero_point": 0.5},
        {"scale": -1.0, "zero_point": 0},
        {"scale": [1.0], "zero_point": 0},
        {"scale": [[1.0], [1.0, 2.0]], "zero_point": 0},
        {"scale": 1.0, "zero_point": 1 << 40},
        {"scale": 1.0, "zero_point": 0, "bits": "8"},
        {"scale": 1.0, "zero_point": 0, "bits": 1 << 34},
        {"scale": 1e300, "zero_point": 0},
        {"scale": 1.0, "zero_point": 0, "axis": 1.5},
        {},
        None,
        [],
    ],
)
def test_an_encoding_that_is_none_is_refused(artifact: Path, entry: Any) -> None:
    rest = {"bits": 8, "signed": False, "q_min": 0, "q_max": 255, "axis": None}
    made = {**rest, **entry} if entry else entry
    edited(artifact, lambda table: table["activations"].update(fc=made))
    with pytest.raises(ValidationError, match=r"encodings\.json: fc: not an encoding"):
        eqdeploy.open_artifact(artifact)


def test_another_origin_is_refused(artifact: Path) -> None:
    write_manifest(artifact, provenance(artifact).model_copy(update={"seed": 1}))
    with pytest.raises(ValidationError, match="disagree about the origin"):
        eqdeploy.open_artifact(artifact)
