"""A network that was trained elsewhere, from its weights to an artifact: it keeps its own BatchNorm statistics."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eqdeploy.zoo import build
from tests.unit.training_support import CLASSES, settings, write_images

Run = Callable[..., subprocess.CompletedProcess[str]]

MODEL: dict[str, Any] = {"architecture": "digits-resnet", "arguments": {"width": 4, "classes": CLASSES}}
MEAN, STD = 0.3, 0.2


def samples(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Inputs and labels as the network's own training code would make them."""
    archive = np.load(folder / f"{split}.npz")
    pixels = torch.from_numpy(archive["images"]).float()[:, None]
    return (pixels / 255 - MEAN) / STD, torch.from_numpy(archive["labels"]).long()


def train_elsewhere(folder: Path) -> nn.Module:
    """A training loop that knows nothing of eqdeploy."""
    inputs, labels = samples(folder, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build(MODEL["architecture"], MODEL["arguments"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        for batch, wanted in zip(inputs.split(64), labels.split(64), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), wanted).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture
def trained(tmp_path: Path) -> nn.Module:
    """A network that saw many images; beside it its weights and the few images that are at hand later."""
    model = train_elsewhere(write_images(tmp_path / "elsewhere", training=512))
    save_file(model.state_dict(), tmp_path / "trained.safetensors")
    write_images(tmp_path / "images", training=40)
    nothing = {"epochs": 0, "batch_size": 16}
    plain = settings(Path("images"), model=MODEL, space={"bits": [8]}, augmentation={"shift": 0})
    plain |= {"float_training": nothing, "supernet_training": nothing}
    (tmp_path / "foreign.yaml").write_text(yaml.safe_dump(plain))
    return model


def test_a_network_trained_elsewhere_keeps_its_statistics(eqdeploy: Run, trained: nn.Module, tmp_path: Path) -> None:
    done = eqdeploy("train", "foreign.yaml", "--weights", "trained.safetensors", "--out", "run")
    assert done.returncode == 0, done.stderr
    checkpoint = load_file(tmp_path / "run" / "supernet.safetensors")
    own = {name: value for name, value in trained.state_dict().items() if "running" in name}
    assert len(own) == 16
    for name, value in own.items():
        assert torch.equal(checkpoint[name], value), name

    done = eqdeploy(
        *("export", "--supernet", "run/supernet.safetensors", "--data", "images", "--profile", "onnxruntime-x86")
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "build" / "onnxruntime-x86" / "report.json").read_text())
    calibration = report["calibration"]
    assert calibration["statistics"] == "own"
    # By measurement: statistics of forty images are further from what the network was.
    assert calibration["distances"]["own"] > calibration["distances"]["plain"] + 1.0
    assert calibration["probes"] == "4 probes give the outputs that training saw"

    # The yardstick is the network as it was given, computed here by torch alone.
    inputs, labels = samples(tmp_path / "images", "test")
    with torch.no_grad():
        correct = int((trained(inputs).argmax(dim=1) == labels).sum())
    yardstick = report["accuracy"]["details"]["rows"][0]
    assert (yardstick["name"], yardstick["correct"]) == ("float", correct)
