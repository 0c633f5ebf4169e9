"""Decoding many image files at once: over threads, around damaged ones, and only once where there is a cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.data.cache import (
    CachedImages,
    CacheKey,
    Skipped,
    cache_folder,
    load_entry,
    locked_place,
    store_entry,
)
from eqdeploy.data.images import UnreadableImageError, decode, empty_images, quiet_decoder, require_decodable
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.options import LoadOptions
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError, OutputError

#: More threads than this wait for Python between two images.
_MAXIMUM_THREADS = 16

#: Images that a thread decodes in one go: enough that handing them over costs nothing.
_CHUNK = 32

#: Skipped images that a message names.
_NAMED = 5


@dataclass(frozen=True)
class EncodedImages:
    """Image files, or their content, before decoding.

    Attributes:
        names: Name of each image, for messages.
        read: The file, or its content, by index.
        labels: (N,) class of each image.
        classes: Names of the classes.
        source: Where they come from.
        limit: How many of the images that are there were asked for, None for all.
        fingerprint: Plain data that change whenever the content of an image may have changed.
    """

    names: Callable[[int], str]
    read: Callable[[int], Path | bytes]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str
    limit: int | None
    fingerprint: Any


def decode_all(encoded: EncodedImages, preprocessing: Preprocessing, options: LoadOptions) -> LabelledImages:
    """Decode images, or take them from the cache.

    Args:
        encoded: At least one image.
        preprocessing: Channels and size to bring them to.
        options: What to do about damaged ones, where to cache, who listens.

    Raises:
        DataError: If an image is damaged and ``options.errors`` is ``"fatal"``, if no image of a class is left, or
            images are of another size and ``preprocessing`` does not resize.
        OutputError: If a cache folder was named and cannot be written to.
        MissingDependencyError: If Pillow is not installed.
    """
    require_decodable(preprocessing, where=encoded.source)
    job = _Job(encoded, preprocessing, options)
    folder = cache_folder(options.cache, len(encoded.labels))
    if folder is None:
        return job.in_memory()
    try:
        return job.cached(folder)
    except OutputError as error:
        if options.cache != "auto":
            raise
        options.progress.note(f"{error}; decoding into memory")
        return job.in_memory()


class _Job:
    """Decoding of one data set."""

    def __init__(self, encoded: EncodedImages, preprocessing: Preprocessing, options: LoadOptions) -> None:
        self.encoded = encoded
        self.preprocessing = preprocessing
        self.options = options

    def in_memory(self) -> LabelledImages:
        """Decode into memory."""
        dtype = np.dtype(np.uint8)
        images: NDArray[np.uint8] = empty_images(
            len(self.encoded.labels), self.preprocessing, dtype=dtype, where=self.encoded.source
        )
        skipped = self.fill(images)
        self._report(skipped)
        kept = np.delete(images, [index for index, _ in skipped], axis=0) if skipped else images
        return self._labelled(kept, skipped)

    def cached(self, folder: Path) -> LabelledImages:
        """Take decoded images from the cache, after putting them there if need be."""
        key = self._key()
        found = self._checked_entry(folder, key)
        if found is None:
            with locked_place(folder, key):
                found = self._checked_entry(folder, key) or self._store(folder, key)
        self._report(found.skipped)
        return self._labelled(found.images, found.skipped, digest=found.digest)

    def _checked_entry(self, folder: Path, key: CacheKey) -> CachedImages | None:
        """An entry whose images are those that were decoded, or None.

        Pixels that were lost, as by a power cut, leave a file of the right size. All of them are read once in every
        start: that costs what reading the file costs, a small part of decoding it.
        """
        found = load_entry(folder, key)
        if found is None:
            return None
        with self.options.progress.stage(f"checking the decoded images of {self.encoded.source}"):
            try:
                digest = self._labelled(found.images, found.skipped).digest
            except (DataError, IndexError):  # other images are said to be skipped than fit the labels
                digest = ""
        if digest == found.digest:
            return found
        self.options.progress.note(f"{self.encoded.source}: decoded images in {folder} are damaged, decoding again")
        return None

    def fill(self, images: NDArray[np.uint8]) -> list[Skipped]:
        """Decode every image into its place; return those that cannot be read."""
        total = len(images)
        threads = self.options.threads or min(_MAXIMUM_THREADS, len(os.sched_getaffinity(0)))
        skipped: list[Skipped] = []
        with (
            quiet_decoder(),
            ThreadPoolExecutor(threads) if threads > 1 and total > _CHUNK else nullcontext() as pool,
            self.options.progress.stage(f"decoding images of {self.encoded.source}", total=total) as advance,
        ):
            run = map if pool is None else pool.map
            window = 8 * threads * _CHUNK  # not everything at once: what waits in the queue takes memory
            for start in range(0, total, window):
                end = min(start + window, total)
                chunks = [range(first, min(first + _CHUNK, end)) for first in range(start, end, _CHUNK)]
                for chunk, unreadable in zip(chunks, run(partial(self._decode_into, images), chunks), strict=True):
                    skipped += unreadable
                    advance(len(chunk))
        self._require_every_class(skipped)
        return skipped

    def _decode_into(self, images: NDArray[np.uint8], rows: range) -> list[Skipped]:
        """Decode some images; return those that are skipped, and why."""
        skipped: list[Skipped] = []
        for index in rows:
            try:
                images[index] = decode(self.encoded.read(index), self.preprocessing, where=self.encoded.names(index))
            except UnreadableImageError as error:
                if self.options.errors == "fatal":
                    hint = f"{error.hint or 'replace or remove it'}, or train with data_errors: skip"
                    raise DataError(error.message, where=error.where, hint=hint) from error
                skipped.append((index, str(UnreadableImageError(error.message, where=error.where))))
        return skipped

    def _require_every_class(self, skipped: Sequence[Skipped]) -> None:
        """Refuse to go on without any image, or without any image of a class that had some."""
        labels = self.encoded.labels
        kept = np.delete(labels, [index for index, _ in skipped])
        lost = np.setdiff1d(labels, kept)
        if not len(lost):
            return
        what = "image" if not len(kept) else f"image of class {self.encoded.classes[lost[0]]!r}"
        raise DataError(
            f"no {what} could be read",
            where=self.encoded.source,
            hint=next(reason for index, reason in skipped if labels[index] == lost[0]),
        )

    def _store(self, folder: Path, key: CacheKey) -> CachedImages:
        """Decode into the cache."""

        def digest_of(images: NDArray[np.uint8], skipped: list[Skipped]) -> str:
            return self._labelled(images, skipped).digest

        return store_entry(folder, key, (len(self.encoded.labels), *self.preprocessing.shape), self.fill, digest_of)

    def _key(self) -> CacheKey:
        """What an entry depends on."""
        from PIL import __version__ as decoder

        form = [self.preprocessing.shape, self.preprocessing.resize_shorter_side, self.options.errors]
        place = [str(Path(self.encoded.source).resolve()), self.encoded.limit, *form]
        labels = [self.encoded.labels.tolist(), self.encoded.classes]
        return CacheKey.of(place, [decoder, self.encoded.fingerprint, labels])

    def _labelled(self, images: NDArray[np.uint8], skipped: Sequence[Skipped], *, digest: str = "") -> LabelledImages:
        """Put labels to the images that were read."""
        labels = np.delete(self.encoded.labels, [index for index, _ in skipped])
        names = tuple(reason for _, reason in skipped)
        return LabelledImages(images, labels, self.encoded.classes, self.encoded.source, names, digest)

    def _report(self, skipped: Sequence[Skipped]) -> None:
        """Say once how many images were skipped, and name the first."""
        if skipped:
            first = "; ".join(reason for _, reason in skipped[:_NAMED])
            more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
            total = len(self.encoded.labels)
            self.options.progress.note(
                f"{self.encoded.source}: skipped {len(skipped)} of {total} images that cannot be read: {first}{more}"
            )
