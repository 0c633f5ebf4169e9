"""Data sets on disk as folders of image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eqdeploy.data.images import decode, empty_images
from eqdeploy.data.labelled import UNLABELLED, LabelledImages, spread_indices
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError

#: Folder or archive names that each split goes by, in order of preference.
SPLIT_NAMES = {"train": ("train",), "test": ("test", "val", "validation")}

#: Name endings of image files, in lower case.
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp"})


def read_folder(root: Path, *, split: str, preprocessing: Preprocessing, limit: int | None) -> LabelledImages:
    """Read ``root/<split>/<class>/*``, ``root/<class>/*``, or unlabelled images from ``root/<split>/*`` or ``root/*``.

    Classes are numbered in the order of their names, as text. Files are read in the order of their paths; other
    than image files, and hidden ones, are passed over.

    Args:
        root: The folder.
        split: ``train`` or ``test``; without a folder for any split, ``root`` as a whole is every split.
        preprocessing: Size and channels that the network reads.
        limit: Use this many images evenly spread over the folder, None for all.

    Raises:
        DataError: If there is no image, a class has none, splits differ in their classes, or a file is damaged.
        MissingDependencyError: If Pillow is not installed.
    """
    folder = _find_split(root, split)
    classes = [entry.name for entry in _subfolders(folder)]
    loose = [path for path in _entries(folder) if _is_image(path)]
    if classes and loose:
        raise DataError(
            f"holds both class folders and images ({loose[0].name})",
            where=str(folder),
            hint="sort every image into a class folder",
        )
    if not classes and not loose:
        raise DataError("holds no images and no class folders", where=str(folder))
    if not classes:
        return _read_files(loose, [UNLABELLED] * len(loose), (), folder, preprocessing, limit)
    if folder != root:
        _require_same_classes(root, folder, classes)
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = _images_below(folder / name)
        if not members:
            raise DataError("class folder without images", where=str(folder / name))
        files += members
        labels += [label] * len(members)
    return _read_files(files, labels, tuple(classes), folder, preprocessing, limit)


def _find_split(root: Path, split: str) -> Path:
    """The folder of the split, or ``root`` where there are no splits."""
    splits = _split_folders(root)
    for name in SPLIT_NAMES[split]:
        if root / name in splits:
            return root / name
    if splits:
        found = ", ".join(folder.name for folder in splits)
        raise DataError(f"has no folder {split!r}", where=str(root), hint=f"it has {found}")
    return root


def _split_folders(root: Path) -> list[Path]:
    """Subfolders that are splits.

    A class may be called "train" as well: subfolders with the names of splits are taken for splits only if one
    of them holds folders itself, or if there are no others.
    """
    subfolders = _subfolders(root)
    named = [folder for folder in subfolders if any(folder.name in names for names in SPLIT_NAMES.values())]
    return named if named == subfolders or any(_subfolders(folder) for folder in named) else []


def _require_same_classes(root: Path, folder: Path, classes: Sequence[str]) -> None:
    """Refuse splits with different classes: the same label would mean different things."""
    for other in _split_folders(root):
        names = {entry.name for entry in _subfolders(other)}
        different = sorted(names ^ set(classes)) if names else []
        if different:
            raise DataError(
                f"class folder {different[0]!r} is not in both {folder.name!r} and {other.name!r}", where=str(root)
            )


def _read_files(
    files: Sequence[Path],
    labels: Sequence[int],
    classes: tuple[str, ...],
    folder: Path,
    preprocessing: Preprocessing,
    limit: int | None,
) -> LabelledImages:
    """Decode the files that ``limit`` leaves."""
    picked = spread_indices(len(files), limit)
    images = empty_images(len(picked), preprocessing, dtype=np.dtype(np.uint8), where=str(folder))
    for position, index in enumerate(picked):
        images[position] = decode(files[index], preprocessing, where=str(files[index]))
    return LabelledImages(images, np.array(labels, np.int64)[picked], classes, str(folder))


def _entries(folder: Path) -> list[Path]:
    """Everything in a folder that is not hidden, by name."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot be listed: {error.strerror}", where=str(folder)) from error


def _subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, by name."""
    return [path for path in _entries(folder) if path.is_dir()]


def _images_below(folder: Path) -> list[Path]:
    """Image files in a folder and below it, by path."""
    below = (path for path in folder.rglob("*") if _is_image(path))
    visible = (path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(visible)


def _is_image(path: Path) -> bool:
    """Whether a path is a file named like an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
