"""Text that came from files, made safe for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escape everything that a terminal might act upon: control characters, escape sequences, odd spaces.

    >>> printable("layer" + chr(27) + "[2J")
    'layer\\x1b[2J'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


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
