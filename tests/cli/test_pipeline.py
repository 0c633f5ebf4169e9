"""The whole way from the shipped supernet to a proven artifact, as a user walks it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eqdeploy.manifest import verify_manifest
from eqdeploy.report import ArtifactReport, read_report

ROOT = Path(__file__).resolve().parents[2]
PROFILE = "snpe-dsp"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the profile was exported once, with nothing but defaults."""
    folder = tmp_path_factory.mktemp("project")
    done = subprocess.run(
        [sys.executable, "-m", "eqdeploy", "export", "--profile", PROFILE, "--json", "export.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"{PROFILE}: valid" in done.stdout
    assert f"written to build/{PROFILE}" in done.stdout
    assert "comparing" in done.stderr
    return folder


@pytest.fixture
def artifact(project: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    return shutil.copytree(project / "build" / PROFILE, tmp_path / "build" / PROFILE)


def result_of(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)["result"]


def test_export(project: Path) -> None:
    folder = project / "build" / PROFILE
    manifest = verify_manifest(folder)
    assert {"model.onnx", "report.json"} <= set(manifest.files)
    assert manifest.provenance.profile == PROFILE
    report = read_report(folder)
    document = json.loads((project / "export.json").read_text())
    assert (document["command"], document["exit_code"]) == ("export", 0)
    (exported,) = document["result"]
    assert exported["directory"] == f"build/{PROFILE}"
    assert ArtifactReport.from_json(json.dumps(exported["report"]), where="export.json") == report
    assert sorted(path.name for path in project.iterdir()) == ["build", "export.json"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [PROFILE]


def test_nothing_in_the_files_tells_where_or_when_they_were_written(project: Path) -> None:
    for path in (path for path in (project / "build" / PROFILE).rglob("*") if path.is_file()):
        assert str(project).encode() not in path.read_bytes(), path.name


def keys(value: object, below: str = "") -> set[str]:
    """All keys of a document but those that are names of tensors or operators."""
    if isinstance(value, list):
        return {key for item in value for key in keys(item)}
    if not isinstance(value, dict):
        return set()
    own = set() if below in ("differing_tensors", "fused") else set(value)
    return own.union(*(keys(item, key) for key, item in value.items()))


def test_every_key_of_a_real_report_is_documented(project: Path) -> None:
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "report.md").read_text(encoding="utf-8")))
    document = json.loads((project / "build" / PROFILE / "report.json").read_text())
    assert keys(document) - documented == set()


def test_exporting_again_needs_force_and_gives_the_same_bytes(eqdeploy: Run, artifact: Path, project: Path) -> None:
    done = eqdeploy("export", "--profile", PROFILE)
    assert (done.returncode, done.stdout) == (41, "")
    assert "--force" in done.stderr
    (artifact / "model.onnx").write_bytes(b"old")
    done = eqdeploy("export", "--profile", PROFILE, "--force", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    first = project / "build" / PROFILE
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(artifact) for path in artifact.rglob("*") if path.is_file())
    for name in files:
        assert (artifact / name).read_bytes() == (first / name).read_bytes(), name


def test_a_missed_gate_is_told_with_its_report(eqdeploy: Run) -> None:
    done = eqdeploy("export", "--profile", PROFILE, "--min-accuracy", "1", "--json", "-")
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"] == 22
    assert document["error"]["type"] == "AccuracyError"
    (exported,) = document["result"]
    assert exported["report"]["verdict"] == "failed"
    assert exported["report"]["accuracy"]["status"] == "failed"
    assert exported["report"]["parity"]["status"] == "passed"


def test_validate(eqdeploy: Run, artifact: Path) -> None:
    done = eqdeploy("validate", artifact, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert result_of(done)["verdict"] == "valid"


def test_validate_finds_a_changed_file_first(eqdeploy: Run, artifact: Path) -> None:
    content = bytearray((artifact / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / "model.onnx").write_bytes(bytes(content))
    done = eqdeploy("validate", artifact)
    assert (done.returncode, done.stdout) == (21, "")
    assert "model.onnx was changed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_resolve_gives_a_subnet_that_export_takes(eqdeploy: Run, tmp_path: Path, project: Path) -> None:
    resolved = result_of(eqdeploy("resolve", "--profile", PROFILE, "--json", "-"))
    assert all(row["reason"] for row in (*resolved["plan"]["weights"], *resolved["plan"]["tensors"]))
    (tmp_path / "subnet.json").write_text(json.dumps(resolved["subnet"]))
    done = eqdeploy("export", "--profile", PROFILE, "--subnet", "subnet.json", "-o", "out", "-q", "--json", "-")
    (exported,) = result_of(done)
    assert exported["directory"] == f"out/{PROFILE}"
    digest = read_report(project / "build" / PROFILE).provenance.subnet_digest
    assert exported["report"]["provenance"]["subnet_digest"] == digest
    forms = [
        [(row["layer"], row["device"]) for row in plan["weights"]]
        for plan in (resolved["plan"], exported["report"]["plan"])
    ]
    assert forms[0] == forms[1]


def test_eval(eqdeploy: Run, artifact: Path) -> None:
    for arguments in ((artifact,), ("--profile", PROFILE), ()):
        (*_, row) = result_of(eqdeploy("eval", *arguments, "--json", "-"))["rows"]
        assert row["accuracy"] == row["correct"] / row["images"]
        assert row["accuracy"] > 0.9
    done = eqdeploy("eval", artifact, "--min-accuracy", "1")
    assert done.returncode == 22
    assert "accuracy" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_project_file_and_flags(eqdeploy: Run, tmp_path: Path) -> None:
    (tmp_path / "eqdeploy.yaml").write_text(f"profiles: [{PROFILE}, tensorrt]\noutput: artifacts\nmin_accuracy: 1.0\n")
    done = eqdeploy("export", "--profile", "onnxruntime-x86", "--min-accuracy", "0.5", "-q")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["onnxruntime-x86"]
    assert eqdeploy("resolve").returncode == 2  # two profiles


def test_every_profile_at_once(eqdeploy: Run, tmp_path: Path) -> None:
    names = ("onnxruntime-w4a4", "onnxruntime-w2a4", "tensorrt")
    done = eqdeploy("export", *(word for name in names for word in ("--profile", name)), "--json", "-")
    assert done.returncode == 0, done.stderr
    assert [entry["report"]["verdict"] for entry in result_of(done)] == ["valid"] * 3
    for name in names:
        verify_manifest(tmp_path / "build" / name)


def test_a_supernet_that_is_none(eqdeploy: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    done = eqdeploy("export", "--profile", PROFILE, "--supernet", "broken.safetensors")
    assert (done.returncode, done.stdout) == (11, "")
    assert done.stderr.splitlines()[-1].startswith("error: broken.safetensors")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "build").exists()
