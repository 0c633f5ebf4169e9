"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqdeploy.errors import MissingDependencyError, OutputError
from eqdeploy.progress import Advance, SilentProgress
from eqdeploy.training.observer import BatchMeasurements, GridMeasurements, PhaseStart, StepMeasurements
from eqdeploy.training.tensorboard import TensorBoardLog
from eqdeploy.training.trainer import train
from tests.unit.training_support import configuration, small_model, write_images

ROOT = Path(__file__).resolve().parents[2]
accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
)

#: Trains until the supernet has done some steps, then kills its own process without a chance to clean up.
KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.tensorboard import TensorBoardLog
from eqdeploy.training.trainer import train
from tests.unit.test_training_tensorboard import Stopper
from tests.unit.training_support import small_model

config, output, events, step = sys.argv[1:]
with TensorBoardLog(Path(events), resume=True) as log:
    train(TrainingConfig.load(Path(config)), Path(output), resume=True, model=small_model(), observers=[log],
          progress=Stopper(int(step), lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


class Stopper(SilentProgress):
    """Does something after some steps of the supernet."""

    def __init__(self, step: int, action: Any) -> None:
        self.step = step
        self.action = action

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            if done == self.step and "supernet network" in description:
                self.action()

        yield advance


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def read(folder: Path) -> Any:
    """Everything in a folder, as TensorBoard shows it."""
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    return events


def curve(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


class Remember:
    """The measurements that the files must hold."""

    def __init__(self) -> None:
        self.steps: list[StepMeasurements] = []
        self.grids: list[GridMeasurements] = []
        self.weights: dict[int, dict[str, np.ndarray]] = {}

    def phase_started(self, start: PhaseStart) -> None:
        self.steps, self.grids, self.weights = [], [], {0: dict(start.weights())}

    def step_done(self, measurements: StepMeasurements) -> None:
        self.steps.append(measurements)

    def evaluated(self, grid: GridMeasurements) -> None:
        self.grids.append(grid)
        self.weights[grid.step] = dict(grid.weights())

    def saving(self) -> None:
        pass


def test_files_hold_every_measurement(data: Path, tmp_path: Path) -> None:
    config = configuration(data, evaluation_epochs=[1])
    remembered = Remember()
    with TensorBoardLog(tmp_path / "events") as log:
        train(config, tmp_path / "run", model=small_model(), observers=[log, remembered])

    events = read(tmp_path / "events" / "supernet")
    for name in ("highest", "random", "lowest"):
        losses = {step.step: step.batch.losses[name] for step in remembered.steps}
        assert dict(curve(events, f"loss/{name}")) == pytest.approx(losses)
        accuracies = {step.step: step.batch.accuracies[name] for step in remembered.steps}
        assert dict(curve(events, f"accuracy/{name}")) == pytest.approx(accuracies)
    for name in ("skewness", "kurtosis"):
        terms = {step.step: step.batch.regularization[name] for step in remembered.steps}
        assert dict(curve(events, f"weight_distribution/{name}")) == pytest.approx(terms)
    assert [step for step, _ in curve(events, "learning_rate")] == list(range(12))
    for index, row in enumerate(remembered.grids[0].evaluation.rows):
        measured = {grid.step: grid.evaluation.rows[index].accuracy for grid in remembered.grids}
        found = curve(events, f"evaluation/{row.bits}_bits_{row.granularity}_{row.symmetry}")
        assert dict(found) == pytest.approx(measured)
    assert len([tag for tag in events.Tags()["scalars"] if tag.startswith("evaluation/")]) == 1 + 12

    assert sorted(remembered.weights) == [0, 5, 12]
    for layer in ("conv1", "conv2", "conv3", "fc"):
        for histogram in events.Histograms(f"weights/{layer}"):
            weight = remembered.weights[histogram.step][layer].astype(np.float64)
            value = histogram.histogram_value
            assert (value.num, value.min, value.max) == (weight.size, weight.min(), weight.max())
            assert value.sum == pytest.approx(weight.sum())
            edges = np.array(value.bucket_limit)
            expected = np.histogram(weight, bins=edges)[0]
            assert value.bucket == [0.0, *expected.tolist()]
        assert [histogram.step for histogram in events.Histograms(f"weights/{layer}")] == [0, 5, 12]

    float_events = read(tmp_path / "events" / "float")
    assert [step for step, _ in curve(float_events, "loss/float")] == list(range(12))
    assert curve(float_events, "evaluation/float")[-1][0] == 12


def test_curves_of_a_run_that_was_killed_have_neither_gaps_nor_doubles(data: Path, tmp_path: Path) -> None:
    config = configuration(data, evaluation_epochs=[1], checkpoint_interval_steps=4)
    with TensorBoardLog(tmp_path / "straight") as log:
        train(config, tmp_path / "a", model=small_model(), observers=[log])
    for step in (3, 7, 11):  # before the first saved step, and between saved ones: steps 0, 4 and 8 are taken up
        killed = subprocess.run(
            [
                *(sys.executable, "-c", KILLED_RUN, str(data.parent / "train.yaml")),
                *(str(tmp_path / "b"), str(tmp_path / "killed"), str(step)),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    with TensorBoardLog(tmp_path / "killed", resume=True) as log:
        train(config, tmp_path / "b", resume=True, model=small_model(), observers=[log])
    assert len(list((tmp_path / "killed" / "supernet").iterdir())) > 2, "the curves are spread over several files"

    for phase in ("float", "supernet"):
        straight, resumed = read(tmp_path / "straight" / phase), read(tmp_path / "killed" / phase)
        tags = straight.Tags()["scalars"]
        assert tags
        assert sorted(tags) == sorted(resumed.Tags()["scalars"])
        for tag in tags:
            assert curve(resumed, tag) == curve(straight, tag), tag
        for tag in straight.Tags()["histograms"]:
            steps = [[event.step for event in events.Histograms(tag)] for events in (straight, resumed)]
            assert steps[0] == steps[1], tag


def test_another_run_is_never_mixed_in(data: Path, tmp_path: Path) -> None:
    config = configuration(data, float_training={"epochs": 1}, supernet_training={"epochs": 1})
    with TensorBoardLog(tmp_path / "events") as log:
        train(config, tmp_path / "run", model=small_model(), observers=[log])
    with pytest.raises(OutputError, match="an earlier training has written its curves here"):
        TensorBoardLog(tmp_path / "events")
    keep = tmp_path / "events" / "float" / "notes.txt"
    keep.write_text("mine")
    with TensorBoardLog(tmp_path / "events", overwrite=True) as log:
        train(config, tmp_path / "run", model=small_model(), observers=[log], overwrite=True, float_only=True)
    assert len(list((tmp_path / "events" / "float").glob("*.tfevents.*"))) == 1
    assert not list((tmp_path / "events" / "supernet").iterdir()), "curves of a phase that has not come yet"
    assert keep.read_text() == "mine"


def test_weights_that_are_not_finite_or_all_equal_do_no_harm(tmp_path: Path) -> None:
    weights = {
        "equal": np.full((2, 3), 0.5, np.float32),
        "partly": np.array([1.0, np.nan, 2.0], np.float32),
        "lost": np.array([np.inf], np.float32),
    }
    with TensorBoardLog(tmp_path) as log:
        log.phase_started(PhaseStart("supernet", 1, 1, 0, lambda: weights))
    events = read(tmp_path / "supernet")
    assert events.Tags()["histograms"] == ["weights/equal", "weights/partly"]
    assert [events.Histograms(tag)[0].histogram_value.num for tag in ("weights/equal", "weights/partly")] == [6, 2]


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    measured = StepMeasurements(0, 0.1, BatchMeasurements({"float": 1.0}, {"float": 0.5}, {}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = TensorBoardLog(tmp_path)
    log.phase_started(PhaseStart("float", 1, 100, 0, dict))
    for _ in range(100):
        log.step_done(measured)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot write: File too large"):
            log.saving()
        with pytest.raises(OutputError, match="cannot write: File too large"), log:
            pass
        with pytest.raises(KeyError, match="the first error"), log:
            raise KeyError("the first error")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with TensorBoardLog(tmp_path / "file") as log, pytest.raises(OutputError, match="cannot write"):
        log.phase_started(PhaseStart("float", 1, 100, 0, dict))


def test_without_tensorboard_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'eqdeploy\[tensorboard\]'"):
        TensorBoardLog(tmp_path)
