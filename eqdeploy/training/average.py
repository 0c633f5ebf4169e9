"""Exponential moving average of a network's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ParameterAverage:
    """Averages all parameters over the steps of a phase.

    The decay grows with the steps, ``min(decay, (1 + n) / (10 + n))``: the start of a run is soon forgotten.

    Args:
        model: Whose parameters are averaged.
        decay: Weight of the average so far, 0 < decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step.

        Args:
            step: Steps of the phase that were done before this one.
        """
        weight = 1.0 - min(self._decay, (1 + step) / (10 + step))
        # One kernel for all tensors; torch's stubs do not list it.
        torch._foreach_lerp_(list(self.values.values()), list(self._parameters.values()), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the place of the parameters while the context is open."""
        before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(before)

    def adopt(self) -> None:
        """Make the averages the parameters, for good."""
        self._write(self.values)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from saved averages, one for each parameter."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        """Set all parameters."""
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
