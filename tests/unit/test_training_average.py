"""The moving average of the parameters, on its own and in whole runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eqdeploy.training.average import ParameterAverage


def make(values: list[float]) -> nn.Linear:
    model = nn.Linear(len(values), 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values]))
        model.bias.fill_(values[0])
    return model


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_values_follow_the_formula(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    model = make([1.0, -2.0, 3.0])
    average = ParameterAverage(model, decay)
    expected = model.weight.detach().double().clone()
    for step in range(200):
        with torch.no_grad():
            model.weight.add_(torch.randn(model.weight.shape, generator=generator))
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * model.weight.detach().double()
    torch.testing.assert_close(average.values["weight"].double(), expected, rtol=1e-5, atol=1e-5)
    assert not average.values["weight"].requires_grad


def test_the_start_is_soon_forgotten() -> None:
    model = make([1000.0])
    average = ParameterAverage(model, 0.9999)
    with torch.no_grad():
        model.weight.zero_()
    for step in range(30):
        average.update(step)
    assert average.values["weight"].abs().item() < 1e-3


def test_applied_averages_are_taken_back_even_after_an_error() -> None:
    model = make([1.0, 2.0])
    average = ParameterAverage(model, 0.5)
    with torch.no_grad():
        model.weight.mul_(3.0)
    average.update(0)
    raw, mean = model.weight.detach().clone(), average.values["weight"].clone()
    storage = model.weight.data_ptr()

    def interrupted() -> None:
        with average.applied():
            assert torch.equal(model.weight, mean)
            assert not torch.equal(raw, mean)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(model.weight, raw)
    assert torch.equal(average.values["weight"], mean)
    assert model.weight.data_ptr() == storage  # the optimizer's and the graph's own tensor


def test_adopted_averages_stay() -> None:
    model = make([1.0, 2.0])
    average = ParameterAverage(model, 0.5)
    with torch.no_grad():
        model.weight.mul_(3.0)
    average.update(0)
    average.adopt()
    assert torch.equal(model.weight, average.values["weight"])
    with torch.no_grad():
        model.weight.zero_()
    assert average.values["weight"].abs().min() > 0  # a copy


def test_saved_averages_are_taken_up() -> None:
    first, second = (ParameterAverage(make(values), 0.5) for values in ([1.0, 2.0], [5.0, 6.0]))
    second.load(first.values)
    assert all(torch.equal(second.values[name], value) for name, value in first.values.items())
    with pytest.raises(KeyError):
        second.load({"weight": first.values["weight"]})
