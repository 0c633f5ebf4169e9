"""The learning rate as a pure function of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math

from eqdeploy.errors import UsageError
from eqdeploy.training.settings import OptimizationSettings


def cosine_learning_rate(step: int, *, steps: int, warm_up_steps: int, peak: float, restarts: int = 0) -> float:
    """Learning rate of one optimizer step: linear warm-up, then half a cosine towards 0, once or several times.

    ``peak · (step + 1) / warm_up_steps`` during warm-up, then ``peak · (1 + cos(π · progress)) / 2`` where progress
    runs from 0 to just below 1 in each of ``restarts + 1`` cycles of equal length (SGDR, Loshchilov & Hutter, 2017).

    Args:
        step: Index of the step, 0 to ``steps - 1``.
        steps: Length of the whole run.
        warm_up_steps: Length of the warm-up; 0 starts at the peak.
        peak: The largest learning rate.
        restarts: How often the learning rate returns to its peak, without a second warm-up.

    Returns:
        The learning rate, positive for every step of the run.

    >>> [round(cosine_learning_rate(step, steps=4, warm_up_steps=0, peak=1.0), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    if step < warm_up_steps:
        return peak * (step + 1) / warm_up_steps
    length = max(steps - warm_up_steps, 1)
    # In integers, so that a cycle begins at its first step exactly.
    progress = (step - warm_up_steps) * (restarts + 1) % length / length
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def require_cycles(settings: OptimizationSettings, *, steps: int, where: str) -> None:
    """Refuse more restarts than there are steps: the learning rate would be no schedule but noise.

    Args:
        settings: Warm-up and restarts.
        steps: Length of the whole run; 0 for a phase that is left out.
        where: Name of the settings, for messages.

    Raises:
        UsageError: If a cycle has no step of its own.
    """
    length = max(steps - settings.warm_up_steps, 1)
    if steps and settings.restarts >= length:
        raise UsageError(
            f"{settings.restarts} restarts do not fit into the {length} steps that follow the warm-up",
            where=f"{where}.restarts",
            hint=f"at most {length - 1} do",
        )
