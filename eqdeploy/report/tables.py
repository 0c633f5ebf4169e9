"""Compact tables for a terminal, from any values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from eqdeploy.text import printable


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """Build a table without frame.

    Args:
        columns: Headings.
        rows: Values, as many as there are headings; numbers are set to the right.
        title: What the rows are.
    """
    listed = [tuple(row) for row in rows]
    table = Table(
        title=None if title is None else Text(title, style="bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for index, column in enumerate(columns):
        numeric = bool(listed) and all(isinstance(row[index], int | float) for row in listed)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text(show(value)) for value in row))
    return table


def show(value: object) -> str:
    """Write one value in few characters, safe for a terminal."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case list() | tuple():
            return ", ".join(show(item) for item in value) or "-"
        case _:
            return printable(str(value))


def tables_of(details: Mapping[str, Any], title: str) -> list[Table]:
    """Lay out plain JSON data: single values as one table, each list of objects as another.

    Args:
        details: The data.
        title: What it is.
    """
    single: list[tuple[str, object]] = []
    tables: list[Table] = []
    for key, value in details.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            columns = list(dict.fromkeys(column for item in value for column in item))
            rows = [[_flat(item.get(column)) for column in columns] for item in value]
            tables.append(make_table(columns, rows, title=f"{title}: {key}"))
        elif isinstance(value, dict):
            tables.extend(tables_of(value, f"{title}: {key}"))
        else:
            single.append((key, value))
    return ([make_table(("", ""), single, title=title)] if single else []) + tables


def _flat(value: object) -> object:
    """Write a nested object of a table's cell as ``key=value`` pairs."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={show(_flat(item))}" for key, item in value.items())
    return value
