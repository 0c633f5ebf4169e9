"""Every way in which a run can fail, as one line and one exit code."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any

import typer

from eqdeploy.cli.limits import MEMORY_VARIABLE, UNLIMITED, size_text
from eqdeploy.errors import EqDeployError, LimitError, OutputError, UsageError
from eqdeploy.text import one_line, printable

INTERNAL_ERROR = 70
INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 141

#: Failures of the file system that a user can mend.
_OUTPUT_ERRORS = frozenset(
    {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EPERM, errno.EROFS}
)

#: What to do about a limit of memory.
RAISE_MEMORY = f"{MEMORY_VARIABLE} sets it, e.g. {MEMORY_VARIABLE}=32GiB, or {UNLIMITED}"

#: How numpy, torch, ONNX Runtime, the C++ library and the system say that they did not get memory, in lower case.
_WANT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "cannot allocate memory",
    "can't allocate memory",
    "failed to allocate memory",
    "unable to allocate",
    "can't start new thread",
    "failed to map segment from shared object",
)


@dataclass(frozen=True)
class Failure:
    """A failure as it is shown.

    Attributes:
        kind: Class of the error, e.g. ``"ProfileError"``.
        message: What is wrong.
        where: What the message is about.
        hint: What would be right.
        exit_code: Exit status of the program.
    """

    kind: str
    message: str
    where: str | None
    hint: str | None
    exit_code: int

    @property
    def line(self) -> str:
        """The whole failure on one line: ``error: where: message (hint)``."""
        text = self.message if self.where is None else f"{self.where}: {self.message}"
        text = text if self.hint is None else f"{text} ({self.hint})"
        return one_line(printable(one_line(f"error: {text}")))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"type": self.kind, "message": self.message, "where": self.where, "hint": self.hint}


def explain(error: BaseException, memory: int | None = None) -> Failure:
    """Explain an error to the user.

    Args:
        error: Anything that was raised.
        memory: Bytes that the process was allowed to take, None if that was not bounded.
    """
    if memory is not None and is_want_of_memory(error):
        where = error.where if isinstance(error, EqDeployError) else None
        error = LimitError(f"needs more memory than the limit of {size_text(memory)}", where=where, hint=RAISE_MEMORY)
    if isinstance(error, EqDeployError):
        return Failure(type(error).__name__, error.message, error.where, error.hint, error.exit_code)
    if isinstance(error, typer.TyperException):
        return _explain_usage(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure("Interrupted", "interrupted", None, None, INTERRUPTED)
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_system(error)
    text = f"internal error: {type(error).__name__}: {error}"
    return Failure("InternalError", text, None, "show the traceback with --debug and report it", INTERNAL_ERROR)


def is_want_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that memory was refused."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        if isinstance(seen, MemoryError) or any(words in text for words in _WANT_OF_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _explain_usage(error: typer.TyperException) -> Failure:
    """Explain a wrong command line."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    hint = f"see '{context.command_path} --help'" if context is not None else None
    return Failure(UsageError.__name__, message[:1].lower() + message[1:], None, hint, UsageError.exit_code)


def _explain_system(error: OSError) -> Failure:
    """Explain a failure of the file system that no other code explained."""
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    kind = OutputError if error.errno in _OUTPUT_ERRORS else UsageError
    return Failure(kind.__name__, error.strerror or str(error), where, None, kind.exit_code)
