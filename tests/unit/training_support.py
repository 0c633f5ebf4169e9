"""A tiny task for the training tests: 8x8 images with a bright quarter, a network of four layers, seconds a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from eqdeploy.network import ElasticSpace
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.state import Phase

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 4

#: Trains until a phase has done some steps, then kills its own process without a chance to clean up.
KILLED_RUN = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from eqdeploy.progress import SilentProgress
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.trainer import train
from tests.unit.training_support import small_model

class Killer(SilentProgress):
    @contextmanager
    def stage(self, description, *, total=None):
        done = 0
        def advance(amount):
            nonlocal done
            done += amount
            if sys.argv[3] in description and done == int(sys.argv[4]):
                os.kill(os.getpid(), signal.SIGKILL)
        yield advance

train(TrainingConfig.load(Path(sys.argv[1])), Path(sys.argv[2]), resume=True, model=small_model(), progress=Killer())
"""


class SmallNet(nn.Module):
    """Convolution, depthwise convolution, residual add, pooling, dropout and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 6, 1)
        self.pool = nn.AvgPool2d(4)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = x + torch.relu(self.bn2(self.conv2(x)))
        x = self.pool(torch.relu(self.conv3(x)))
        logits: Tensor = self.fc(self.dropout(torch.flatten(x, 1)))
        return logits


def small_model() -> nn.Module:
    """A network with the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return SmallNet()


def small_supernet(space: ElasticSpace | None = None) -> Supernet:
    """An initialized supernet of the small network."""
    supernet = Supernet.from_float(small_model(), torch.zeros(2, 1, 8, 8), space or ElasticSpace(bits=(2, 4, 8)))
    supernet.initialize(torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(5)))
    return supernet


def write_images(folder: Path, *, training: int = 96, held_out: int = 48) -> Path:
    """Write splits of noisy images whose class is the place of the bright quarter."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for split, count in (("train", training), ("test", held_out)):
        labels = np.arange(count) % CLASSES
        images = random.integers(0, 120, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = 4 * (label // 2), 4 * (label % 2)
            image[row : row + 4, column : column + 4] += 90
        np.savez_compressed(folder / f"{split}.npz", allow_pickle=False, images=images, labels=labels)
    return folder


def settings(data: Path, **changes: Any) -> dict[str, Any]:
    """A configuration as plain data; a change that is a mapping changes only the keys in it."""
    plain: dict[str, Any] = {
        "schema": 1,
        "model": {"architecture": None},
        "data": str(data),
        "preprocessing": {"image_size": [8, 8], "channels": 1, "mean": [0.3], "std": [0.2]},
        "space": {"bits": [2, 4, 8]},
        "float_training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
        "supernet_training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.003},
        "augmentation": {"shift": 1},
        "execution": {"precision": "float32", "channels_last": False, "compile": False},
        "calibration": {"initialization_images": 32, "batch_norm_images": 64},
        "checkpoint_interval_steps": 2,
    }
    for key, value in changes.items():
        plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
    return plain


def configuration(data: Path, **changes: Any) -> TrainingConfig:
    """The same as a parsed configuration, by way of a file beside the data."""
    path = data.parent / "train.yaml"
    path.write_text(yaml.safe_dump(settings(data, **changes)))
    return TrainingConfig.load(path)


class Listener:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}
        self.notes: list[str] = []

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
        self.stages[description] = [0, total or 0]

        def advance(amount: int) -> None:
            self.stages[description][0] += amount

        yield advance

    def note(self, message: str) -> None:
        self.notes.append(message)

    def detail(self, message: str) -> None:
        pass


class Interrupter(Listener):
    """Presses Ctrl-C after some steps of the stages whose description has a text in it."""

    def __init__(self, steps: int, within: str = "") -> None:
        super().__init__()
        self.steps = steps
        self.within = within

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            if done == self.steps and self.within in description:
                raise KeyboardInterrupt

        yield advance


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_in(phase: Phase, step: int, config: Path, output: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(config), str(output), f"{phase} network", str(step)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
