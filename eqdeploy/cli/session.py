"""What all commands share: the options of every command, and what a command answers."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqdeploy.cli.limits import Limits, bound_memory, command_limits, machine_memory
from eqdeploy.cli.signs_of_life import ReportedProgress, SignsOfLife
from eqdeploy.errors import EqDeployError
from eqdeploy.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from eqdeploy.cli.progress import PlainProgress
    from eqdeploy.progress import Progress, SilentProgress


@dataclass(frozen=True)
class Answer:
    """What a command answers.

    Attributes:
        result: The answer as plain JSON data.
        view: Lays the answer out for a terminal; called only when it is shown.
        failure: What the answer tells to have failed, e.g. a gate that was missed.
    """

    result: Any
    view: Callable[[], RenderableType]
    failure: EqDeployError | None = None


@dataclass
class Session:
    """One run of the command line, filled in while its options are read.

    Attributes:
        json_target: Where the JSON document goes: a path, ``-`` for standard output, None for nowhere.
        quiet: Whether progress and notes are suppressed.
        verbose: Whether details are shown.
        debug: Whether an error is shown with its traceback.
        command: Command that is run, e.g. ``"profiles list"``.
        signs: What the process that watches this one is told, None if there is none: then nothing is bounded.
        memory: Bytes that the command may take, None if that is not bounded.
    """

    json_target: str | None = None
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    command: str | None = None
    signs: SignsOfLife | None = None
    memory: int | None = None

    @staticmethod
    def of(arguments: Sequence[str]) -> Session:
        """Find what even a wrong command line says about how its error is shown.

        Args:
            arguments: Arguments of the program.
        """
        session = Session(debug="--debug" in arguments)
        for position, argument in enumerate(arguments):
            if argument == "--json" and position + 1 < len(arguments):
                session.json_target = arguments[position + 1]
            elif argument.startswith("--json="):
                session.json_target = argument.removeprefix("--json=")
        return session

    def note(self, message: str) -> None:
        """Tell something that every user should read, unless progress is suppressed."""
        if not self.quiet:
            sys.stderr.write(f"{printable(message)}\n")

    @contextmanager
    def working(self) -> Iterator[PlainProgress | SilentProgress]:
        """Open a context for library calls: whatever they print goes to standard error.

        Yields:
            The listener to hand to them.
        """
        from eqdeploy.cli.progress import make_progress

        level = logging.INFO if self.debug else logging.WARNING if self.verbose else logging.ERROR
        logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            if not (self.verbose or self.debug or sys.warnoptions):
                warnings.simplefilter("ignore")
            yield make_progress(quiet=self.quiet, verbose=self.verbose or self.debug)

    @contextmanager
    def bounded(self, foreign: Iterable[str | Path] | None = None) -> Iterator[Progress]:
        """Open a context for library calls that may take only so much memory, and be silent only for so long.

        Args:
            foreign: Files and folders by whose size memory is bounded, where the command runs or shows a model that
                may be anybody's; None for a command that works on what the user has made.

        Yields:
            The listener to hand to them: whatever it hears of is a sign of life.

        Raises:
            UsageError: If the environment sets a limit that is none.
        """
        with self.working() as progress:
            if self.signs is None:
                yield progress
                return
            limits = self._bound_memory(foreign, progress)
            self.signs.begin(self.command or "", limits.seconds)
            yield ReportedProgress(progress, self.signs.give)

    @contextmanager
    def bounded_in_memory(self) -> Iterator[PlainProgress | SilentProgress]:
        """Open a context for library calls that may take only so much memory, for as long as they like.

        A training has no bound in time: code of the user's is compiled and run in it, and its processes wait for
        one another.

        Yields:
            The listener to hand to them.

        Raises:
            UsageError: If the environment sets a limit that is none.
        """
        with self.working() as progress:
            if self.signs is not None:
                self._bound_memory(None, progress)
            yield progress

    def _bound_memory(self, foreign: Iterable[str | Path] | None, progress: Progress) -> Limits:
        """Let the system bound the memory of this process; returns all limits of the command."""
        limits = command_limits(os.environ, machine_memory(), foreign)
        self.memory = limits.memory
        if limits.memory is not None and not bound_memory(limits.memory):
            progress.detail("this system does not bound the memory of a process")
        return limits
