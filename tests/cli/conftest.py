"""Running the command line as a user does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: What the fixture ``project`` exports.
PROFILE = "snpe-dsp"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment() -> dict[str, str]:
    """Environment in which the checkout is importable from any working directory."""
    kept = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
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


@pytest.fixture
def eqdeploy(tmp_path: Path, environment: dict[str, str]) -> Run:
    """Run ``eqdeploy`` with the given arguments in an empty working directory."""

    def run(
        *arguments: str | Path, variables: Mapping[str, str] | None = None, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "eqdeploy", *map(str, arguments)],
            cwd=cwd,
            env={**environment, **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
