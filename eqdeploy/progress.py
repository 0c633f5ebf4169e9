"""How long-running functions say what they are doing, without knowing who listens.

Functions that take a while accept a :class:`Progress` and open a stage around each part of the work::

    with progress.stage("calibrating BatchNorm", total=num_images) as advance:
        for batch in batches:
            ...
            advance(len(batch))

The command line shows stages on standard error; :class:`SilentProgress` shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

#: Adds to the amount of work that is done.
Advance = Callable[[int], None]


class Progress(Protocol):
    """Listener to a long-running function."""

    def stage(self, description: str, *, total: int | None = None) -> AbstractContextManager[Advance]:
        """Announce a part of the work for as long as the context is open.

        Args:
            description: What is done, e.g. ``"calibrating BatchNorm"``.
            total: Amount of work in any unit, or None when it is not known.

        Returns:
            A context that yields a function which adds to the amount of work done.
        """
        ...

    def note(self, message: str) -> None:
        """Tell something that every user should read, e.g. a default that was taken."""
        ...

    def detail(self, message: str) -> None:
        """Tell something that only a curious user wants to read."""
        ...


class SilentProgress:
    """A listener that ignores everything; what library callers pass when they want no output."""

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
        """Ignore the stage."""
        yield _ignore

    def note(self, message: str) -> None:
        """Ignore the message."""

    def detail(self, message: str) -> None:
        """Ignore the message."""


def _ignore(amount: int) -> None:
    """Accept an amount of work and forget it."""
