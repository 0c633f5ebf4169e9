"""One optimizer step's worth of gradients: float, and the sandwich of three subnets (EQ-Net, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from eqdeploy.errors import TrainingError
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import Batch
from eqdeploy.training.diagnosis import first_output_not_finite
from eqdeploy.training.execution import Forward
from eqdeploy.training.losses import DistributionTerms, distribution_terms, guided_loss
from eqdeploy.training.observer import FLOAT, BatchMeasurements
from eqdeploy.training.optimizer import DIVERGENCE_HINT, first_not_finite
from eqdeploy.training.settings import DistillationSettings, DistributionSettings, Guidance


def float_gradients(
    supernet: Supernet, forward: Forward, batch: Batch, *, label_smoothing: float = 0.0, step: int
) -> BatchMeasurements:
    """Add the gradients of the float network's cross entropy.

    Args:
        supernet: In training mode, deactivated.
        forward: Runs the supernet.
        batch: Images and labels.
        label_smoothing: Share of every label that is spread over all classes.
        step: Index of the step, for messages.

    Returns:
        Loss and accuracy.

    Raises:
        TrainingError: If the loss is not finite; gradients are then unchanged.
    """
    logits = forward(batch.images)
    loss = functional.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    value, accuracy = _loss_and_accuracy(loss, logits, batch.labels)
    _backward(loss, value, supernet, batch, step=step, of=FLOAT)
    return BatchMeasurements({FLOAT: value}, {FLOAT: accuracy}, {})


@dataclass(frozen=True)
class SandwichStep:
    """Adds the gradients of WDR and of three subnets on one batch.

    Attributes:
        supernet: In training mode; after a step its last subnet is active.
        forward: Runs the supernet.
        distillation: Who guides the subnets, and how strongly.
        weight_distribution: Weights and target of WDR.
        label_smoothing: Share of every label that is spread over all classes.
        teacher: Logits of the float network for images, where it is the guide.
    """

    supernet: Supernet
    forward: Forward
    distillation: DistillationSettings
    weight_distribution: DistributionSettings
    label_smoothing: float = 0.0
    teacher: Forward | None = None

    def gradients(self, batch: Batch, subnets: Mapping[str, SubnetConfig], *, step: int) -> BatchMeasurements:
        """Add all gradients; every loss is propagated back at once, so that only one graph is in memory.

        Args:
            batch: Images and labels.
            subnets: The subnets of this step by name, the best first.
            step: Index of the step, for messages.

        Returns:
            Losses and accuracies of the subnets, and the terms of WDR.

        Raises:
            TrainingError: If a loss is not finite; the message names the step, the subnet and the first parameter
                that is not finite or, if all are, the first layer whose output is not.
        """
        terms = self._regularize(step)
        losses: dict[str, float] = {}
        accuracies: dict[str, float] = {}
        teacher = None if self.teacher is None else self.teacher(batch.images)
        for name, subnet in subnets.items():
            self.supernet.activate(subnet)
            logits = self.forward(batch.images)
            loss = self._loss(logits, teacher, batch.labels)
            losses[name], accuracies[name] = _loss_and_accuracy(loss, logits, batch.labels)
            _backward(loss, losses[name], self.supernet, batch, step=step, of=f"{name} subnet")
            if self.distillation.guidance is Guidance.PROGRESSIVE:
                teacher = logits.detach()
        return BatchMeasurements(
            losses, accuracies, {"skewness": terms.skewness.item(), "kurtosis": terms.kurtosis.item()}
        )

    def _regularize(self, step: int) -> DistributionTerms:
        """Add the gradients of WDR."""
        settings = self.weight_distribution
        terms = distribution_terms(
            [weight for _, weight in self.supernet.latent_weights()], kurtosis_target=settings.kurtosis_target
        )
        loss = settings.skewness_weight * terms.skewness + settings.kurtosis_weight * terms.kurtosis
        if loss.requires_grad:
            _backward(loss, loss.item(), self.supernet, None, step=step, of="weight distribution")
        return terms

    def _loss(self, logits: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Loss of one subnet; the first of the progressive chain has no teacher."""
        if teacher is None:
            return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return guided_loss(
            logits,
            teacher,
            labels,
            weight=self.distillation.weight,
            temperature=self.distillation.temperature,
            label_smoothing=self.label_smoothing,
        )


@torch.no_grad()
def _loss_and_accuracy(loss: Tensor, logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Fetch a loss and the share of correct images together: a GPU is waited for once."""
    correct = (logits.argmax(dim=1) == labels).sum()
    value, count = torch.stack((loss, correct.to(loss.dtype))).tolist()
    return value, count / len(labels)


def _backward(loss: Tensor, value: float, supernet: Supernet, batch: Batch | None, *, step: int, of: str) -> None:
    """Propagate a loss back if it is finite; ``batch`` is what the network saw, None for a loss of the weights."""
    if not math.isfinite(value):
        raise _not_finite(f"the {of} loss is {value} at step {step}", supernet, batch)
    torch.autograd.backward(loss)


def _not_finite(message: str, supernet: Supernet, batch: Batch | None) -> TrainingError:
    """Name the first parameter that is not finite or, if all are, the first layer whose output is not."""
    where = first_not_finite(supernet)
    if where is None and batch is not None:
        where = first_output_not_finite(supernet, batch.images)
        if where is not None:
            message += "; all parameters are finite, this layer's output is the first that is not"
    return TrainingError(message, where=where, hint=DIVERGENCE_HINT)
