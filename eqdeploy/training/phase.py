"""The steps of one phase: learning rate, gradients, optimizer, average, log, evaluation, saved state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from eqdeploy.errors import CheckpointError
from eqdeploy.progress import Progress
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.average import ParameterAverage
from eqdeploy.training.batches import Batch, TrainingBatches, derive_seed
from eqdeploy.training.evaluate import Evaluation
from eqdeploy.training.log import Log
from eqdeploy.training.observer import (
    FLOAT,
    BatchMeasurements,
    GridMeasurements,
    Observers,
    PhaseStart,
    StepMeasurements,
    Weights,
)
from eqdeploy.training.optimizer import clip_gradients, make_optimizer, set_learning_rate
from eqdeploy.training.schedule import cosine_learning_rate
from eqdeploy.training.settings import OptimizationSettings
from eqdeploy.training.state import Phase, Position, TrainingState, restore_state
from eqdeploy.training.workers import Workers

#: Adds the gradients of a batch at a step to the parameters.
Gradients = Callable[[Batch, int], BatchMeasurements]

#: Saves the state of a run.
Save = Callable[[Position, torch.optim.Optimizer, ParameterAverage | None], None]


@dataclass(frozen=True)
class PhaseLoop:
    """One phase of a run.

    Attributes:
        phase: Which one.
        supernet: The model to train.
        settings: How to optimize it.
        batches: This process's share of every batch.
        gradients: One step's work before the optimizer's.
        generators: All sources of randomness; the same in all processes but for ``global``.
        dropout_seed: Determines what dropout draws in all processes but the first, and on GPUs.
        evaluation_epochs: Epochs after which the grid is measured.
        evaluate: Measures the grid.
        save: Saves the state.
        save_interval: Steps between two saved states.
        log: Receives one line for each step.
        progress: Who listens.
        observers: Who is told what is measured.
        workers: The processes that take part.
    """

    phase: Phase
    supernet: Supernet
    settings: OptimizationSettings
    batches: TrainingBatches
    gradients: Gradients
    generators: Mapping[str, torch.Generator]
    dropout_seed: int
    evaluation_epochs: tuple[int, ...]
    evaluate: Callable[[], Evaluation]
    save: Save
    save_interval: int
    log: Log
    progress: Progress
    observers: Observers
    workers: Workers

    def run(self, position: Position, state: TrainingState | None) -> Position:
        """Run the steps that are left, saving the state now and then and at the end.

        Afterwards the parameters are their averages, if averages are wanted.

        Args:
            position: Where to start.
            state: What was saved there; None at the start of the phase.

        Returns:
            The end of the phase.

        Raises:
            CheckpointError: If the state does not fit.
            TrainingError: If a loss or parameter is not finite.
            OutputError: If a file cannot be written.
        """
        steps = self.settings.epochs * self.batches.steps_per_epoch
        self.workers.broadcast(self.supernet)
        optimizer, average = self._start(steps, state)
        self.supernet.train()
        with self.progress.stage(f"training the {self.phase} network", total=steps) as advance:
            advance(position.step)
            self.observers.phase_started(self._phase_start(position.step))
            for step in range(position.step, steps):
                rate = cosine_learning_rate(
                    step,
                    steps=steps,
                    warm_up_steps=self.settings.warm_up_steps,
                    peak=self.settings.learning_rate,
                    restarts=self.settings.restarts,
                )
                measured = self._step(step, rate, optimizer)
                if average is not None:
                    average.update(step)
                self.log.write({"phase": self.phase, "step": step, **_log_entry(rate, measured)})
                self.observers.step_done(StepMeasurements(step, rate, measured))
                epoch, within = divmod(step + 1, self.batches.steps_per_epoch)
                if within == 0 and step + 1 < steps and epoch in self.evaluation_epochs:
                    with average.applied() if average else nullcontext():
                        self._evaluate(step, epoch)
                position = replace(position, step=step + 1, log_lines=self.log.lines)
                if position.step % self.save_interval == 0 or position.step == steps:
                    self.observers.saving()
                    self.save(position, optimizer, average)
                advance(1)
        if average is not None:
            average.adopt()
        return position

    def _phase_start(self, step: int) -> PhaseStart:
        """What observers are told when the phase begins or goes on."""
        return PhaseStart(
            self.phase, self.settings.epochs, self.batches.steps_per_epoch, step, copy_weights(self.supernet)
        )

    def _evaluate(self, step: int, epoch: int) -> None:
        """Measure the grid within the phase."""
        evaluation = self.evaluate()
        self.log.write({"phase": "evaluation", "epoch": epoch, **evaluation.to_json()})
        self.observers.evaluated(
            GridMeasurements(step, epoch, final=False, evaluation=evaluation, weights=copy_weights(self.supernet))
        )

    def _start(self, steps: int, state: TrainingState | None) -> tuple[torch.optim.Optimizer, ParameterAverage | None]:
        """Make the optimizer and the average, and take up a saved state in all processes."""
        optimizer, average = make_optimizer(self.supernet, self.settings), make_average(self.supernet, self.settings)
        if state is not None:
            with self.workers.together():
                restore_state(
                    state, model=self.supernet, optimizer=optimizer, average=average, generators=self.generators
                )
                if state.position.step > steps:
                    raise CheckpointError(
                        f"the saved training is at step {state.position.step} of this phase, which has {steps}",
                        where=str(state.path),
                    )
        return optimizer, average

    def _step(self, step: int, rate: float, optimizer: torch.optim.Optimizer) -> BatchMeasurements:
        """Do one optimizer step on one batch of all processes; return the means of what they measured."""
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        self._seed_dropout(step)
        with self.workers.together():
            measured = self.gradients(self.batches.batch(step, self.generators["augmentation"]), step)
        average_gradients(self.supernet, self.workers)
        clip_gradients(optimizer, self.settings.gradient_clip)
        optimizer.step()
        self.supernet.canonicalize()
        return _mean(measured, self.workers)

    def _seed_dropout(self, step: int) -> None:
        """Seed the generators that a saved state does not hold: the step alone decides what they draw.

        A state holds that of the first process on the processor.
        """
        if not self.workers.is_main or next(self.supernet.parameters()).device.type != "cpu":
            torch.manual_seed(derive_seed(self.dropout_seed, self.workers.rank, step) >> 1)


def make_average(supernet: Supernet, settings: OptimizationSettings) -> ParameterAverage | None:
    """Start averaging the parameters, if that is wanted."""
    return None if settings.average_decay is None else ParameterAverage(supernet, settings.average_decay)


@torch.no_grad()
def average_gradients(supernet: Supernet, workers: Workers) -> None:
    """Replace the gradients by those of the whole batch, of which each process has seen an equal share.

    Args:
        supernet: With the gradients of this process.
        workers: The processes.
    """
    if workers.world_size == 1:
        return
    workers.average_gradients(supernet.parameters())
    # The factor 1/sqrt(N · q_max) on the gradients of scales and zero-points (LSQ, Eq. 4) knew a share of the N values.
    for quantizer in supernet.activation_quantizers().values():
        for parameter in quantizer.parameters():
            if parameter.grad is not None:
                parameter.grad *= workers.world_size**-0.5


def copy_weights(supernet: Supernet) -> Weights:
    """Make a function that copies the weights of all quantized layers as they are when it is called."""
    return lambda: {layer: weight.detach().cpu().numpy().copy() for layer, weight in supernet.latent_weights()}


def _mean(measured: BatchMeasurements, workers: Workers) -> BatchMeasurements:
    """Mean over equal shares of a batch, in one message."""
    groups = (measured.losses, measured.accuracies, measured.regularization)
    flat = {f"{index} {name}": value for index, group in enumerate(groups) for name, value in group.items()}
    means = iter(workers.mean(flat).values())
    return BatchMeasurements(*({name: next(means) for name in group} for group in groups))


def _log_entry(rate: float, measured: BatchMeasurements) -> dict[str, float]:
    """What the log says of a step."""
    values = {"learning_rate": rate, **measured.losses, **measured.regularization}
    return {"loss" if name == FLOAT else name: _rounded(value) for name, value in values.items()}


def _rounded(value: float) -> float:
    """Six significant digits are enough for a log."""
    return float(f"{value:.6g}")
