"""Every example runs as its README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    finished = subprocess.run(
        arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_own_model(tmp_path: Path, environment: dict[str, str]) -> None:
    output = run([sys.executable, str(EXAMPLES / "own_model.py"), str(tmp_path / "out")], tmp_path, environment)
    for profile in ("snpe-dsp", "onnxruntime-w4a4"):
        report = json.loads((tmp_path / "out" / profile / "report.json").read_text(encoding="utf-8"))
        assert report["verdict"] == "valid"
        accuracy = {row["name"]: row["accuracy"] for row in report["accuracy"]["details"]["rows"]}
        assert accuracy["exported"] > 0.7  # ten classes; five epochs from nothing
        assert f"{profile}: valid" in output


def test_own_device(tmp_path: Path, environment: dict[str, str]) -> None:
    profile = EXAMPLES / "fpga-w3a4.yaml"
    run([sys.executable, "-m", "eqdeploy", "export", "--profile", str(profile), "-o", "out"], tmp_path, environment)
    encodings = json.loads((tmp_path / "out" / "fpga-w3a4" / "encodings.json").read_text(encoding="utf-8"))
    weights = {name: entry for name, entry in encodings["parameters"].items() if name.endswith(".weight")}
    widths = [entry["bits"] for entry in weights.values()]
    assert widths.count(8) == 2  # the first and the last layer
    assert set(widths) == {3, 8}


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_ci_gate(tmp_path: Path, environment: dict[str, str]) -> None:
    command = tmp_path / "bin" / "eqdeploy"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m eqdeploy "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    environment["PATH"] = f"{command.parent}{os.pathsep}{environment['PATH']}"
    output = run(["bash", str(EXAMPLES / "ci-gate.sh"), str(tmp_path / "out")], tmp_path, environment)
    assert [line.split(": ")[1].split(",")[0] for line in output.splitlines() if "out/" in line and ": " in line][
        -3:
    ] == ["valid"] * 3


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        if path.name not in ("README.md", "own_model.train.yaml", "__pycache__"):
            assert f"({path.name})" in listed
