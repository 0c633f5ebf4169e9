"""WDR and GPG against closed forms, float64 references and numerical derivatives."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from eqdeploy.training.losses import (
    UNIFORM_KURTOSIS,
    distillation_loss,
    distribution_terms,
    standardized_moments,
)
from eqdeploy.training.objective import CLASSES


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def reference_moments(values: NDArray[np.float64]) -> tuple[float, float]:
    centered = values.ravel() - values.mean()
    deviation = math.sqrt(float((centered**2).mean()))
    return float(((centered / deviation) ** 3).mean()), float(((centered / deviation) ** 4).mean())


@pytest.mark.parametrize(
    ("values", "skewness", "kurtosis"),
    [
        ([-1.0, 1.0], 0.0, 1.0),  # the smallest kurtosis that exists
        ([0.0, 0.0, 0.0, 1.0], 2 / math.sqrt(3), 7 / 3),  # Bernoulli(1/4): (1 - 2p) / sqrt(pq), 3 + (1 - 6pq) / pq
        ([-2.0, -1.0, 0.0, 1.0, 2.0], 0.0, 1.7),  # discrete uniform: 3 - 6 (n² + 1) / 5 (n² - 1)
    ],
)
def test_moments_of_small_distributions(values: list[float], skewness: float, kurtosis: float) -> None:
    moments = standardized_moments(torch.tensor(values, dtype=torch.float64))
    assert moments.skewness.item() == pytest.approx(skewness, abs=1e-12)
    assert moments.kurtosis.item() == pytest.approx(kurtosis, rel=1e-12)


def test_target_is_the_kurtosis_of_a_uniform_distribution() -> None:
    uniform = torch.linspace(-3.0, 5.0, 100_001, dtype=torch.float64)
    assert standardized_moments(uniform).kurtosis.item() == pytest.approx(UNIFORM_KURTOSIS, abs=1e-6)


@given(
    arrays.arrays(np.float64, st.integers(2, 40), elements=st.floats(-100, 100)).filter(lambda x: x.std() > 1e-3),
    st.floats(0.01, 100),
    st.floats(-50, 50),
)
def test_moments_are_population_moments_and_ignore_scale_and_shift(
    values: NDArray[np.float64], scale: float, shift: float
) -> None:
    skewness, kurtosis = reference_moments(values)
    moments = standardized_moments(torch.from_numpy(values * scale + shift))
    assert moments.skewness.item() == pytest.approx(skewness, rel=1e-5, abs=1e-5)
    assert moments.kurtosis.item() == pytest.approx(kurtosis, rel=1e-5, abs=1e-5)


def test_moments_take_all_values_of_a_tensor_together() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=generator())
    whole, flat = standardized_moments(weight), standardized_moments(weight.flatten())
    assert torch.equal(whole.kurtosis, flat.kurtosis)
    assert torch.equal(whole.skewness, flat.skewness)


@pytest.mark.parametrize("count", [1, 8, 9, 1000])
@pytest.mark.parametrize("value", [0.0, 0.3, -1e20, 1e-30])
def test_a_constant_weight_has_finite_terms_and_no_gradient(value: float, count: int) -> None:
    weight = torch.full((count,), value, requires_grad=True)
    terms = distribution_terms([torch.randn(3, generator=generator()), weight])
    torch.autograd.backward(terms.skewness + terms.kurtosis)
    assert weight.grad is not None
    assert weight.grad.abs().max().item() * max(abs(value), 1e-30) < 1e-3
    assert math.isfinite(terms.skewness.item() + terms.kurtosis.item())


def test_terms_are_mean_squares_over_all_layers_but_the_first() -> None:
    weights = [torch.randn(size, generator=generator(), dtype=torch.float64).exp() for size in (50, 30, 20)]
    moments = [reference_moments(weight.numpy()) for weight in weights]
    terms = distribution_terms(weights, kurtosis_target=2.5)
    assert terms.skewness.item() == pytest.approx(sum(skewness**2 for skewness, _ in moments[1:]) / 2)
    assert terms.kurtosis.item() == pytest.approx(sum((kurtosis - 2.5) ** 2 for _, kurtosis in moments[1:]) / 2)


def test_the_first_layer_gets_no_gradient() -> None:
    weights = [torch.randn(9, generator=generator(), requires_grad=True) for _ in range(3)]
    terms = distribution_terms(weights)
    torch.autograd.backward(terms.skewness + terms.kurtosis)
    assert weights[0].grad is None
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights[1:])


def test_a_single_layer_is_not_regularized() -> None:
    terms = distribution_terms([torch.randn(9, generator=generator(), requires_grad=True)])
    assert (terms.skewness.item(), terms.kurtosis.item()) == (0.0, 0.0)
    with pytest.raises(ValueError, match="empty"):
        distribution_terms([])


def test_distribution_gradients_agree_with_finite_differences() -> None:
    first, second, third = (
        torch.randn(7, generator=generator(), dtype=torch.float64, requires_grad=True) for _ in range(3)
    )

    def both(second: Tensor, third: Tensor) -> Tensor:
        terms = distribution_terms([first, second, third])
        return 0.7 * terms.skewness + 0.3 * terms.kurtosis

    assert torch.autograd.gradcheck(both, (second, third))


def test_descending_the_kurtosis_term_makes_a_normal_weight_uniform() -> None:
    weight = torch.randn(500, generator=generator()).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.02)
    before = standardized_moments(weight).kurtosis.item()
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward(distribution_terms([weight, weight]).kurtosis)
        optimizer.step()
    assert before > 2.5
    assert standardized_moments(weight).kurtosis.item() == pytest.approx(UNIFORM_KURTOSIS, abs=0.05)


def test_distillation_is_the_divergence_of_the_student_from_the_teacher() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): KL(p ‖ q) = 3/4 ln(3/2) + 1/4 ln(1/2); the other way round it is another number.
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert distillation_loss(teacher, student).item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_temperature_softens_both_and_is_compensated_by_its_square(temperature: float) -> None:
    student, teacher = (torch.randn(6, 5, generator=generator(), dtype=torch.float64) for _ in range(2))
    teacher = teacher + 1
    teacher[:, 0] *= 3
    p, q = (torch.softmax(logits / temperature, dim=1) for logits in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    assert distillation_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected.item())


def test_equal_logits_do_not_diverge() -> None:
    logits = torch.randn(6, 5, generator=generator())
    assert distillation_loss(logits, logits + 3.0).item() == pytest.approx(0.0, abs=1e-6)


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[0.0, 1e4]], requires_grad=True)
    torch.autograd.backward(distillation_loss(student, torch.tensor([[1e4, 0.0]])))
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


def test_only_the_student_is_taught() -> None:
    student, teacher = (torch.randn(4, 3, generator=generator(), requires_grad=True) for _ in range(2))
    torch.autograd.backward(CLASSES.guided(student, teacher, torch.tensor([0, 1, 2, 0]), weight=0.5, temperature=2.0))
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_guidance_mixes_the_teacher_and_the_labels(weight: float) -> None:
    student, teacher = (torch.randn(4, 3, generator=generator(), dtype=torch.float64) for _ in range(2))
    teacher = teacher.flip(0)
    labels = torch.tensor([0, 1, 2, 0])
    soft, hard = distillation_loss(student, teacher, temperature=2.0), functional.cross_entropy(student, labels)
    loss = CLASSES.guided(student, teacher, labels, weight=weight, temperature=2.0)
    assert loss.item() == pytest.approx((weight * soft + (1 - weight) * hard).item())


def test_guidance_gradients_agree_with_finite_differences() -> None:
    student, teacher = (torch.randn(4, 3, generator=generator(), dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 0])

    def loss(student: Tensor) -> Tensor:
        return CLASSES.guided(student, teacher.flip(0), labels, weight=0.4, temperature=3.0)

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(),))
