"""What a working process tells the one that watches it: which command runs, and that it gets on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eqdeploy.progress import Advance, Progress
from eqdeploy.text import printable

#: Seconds between two signs from the same stage: no loop becomes slower by them.
_INTERVAL_SECONDS = 0.1
_LONGEST_LINE = 200


class SignsOfLife:
    """The writing end of a pipe to the watching process: one line when a command begins, one for each sign of life.

    Args:
        descriptor: File descriptor, which must not block.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._written = 0.0
        self._stage = ""

    def begin(self, command: str, seconds: float | None) -> None:
        """Ask to be ended after a time without signs of life.

        Args:
            command: What is run, for messages.
            seconds: The time, None for any.
        """
        self._write(f"{seconds or 0:g} {command}")

    def give(self, stage: str) -> None:
        """Give a sign of life.

        Args:
            stage: What is being done.
        """
        now = time.monotonic()
        if stage == self._stage and now - self._written < _INTERVAL_SECONDS:
            return
        self._written, self._stage = now, stage
        self._write(printable(stage))

    def _write(self, line: str) -> None:
        """Write a line; a pipe that is full holds signs enough."""
        try:
            os.write(self._descriptor, line.encode("utf-8", "replace")[:_LONGEST_LINE] + b"\n")
        except OSError:
            return


class ReportedProgress:
    """A listener that hands everything on and gives a sign of life each time.

    Args:
        listener: Who is told.
        give: Gives a sign of life from a stage.
    """

    def __init__(self, listener: Progress, give: Callable[[str], None]) -> None:
        self._listener = listener
        self._give = give
        self._stages: list[str] = []

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
        """Open a stage: its start, all its progress and its end are signs of life."""
        with self._listener.stage(description, total=total) as advance:

            def advance_alive(amount: int) -> None:
                advance(amount)
                self._give(description)

            self._stages.append(description)
            self._give(description)
            yield advance_alive
        self._stages.pop()
        self._give(self._stages[-1] if self._stages else f"after {description}")

    def note(self, message: str) -> None:
        """Hand on a message."""
        self._listener.note(message)
        self._give(self._stages[-1] if self._stages else "")

    def detail(self, message: str) -> None:
        """Hand on a detail."""
        self._listener.detail(message)
        self._give(self._stages[-1] if self._stages else "")
