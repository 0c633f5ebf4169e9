"""A hostile file ends with one line, whatever it asks for; a model that is running can always be ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eqdeploy.errors import LimitError, UsageError
from tests.cli.hostile_models import asks_for_memory, nests_functions, never_ends

Run = Callable[..., subprocess.CompletedProcess[str]]

MEMORY = {"EQDEPLOY_MEMORY_LIMIT": "1GiB"}


def test_a_model_that_asks_for_memory(eqdeploy: Run, tmp_path: Path) -> None:
    asks_for_memory(tmp_path / "large.onnx", 3 << 29)
    done = eqdeploy("eval", "-q", "large.onnx", "--json", "-", variables=MEMORY)
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"] == LimitError.exit_code, done.stderr
    assert document["error"]["type"] == "LimitError"
    assert done.stderr.startswith("error: large.onnx: ONNX Runtime")
    assert "needs more memory than the limit of 1.0 GiB (EQDEPLOY_MEMORY_LIMIT sets it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_that_never_ends_follows_ctrl_c(environment: dict[str, str], tmp_path: Path) -> None:
    never_ends(tmp_path / "endless.onnx")
    with subprocess.Popen(
        [sys.executable, "-m", "eqdeploy", "eval", "endless.onnx", "--json", "-"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("loading endless.onnx"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        text, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "error: interrupted\n")
    assert json.loads(text)["command"] == "eval"


def test_a_model_that_takes_forever_to_load(eqdeploy: Run, tmp_path: Path) -> None:
    nests_functions(tmp_path / "nested.onnx", 40)
    done = eqdeploy("eval", "-q", "nested.onnx", variables={"EQDEPLOY_TIMEOUT": "4"})
    assert done.returncode == LimitError.exit_code
    assert done.stderr.startswith("error: no progress for 4 seconds (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "command"),
    [
        ("EQDEPLOY_MEMORY_LIMIT", ("inspect", "x.onnx")),
        ("EQDEPLOY_TIMEOUT", ("inspect", "x.onnx")),
        ("EQDEPLOY_MEMORY_LIMIT", ("train", "x.yaml")),
        ("EQDEPLOY_TIMEOUT", ("profiles", "show", "x.yaml")),
    ],
)
def test_a_limit_that_is_none(eqdeploy: Run, variable: str, command: tuple[str, ...]) -> None:
    done = eqdeploy(*command, variables={variable: "lots"})
    assert done.returncode == UsageError.exit_code
    assert done.stderr.startswith(f"error: {variable}: 'lots' is not a ")
