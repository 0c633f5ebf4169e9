"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), https://www.cs.toronto.edu/~kriz/cifar.html, in both versions.

The binary version is plain bytes. The Python version, which torchvision downloads, is read by
:mod:`eqdeploy.data.plain_pickle`, which runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.data.images import fit_images
from eqdeploy.data.labelled import LabelledImages, spread_indices
from eqdeploy.data.plain_pickle import read_plain_pickle
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError, UsageError

#: Which labels of CIFAR-100 are read: 100 classes, or the 20 groups of five that they form.
LABELS = ("fine", "coarse")

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = tuple(f"data_batch_{index}" for index in range(1, 6))
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32

_Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Layout:
    """One version of one of the data sets.

    Attributes:
        folder: Name of the folder in the archive that the authors publish.
        files: Files of each split.
        pickled: Whether they are pickles.
        label_bytes: In front of each image of the binary version.
        names: For CIFAR-100, where class names are.
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    pickled: bool
    label_bytes: int
    names: str | None = None

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds files of this layout."""
        marks = {name for names in self.files.values() for name in names}
        if self.names is not None:  # "train" and "test" alone could be anything
            return (folder / self.names.format("fine")).is_file() and any((folder / mark).is_file() for mark in marks)
        return any((folder / mark).is_file() for mark in marks)


_LAYOUTS = (
    Layout(
        "cifar-10-batches-bin",
        {"train": tuple(f"{name}.bin" for name in _BATCHES), "test": ("test_batch.bin",)},
        pickled=False,
        label_bytes=1,
    ),
    Layout("cifar-10-batches-py", {"train": _BATCHES, "test": ("test_batch",)}, pickled=True, label_bytes=0),
    Layout(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        pickled=False,
        label_bytes=2,
        names="{}_label_names.txt",
    ),
    Layout("cifar-100-python", {"train": ("train",), "test": ("test",)}, pickled=True, label_bytes=0, names="meta"),
)


def find_layout(path: Path) -> tuple[Layout, Path] | None:
    """Recognize a folder with one of the data sets, or the folder above, as torchvision leaves it.

    Raises:
        DataError: If the folder holds both CIFAR-10 and CIFAR-100.
    """
    for layout in _LAYOUTS:
        if layout.is_in(path):
            return layout, path
    found = [layout for layout in _LAYOUTS if layout.is_in(path / layout.folder)]
    if not found:
        return None
    if len({layout.names is None for layout in found}) > 1:
        folders = [layout.folder for layout in found]
        raise DataError(
            "holds both CIFAR-10 and CIFAR-100", where=str(path), hint=f"give one of {', '.join(folders)} in it"
        )
    return found[0], path / found[0].folder


def read_cifar(
    layout: Layout,
    folder: Path,
    *,
    split: str,
    preprocessing: Preprocessing,
    limit: int | None,
    labels: str | None = None,
) -> LabelledImages:
    """Read one split of either data set in either version.

    Args:
        layout: What :func:`find_layout` found.
        folder: The folder with its files.
        split: ``train`` or ``test``.
        preprocessing: Size and channels that the network reads.
        limit: Use this many images evenly spread over the split, None for all.
        labels: One of :data:`LABELS` for CIFAR-100, ``fine`` by default; None for CIFAR-10.

    Raises:
        DataError: If a file is missing or damaged, or the network does not read three channels.
        UsageError: If ``labels`` are chosen that the data set does not have.
        MissingDependencyError: If images must be resized and Pillow is not installed.
    """
    if labels is not None and layout.names is None:
        raise UsageError("CIFAR-10 has only one kind of labels", where=str(folder), hint=f"leave out #{labels}")
    kind = labels or LABELS[0]
    read = _read_pickle if layout.pickled else _read_records
    parts = [read(folder / name, layout, kind) for name in layout.files[split]]
    images, numbers = (np.concatenate(values) for values in zip(*parts, strict=True))
    picked = spread_indices(len(images), limit)
    fitted = fit_images(images[picked].reshape(-1, *_SHAPE), preprocessing, where=str(folder))
    return LabelledImages(fitted, numbers[picked], _class_names(layout, folder, kind), str(folder))


def _read_records(path: Path, layout: Layout, kind: str) -> _Part:
    """Images (N, 3072) and labels of one file of the binary version: label bytes, then red, green, blue planes."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    size = layout.label_bytes + _PIXELS
    if len(data) == 0 or len(data) % size:
        raise DataError(
            f"{len(data)} bytes are no whole number of records",
            where=str(path),
            hint=f"a record has {size} bytes; download the file again",
        )
    records = data.reshape(-1, size)
    column = layout.label_bytes - 1 if kind == "fine" else 0  # CIFAR-100 has the coarse label first
    return records[:, layout.label_bytes :], records[:, column].astype(np.int64)


def _read_pickle(path: Path, layout: Layout, kind: str) -> _Part:
    """Images (N, 3072) and labels of one file of the Python version."""
    content = read_plain_pickle(path)
    name = "labels" if layout.names is None else f"{kind}_labels"
    images, labels = content.get("data"), content.get(name)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != _PIXELS or not len(images):
        raise DataError(f"'data' is not an array of images of {_PIXELS} bytes", where=str(path))
    whole = isinstance(labels, list) and all(type(label) is int and 0 <= label < 256 for label in labels)
    if not isinstance(labels, list) or not whole or len(labels) != len(images):
        raise DataError(f"{name!r} is not a list of {len(images)} classes", where=str(path))
    return images, np.array(labels, np.int64)


def _class_names(layout: Layout, folder: Path, kind: str) -> tuple[str, ...]:
    """Names of the classes."""
    if layout.names is None:
        return _CLASSES
    path = folder / layout.names.format(kind)
    names: Any
    if layout.pickled:
        names = read_plain_pickle(path).get(f"{kind}_label_names")
    else:
        try:
            names = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeError) as error:
            raise DataError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"holds no names of the {kind} classes", where=str(path))
    return tuple(name.decode("latin-1") if isinstance(name, bytes) else name for name in names)
