"""The losses of EQ-Net, section 3.4, as pure functions of tensors.

Weight distribution regularization (WDR, Eq. 4-6) pulls every weight towards a uniform distribution, which all
widths quantize well. Group progressive guidance (GPG, Eq. 7-8) lets each subnet of a step learn from the next
better one: highest → random → lowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

#: Kurtosis of a uniform distribution, the target of Eq. 5.
UNIFORM_KURTOSIS = 1.8


class Moments(NamedTuple):
    """Standardized population moments of a tensor, scalars of its dtype."""

    skewness: Tensor
    kurtosis: Tensor


class DistributionTerms(NamedTuple):
    """The two terms of WDR before their weights, scalars: mean squared distances over the layers."""

    skewness: Tensor
    kurtosis: Tensor


def standardized_moments(weight: Tensor) -> Moments:
    """Skewness and kurtosis of all values of a tensor together (Eq. 4 and 5).

    With μ and σ² the population mean and variance (divided by N, not N − 1): skewness ``E[((w − μ) / σ)³]`` and
    kurtosis ``E[((w − μ) / σ)⁴]``, 1.8 for a uniform and 3 for a normal distribution.

    Args:
        weight: Real values, any shape, at least one value.

    Returns:
        Both moments. A tensor whose values are all equal has none: both are about 0, with no gradient.
    """
    centered = weight - weight.mean()
    variance = centered.square().mean()
    # The floor acts where the values differ by no more than the rounding of their mean: it keeps 0 / 0 and the
    # enormous gradients beside it out of the training.
    limits = torch.finfo(weight.dtype)
    floor = (weight.detach().abs().max() * limits.eps).square().clamp_min(limits.tiny)
    standardized = centered / torch.maximum(variance, floor).sqrt()
    square = standardized.square()
    return Moments(skewness=(square * standardized).mean(), kurtosis=square.square().mean())


def distribution_terms(weights: Sequence[Tensor], *, kurtosis_target: float = UNIFORM_KURTOSIS) -> DistributionTerms:
    """The terms of weight distribution regularization (Eq. 6), to be weighted and added by the caller.

    ``skewness = mean_l Skew(w_l)²`` and ``kurtosis = mean_l (Kurt(w_l) − target)²`` over all layers but the first,
    which reads the image and keeps the distribution that it needs, as in the authors' code.

    Args:
        weights: Latent weights of the quantizable layers in the network's order, any shapes.
        kurtosis_target: The kurtosis to pull towards.

    Returns:
        Both terms; zeros where there is no second layer.

    Raises:
        ValueError: If ``weights`` is empty.
    """
    if not weights:
        raise ValueError("weights must not be empty")
    if len(weights) == 1:
        zero = weights[0].new_zeros(())
        return DistributionTerms(skewness=zero, kurtosis=zero)
    moments = [standardized_moments(weight) for weight in weights[1:]]
    skewness = torch.stack([moment.skewness for moment in moments])
    kurtosis = torch.stack([moment.kurtosis for moment in moments])
    return DistributionTerms(
        skewness=skewness.square().mean(),
        kurtosis=(kurtosis - kurtosis_target).square().mean(),
    )


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Divergence of a student's class distribution from its teacher's, in nats per image.

    ``T² · KL(softmax(teacher / T) ‖ softmax(student / T))``, averaged over the images. The factor T² keeps the
    gradient's size independent of the temperature. The teacher receives no gradient.

    Args:
        student: Logits, ``(images, classes)``, or ``(images, classes, …)`` for maps, of which every place counts alike.
        teacher: Logits, the same shape.
        temperature: Positive; larger values soften both distributions.

    Returns:
        Scalar, at least 0.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher.detach() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    places = student[0, 0].numel()
    return divergence * temperature**2 if places == 1 else divergence * temperature**2 / places
