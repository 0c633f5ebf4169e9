"""A data set in memory: images or other inputs, labels and where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import DataError, UsageError

_Scalar = TypeVar("_Scalar", bound=np.generic)

#: Largest class index that a file may name; the class names are held in a tuple.
MAX_CLASSES = 100_000

#: Label of an image whose class is not known.
UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images, or whatever else a network reads, as they are stored, before preprocessing, with their labels.

    Attributes:
        images: (N, C, H, W) pixel values, uint8 or float32, N at least 1, all finite. Other inputs are (N, …), int64
            where they are ids; several inputs are (N,) records with a field for each.
        labels: (N,) class indices, (N, …) maps of them, or -1 throughout when the images are unlabelled; float32
            (N, …) targets for a loss of the user's.
        classes: Name of each class by index; empty when the images have no classes.
        source: Where they come from, for messages and reports.
        skipped: Images that were left out because they cannot be read, each with the reason.
        digest: SHA-256 over pixels, labels and class names: the same data have the same digest, however stored.
            Computed unless it is given; only a cache gives it, after it has computed it once.

    Raises:
        DataError: If shapes or types are wrong, a pixel is not finite or a label has no class.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    classes: tuple[str, ...]
    source: str
    skipped: tuple[str, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        _check_images(self.images, self.source)
        _check_labels(self.labels, len(self.images), self.classes, self.source)
        if not self.digest:
            object.__setattr__(self, "digest", _digest(self.images, self.labels, self.classes))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def is_labelled(self) -> bool:
        """Whether the class of every image is known."""
        return bool(self.classes)

    @property
    def has_targets(self) -> bool:
        """Whether there is anything that a loss can compare outputs with: classes, or numbers."""
        return self.is_labelled or self.labels.dtype == np.float32

    @property
    def why_no_accuracy(self) -> str | None:
        """Why nobody can count right decisions on these images, None if the class of each is known."""
        if self.is_labelled:
            return None
        return "the labels are numbers, not classes" if self.has_targets else "the images have no labels"

    def require_labels(self) -> LabelledImages:
        """Return the data set itself.

        Raises:
            DataError: If the classes are not known: it is unlabelled, or its labels are targets.
        """
        reason = self.why_no_accuracy
        if reason is None:
            return self
        hint = "sort them into one folder per class, or store an array 'labels' beside 'images'"
        if self.has_targets:
            hint = (
                "this needs a class for each; 'export' and 'validate' judge other outputs by their distance from float"
            )
        raise DataError(reason, where=self.source, hint=hint)

    def spread(self, count: int) -> LabelledImages:
        """``count`` images evenly spread over the data set (all of them if it has no more), in order."""
        if count >= len(self):
            return self
        picked = spread_indices(len(self), count)
        return LabelledImages(self.images[picked], self.labels[picked], self.classes, self.source)


def spread_indices(total: int, count: int | None) -> NDArray[np.int64]:
    """``count`` ascending indices evenly spread over ``range(total)``; all of them for None or ``count > total``.

    Raises:
        UsageError: If ``count`` is not positive.

    >>> spread_indices(10, 4).tolist()
    [0, 2, 5, 7]
    """
    if count is None or count >= total:
        return np.arange(total, dtype=np.int64)
    if count < 1:
        raise UsageError(f"{count} images asked for", hint="ask for at least one")
    return np.arange(count, dtype=np.int64) * total // count


def batches(images: NDArray[_Scalar], size: int) -> Iterator[NDArray[_Scalar]]:
    """Consecutive slices of ``size`` images along the first axis; the last one may be shorter.

    Raises:
        ValueError: If ``size`` is not positive.
    """
    if size < 1:
        raise ValueError(f"batch size must be positive, not {size}")
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _check_images(images: NDArray[Any], source: str) -> None:
    """Refuse arrays that hold no inputs of a network."""
    for name in images.dtype.names or ():
        _check_images(images[name], f"{source}: {name}")
    if images.dtype.names is not None:
        return
    if images.ndim < 2 or images.dtype not in (np.uint8, np.float32, np.int64):
        raise DataError(
            f"images must be (N, C, H, W) in uint8 or float32, not {images.shape} in {images.dtype}", where=source
        )
    if len(images) == 0:
        raise DataError("holds no images", where=source)
    if 0 in images.shape:
        raise DataError(f"images of shape {images.shape[1:]} have no pixels", where=source)
    if images.dtype == np.float32:
        for index, image in enumerate(images):  # one by one: a mask of the whole set would double the memory
            if not np.isfinite(image).all():
                noun = "image" if images.ndim == 4 else "input"
                raise DataError(
                    f"{noun} {index} holds NaN or infinite {'pixels' if noun == 'image' else 'values'}", where=source
                )


def _check_labels(labels: NDArray[Any], images: int, classes: tuple[str, ...], source: str) -> None:
    """Refuse labels that do not belong to the images or to the classes."""
    if labels.dtype not in (np.int64, np.float32) or labels.shape[:1] != (images,) or 0 in labels.shape:
        raise DataError(
            f"labels must be ({images},) in int64, one for each image, not {labels.shape} in {labels.dtype}",
            where=source,
        )
    if labels.dtype == np.float32:
        if classes:
            raise DataError("labels in floating point are targets, which have no classes", where=source)
        if not np.isfinite(labels).all():
            raise DataError("a label is NaN or infinite", where=source)
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if not classes and lowest == highest == UNLABELLED:
        return
    if lowest < 0 or highest >= len(classes):
        outside = (labels < 0) | (labels >= len(classes))
        wrong = int(np.flatnonzero(outside.reshape(images, -1).any(axis=1))[0])
        label = labels[wrong][outside[wrong]].flat[0]
        raise DataError(f"image {wrong} has label {label}, but labels run from 0 to {len(classes) - 1}", where=source)


def _digest(images: NDArray[Any], labels: NDArray[Any], classes: tuple[str, ...]) -> str:
    """SHA-256 over type, shape and content, the same on machines of either byte order."""
    header = {"dtype": str(images.dtype), "shape": images.shape, "classes": classes}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for batch in batches(images, 1024):
        digest.update(np.ascontiguousarray(batch, dtype=batch.dtype.newbyteorder("<")).data)
    digest.update(np.ascontiguousarray(labels, dtype=labels.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
