"""What is measured of a subnet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """How a network did on some images.

    Attributes:
        correct: Number of images whose largest score is their class.
        images: Number of images.
        cross_entropy: Mean cross-entropy, in nats.
    """

    correct: int
    images: int
    cross_entropy: float


@dataclass(frozen=True)
class SubnetMeasurement:
    """How a subnet did on labelled images.

    Attributes:
        halves: The same on every second image, beginning with the first, and on the others: how well the two agree
            over many subnets tells how much of a measurement is chance.
    """

    halves: tuple[Score, Score]

    @property
    def correct(self) -> int:
        """Number of images whose largest score is their class."""
        return sum(half.correct for half in self.halves)

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(half.images for half in self.halves)

    @property
    def accuracy(self) -> float:
        """Share of images classified correctly, 0 to 1."""
        return self.correct / self.images

    @property
    def cross_entropy(self) -> float:
        """Mean cross-entropy over all images, in nats."""
        return sum(half.cross_entropy * half.images for half in self.halves) / self.images
