"""Loading a data set by name or path."""

from __future__ import annotations

from pathlib import Path

from eqdeploy.data import cifar
from eqdeploy.data.arrays import load_archive
from eqdeploy.data.digits import load_digits
from eqdeploy.data.folders import read_folder
from eqdeploy.data.functions import is_function, load_function
from eqdeploy.data.inputs import InputPreprocessing
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.npz import read_npz
from eqdeploy.data.options import LoadOptions
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.splits import SPLITS, pick_split, split_word
from eqdeploy.errors import DataError, UsageError

#: Reference of the embedded data set. A folder of that name is given as ``./digits``.
DIGITS = "digits"

_KINDS_HINT = "give 'digits', a .npz archive, a folder of images, or module:function"


def load_data(
    reference: str,
    *,
    split: str,
    preprocessing: InputPreprocessing,
    limit: int | None = None,
    options: LoadOptions | None = None,
) -> LabelledImages:
    """Load labelled images; see :func:`load_images` for arguments and errors.

    Raises:
        DataError: Also if the images have no labels.
    """
    return load_images(
        reference, split=split, preprocessing=preprocessing, limit=limit, options=options
    ).require_labels()


def load_images(
    reference: str,
    *,
    split: str,
    preprocessing: InputPreprocessing,
    limit: int | None = None,
    options: LoadOptions | None = None,
) -> LabelledImages:
    """Load images, labelled or not, in a fixed order.

    Args:
        reference: ``digits`` for the embedded set, else a path: a ``.npz`` archive, a folder with an archive for
            each split, a folder of images, or a folder with CIFAR-10 or CIFAR-100 (``#coarse`` after it asks for
            the latter's coarse labels); or ``module:function``. See ``docs/data.md``.
        split: ``train`` or ``test``. A single archive, and a folder without splits, is every split.
        preprocessing: Channels and size that the network reads, or the shape of inputs that are no images. Pixels
            are returned as stored; ``preprocessing.apply`` makes the network's input of them.
        limit: Load only this many images, evenly spread over the split; None for all.
        options: How to treat damaged images, where to cache decoded ones, who listens; None for the defaults.

    Raises:
        UsageError: If ``split`` or ``limit`` is none of these, or a function cannot be used.
        DataError: If the data are missing, empty, damaged, or do not fit the network; names the file.
        MissingDependencyError: If image files are to be read and Pillow is not installed.
        OutputError: If the cache folder that ``options`` name cannot be written to.
    """
    options = options or LoadOptions()
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}", hint=f"there are {' and '.join(SPLITS)}")
    if not isinstance(preprocessing, Preprocessing):
        return _load_inputs(reference, split, preprocessing, limit, options)
    if reference == DIGITS:
        return load_digits(split, preprocessing=preprocessing, limit=limit)
    if not reference:  # the path of nothing is the working directory
        raise DataError("the name of the data is empty", hint=_KINDS_HINT)
    path, labels = _parse(reference)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", where=reference) from error
    if labels is not None and not is_folder:
        raise DataError("no such folder", where=str(path), hint=f"#{labels} stands after a folder with CIFAR-100")
    if is_file:
        return _load_file(path, split, preprocessing, limit, options)
    if is_folder:
        return _load_folder(path, split, labels, preprocessing, limit, options)
    if is_function(reference):
        return load_function(reference, split, preprocessing=preprocessing, limit=limit, run_code=options.run_code)
    raise DataError("no such file or folder", where=reference, hint=_KINDS_HINT)


def _load_inputs(
    reference: str, split: str, preprocessing: InputPreprocessing, limit: int | None, options: LoadOptions
) -> LabelledImages:
    """Load samples that are no images."""
    if reference and _exists(reference):
        return load_archive(Path(reference), split=split, preprocessing=preprocessing, limit=limit)
    if is_function(reference):
        return load_function(reference, split, preprocessing=preprocessing, limit=limit, run_code=options.run_code)
    raise DataError(
        "no such file or folder",
        where=reference or None,
        hint="the network reads no images: give a .npz archive, a folder with train.npz and test.npz, or "
        "module:function",
    )


def _parse(reference: str) -> tuple[Path, str | None]:
    """Split off the kind of labels, unless there is a file of that whole name."""
    stem, mark, labels = reference.rpartition("#")
    if mark and labels in cifar.LABELS and not _exists(reference):
        return Path(stem), labels
    return Path(reference), None


def _exists(reference: str) -> bool:
    """Whether there is such a path; one that is too long does not exist."""
    try:
        return Path(reference).exists()
    except OSError:
        return False


def _load_file(
    path: Path, split: str, preprocessing: Preprocessing, limit: int | None, options: LoadOptions
) -> LabelledImages:
    """Load a single file."""
    if path.suffix == ".npz":
        return read_npz(path, split=split, preprocessing=preprocessing, limit=limit, options=options)
    hint = "unpack it and give the folder" if path.suffix in {".gz", ".tar", ".tgz", ".zip"} else _KINDS_HINT
    raise DataError("not a data set that can be read", where=str(path), hint=hint)


def _load_folder(
    path: Path,
    split: str,
    labels: str | None,
    preprocessing: Preprocessing,
    limit: int | None,
    options: LoadOptions,
) -> LabelledImages:
    """Load a folder by what it holds."""
    found = cifar.find_layout(path)
    if found is not None:
        layout, folder = found
        return cifar.read_cifar(layout, folder, split=split, preprocessing=preprocessing, limit=limit, labels=labels)
    if labels is not None:
        raise DataError("holds no CIFAR-100", where=str(path), hint=f"leave out #{labels}")
    archives = {archive.stem: archive for archive in sorted(path.glob("*.npz")) if split_word(archive.stem)}
    name = pick_split(archives, split, where=str(path))
    if name is not None:
        others = tuple(archive for other, archive in archives.items() if other != name)
        return read_npz(
            archives[name], split=split, others=others, preprocessing=preprocessing, limit=limit, options=options
        )
    if archives:
        raise DataError(f"has no {split}.npz", where=str(path), hint=f"it has {', '.join(archives)}")
    return read_folder(path, split=split, preprocessing=preprocessing, limit=limit, options=options)
