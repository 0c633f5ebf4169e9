"""Importing is cheap, and exporters stay free of torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def loaded_by(statement: str, folder: Path) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_the_package_itself_imports_nothing(tmp_path: Path) -> None:
    assert not loaded_by("import eqdeploy", tmp_path) & {
        "torch",
        "onnx",
        "onnxruntime",
        "numpy",
        "rich",
        "yaml",
        "pydantic",
    }


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "exporters").glob("*.py")))
def test_exporters_never_import_torch(module: str, tmp_path: Path) -> None:
    name = "eqdeploy.exporters" if module == "__init__" else f"eqdeploy.exporters.{module}"
    loaded = loaded_by(f"import {name}", tmp_path)
    assert not loaded & {"torch", "onnxruntime"}


def test_exporters_under_another_name_are_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import exporters"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "eqdeploy.exporters" in done.stderr
