"""Random changes of training images, on batches of torch tensors, drawn from an explicit generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Which random changes a training image goes through.

    Attributes:
        shift: Largest shift in pixels, up, down, left and right: the same as padding by ``shift`` and cropping
            at random. 1 suits 8x8 digits, 4 suits CIFAR.
        flip: Whether every other image is mirrored left to right. Digits must not be.

    Raises:
        ValueError: If ``shift`` is negative.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift must not be negative, not {self.shift}")

    def apply(self, images: Tensor, generator: torch.Generator, *, fill: Tensor) -> Tensor:
        """Change each image of a batch on its own.

        Args:
            images: (N, C, H, W), of any type.
            generator: Source of randomness, on the CPU.
            fill: (C,) value of the pixels that come in from outside: ``Preprocessing.black`` for normalized
                images, zeros for stored ones.

        Returns:
            A tensor of the same shape, type and device.
        """
        if self.shift:
            images = random_shift(images, self.shift, generator, fill=fill)
        return random_flip(images, generator) if self.flip else images


def random_shift(images: Tensor, pixels: int, generator: torch.Generator, *, fill: Tensor) -> Tensor:
    """Shift each image by -pixels..pixels rows and columns, all shifts equally likely.

    Args:
        images: (N, C, H, W).
        pixels: Largest shift.
        generator: Source of randomness, on the CPU.
        fill: (C,) value of the pixels that come in.
    """
    count, channels, height, width = images.shape
    device = images.device
    padded = fill.to(images).reshape(1, channels, 1, 1).repeat(count, 1, height + 2 * pixels, width + 2 * pixels)
    padded[:, :, pixels : pixels + height, pixels : pixels + width] = images
    offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator).to(device)
    rows = (offsets[0] + torch.arange(height, device=device)).reshape(count, 1, height, 1)
    columns = (offsets[1] + torch.arange(width, device=device)).reshape(count, 1, 1, width)
    image = torch.arange(count, device=device).reshape(count, 1, 1, 1)
    channel = torch.arange(channels, device=device).reshape(1, channels, 1, 1)
    return padded[image, channel, rows, columns]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: (N, C, H, W).
        generator: Source of randomness, on the CPU.
    """
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device).reshape(-1, 1, 1, 1), images.flip(3), images)
