"""From stored pixels to the values that a network reads."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import CheckpointError, DataError

_MAX_SIDE = 16_384
_MAX_CHANNELS = 64
#: Far from the ends of float32, so that no field becomes infinite or zero there.
LARGEST = 1e30


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the network sees it: ``(pixel * scale - mean) / std``.

    Attributes:
        image_size: (height, width) of the network's input in pixels.
        channels: Channels of the network's input; image files are decoded to 1 (grey) or 3 (RGB).
        mean: Mean of each channel, after scaling.
        std: Standard deviation of each channel, after scaling.
        scale: Factor on stored pixels, 1/255 for 8-bit images.
        resize_shorter_side: Images of another size are resized (bilinear, antialiased) so that their shorter
            side has this many pixels, then cropped at the centre. None refuses them.

    Raises:
        ValueError: If a field is of the wrong type or out of range.
    """

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    resize_shorter_side: int | None = None

    def __post_init__(self) -> None:
        require_tuple("image_size", self.image_size, 2)
        for side in self.image_size:
            require_integer("image_size", side, _MAX_SIDE)
        require_integer("channels", self.channels, _MAX_CHANNELS)
        for name, values in (("mean", self.mean), ("std", self.std)):
            require_tuple(name, values, self.channels)
            for value in values:
                require_number(name, value)
        require_number("scale", self.scale)
        if min(self.scale, *self.std) < 1 / LARGEST:
            raise ValueError("scale and std must be positive")
        if self.resize_shorter_side is not None:
            require_integer("resize_shorter_side", self.resize_shorter_side, _MAX_SIDE)
            if self.resize_shorter_side < max(self.image_size):
                raise ValueError(
                    f"resize_shorter_side {self.resize_shorter_side} is smaller than image_size {self.image_size}"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return (self.channels, *self.image_size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the network reads, with the shape of one image."""
        return np.dtype(np.float32)

    def example(self, count: int) -> NDArray[np.float32]:
        """``count`` inputs that a network can be tried on: zeros, after preprocessing."""
        return np.zeros((count, *self.shape), np.float32)

    @property
    def black(self) -> NDArray[np.float32]:
        """(C,) value that a pixel of 0 becomes; padding for augmentation."""
        return self.apply(np.zeros((1, *self.shape), np.uint8))[0, :, 0, 0]

    def apply(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Scale and normalize in float32, in the order of the formula.

        Args:
            images: (N, C, H, W) stored pixels; float32 pixels are treated as uint8 ones are.

        Returns:
            A new float32 array of the same shape.

        Raises:
            DataError: If the images are not of this shape.
        """
        if images.shape[1:] != self.shape:
            raise DataError(f"images of shape {images.shape[1:]}, the network reads {self.shape}")
        values = images.astype(np.float32)
        values *= np.float32(self.scale)
        values -= np.array(self.mean, np.float32).reshape(-1, 1, 1)
        values /= np.array(self.std, np.float32).reshape(-1, 1, 1)
        return values

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it back exactly."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @staticmethod
    def from_json(data: object, *, where: str) -> Preprocessing:
        """Read from parsed JSON, strictly: every key once, no other key, exact types.

        Args:
            data: The parsed value.
            where: File and key for error messages.

        Raises:
            CheckpointError: If it is not what :meth:`to_json` writes.
        """
        names = [item.name for item in fields(Preprocessing)]
        if not isinstance(data, Mapping):
            raise CheckpointError("must be an object", where=where, hint=f"with keys {', '.join(names)}")
        unknown = sorted(str(key) for key in data if key not in names)
        missing = [name for name in names if name not in data]
        if unknown or missing:
            problem = f"unknown key {reprlib.repr(unknown[0])}" if unknown else f"key {missing[0]!r} is missing"
            raise CheckpointError(problem, where=where, hint=f"the keys are {', '.join(names)}")
        try:
            return Preprocessing(
                image_size=as_tuple(data["image_size"]),
                channels=data["channels"],
                mean=as_tuple(data["mean"]),
                std=as_tuple(data["std"]),
                scale=data["scale"],
                resize_shorter_side=data["resize_shorter_side"],
            )
        except ValueError as error:
            raise CheckpointError(str(error), where=where) from error


def as_tuple(value: object) -> Any:
    """JSON's lists as tuples; anything else is left for the constructor to refuse."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def require_tuple(name: str, value: object, length: int) -> None:
    """Refuse what is not a tuple of that length."""
    if not isinstance(value, tuple) or len(value) != length:
        raise ValueError(f"{name} must hold {length} numbers, not {reprlib.repr(value)}")


def require_integer(name: str, value: object, maximum: int) -> None:
    """Refuse what is not an integer from 1 to ``maximum``; True is no integer here."""
    if type(value) is not int or not 1 <= value <= maximum:
        raise ValueError(f"{name} must hold integers from 1 to {maximum}, not {reprlib.repr(value)}")


def require_number(name: str, value: object) -> None:
    """Refuse what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(f"{name} must hold finite numbers, not {reprlib.repr(value)}")
