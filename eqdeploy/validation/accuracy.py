"""Accuracy: float model, simulated subnet, integer reference and exported model side by side on labelled data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqdeploy.errors import AccuracyError, DataError
from eqdeploy.progress import Progress, SilentProgress
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.supernet.inputs import call, to_inputs
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.validation.decisions import decisions
from eqdeploy.validation.reference.integer import IntegerReference
from eqdeploy.validation.runtime import Level, Session

#: Images evaluated at once.
BATCH_IMAGES = 64

#: Returns the logits of a batch: images (N, …) in, an array of shape (N, classes) out.
Classifier = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of one network.

    Attributes:
        name: What was evaluated.
        correct: Number of labels that are the top-1 class.
        images: Number of labels: one for each image, or for each place of a map, such as a pixel.
        noun: What is counted.
    """

    name: str
    correct: int
    images: int
    noun: str = "images"

    @property
    def fraction(self) -> float:
        """Correct images over all images."""
        return self.correct / self.images

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"correct": self.correct, "images": self.images, "accuracy": self.fraction}


@dataclass(frozen=True)
class AccuracyReport:
    """Top-1 accuracy of several networks on the same images.

    Attributes:
        baseline: The network that others are compared with, usually the float model.
        exported: The exported model as a runtime executes it.
        others: Whatever else was evaluated, such as the simulated subnet.
    """

    baseline: Accuracy
    exported: Accuracy
    others: tuple[Accuracy, ...] = ()

    @property
    def drop(self) -> float:
        """Accuracy that the exported model has lost against the baseline; negative if it gained."""
        return self.baseline.fraction - self.exported.fraction

    @property
    def summary(self) -> str:
        """The outcome in one sentence."""
        rows = (self.baseline, *self.others, self.exported)
        shares = ", ".join(f"{row.name} {row.fraction:.2%}" for row in rows)
        return f"top-1 on {self.exported.images} images: {shares}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = (self.baseline, *self.others, self.exported)
        return {"summary": self.summary, "drop": self.drop, "networks": {row.name: row.to_json() for row in rows}}


def measure_accuracy(
    name: str,
    classifier: Classifier,
    images: NDArray[Any],
    labels: NDArray[Any],
    *,
    noun: str = "images",
    progress: Progress | None = None,
) -> Accuracy:
    """Count the images whose top-1 class is the label.

    Args:
        name: What is evaluated.
        classifier: Returns logits of shape (N, classes) or (N, classes, 1, …), or (N, classes, …) where each image has
            a map of labels (N, …).
        images: What the classifier takes, shape (N, …), at least one.
        labels: Integers, shape (N,), or (N, …) for maps.
        noun: What one calls the images.
        progress: Listener.

    Raises:
        DataError: If images and labels do not belong together, or the logits are not one row per image with a
            finite number for every class.
    """
    if labels.shape[:1] != (len(images),) or len(images) == 0:
        raise DataError(f"{len(images)} images and labels of shape {labels.shape} do not belong together", where=name)
    correct = int((decide(name, classifier, images, labels, progress=progress) == labels).sum())
    return Accuracy(name, correct, labels.size, noun_of_labels(labels, noun))


def noun_of_labels(labels: NDArray[Any], noun: str) -> str:
    """What is counted: images, or whatever one calls them, or the labels where each of them has a map."""
    return noun if labels.ndim == 1 else "labels"


def scores_fit(outputs: NDArray[Any], labels: NDArray[Any]) -> bool:
    """Whether an output holds scores of classes for every label, whatever the number of classes.

    Args:
        outputs: (N, classes, …).
        labels: (N,), or (N, …) for maps.
    """
    if outputs.ndim < 2:
        return False
    places = outputs.shape[2:]
    return places == labels.shape[1:] or (labels.ndim == 1 and all(size == 1 for size in places))


