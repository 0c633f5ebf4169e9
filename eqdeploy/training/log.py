"""The training log: one JSON object a line, with nothing in it that differs between two equal runs.

Wall-clock time and machine are left out on purpose: a log is committed beside its checkpoint, and training again
must reproduce it byte for byte.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from eqdeploy.errors import CheckpointError, OutputError
from eqdeploy.files import write_atomically
from eqdeploy.training.execution import StepMode
from eqdeploy.training.settings import Precision

#: ``phase`` of the line that says how steps are computed, where the configuration leaves it open.
EXECUTION = "execution"


class Log(Protocol):
    """Where the steps of a run are noted down.

    Attributes:
        lines: Number of entries so far.
    """

    lines: int

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one entry of plain, finite data."""
        ...

    def sync(self) -> None:
        """Make sure that every entry survives a power cut."""
        ...


class NoLog:
    """The log of a process that leaves writing to another one; it only counts.

    Args:
        keep: Number of entries that were there before.
    """

    def __init__(self, *, keep: int = 0) -> None:
        self.lines = keep

    def write(self, entry: Mapping[str, Any]) -> None:
        """Count one entry."""
        self.lines += 1

    def sync(self) -> None:
        """There is nothing to write."""


class TrainingLog:
    """Appends lines to a log file; use as a context manager.

    Args:
        path: The file. Without ``keep`` it is started anew.
        keep: Number of lines to keep from an existing file, those that the resumed state had seen. Lines after
            them were written by steps that the kill undid.

    Raises:
        CheckpointError: If the existing file has fewer than ``keep`` lines.
        OutputError: If the file cannot be written.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        self.path = path
        kept = b"".join(_read_lines(path, keep)) if keep else b""
        write_atomically(path, kept)
        self.lines = keep
        self._file: io.FileIO | None = None

    def __enter__(self) -> TrainingLog:
        try:
            self._file = io.FileIO(self.path, "ab")
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=str(self.path)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one entry, unbuffered: after a kill the file ends with a whole number of steps.

        Args:
            entry: Plain, finite data.

        Raises:
            OutputError: If the disk is full.
        """
        if self._file is None:
            raise ValueError("the log is not open")
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=str(self.path)) from error
        if written != len(line):
            raise OutputError("cannot write: no space left", where=str(self.path))
        self.lines += 1

    def sync(self) -> None:
        """Make sure that every line survives a power cut; call before a state counts on them.

        Raises:
            OutputError: If the disk reports an error.
        """
        if self._file is None:
            raise ValueError("the log is not open")
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=str(self.path)) from error


def _read_lines(path: Path, count: int) -> list[bytes]:
    """Read the first ``count`` complete lines of a log."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the log of the training to resume: {error.strerror or error}", where=str(path)
        ) from error
    complete = [line for line in lines if line.endswith(b"\n")]
    if len(complete) < count:
        raise CheckpointError(
            f"the log has {len(complete)} lines, the training to resume had written {count}", where=str(path)
        )
    return complete[:count]


def read_step_mode(path: Path) -> StepMode:
    """How the steps of a run are computed whose configuration left it open: its log says what it decided.

    Args:
        path: The log.

    Raises:
        CheckpointError: If the log does not say.
    """
    for line in _read_lines(path, 2):
        try:
            entry = json.loads(line)
            if entry["phase"] == EXECUTION:
                precision, layout, compiled = (entry[key] for key in ("precision", "channels_last", "compile"))
                if type(layout) is type(compiled) is bool:
                    return StepMode(Precision(precision), layout, compiled)
        except (ValueError, KeyError, TypeError):
            continue
    raise CheckpointError(
        "the log of the training to resume does not say how its steps were computed",
        where=str(path),
        hint="restore the log, or start again without resuming",
    )


@contextmanager
def open_log(path: Path, *, keep: int, writes: bool) -> Iterator[Log]:
    """Open the log for a process of a run; one of them writes it.

    Args:
        path: The file.
        keep: Number of lines that the resumed state had seen, 0 without one.
        writes: Whether this process does.

    Raises:
        CheckpointError: If fewer lines are there.
        OutputError: If the file cannot be written.
    """
    if not writes:
        yield NoLog(keep=keep)
        return
    with TrainingLog(path, keep=keep) as log:
        yield log
