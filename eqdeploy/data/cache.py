"""Decoded images on disk: plain bytes that are mapped into memory, and a JSON file that says what they are.

An entry is found by what went into it: every file's path, size and time of change, the size of the images and the
version of the decoder. A change of any of them makes a new entry and removes the old one of the same data. The JSON
file is written last, so that an entry without it is never read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import DataError, OutputError, UsageError
from eqdeploy.json_file import parse_json

#: Environment variable with the folder that ``auto`` stands for, or ``off``.
CACHE_VARIABLE = "EQDEPLOY_CACHE"

#: ``auto`` caches data sets of at least this many image files; fewer are decoded in a few seconds.
MINIMUM_IMAGES = 1024

_FORMAT = 1
_ENTRY = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{32}\.(json|u8|json\.partial|u8\.partial)|\.lock)")
_MAXIMUM_METADATA = 256 << 20

#: Index of an image that is left out, and why.
Skipped = tuple[int, str]

#: Writes images into an array, each at its index, and returns those that are left out, in ascending order.
Fill = Callable[[NDArray[np.uint8]], list[Skipped]]


@dataclass(frozen=True)
class CachedImages:
    """Decoded images.

    Attributes:
        images: (N, C, H, W), mapped from the file, read-only; without those that were left out.
        skipped: Those that were left out.
        digest: What :class:`eqdeploy.data.labelled.LabelledImages` computed for them when they were decoded; whoever
            uses them compares it.
    """

    images: NDArray[np.uint8]
    skipped: list[Skipped]
    digest: str


@dataclass(frozen=True)
class CacheKey:
    """Identifies an entry.

    Attributes:
        place: Which data, in which form: entries of the same place replace each other.
        content: What is there.
    """

    place: str
    content: str

    @staticmethod
    def of(place: Any, content: Any) -> CacheKey:
        """Hash plain data."""
        return CacheKey(_hash(place)[:16], _hash([_FORMAT, place, content])[:32])


def cache_folder(setting: str, count: int) -> Path | None:
    """The folder to cache in, or None.

    Args:
        setting: ``auto``, ``off`` or a folder.
        count: Number of image files.
    """
    if setting == "off":
        return None
    if setting != "auto":
        return Path(setting)
    return default_cache_folder() if count >= MINIMUM_IMAGES else None


def default_cache_folder() -> Path | None:
    """What ``auto`` stands for: ``$EQDEPLOY_CACHE``, ``$XDG_CACHE_HOME/eqdeploy`` or ``~/.cache/eqdeploy``."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return None if named == "off" else Path(named)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home
        return None
    return home / "eqdeploy" if home.is_absolute() else None


def clear_cache(folder: Path) -> int:
    """Remove every entry from a cache folder, and nothing else; return the number of bytes.

    Raises:
        OutputError: If a file cannot be removed.
    """
    removed = 0
    try:
        for path in sorted(_images_folder(folder).glob("*")):
            if _ENTRY.fullmatch(path.name):
                removed += path.stat().st_size
                path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be cleared: {error.strerror}", where=str(folder)) from error
    return removed


def load_entry(folder: Path, key: CacheKey) -> CachedImages | None:
    """An entry, or None where there is none that is whole, as far as sizes tell."""
    pixels, metadata = _paths(folder, key)
    try:
        if metadata.stat().st_size > _MAXIMUM_METADATA:
            return None
        document = parse_json(metadata.read_bytes(), str(metadata), DataError)
        shape = tuple(document["shape"])
        whole = len(shape) == 4 and all(type(side) is int and side > 0 for side in shape)
        if not whole or pixels.stat().st_size != math.prod(shape):
            return None
        skipped = [(int(index), str(reason)) for index, reason in document["skipped"]]
        return CachedImages(np.memmap(pixels, np.uint8, "r", shape=shape), skipped, str(document["digest"]))
    except (DataError, OSError, ValueError, TypeError, LookupError):
        return None


def store_entry(
    folder: Path,
    key: CacheKey,
    shape: tuple[int, int, int, int],
    fill: Fill,
    digest_of: Callable[[NDArray[np.uint8], list[Skipped]], str],
) -> CachedImages:
    """Make an entry. Its place should be locked.

    Args:
        folder: The cache folder.
        key: Names the entry.
        shape: (N, C, H, W) that is made room for.
        fill: Makes the images.
        digest_of: Makes the digest of the images that are kept.

    Raises:
        OutputError: If the folder cannot be written to, or its disk has no room. Nothing is left behind.
    """
    pixels, metadata = _paths(folder, key)
    partial = pixels.with_name(f"{pixels.name}.partial")
    try:
        try:
            _make_room(partial, math.prod(shape))
            skipped = _fill(partial, shape, fill)
            partial.replace(pixels)
            images = np.memmap(pixels, np.uint8, "r", shape=(shape[0] - len(skipped), *shape[1:]))
            entry = CachedImages(images, skipped, digest_of(images, skipped))
            document = {"shape": images.shape, "skipped": entry.skipped, "digest": entry.digest}
            _write(metadata, json.dumps(document).encode())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _remove_others(folder, key)
    except OSError as error:
        raise _not_writable(folder, error) from error
    return entry


@contextmanager
def locked_place(folder: Path, key: CacheKey) -> Iterator[None]:
    """Let one process at a time work on a place: the processes of one training decode once, not each.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    path = _images_folder(folder) / f"{key.place}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("wb")
    except OSError as error:
        raise _not_writable(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also by a kill
        except OSError as error:
            raise _not_writable(folder, error) from error
        yield


def _make_room(path: Path, size: int) -> None:
    """Make a file whose blocks are all there: writing to a mapped file without room on the disk kills the process."""
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(errno.ENOSPC, f"they take {size:,} bytes, the disk has {free:,} left")
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _fill(path: Path, shape: tuple[int, int, int, int], fill: Fill) -> list[Skipped]:
    """Fill a file and close the gaps that images leave which are left out."""
    images: np.memmap[Any, np.dtype[np.uint8]] = np.memmap(path, np.uint8, "r+", shape=shape)
    skipped = fill(images)
    if skipped:
        gaps = {index for index, _ in skipped}
        kept = (index for index in range(shape[0]) if index not in gaps)
        for position, index in enumerate(kept):
            images[position] = images[index]
    images.flush()
    del images
    os.truncate(path, (shape[0] - len(skipped)) * math.prod(shape[1:]))
    return skipped


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _remove_others(folder: Path, key: CacheKey) -> None:
    """Remove older entries of the same place; who has one mapped keeps it until it is closed."""
    for path in _images_folder(folder).glob(f"{key.place}-*"):
        if not path.name.startswith(f"{key.place}-{key.content}."):
            path.unlink(missing_ok=True)


def _paths(folder: Path, key: CacheKey) -> tuple[Path, Path]:
    """Files of an entry: pixels and metadata."""
    stem = _images_folder(folder) / f"{key.place}-{key.content}"
    return stem.with_name(f"{stem.name}.u8"), stem.with_name(f"{stem.name}.json")


def _images_folder(folder: Path) -> Path:
    """Where entries lie, with room for other kinds beside them."""
    try:
        return folder.expanduser() / "images"
    except RuntimeError as error:
        raise UsageError("there is no home folder", where=str(folder)) from error


def _not_writable(folder: Path, error: OSError) -> OutputError:
    """What to say about a cache that cannot be written."""
    return OutputError(
        f"decoded images cannot be cached: {error.strerror or error}",
        where=str(folder),
        hint="name another cache folder, or 'off'",
    )


def _hash(data: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
