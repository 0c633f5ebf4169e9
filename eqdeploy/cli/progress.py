"""Progress on standard error: a live bar in a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from eqdeploy.progress import Advance, Progress, SilentProgress
from eqdeploy.text import printable

if TYPE_CHECKING:
    import rich.progress

#: Seconds between two signs of life of a long stage.
HEARTBEAT_SECONDS = 30.0


def make_progress(*, quiet: bool, verbose: bool) -> Progress:
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


class PlainProgress:
    """One line per stage when it ends, and a sign of life twice a minute.

    Args:
        verbose: Whether details are shown.
    """

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
        """Write how long the stage took, once it ends without an error."""
        started = heard = time.monotonic()
        done = 0

        def advance(amount: int) -> None:
            nonlocal done, heard
            done += amount
            if time.monotonic() - heard >= HEARTBEAT_SECONDS:
                heard = time.monotonic()
                self._write(f"{description}: {done}" + (f" of {total}" if total else ""))

        yield advance
        self._write(f"{description}: {time.monotonic() - started:.1f} s")

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
        self._bars: rich.progress.Progress | None = None

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
        """Show a bar while the stage is open."""
        with self._live() as bars:
            task = bars.add_task(printable(description), total=total)
            with super().stage(description, total=total):
                yield lambda amount: bars.advance(task, amount)
            bars.remove_task(task)

    @contextmanager
    def _live(self) -> Iterator[rich.progress.Progress]:
        """The display of all open stages; the outermost stage starts and ends it."""
        if self._bars is not None:
            yield self._bars
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        try:
            with Progress(*columns, console=Console(stderr=True, markup=False), transient=True) as self._bars:
                yield self._bars
        finally:
            self._bars = None
