"""Compact tables for a terminal, from any values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eqdeploy.text import printable


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> RenderableType:
    """Build a table without frame.

    Args:
        columns: Headings; all empty for none.
        rows: Values, as many as there are headings; numbers are set to the right.
        title: What the rows are.
    """
    listed = [tuple(row) for row in rows]
    table = Table(
        box=None,
        show_header=any(columns),
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for index, column in enumerate(columns):
        numeric = bool(listed) and all(isinstance(row[index], int | float) for row in listed)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text(show(value)) for value in row))
    # Not the table's own title, which would be broken at the width of a narrow table.
    return table if title is None else Group(Text(printable(title), style="bold"), table)


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


def tables_of(details: Mapping[str, Any], title: str) -> list[RenderableType]:
    """Lay out plain JSON data: single values as one table, each list or mapping of objects as another.

    Args:
        details: The data.
        title: What it is.
    """
    single: list[tuple[str, object]] = []
    tables: list[RenderableType] = []
    for key, value in details.items():
        entries = _entries(value)
        if entries:
            columns = list(dict.fromkeys(column for entry in entries for column in entry))
            rows = [[_cell(entry.get(column)) for column in columns] for entry in entries]
            tables.append(make_table(columns, rows, title=f"{title}: {key}"))
        else:
            single.append((key, _cell(value)))
    return ([make_table(("", ""), single, title=title)] if single else []) + tables


def _entries(value: object) -> list[dict[str, Any]]:
    """Rows of a list of objects, or of a mapping from names to objects; empty for anything else."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
        return [{"": name, **item} for name, item in value.items()]
    return []


def show_nested(value: object) -> str:
    """Write a nested value on one line.

    >>> show_nested({"QLinearConv": 5, "images": [1, 2], "none": {}})
    'QLinearConv 5, images 1; 2, none -'
    """
    if isinstance(value, dict):
        return ", ".join(f"{key} {show_nested(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return "; ".join(show_nested(item) for item in value) or "-"
    return show(value)


def _cell(value: object) -> object:
    """A value as a table takes it: nested ones on one line."""
    return show_nested(value) if isinstance(value, dict | list) else value
