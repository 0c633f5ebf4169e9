"""What a training run tells while it goes on: measurements of every step, the grid of forms, the weights.

Observers only look: with or without them a run computes the same numbers and writes the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eqdeploy.training.evaluate import Evaluation

#: Name of the float network among those of a step.
FLOAT = "float"

#: Copies all weights of quantized layers, by layer, in the layout of their parameters.
Weights = Callable[[], "Mapping[str, NDArray[np.float32]]"]


@dataclass(frozen=True)
class PhaseStart:
    """A phase begins, or goes on after a resume.

    Attributes:
        phase: ``"float"`` or ``"supernet"``.
        epochs: Passes over the training images.
        steps_per_epoch: Optimizer steps of one of them.
        step: Steps that are done already, by the run that is resumed.
        weights: Copies the weights as they are when it is called.
    """

    phase: str
    epochs: int
    steps_per_epoch: int
    step: int
    weights: Weights

    @property
    def steps(self) -> int:
        """Optimizer steps of the phase."""
        return self.epochs * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """Epoch that a step belongs to, counted from 1; of the number of steps, the last one."""
        return min(step // self.steps_per_epoch + 1, self.epochs)


@dataclass(frozen=True)
class BatchMeasurements:
    """What was measured on a training batch, before the optimizer's step.

    Attributes:
        losses: Loss of each network in nats per image, by name: ``"float"``; ``"highest"``, ``"random"`` and
            ``"lowest"``, the subnets of the sandwich; or ``"static"``.
        accuracies: Share of the batch that each of them classified correctly, 0 to 1; its BatchNorm used the
            statistics of the batch.
        regularization: ``"skewness"`` and ``"kurtosis"``, the two terms of weight distribution regularization
            before their weights; empty in the float phase.
    """

    losses: Mapping[str, float]
    accuracies: Mapping[str, float]
    regularization: Mapping[str, float]


@dataclass(frozen=True)
class StepMeasurements:
    """What was measured in one optimizer step.

    Attributes:
        step: Index of the step in its phase, from 0.
        learning_rate: Learning rate of weights.
        batch: Measurements on the batch, of all processes.
    """

    step: int
    learning_rate: float
    batch: BatchMeasurements


@dataclass(frozen=True)
class GridMeasurements:
    """An evaluation on the held-out images.

    Attributes:
        step: Index of the last step before an evaluation inside a phase, or the number of all steps for the one at
            its end.
        epoch: Epochs that are done.
        final: Whether this is the evaluation at the end of the phase.
        evaluation: The accuracies; without rows for the float network.
        weights: Copies the weights that were evaluated, if called at once.
    """

    step: int
    epoch: int
    final: bool
    evaluation: Evaluation
    weights: Weights


class TrainingObserver(Protocol):
    """Is told what a run measures, in order and in the thread that trains; what it does delays the next step."""

    def phase_started(self, start: PhaseStart) -> None:
        """A phase begins or goes on; its stage of progress is open."""
        ...

    def step_done(self, measurements: StepMeasurements) -> None:
        """An optimizer step is done."""
        ...

    def evaluated(self, grid: GridMeasurements) -> None:
        """An evaluation is done."""
        ...

    def saving(self) -> None:
        """The state is about to be saved: a resumed run will not repeat what was told until now."""
        ...


class Observers:
    """Several observers as one.

    Args:
        observers: Who is told, in order.
    """

    def __init__(self, observers: Sequence[TrainingObserver]) -> None:
        self._observers = tuple(observers)

    def phase_started(self, start: PhaseStart) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.phase_started(start)

    def step_done(self, measurements: StepMeasurements) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.step_done(measurements)

    def evaluated(self, grid: GridMeasurements) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.evaluated(grid)

    def saving(self) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.saving()
