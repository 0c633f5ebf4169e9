"""Text that came from files, made safe for a terminal."""

from __future__ import annotations

#: Characters of a message; forty mistakes of one file are shorter.
LONGEST_MESSAGE = 8_000
_CUT = " .. "


def printable(text: str) -> str:
    r"""Escape everything that a terminal might act upon: control characters, escape sequences, odd spaces.

    >>> printable("layer" + chr(27) + "[2J")
    'layer\\x1b[2J'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def one_line(text: str) -> str:
    r"""A message on one line, cut in the middle where something from a file makes it endless.

    >>> one_line("not\n  valid")
    'not valid'
    >>> len(one_line("x" * 100_000))
    8000
    """
    line = " ".join(text.split())
    half = (LONGEST_MESSAGE - len(_CUT)) // 2
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:half]}{_CUT}{line[-half:]}"


def byte_count(size: int) -> str:
    """Write a number of bytes for people.

    >>> byte_count(12), byte_count(34567), byte_count(3 << 20)
    ('12 B', '33.8 KiB', '3.0 MiB')
    """
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
