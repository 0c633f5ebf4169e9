"""What a network is trained for: classes, a loss that the user names, or nothing but the float network's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eqdeploy.data.labelled import LabelledImages
from eqdeploy.errors import ProfileError, UsageError
from eqdeploy.training.losses import distillation_loss
from eqdeploy.user_code import call, import_attribute, working_directory_importable

#: A loss of the user's: outputs of the network and labels of a batch to a scalar.
Loss = Callable[[Any, Tensor], Tensor]

_LOSS_RETURNS = "take the network's outputs and the labels of a batch, and return a scalar tensor"

#: Keeps a teacher's constant output from making the loss infinite.
_SMALLEST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Objective:
    """How outputs are compared with labels, and with the outputs of a better network.

    Attributes:
        has_labels: Whether there are labels to learn from; without, the float network is the only guide.
        classifies: Whether the output is one tensor of scores (N, classes, …) and every label names a class. Only
            then is there an accuracy.
        loss: The user's loss, None for the cross entropy of the classes.
        name: Reference of that loss.
    """

    has_labels: bool
    classifies: bool
    loss: Loss | None = None
    name: str | None = None

    def supervised(self, outputs: Any, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor | None:
        """Loss against the labels, a scalar; None without labels.

        Args:
            outputs: What the network returns for a batch.
            labels: (N, …), as the data set holds them.
            label_smoothing: Share of every label that is spread over all classes; for the cross entropy only.

        Raises:
            UsageError: If the user's loss fails or returns something else.
        """
        if not self.has_labels:
            return None
        if self.loss is None:
            return functional.cross_entropy(outputs, labels, label_smoothing=label_smoothing)
        value = call(self.loss, outputs, labels, where=self.name or "loss", what="the loss")
        if not isinstance(value, Tensor) or value.ndim != 0:
            kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"the loss returned {kind}", where=self.name, hint=_LOSS_RETURNS)
        return value

    def divergence(self, student: Any, teacher: Any, *, temperature: float) -> Tensor:
        """How far outputs are from a better network's; the teacher receives no gradient.

        Scores of classes are compared as distributions (:func:`~eqdeploy.training.losses.distillation_loss`), other
        outputs by their squared distance in units of the teacher's variance, each output tensor for itself.

        Args:
            student: What the network returns.
            teacher: What the better one returns for the same batch.
            temperature: Softening of distributions.
        """
        if self.classifies:
            return distillation_loss(student, teacher, temperature=temperature)
        terms = [
            functional.mse_loss(ours, theirs.detach()) / theirs.detach().var(correction=0).clamp_min(_SMALLEST_VARIANCE)
            for ours, theirs in zip(tensors_of(student), tensors_of(teacher), strict=True)
            if ours.is_floating_point()
        ]
        return torch.stack(terms).sum()

    def guided(
        self,
        student: Any,
        teacher: Any,
        labels: Tensor,
        *,
        weight: float,
        temperature: float,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Loss of a subnet that a better one guides (EQ-Net, Eq. 8): ``λ · divergence + (1 − λ) · supervised``.

        The best subnet of a step has no teacher; its loss is the supervised one alone (Eq. 7).

        Args:
            student: What the network returns, logits ``(images, classes)`` as a rule.
            teacher: What the next better subnet returns for the same images; receives no gradient.
            labels: Class indices, int64, ``(images,)``, or what the loss compares with.
            weight: λ, between 0 and 1; without labels, the divergence is all.
            temperature: Softening of distributions.
            label_smoothing: Share of every label that is spread over all classes.

        Returns:
            Scalar, in nats per image for classes.
        """
        hard = self.supervised(student, labels, label_smoothing=label_smoothing)
        soft = self.divergence(student, teacher, temperature=temperature)
        return soft if hard is None else weight * soft + (1 - weight) * hard

    def correct(self, outputs: Any, labels: Tensor) -> Tensor | None:
        """Number of labels whose class has the largest score; None where there are no classes."""
        if not self.classifies or not self.has_labels:
            return None
        found: Tensor = (outputs.argmax(dim=1) == labels).sum()
        return found


#: Scores of classes and labels, as almost all networks have them.
CLASSES = Objective(has_labels=True, classifies=True)


