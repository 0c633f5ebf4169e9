"""Whether calibration images look like those that the network was trained on.

An image of another scale, a black image or images of one class are as good a tensor as any other: nothing fails, and
the accuracy goes. Compared are the mean and the mean square of each channel of the preprocessed images, and of the
outputs that the float network has for them, with those of the training images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from eqdeploy.data.statistics import ChannelStatistics, DataStatistics

#: A mean over N images varies by (spread between images) / √N. Further away than this many times that is no chance:
#: among 2,800 random subsets of 16 to 1,024 digits and CIFAR-10 images, of both splits, the largest was 7.1.
CHANCE = 8.0

#: What is no chance may still be harmless: differences are told from this many spreads between images on.
EFFECT = 0.5

#: Fewer images than this are told of. Digits at 4 bits: 77.0 % with one image, 97.8 with 16, 99.0 with 32, 99.5 with
#: all 1,200.
FEWEST = 32


@dataclass(frozen=True)
class _Difference:
    """How far one channel is off, in spreads between images."""

    channel: int
    quantity: str
    expected: float
    found: float
    spreads: float


def compare(found: DataStatistics, expected: DataStatistics) -> tuple[str, ...]:
    """Say in what calibration images differ from training images, and by how much.

    Args:
        found: Of the calibration images.
        expected: Of the training images.

    Returns:
        One sentence for each finding, none if they look alike.
    """
    findings = list(too_few(found.images))
    for what, left, right in (("pixels", found.input, expected.input), ("outputs", found.output, expected.output)):
        worst = _worst(left, right, found.images, expected.images)
        if worst is not None:
            channel = f" of channel {worst.channel}" if len(left.mean) > 1 else ""
            findings.append(
                f"{what} have a {worst.quantity}{channel} of {worst.found:.3g}, those of training images "
                f"{worst.expected:.3g}: {worst.spreads:.1f} standard deviations between images"
            )
    return tuple(findings)


def too_few(images: int) -> tuple[str, ...]:
    """Say that statistics rest on too few images, if they do."""
    return (f"there are only {images}, statistics need at least {FEWEST}",) if images < FEWEST else ()


def _worst(found: ChannelStatistics, expected: ChannelStatistics, images: int, trained: int) -> _Difference | None:
    """The largest difference that is neither chance nor harmless, None if there is none."""
    if len(found.mean) != len(expected.mean):
        return None
    differences = [
        _Difference(channel, quantity, right, left, abs(left - right) / max(spread, 1e-6 * abs(right), 1e-30))
        for quantity, lefts, rights, spreads in (
            ("mean", found.mean, expected.mean, expected.mean_spread),
            ("mean square", found.power, expected.power, expected.power_spread),
        )
        for channel, (left, right, spread) in enumerate(zip(lefts, rights, spreads, strict=True))
    ]
    limit = max(EFFECT, CHANCE * math.sqrt(1.0 / images + 1.0 / trained))
    worst = max(differences, key=lambda difference: difference.spreads)
    return worst if worst.spreads > limit else None
