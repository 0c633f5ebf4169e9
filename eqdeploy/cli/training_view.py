"""A training run as a person follows it: smoothed measurements, time left, tables of the grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from eqdeploy.training.observer import GridMeasurements, PhaseStart, StepMeasurements

if TYPE_CHECKING:
    from eqdeploy.training.evaluate import Evaluation

#: Share of a moving average that stays at each step: about the last 50 steps count.
_DECAY = 0.98


class StageListener(Protocol):
    """A listener to which facts about the stage that is running can be added."""

    def describe(self, facts: Callable[[], Sequence[str]]) -> None:
        """Show facts beside the innermost open stage from now on."""
        ...

    def note(self, message: str) -> None:
        """Tell one line that every user should read."""
        ...


class TrainingView:
    """Describes the stage in which a phase is trained, and tells the grid after chosen epochs.

    Args:
        listener: Who shows it.
        clock: Seconds, from any start.
    """

    def __init__(self, listener: StageListener, clock: Callable[[], float] = time.monotonic) -> None:
        self._listener = listener
        self._clock = clock
        self._start: PhaseStart | None = None
        self._latest: StepMeasurements | None = None
        self._losses: Mapping[str, Smoothed] = {}
        self._accuracies: Mapping[str, Smoothed] = {}
        self._seconds = Smoothed()
        self._step_ended: float | None = None

    def phase_started(self, start: PhaseStart) -> None:
        """Describe the stage that has just been opened."""
        self._start, self._latest = start, None
        self._losses, self._accuracies = {}, {}
        self._seconds, self._step_ended = Smoothed(), None
        self._listener.describe(self.facts)

    def step_done(self, measurements: StepMeasurements) -> None:
        """Take in a step. The first one, which may compile, and those after an evaluation are not timed."""
        now = self._clock()
        if self._step_ended is not None:
            self._seconds = self._seconds.with_value(now - self._step_ended)
        self._step_ended = now
        # Replaced, never changed: another thread draws them.
        self._losses = _smooth(self._losses, measurements.batch.losses)
        self._accuracies = _smooth(self._accuracies, measurements.batch.accuracies)
        self._latest = measurements

    def evaluated(self, grid: GridMeasurements) -> None:
        """Tell the grid, unless it is that of the end, which is the result of the command."""
        self._step_ended = None
        if not grid.final:
            for line in grid_lines(grid.evaluation, epoch=grid.epoch):
                self._listener.note(line)

    def saving(self) -> None:
        """Nothing to do."""

    def facts(self) -> Sequence[str]:
        """What is known about the phase, e.g. ``"epoch 4 of 24"``; empty before the first step."""
        start, latest = self._start, self._latest
        if start is None or latest is None:
            return ()
        facts = [
            f"epoch {start.epoch_of(latest.step)} of {start.epochs}",
            f"loss {_initialed({name: f'{value.mean:.2f}' for name, value in self._losses.items()})}",
        ]
        if self._accuracies:
            facts.append(f"accuracy {' '.join(f'{100 * value.mean:.0f}' for value in self._accuracies.values())} %")
        left = start.steps - latest.step - 1
        if left:
            facts.append(f"learning rate {latest.learning_rate:.3g}")
        if left and self._seconds.mean > 0:
            facts += [f"{1 / self._seconds.mean:.3g} steps/s", f"{duration(left * self._seconds.mean)} left"]
        return facts


class Smoothed:
    """Exponential moving average that starts as a plain mean.

    Args:
        total: Weighted sum of all values.
        weight: Sum of the weights.
    """

    def __init__(self, total: float = 0.0, weight: float = 0.0) -> None:
        self._total = total
        self._weight = weight

    @property
    def mean(self) -> float:
        """The average; 0 without values."""
        return self._total / self._weight if self._weight else 0.0

    def with_value(self, value: float) -> Smoothed:
        """The average with one more value."""
        return Smoothed(_DECAY * self._total + value, _DECAY * self._weight + 1.0)


def grid_lines(evaluation: Evaluation, *, epoch: int) -> list[str]:
    """Lay out a grid, bits downwards and forms across, at most 38 characters wide for a full space.

    Args:
        evaluation: The accuracies.
        epoch: Epochs that are done.
    """
    forms = list(dict.fromkeys((row.granularity, row.symmetry) for row in evaluation.rows))
    head = [
        ["", *(granularity.removeprefix("per_") for granularity, _ in forms)],
        ["bits", *("sym" if symmetry == "symmetric" else "asym" for _, symmetry in forms)],
    ]
    accuracies = {(row.bits, row.granularity, row.symmetry): f"{100 * row.accuracy:.2f}" for row in evaluation.rows}
    widths = dict.fromkeys(row.bits for row in evaluation.rows)
    body = [[str(bits), *(accuracies.get((bits, *form), "-") for form in forms)] for bits in widths]
    columns = [max(map(len, column)) for column in zip(*head, *body, strict=True)]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, columns, strict=True)).rstrip() for row in head + body
    ]
    return [f"epoch {epoch}: accuracy in %, float {100 * evaluation.float_accuracy:.2f}", *table]


def duration(seconds: float) -> str:
    """Write a time that is still to pass, rounded as such a guess deserves.

    >>> duration(41.2), duration(1870.0), duration(7500.0)
    ('41 s', '31 min', '2 h 05 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _smooth(averages: Mapping[str, Smoothed], values: Mapping[str, float]) -> Mapping[str, Smoothed]:
    """Averages with one more value each."""
    return {name: averages.get(name, Smoothed()).with_value(value) for name, value in values.items()}


def _initialed(values: Mapping[str, str]) -> str:
    """Put the initials of the subnets before their values; a single network needs none."""
    if len(values) == 1:
        return next(iter(values.values()))
    return " ".join(f"{name[:1].upper()} {value}" for name, value in values.items())
