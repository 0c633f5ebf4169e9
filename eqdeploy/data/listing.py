"""Image files below a folder: in a fixed order, with what tells whether they have changed."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from eqdeploy.errors import DataError

#: Name endings of image files, in lower case.
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageFile(NamedTuple):
    """An image file as it is found: its path, its size in bytes and when it was last changed, in nanoseconds."""

    path: str
    size: int
    modified: int


@dataclass
class Listing:
    """What is in a folder and below it.

    Attributes:
        images: Image files, in the order of their paths, part by part.
        ignored: Number of other files by the ending of their names; hidden ones are not counted.
    """

    images: list[ImageFile] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def visible_entries(folder: Path) -> list[Path]:
    """Everything in a folder that is not hidden, by name.

    Raises:
        DataError: If the folder cannot be listed.
    """
    return [folder / entry.name for entry in _scan(str(folder))]


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder that are not hidden, by name; links to folders are folders.

    Raises:
        DataError: If the folder cannot be listed.
    """
    return [path for path in visible_entries(folder) if path.is_dir()]


def list_images(folder: Path, *, deep: bool = True) -> Listing:
    """List the image files in a folder.

    Args:
        folder: The folder.
        deep: Whether to look into the folders in it, and into those that it links to, as well.

    Raises:
        DataError: If a folder cannot be listed, or a link leads back into a folder around it.
    """
    listing = Listing()
    for entry in _walk(str(folder), (), deep=deep):
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a Path for each of a million files is slow)
        found = _image_file(entry) if suffix in IMAGE_SUFFIXES else None
        if found is None:
            listing.ignored[suffix or entry.name] += 1
        else:
            listing.images.append(found)
    return listing


def _walk(folder: str, around: tuple[tuple[int, int], ...], *, deep: bool) -> Iterator[os.DirEntry[str]]:
    """Files below a folder in the order of their paths; ``around`` identifies the folders around it."""
    if not deep:
        yield from (entry for entry in _scan(folder) if not _is_folder(entry))
        return
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError as error:
        raise DataError(f"cannot be listed: {error.strerror}", where=folder) from error
    identity = (status.st_dev, status.st_ino)
    if identity in around:
        raise DataError("a symbolic link leads back to a folder around it", where=folder, hint="remove the link")
    for entry in _scan(folder):
        if _is_folder(entry):
            yield from _walk(entry.path, (*around, identity), deep=True)
        else:
            yield entry


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """Entries of a folder that are not hidden, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"cannot be listed: {error.strerror}", where=folder, hint="check the folder and its permissions"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder; a link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError:  # too many links
        return False


def _image_file(entry: os.DirEntry[str]) -> ImageFile | None:
    """An entry that is named like an image, None if it is no plain file.

    A link that leads nowhere is an image that cannot be read, not a file to pass over.
    """
    try:
        status = entry.stat()
    except OSError:
        return ImageFile(entry.path, -1, -1)
    return ImageFile(entry.path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
