"""Layers beside two-dimensional convolutions and linears: quantized and proved, or float and said to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.float_share import float_share
from eqdeploy.network import OpKind
from eqdeploy.supernet.costs import count_costs
from eqdeploy.validation.parity import ParityVerdict
from tests.parity.proving import prove
from tests.unit.supernet_parts import Net, randomize


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1, stride=(1, 2, 2), bias=False),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.Conv3d(6, 6, (1, 3, 3), padding=(0, 2, 2), dilation=(1, 2, 2), groups=3, padding_mode="replicate"),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.ConvTranspose3d(6, 4, 2, stride=2, groups=2),
        nn.ReLU6(),
        nn.AvgPool3d((1, 2, 2)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def sequences() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding="same", dilation=3),
        nn.ReLU(),
        nn.Conv1d(8, 8, 3, padding="same", groups=4),
        nn.MaxPool1d(2),
        nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.ConvTranspose1d(6, 6, 3, groups=3, dilation=2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def functions() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        x = F.relu(F.conv3d(x, m.conv, m.shift, padding=1))
        x = F.conv_transpose1d(x.flatten(2), m.up, stride=2)
        result: Tensor = m.head(F.relu(x).mean(2))
        return result

    parts = {"conv": (4, 2, 3, 3, 3), "shift": (4,), "up": (4, 3, 3)}
    return Net(
        body, head=nn.Linear(3, 2), **{name: nn.Parameter(torch.randn(size) / 3) for name, size in parts.items()}
    )


QUANTIZED: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "volumes": (volumes, (2, 4, 8, 8)),
    "sequences": (sequences, (3, 16)),
    "functions": (functions, (2, 2, 4, 4)),
}


def initialized(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(16, *shape)
    network = make().eval()
    network(images)  # lazy layers get their sizes
    return randomize(network), images


@pytest.mark.parametrize("profile", ["onnxruntime-x86", "tensorrt", "snpe-dsp"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_convolutions_of_any_rank_are_quantized(name: str, profile: str, tmp_path: Path) -> None:
    network, images = initialized(*QUANTIZED[name])
    proved = prove(network, images, tmp_path, profile)
    assert proved.parity.verdict is not ParityVerdict.FAILED, proved.parity.summary
    assert proved.distance.passed, proved.distance.summary
    kinds = {tensor.op for tensor in proved.supernet.network.tensors}
    assert {OpKind.CONV, OpKind.CONV_TRANSPOSE} <= kinds
    costs = count_costs(proved.supernet)
    share = float_share(proved.plan, proved.supernet.network, costs.macs, costs.parameters)
    assert (share.float_parameters, share.float_macs) == (0, 0), share.summary


def _all_steps(m: Any, x: Tensor) -> Tensor:
    result: Tensor = m.head(m.recurrent(m.embed(x))[0].mean(1))
    return result


def _last_state(m: Any, x: Tensor) -> Tensor:
    _, (hidden, cell) = m.recurrent(m.embed(x))
    result: Tensor = m.head(torch.relu(hidden[-1] + cell[-1]))
    return result


RECURRENT: Mapping[str, tuple[Callable[[Any, Tensor], Tensor], nn.Module]] = {
    "LSTM": (_last_state, nn.LSTM(8, 8, batch_first=True)),
    "GRU": (_all_steps, nn.GRU(8, 4, 2, batch_first=True, bidirectional=True)),
    "RNN": (_all_steps, nn.RNN(8, 8, batch_first=True)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_stay_float_and_are_named(name: str, tmp_path: Path) -> None:
    body, recurrent = RECURRENT[name]
    network, images = initialized(
        lambda: Net(body, embed=nn.Linear(6, 8), recurrent=recurrent, head=nn.Linear(8, 3)), (5, 6)
    )
    proved = prove(network, images, tmp_path)
    assert proved.parity.verdict is not ParityVerdict.FAILED, proved.parity.summary
    assert proved.distance.passed, proved.distance.summary
    costs = count_costs(proved.supernet)
    share = float_share(proved.plan, proved.supernet.network, costs.macs, costs.parameters)
    assert share.operations[0] == "recurrent"
    assert share.float_parameters == sum(parameter.numel() for parameter in recurrent.parameters())
    reasons = [tensor.reason for tensor in proved.plan.tensors if tensor.device is None]
    assert f"torch.nn.{name} has no integer form" in reasons
    assert {"embed", "x"} <= proved.model.activations.keys(), "all the rest is quantized"
