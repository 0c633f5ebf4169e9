"""Progress on standard error: a live bar in a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eqdeploy.progress import Advance, SilentProgress
from eqdeploy.text import printable

if TYPE_CHECKING:
    from eqdeploy.cli.bars import Bars

#: Seconds between two signs of life of a long stage.
HEARTBEAT_SECONDS = 30.0


def make_progress(*, quiet: bool, verbose: bool) -> PlainProgress | SilentProgress:
    """Choose how progress is shown.

    Args:
        quiet: Show nothing.
        verbose: Show details as well.
    """
    if quiet:
        return SilentProgress()
    if is_terminal(sys.stderr.isatty()):
        return LiveProgress(verbose=verbose)
    return PlainProgress(verbose=verbose)


def is_terminal(isatty: bool) -> bool:
    """Whether a stream is watched by a person: a capable terminal, and not in continuous integration."""
    return isatty and os.environ.get("TERM") != "dumb" and os.environ.get("CI", "").lower() not in ("1", "true")


def _no_facts() -> Sequence[str]:
    """Nothing is known about a stage that nobody describes."""
    return ()


@dataclass
class _Stage:
    """An open stage.

    Attributes:
        description: What is done.
        facts: Returns what else is known about it.
    """

    description: str
    facts: Callable[[], Sequence[str]] = _no_facts

    def line(self, done: str) -> str:
        """The stage on one line."""
        return ", ".join((f"{self.description}: {done}", *self.facts()))


class PlainProgress:
    """One line per stage when it ends, and a sign of life twice a minute.

    Args:
        verbose: Whether details are shown.
    """

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._stages: list[_Stage] = []

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
        """Write how long the stage took, once it ends without an error."""
        started = heard = time.monotonic()
        done = 0
        stage = _Stage(description)

        def advance(amount: int) -> None:
            nonlocal done, heard
            done += amount
            if time.monotonic() - heard >= HEARTBEAT_SECONDS:
                heard = time.monotonic()
                self._write(stage.line(f"{done}" + (f" of {total}" if total else "")))

        self._stages.append(stage)
        try:
            yield advance
        finally:
            self._stages.remove(stage)
        self._write(stage.line(f"{time.monotonic() - started:.1f} s"))

    def describe(self, facts: Callable[[], Sequence[str]]) -> None:
        """Add facts to the innermost open stage: to its signs of life and to its last line.

        Args:
            facts: Returns short texts, each time they are shown; may be called from another thread.

        Raises:
            IndexError: If no stage is open.
        """
        self._stages[-1].facts = facts

    def note(self, message: str) -> None:
        """Write a message."""
        self._write(message)

    def detail(self, message: str) -> None:
        """Write a message if details are shown."""
        if self._verbose:
            self._write(message)

    def _write(self, line: str) -> None:
        """Write one line to standard error."""
        sys.stderr.write(printable(line) + "\n")
        sys.stderr.flush()


class LiveProgress(PlainProgress):
    """A bar per open stage that vanishes when the stage ends, leaving its line.

    Args:
        verbose: Whether details are shown.
    """

    def __init__(self, *, verbose: bool) -> None:
        super().__init__(verbose=verbose)
        self._bars: Bars | None = None

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
        """Show a bar while the stage is open."""
        with self._live() as bars:
            with super().stage(description, total=total):
                stage = self._stages[-1]
                task = bars.add_task(printable(description), total=total, facts=lambda: stage.facts())
                yield lambda amount: bars.advance(task, amount)
            bars.remove_task(task)

    @contextmanager
    def _live(self) -> Iterator[Bars]:
        """The display of all open stages; the outermost stage starts and ends it."""
        if self._bars is not None:
            yield self._bars
            return
        # rich is slow to import; only a terminal needs it.
        from rich.console import Console

        from eqdeploy.cli.bars import Bars

        try:
            with Bars(Console(stderr=True, markup=False)) as self._bars:
                yield self._bars
        finally:
            self._bars = None
