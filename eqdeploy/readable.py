"""How an answer shows itself where it is the last line of a notebook's cell or is printed: in a line, or as a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from eqdeploy.text import printable

#: Signs that Markdown and HTML act upon; what came from a file is shown as it is.
_ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_{}[]#|~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


@dataclass(frozen=True)
class Summary:
    """An answer in short.

    Attributes:
        line: The answer in one line, without the name of its class.
        columns: Titles of the columns of a table; none for no table.
        rows: Its rows.
    """

    line: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    def markdown(self) -> str:
        r"""The line, and the table below it.

        >>> print(Summary("digits: valid", ("level", "status"), (("static", "passed"),)).markdown())
        digits: valid
        <BLANKLINE>
        | level | status |
        |---|---|
        | static | passed |
        """
        if not self.columns:
            return _plain(self.line)
        head = [_row(self.columns), "|" + "---|" * len(self.columns)]
        return "\n".join([_plain(self.line), "", *head, *(_row(row) for row in self.rows)])


class Readable(ABC):
    """An answer that a person can read as well as a program; its data class is declared with ``repr=False``."""

    @abstractmethod
    def summary(self) -> Summary:
        """The answer in short."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {printable(self.summary().line)}>"

    def _repr_markdown_(self) -> str:
        """What Jupyter shows."""
        return self.summary().markdown()


def _row(cells: Iterable[str]) -> str:
    """One row of a table in Markdown."""
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return printable(text).translate(_ESCAPED)
