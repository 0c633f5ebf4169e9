"""The gradients of one step, against the sum of the losses in one piece; what happens when they are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from eqdeploy.errors import TrainingError
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import Batch
from eqdeploy.training.config import DistillationSettings, DistributionSettings
from eqdeploy.training.losses import distillation_loss, distribution_terms
from eqdeploy.training.sampling import Sandwich, sample_sandwich
from eqdeploy.training.steps import SandwichLosses, float_gradients, sandwich_gradients
from tests.unit.training_support import CLASSES, small_supernet


@pytest.fixture
def supernet() -> Supernet:
    # In evaluation mode no pass changes a buffer and dropout is off, so passes can be repeated for comparison.
    return small_supernet().eval()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    return Batch(images, torch.randint(CLASSES, (16,), generator=generator))


def subnets(supernet: Supernet, seed: int = 0) -> Sandwich:
    return sample_sandwich(supernet.network, torch.Generator().manual_seed(seed))


def step(
    supernet: Supernet, batch: Batch, distillation: DistillationSettings, distribution: DistributionSettings
) -> SandwichLosses:
    return sandwich_gradients(
        supernet, batch, subnets(supernet), distillation=distillation, weight_distribution=distribution, step=7
    )


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }
    module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    ("weight", "temperature", "kurtosis", "skewness"),
    [(0.5, 1.0, 0.015, 1.0), (0.8, 3.0, 0.0, 2.0), (0.0, 1.0, 0.5, 0.0)],
)
def test_gradients_are_those_of_the_sum_of_all_losses(
    supernet: Supernet, batch: Batch, weight: float, temperature: float, kurtosis: float, skewness: float
) -> None:
    losses = step(
        supernet,
        batch,
        DistillationSettings(weight=weight, temperature=temperature),
        DistributionSettings(kurtosis_weight=kurtosis, skewness_weight=skewness),
    )
    found = gradients(supernet)

    logits = []
    for subnet in subnets(supernet):
        supernet.activate(subnet)
        logits.append(supernet(batch.images))
    highest, random, lowest = (functional.cross_entropy(scores, batch.labels) for scores in logits)
    random = weight * distillation_loss(logits[1], logits[0], temperature=temperature) + (1 - weight) * random
    lowest = weight * distillation_loss(logits[2], logits[1], temperature=temperature) + (1 - weight) * lowest
    terms = distribution_terms([tensor for _, tensor in supernet.latent_weights()], kurtosis_target=1.8)
    regularization = kurtosis * terms.kurtosis + skewness * terms.skewness
    torch.autograd.backward(highest + random + lowest + regularization)
    expected = gradients(supernet)

    values = (highest, random, lowest, terms.skewness, terms.kurtosis)
    assert losses == pytest.approx([value.item() for value in values], rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_only_the_forms_of_the_three_subnets_get_gradients(supernet: Supernet, batch: Batch) -> None:
    step(supernet, batch, DistillationSettings(), DistributionSettings())
    chosen = {
        f"{layer}.weight_quantizer.log2_scale.{form.key}"
        for subnet in subnets(supernet)
        for layer, form in subnet.weights
    }
    touched = {name.removeprefix("graph_module.") for name in gradients(supernet) if "weight_quantizer.log2" in name}
    assert touched == chosen


def test_every_weight_learns(supernet: Supernet, batch: Batch) -> None:
    step(supernet, batch, DistillationSettings(), DistributionSettings())
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for _, weight in supernet.latent_weights())


def test_the_float_step_is_plain_cross_entropy(supernet: Supernet, batch: Batch) -> None:
    loss = float_gradients(supernet, batch, step=0)
    found = gradients(supernet)
    expected = functional.cross_entropy(supernet(batch.images), batch.labels)
    torch.autograd.backward(expected)
    assert loss == pytest.approx(expected.item())
    assert not any("quantizer" in name for name in found)
    for name, gradient in gradients(supernet).items():
        assert torch.equal(found[name], gradient)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_weight_is_named_with_step_and_layer(supernet: Supernet, batch: Batch, value: float) -> None:
    with torch.no_grad():
        dict(supernet.latent_weights())["conv2"][0, 0, 0, 0] = value
    with pytest.raises(TrainingError, match=r"conv2\.weight: .* step 7"):
        step(supernet, batch, DistillationSettings(), DistributionSettings())
    assert not gradients(supernet)


def test_a_damaged_scale_is_named(supernet: Supernet, batch: Batch) -> None:
    form = dict(subnets(supernet).lowest.weights)["conv3"].key
    with torch.no_grad():
        supernet.weight_quantizer("conv3").log2_scale[form].fill_(float("nan"))
    with pytest.raises(
        TrainingError, match=rf"conv3\.weight_quantizer\.log2_scale\.{form}: the \w+ subnet loss .* step 7"
    ):
        step(supernet, batch, DistillationSettings(), DistributionSettings())


def test_images_out_of_range_are_no_fault_of_a_layer(supernet: Supernet, batch: Batch) -> None:
    damaged = Batch(batch.images * float("nan"), batch.labels)
    with pytest.raises(TrainingError) as caught:
        step(supernet, damaged, DistillationSettings(), DistributionSettings())
    assert caught.value.where is None
