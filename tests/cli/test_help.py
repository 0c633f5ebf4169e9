"""Help is complete and costs nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from eqdeploy import __version__
from eqdeploy.cli.application import application

Run = Callable[..., subprocess.CompletedProcess[str]]

HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "numpy", "yaml", "safetensors", "rich")

#: The stable surface: every command with its options.
COMMON = {"--json", "-q", "--quiet", "-v", "--verbose", "--debug", "-h", "--help"}
SUPERNET = {"--supernet", "--model"}
GATES = {"--min-accuracy", "--max-drop"}
ARTIFACT_GATES = GATES | {"--max-export-drop", "--min-agreement", "--min-sqnr", "--max-float-share"}
SEARCH = {"--budget", "--predictor", "--latency", "--measurements", "--samples"}
COMMANDS: dict[tuple[str, ...], set[str]] = {
    ("export",): SUPERNET
    | ARTIFACT_GATES
    | SEARCH
    | {"--profile", "-o", "--out", "--data", "--subnet", "--search", "--dynamic-size", "--strict", "--force", "--seed"},
    ("resolve",): SUPERNET | {"--profile", "--subnet"},
    ("validate",): SUPERNET | ARTIFACT_GATES | {"--data", "--seed"},
    ("eval",): SUPERNET | GATES | {"--data", "--profile", "--subnet", "--seed"},
    ("train",): {
        *(
            "-o",
            "--out",
            "--model",
            "--data",
            "--loss",
            "--seed",
            "--weights",
            "--supernet",
            "--float-only",
            "--probes",
            "--tensorboard",
        ),
        *("--resume", "--force"),
    },
    ("sample",): SUPERNET
    | {"--count", "-o", "--output", "--data", "--images", "--calibration-images", "--forms", "--seed"},
    ("fit",): {"-o", "--output", "--target", "--held-out", "--seed", "--force"},
    ("search",): SUPERNET
    | SEARCH
    | {"--profile", "-o", "--out", "--data", "--keep", "--front", "--population", "--generations", "--force", "--seed"},
    ("latency",): SUPERNET | {"--profile", "-o", "--output", "--runs", "--threads", "--force"},
    ("inspect",): set(),
    ("profiles", "list"): set(),
    ("profiles", "show"): set(),
    ("profiles", "validate"): set(),
}


def test_help_imports_nothing_heavy(tmp_path: Path, environment: dict[str, str]) -> None:
    commands = [(), ("profiles",), *COMMANDS]
    script = (
        "import json, sys\n"
        "from eqdeploy.cli.entry import run\n"
        f"codes = [run([*command, '--help']) for command in {commands!r}]\n"
        f"json.dump([codes, sorted(set({HEAVY!r}) & set(sys.modules))], sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stderr) == [[0] * len(commands), []]
    for command in commands:
        assert f"Usage: {' '.join(('eqdeploy', *command))} [" in done.stdout
    assert not re.search(r"\d{10}", done.stdout)  # limits that come from a type tell a reader nothing


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_its_stable_options(command: tuple[str, ...]) -> None:
    found: Any = get_command(application)
    for name in command:
        found = found.commands[name]
    options = {spelling for parameter in found.params for spelling in parameter.opts if spelling.startswith("-")}
    assert options | {"-h", "--help"} == COMMANDS[command] | COMMON


def test_no_other_command() -> None:
    group: Any = get_command(application)
    assert set(group.commands) == {names[0] for names in COMMANDS}
    assert set(group.commands["profiles"].commands) == {names[1] for names in COMMANDS if len(names) == 2}


def test_version(eqdeploy: Run) -> None:
    done = eqdeploy("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"eqdeploy {__version__}\n", "")
