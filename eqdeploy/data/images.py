"""Decoding and resizing images with Pillow, which is imported on first use: it is an optional part."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")

#: What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    TypeError,
    struct.error,
    zlib.error,
)

#: EXIF tag of the orientation.
_ORIENTATION = 0x0112


class UnreadableImageError(DataError):
    """A single image is damaged or of a kind that is not read; others of its data set may well be usable."""


def empty_images(count: int, preprocessing: Preprocessing, *, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """An (N, C, H, W) array to fill.

    Raises:
        DataError: If it would be larger than :data:`MAX_BYTES`.
    """
    shape = (count, *preprocessing.shape)
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        raise DataError(
            f"{count} images of {preprocessing.shape} take {size:,} bytes, at most {MAX_BYTES:,} are held in memory",
            where=where,
            hint="use fewer images, or a cache folder on a disk with room",
        )
    return np.empty(shape, dtype)


@contextmanager
def quiet_decoder() -> Iterator[None]:
    """Silence Pillow's warnings around any number of calls of :func:`decode`, from any number of threads.

    Oversized images are refused by :func:`decode`, and oddities of metadata do not matter.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def require_decodable(preprocessing: Preprocessing, *, where: str) -> None:
    """Make sure that image files can be decoded at all.

    Raises:
        DataError: If the network reads neither 1 nor 3 channels.
        MissingDependencyError: If Pillow is not installed.
    """
    _import_pillow()
    if preprocessing.channels not in (1, 3):
        raise DataError(f"image files have 1 or 3 channels, the network reads {preprocessing.channels}", where=where)


def decode(source: Path | bytes, preprocessing: Preprocessing, *, where: str) -> NDArray[np.uint8]:
    """Decode one image file, turn it upright and bring it to the network's channels and size.

    Grey, palette and CMYK images are converted, transparency is dropped, as torchvision's ImageFolder does. The
    orientation that EXIF notes is applied.

    Args:
        source: The file, or its content.
        preprocessing: Channels (1 or 3) and size of the network's input, and whether to resize.
        where: Name of the image for error messages.

    Returns:
        (C, H, W) pixels.

    Raises:
        UnreadableImageError: If it is no intact image of 8 bits per channel, or is oversized.
        DataError: If it is of another size and ``preprocessing`` does not ask for resizing.
        MissingDependencyError: If Pillow is not installed.
    """
    pil = _import_pillow()
    try:
        image = pil.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImageError(
                    f"image of {image.width}x{image.height} pixels, at most {MAX_PIXELS:,} are decoded",
                    where=where,
                    hint="scale it down",
                )
            if image.mode.startswith(("I", "F")):
                raise UnreadableImageError(
                    "more than 8 bits per channel", where=where, hint="convert it to 8 bits, or store arrays in a .npz"
                )
            upright = _upright(image.convert("L" if preprocessing.channels == 1 else "RGB"), _orientation(image), pil)
    except (*_DECODER_ERRORS, pil.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"not a readable image: {error}", where=where, hint="replace or remove it"
        ) from error
    if (upright.height, upright.width) != preprocessing.image_size:
        height, width = _resized((upright.height, upright.width), preprocessing, where=where)
        upright = upright.resize((width, height), pil.Resampling.BILINEAR)
    pixels = np.asarray(upright, dtype=np.uint8)
    planes = pixels[None] if preprocessing.channels == 1 else pixels.transpose(2, 0, 1)
    return _centre(planes, preprocessing.image_size)


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
            f"the images have {images.shape[1]} channel(s), the network reads {preprocessing.channels}",
            where=where,
            hint="name the images that the network is made for with --data",
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
    if image.shape[1:] == preprocessing.image_size:
        return image
    height, width = _resized((image.shape[1], image.shape[2]), preprocessing, where=where)
    pil = _import_pillow()
    planes = [np.asarray(pil.fromarray(plane).resize((width, height), pil.Resampling.BILINEAR)) for plane in image]
    return _centre(np.stack(planes), preprocessing.image_size)


def _resized(size: tuple[int, int], preprocessing: Preprocessing, *, where: str) -> tuple[int, int]:
    """(height, width) to resize an image of another size to."""
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
        raise UnreadableImageError(f"image of {size[0]}x{size[1]} pixels is too elongated to resize", where=where)
    return height, width


def _centre(planes: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The centre of (C, H, W) planes."""
    top, left = (round((side - wanted) / 2) for side, wanted in zip(planes.shape[1:], size, strict=True))
    return planes[:, top : top + size[0], left : left + size[1]]


def _orientation(image: Any) -> int:
    """The orientation in EXIF, 1 where there is none or it is damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (*_DECODER_ERRORS, AttributeError):
        return 1


def _upright(image: Any, orientation: int, pil: ModuleType) -> Any:
    """Undo an orientation of EXIF, 2 to 8."""
    turn = pil.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _import_pillow() -> ModuleType:
    """Import ``PIL.Image``."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "reading image files needs Pillow", hint="pip install 'eqdeploy[images]'"
        ) from error
    return Image
