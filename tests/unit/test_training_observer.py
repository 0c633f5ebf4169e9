"""Observers are told everything once, in order, and change nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from eqdeploy.errors import OutputError
from eqdeploy.supernet.checkpoint import load_checkpoint
from eqdeploy.training.observer import GridMeasurements, PhaseStart, StepMeasurements
from eqdeploy.training.trainer import train
from eqdeploy.zoo import build
from tests.unit.training_support import configuration, small_model, write_images


class Recorder:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.starts: list[PhaseStart] = []
        self.steps: list[StepMeasurements] = []
        self.grids: list[tuple[GridMeasurements, Mapping[str, NDArray[np.float32]]]] = []

    def phase_started(self, start: PhaseStart) -> None:
        self.told.append(f"start {start.phase} {start.step}")
        self.starts.append(start)

    def step_done(self, measurements: StepMeasurements) -> None:
        self.told.append(f"step {measurements.step}")
        self.steps.append(measurements)

    def evaluated(self, grid: GridMeasurements) -> None:
        self.told.append(f"grid {grid.step} {'final' if grid.final else grid.epoch}")
        self.grids.append((grid, grid.weights()))

    def saving(self) -> None:
        self.told.append("saving")


class Full(Recorder):
    """Cannot write any more after some steps."""

    def step_done(self, measurements: StepMeasurements) -> None:
        super().step_done(measurements)
        if len(self.steps) == 9:
            raise OutputError("no space left")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def steps(first: int, last: int, *, saved: int = 2) -> list[str]:
    told = []
    for step in range(first, last + 1):
        told.append(f"step {step}")
        if (step + 1) % saved == 0:
            told.append("saving")
    return told


def test_everything_is_told_in_order_and_nothing_changes(data: Path, tmp_path: Path) -> None:
    config = configuration(data, evaluation_epochs=[1], supernet_training={"average_decay": 0.9})
    train(config, tmp_path / "unwatched", model=small_model())
    recorder = Recorder()
    result = train(config, tmp_path / "watched", model=small_model(), observers=[recorder])
    for path in (tmp_path / "unwatched").iterdir():
        assert path.read_bytes() == (tmp_path / "watched" / path.name).read_bytes(), path.name

    first_epoch = steps(0, 5)
    first_epoch.insert(-1, "grid 5 1")  # before the state that holds the step is saved
    assert recorder.told == [
        *("start float 0", *steps(0, 11), "grid 12 final"),
        *("start supernet 0", *first_epoch, *steps(6, 11), "grid 12 final"),
    ]
    start = recorder.starts[1]
    assert (start.epochs, start.steps_per_epoch, start.steps) == (2, 6, 12)
    assert [start.epoch_of(step) for step in (0, 5, 6, 11, 12)] == [1, 1, 2, 2, 2]

    log = [json.loads(line) for line in result.log.read_text().splitlines()]
    for told, line in zip(recorder.steps, [line for line in log if "step" in line], strict=True):
        losses = {"loss" if name == "float" else name: value for name, value in told.batch.losses.items()}
        values = {"learning_rate": told.learning_rate, **losses, **told.batch.regularization}
        assert {name: float(f"{value:.6g}") for name, value in values.items()} == {
            name: value for name, value in line.items() if name not in ("phase", "step")
        }
        assert told.batch.accuracies.keys() == told.batch.losses.keys()
        assert all(float(share * 16).is_integer() and 0 <= share <= 1 for share in told.batch.accuracies.values())
    assert recorder.steps[-1].batch.accuracies["highest"] > 0.5, "the task is learned; chance is 0.25"

    float_grid, middle, final = (grid.evaluation for grid, _ in recorder.grids)
    assert float_grid.rows == ()
    assert float_grid.float_accuracy == result.float_accuracy
    assert middle.to_json().items() <= next(line for line in log if "epoch" in line).items()
    assert final == result.evaluation


def test_weights_are_those_that_were_evaluated(data: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    config = configuration(data, evaluation_epochs=[1], supernet_training={"average_decay": 0.9})
    result = train(config, tmp_path / "run", model=small_model(), observers=[recorder])
    *_, (_, middle), (_, final) = recorder.grids
    assert result.checkpoint is not None
    saved = load_checkpoint(result.checkpoint, build, small_model()).supernet
    assert [*final] == [*middle] == ["conv1", "conv2", "conv3", "fc"]
    for layer, weight in saved.latent_weights():
        np.testing.assert_array_equal(final[layer], weight.detach().numpy())
        assert (middle[layer] != final[layer]).any(), "a copy, not the tensor that went on changing"


def test_a_resumed_run_tells_only_what_is_left(data: Path, tmp_path: Path) -> None:
    config = configuration(data, float_training={"epochs": 1})
    with pytest.raises(OutputError):
        train(config, tmp_path / "run", model=small_model(), observers=[Full()])
    recorder = Recorder()
    train(config, tmp_path / "run", model=small_model(), resume=True, observers=[recorder])
    assert recorder.told == ["start supernet 2", *steps(2, 11), "grid 12 final"]
