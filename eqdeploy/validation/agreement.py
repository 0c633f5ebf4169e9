"""Decisions of the exported model against those of the simulated subnet, and what chance allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.validation.accuracy import Accuracy, noun_of_labels
from eqdeploy.validation.decisions import SIGNIFICANCE, Agreement, binomial_tail


@dataclass(frozen=True, eq=False)
class Answers:
    """What one network decides on some images.

    Attributes:
        name: The network.
        decisions: Integers, shape (N,): the class of each image; or (N, …): of each pixel of a map. Empty if the
            network's output has no axis of classes.
        labels: Integers, shape (N,), or (N, …) for maps; None if the images have none.
        noun: What one calls the images.
        why_no_accuracy: Why ``labels`` are None.
    """

    name: str
    decisions: NDArray[np.integer[Any]]
    labels: NDArray[np.integer[Any]] | None
    noun: str = "images"
    why_no_accuracy: str = "the images have no labels"

    @property
    def correct(self) -> NDArray[np.bool_] | None:
        """Which images are decided as labelled, the shape of the labels; None without labels."""
        return None if self.labels is None else np.asarray(self.decisions == self.labels)

    @property
    def accuracy(self) -> Accuracy | None:
        """Top-1 accuracy, None without labels."""
        correct = self.correct
        if correct is None:
            return None
        return Accuracy(self.name, int(correct.sum()), correct.size, noun_of_labels(correct, self.noun))


@dataclass(frozen=True)
class ExportDrop:
    """Accuracy that the exported model lost against the simulated subnet, image by image.

    Attributes:
        images: Number of images, or of labels of their maps.
        lost: Images that only the simulated subnet decides rightly.
        gained: Images that only the exported model decides rightly.
        allowed: Loss that is accepted whatever chance says, a fraction between 0 and 1.
    """

    images: int
    lost: int
    gained: int
    allowed: float

    @property
    def fraction(self) -> float:
        """Accuracy lost; negative if it gained."""
        return (self.lost - self.gained) / self.images

    @property
    def probability(self) -> float:
        """Probability of a loss as large as this one if the export changes decisions without making them worse.

        The exact test of McNemar: of the images that only one of the two decides rightly, each is as likely to be
        lost as to be gained (Q. McNemar, Psychometrika 12, 1947; in its exact, one-sided form, e.g. T. Dietterich,
        Neural Computation 10, 1998). Images that may be lost are taken out of the lost ones first.
        """
        lost = max(0, self.lost - math.floor(self.allowed * self.images + 1e-9))
        return binomial_tail(lost, lost + self.gained, 0.5)

    @property
    def passed(self) -> bool:
        """Whether chance may explain the loss."""
        return self.probability >= SIGNIFICANCE

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "lost": self.lost,
            "gained": self.gained,
            "drop": self.fraction,
            "max_export_drop": self.allowed,
            "probability": float(f"{self.probability:.4g}"),
            "significance": SIGNIFICANCE,
        }


def compare_decisions(simulated: Answers, exported: Answers, floor: float) -> Agreement | None:
    """Count equal decisions.

    Args:
        simulated: What the simulated subnet decides.
        exported: What the exported model decides on the same images.
        floor: Smallest fraction of equal decisions.

    Returns:
        None if there are no decisions.
    """
    if exported.decisions.size == 0 or exported.decisions.shape != simulated.decisions.shape:
        return None
    differing = int((simulated.decisions != exported.decisions).sum())
    return Agreement(int(exported.decisions.size), differing, floor)


def compare_accuracy(simulated: Answers, exported: Answers, allowed: float) -> ExportDrop | None:
    """Count images that only one of two networks decides rightly.

    Args:
        simulated: What the simulated subnet decides.
        exported: What the exported model decides on the same images.
        allowed: Loss that is accepted in any case.

    Returns:
        None without labels.
    """
    before, after = simulated.correct, exported.correct
    if before is None or after is None:
        return None
    return ExportDrop(after.size, int((before & ~after).sum()), int((after & ~before).sum()), allowed)
