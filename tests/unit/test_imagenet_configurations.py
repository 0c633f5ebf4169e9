"""The configurations for ImageNet: the setting of the paper, and two steps of each on small random images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.sampling import sample_sandwich
from eqdeploy.training.trainer import train
from eqdeploy.zoo import build

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = sorted((ROOT / "examples" / "imagenet").glob("*.yaml"))
LIGHT = ("mobilenet_v2", "efficientnet_b0")

#: What the smoke test changes so that it takes seconds on one core.
SMALL: dict[str, Any] = {
    "preprocessing": {"image_size": [64, 64], "resize_shorter_side": 72},
    "float_training": {"batch_size": 4},
    "supernet_training": {"epochs": 1, "batch_size": 4},
    "calibration": {"initialization_images": 4, "batch_norm_images": 8},
    "execution": {"device": "cpu", "precision": "float32", "compile": False},
    "evaluation_epochs": [],
}


def plain(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration as plain data, with changes key by key."""
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    return document


def random_images(path: Path) -> Path:
    """Eight images to train on and four that are held out, of a thousand classes."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {"classes": np.array([f"n{index:04}" for index in range(1000)])}
    for split, count in (("train", 8), ("test", 4)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 90, 80, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 1000, count)
    np.savez(path, allow_pickle=False, **arrays)
    return path


def test_there_is_one_for_each_network_of_the_paper() -> None:
    names = [path.name.removesuffix(".train.yaml") for path in CONFIGURATIONS]
    assert {"resnet18", "resnet50", *LIGHT} <= set(names)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_the_shipped_file_builds_its_supernet(path: Path) -> None:
    config = TrainingConfig.load(path)
    name = config.model.architecture
    assert name is not None
    assert path.name == f"{name}.train.yaml"
    assert config.model.weights == f"weights/{name}.safetensors"
    # Table 1 and section 4.1.
    assert config.space.bits == ((3, 4, 5, 6, 7, 8) if name in LIGHT else (2, 3, 4, 5, 6, 7, 8))
    assert len(config.space.granularities) == len(config.space.symmetries) == 2
    assert (config.float_training.epochs, config.supernet_training.epochs) == (0, 120)
    assert (str(config.supernet_training.optimizer), config.supernet_training.learning_rate) == ("adam", 1e-3)
    preprocessing = config.preprocessing.to_preprocessing()
    assert preprocessing.shape == (3, 224, 224)
    images = torch.zeros(2, *preprocessing.shape)
    supernet = Supernet.from_float(build(name, config.model.arguments), images, config.space.to_space())
    (output,) = (tensor for tensor in supernet.network.tensors if tensor.is_output)
    assert output.shape == (1000,)
    subnets = sample_sandwich(supernet.network, torch.Generator().manual_seed(0), config.sampling)
    highest, lowest = dict(subnets.highest.weights), dict(subnets.lowest.weights)
    inner = [layer.name for layer in supernet.network.layers[1:-1]]
    assert {highest[layer].bits for layer in inner} == {config.space.bits[-1]}
    assert {lowest[layer].bits for layer in inner} == {config.space.bits[0]}
    assert {lowest[layer].bits for layer in supernet.network.boundary_layers} == {8}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_two_steps_on_random_images(path: Path, tmp_path: Path) -> None:
    shipped = TrainingConfig.load(path)
    assert shipped.model.architecture is not None
    save_file(build(shipped.model.architecture, shipped.model.arguments).state_dict(), tmp_path / "float.safetensors")
    bits = [shipped.space.bits[0], shipped.space.bits[-1]]
    changes = {
        **SMALL,
        "space": {"bits": bits},
        "model": {"weights": str(tmp_path / "float.safetensors")},
        "data": str(random_images(tmp_path / "images.npz")),
    }
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(plain(path, changes)), encoding="utf-8")
    result = train(TrainingConfig.load(small), tmp_path / "run")
    lines = [json.loads(line) for line in result.log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line.get("phase") == "supernet"]
    assert [line["step"] for line in steps] == [0, 1]
    for line in steps:
        assert all(math.isfinite(line[name]) and line[name] > 0 for name in ("highest", "random", "lowest"))
    assert result.checkpoint is not None
    assert result.checkpoint.exists()
    assert result.evaluation is not None
    assert len(result.evaluation.rows) == 4 * len(bits)
