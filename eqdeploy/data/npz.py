"""Data sets in NumPy archives: plain arrays, or JPEG files packed one after another.

Archives are untrusted: no pickles, and each array's declared size is checked before memory is taken.
"""

from __future__ import annotations

import hashlib
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from eqdeploy.data.decoding import EncodedImages, decode_all
from eqdeploy.data.images import fit_images
from eqdeploy.data.labelled import MAX_CLASSES, UNLABELLED, LabelledImages, spread_indices
from eqdeploy.data.options import LoadOptions
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.splits import pick_split, split_word
from eqdeploy.errors import DataError

#: Largest array that is read, enough for 50,000 colour images of 224x224.
MAX_ARRAY_BYTES = 8 << 30

#: Larger arrays must not be more than this many times smaller in the archive: it would be a bomb, not images.
_MAXIMUM_INFLATED_BYTES = 256 << 20
_MAXIMUM_RATIO = 100

_ARRAYS = ("images", "labels", "classes", "jpeg", "offsets")

#: Images of one split among several: ``train_images``, ``x_test``, ``X_train``.
_SPLIT_ARRAY = re.compile(r"(.+)_[iI]mages|[xX]_(.+)")

#: What zipfile, zlib and numpy raise on damaged, encrypted or oversized archives.
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    tokenize.TokenError,
)

_LAYOUT_HINT = "an archive holds 'images' and 'labels', or 'jpeg', 'offsets', 'labels' and 'classes'"


