"""What the public functions make of their arguments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eqdeploy.errors import UsageError
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import Gates

#: Limits that are left to the profile, and then to the defaults.
GIVEN_BY_PROFILE = Gates()

#: Nobody listens.
SILENT = SilentProgress()


def path(reference: str | Path | None) -> Path | None:
    """A path, if one is given."""
    return None if reference is None else Path(reference)


def texts(texts: str | Iterable[str]) -> tuple[str, ...]:
    """One text, or several."""
    return (texts,) if isinstance(texts, str) else tuple(texts)


def require(name: str, value: int, lowest: int, highest: int | None = None) -> None:
    """Refuse a number that is out of range.

    Raises:
        UsageError: If it is.
    """
    if value < lowest or (highest is not None and value > highest):
        allowed = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
        raise UsageError(f"must be {allowed}, got {value}", where=name)
