"""Every error that eqdeploy raises on purpose, each with its own exit code.

An error says what is wrong, where (file, key, layer) and what would be right. The command line prints it
as one line and exits with ``exit_code``; nothing else in the library exits or prints.
"""

from __future__ import annotations

from typing import ClassVar

from eqdeploy.text import one_line


class EqDeployError(Exception):
    """Root of all errors that a user can cause or must act upon.

    Args:
        message: What is wrong, in one sentence without a final full stop.
        where: File, key, layer or option that the message is about, e.g. ``"device.yaml: weights.bits"``.
        hint: What would be right or what to try next.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Return the whole error on one line: ``where: message (hint)``."""
        text = self.message if self.where is None else f"{self.where}: {self.message}"
        text = text if self.hint is None else f"{text} ({self.hint})"
        return one_line(text)


class UsageError(EqDeployError):
    """An option or argument is wrong."""

    exit_code = 2


class ProfileError(EqDeployError):
    """A device profile or project file is invalid, or asks for what the supernet cannot serve."""

    exit_code = 10


class CheckpointError(EqDeployError):
    """A checkpoint is damaged, hostile, incomplete or of another architecture."""

    exit_code = 11


class UnsupportedOperationError(EqDeployError):
    """A model holds an operation that cannot be traced, converted or exported."""

    exit_code = 13


class ValidationError(EqDeployError):
    """A static check of an artifact failed: a scale, zero-point, range, hash or coverage is wrong."""

    exit_code = 21


class ParityError(EqDeployError):
    """The exported model computes other integer codes than the reference."""

    exit_code = 20


class AccuracyError(EqDeployError):
    """An accuracy gate was missed."""

    exit_code = 22


class RuntimeRefusedError(EqDeployError):
    """The runtime refused to load or run an exported file."""

    exit_code = 23


class LimitError(EqDeployError):
    """A command needed more memory, or was silent for longer, than its limits allow."""

    exit_code = 24


class CrashError(EqDeployError):
    """A library ended the process, e.g. a runtime that a damaged model has led astray."""

    exit_code = 25


class MissingDependencyError(EqDeployError):
    """An optional package is needed for what was asked."""

    exit_code = 30


class DataError(EqDeployError):
    """A data set is missing, empty, damaged or of the wrong shape."""

    exit_code = 40


class OutputError(EqDeployError):
    """An output folder exists already, is read-only or full."""

    exit_code = 41


class TrainingError(EqDeployError):
    """Training cannot go on: a loss is not finite, or a saved state belongs to another run."""

    exit_code = 50


class ReportedError(Exception):
    """Ends one of several processes that train together after an error that another one of them reports.

    Args:
        exit_code: Exit code of that error.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process reports why")
        self.exit_code = exit_code
