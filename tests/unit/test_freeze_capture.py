"""Torch's graph of a module, with and without the pass that decomposes operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.freeze import capture
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.network import ElasticSpace
from eqdeploy.supernet.supernet import Supernet


class Branches(nn.Module):
    """What a convolutional network is made of: residual sum, gate, concatenation, pools, a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6())
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.gate = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.depthwise(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.cat([x, -1 * x], 1)
        logits: Tensor = self.head(torch.max_pool2d(x, 2).flatten(1))
        return logits


class Attention(nn.Module):
    """An operator whose form in ONNX is left to torch's decomposition."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.layer(x), -1)


def supernet_of(model: nn.Module, shape: tuple[int, ...]) -> Supernet:
    torch.manual_seed(0)
    return Supernet.from_float(model, torch.randn(2, *shape), ElasticSpace())


def test_what_is_not_decomposed_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = supernet_of(Branches(), (1, 8, 8))
    programs: list[object] = []
    find = capture._program_to_translate

    def noted(*arguments: object) -> object:
        programs.append(find(*arguments))  # type: ignore[arg-type]
        return programs[-1]

    monkeypatch.setattr(capture, "_program_to_translate", noted)
    short = export_float_graph(supernet).filled({}).SerializeToString(deterministic=True)
    assert programs[0] is not None, "the short way was not taken"
    monkeypatch.setattr(capture, "_program_to_translate", lambda *_: None)
    assert export_float_graph(supernet).filled({}).SerializeToString(deterministic=True) == short


def test_other_operators_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = supernet_of(Attention(), (8,))
    find = capture._program_to_translate
    found: list[object] = []
    monkeypatch.setattr(capture, "_program_to_translate", lambda *given: found.append(find(*given)))
    export_float_graph(supernet)
    assert found == [None]


def test_what_cannot_be_written_is_an_error_of_the_users() -> None:
    class Unwritable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values: Tensor = torch.linalg.eigvals(x).real
            return values

    with pytest.raises(UnsupportedOperationError, match="torch cannot export this network to ONNX"):
        capture.capture(Unwritable(), (torch.eye(3).repeat(2, 1, 1),))
