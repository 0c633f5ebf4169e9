"""``python -m eqdeploy`` in a folder of somebody else's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Modules of the standard library and of dependencies that the commands import.
NAMES = (
    "json",
    "signal",
    "traceback",
    "pathlib",
    "typing",
    "tempfile",
    "typer",
    "rich",
    "yaml",
    "numpy",
    "torch",
    "onnx",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory whose modules bear the names of modules that the program needs."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working directory was executed')\n")
    return folder


@pytest.mark.parametrize("options", [(), ("-P",)], ids=["plain", "safe_path"])
def test_modules_of_the_working_directory_are_not_imported(
    options: tuple[str, ...], folder: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, *options, "-m", "eqdeploy", "resolve", "-q", "--profile", "onnxruntime-x86"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "onnxruntime-x86" in done.stdout


def test_what_the_user_names_is_imported_from_the_working_directory(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "mine.py").write_text("def make():\n    raise RuntimeError('this is mine')\n")
    command = [sys.executable, "-m", "eqdeploy", "resolve", "--profile", "onnxruntime-x86", "--model", "mine:make"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "this is mine" in done.stderr
