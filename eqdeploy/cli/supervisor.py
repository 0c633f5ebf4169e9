"""A process that does the work, and one that can end it.

A model in a file may never end. ONNX Runtime does not look at signals while it runs one, so neither Ctrl-C nor a
termination signal would end the process that runs it. Therefore the work is done by a child, which is forked before
anything large is imported, and the parent does nothing but watch: it hands on signals, and kills a child that does not
follow them, or that gives no sign of life for too long.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from eqdeploy.cli.signs_of_life import SignsOfLife
from eqdeploy.files import temporary_prefix

#: Seconds in which a child may clean up before it is killed.
GRACE_SECONDS = 3.0

#: Seconds between two looks at the child's signs of life.
_LONGEST_TICK = 1.0

#: Signals that are handed on to the child.
_HANDED_ON = (signal.SIGINT, signal.SIGTERM)

#: ``prctl``'s option to be sent a signal when the parent ends.
_SET_PARENT_DEATH_SIGNAL = 1


class Cause(Enum):
    """Why a child has ended."""

    #: By itself, or by a signal that the parent has not sent.
    ITSELF = auto()
    #: It did not follow the signal that was handed on to it, and was killed.
    UNRESPONSIVE = auto()
    #: It gave no sign of life for too long.
    SILENT = auto()


@dataclass(frozen=True)
class Ending:
    """How a child has ended.

    Attributes:
        exit_code: Its exit status; the negative number of the signal that ended it.
        cause: Why.
        signal_number: The signal that was handed on to it last, None if there was none.
        command: The command that it ran, as far as it told.
        stage: What it was doing when it gave its last sign of life.
        seconds: Longest time that it was allowed to be silent, None for any.
    """

    exit_code: int
    cause: Cause
    signal_number: int | None
    command: str | None
    stage: str
    seconds: float | None


def can_supervise() -> bool:
    """Whether this system has processes that can be forked and watched."""
    return all(hasattr(os, name) for name in ("fork", "set_blocking")) and hasattr(signal, "sigtimedwait")


def supervise(work: Callable[[SignsOfLife], int]) -> Ending:
    """Run something in a child process; returns in the parent only.

    Args:
        work: Returns the child's exit code. To be called before threads are started.

    Raises:
        SystemExit: In the child, when its work is done.
    """
    heard = {signal.SIGCHLD, *(number for number in _HANDED_ON if not stays_ignored(number))}
    for number in heard - {signal.SIGINT}:  # where they are ignored, nobody learns how a child ended
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    reader, writer = os.pipe()
    for descriptor in (reader, writer):
        os.set_blocking(descriptor, False)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
        sys.exit(work(SignsOfLife(writer)))
    os.close(writer)
    return _Watch(child, reader, frozenset(heard)).until_it_ends()


def stays_ignored(number: int) -> bool:
    """Whether whoever started this process wants it to ignore a signal: Ctrl-C, of jobs in the background."""
    return number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN


def raise_once(number: int, error: BaseException) -> None:
    """Let a signal raise an error the first time, and be ignored from then on.

    A terminal sends Ctrl-C to both processes and the parent hands it on: the second must not end the clearing up after
    the first.

    Args:
        number: The signal.
        error: What is raised.
    """
    if stays_ignored(number):
        return

    def handle(received: int, frame: object) -> None:
        signal.signal(received, signal.SIG_IGN)
        raise error

    signal.signal(number, handle)


def _die_with(parent: int) -> None:
    """End this process when the parent ends, however that comes about, where the system can do that."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before it could be asked for
        os._exit(1)


def _clear_up_after(process: int) -> None:
    """Remove the temporary folders of a process that could not do so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{temporary_prefix(process)}*"):
        shutil.rmtree(folder, ignore_errors=True)


class _Watch:
    """The parent's view of its child.

    Args:
        child: Process id.
        reader: Reading end of the pipe with its signs of life.
        heard: Signals that are blocked and waited for.
    """

    def __init__(self, child: int, reader: int, heard: frozenset[signal.Signals]) -> None:
        self._child = child
        self._reader = reader
        self._heard = heard
        self._unread = b""
        self._command: str | None = None
        self._seconds: float | None = None
        self._stage = ""
        self._silent = 0.0
        self._cause = Cause.ITSELF
        self._signal: int | None = None
        self._deadline: float | None = None

    def until_it_ends(self) -> Ending:
        """Wait for the child, and see to it that it ends."""
        looked = time.monotonic()
        while True:
            tick = min(_LONGEST_TICK, (self._seconds or _LONGEST_TICK) / 4)
            received = signal.sigtimedwait(self._heard, tick)
            ended, status = os.waitpid(self._child, os.WNOHANG)
            self._read()
            if ended:
                code = os.waitstatus_to_exitcode(status)
                if code == -signal.SIGKILL:
                    _clear_up_after(self._child)
                return Ending(code, self._cause, self._signal, self._command, self._stage, self._seconds)
            if received is not None and received.si_signo != signal.SIGCHLD:
                self._hand_on(received.si_signo)
            now = time.monotonic()
            # While both processes were stopped or the machine slept, the child could not give signs.
            self._silent += min(now - looked, 2 * tick)
            looked = now
            self._judge(now)

    def _hand_on(self, number: int) -> None:
        """Hand on a signal; whoever sends another one does not want to wait."""
        if self._signal is not None and self._deadline is not None:
            self._deadline = time.monotonic()
            return
        self._signal = number
        self._deadline = time.monotonic() + GRACE_SECONDS
        os.kill(self._child, number)

    def _judge(self, now: float) -> None:
        """Terminate a child that is silent, and kill one that does not follow a signal."""
        begun = self._seconds is not None and bool(self._stage)  # before the first sign, libraries are imported
        if begun and self._deadline is None and self._silent > (self._seconds or 0.0):
            self._cause = Cause.SILENT
            self._deadline = now + GRACE_SECONDS
            os.kill(self._child, signal.SIGTERM)
        if self._deadline is not None and now >= self._deadline:
            if self._cause is Cause.ITSELF:
                self._cause = Cause.UNRESPONSIVE
            os.kill(self._child, signal.SIGKILL)

    def _read(self) -> None:
        """Read what the child has told since the last time."""
        while True:
            try:
                content = os.read(self._reader, 1 << 16)
            except BlockingIOError:
                break
            if not content:
                break
            *lines, self._unread = (self._unread + content).split(b"\n")
            for line in lines:
                self._silent = 0.0
                self._take(line.decode("utf-8", "replace"))

    def _take(self, line: str) -> None:
        """Take one line: the first names the limit and the command, the others the stage."""
        if self._command is not None:
            self._stage = line
            return
        seconds, _, self._command = line.partition(" ")
        self._seconds = float(seconds) or None
