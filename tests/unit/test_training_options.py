"""What a configuration can choose besides EQ-Net's recipe, in whole runs: optimizer, average, guidance, evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eqdeploy.errors import CheckpointError, OutputError, TrainingError
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.batches import Batch
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.execution import Forward
from eqdeploy.training.float_weights import load_float_weights
from eqdeploy.training.observer import BatchMeasurements
from eqdeploy.training.state import Phase
from eqdeploy.training.steps import SandwichStep
from eqdeploy.training.trainer import train
from tests.unit.training_support import (
    CLASSES,
    Interrupter,
    Listener,
    SmallNet,
    configuration,
    files,
    small_model,
    write_images,
)

SGD = {"optimizer": "sgd", "momentum": 0.8, "learning_rate": 0.02, "weight_decay": 1e-4}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def interrupt(config: TrainingConfig, output: Path, *, after: int, within: Phase) -> None:
    """Run until a phase has done some steps."""
    with pytest.raises(KeyboardInterrupt):
        train(config, output, resume=True, model=small_model(), progress=Interrupter(after, f"{within} network"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        {"float_training": {**SGD, "average_decay": 0.9}, "supernet_training": {**SGD, "average_decay": 0.95}},
        {"distillation": {"guidance": "float"}, "supernet_training": {"label_smoothing": 0.1, "momentum": 0.5}},
        {"execution": {"precision": "bfloat16", "channels_last": True}, "supernet_training": SGD},
        {"sampling": "per_network", "evaluation_epochs": [1], "supernet_training": {"average_decay": 0.9}},
    ],
    ids=["sgd-average", "float-guide", "bfloat16-channels-last", "per-network-evaluation"],
)
def test_an_interrupted_run_ends_like_one_that_never_was(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = configuration(data, checkpoint_interval_steps=4, **changes)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(config, straight, model=small_model())
    interrupt(config, resumed, after=7, within=Phase.FLOAT)
    # Before the first state of the phase is saved: what is resumed is the start of the phase itself.
    interrupt(config, resumed, after=3, within=Phase.SUPERNET)
    interrupt(config, resumed, after=10, within=Phase.SUPERNET)
    result = train(config, resumed, resume=True, model=small_model())
    assert result.resumed_at is not None
    assert (result.resumed_at.phase, result.resumed_at.step) == (Phase.SUPERNET, 8)
    assert files(resumed) == files(straight)
    assert set(files(straight)) == {"supernet.safetensors", "float.safetensors", "training.jsonl"}


def test_the_averages_are_what_is_saved(data: Path, tmp_path: Path) -> None:
    average = {"average_decay": 0.9}
    config = configuration(data, float_training=average, supernet_training=average)
    for phase, name in ((Phase.FLOAT, "float.safetensors"), (Phase.SUPERNET, "supernet.safetensors")):
        interrupt(config, tmp_path / "run", after=12, within=phase)  # all steps of the phase
        state = load_file(tmp_path / "run" / "state.safetensors")
        averages = {key.removeprefix("average."): tensor for key, tensor in state.items() if key.startswith("average.")}
        train(config, tmp_path / "run", resume=True, float_only=phase is Phase.FLOAT, model=small_model())
        saved = load_file(tmp_path / "run" / name)
        checked = 0
        for key, value in averages.items():
            stored = key if key in saved else key.removeprefix("graph_module.")
            if stored in saved:
                assert torch.equal(saved[stored], value), key
                checked += not torch.equal(state[f"model.{key}"], value)
        assert checked > 6  # they differ from the parameters themselves


class Watched:
    """Looks at the teacher of every sandwich step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.teachers: list[Forward | None] = []
        gradients = SandwichStep.gradients

        def watched(
            step_self: SandwichStep, batch: Batch, subnets: Mapping[str, SubnetConfig], *, step: int
        ) -> BatchMeasurements:
            self.teachers.append(step_self.teacher)
            return gradients(step_self, batch, subnets, step=step)

        monkeypatch.setattr(SandwichStep, "gradients", watched)


