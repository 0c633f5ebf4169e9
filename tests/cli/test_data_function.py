"""Data from a function of the user's own: run when the command line names it, never when a file does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REFERENCE = "own_digits:digits"
PROFILE = "onnxruntime-x86"

#: Leaves a file behind as soon as it is imported.
MODULE = """
from pathlib import Path

from eqdeploy.data import DIGITS_PREPROCESSING, load_data

Path("imported").touch()


def digits(split):
    data = load_data("digits", split=split, preprocessing=DIGITS_PREPROCESSING, limit=200)
    return {"images": data.images, "labels": data.labels, "classes": list(data.classes)}
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that appears when the user's module is imported."""
    (tmp_path / "own_digits.py").write_text(MODULE)
    return tmp_path / "imported"


def assert_refused(done: subprocess.CompletedProcess[str], marker: Path) -> None:
    assert done.returncode == 2, done.stderr
    assert f"{REFERENCE}: names code, which is run only when the command line asks for it" in done.stderr
    assert f"--data {REFERENCE}" in done.stderr
    assert not marker.exists()


def test_of_an_artifact(eqdeploy: Run, tmp_path: Path, marker: Path) -> None:
    done = eqdeploy("export", "--profile", PROFILE, "--data", REFERENCE)
    assert done.returncode == 0, done.stderr
    assert marker.exists()
    folder = tmp_path / "build" / PROFILE
    assert json.loads((folder / "config.json").read_text())["data"] == REFERENCE
    marker.unlink()
    assert_refused(eqdeploy("validate", folder), marker)
    done = eqdeploy("validate", folder, "--data", REFERENCE)
    assert done.returncode == 0, done.stderr
    marker.unlink()
    (tmp_path / "eqdeploy.yaml").write_text(f"data: {REFERENCE}\n")
    assert_refused(eqdeploy("validate", folder), marker)
    assert_refused(eqdeploy("eval", folder), marker)
    done = eqdeploy("eval", folder, "--data", REFERENCE)
    assert done.returncode == 0, done.stderr
    assert "exported" in done.stdout


def test_of_a_supernet(eqdeploy: Run, tmp_path: Path, marker: Path) -> None:
    (tmp_path / "eqdeploy.yaml").write_text(f"data: {REFERENCE}\nprofiles: {PROFILE}\n")
    assert_refused(eqdeploy("eval"), marker)
    assert_refused(eqdeploy("export"), marker)
    done = eqdeploy("eval", "--data", REFERENCE)
    assert done.returncode == 0, done.stderr
    assert marker.exists()
