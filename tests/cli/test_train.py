"""``eqdeploy train`` from the command line: float weights in and out, in parts, and what is said about mistakes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.unit.training_support import settings, write_images

Run = Callable[..., subprocess.CompletedProcess[str]]

MLP = {"architecture": "mlp", "arguments": {"classes": 4, "width": 16}}


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A training of seconds, in the working directory."""
    write_images(tmp_path / "images")
    return write(tmp_path / "small.yaml")


def write(path: Path, **changes: Any) -> Path:
    plain = settings(Path("images"), model=MLP, space={"bits": [4, 8]}, float_training={"epochs": 4})
    path.write_text(yaml.safe_dump({**plain, **changes}))
    return path


def result_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["result"]


def assert_refused(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0]
    assert all(word in errors[0] for word in words), done.stderr


def test_the_float_network_first_and_then_the_supernet(eqdeploy: Run, configuration: Path, tmp_path: Path) -> None:
    command = ("train", "small.yaml", "--out", "run")
    first = result_of(eqdeploy(*command, "--float-only", "--json", "-"))
    assert (first["checkpoint"], first["float_weights"], first["epochs"]) == (None, "run/float.safetensors", 4)
    assert [row["name"] for row in first["rows"]] == ["float, before quantization-aware training"]
    assert_refused(eqdeploy(*command), 41, "run/state.safetensors", "unfinished training", "resume")

    second = result_of(eqdeploy(*command, "--resume", "--json", "-"))
    assert (second["checkpoint"], second["epochs"]) == ("run/supernet.safetensors", 6)
    assert second["rows"][0] == first["rows"][0]
    assert len(second["rows"]) == 2 + 2 * 4
    assert not (tmp_path / "run" / "state.safetensors").exists()

    # Its weights are a plain state dictionary; another run starts from them, and is as good without training.
    state = load_file(tmp_path / "run" / "float.safetensors")
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    write(tmp_path / "frozen.yaml", float_training={"epochs": 0, "batch_size": 16})
    again = eqdeploy(
        "train", "frozen.yaml", "--out", "again", "--float-only", "--weights", "run/float.safetensors", "--json", "-"
    )
    assert result_of(again)["rows"][0] == first["rows"][0]


def test_a_checkpoint_without_probes_says_that_a_check_is_skipped(eqdeploy: Run, configuration: Path) -> None:
    for count, words in ((0, "run0/supernet.safetensors: the checkpoint holds no probes: skipped the check"), (2, "")):
        trained = eqdeploy("train", "small.yaml", "--out", f"run{count}", "--probes", str(count))
        assert trained.returncode == 0, trained.stderr
        done = eqdeploy("eval", "--supernet", f"run{count}/supernet.safetensors", "--data", "images")
        assert done.returncode == 0, done.stderr
        assert words in done.stderr
        assert ("probes" in done.stderr) == bool(words)
    assert_refused(eqdeploy("train", "small.yaml", "--out", "run", "--probes", "65"), 10, "probes", "64")


def test_the_text_names_the_float_weights(eqdeploy: Run, configuration: Path) -> None:
    done = eqdeploy("train", "small.yaml", "--out", "run", "--float-only")
    assert done.returncode == 0, done.stderr
    assert "run/float.safetensors" in done.stdout
    assert "None" not in done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.safetensors", ("cannot read the weights", "No such file")),
        ("pickled.pth", ("cannot read the weights", "pickles are not read", "safetensors.torch.save_file")),
        ("other.safetensors", ("do not fit the model", "is missing", "more.weight is unexpected")),
    ],
)
def test_weights_that_do_not_fit(
    eqdeploy: Run, configuration: Path, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickled.pth")
    save_file({"more.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    done = eqdeploy("train", "small.yaml", "--out", "run", "--weights", name)
    assert_refused(done, 11, name, *words)
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges(eqdeploy: Run, configuration: Path, tmp_path: Path) -> None:
    phase = {"epochs": 4, "batch_size": 16, "learning_rate": 1000.0, "optimizer": "sgd", "weight_decay": 1000.0}
    write(tmp_path / "small.yaml", float_training=phase)
    done = eqdeploy("train", "small.yaml", "--out", "run")
    assert_refused(done, 50, "step", "lower learning rate")
    assert not (tmp_path / "run" / "supernet.safetensors").exists()
