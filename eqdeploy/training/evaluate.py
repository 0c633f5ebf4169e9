"""Accuracy of a supernet over the grid of uniform forms, each with BatchNorm calibrated for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.data.inputs import InputPreprocessing
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.network import NetworkDescription
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.inputs import Inputs, batch_size, call, map_inputs, parts, split_evenly, to_inputs
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.workers import ALONE, Workers

#: Images of one forward pass.
BATCH_SIZE = 256


class UniformForm(NamedTuple):
    """The same form everywhere, the first and the last layer at the boundary width.

    Attributes:
        bits: Width of weights and activations.
        granularity: Granularity of the weights.
        symmetry: Symmetry of weights and activations.
    """

    bits: int
    granularity: Granularity
    symmetry: Symmetry

    def subnet(self, network: NetworkDescription) -> SubnetConfig:
        """The subnet of a network in this form."""
        return SubnetConfig.uniform(
            network,
            weight_bits=self.bits,
            activation_bits=self.bits,
            granularity=self.granularity,
            weight_symmetry=self.symmetry,
            activation_symmetry=self.symmetry,
        )


@dataclass(frozen=True)
class EvaluationRow:
    """Accuracy of one subnet with the same form everywhere, first and last layer at the boundary width.

    Attributes:
        bits: Width of weights and activations.
        granularity: Granularity of the weights.
        symmetry: Symmetry of weights and activations.
        correct: Number of images whose largest score is their class.
        images: Number of images.
    """

    bits: int
    granularity: Granularity
    symmetry: Symmetry
    correct: int
    images: int

    @property
    def name(self) -> str:
        """What was measured, e.g. ``"W4A4 per_tensor symmetric"``."""
        return f"W{self.bits}A{self.bits} {self.granularity} {self.symmetry}"

    @property
    def accuracy(self) -> float:
        """Share of images classified correctly, 0 to 1."""
        return self.correct / self.images

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "bits": self.bits,
            "granularity": str(self.granularity),
            "symmetry": str(self.symmetry),
            "correct": self.correct,
            "images": self.images,
        }


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over the grid.

    Attributes:
        float_correct: Images that the supernet's weights classify correctly without any quantization.
        images: Number of images, or of labels where each image has a map of them.
        rows: One row for each width, granularity and symmetry of the space, in the space's order.
    """

    float_correct: int
    images: int
    rows: tuple[EvaluationRow, ...]

    @property
    def float_accuracy(self) -> float:
        """Share of images classified correctly in float, 0 to 1."""
        return self.float_correct / self.images

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "float_correct": self.float_correct,
            "images": self.images,
            "rows": [row.to_json() for row in self.rows],
        }


def evaluate_grid(
    supernet: Supernet,
    *,
    calibration: Inputs,
    data: LabelledImages,
    preprocessing: InputPreprocessing,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] | None = None,
    workers: Workers = ALONE,
    forward: Callable[[Inputs], Any] | None = None,
    forms: Sequence[UniformForm] | None = None,
) -> Evaluation:
    """Measure the float network and every uniform form of the supernet's space.

    Several processes take turns; each counts the images of its networks, and all learn all counts.

    Args:
        supernet: Is deactivated afterwards; its BatchNorm statistics and mode are as before.
        calibration: Training images through the training augmentation, (N, C, H, W), N >= 2, on the supernet's
            device.
        data: Held-out, labelled images as stored.
        preprocessing: From pixels to the network's input.
        batch_size: Images of one forward pass.
        advance: Called with the number of networks that have been measured since.
        workers: The processes that share the work. They have the same parameters and arguments.
        forward: Runs the supernet in evaluation mode; None for an inference network, which counts the same faster.
        forms: What to measure besides the float network, None for all of the space.

    Returns:
        Counts of correct images.

    Raises:
        DataError: If the images are unlabelled or the calibration images do not suffice.
        ReportedError: In all processes but the first, in its place.
    """
    data.require_labels()
    network = supernet.network
    count = _counter(supernet, (calibration, data, preprocessing), batch_size, forward)
    if forms is None:
        space = network.space
        forms = [UniformForm(*form) for form in itertools.product(space.bits, space.granularities, space.symmetries)]
    subnets: list[SubnetConfig | None] = [None]
    subnets += [form.subnet(network) for form in forms]
    counts = [0] * len(subnets)
    with workers.together(), _statistics_restored(supernet):
        for first in range(0, len(subnets), workers.world_size):
            own = first + workers.rank
            if own < len(subnets):
                counts[own] = count(subnets[own])
            if advance is not None:
                advance(min(workers.world_size, len(subnets) - first))
        supernet.deactivate()
    float_correct, *counts = workers.sum(counts)
    rows = [EvaluationRow(*form, correct, data.labels.size) for form, correct in zip(forms, counts, strict=True)]
    return Evaluation(float_correct=float_correct, images=data.labels.size, rows=tuple(rows))


