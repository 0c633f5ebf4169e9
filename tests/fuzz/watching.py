"""Give a parser one input and judge how it ends: accepted, refused with an error for the user, or a finding."""

from __future__ import annotations

import hashlib
import resource
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from eqdeploy.cli.failures import explain
from eqdeploy.errors import EqDeployError
from eqdeploy.text import LONGEST_MESSAGE
from tests.fuzz.targets import Target

#: Processor time that one small input may take, in seconds. Not time by the clock: other work must not fail it.
SECONDS = 10.0

#: Memory that parsing one small input may add to the process.
MEMORY_BYTES = 1 << 30


class EndlessError(BaseException):
    """Parsing took too long; derived so that no parser catches it."""


@dataclass(frozen=True)
class Finding:
    """An input that ended in anything but a result or an error for the user.

    Attributes:
        signature: The same for inputs that fail at the same place: type of the exception, file and line.
        text: The traceback.
    """

    signature: str
    text: str

    @property
    def key(self) -> str:
        """Short name of the signature, for files."""
        return hashlib.sha256(self.signature.encode()).hexdigest()[:12]


@contextmanager
def bounded() -> Iterator[None]:
    """Bound the memory of this process from here on, and let time that is up end in an :class:`EndlessError`."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise EndlessError(f"no end within {SECONDS:g} seconds of processor time")

    before = signal.signal(signal.SIGPROF, end)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def judge(target: Target, path: Path, content: bytes) -> Finding | bool:
    """Parse an input inside :func:`bounded`.

    Args:
        target: The parser.
        path: Where the input is written.
        content: The input.

    Returns:
        Whether it was accepted, or what went wrong.
    """
    path.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        target.parse(path)
    except EqDeployError as refusal:
        line = explain(refusal).line
        return False if _is_readable(line) else Finding(f"message: {line}", "not one line that a terminal can show")
    except (Exception, EndlessError) as error:
        text = "".join(traceback.format_exception(error, limit=-40))
        return Finding(f"{type(error).__name__} at {_place(error.__traceback__)}", text)
    else:
        return True
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _is_readable(line: str) -> bool:
    """Whether a message is one line that a terminal can show, and not endless."""
    return line.isprintable() and len(line) <= LONGEST_MESSAGE


def _place(trace: TracebackType | None) -> str:
    """The innermost line of the library that an exception went through, or the innermost one at all."""
    frames = [frame for frame in traceback.extract_tb(trace) if frame.filename != __file__]
    own = [frame for frame in frames if "/eqdeploy/" in frame.filename or "/exporters/" in frame.filename]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _address_space() -> int:
    """Bytes of address space that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
