"""Nothing in an artifact is executed, and nothing outside of it is read, whoever made it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from eqdeploy.errors import DataError, UsageError, ValidationError
from eqdeploy.manifest import enclosing_artifact, read_manifest, write_manifest
from eqdeploy.project import ProjectSettings, load_project
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
