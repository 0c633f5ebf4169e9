"""The real numbers of an encoding, and the values that it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eqdeploy.plan import DevicePlan
from eqdeploy.quant.encoding import Encoding


@dataclass(frozen=True)
class Grid:
    """The real numbers of an encoding: ``scale`` times every whole number from ``lowest`` to ``highest``."""

    scale: float
    lowest: int
    highest: int

    @staticmethod
    def of(encoding: Encoding) -> Grid:
        """The grid of an encoding with one scale."""
        zero = int(encoding.zero_point)
        return Grid(float(encoding.scale), encoding.q_min - zero, encoding.q_max - zero)

    def __str__(self) -> str:
        return f"{self.scale:.9g} · [{self.lowest}, {self.highest}]"

    def error(self, values: Tensor) -> float:
        """Mean squared error on values, in float64."""
        steps = torch.clamp(torch.round(values / self.scale), self.lowest, self.highest)
        return float((steps.double() * self.scale - values.double()).square().mean())


def pooled_samples(plan: DevicePlan, owner: str, samples: Mapping[str, Tensor]) -> Tensor | None:
    """Samples of a tensor and of all that take its encoding, in network order."""
    parts = [
        samples[tensor.tensor]
        for tensor in plan.tensors
        if owner in (tensor.tensor, tensor.shares_with) and tensor.tensor in samples
    ]
    return torch.cat(parts, dim=1) if parts else None
