"""Data sets whose samples are no images: arrays in ``.npz`` archives, or what a function of the user's returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.data.inputs import InputPreprocessing, NamedPreprocessing, TokenPreprocessing
from eqdeploy.data.labelled import LabelledImages, spread_indices
from eqdeploy.data.npz import numbered_classes, present_arrays, read_arrays, read_labels
from eqdeploy.data.splits import SPLITS
from eqdeploy.errors import DataError, EqDeployError, UsageError
from eqdeploy.user_code import USER_CODE_ERRORS

#: Array of the samples where a network has one input.
INPUTS = "inputs"

LABELS, CLASSES = "labels", "classes"


def input_names(preprocessing: InputPreprocessing) -> tuple[str, ...]:
    """Names of the arrays that hold the samples."""
    if isinstance(preprocessing, NamedPreprocessing):
        return tuple(name for name, _ in preprocessing.inputs)
    return (INPUTS,)


def load_archive(path: Path, *, split: str, preprocessing: InputPreprocessing, limit: int | None) -> LabelledImages:
    """Read samples from a ``.npz`` archive, or from the one of the split in a folder.

    An archive holds ``inputs``, or one array for each named input, and ``labels`` and ``classes`` where there are
    some. An archive of all splits has ``train_`` and ``test_`` (or ``val_``, ``validation_``) before each name;
    ``x_train``, ``y_train``, ``x_test`` and ``y_test`` are understood, too.

    Args:
        path: The archive, or a folder with ``train.npz`` and ``test.npz`` (or ``val.npz``, ``validation.npz``).
        split: ``train`` or ``test``.
        preprocessing: What the network reads.
        limit: Use this many samples evenly spread over the data, None for all.

    Raises:
        DataError: If a file is missing or damaged, or does not fit the network.
    """
    names = input_names(preprocessing)
    others: list[Path] = []
    if path.is_dir():
        archives = {name: path / f"{name}.npz" for names in SPLITS.values() for name in names}
        found = {name: file for name, file in archives.items() if file.is_file()}
        chosen = next((name for name in SPLITS[split] if name in found), None)
        if chosen is None:
            raise DataError(
                f"has no {split}.npz",
                where=str(path),
                hint=f"the network reads arrays: give a .npz archive or a folder with them, holding {_listed(names)}",
            )
        path, others = found[chosen], [file for name, file in found.items() if name != chosen]
    where = str(path)
    if path.suffix != ".npz":
        raise DataError(
            "not a .npz archive", where=where, hint=f"the network reads no images: store {_listed(names)} in one"
        )
    stored, unread = _stored_names(present_arrays(path, where=where), names, split, where=where)
    found_arrays = read_arrays(path, list(stored.values()), where=where)
    arrays = {name: found_arrays[key] for name, key in stored.items() if key in found_arrays}
    if LABELS in arrays and CLASSES not in arrays and arrays[LABELS].dtype.kind in "iu":
        seen = [arrays[LABELS], *read_arrays(path, unread, where=where).values()]
        for other in others:
            seen += read_arrays(other, [LABELS], where=str(other)).values()
        arrays |= numbered_classes(seen)
    return labelled_inputs(arrays, preprocessing=preprocessing, limit=limit, where=where)


def labelled_inputs(
    arrays: Mapping[str, NDArray[Any]], *, preprocessing: InputPreprocessing, limit: int | None, where: str
) -> LabelledImages:
    """Make a data set of arrays.

    Args:
        arrays: ``inputs`` or one array for each named input, each (N, …), and ``labels`` and ``classes`` if known.
        preprocessing: What the network reads.
        limit: Use this many samples evenly spread over the data, None for all.
        where: Where they come from.

    Raises:
        DataError: If an array is missing, or they do not fit together or the network.
    """
    names = input_names(preprocessing)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"holds no array {missing[0]!r}", where=where, hint=f"the network reads {_listed(names)}")
    lengths = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in names}
    total = lengths[names[0]]
    if total == 0 or len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError("the inputs must hold equally many samples, at least one", where=f"{where}: {counts}")
    labels, classes = read_labels(arrays, total, where=where)
    picked = spread_indices(total, limit)
    parts = dict(preprocessing.inputs) if isinstance(preprocessing, NamedPreprocessing) else {INPUTS: preprocessing}
    columns = {
        name: _column(arrays[name], part, where=where if name == INPUTS else f"{where}: {name}")[picked]
        for name, part in parts.items()
    }
    if isinstance(preprocessing, NamedPreprocessing):
        dtype = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
        records = np.empty(len(picked), dtype)
        for name, column in columns.items():
            records[name] = column
        return LabelledImages(records, labels[picked], classes, where)
    return LabelledImages(np.ascontiguousarray(columns[INPUTS]), labels[picked], classes, where)


def function_arrays(returned: Any, preprocessing: InputPreprocessing, *, where: str) -> dict[str, NDArray[Any]]:
    """Arrays of what a function of the user's returns.

    Args:
        returned: A mapping of arrays as in an archive, or a data set with ``len()`` and indices: pairs of a sample (an
            array, or a mapping of arrays for several inputs) and its label.
        preprocessing: What the network reads.
        where: The call, for messages.

    Raises:
        UsageError: If it is neither, or reading it fails.
        DataError: If samples differ in shape or type.
    """
    names = input_names(preprocessing)
    if isinstance(returned, Mapping):
        return {name: np.asarray(returned[name]) for name in (*names, LABELS, CLASSES) if name in returned}
    if not (hasattr(returned, "__len__") and hasattr(returned, "__getitem__")):
        raise UsageError(
            f"the function returned {type(returned).__name__}",
            where=where,
            hint=f"return a dictionary of arrays {_listed(names)} and 'labels', or a data set of (input, label) pairs",
        )
    try:
        pairs = [returned[index] for index in range(len(returned))]
        samples = [sample if isinstance(sample, Mapping) else {names[0]: sample} for sample, _ in pairs]
        arrays = {name: _stacked([np.asarray(sample[name]) for sample in samples], where=where) for name in names}
        arrays[LABELS] = _stacked([np.asarray(label) for _, label in pairs], where=where)
    except EqDeployError:
        raise
    except USER_CODE_ERRORS as error:
        raise UsageError(f"reading the data set raised {type(error).__name__}: {error}", where=where) from error
    class_names = getattr(returned, CLASSES, None)
    if isinstance(class_names, Sequence) and class_names and all(isinstance(name, str) for name in class_names):
        arrays[CLASSES] = np.array(class_names)
    return arrays


def _stored_names(
    present: set[str], names: Sequence[str], split: str, *, where: str
) -> tuple[dict[str, str], list[str]]:
    """Names in the archive of the arrays that the split needs, and of the other splits' labels."""
    if names[0] in present:
        return {name: name for name in (*names, LABELS, CLASSES)}, []
    found: dict[str, dict[str, str]] = {}
    for prefix in (prefix for prefixes in SPLITS.values() for prefix in prefixes):
        if f"{prefix}_{names[0]}" in present:
            found[prefix] = {name: f"{prefix}_{name}" for name in (*names, LABELS)}
        elif len(names) == 1 and f"x_{prefix}" in present:
            found[prefix] = {names[0]: f"x_{prefix}", LABELS: f"y_{prefix}"}
    chosen = next((prefix for prefix in SPLITS[split] if prefix in found), None)
    if chosen is None:
        known = ", ".join(sorted(present)[:6]) or "nothing"
        problem = f"holds no array {names[0]!r} of the split {split!r}" if found else f"holds no array {names[0]!r}"
        raise DataError(problem, where=where, hint=f"the network reads {_listed(names)}; the archive holds {known}")
    stored = found.pop(chosen) | {CLASSES: CLASSES}
    return stored, [other[LABELS] for other in found.values()]


