"""What stays float, counted by parameters and by operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.float_share import FloatShare, float_share
from eqdeploy.network import ElasticSpace
from eqdeploy.profile import load_profile
from eqdeploy.resolve import resolve
from eqdeploy.supernet.costs import count_costs
from eqdeploy.supernet.supernet import Supernet


class _Recurrent(nn.Module):
    """Layers that are quantized around one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Linear(8, 16), nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.inner(self.embed(x))
        out: Tensor = self.head(states.mean(1))
        return out


def share_of(model: nn.Module, shape: tuple[int, ...]) -> FloatShare:
    supernet = Supernet.from_float(model.eval(), torch.zeros(2, *shape), ElasticSpace(bits=(8,)))
    plan = resolve(load_profile("onnxruntime-x86"), supernet.network)
    costs = count_costs(supernet)
    return float_share(plan, supernet.network, costs.macs, costs.parameters)


def test_a_recurrence_is_counted_whole() -> None:
    share = share_of(_Recurrent(), (8, 8))
    recurrence = 4 * 16 * (16 + 16)  # weights of four gates
    assert share.float_parameters == recurrence + 2 * 4 * 16
    assert share.parameters == share.float_parameters + 8 * 16 + 16 * 10
    assert share.float_macs == 8 * recurrence
    assert share.macs == share.float_macs + 8 * 8 * 16 + 16 * 10
    assert share.is_notable
    assert "inner" in share.summary


def test_nothing_stays_float_where_everything_is_quantized() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)
    )
    share = share_of(network, (1, 4, 4))
    assert (share.float_parameters, share.float_macs) == (0, 0)
    assert share.parameters == 8 * 9 + 1280
    assert share.macs == 16 * 8 * 9 + 1280
    assert not share.is_notable
    assert "no parameter" in share.summary


def test_a_batch_norm_that_nothing_takes_in_stays_float() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(32, 10))
    assert share_of(network, (1, 4, 4)).float_parameters == 2


@pytest.mark.parametrize("parts", [(0, 0, 0, 0), (10, 1, 0, 0)])
def test_shares_of_nothing_are_zero(parts: tuple[int, int, int, int]) -> None:
    share = FloatShare(*parts, operations=())
    assert share.operation_share == 0.0
    assert share.parameter_share == (0.1 if parts[0] else 0.0)