def tensors_of(outputs: Any) -> list[Tensor]:
    """All tensors that a network returns, in the order in which it returns them."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [tensor for value in outputs.values() for tensor in tensors_of(value)]
    if isinstance(outputs, Sequence):
        return [tensor for value in outputs for tensor in tensors_of(value)]
    return []


def map_outputs(function: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """Apply a function to every tensor that a network returns."""
    if isinstance(outputs, Tensor):
        return function(outputs)
    if isinstance(outputs, Mapping):
        return {name: map_outputs(function, value) for name, value in outputs.items()}
    if isinstance(outputs, tuple | list):
        return tuple(map_outputs(function, value) for value in outputs)
    return outputs


def load_loss(reference: str, *, run_code: bool) -> Loss:
    """Import a loss, ``package.module:function``.

    Args:
        reference: What the user names.
        run_code: Whether the user named it on the command line.

    Raises:
        UsageError: If it may not be run, does not exist, or is no function.
    """
    if not run_code:
        raise UsageError(
            "names code, which is run only when the command line asks for it",
            where=f"loss: {reference}",
            hint=f"give --loss {reference}",
        )
    with working_directory_importable():
        loss = import_attribute(reference)
    if not callable(loss):
        raise UsageError(f"is a {type(loss).__name__}, not a function", where=reference, hint=_LOSS_RETURNS)
    return loss


def make_objective(
    outputs: Any, data: LabelledImages, *, loss: tuple[str, Loss] | None, trains_float: bool, where: str
) -> Objective:
    """Find out what a network can be trained for with some data.

    Args:
        outputs: What the network returns for a batch of two.
        data: Training samples.
        loss: Reference of the user's loss and the loss, if there is one.
        trains_float: Whether the float network is to be trained, which takes labels.
        where: The model, for messages.

    Raises:
        UsageError: If there is nothing to train with.
        ProfileError: If the network's output does not fit the labels and no loss is named.
    """
    classifies = fits_classes(outputs, data)
    if loss is not None:
        if not data.has_targets:
            raise UsageError(
                f"the loss {loss[0]} compares with labels, and the data have none",
                where=data.source,
                hint="store an array 'labels', or leave --loss out to learn from the float network alone",
            )
        return Objective(has_labels=True, classifies=classifies, loss=loss[1], name=loss[0])
    if not data.has_targets:
        if trains_float:
            raise UsageError(
                "the data have no labels, which the float network needs to be trained",
                where=data.source,
                hint="store an array 'labels'; or start from trained weights (--weights) with float_training.epochs: 0,"
                " and the subnets learn from the float network's outputs alone",
            )
        return Objective(has_labels=False, classifies=_is_scores(outputs))
    if not classifies:
        raise ProfileError(_misfit(outputs, data), where=where, hint=_misfit_hint(outputs, data))
    return Objective(has_labels=True, classifies=True)


def fits_classes(outputs: Any, data: LabelledImages) -> bool:
    """Whether a network returns a score of each class for every label."""
    if not isinstance(outputs, Tensor) or not data.is_labelled or outputs.ndim < 2:
        return False
    return outputs.shape[1] == len(data.classes) and outputs.shape[2:] == data.labels.shape[1:]


def _is_scores(outputs: Any) -> bool:
    """Whether unlabelled outputs may be taken for scores of classes: (N, C), two at least."""
    return isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1


def _misfit(outputs: Any, data: LabelledImages) -> str:
    """What does not fit, in words."""
    if not isinstance(outputs, Tensor):
        return f"the network returns a {type(outputs).__name__}, not one tensor of scores"
    places = tuple(data.labels.shape[1:])
    if not data.is_labelled:
        labels = f"labels are numbers, {places or 'one'} for each"
    elif places:
        labels = f"labels are maps of shape {places} with {len(data.classes)} classes"
    else:
        labels = f"data have {len(data.classes)} classes"
    sample = "image" if data.images.ndim == 4 else "input"
    return f"the network returns {tuple(outputs.shape[1:])} for an {sample}, the {labels}"


def _misfit_hint(outputs: Any, data: LabelledImages) -> str:
    """What would fit."""
    other = "name a loss of your own with --loss module:function, which gets outputs and labels"
    if isinstance(outputs, Tensor) and data.is_labelled:
        if outputs.ndim == 2 and data.labels.ndim == 1:
            return f"set the number of classes in model.arguments, or {other}"
        if outputs.ndim > 2:
            shape = f"(N, {', '.join(map(str, outputs.shape[2:]))})"
            return f"store class indices below {outputs.shape[1]} of shape {shape} as labels, or {other}"
    if isinstance(outputs, Tensor) and not data.is_labelled and outputs.ndim == 2:
        return f"store class indices as integers, or {other}"
    return other