def _column(array: NDArray[Any], part: InputPreprocessing, *, where: str) -> NDArray[Any]:
    """One input in the type in which it is kept, checked against what the network reads.

    Everything is preprocessed once, batch by batch, so that wrong shapes, types and ids are found before any work.
    """
    kinds = "iu" if isinstance(part, TokenPreprocessing) else "fiub"
    if array.dtype.kind not in kinds:
        wanted = "integers" if isinstance(part, TokenPreprocessing) else "numbers"
        raise DataError(f"holds {array.dtype}", where=where, hint=f"{wanted} fit")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused
        kept = array if array.dtype == np.uint8 else array.astype(np.int64 if kinds == "iu" else np.float32)
    try:
        for start in range(0, len(kept), _CHECKED_AT_ONCE):
            part.apply(kept[start : start + _CHECKED_AT_ONCE])
    except DataError as error:
        raise DataError(error.message, where=where, hint=error.hint) from error
    return kept


#: Samples that are checked together.
_CHECKED_AT_ONCE = 1024


def _stacked(arrays: Sequence[NDArray[Any]], *, where: str) -> NDArray[Any]:
    """Arrays of all samples one above the other."""
    for index, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"has shape {array.shape}, the first one {arrays[0].shape}",
                where=f"{where}[{index}]",
                hint="bring all samples to one shape in the function",
            )
    if not arrays:
        raise DataError("holds no samples", where=where)
    return np.stack(arrays)


def _listed(names: Sequence[str]) -> str:
    """Names of arrays in quotation marks."""
    return " and ".join(repr(name) for name in names)
