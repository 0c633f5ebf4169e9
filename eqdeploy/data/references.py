"""Loading a data set by name or path."""

from __future__ import annotations

from pathlib import Path

from eqdeploy.data import cifar
from eqdeploy.data.digits import load_digits
from eqdeploy.data.folders import SPLIT_NAMES, read_folder
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.npz import read_npz
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError, UsageError

#: Reference of the embedded data set. A folder of that name is given as ``./digits``.
DIGITS = "digits"

_KINDS_HINT = "give 'digits', a .npz archive, or a folder of images"


def load_data(reference: str, *, split: str, preprocessing: Preprocessing, limit: int | None = None) -> LabelledImages:
    """Load labelled images; see :func:`load_images` for arguments and errors.

    Raises:
        DataError: Also if the images have no labels.
    """
    return load_images(reference, split=split, preprocessing=preprocessing, limit=limit).require_labels()


def load_images(
    reference: str, *, split: str, preprocessing: Preprocessing, limit: int | None = None
) -> LabelledImages:
    """Load images, labelled or not, in a fixed order.

    Args:
        reference: ``digits`` for the embedded set, else a path: a ``.npz`` archive, a folder with an archive for
            each split, a folder of images, or CIFAR-10's binary version. See ``docs/data.md``.
        split: ``train`` or ``test``. A single archive, and a folder without splits, is every split.
        preprocessing: Channels and size that the network reads. Pixels are returned as stored;
            ``preprocessing.apply`` makes the network's input of them.
        limit: Load only this many images, evenly spread over the split; None for all.

    Raises:
        UsageError: If ``split`` or ``limit`` is none of these.
        DataError: If the data are missing, empty, damaged, or do not fit the network; names the file.
        MissingDependencyError: If image files are to be read and Pillow is not installed.
    """
    if split not in SPLIT_NAMES:
        raise UsageError(f"unknown split {split!r}", hint=f"there are {' and '.join(SPLIT_NAMES)}")
    if reference == DIGITS:
        return load_digits(split, preprocessing=preprocessing, limit=limit)
    path = Path(reference)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", where=reference) from error
    if is_file:
        return _load_file(path, preprocessing, limit)
    if not is_folder:
        raise DataError("no such file or folder", where=reference, hint=_KINDS_HINT)
    return _load_folder(path, split, preprocessing, limit)


def _load_file(path: Path, preprocessing: Preprocessing, limit: int | None) -> LabelledImages:
    """Load a single file."""
    if path.suffix == ".npz":
        return read_npz(path, preprocessing=preprocessing, limit=limit)
    hint = "unpack it and give the folder" if path.suffix in {".gz", ".tar", ".tgz", ".zip"} else _KINDS_HINT
    raise DataError("not a data set that can be read", where=str(path), hint=hint)


def _load_folder(path: Path, split: str, preprocessing: Preprocessing, limit: int | None) -> LabelledImages:
    """Load a folder by what it holds."""
    for folder in (path, path / cifar.FOLDER):
        if cifar.is_cifar_binary(folder):
            return cifar.read_cifar(folder, split=split, preprocessing=preprocessing, limit=limit)
    for folder in (path, path / "cifar-10-batches-py"):
        if cifar.is_cifar_pickle(folder):
            raise DataError(
                "CIFAR-10 as Python pickles, which can run code and are never loaded",
                where=str(folder),
                hint="download the binary version (cifar-10-binary.tar.gz)",
            )
    archives = {
        name: path / f"{name}.npz"
        for names in SPLIT_NAMES.values()
        for name in names
        if (path / f"{name}.npz").is_file()
    }
    for name in SPLIT_NAMES[split]:
        if name in archives:
            return read_npz(archives[name], preprocessing=preprocessing, limit=limit)
    if archives:
        raise DataError(f"has no {split}.npz", where=str(path), hint=f"it has {', '.join(archives)}")
    return read_folder(path, split=split, preprocessing=preprocessing, limit=limit)
