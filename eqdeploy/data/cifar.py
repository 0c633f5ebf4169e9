"""CIFAR-10 (Krizhevsky, 2009) in its binary version, https://www.cs.toronto.edu/~kriz/cifar.html."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eqdeploy.data.images import fit_images
from eqdeploy.data.labelled import LabelledImages, spread_indices
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError

#: Name of the folder in the archive that the authors publish.
FOLDER = "cifar-10-batches-bin"

_FILES = {"train": tuple(f"data_batch_{index}.bin" for index in range(1, 6)), "test": ("test_batch.bin",)}
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32


def is_cifar_binary(folder: Path) -> bool:
    """Whether a folder holds files of the binary version."""
    return any((folder / name).is_file() for names in _FILES.values() for name in names)


def is_cifar_pickle(folder: Path) -> bool:
    """Whether a folder holds files of the Python version, which are pickles."""
    return (folder / "batches.meta").is_file() or (folder / "data_batch_1").is_file()


def read_cifar(folder: Path, *, split: str, preprocessing: Preprocessing, limit: int | None) -> LabelledImages:
    """Read the binary version: records of one label byte and 3072 bytes, red, green, blue planes of 32x32.

    Args:
        folder: The folder with ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``.
        split: ``train`` or ``test``.
        preprocessing: Size and channels that the network reads.
        limit: Use this many images evenly spread over the split, None for all.

    Raises:
        DataError: If a file is missing or damaged, or the network does not read three channels.
        MissingDependencyError: If images must be resized and Pillow is not installed.
    """
    records = np.concatenate([_read_records(folder / name) for name in _FILES[split]])
    picked = spread_indices(len(records), limit)
    images = fit_images(records[picked, 1:].reshape(-1, *_SHAPE), preprocessing, where=str(folder))
    return LabelledImages(images, records[picked, 0].astype(np.int64), _CLASSES, str(folder))


def _read_records(path: Path) -> NDArray[np.uint8]:
    """(N, 3073) records of one file."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(data) == 0 or len(data) % _RECORD:
        raise DataError(
            f"{len(data)} bytes are no whole number of records", where=str(path), hint=f"a record has {_RECORD} bytes"
        )
    return data.reshape(-1, _RECORD)
