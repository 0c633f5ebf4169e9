"""The gradients of one step, against the sum of the losses in one piece; what happens when they are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from eqdeploy.errors import TrainingError
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import Batch
from eqdeploy.training.execution import Forward
from eqdeploy.training.losses import distillation_loss, distribution_terms
from eqdeploy.training.sampling import Sandwich, sample_sandwich
from eqdeploy.training.settings import DistillationSettings, DistributionSettings, FormSampling, Guidance
from eqdeploy.training.steps import SandwichStep, float_gradients
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
    return sample_sandwich(supernet.network, torch.Generator().manual_seed(seed), FormSampling.PER_LAYER)


def step(
    supernet: Supernet,
    batch: Batch,
    distillation: DistillationSettings,
    distribution: DistributionSettings,
    *,
    label_smoothing: float = 0.0,
    teacher: Forward | None = None,
) -> tuple[float, ...]:
    sandwich = SandwichStep(supernet, supernet, distillation, distribution, label_smoothing, teacher)
    measured = sandwich.gradients(batch, subnets(supernet)._asdict(), step=7)
    assert [*measured.losses] == ["highest", "random", "lowest"]
    assert [*measured.regularization] == ["skewness", "kurtosis"]
    return (*measured.losses.values(), *measured.regularization.values())


def other_network() -> Supernet:
    """A network with weights of its own, float."""
    network = small_supernet()
    with torch.no_grad():
        for name, weight in network.latent_weights():
            weight.mul_(1.0 + 0.3 * torch.rand(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    return network


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }
    module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    ("weight", "temperature", "kurtosis", "skewness", "smoothing"),
    [(0.5, 1.0, 0.015, 1.0, 0.0), (0.8, 3.0, 0.0, 2.0, 0.1), (0.0, 1.0, 0.5, 0.0, 0.3)],
)
@pytest.mark.parametrize("guidance", Guidance)
def test_gradients_are_those_of_the_sum_of_all_losses(
    supernet: Supernet,
    batch: Batch,
    guidance: Guidance,
    weight: float,
    temperature: float,
    kurtosis: float,
    skewness: float,
    smoothing: float,
) -> None:
    teacher = other_network().eval()
    losses = step(
        supernet,
        batch,
        DistillationSettings(guidance=guidance, weight=weight, temperature=temperature),
        DistributionSettings(kurtosis_weight=kurtosis, skewness_weight=skewness),
        label_smoothing=smoothing,
        teacher=teacher if guidance is Guidance.FLOAT else None,
    )
    found = gradients(supernet)

    logits = []
    for subnet in subnets(supernet):
        supernet.activate(subnet)
        logits.append(supernet(batch.images))
    smooth = functional.one_hot(batch.labels, CLASSES) * (1 - smoothing) + smoothing / CLASSES
    expected_losses = [-(smooth * functional.log_softmax(scores, dim=1)).sum(dim=1).mean() for scores in logits]
    guides: dict[Guidance, tuple[Tensor | None, ...]] = {
        Guidance.PROGRESSIVE: (None, logits[0], logits[1]),
        Guidance.LABELS: (None, None, None),
        Guidance.FLOAT: (teacher(batch.images),) * 3,
    }
    for index, guide in enumerate(guides[guidance]):
        if guide is not None:
            divergence = distillation_loss(logits[index], guide, temperature=temperature)
            expected_losses[index] = weight * divergence + (1 - weight) * expected_losses[index]
    terms = distribution_terms([tensor for _, tensor in supernet.latent_weights()], kurtosis_target=1.8)
    regularization = kurtosis * terms.kurtosis + skewness * terms.skewness
    torch.autograd.backward(sum(expected_losses, regularization))
    expected = gradients(supernet)

    values = (*expected_losses, terms.skewness, terms.kurtosis)
    assert losses == pytest.approx([value.item() for value in values], rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert not gradients(teacher)


def test_guidance_and_smoothing_change_the_losses(supernet: Supernet, batch: Batch) -> None:
    teacher = other_network().eval()
    losses = {
        (guidance, smoothing): step(
            supernet,
            batch,
            DistillationSettings(guidance=guidance),
            DistributionSettings(),
            label_smoothing=smoothing,
            teacher=teacher if guidance is Guidance.FLOAT else None,
        )[:3]
        for guidance in Guidance
        for smoothing in (0.0, 0.2)
    }
    assert len(set(losses.values())) == 6
    # Of the highest subnet only the float network is a guide.
    assert losses[Guidance.LABELS, 0.0][0] == losses[Guidance.PROGRESSIVE, 0.0][0] != losses[Guidance.FLOAT, 0.0][0]


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


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_float_step_is_plain_cross_entropy(supernet: Supernet, batch: Batch, smoothing: float) -> None:
    measured = float_gradients(supernet, supernet, batch, label_smoothing=smoothing, step=0)
    found = gradients(supernet)
    expected = functional.cross_entropy(supernet(batch.images), batch.labels, label_smoothing=smoothing)
    torch.autograd.backward(expected)
    assert measured.losses == {"float": pytest.approx(expected.item())}
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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lower", [True, False])
def test_an_overflow_between_finite_parameters_is_named(
    supernet: Supernet, batch: Batch, training: bool, lower: bool
) -> None:
    supernet.train(training)

    def forward(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            logits: Tensor = supernet(images)
            return logits.float()

    with torch.no_grad():
        weights = dict(supernet.latent_weights())
        weights["conv2"].zero_()
        weights["conv3"].fill_(100.0)
        supernet.get_parameter("graph_module.bn1.bias").fill_(1e37)
    message = r"conv3: the float loss is (nan|inf) at step 3; all parameters are finite"
    with pytest.raises(TrainingError, match=message):
        float_gradients(supernet, forward, batch, step=3)
    assert not gradients(supernet)


def test_an_overflow_of_an_operation_without_parameters_is_named(supernet: Supernet, batch: Batch) -> None:
    with torch.no_grad():
        dict(supernet.latent_weights())["conv2"].zero_()
        supernet.get_parameter("graph_module.bn1.bias").fill_(2.5e38)
        supernet.get_parameter("graph_module.bn2.bias").fill_(2.5e38)
    with pytest.raises(TrainingError, match=r"^add: the float loss is (nan|inf) at step 3; all parameters"):
        float_gradients(supernet, supernet, batch, step=3)


def test_accuracies_are_those_of_the_same_pass(supernet: Supernet, batch: Batch) -> None:
    def share(logits: Tensor) -> float:
        return sum(int(row.argmax()) == int(label) for row, label in zip(logits, batch.labels, strict=True)) / 16

    supernet.deactivate()
    with torch.no_grad():
        expected = share(supernet(batch.images))
    measured = float_gradients(supernet, supernet, batch, step=0)
    assert measured.accuracies == {"float": expected}
    assert measured.regularization == {}

    drawn = subnets(supernet)._asdict()
    accuracies = {}
    for name, subnet in drawn.items():
        supernet.activate(subnet)
        with torch.no_grad():
            accuracies[name] = share(supernet(batch.images))
    step_of = SandwichStep(supernet, supernet, DistillationSettings(), DistributionSettings())
    assert step_of.gradients(batch, drawn, step=0).accuracies == accuracies
    assert len(set(accuracies.values())) > 1, "the subnets differ, so that a mix-up would be seen"
