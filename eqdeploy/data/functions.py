"""Data sets of the user's own, given on the command line as ``package.module:function``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.data.arrays import function_arrays, labelled_inputs
from eqdeploy.data.images import empty_images
from eqdeploy.data.inputs import InputPreprocessing
from eqdeploy.data.labelled import LabelledImages, spread_indices
from eqdeploy.data.npz import labelled_arrays
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError, EqDeployError, UsageError
from eqdeploy.user_code import (
    USER_CODE_ERRORS,
    call,
    import_attribute,
    is_function_reference,
    working_directory_importable,
)

_RETURNS = "return a data set of (image, label) pairs, or a dictionary of arrays 'images' and 'labels'"


def is_function(reference: str) -> bool:
    """Whether a reference has the form ``package.module:function``."""
    return is_function_reference(reference)


def load_function(
    reference: str, split: str, *, preprocessing: InputPreprocessing, limit: int | None, run_code: bool
) -> LabelledImages:
    """Import a module, call the function in it with the name of the split and read what it returns.

    That is one of these:

    - a mapping with the arrays of the plain ``.npz`` layout: ``images``, ``labels``, optionally ``classes``;
    - a data set with ``len()`` and indices, such as torchvision's or any other map-style one of torch: pairs of an
      image (Pillow's, or an array or tensor (H, W), (C, H, W) or (H, W, C) in uint8 or floating point) and the number
      of its class; an attribute ``classes``, if there is one, holds the names. It is read once, into memory, so its
      transforms must not be random.

    Where the network reads no images, the arrays are called as :mod:`eqdeploy.data.arrays` says.

    Args:
        reference: ``package.module:function``.
        split: ``train`` or ``test``, what the function is called with.
        preprocessing: Size and channels that the network reads.
        limit: Use this many images evenly spread over the data, None for all.
        run_code: Whether the user named the function on the command line.

    Raises:
        UsageError: If the reference may not be run, does not exist, or fails.
        DataError: If what comes back are no images that fit.
    """
    if not run_code:
        raise UsageError(
            "names code, which is run only when the command line asks for it",
            where=reference,
            hint=f"give --data {reference}",
        )
    where = f"{reference}({split!r})"
    with working_directory_importable():
        function = import_attribute(reference)
        if not callable(function):
            raise UsageError(f"is a {type(function).__name__}, not a function", where=reference, hint=_RETURNS)
        returned = call(function, split, where=reference, what="the function")
        if not isinstance(preprocessing, Preprocessing):
            arrays = function_arrays(returned, preprocessing, where=where)
            return labelled_inputs(arrays, preprocessing=preprocessing, limit=limit, where=where)
        if isinstance(returned, Mapping):
            arrays = {name: _array(returned[name]) for name in ("images", "labels", "classes") if name in returned}
        elif hasattr(returned, "__len__") and hasattr(returned, "__getitem__"):
            arrays = _read_pairs(returned, preprocessing, limit, where=where)
            limit = None
        else:
            raise UsageError(f"the function returned {type(returned).__name__}", where=reference, hint=_RETURNS)
    return labelled_arrays(arrays, preprocessing=preprocessing, limit=limit, where=where)


def _read_pairs(data: Any, preprocessing: Preprocessing, limit: int | None, *, where: str) -> dict[str, NDArray[Any]]:
    """Read a map-style data set into arrays."""
    try:
        total = len(data)
        if total == 0:
            raise DataError("holds no images", where=where)
        picked = spread_indices(total, limit)
        labels = np.empty(len(picked), np.int64)
        images: NDArray[Any] | None = None
        for position, index in enumerate(picked.tolist()):
            image, label = data[index]
            pixels = _planes(_array(image), preprocessing.channels, where=f"{where}[{index}]")
            if images is None:
                images = _room(len(picked), pixels, preprocessing, where=where)
            if pixels.shape != images.shape[1:] or pixels.dtype != images.dtype:
                first = f"{images.shape[1:]} in {images.dtype}"
                raise DataError(
                    f"image of shape {pixels.shape} in {pixels.dtype}, the first is {first}",
                    where=f"{where}[{index}]",
                    hint="resize all images to one size in the function",
                )
            images[position], labels[position] = pixels, int(label)
    except EqDeployError:
        raise
    except USER_CODE_ERRORS as error:
        raise UsageError(f"reading the data set raised {type(error).__name__}: {error}", where=where) from error
    assert images is not None
    arrays = {"images": images, "labels": labels}
    names = getattr(data, "classes", None)
    if isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names):
        arrays["classes"] = np.array(names)
    return arrays


def _room(count: int, first: NDArray[Any], preprocessing: Preprocessing, *, where: str) -> NDArray[Any]:
    """An array for images like the first one, if it can be held in memory."""
    empty_images(count, preprocessing, dtype=first.dtype, where=where)
    return np.empty((count, *first.shape), first.dtype)


def _planes(image: NDArray[Any], channels: int, *, where: str) -> NDArray[Any]:
    """One image as (C, H, W)."""
    if image.ndim == 2:
        image = image[None]
    if image.ndim == 3 and image.shape[0] != channels and image.shape[2] == channels:
        image = image.transpose(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != channels:
        raise DataError(f"image of shape {image.shape}, the network reads {channels} channels", where=where)
    return image


def _array(values: Any) -> NDArray[Any]:
    """An array of what the user's code gave; tensors and Pillow's images know how to become one."""
    array: NDArray[Any] = np.asarray(values)
    return array
