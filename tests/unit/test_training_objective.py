from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from eqdeploy.data.labelled import LabelledImages
from eqdeploy.errors import ProfileError, UsageError
from eqdeploy.supernet.checkpoint import load_checkpoint
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.objective import CLASSES, Objective, make_objective
from eqdeploy.training.trainer import train
from eqdeploy.zoo import build
from tests.unit.training_support import Listener


def data(labels: Any, classes: int = 0) -> LabelledImages:
    names = tuple(str(index) for index in range(classes))
    return LabelledImages(np.zeros((len(labels), 3), np.float32), np.array(labels), names, "set")


def squared(outputs: Any, labels: Tensor) -> Tensor:
    return functional.mse_loss(outputs["value"] if isinstance(outputs, dict) else outputs, labels)


def test_maps_are_classified_place_by_place() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 4, 3, 3), torch.randint(0, 4, (2, 3, 3))
    rows, flat = scores.permute(0, 2, 3, 1).reshape(18, 4), labels.reshape(18)
    teacher = scores.flip(0)
    teacher_rows = teacher.permute(0, 2, 3, 1).reshape(18, 4)
    hard, soft = CLASSES.supervised(scores, labels), CLASSES.divergence(scores, teacher, temperature=2.0)
    torch.testing.assert_close(hard, functional.cross_entropy(rows, flat))
    torch.testing.assert_close(soft, CLASSES.divergence(rows, teacher_rows, temperature=2.0))
    correct = CLASSES.correct(scores, labels)
    assert correct is not None
    assert int(correct) == int((rows.argmax(1) == flat).sum())


def test_other_outputs_are_compared_in_units_of_the_teacher() -> None:
    objective = Objective(has_labels=True, classifies=False, loss=squared, name="m:f")
    teacher = {"value": torch.tensor([0.0, 2.0]), "other": torch.tensor([[0.0], [200.0]])}
    student = {"value": torch.tensor([1.0, 2.0]), "other": torch.tensor([[100.0], [200.0]])}
    assert float(objective.divergence(student, teacher, temperature=1.0)) == pytest.approx(0.5 + 0.5)
    guided = objective.guided(student, teacher, torch.tensor([1.0, 4.0]), weight=0.25, temperature=1.0)
    assert float(guided) == pytest.approx(0.25 * 1.0 + 0.75 * 2.0)
    assert objective.correct(student, torch.zeros(2)) is None


@pytest.mark.parametrize("returned", [3.0, torch.zeros(2), None])
def test_a_loss_must_be_a_scalar(returned: object) -> None:
    objective = Objective(has_labels=True, classifies=False, loss=lambda outputs, labels: returned, name="m:f")  # type: ignore[arg-type, return-value]
    with pytest.raises(UsageError, match="m:f: the loss returned"):
        objective.supervised(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (
            torch.zeros(2, 3),
            data([0, 1], 2),
            r"returns \(3,\) for an input, the data have 2 classes .*model.arguments",
        ),
        (torch.zeros(2, 5, 8, 8), data([0, 1], 5), r"store class indices below 5 of shape \(N, 8, 8\)"),
        (torch.zeros(2, 5, 8, 8), data(np.zeros((2, 4, 4), int), 5), r"maps of shape \(4, 4\) with 5 classes"),
        (torch.zeros(2, 1), data(np.zeros((2, 1), np.float32)), r"numbers, \(1,\) for each.*--loss module:function"),
        ((torch.zeros(2, 2),), data([0, 1], 2), "returns a tuple, not one tensor of scores"),
        ((torch.zeros(2, 2),), data([-1, -1]), "no labels, which the float network needs.*--weights"),
    ],
)
def test_what_cannot_be_trained_says_what_is_missing(outputs: Any, labels: LabelledImages, message: str) -> None:
    with pytest.raises((ProfileError, UsageError), match=message):
        make_objective(outputs, labels, loss=None, trains_float=True, where="model")


class TwoValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.value, self.other = nn.Linear(3, 8), nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.body(x))
        return {"value": self.value(hidden)[:, 0], "other": self.other(hidden)}


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., TrainingConfig]:
    random = np.random.default_rng(0)
    values = random.normal(size=(64, 3)).astype(np.float32)
    np.savez(tmp_path / "labelled.npz", inputs=values, labels=values.sum(1))
    np.savez(tmp_path / "bare.npz", inputs=values)

    def make(name: str, **changes: Any) -> TrainingConfig:
        phase = {"epochs": 12, "batch_size": 16, "learning_rate": 0.03}
        document = {
            "schema": 1,
            "model": {"architecture": None},
            "data": str(tmp_path / f"{name}.npz"),
            "preprocessing": {"kind": "values", "shape": [3]},
            "space": {"bits": [8], "granularities": ["per_tensor"], "symmetries": ["symmetric"]},
            "float_training": phase,
            "supernet_training": phase,
        }
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(document | changes))
        return TrainingConfig.load(path)

    return make


def losses(log: Path, name: str) -> list[float]:
    lines = [yaml.safe_load(line) for line in log.read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_a_network_is_trained_with_a_loss_that_the_user_names(
    configured: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    config = configured("labelled", loss=f"{__name__}:squared")
    with pytest.raises(UsageError, match=r"loss: .*only when the command line asks.*--loss"):
        train(config, tmp_path / "run", model=TwoValues())
    assert not (tmp_path / "run").exists()
    listener = Listener()
    result = train(config, tmp_path / "run", model=TwoValues(), run_loss=True, progress=listener)
    floats = losses(result.log, "loss")
    assert sum(floats[-4:]) < 0.5 * sum(floats[:4])
    assert (result.float_accuracy, result.evaluation) == (None, None)
    assert any("accuracy is not measured" in note for note in listener.notes)
    assert result.checkpoint is not None
    checkpoint = load_checkpoint(result.checkpoint, build, TwoValues())
    assert checkpoint.preprocessing == config.preprocessing.to_preprocessing()
    assert set(checkpoint.supernet(torch.zeros(2, 3))) == {"value", "other"}


def test_without_labels_the_float_network_is_the_guide(
    configured: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    weights = tmp_path / "float.safetensors"
    save_file(TwoValues().state_dict(), weights)
    config = configured("bare", float_training={"epochs": 0, "batch_size": 16}).overridden(weights=str(weights))
    result = train(config, tmp_path / "run", model=TwoValues())
    assert losses(result.log, "highest")[0] < 0.01, "8 bits are near the float network from the start"
    unguided = configured(
        "bare", float_training={"epochs": 0, "batch_size": 16}, distillation={"guidance": "labels"}
    ).overridden(weights=str(weights))
    with pytest.raises(UsageError, match="no labels, which distillation.guidance asks for"):
        train(unguided, tmp_path / "other", model=TwoValues())
