"""Nothing in an artifact is executed, and nothing outside of it is read, whoever made it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from eqdeploy.artifact_folders import enclosing_artifact
from eqdeploy.errors import DataError, UsageError, ValidationError
from eqdeploy.manifest import read_manifest, write_manifest
from eqdeploy.pipeline.records import read_records
from eqdeploy.project import ProjectSettings, load_project
from eqdeploy.report import FileCheck, read_report
from eqdeploy.user_code import import_attribute, working_directory_importable

Run = Callable[..., subprocess.CompletedProcess[str]]


def plant(folder: Path) -> Path:
    """Put a project file into a folder that names code, and that code; return the file that shows that it ran."""
    mark = folder.parent / "EXECUTED"
    (folder / "eqdeploy.yaml").write_text("model: payload:make\n")
    (folder / "payload.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "def make():\n    from eqdeploy.zoo import build\n    return build('digits-resnet', {})\n"
    )
    return mark


def renew_manifest(folder: Path) -> None:
    """Make the manifest agree with the files, as somebody who changes them would."""
    write_manifest(folder, read_manifest(folder).provenance)


def test_validate_inside_an_artifact_imports_nothing_from_it(eqdeploy: Run, artifact: Path) -> None:
    mark = plant(artifact)
    renew_manifest(artifact)
    done = eqdeploy("validate", ".", cwd=artifact)
    assert done.returncode == ValidationError.exit_code, done.stderr
    assert "eqdeploy.yaml is not read: it lies in the artifact" in done.stderr
    assert not mark.exists()
    done = eqdeploy("resolve", "-q", "--profile", "snpe-dsp", "--model", "payload:make", cwd=artifact)
    assert done.returncode == UsageError.exit_code
    assert "nothing in the artifact" in done.stderr
    assert not mark.exists()


def test_a_project_file_around_an_artifact_names_no_code_for_validate(eqdeploy: Run, artifact: Path) -> None:
    mark = plant(artifact.parent)
    assert eqdeploy("validate", "-q", artifact, cwd=artifact.parent).returncode == 0
    assert eqdeploy("eval", "-q", artifact, cwd=artifact.parent).returncode == 0
    assert not mark.exists()
    done = eqdeploy("resolve", "-q", "--profile", "snpe-dsp", cwd=artifact.parent)
    assert done.returncode == 0, done.stderr
    assert mark.exists()  # a project of the user's own may name a model


def test_data_that_an_artifact_names_by_a_path_are_not_read(eqdeploy: Run, artifact: Path) -> None:
    for name in ("config.json", "report.json", "manifest.json"):
        path = artifact / name
        document = json.loads(path.read_text())
        (document if name == "config.json" else document["provenance"])["data"] = "/dev/zero"
        path.write_text(json.dumps(document, indent=2))
    renew_manifest(artifact)
    done = eqdeploy("validate", "-q", artifact)
    assert done.returncode == DataError.exit_code
    assert "/dev/zero: the artifact names data by a path" in done.stderr


def test_an_artifact_is_found_around_a_folder(tmp_path: Path) -> None:
    inner = tmp_path / "artifact" / "snpe"
    inner.mkdir(parents=True)
    assert enclosing_artifact(inner) is None
    (tmp_path / "artifact" / "manifest.json").write_text('{"name": "a web application"}')
    assert enclosing_artifact(inner) is None
    (tmp_path / "artifact" / "manifest.json").write_text('{"artifact": "eqdeploy", damaged')
    assert enclosing_artifact(inner) == enclosing_artifact(inner.parent) == tmp_path / "artifact"
    assert enclosing_artifact(tmp_path) is None


def test_a_project_file_in_an_artifact_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "eqdeploy.yaml").write_text("seed: 3\n")
    notes: list[str] = []
    assert load_project(tmp_path, notes.append).seed == 3
    (tmp_path / "manifest.json").write_text('{"artifact": "eqdeploy"}')
    assert load_project(tmp_path, notes.append) == ProjectSettings()
    assert len(notes) == 1


def test_modules_in_an_artifact_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted_module.py").write_text("def make(): ...\n")
    (tmp_path / "manifest.json").write_text('{"artifact": "eqdeploy"}')
    with working_directory_importable(), pytest.raises(UsageError, match="nothing in the artifact"):
        import_attribute("planted_module:make")
    (tmp_path / "manifest.json").unlink()
    with working_directory_importable():
        assert callable(import_attribute("planted_module:make"))


def duplicate_an_encoding(artifact: Path) -> None:
    path = artifact / "snpe" / "model.encodings"
    text = path.read_text()
    entry = json.dumps(json.loads(text)["activation_encodings"]["block1_relu"])
    path.write_text(text.replace('"activation_encodings": {', f'"activation_encodings": {{"block1_relu": {entry},', 1))


def describe_a_node(artifact: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    model.graph.node[0].doc_string = "not the exporter's"
    onnx.save(model, artifact / "model.onnx")


def change_a_float_bias_for_the_device(artifact: Path) -> None:
    path = artifact / "snpe" / "model.onnx"
    model = onnx.load(path)
    model.graph.value_info[0].type.tensor_type.shape.dim[0].dim_value += 1
    path.write_bytes(model.SerializeToString())


FOREIGN: list[tuple[Callable[[Path], object], str]] = [
    (lambda a: (a / "snpe" / "convert.sh").write_text("#!/bin/sh\n"), "snpe/convert.sh: is not what the model"),
    (lambda a: (a / "snpe" / "convert.sh").unlink(), "snpe/convert.sh: is missing"),
    (lambda a: (a / "README.md").write_text("Run setup.sh."), "README.md: belongs to no artifact"),
    (lambda a: (a / "snpe" / "model.onnx.data").write_bytes(b"1"), "snpe/model.onnx.data: belongs to no artifact"),
    (lambda a: shutil.copytree(a / "snpe", a / "search"), "belongs to no artifact"),
    (duplicate_an_encoding, "the key 'block1_relu' occurs twice"),
    (describe_a_node, "model.onnx: is not what the model in model.onnx gives"),
    (change_a_float_bias_for_the_device, "snpe/model.onnx"),
]


@pytest.mark.parametrize(("change", "message"), FOREIGN, ids=[message for _, message in FOREIGN])
def test_every_file_is_what_the_model_gives(artifact: Path, change: Callable[[Path], object], message: str) -> None:
    change(artifact)
    renew_manifest(artifact)
    with pytest.raises(ValidationError, match=re.escape(message)):
        read_records(artifact)


def test_the_report_says_of_every_file_what_is_known_of_it(project: Path) -> None:
    folder = project / "build" / "snpe-dsp"
    rows = {row.file: row for row in read_report(folder).files}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(rows) == files
    assert {name for name, row in rows.items() if row.check is FileCheck.REDERIVED} == {
        "encodings.json",
        "model.onnx",
        "snpe/convert.sh",
        "snpe/model.encodings",
        "snpe/model.onnx",
    }
    assert all(row.detail for row in rows.values())


def with_external_data(artifact: Path, location: str, data: Path) -> None:
    """Move a tensor of the model into another file."""
    model = onnx.load(artifact / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.weight")
    data.write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (artifact / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "folder of links"])
def test_nothing_outside_of_an_artifact_is_read(eqdeploy: Run, artifact: Path, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    location = {"parent": "../../outside/w", "absolute": str(outside / "w"), "folder of links": "inner/w"}.get(
        kind, "w"
    )
    with_external_data(artifact, location, outside / "w")
    if kind == "link":
        (artifact / "w").symlink_to(outside / "w")
    elif kind == "folder of links":
        (artifact / "inner").symlink_to(outside)
    if "link" not in kind:
        renew_manifest(artifact)
        with pytest.raises(ValidationError, match="outside"):
            read_records(artifact)
    done = eqdeploy("eval", "-q", artifact)
    assert done.returncode in (UsageError.exit_code, ValidationError.exit_code), done.stdout
    assert len(done.stderr.splitlines()) == 1
