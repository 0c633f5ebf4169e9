"""One optimizer step's worth of gradients: float, and the sandwich of three subnets (EQ-Net, section 3.4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from eqdeploy.errors import TrainingError
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import Batch
from eqdeploy.training.config import DistillationSettings, DistributionSettings
from eqdeploy.training.losses import distribution_terms, guided_loss
from eqdeploy.training.optimizer import DIVERGENCE_HINT, first_not_finite
from eqdeploy.training.sampling import Sandwich


class SandwichLosses(NamedTuple):
    """Losses of one step, in nats per image; the two terms of WDR before their weights."""

    highest: float
    random: float
    lowest: float
    skewness: float
    kurtosis: float


def float_gradients(supernet: Supernet, batch: Batch, *, step: int) -> float:
    """Add the gradients of the float network's cross entropy.

    Args:
        supernet: In training mode, deactivated.
        batch: Images and labels.
        step: Index of the step, for messages.

    Returns:
        The loss in nats per image.

    Raises:
        TrainingError: If the loss is not finite; gradients are then unchanged.
    """
    return _backward(functional.cross_entropy(supernet(batch.images), batch.labels), supernet, step=step, of="float")


def sandwich_gradients(
    supernet: Supernet,
    batch: Batch,
    subnets: Sandwich,
    *,
    distillation: DistillationSettings,
    weight_distribution: DistributionSettings,
    step: int,
) -> SandwichLosses:
    """Add the gradients of WDR and of the three subnets on one batch, each guided by the one before.

    Every loss is propagated back at once, so that only one subnet's graph is in memory.

    Args:
        supernet: In training mode; afterwards its last subnet is active.
        batch: Images and labels.
        subnets: The subnets of this step.
        distillation: Weight and temperature of the guidance.
        weight_distribution: Weights and target of WDR.
        step: Index of the step, for messages.

    Returns:
        The losses.

    Raises:
        TrainingError: If a loss is not finite; the message names the step, the subnet and, if a parameter is the
            cause, the parameter.
    """
    terms = distribution_terms(
        [weight for _, weight in supernet.latent_weights()], kurtosis_target=weight_distribution.kurtosis_target
    )
    regularization = (
        weight_distribution.skewness_weight * terms.skewness + weight_distribution.kurtosis_weight * terms.kurtosis
    )
    if regularization.requires_grad:
        _backward(regularization, supernet, step=step, of="weight distribution")
    losses: dict[str, float] = {}
    teacher: Tensor | None = None
    for name, subnet in subnets._asdict().items():
        logits = _forward(supernet, subnet, batch.images)
        if teacher is None:
            loss = functional.cross_entropy(logits, batch.labels)
        else:
            loss = guided_loss(
                logits, teacher, batch.labels, weight=distillation.weight, temperature=distillation.temperature
            )
        losses[name] = _backward(loss, supernet, step=step, of=f"{name} subnet")
        teacher = logits.detach()
    return SandwichLosses(**losses, skewness=terms.skewness.item(), kurtosis=terms.kurtosis.item())


def _forward(supernet: Supernet, subnet: SubnetConfig, images: Tensor) -> Tensor:
    """Switch to a subnet and run it."""
    supernet.activate(subnet)
    logits: Tensor = supernet(images)
    return logits


def _backward(loss: Tensor, supernet: Supernet, *, step: int, of: str) -> float:
    """Propagate a loss back if it is finite."""
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"the {of} loss is {value} at step {step}", where=first_not_finite(supernet), hint=DIVERGENCE_HINT
        )
    torch.autograd.backward(loss)
    return value
