"""Folders that a process works in, and that others remove when it was killed.

Their owner holds a lock on the folder itself. The system takes the lock away when the owner ends, however that comes
about, so a folder that can be locked belongs to nobody. Where a system or a file system has no such locks, nothing is
removed but by the owner.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def hidden_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Open an empty folder of this process, with the permissions that any new folder gets.

    Args:
        parent: Folder that exists.
        prefix: Start of its name.

    Yields:
        The folder; it is removed when the context ends, unless it was renamed.

    Raises:
        OSError: If it cannot be made.
    """
    folder, lock = _make(parent, prefix)
    try:
        inherited = folder / "permissions"
        inherited.mkdir()
        folder.chmod(inherited.stat().st_mode & 0o777)
        inherited.rmdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders of processes that have ended without removing them; those of others stay.

    Args:
        parent: Folder that exists.
        prefix: As for :func:`hidden_folder`.
    """
    with suppress(OSError):
        for folder in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
            with suppress(OSError):  # somebody works in it, or has removed it
                if (lock := _lock(folder)) is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)


def _make(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """Make a folder and lock it, if that can be done here.

    Returns:
        The folder, and a descriptor that holds the lock until it is closed.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(BlockingIOError, FileNotFoundError):  # taken for abandoned before it was locked
            lock = _lock(folder)
            if folder.exists():
                return folder, lock
            if lock is not None:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor that is returned is closed; None if that cannot be done here.

    Raises:
        BlockingIOError: If another process has locked it.
        OSError: If it is gone, or no folder.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor
