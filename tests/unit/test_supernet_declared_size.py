"""What a file declares is counted before it is built."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from eqdeploy.errors import CheckpointError
from eqdeploy.supernet.checkpoint import load_checkpoint
from eqdeploy.supernet.declared_size import activation_bytes, check_declared_size
from eqdeploy.zoo import build

DIGITS = Path(str(resources.files("eqdeploy.embedded") / "digits.safetensors"))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))


def test_results_of_all_layers_are_counted() -> None:
    values = 2 * (4 * 36 + 4 * 36 + 4 * 36 + 10)
    assert activation_bytes(network().to("meta"), torch.empty((2, 1, 6, 6), device="meta")) == 4 * values


def test_a_network_that_needs_data_is_not_counted() -> None:
    class NeedsData(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = float(torch.ones(1).item())

    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    check_declared_size(NeedsData, torch.zeros((2, 1)), 0, where="x")
    assert activation_bytes(Branches(), torch.empty((2, 1), device="meta")) is None


def test_weights_that_the_file_cannot_hold_are_refused() -> None:
    def wide() -> nn.Module:
        return nn.Linear(1 << 13, 1 << 12)

    example, size = torch.zeros((2, 1 << 13)), 4 * ((1 << 25) + (1 << 12))
    check_declared_size(wide, example, size // 4, where="x")
    problem = f"x: the network that it names has {size:,} bytes of weights, the file 99"
    with pytest.raises(CheckpointError, match=problem):
        check_declared_size(wide, example, 99, where="x")
    check_declared_size(network, torch.zeros((2, 1, 6, 6)), 99, where="x")


def changed(path: Path, **changes: Any) -> Path:
    """The shipped checkpoint with other metadata."""
    with safe_open(str(DIGITS), "pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        metadata = json.loads(stream.metadata()["eqdeploy"])
    for key, value in changes.items():
        metadata[key] = {**metadata[key], **value} if isinstance(value, dict) else value
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("probe")}
    save_file(kept, path, metadata={"eqdeploy": json.dumps(metadata)})
    return path


def test_a_large_input_and_wide_layers_are_refused_before_they_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def watched(name: str, arguments: Any) -> nn.Module:
        model = build(name, arguments)
        names.append(next(model.parameters()).device.type)
        return model

    load_checkpoint(changed(tmp_path / "same.safetensors"), watched)
    assert names == ["meta", "cpu"]
    large = changed(tmp_path / "x", input_shape=[1, 4096, 4096], preprocessing={"image_size": [4096, 4096]})
    with pytest.raises(CheckpointError, match=r"x: input_shape: two inputs of this shape make [0-9.]+ GiB .*--model"):
        load_checkpoint(large, watched)
    wide = changed(tmp_path / "y", architecture={"name": "resnet50", "arguments": {}})
    with pytest.raises(CheckpointError, match="y: the network that it names has 10[0-9,]+ bytes of weights, the file"):
        load_checkpoint(wide, watched)
    assert names == ["meta", "cpu", "meta", "meta"]
