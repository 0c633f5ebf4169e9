"""One optimizer step's worth of gradients: float, and the sandwich of three subnets (EQ-Net, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqdeploy.errors import TrainingError
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import Batch
from eqdeploy.training.diagnosis import first_output_not_finite
from eqdeploy.training.execution import Forward
from eqdeploy.training.losses import DistributionTerms, distribution_terms
from eqdeploy.training.objective import CLASSES, Objective, map_outputs
from eqdeploy.training.observer import FLOAT, BatchMeasurements
from eqdeploy.training.optimizer import DIVERGENCE_HINT, first_not_finite
from eqdeploy.training.settings import DistillationSettings, DistributionSettings, Guidance


def float_gradients(
    supernet: Supernet,
    forward: Forward,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    step: int,
    objective: Objective = CLASSES,
) -> BatchMeasurements:
    """Add the gradients of the float network's loss, the cross entropy as a rule.

    Args:
        supernet: In training mode, deactivated.
        forward: Runs the supernet.
        batch: Images and labels.
        label_smoothing: Share of every label that is spread over all classes.
        step: Index of the step, for messages.
        objective: What the loss is; has labels.

    Returns:
        Loss and, where there are classes, accuracy.

    Raises:
        TrainingError: If the loss is not finite; gradients are then unchanged.
    """
    outputs = forward(batch.images)
    loss = objective.supervised(outputs, batch.labels, label_smoothing=label_smoothing)
    assert loss is not None  # refused before training
    value, accuracy = _loss_and_accuracy(loss, objective.correct(outputs, batch.labels), batch.labels)
    _backward(loss, value, supernet, batch, step=step, of=FLOAT)
    return BatchMeasurements({FLOAT: value}, {} if accuracy is None else {FLOAT: accuracy}, {})


@dataclass(frozen=True)
class SandwichStep:
    """Adds the gradients of WDR and of three subnets on one batch.

    Attributes:
        supernet: In training mode; after a step its last subnet is active.
        forward: Runs the supernet.
        distillation: Who guides the subnets, and how strongly.
        weight_distribution: Weights and target of WDR.
        label_smoothing: Share of every label that is spread over all classes.
        teacher: The float network, where it is the guide, or where there are no labels.
        objective: What the losses are.
    """

    supernet: Supernet
    forward: Forward
    distillation: DistillationSettings
    weight_distribution: DistributionSettings
    label_smoothing: float = 0.0
    teacher: Forward | None = None
    objective: Objective = CLASSES

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
            outputs = self.forward(batch.images)
            loss = self._loss(outputs, teacher, batch.labels)
            correct = self.objective.correct(outputs, batch.labels)
            losses[name], accuracy = _loss_and_accuracy(loss, correct, batch.labels)
            if accuracy is not None:
                accuracies[name] = accuracy
            _backward(loss, losses[name], self.supernet, batch, step=step, of=f"{name} subnet")
            if self.distillation.guidance is Guidance.PROGRESSIVE:
                teacher = map_outputs(Tensor.detach, outputs)
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

    def _loss(self, outputs: Any, teacher: Any, labels: Tensor) -> Tensor:
        """Loss of one subnet (Eq. 7 and 8); the first of the progressive chain has no teacher, as a rule."""
        smoothing = self.label_smoothing
        if teacher is None:
            hard = self.objective.supervised(outputs, labels, label_smoothing=smoothing)
            assert hard is not None  # without labels there is a teacher
            return hard
        weight, temperature = self.distillation.weight, self.distillation.temperature
        return self.objective.guided(
            outputs, teacher, labels, weight=weight, temperature=temperature, label_smoothing=smoothing
        )


@torch.no_grad()
def _loss_and_accuracy(loss: Tensor, correct: Tensor | None, labels: Tensor) -> tuple[float, float | None]:
    """Fetch a loss and the share of correct labels together: a GPU is waited for once."""
    if correct is None:
        return loss.item(), None
    value, count = torch.stack((loss, correct.to(loss.dtype))).tolist()
    return value, count / labels.numel()


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
