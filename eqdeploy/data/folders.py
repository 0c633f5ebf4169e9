"""Data sets on disk as folders of image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eqdeploy.data.decoding import EncodedImages, decode_all
from eqdeploy.data.labelled import UNLABELLED, LabelledImages, spread_indices
from eqdeploy.data.listing import IMAGE_SUFFIXES, ImageFile, list_images, subfolders
from eqdeploy.data.options import LoadOptions
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.splits import pick_split, split_word
from eqdeploy.errors import DataError


def read_folder(
    root: Path, *, split: str, preprocessing: Preprocessing, limit: int | None, options: LoadOptions
) -> LabelledImages:
    """Read ``root/<split>/<class>/*``, ``root/<class>/*``, or unlabelled images from ``root/<split>/*`` or ``root/*``.

    Classes are numbered in the order of their names, as text. Files are read in the order of their paths; other
    than image files, and hidden ones, are passed over.

    Args:
        root: The folder.
        split: ``train`` or ``test``; without a folder for any split, ``root`` as a whole is every split.
        preprocessing: Size and channels that the network reads.
        limit: Use this many images evenly spread over the folder, None for all.
        options: What to do about damaged images, where to cache decoded ones.

    Raises:
        DataError: If there is no image, a class has none, splits differ in their classes, two folders can be the same
            split, or a file is damaged.
        MissingDependencyError: If Pillow is not installed.
        OutputError: If the cache folder that ``options`` name cannot be written to.
    """
    folder = _find_split(root, split)
    classes = [entry.name for entry in subfolders(folder)]
    loose = list_images(folder, deep=False)
    ignored = loose.ignored
    if classes and loose.images:
        raise DataError(
            f"holds both class folders and images ({Path(loose.images[0].path).name})",
            where=str(folder),
            hint="sort every image into a class folder",
        )
    if not classes and not loose.images:
        raise DataError("holds no images and no class folders", where=str(folder), hint=_found_instead(ignored))
    files = loose.images
    labels = [UNLABELLED] * len(files)
    if folder != root and classes:
        _require_same_classes(root, folder, classes)
    elif classes:
        _doubt_classes(folder, classes, options)
    for label, name in enumerate(classes):
        listing = list_images(folder / name)
        ignored.update(listing.ignored)
        if not listing.images:
            hint = _found_instead(listing.ignored)
            raise DataError("class folder without images", where=str(folder / name), hint=hint)
        files += listing.images
        labels += [label] * len(listing.images)
    if ignored:
        options.progress.detail(f"{folder}: {ignored.total()} files that are no images were passed over")
    return _read_files(files, labels, tuple(classes), folder, preprocessing, limit, options)


def _read_files(
    files: Sequence[ImageFile],
    labels: Sequence[int],
    classes: tuple[str, ...],
    folder: Path,
    preprocessing: Preprocessing,
    limit: int | None,
    options: LoadOptions,
) -> LabelledImages:
    """Decode the files that ``limit`` leaves."""
    picked = spread_indices(len(files), limit)
    chosen = [files[index] for index in picked]
    encoded = EncodedImages(
        names=lambda index: chosen[index].path,
        read=lambda index: Path(chosen[index].path),
        labels=np.array(labels, np.int64)[picked],
        classes=classes,
        source=str(folder),
        limit=limit,
        fingerprint=chosen,
    )
    return decode_all(encoded, preprocessing, options)


def _find_split(root: Path, split: str) -> Path:
    """The folder of the split, or ``root`` where there are no splits."""
    splits = _split_folders(root)
    name = pick_split([folder.name for folder in splits], split, where=str(root))
    if name is not None:
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
    found = subfolders(root)
    named = [folder for folder in found if split_word(folder.name) is not None]
    return named if named == found or any(subfolders(folder) for folder in named) else []


def _require_same_classes(root: Path, folder: Path, classes: Sequence[str]) -> None:
    """Refuse splits with different classes: the same label would mean different things."""
    for other in _split_folders(root):
        names = {entry.name for entry in subfolders(other)}
        different = sorted(names ^ set(classes)) if names else []
        if different:
            raise DataError(
                f"class folder {different[0]!r} is not in both {folder.name!r} and {other.name!r}",
                where=str(root),
                hint="give all splits the same class folders",
            )


def _doubt_classes(root: Path, classes: Sequence[str], options: LoadOptions) -> None:
    """Remark that class folders look like splits of an unknown name: all hold the same folders and nothing else."""
    inside = [{entry.name for entry in subfolders(root / name)} for name in classes]
    same = inside[0]
    if len(classes) < 2 or len(same) < 2 or any(names != same for names in inside):
        return
    if any(list_images(root / name, deep=False).images for name in classes):
        return
    options.progress.note(
        f"{root}: {', '.join(sorted(classes)[:3])} are taken for classes, but all hold the folders "
        f"{', '.join(sorted(same)[:3])}; if they are splits, call them train and test"
    )


def _found_instead(ignored: Counter[str]) -> str:
    """Say which files there are and which would be read."""
    read = f"read are {', '.join(sorted(IMAGE_SUFFIXES))}"
    if not ignored:
        return read
    common = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(3))
    return f"other files: {common}; {read}"
