"""Parameter groups, the learning rate and which parameters a step may touch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.errors import TrainingError, UsageError
from eqdeploy.training.optimizer import (
    clip_gradients,
    first_not_finite,
    make_optimizer,
    require_finite_parameters,
    set_learning_rate,
)
from eqdeploy.training.schedule import cosine_learning_rate, require_cycles
from eqdeploy.training.settings import OptimizationSettings, SupernetSettings
from tests.unit.training_support import small_supernet

SETTINGS = SupernetSettings(
    epochs=1,
    batch_size=2,
    weight_decay=0.1,
    scale_learning_rate_factor=3.0,
    zero_point_learning_rate_factor=50.0,
)


def test_every_parameter_is_in_one_group() -> None:
    supernet = small_supernet()
    optimizer = make_optimizer(supernet, SETTINGS)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped}) == len(list(supernet.parameters()))


def test_only_weights_of_layers_decay_and_scales_have_their_own_rates() -> None:
    supernet = small_supernet()
    optimizer = make_optimizer(supernet, SETTINGS)
    set_learning_rate(optimizer, 0.01)
    names = {id(parameter): name for name, parameter in supernet.named_parameters()}
    for group in optimizer.param_groups:
        for name in (names[id(parameter)] for parameter in group["params"]):
            is_weight = name.endswith(("conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"))
            factor = 3.0 if "log2_scale" in name else 50.0 if "zero_point" in name else 1.0
            assert group["weight_decay"] == (0.1 if is_weight else 0.0), name
            assert group["lr"] == pytest.approx(0.01 * factor), name


def test_the_float_phase_leaves_quantizers_out() -> None:
    supernet = small_supernet()
    optimizer = make_optimizer(supernet, OptimizationSettings(epochs=1, batch_size=2))
    names = {id(parameter): name for name, parameter in supernet.named_parameters()}
    grouped = {names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}
    assert grouped == {name for name in names.values() if "quantizer" not in name}


def test_forms_that_no_subnet_used_stay_as_they_are() -> None:
    supernet = small_supernet()
    optimizer = make_optimizer(supernet, SETTINGS)
    scales = supernet.weight_quantizer("conv2").log2_scale
    used, unused = list(scales)[:2]
    before = {key: scale.detach().clone() for key, scale in scales.items()}
    for _ in range(3):
        optimizer.zero_grad()
        scales[used].grad = torch.ones_like(scales[used])
        optimizer.step()
    assert not torch.equal(scales[used], before[used])
    assert torch.equal(scales[unused], before[unused])


def test_gradients_are_clipped_element_by_element() -> None:
    supernet = small_supernet()
    optimizer = make_optimizer(supernet, SETTINGS)
    weight = dict(supernet.latent_weights())["conv3"]
    weight.grad = torch.linspace(-3, 3, weight.numel()).reshape(weight.shape)
    clip_gradients(optimizer, None)
    assert weight.grad.max().item() == 3
    clip_gradients(optimizer, 0.5)
    assert torch.equal(weight.grad, torch.linspace(-3, 3, weight.numel()).reshape(weight.shape).clip(-0.5, 0.5))


def test_the_first_damaged_parameter_is_found_in_network_order() -> None:
    supernet = small_supernet()
    assert first_not_finite(supernet) is None
    require_finite_parameters(supernet, step=3)
    with torch.no_grad():
        supernet.get_parameter("graph_module.fc.bias").fill_(math.inf)
    assert first_not_finite(supernet) == "fc.bias"
    with torch.no_grad():
        dict(supernet.latent_weights())["fc"][1, 2] = math.nan
    with pytest.raises(TrainingError, match=r"fc\.weight: .* step 3"):
        require_finite_parameters(supernet, step=3)


@given(steps=st.integers(1, 500), share=st.floats(0, 1), peak=st.floats(1e-6, 1))
def test_the_learning_rate_rises_to_its_peak_and_falls(steps: int, share: float, peak: float) -> None:
    warm_up = int(steps * share)
    rates = [cosine_learning_rate(step, steps=steps, warm_up_steps=warm_up, peak=peak) for step in range(steps)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert max(rates) == pytest.approx(peak)
    assert rates[:warm_up] == sorted(rates[:warm_up])
    assert rates[warm_up:] == sorted(rates[warm_up:], reverse=True)


@given(cycle=st.integers(1, 200), restarts=st.integers(0, 5))
def test_every_cycle_has_the_rates_of_a_run_of_its_length(cycle: int, restarts: int) -> None:
    alone = [cosine_learning_rate(step, steps=cycle, warm_up_steps=0, peak=0.1) for step in range(cycle)]
    steps = cycle * (restarts + 1)
    rates = [
        cosine_learning_rate(step, steps=steps, warm_up_steps=0, peak=0.1, restarts=restarts) for step in range(steps)
    ]
    assert rates == alone * (restarts + 1)


def test_the_cosine_is_half_way_down_in_the_middle() -> None:
    assert cosine_learning_rate(60, steps=100, warm_up_steps=20, peak=2.0) == pytest.approx(1.0)
    assert cosine_learning_rate(99, steps=100, warm_up_steps=0, peak=1.0) == pytest.approx(0.0, abs=3e-4)


def test_restarts_need_a_step_each() -> None:
    settings = OptimizationSettings(epochs=1, batch_size=2, warm_up_steps=4, restarts=5)
    require_cycles(settings, steps=10, where="float_training")
    require_cycles(settings, steps=0, where="float_training")
    with pytest.raises(
        UsageError, match=r"float_training\.restarts: 5 restarts do not fit into the 5 steps .*at most 4"
    ):
        require_cycles(settings, steps=9, where="float_training")