@pytest.mark.parametrize("average", [{}, {"average_decay": 0.9}])
def test_the_float_guide_is_the_float_network_of_the_first_phase(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: dict[str, float]
) -> None:
    config = configuration(
        data, float_training=average, distillation={"guidance": "float"}, checkpoint_interval_steps=4
    )
    watched = Watched(monkeypatch)
    interrupt(config, tmp_path / "run", after=5, within=Phase.SUPERNET)
    train(config, tmp_path / "run", resume=True, model=small_model())
    first, resumed = watched.teachers[0], watched.teachers[-1]
    assert first is not resumed
    model = SmallNet().eval()
    load_float_weights(model, tmp_path / "run" / "float.safetensors")
    images = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected: Tensor = model(images)
    for teacher in (first, resumed):
        assert teacher is not None
        logits = teacher(images)
        assert not logits.requires_grad
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_without_the_float_weights_a_float_guided_run_cannot_be_resumed(data: Path, tmp_path: Path) -> None:
    config = configuration(data, distillation={"guidance": "float"})
    interrupt(config, tmp_path / "run", after=5, within=Phase.SUPERNET)
    (tmp_path / "run" / "float.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"float\.safetensors: cannot read the weights"):
        train(config, tmp_path / "run", resume=True, model=small_model())
    assert (tmp_path / "run" / "state.safetensors").exists()


def test_no_other_guidance_has_a_teacher(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    for guidance in ("progressive", "labels"):
        train(
            configuration(data, distillation={"guidance": guidance}, float_training={"epochs": 0}),
            tmp_path / guidance,
            model=small_model(),
        )
    assert watched.teachers == [None] * 24
    progressive, labels = (lines(tmp_path / guidance)[2] for guidance in ("progressive", "labels"))
    assert progressive["highest"] == labels["highest"]
    assert progressive["lowest"] != labels["lowest"]


def test_evaluation_on_the_way_is_logged_and_changes_nothing(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"supernet_training": {"epochs": 4, "average_decay": 0.9, **SGD}}
    plain, looking = configuration(data, **changes), configuration(data, **changes, evaluation_epochs=[1, 3, 4, 99])
    train(plain, tmp_path / "plain", model=small_model())
    listener = Listener()
    result = train(looking, tmp_path / "looking", model=small_model(), progress=listener)
    for name in ("supernet.safetensors", "float.safetensors"):
        assert files(tmp_path / "plain")[name] == files(tmp_path / "looking")[name]

    found = lines(tmp_path / "looking")
    evaluations = [index for index, line in enumerate(found) if line.get("phase") == "evaluation"]
    steps_before = [found[index - 1].get("step") for index in evaluations]
    assert [found[index].get("epoch") for index in evaluations] == [1, 3, None]
    assert steps_before == [5, 17, 23]
    assert all(len(found[index]["rows"]) == 12 for index in evaluations)
    assert result.evaluation is not None
    assert found[-1]["rows"] == [row.to_json() for row in result.evaluation.rows]
    assert [line for index, line in enumerate(found) if index not in evaluations[:-1]] == lines(tmp_path / "plain")


def test_after_the_float_network_a_run_goes_on_to_the_supernet(data: Path, tmp_path: Path) -> None:
    config = configuration(data)
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    whole = train(config, straight, model=small_model())
    first = train(config, parts, float_only=True, model=small_model())
    assert (first.checkpoint, first.evaluation, first.float_accuracy) == (None, None, whole.float_accuracy)
    assert set(files(parts)) == {"float.safetensors", "training.jsonl", "state.safetensors"}
    left = files(parts)
    assert left["float.safetensors"] == files(straight)["float.safetensors"]

    for float_only in (False, True):
        with pytest.raises(OutputError, match=r"an unfinished training is saved here \(resume it"):
            train(config, parts, float_only=float_only, model=small_model())
    listener = Listener()
    again = train(config, parts, float_only=True, resume=True, model=small_model(), progress=listener)
    assert again.float_accuracy == first.float_accuracy
    assert not any("training" in stage for stage in listener.stages)
    assert files(parts) == left

    second = train(config, parts, resume=True, model=small_model())
    assert second.evaluation == whole.evaluation
    assert files(parts) == files(straight)


def test_only_the_float_network_can_be_resumed_too(data: Path, tmp_path: Path) -> None:
    config = configuration(data)
    interrupt(config, tmp_path / "parts", after=5, within=Phase.FLOAT)
    train(config, tmp_path / "parts", float_only=True, resume=True, model=small_model())
    train(config, tmp_path / "straight", float_only=True, model=small_model())
    assert files(tmp_path / "parts") == files(tmp_path / "straight")


def test_resuming_with_other_options_is_refused_by_key(data: Path, tmp_path: Path) -> None:
    config = configuration(data)
    interrupt(config, tmp_path / "run", after=3, within=Phase.FLOAT)
    for changes, message in (
        ({"supernet_training": {"optimizer": "sgd"}}, r"supernet_training\.optimizer was not set and is now 'sgd'"),
        ({"float_training": {"average_decay": 0.9}}, r"float_training\.average_decay was not set and is now 0\.9"),
        ({"execution": {"precision": "bfloat16"}}, r"execution was not set and is now \{'precision': 'bfloat16'"),
        ({"sampling": "per_network"}, r"sampling was not set and is now 'per_network'"),
    ):
        with pytest.raises(TrainingError, match=message):
            train(configuration(data, **changes), tmp_path / "run", resume=True, model=small_model())
    looking = configuration(data, evaluation_epochs=[1])
    train(looking, tmp_path / "run", resume=True, model=small_model())
    assert [line.get("epoch") for line in lines(tmp_path / "run") if line.get("phase") == "evaluation"] == [1, None]


@pytest.mark.parametrize("make", [small_model, lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))])
def test_every_option_at_once_learns(data: Path, tmp_path: Path, make: Callable[[], torch.nn.Module]) -> None:
    phase = {**SGD, "average_decay": 0.9, "label_smoothing": 0.05}
    config = configuration(
        data,
        float_training={"epochs": 6, **phase},
        supernet_training={"epochs": 6, **phase},
        distillation={"guidance": "float"},
        sampling="per_network",
        execution={"precision": "bfloat16", "channels_last": True},
    )
    result = train(config, tmp_path / "run", model=make())
    assert result.evaluation is not None
    assert result.float_accuracy is not None
    assert result.float_accuracy > 0.8
    assert min(row.accuracy for row in result.evaluation.rows if row.bits >= 4) > 0.7
    assert len(result.evaluation.rows) == 3 * CLASSES