@torch.no_grad()
def calibrated_correct(
    model: nn.Module,
    calibration: Inputs,
    data: LabelledImages,
    preprocessing: InputPreprocessing,
    *,
    batch_size: int = BATCH_SIZE,
    forward: Callable[[Inputs], Any] | None = None,
) -> int:
    """Calibrate BatchNorm for the active subnet and count the images that it classifies correctly.

    The new statistics stay in the model; its mode is as before.

    Args:
        model: A supernet with a subnet active, or deactivated for float, or the module of an inference network.
        calibration: Images for the statistics, (N, C, H, W), N >= 2, on the supernet's device.
        data: Labelled images to classify, as stored.
        preprocessing: From pixels to the network's input.
        batch_size: Images of one forward pass.
        forward: Runs the model in evaluation mode; None to call it.
    """
    calibrate_batch_norm(model, even_batches(calibration, batch_size))
    return count_correct(
        model, data, preprocessing, device=parts(calibration)[0].device, batch_size=batch_size, forward=forward
    )


@torch.no_grad()
def count_correct(
    model: nn.Module,
    data: LabelledImages,
    preprocessing: InputPreprocessing,
    *,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
    forward: Callable[[Inputs], Any] | None = None,
) -> int:
    """Count the images that a model classifies correctly with the BatchNorm statistics that it has.

    Its mode is as before.

    Args:
        model: As for :func:`calibrated_correct`.
        data: Labelled images to classify, as stored.
        preprocessing: From pixels to the network's input.
        device: Where the model is.
        batch_size: Images of one forward pass.
        forward: Runs the model in evaluation mode; None to call it.
    """
    training = model.training
    model.eval()
    try:
        correct = 0
        for start in range(0, len(data), batch_size):
            rows = slice(start, start + batch_size)
            stored = to_inputs(preprocessing.apply(data.images[rows]))
            images = map_inputs(lambda part: part.to(device), stored)
            outputs = call(model, images) if forward is None else forward(images)
            labels = torch.from_numpy(data.labels[rows]).to(device)
            correct += int((outputs.argmax(dim=1) == labels).sum())
        return correct
    finally:
        model.train(training)


def even_batches(images: Inputs, size: int = BATCH_SIZE) -> list[Inputs]:
    """Split images into batches of nearly equal size, so that no last batch is too small for statistics."""
    return split_evenly(images, -(-batch_size(images) // size))


def _counter(
    supernet: Supernet,
    images: tuple[Inputs, LabelledImages, InputPreprocessing],
    batch_size: int,
    forward: Callable[[Inputs], Any] | None,
) -> Callable[[SubnetConfig | None], int]:
    """What counts the correct images of a subnet, of the float network for None."""
    if forward is None:
        network = InferenceNetwork(supernet)

        def count(subnet: SubnetConfig | None) -> int:
            network.activate(subnet)
            return calibrated_correct(network.module, *images, batch_size=batch_size, forward=network.evaluate)

        return count

    def count_as_told(subnet: SubnetConfig | None) -> int:
        if subnet is None:
            supernet.deactivate()
        else:
            supernet.activate(subnet)
        return calibrated_correct(supernet, *images, batch_size=batch_size, forward=forward)

    return count_as_told


@contextmanager
def _statistics_restored(supernet: Supernet) -> Iterator[None]:
    """Put every buffer back as it was."""
    saved = [(buffer, buffer.clone()) for buffer in supernet.buffers()]
    try:
        yield
    finally:
        for buffer, before in saved:
            buffer.copy_(before)
