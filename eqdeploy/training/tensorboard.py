"""Measurements of a training run as files that TensorBoard shows.

Each phase is a run of its own in TensorBoard: they count their steps separately. A resumed run continues the curves:
steps that the kill undid are marked as void, and TensorBoard drops them.
"""

from __future__ import annotations

import importlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import MissingDependencyError, OutputError
from eqdeploy.training.observer import GridMeasurements, PhaseStart, StepMeasurements, Weights

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

#: Bins of a histogram of weights: 2 to 8 bits make 4 to 256 levels, which this shows for the narrow widths.
_BINS = 64

#: What is needed of TensorBoard, itself first.
_MODULES = ("tensorboard", "tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer")

#: First event of a file; of this version are files in which void steps are marked.
_FILE_VERSION = "brain.Event:2"

_PHASES = ("float", "supernet")
_EVENT_FILES = "*.tfevents.*"


class TensorBoardLog:
    """Observes a training run and writes event files; use as a context manager.

    Scalars of every step, the grid of forms where it is measured, and there and at the start a histogram of the
    weights of each quantized layer.

    Args:
        folder: Receives a folder for each phase.
        resume: Whether an earlier run may be continued.
        overwrite: Whether event files of an earlier run may be removed.

    Raises:
        MissingDependencyError: If TensorBoard is not installed.
        OutputError: If the folder holds another run's events and neither ``resume`` nor ``overwrite`` is set.
    """

    def __init__(self, folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        require_tensorboard()
        self.folder = folder
        if not (resume or overwrite) and self._event_files(_PHASES):
            raise OutputError(
                "an earlier training has written its curves here",
                where=str(folder),
                hint="resume it, force to replace them, or name another folder",
            )
        self._file: BinaryIO | None = None

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
        except OutputError:
            if error is None:
                raise

    def phase_started(self, start: PhaseStart) -> None:
        """Open a file; of an earlier run remove all events, or mark those void that are going to be repeated.

        Raises:
            OutputError: If a file cannot be written or removed.
        """
        self._close()
        folder = self.folder / start.phase
        with self._writing():
            if start.step == 0:
                for path in self._event_files(_PHASES[_PHASES.index(start.phase) :]):
                    path.unlink()
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads the files of a folder in the order of their names.
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
            self._file = (folder / name).open("xb")
        self._add(file_version=_FILE_VERSION)
        if start.step:
            self._mark_void(start.step)
        else:
            self._write_weights(start.weights, 0)

    def step_done(self, measurements: StepMeasurements) -> None:
        """Write the scalars of a step.

        Raises:
            OutputError: If the file cannot be written.
        """
        batch = measurements.batch
        scalars = {"learning_rate": measurements.learning_rate}
        scalars |= {f"loss/{name}": value for name, value in batch.losses.items()}
        scalars |= {f"accuracy/{name}": value for name, value in batch.accuracies.items()}
        scalars |= {f"weight_distribution/{name}": value for name, value in batch.regularization.items()}
        self._write(_scalars(scalars), measurements.step)

    def evaluated(self, grid: GridMeasurements) -> None:
        """Write the accuracies on the held-out images and the weights.

        Raises:
            OutputError: If the file cannot be written.
        """
        evaluation = grid.evaluation
        scalars = {"evaluation/float": evaluation.float_accuracy}
        for row in evaluation.rows:
            scalars[f"evaluation/{row.bits}_bits_{row.granularity}_{row.symmetry}"] = row.accuracy
        self._write(_scalars(scalars), grid.step)
        self._write_weights(grid.weights, grid.step)

    def saving(self) -> None:
        """Hand everything to the operating system, so that no curve has a gap where a killed run is resumed.

        Raises:
            OutputError: If the file cannot be written.
        """
        if self._file is not None:
            with self._writing():
                self._file.flush()

    def _event_files(self, phases: Iterable[str]) -> list[Path]:
        """Event files of some phases."""
        return sorted(path for phase in phases for path in (self.folder / phase).glob(_EVENT_FILES))

    def _mark_void(self, step: int) -> None:
        """Have TensorBoard drop what earlier files say of a step and those after it."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._add(step=step, session_log=SessionLog(status=SessionLog.START))

    def _write_weights(self, weights: Weights, step: int) -> None:
        """Write a histogram for each layer."""
        self._write(_histograms(weights()), step)

    def _write(self, summary: Summary, step: int) -> None:
        """Write one event with all values of a step."""
        self._add(step=step, summary=summary)

    def _add(self, **fields: Any) -> None:
        """Append an event, through the file's buffer. TensorBoard's own writer does so in a thread, and fails there."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            raise ValueError("no phase has started")
        with self._writing():
            RecordWriter(self._file).write(Event(wall_time=time.time(), **fields).SerializeToString())

    def _close(self) -> None:
        """Write what is buffered and close the file."""
        file, self._file = self._file, None
        if file is not None:
            with self._writing():
                file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Explain errors of the disk."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=str(self.folder)) from error


def require_tensorboard() -> None:
    """Import what writes event files.

    Raises:
        MissingDependencyError: If it is not installed or does not work.
    """
    try:
        for module in _MODULES:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == "tensorboard":
            raise MissingDependencyError(
                "TensorBoard is not installed", where="--tensorboard", hint="pip install 'eqdeploy[tensorboard]'"
            ) from error
        raise _unusable(error) from error
    except ImportError as error:
        raise _unusable(error) from error


def _unusable(error: ImportError) -> MissingDependencyError:
    """TensorBoard is there but does not work."""
    return MissingDependencyError(
        f"TensorBoard is installed but cannot be imported: {error}",
        where="--tensorboard",
        hint="pip install --upgrade 'eqdeploy[tensorboard]'",
    )


def _scalars(values: Mapping[str, float]) -> Summary:
    """One value for each name."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _histograms(weights: Mapping[str, NDArray[np.float32]]) -> Summary:
    """One histogram for each layer."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    values = []
    for layer, weight in weights.items():
        numbers = weight[np.isfinite(weight)].astype(np.float64)
        if not numbers.size:
            continue  # the run is about to end with an error that names the weight
        counts, limits = np.histogram(numbers, bins=_BINS)
        histogram = HistogramProto(
            min=numbers.min(),
            max=numbers.max(),
            num=numbers.size,
            sum=numbers.sum(),
            sum_squares=np.square(numbers).sum(),
            # Each bucket is given by its upper end; an empty one in front says where the first begins.
            bucket_limit=limits.tolist(),
            bucket=[0.0, *counts.tolist()],
        )
        values.append(Summary.Value(tag=f"weights/{layer}", histo=histogram))
    return Summary(value=values)