def read_arrays(file: Path | IO[bytes], names: Sequence[str], *, where: str) -> dict[str, NDArray[Any]]:
    """Read arrays from a ``.npz`` archive.

    Args:
        file: The archive.
        names: Arrays to read; those that the archive lacks are left out, all others in it are not touched.
        where: Name of the archive for error messages.

    Raises:
        DataError: If it is no intact archive of arrays, holds Python objects or an oversized array.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            present = set(archive.namelist())
            return {name: _read_array(archive, name, where=where) for name in names if f"{name}.npy" in present}
    except _ARCHIVE_ERRORS as error:
        raise DataError(f"not a readable .npz archive: {error}", where=where) from error


def read_npz(
    path: Path,
    *,
    split: str,
    preprocessing: Preprocessing,
    limit: int | None,
    options: LoadOptions,
    others: Sequence[Path] = (),
) -> LabelledImages:
    """Read a data set from an archive in any layout.

    ``images`` is (N, H, W), (N, C, H, W) or (N, H, W, C) in uint8 or floating point; with four axes, the second
    one is the channels if it has as many as the network reads, else the last one. ``labels`` is (N,) integers;
    ``classes`` holds the names and defaults to the numbers. Without ``labels`` the images are unlabelled.

    An archive of all splits has ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` (or ``val_``,
    ``validation_``), or ``x_train``, ``y_train``, ``x_test``, ``y_test``, and ``classes`` for all.

    The packed layout has ``jpeg`` (bytes of all files), ``offsets`` (file i is
    ``jpeg[offsets[i]:offsets[i + 1]]``) and ``labels`` and ``classes`` as above.

    Args:
        path: The archive.
        split: ``train`` or ``test``; any other archive than one of all splits is every split.
        preprocessing: Size and channels that the network reads.
        limit: Use this many images evenly spread over the archive, None for all.
        options: What to do about damaged images of the packed layout, where to cache decoded ones.
        others: Archives of the other splits, whose labels count where classes have no names.

    Raises:
        DataError: If the archive is damaged or its arrays do not fit together or the network.
        MissingDependencyError: If images must be decoded or resized and Pillow is not installed.
        OutputError: If the cache folder that ``options`` name cannot be written to.
    """
    where = str(path)
    names, unnamed = _array_names(path, split, where=where)
    arrays = _renamed(read_arrays(path, list(names.values()), where=where), names)
    if "labels" in arrays and "classes" not in arrays:
        seen = [arrays["labels"], *read_arrays(path, unnamed, where=where).values()]
        for other in others:
            seen += read_arrays(other, ["labels"], where=str(other)).values()
        arrays |= numbered_classes(seen)
    if "jpeg" not in arrays:
        return labelled_arrays(arrays, preprocessing=preprocessing, limit=limit, where=where)
    total = _count_packed(arrays, where=where)
    if total == 0:
        raise DataError("holds no images", where=where)
    labels, classes = read_labels(arrays, total, where=where)
    picked = spread_indices(total, limit)
    encoded = EncodedImages(
        names=lambda index: f"{where}: image {picked[index]}",
        read=lambda index: _packed(arrays, int(picked[index])),
        labels=labels[picked],
        classes=classes,
        source=where,
        limit=limit,
        fingerprint=hashlib.sha256(arrays["jpeg"].data).hexdigest(),
    )
    return decode_all(encoded, preprocessing, options)


def labelled_arrays(
    arrays: Mapping[str, NDArray[Any]], *, preprocessing: Preprocessing, limit: int | None, where: str
) -> LabelledImages:
    """Make a data set of the arrays ``images``, ``labels`` and ``classes`` of the plain layout.

    Args:
        arrays: See :func:`read_npz`.
        preprocessing: Size and channels that the network reads.
        limit: Use this many images evenly spread over the data, None for all.
        where: Where they come from.

    Raises:
        DataError: If they do not fit together or the network.
        MissingDependencyError: If images must be resized and Pillow is not installed.
    """
    if "images" not in arrays:
        raise DataError("holds neither 'images' nor 'jpeg'", where=where, hint=_LAYOUT_HINT)
    total = len(arrays["images"]) if arrays["images"].ndim else 0
    if total == 0:
        raise DataError("holds no images", where=where)
    labels, classes = read_labels(arrays, total, where=where)
    picked = spread_indices(total, limit)
    return LabelledImages(_read_plain(arrays, picked, preprocessing, where=where), labels[picked], classes, where)


def _array_names(path: Path, split: str, *, where: str) -> tuple[dict[str, str], list[str]]:
    """Names in the archive of the arrays that the split needs, and of the other splits' labels."""
    present = present_arrays(path, where=where)
    if "images" in present or "jpeg" in present:
        return {name: name for name in _ARRAYS}, []
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(present):
        parts = _SPLIT_ARRAY.fullmatch(name)
        if parts is None:
            continue
        prefix = parts[1] or parts[2]
        if split_word(prefix) is not None:
            spelled = [f"{prefix}_labels", f"{prefix}_Labels"] if parts[1] else [f"y_{prefix}", f"Y_{prefix}"]
            labels = next((array for array in spelled if array in present), spelled[0])
            found.setdefault(prefix, (name, labels))
    chosen = pick_split(found, split, where=where)
    if found and chosen is None:
        raise DataError(f"has no images of the split {split!r}", where=where, hint=f"it has {', '.join(found)}")
    if chosen is None:
        return {name: name for name in _ARRAYS}, []
    images, labels = found.pop(chosen)
    return {"images": images, "labels": labels, "classes": "classes"}, [names[1] for names in found.values()]


def present_arrays(path: Path, *, where: str) -> set[str]:
    """Names of the arrays in an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except _ARCHIVE_ERRORS as error:
        raise DataError(f"not a readable .npz archive: {error}", where=where) from error


def _renamed(arrays: Mapping[str, NDArray[Any]], names: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Arrays by the names that they have in the plain layout."""
    return {name: arrays[stored] for name, stored in names.items() if stored in arrays}


def numbered_classes(labels: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Classes without names are numbered up to the largest label of any split; wrong labels are found later."""
    usable = [values for values in labels if values.dtype.kind in "iu" and values.size]
    highest = max((int(values.max()) for values in usable), default=-1)
    if not 0 <= highest < MAX_CLASSES:
        return {}
    return {"classes": np.array([str(index) for index in range(highest + 1)])}


def _read_array(archive: zipfile.ZipFile, name: str, *, where: str) -> NDArray[Any]:
    """Read one array after checking its header against the member's size."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise DataError(
                f"array {name!r} holds Python objects, which are never loaded", where=where, hint="save plain arrays"
            )
        size = dtype.itemsize
        for length in shape:
            size *= length
        if size > MAX_ARRAY_BYTES:
            raise DataError(f"array {name!r} has {size:,} bytes, at most {MAX_ARRAY_BYTES:,} are read", where=where)
        if size > _MAXIMUM_INFLATED_BYTES and size > _MAXIMUM_RATIO * max(1, member.compress_size):
            raise DataError(
                f"array {name!r} grows from {member.compress_size:,} to {size:,} bytes, no images do",
                where=where,
                hint="store it with np.savez, not compressed",
            )
        if min(shape, default=0) < 0 or size != member.file_size - stream.tell():
            raise DataError(f"array {name!r} is truncated or has a wrong header", where=where)
    with archive.open(member) as stream:
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return array


def read_labels(arrays: Mapping[str, NDArray[Any]], total: int, *, where: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Labels and class names of ``total`` images; label -1 and no classes where there are none.

    Integers are class indices: one for an image, or a map of them, (N, …). Floating-point numbers, (N, …), are
    targets for a loss that the user names; they have no classes.

    Raises:
        DataError: If they do not fit the images or the names.
    """
    if "labels" not in arrays:
        return np.full(total, UNLABELLED, np.int64), ()
    labels = arrays["labels"]
    is_column = labels.dtype.kind != "f" and labels.shape[1:] == (1,)  # one class each, in an axis too many
    if labels.dtype.kind not in "iuf" or labels.shape[:1] != (total,) or 0 in labels.shape or is_column:
        raise DataError(
            f"labels have shape {labels.shape} in {labels.dtype}",
            where=where,
            hint=f"({total},) integers fit, or ({total}, …) for maps of classes and, in floating point, for targets",
        )
    if labels.dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused
            return labels.astype(np.float32), ()
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= MAX_CLASSES:
        raise DataError(f"labels run from {lowest} to {highest}", where=where, hint=f"0 to {MAX_CLASSES - 1} fit")
    if "classes" not in arrays:
        return labels.astype(np.int64), tuple(str(index) for index in range(highest + 1))
    classes = arrays["classes"]
    if classes.dtype.kind != "U" or classes.ndim != 1 or not 0 < len(classes) <= MAX_CLASSES:
        raise DataError(
            f"classes have shape {classes.shape} in {classes.dtype}", where=where, hint="an array of names fits"
        )
    return labels.astype(np.int64), tuple(str(name) for name in classes)


def _read_plain(
    arrays: Mapping[str, NDArray[Any]], picked: NDArray[np.int64], preprocessing: Preprocessing, *, where: str
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The images of the plain layout as (N, C, H, W)."""
    images = arrays["images"]
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(f"images are {images.dtype}", where=where, hint="uint8 or floating point fit")
    channels = preprocessing.channels
    if images.ndim == 3 and channels == 1:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] != channels and images.shape[3] == channels:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] != channels:
        raise DataError(
            f"images have shape {arrays['images'].shape}",
            where=where,
            hint=f"the network reads {channels} channels: (N, {channels}, H, W) or (N, H, W, {channels}) fits",
        )
    images = images[picked] if len(picked) < len(images) else images
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and infinite pixels are refused
        images = np.ascontiguousarray(images, dtype=np.uint8 if images.dtype == np.uint8 else np.float32)
    return fit_images(images, preprocessing, where=where)


def _count_packed(arrays: Mapping[str, NDArray[Any]], *, where: str) -> int:
    """Check the index of the packed layout and return its number of files."""
    jpeg, offsets = arrays["jpeg"], arrays.get("offsets")
    if offsets is None:
        raise DataError("array 'offsets' is missing", where=where, hint=_LAYOUT_HINT)
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or offsets.dtype.kind not in "iu" or offsets.ndim != 1:
        raise DataError("jpeg must be uint8 bytes and offsets integers, each with one axis", where=where)
    if len(offsets) == 0 or offsets[0] < 0 or offsets[-1] > len(jpeg) or (offsets[1:] <= offsets[:-1]).any():
        raise DataError(f"offsets do not ascend inside the {len(jpeg)} bytes of jpeg", where=where)
    return len(offsets) - 1


def _packed(arrays: Mapping[str, NDArray[Any]], index: int) -> bytes:
    """One file of the packed layout."""
    jpeg, offsets = arrays["jpeg"], arrays["offsets"]
    content: bytes = jpeg[offsets[index] : offsets[index + 1]].tobytes()
    return content