def decide(
    name: str,
    classifier: Classifier,
    images: NDArray[Any],
    labels: NDArray[Any] | None = None,
    *,
    progress: Progress | None = None,
) -> NDArray[np.int32]:
    """Top-1 decisions on images, batch by batch.

    Args:
        name: What is evaluated.
        classifier: Returns outputs of shape (N, classes) or (N, classes, …); with labels, scores for each of them.
        images: What the classifier takes, shape (N, …), at least one.
        labels: Integers, shape (N,) or (N, …), for which there must be a class each; None if there are none.
        progress: Listener.

    Returns:
        int32, shape (N,): the class of each image; for maps (N, …): the class of each pixel. An output without an axis
        of classes makes no decisions.

    Raises:
        DataError: If the outputs are not finite, or with labels are not a score of every class for each of them.
    """
    listener = progress or SilentProgress()
    parts: list[NDArray[np.int32]] = []
    with listener.stage(f"measuring accuracy: {name}", total=len(images)) as advance:
        for start in range(0, len(images), BATCH_IMAGES):
            batch = images[start : start + BATCH_IMAGES]
            outputs = np.asarray(classifier(batch))
            if labels is not None:
                wanted = labels[start : start + BATCH_IMAGES]
                fits = scores_fit(outputs, wanted)
                if fits and labels.ndim == 1:
                    outputs = outputs.reshape(len(outputs), -1)
                if not fits or len(outputs) != len(batch) or outputs.shape[1] <= int(wanted.max()):
                    raise DataError(
                        f"the network returns {outputs.shape} for {len(batch)} images with labels up to "
                        f"{int(labels.max())}",
                        where=name,
                    )
                decided = outputs.argmax(axis=1)
            else:
                decided = decisions(outputs)
            if not bool(np.isfinite(outputs).all()):
                raise DataError("the network returns numbers that are not finite", where=name)
            parts.append(decided.astype(np.int32))
            advance(len(batch))
    return np.concatenate(parts)


def torch_classifier(module: Callable[..., Any]) -> Classifier:
    """Use the first output of a torch module, or of a function of its inputs, as a classifier.

    A module is evaluated in evaluation mode and left as it was.
    """

    def classify(images: NDArray[Any]) -> NDArray[Any]:
        was_training = isinstance(module, torch.nn.Module) and module.training
        if isinstance(module, torch.nn.Module):
            module.eval()
        try:
            with torch.inference_mode():
                inputs = to_inputs(images if images.dtype.names else np.ascontiguousarray(images))
                is_module = isinstance(module, torch.nn.Module)
                outputs = tensors_in(call(module, inputs) if is_module else module(inputs))
        finally:
            if isinstance(module, torch.nn.Module):
                module.train(was_training)
        logits: NDArray[Any] = outputs[0].numpy()
        return logits

    return classify


def onnx_classifier(path: Path, *, level: Level = Level.ALL, threads: int = 1) -> Classifier:
    """Use the first output of an ONNX file in ONNX Runtime as a classifier.

    Raises:
        RuntimeRefusedError: If ONNX Runtime does not load the file.
    """
    session = Session(path, level, where=str(path), threads=threads)
    return lambda images: session.run(images)[session.output_names[0]]


def reference_classifier(model: QuantizedModel) -> Classifier:
    """Use the first output of the integer reference as a classifier.

    Raises:
        ValidationError: If the model's encodings do not belong to its graph.
    """
    reference = IntegerReference(model)
    name = reference.graph.output_names[0]
    return lambda images: reference.run(images).outputs[name]


def check_gates(report: AccuracyReport, *, min_accuracy: float | None = None, max_drop: float | None = None) -> None:
    """Enforce limits on the accuracy of the exported model.

    Args:
        report: What was measured.
        min_accuracy: Smallest top-1 accuracy, a fraction between 0 and 1; None for no limit.
        max_drop: Largest loss against the baseline, a fraction between 0 and 1; None for no limit.

    Raises:
        AccuracyError: If a limit is missed; names the limit and what was measured.
    """
    measured = report.exported.fraction
    if min_accuracy is not None and measured < min_accuracy:
        raise AccuracyError(
            f"top-1 accuracy {measured:.2%} is below the required {min_accuracy:.2%}", where=report.exported.name
        )
    # Compared as counts of images: a drop of exactly the limit passes whatever the rounding of the fractions.
    lost = report.baseline.correct - report.exported.correct
    if max_drop is not None and lost > max_drop * report.exported.images + 1e-9:
        raise AccuracyError(
            f"top-1 accuracy fell from {report.baseline.fraction:.2%} to {measured:.2%}, "
            f"by {report.drop:.2%} where at most {max_drop:.2%} is allowed",
            where=report.exported.name,
        )
