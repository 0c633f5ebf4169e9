"""What a terminal shows of open stages: a bar for each, and under it what is known about the stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

#: Redraws each second: enough to look alive, too few to cost anything beside training.
REFRESHES_PER_SECOND = 5

#: Below this width numbers would be cut to make room for a bar, so there is none.
NARROW = 60

_INDENTATION = "  "
_SEPARATOR = ", "


class Bars(Progress):
    """Bars that fit terminals of any width: facts are laid out anew at every redraw.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=REFRESHES_PER_SECOND,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield one thing that is laid out when the width is known."""
        yield _Stages(self)


class _Stages:
    """All stages of a display: their bars, then what is known, from the function in a task's field ``facts``.

    Args:
        bars: The display.
    """

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts."""
        narrow = options.max_width < NARROW
        tasks = self._bars.tasks
        if not narrow:
            yield self._bars.make_tasks_table(tasks)
        for task in tasks:
            facts: Callable[[], Sequence[str]] | None = task.fields.get("facts")
            known = () if facts is None else facts()
            if narrow:
                done = f"{task.completed:.0f}" + ("" if task.total is None else f" of {task.total:.0f}")
                known = (task.description, done, *known)
            if known:
                yield Facts(known)


class Facts:
    """Short texts, as many on a line as its width allows.

    Args:
        facts: The texts.
    """

    def __init__(self, facts: Sequence[str]) -> None:
        self._facts = facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one line after the other."""
        for line in pack(self._facts, options.max_width - len(_INDENTATION)):
            yield Text(_INDENTATION + line, style="dim", no_wrap=True, overflow="ellipsis")


def pack(facts: Sequence[str], width: int) -> Iterator[str]:
    """Join texts to lines that are no wider than ``width``, where no single text is.

    >>> list(pack(["epoch 4 of 24", "loss 0.31", "accuracy 89 %"], 24))
    ['epoch 4 of 24, loss 0.31', 'accuracy 89 %']
    """
    line = ""
    for fact in facts:
        joined = f"{line}{_SEPARATOR}{fact}" if line else fact
        if line and len(joined) > width:
            yield line
            joined = fact
        line = joined
    if line:
        yield line
