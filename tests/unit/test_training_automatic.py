"""How steps are computed where the configuration leaves it open: what is decided, and that a run keeps to it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from eqdeploy.errors import CheckpointError
from eqdeploy.training import automatic
from eqdeploy.training.automatic import Decision, Workload, decide
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.execution import StepMode
from eqdeploy.training.settings import ExecutionSettings, Precision
from eqdeploy.training.trainer import train
from tests.unit.training_support import (
    Interrupter,
    Listener,
    configuration,
    files,
    small_model,
    small_supernet,
    write_images,
)

CPU = torch.device("cpu")
AUTO = {"precision": "auto", "channels_last": "auto", "compile": "auto"}
FLOAT, BFLOAT16 = Precision.FLOAT32, Precision.BFLOAT16
LONG = Workload(float_passes=1000, elastic_passes=3000, batch_size=16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


def pretend(monkeypatch: pytest.MonkeyPatch, times: dict[tuple[Precision, bool], float], elastic: float) -> None:
    """Let passes take given seconds in each precision and layout, and with quantizers."""
    monkeypatch.setattr(automatic, "compiler_available", lambda: True)
    monkeypatch.setattr(automatic._Passes, "size", lambda self, mode, largest: (largest, times[FLOAT, False]))
    monkeypatch.setattr(
        automatic._Passes,
        "times",
        lambda self, modes, count: {mode: times[mode.precision, mode.channels_last] for mode in modes},
    )
    monkeypatch.setattr(automatic._Passes, "elastic", lambda self, mode, count: elastic)


@pytest.mark.parametrize(
    ("times", "elastic", "expected"),
    [
        ((1.0, 0.7, 0.5, 0.3), 0.6, StepMode(BFLOAT16, True, True)),
        ((1.0, 0.7, 1.5, 1.3), 1.6, StepMode(FLOAT, True, True)),  # a processor that emulates bfloat16
        ((1.0, 1.2, 0.5, 0.6), 1.6, StepMode(BFLOAT16, False, True)),
        ((1.0, 0.97, 0.95, 0.93), 2.0, StepMode(FLOAT, False, True)),  # ties are not worth anything
        ((1.0, 0.7, 0.5, 0.3), 0.361, StepMode(BFLOAT16, True, False)),  # quantizers take next to nothing
    ],
)
def test_the_fastest_mode_is_taken(
    monkeypatch: pytest.MonkeyPatch, times: tuple[float, ...], elastic: float, expected: StepMode
) -> None:
    modes = [(FLOAT, False), (FLOAT, True), (BFLOAT16, False), (BFLOAT16, True)]
    pretend(monkeypatch, dict(zip(modes, times, strict=True)), elastic)
    assert decide(small_supernet(), ExecutionSettings(), LONG, CPU).mode == expected


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, dict.fromkeys([(FLOAT, False), (FLOAT, True), (BFLOAT16, False), (BFLOAT16, True)], 1.0), 9.0)
    assert decide(small_supernet(), ExecutionSettings(), LONG, CPU).mode.compile
    monkeypatch.setattr(automatic, "compiler_available", lambda: False)
    assert not decide(small_supernet(), ExecutionSettings(), LONG, CPU).mode.compile


def test_what_is_set_is_not_measured_away(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = [(FLOAT, False), (FLOAT, True), (BFLOAT16, False), (BFLOAT16, True)]
    pretend(monkeypatch, dict(zip(modes, (1.0, 0.7, 0.5, 0.3), strict=True)), 9.0)
    for settings, expected in (
        (ExecutionSettings(precision=FLOAT), StepMode(FLOAT, True, True)),
        (ExecutionSettings(channels_last=False), StepMode(BFLOAT16, False, True)),
        (ExecutionSettings(compile=False), StepMode(BFLOAT16, True, False)),
    ):
        assert decide(small_supernet(), settings, LONG, CPU).mode == expected


def test_a_short_run_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Workload(float_passes=1, elastic_passes=3, batch_size=16)
    assert decide(small_supernet(), ExecutionSettings(), short, CPU) == Decision(
        StepMode(FLOAT, False, False), "the run is short"
    )


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    monkeypatch.setattr(automatic, "WORTHWHILE_SECONDS", 0.0)
    supernet = small_supernet().train(training)
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    decision = decide(supernet, ExecutionSettings(), LONG, CPU)
    assert torch.equal(torch.rand(1), expected)
    assert supernet.training is training
    assert "measured in" in decision.reason
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert all(quantizer.active is None for quantizer in supernet.activation_quantizers().values())


def test_a_resumed_run_keeps_to_what_was_decided(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(data, execution=AUTO)
    mode = StepMode(BFLOAT16, channels_last=True, compile=False)
    monkeypatch.setattr("eqdeploy.training.trainer.decide", lambda *arguments: Decision(mode, "it is"))
    listener = Listener()
    train(config, tmp_path / "straight", model=small_model(), progress=listener)
    assert "steps are computed in bfloat16, channels last, not compiled: it is" in listener.notes
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", model=small_model(), progress=Interrupter(3, "supernet"))

    def fail(*arguments: Any) -> Decision:
        raise AssertionError("decided again")

    monkeypatch.setattr("eqdeploy.training.trainer.decide", fail)
    log = tmp_path / "parts" / "training.jsonl"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert json.loads(lines[1]) == {
        "phase": "execution",
        "precision": "bfloat16",
        "channels_last": True,
        "compile": False,
    }
    log.write_bytes(b"".join([lines[0], b'{"phase": "float"}\n', *lines[2:]]))
    with pytest.raises(CheckpointError, match="does not say how its steps were computed"):
        train(config, tmp_path / "parts", resume=True, model=small_model())
    log.write_bytes(whole)
    train(config, tmp_path / "parts", resume=True, model=small_model())
    assert files(tmp_path / "parts") == files(tmp_path / "straight")


def test_the_mode_shows_in_the_numbers(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for name, precision in (("float", FLOAT), ("lower", BFLOAT16)):
        mode = StepMode(precision, channels_last=False, compile=False)
        monkeypatch.setattr("eqdeploy.training.trainer.decide", lambda *arguments, mode=mode: Decision(mode, "it is"))
        train(configuration(data, execution=AUTO), tmp_path / name, model=small_model(), float_only=True)
        weights.append((tmp_path / name / "float.safetensors").read_bytes())
    assert weights[0] != weights[1]


def test_a_configuration_that_leaves_nothing_open_measures_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Decision:
        raise AssertionError("measured")

    monkeypatch.setattr("eqdeploy.training.trainer.decide", fail)
    train(configuration(data), tmp_path / "run", model=small_model(), float_only=True)
    assert b'"execution"' not in (tmp_path / "run" / "training.jsonl").read_bytes()


def test_shipped_configurations_leave_nothing_open() -> None:
    folder = resources.files("eqdeploy.embedded")
    shipped = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".train.yaml"))
    assert len(shipped) == 3
    for name in shipped:
        assert not TrainingConfig.load(Path(str(folder / name))).execution.is_open, name
    digits = TrainingConfig.load(Path(str(folder / "digits.train.yaml")))
    first = json.loads((folder / "digits.training.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert digits.digest == first["configuration"]  # as before the keys were written down
