"""A float network becomes a checkpoint without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eqdeploy.data import DIGITS_PREPROCESSING
from eqdeploy.errors import EqDeployError, OutputError, TrainingError, UnsupportedOperationError, UsageError
from eqdeploy.pipeline import convert_float
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import ConvertRequest
from eqdeploy.supernet.checkpoint import load_checkpoint
from eqdeploy.zoo import build


def make() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))


def convert(model: nn.Module, request: ConvertRequest) -> Path:
    return convert_float(model, DIGITS_PREPROCESSING, request, SilentProgress())


def test_the_checkpoint_computes_what_the_network_computes(tmp_path: Path) -> None:
    network = make().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    request = ConvertRequest(tmp_path / "converted.safetensors", bits=(4, 8), calibration_images=16)
    checkpoint = load_checkpoint(convert(network, request), build, make())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert checkpoint.supernet.network.space.bits == (4, 8)
    assert checkpoint.metadata.provenance == {"calibrated_on": "digits (train)"}
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.supernet(images), network.eval()(images), rtol=1e-5, atol=1e-5)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def broken() -> nn.Module:
    network = make()
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    return network


@pytest.mark.parametrize(
    ("network", "changes", "error", "message"),
    [
        (make(), {"bits": ()}, UsageError, "bits: "),
        (make(), {"bits": (8, 4)}, UsageError, "bits must be ascending"),
        (make(), {"bits": (99,)}, UsageError, "bits: "),
        (Branching(), {}, UnsupportedOperationError, "trace"),
        (broken(), {}, TrainingError, "not finite"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    network: nn.Module, changes: dict[str, Any], error: type[EqDeployError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        convert(network, ConvertRequest(tmp_path / "out.safetensors", calibration_images=4, **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        convert(make(), ConvertRequest(path, calibration_images=4))
    assert path.read_text() == "mine"
    assert convert(make(), ConvertRequest(path, calibration_images=4, force=True)) == path
    load_checkpoint(path, build, make())
