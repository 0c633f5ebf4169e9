"""Switching subnets: what it changes, what it costs, and what happens when it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.errors import ProfileError, TrainingError
from eqdeploy.network import ElasticSpace
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.supernet.supernet import Supernet
from tests.unit.supernet_models import CONVERTIBLE
from tests.unit.supernet_parts import SPACE, conv, made, randomize

SHAPE = (3, 8, 8)


def small_supernet() -> Supernet:
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.Tanh(), conv(8, 8), nn.Flatten(), nn.Linear(512, 5)
    )
    supernet = Supernet.from_float(randomize(model), torch.zeros(2, *SHAPE), SPACE).eval()
    supernet.initialize(images())
    return supernet


def images(count: int = 32) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


def uniform(
    supernet: Supernet,
    bits: int,
    granularity: Granularity = Granularity.PER_CHANNEL,
    symmetry: Symmetry = Symmetry.SYMMETRIC,
    activation_symmetry: Symmetry = Symmetry.ASYMMETRIC,
    boundary_bits: int = 8,
) -> SubnetConfig:
    return SubnetConfig.uniform(
        supernet.network,
        weight_bits=bits,
        activation_bits=bits,
        granularity=granularity,
        weight_symmetry=symmetry,
        activation_symmetry=activation_symmetry,
        boundary_bits=boundary_bits,
    )


def active_forms(supernet: Supernet) -> list[Form | None]:
    quantizers = [supernet.weight_quantizer(layer.name) for layer in supernet.network.layers]
    return [quantizer.active for quantizer in (*quantizers, *supernet.activation_quantizers().values())]


def test_different_subnets_give_different_outputs_and_more_bits_smaller_errors() -> None:
    supernet = small_supernet()
    with torch.no_grad():
        supernet.deactivate()
        exact = supernet(images())
        outputs, errors = [], []
        for bits in (2, 4, 8):
            for granularity in Granularity:
                for symmetry in Symmetry:
                    for activation_symmetry in Symmetry:
                        config = uniform(supernet, bits, granularity, symmetry, activation_symmetry)
                        supernet.activate(config)
                        outputs.append(supernet(images()))
                        errors.append(float((outputs[-1] - exact).square().mean()))
        for index, output in enumerate(outputs):
            assert not any(torch.equal(output, other) for other in outputs[:index])
        assert min(errors[:8]) > max(errors[8:16]) > min(errors[8:16]) > max(errors[16:])
        supernet.deactivate()
        assert torch.equal(supernet(images()), exact)


def test_switching_is_a_handful_of_assignments() -> None:
    supernet = small_supernet()
    before = {name: (tensor.data_ptr(), tensor._version) for name, tensor in supernet.state_dict().items()}
    modules = list(supernet.modules())
    for bits in (2, 8, 4):
        supernet.activate(uniform(supernet, bits))
        assert {form.bits for form in active_forms(supernet) if form is not None} == {bits, 8}
    assert {name: (tensor.data_ptr(), tensor._version) for name, tensor in supernet.state_dict().items()} == before
    assert list(supernet.modules()) == modules


def test_only_what_a_subnet_uses_gets_a_gradient() -> None:
    supernet = small_supernet()
    config = uniform(supernet, 4)
    supernet.activate(config)
    torch.autograd.backward(supernet(images()).square().sum())
    forms = dict(config.weights) | dict(config.activations)
    quantizers = {layer.name: supernet.weight_quantizer(layer.name) for layer in supernet.network.layers}
    for name, quantizer in (quantizers | supernet.activation_quantizers()).items():
        for table in (quantizer.log2_scale, quantizer.zero_point):
            for key, parameter in table.items():
                assert (parameter.grad is not None) == (key == forms[name].key)
    for name, weight in supernet.latent_weights():
        assert weight.grad is not None, name


def wrong_configs(supernet: Supernet) -> dict[str, SubnetConfig]:
    good = uniform(supernet, 4)
    five = Form(5, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True)
    return {
        "layer '3' has no form": replace(good, weights=good.weights[:1] + good.weights[2:]),
        "layer 'other' does not exist": replace(good, weights=(*good.weights, ("other", five))),
        "layer '0' was not trained for 5-per_tensor": replace(good, weights=(("0", five), *good.weights[1:])),
        "tensor 'input_1' has no form": replace(good, activations=good.activations[1:]),
        "tensor 'other' does not exist": replace(good, activations=(*good.activations, ("other", five))),
        "was not trained for 5-per_tensor": replace(good, activations=(*good.activations[:-1], ("_6", five))),
    }


@pytest.mark.parametrize("message", wrong_configs(small_supernet()))
def test_a_refused_subnet_leaves_the_old_one_whole(message: str) -> None:
    supernet = small_supernet()
    supernet.activate(uniform(supernet, 8))
    before = active_forms(supernet)
    with pytest.raises(ProfileError, match=message):
        supernet.activate(wrong_configs(supernet)[message])
    assert active_forms(supernet) == before


def test_initialization_uses_the_float_network_and_keeps_the_modes() -> None:
    supernet = small_supernet()
    supernet.train()
    supernet.graph_module.get_submodule("1").eval()
    statistics = supernet.graph_module.get_submodule("1").running_mean
    assert isinstance(statistics, Tensor)
    kept = statistics.clone()
    first = {name: parameter.clone() for name, parameter in supernet.named_parameters()}
    supernet.activate(uniform(supernet, 2))
    supernet.initialize(images())  # from a subnet: the same numbers again
    for name, parameter in supernet.named_parameters():
        assert torch.equal(parameter, first[name]), name
    assert supernet.training
    assert not supernet.graph_module.get_submodule("1").training
    assert torch.equal(statistics, kept)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    supernet = small_supernet()
    spoiled = images()
    spoiled[3, 1, 2, 2] = value
    with pytest.raises(TrainingError, match="input_1: the activation is not finite"):
        supernet.initialize(spoiled)
    assert not any(quantizer._forward_pre_hooks for quantizer in supernet.activation_quantizers().values())
    weight = dict(supernet.latent_weights())["3"]
    with torch.no_grad():
        weight[0, 0, 0, 0] = value
    with pytest.raises(TrainingError, match="3: the weight is not finite"):
        supernet.initialize(images())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CONVERTIBLE)
def test_every_convertible_model_initializes_switches_and_trains(name: str) -> None:
    case = CONVERTIBLE[name]
    space = ElasticSpace(bits=(2, 8), symmetries=(Symmetry.ASYMMETRIC,), granularities=(Granularity.PER_CHANNEL,))
    supernet = Supernet.from_float(made(case), torch.zeros(2, *case.shape), space).eval()
    x = torch.randn(6, *case.shape, generator=torch.Generator().manual_seed(0))
    supernet.initialize(x)
    exact = [output.detach() for output in tensors_in(supernet(x))]
    errors = {}
    for bits in (8, 2):
        supernet.activate(uniform(supernet, bits, symmetry=Symmetry.ASYMMETRIC, boundary_bits=bits))
        outputs = tensors_in(supernet(x))
        losses = [(got - wanted).square().mean() for got, wanted in zip(outputs, exact, strict=True)]
        loss = torch.stack(losses).sum()
        torch.autograd.backward(loss)
        errors[bits] = loss.item()
    assert errors[8] < 0.2 * errors[2]
    for layer, weight in supernet.latent_weights():
        assert weight.grad is not None, layer
        assert torch.isfinite(weight.grad).all(), layer
