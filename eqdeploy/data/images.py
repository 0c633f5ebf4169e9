"""Decoding and resizing images with Pillow, which is imported on first use: it is an optional part."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError, MissingDependencyError

#: Largest image that is decoded: more is taken for a decompression bomb.
MAX_PIXELS = 1 << 26

#: Largest data set that is held in memory.
MAX_BYTES = 8 << 30

#: Formats that are tried, whatever a file's name says.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")

#: What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, OverflowError, struct.error, zlib.error)


def empty_images(count: int, preprocessing: Preprocessing, *, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """An (N, C, H, W) array to fill.

    Raises:
        DataError: If it would be larger than :data:`MAX_BYTES`.
    """
    shape = (count, *preprocessing.shape)
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        raise DataError(
            f"{count} images of {preprocessing.shape} take {size:,} bytes, at most {MAX_BYTES:,} are held",
            where=where,
            hint="use fewer images",
        )
    return np.empty(shape, dtype)


def decode(source: Path | bytes, preprocessing: Preprocessing, *, where: str) -> NDArray[np.uint8]:
    """Decode one image file and bring it to the network's size.

    Args:
        source: The file, or its content.
        preprocessing: Channels (1 or 3) and size of the network's input, and whether to resize.
        where: Name of the image for error messages.

    Returns:
        (C, H, W) pixels.

    Raises:
        DataError: If it is no intact image of 8 bits per channel, is oversized, or of another size and
            ``preprocessing`` does not ask for resizing.
        MissingDependencyError: If Pillow is not installed.
    """
    pil = _import_pillow()
    mode = {1: "L", 3: "RGB"}.get(preprocessing.channels)
    if mode is None:
        raise DataError(f"image files have 1 or 3 channels, the network reads {preprocessing.channels}", where=where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oversized images are refused below, oddities of metadata do not matter
            image = pil.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
            with image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"image of {image.width}x{image.height} pixels, at most {MAX_PIXELS:,} are decoded", where=where
                    )
                if image.mode.startswith(("I", "F")):
                    raise DataError("more than 8 bits per channel", where=where, hint="convert it to 8 bits")
                pixels = np.asarray(image.convert(mode), dtype=np.uint8)
    except (*_DECODER_ERRORS, pil.DecompressionBombError) as error:
        raise DataError(f"not a readable image: {error}", where=where) from error
    planes = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    resized: NDArray[np.uint8] = resize_planes(planes, preprocessing, where=where)
    return resized


def fit_images(
    images: NDArray[np.uint8] | NDArray[np.float32], preprocessing: Preprocessing, *, where: str
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Bring a whole array of images to the network's size.

    Args:
        images: (N, C, H, W).
        preprocessing: The network's channels and size and how to reach the size.
        where: Name of the data set for error messages.

    Returns:
        The array itself if it fits, else a new one.

    Raises:
        DataError: If the channels differ, or the size differs and ``preprocessing`` does not ask for resizing.
        MissingDependencyError: If Pillow is needed and not installed.
    """
    if images.shape[1] != preprocessing.channels:
        raise DataError(
            f"images have {images.shape[1]} channels, the network reads {preprocessing.channels}", where=where
        )
    if images.shape[2:] == preprocessing.image_size:
        return images
    resized = empty_images(len(images), preprocessing, dtype=images.dtype, where=where)
    for index, image in enumerate(images):
        resized[index] = resize_planes(image, preprocessing, where=where)
    return resized


def resize_planes(image: NDArray[Any], preprocessing: Preprocessing, *, where: str) -> NDArray[Any]:
    """Resize the shorter side, bilinear and antialiased, and crop the centre, as ``preprocessing`` asks.

    Args:
        image: (C, H, W) in uint8 or float32.
        preprocessing: The network's size and how to reach it.
        where: Name of the image for error messages.

    Returns:
        The image itself if it has the network's size, else a new one of the same type.

    Raises:
        DataError: If the size differs and ``preprocessing`` does not ask for resizing.
        MissingDependencyError: If Pillow is needed and not installed.
    """
    size = image.shape[1:]
    if size == preprocessing.image_size:
        return image
    shorter = preprocessing.resize_shorter_side
    if shorter is None:
        raise DataError(
            f"image of {size[0]}x{size[1]} pixels, the network reads "
            f"{preprocessing.image_size[0]}x{preprocessing.image_size[1]}",
            where=where,
            hint="give images of that size or set resize_shorter_side in the preprocessing",
        )
    height, width = (max(shorter, int(shorter * side / min(size))) for side in size)
    if height * width > MAX_PIXELS:
        raise DataError(f"image of {size[0]}x{size[1]} pixels is too elongated to resize", where=where)
    pil = _import_pillow()
    planes = [np.asarray(pil.fromarray(plane).resize((width, height), pil.Resampling.BILINEAR)) for plane in image]
    rows, columns = preprocessing.image_size
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    return np.stack(planes)[:, top : top + rows, left : left + columns]


def _import_pillow() -> ModuleType:
    """Import ``PIL.Image``."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "reading image files needs Pillow", hint="pip install 'eqdeploy[images]'"
        ) from error
    return Image
