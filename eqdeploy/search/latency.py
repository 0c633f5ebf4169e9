"""Latency of each layer by the widths of its weight and its input, as measured on a device."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eqdeploy.errors import UsageError
from eqdeploy.files import read_bounded
from eqdeploy.quant.form import MAXIMUM_BITS
from eqdeploy.text import printable

_WIDTHS = tuple(str(bits) for bits in range(1, MAXIMUM_BITS + 1))

COLUMNS = ("layer", "weight_bits", "activation_bits", "milliseconds")

_MAXIMUM_BYTES = 16 << 20

#: Longer times of one layer are taken for errors; sums of so many nanoseconds are exact.
_MOST_MILLISECONDS = 1e6


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of single layers.

    Attributes:
        milliseconds: Time by layer name, width of the weight and width of the input on the device; 0 to 1,000,000.
        where: The file that it was read from, for messages.
    """

    milliseconds: Mapping[tuple[str, int, int], float]
    where: str

    @staticmethod
    def read(path: Path) -> LatencyTable:
        """Read a CSV file with the columns ``layer,weight_bits,activation_bits,milliseconds``.

        Raises:
            UsageError: If it cannot be read, or a line is not as it must be. Names the line.
        """
        where = str(path)
        try:
            text = read_bounded(path, _MAXIMUM_BYTES, UsageError).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError("not a text file in UTF-8", where=where) from error
        milliseconds: dict[tuple[str, int, int], float] = {}
        reader = csv.reader(text.splitlines(), strict=True)
        try:
            header = next(reader, [])
            if tuple(header) != COLUMNS:
                raise UsageError(
                    "another header is expected", where=f"{where}:1", hint=f"{','.join(COLUMNS)}, with commas"
                )
            for row in filter(None, reader):  # spreadsheets write empty lines, too
                line = f"{where}:{reader.line_num}"
                key, value = _parse(row, line)
                if key in milliseconds:
                    raise UsageError(f"layer {printable(key[0])!r} has W{key[1]}A{key[2]} twice", where=line)
                milliseconds[key] = value
        except csv.Error as error:
            raise UsageError(f"not CSV: {error}", where=f"{where}:{reader.line_num}") from error
        if not milliseconds:
            raise UsageError("no measurements", where=where)
        return LatencyTable(milliseconds, where)

    def to_csv(self) -> str:
        """The text that :meth:`read` reads, with times to the nanosecond."""
        lines = [",".join(COLUMNS)]
        for (layer, weight_bits, activation_bits), time in self.milliseconds.items():
            name = layer if not set(layer) & set(',"\r\n') else '"' + layer.replace('"', '""') + '"'
            lines.append(f"{name},{weight_bits},{activation_bits},{time:.6f}")
        return "\n".join(lines) + "\n"


def _parse(row: list[str], where: str) -> tuple[tuple[str, int, int], float]:
    """Read one line."""
    if len(row) != len(COLUMNS):
        raise UsageError(f"{len(row)} values instead of {len(COLUMNS)}", where=where, hint=",".join(COLUMNS))
    widths: list[int] = []
    for column, text in zip(COLUMNS[1:3], row[1:3], strict=True):
        if text not in _WIDTHS:
            raise UsageError(f"{column}: {printable(text)!r} is no width of 1 to {MAXIMUM_BITS} bits", where=where)
        widths.append(int(text))
    try:
        value = float(row[3])
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MOST_MILLISECONDS:  # false for no number, too
        raise UsageError(
            f"milliseconds: {printable(row[3])!r} is no time", where=where, hint=f"0 to {_MOST_MILLISECONDS:.0f}"
        )
    return (row[0], widths[0], widths[1]), value
