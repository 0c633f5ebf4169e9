"""The encodings that depend on calibration images, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """What measuring says about the encoding of one tensor.

    Attributes:
        scale: A float32 number.
        zero_point: Inside the range of the tensor's form on the device.
    """

    scale: float
    zero_point: int


@dataclass(frozen=True)
class MeasuredRanges:
    """All encodings of a subnet that depend on calibration images.

    Attributes:
        ranges: By tensor: those whose range was calibrated, and trained ones that had to be rounded to powers of two.
        notes: What a user should know about them.
    """

    ranges: Mapping[str, Range]
    notes: tuple[str, ...] = ()
