"""How much memory a command may take and how long it may be silent, as the machine and the user say.

A small file can ask for any amount of memory, and a model in it may never end. The limits hold for the process that
does the work; another one watches it (:mod:`eqdeploy.cli.supervisor`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eqdeploy.errors import UsageError

MEMORY_VARIABLE = "EQDEPLOY_MEMORY_LIMIT"
TIME_VARIABLE = "EQDEPLOY_TIMEOUT"

#: Value of either variable that takes the limit away.
UNLIMITED = "none"

#: Seconds without any progress after which a command is ended.
DEFAULT_SECONDS = 600.0

#: Share of the machine's memory that any command may take.
_LARGEST_SHARE = 0.75
#: Share of it that a file of somebody else's may take before its size is counted, and the least that it may take:
#: the libraries alone take half a GiB.
_FOREIGN_SHARE = 0.25
_FOREIGN_MINIMUM = 4 << 30
#: Bytes of memory for each byte of the files: copies of weights in several types, decoded images.
_BYTES_PER_BYTE = 8

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)

#: Where a container's limit stands, of both versions of control groups.
_CONTAINER_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Limits:
    """What a command may take.

    Attributes:
        memory: Bytes of private memory of the process, None for any.
        seconds: Time between two signs of progress, None for any.
    """

    memory: int | None
    seconds: float | None


def command_limits(environment: Mapping[str, str], total: int | None, files: Iterable[str | Path] | None) -> Limits:
    """The limits of a command.

    Args:
        environment: May set both limits.
        total: The machine's memory in bytes, None if it is not known: then there is no limit unless the user sets one.
        files: Files and folders of which the command may take a multiple, where it runs or shows a model that may be
            anybody's; None for a command that works on what the user has made.

    Raises:
        UsageError: If the environment sets a limit that is none.
    """
    memory: int | None = None
    named = environment.get(MEMORY_VARIABLE)
    if named:
        memory = _bytes_of(named)
    elif total is not None:
        memory = int(total * _LARGEST_SHARE)
        if files is not None:
            start = max(_FOREIGN_MINIMUM, int(total * _FOREIGN_SHARE))
            memory = min(memory, start + _BYTES_PER_BYTE * _size(files, memory // _BYTES_PER_BYTE))
    return Limits(memory, _seconds_of(environment.get(TIME_VARIABLE)))


def machine_memory() -> int | None:
    """Memory of the machine, or of the container if that has less; None if it is not known."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    for name in _CONTAINER_FILES:
        try:
            found.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return min(found)


def bound_memory(limit: int) -> bool:
    """Let the system refuse this process more memory than the limit.

    What counts is private memory that can be written to, whether it is used or not; files that are mapped do not. A
    lower limit that is set already stays.

    Args:
        limit: In bytes.

    Returns:
        Whether this system can do that.
    """
    try:
        import resource
    except ImportError:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = [limit, *(value for value in (soft, hard) if value != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(wanted), hard))
    return os.uname().sysname == "Linux"  # others accept the limit and do not enforce it


def size_text(size: int) -> str:
    """A size as it is shown.

    >>> size_text(300 << 20), size_text(11_811_160_064)
    ('300 MiB', '11.0 GiB')
    """
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"


def _bytes_of(text: str) -> int | None:
    """Read a size.

    Raises:
        UsageError: If it is none.
    """
    if text == UNLIMITED:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{text[:40]!r} is not a size", where=MEMORY_VARIABLE, hint=f"12GiB, 800MiB or {UNLIMITED}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _seconds_of(text: str | None) -> float | None:
    """Read a time.

    Raises:
        UsageError: If it is none.
    """
    if not text:
        return DEFAULT_SECONDS
    if text == UNLIMITED:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not float(text):
        raise UsageError(f"{text[:40]!r} is not a number of seconds", where=TIME_VARIABLE, hint=f"600 or {UNLIMITED}")
    return float(text)


def _size(names: Iterable[str | Path], enough: int) -> int:
    """Bytes of files and folders together; counting ends at ``enough``. Names of anything else count nothing."""
    total = 0
    for name in names:
        try:
            for path in _plain_files(Path(name)):
                total += path.stat().st_size
                if total >= enough:
                    return total
        except (OSError, ValueError):  # whoever reads it says so
            continue
    return total


def _plain_files(path: Path) -> Iterable[Path]:
    """The file, or all files in the folder."""
    if not path.is_dir():
        return (path,) if path.is_file() else ()
    return (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
