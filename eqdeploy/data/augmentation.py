"""Random changes of training images, on whole batches of torch tensors, drawn from an explicit generator.

Drawing and applying are two steps: several processes draw the same numbers for the whole batch, and each applies
them to the rows that are its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError

#: Boxes that are tried for an image before the largest one in its centre is taken, as in torchvision.
_ATTEMPTS = 10

#: Share of red, green and blue in the luminance (ITU-R BT.601), as in Pillow and torchvision.
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Variation:
    """The random numbers of a batch of N images; None where the change is off.

    Attributes:
        offsets: (2, N, 1) rows and columns to shift by, 0 to twice the largest shift.
        mirrored: (N,) which images are mirrored.
        boxes: (N, attempts, 2) relative area and aspect ratio of a box, each in [0, 1).
        positions: (N, 2) relative position of the box, each in [0, 1).
        brightness: (N,) factors.
        contrast: (N,) factors.
        saturation: (N,) factors.
    """

    offsets: Tensor | None = None
    mirrored: Tensor | None = None
    boxes: Tensor | None = None
    positions: Tensor | None = None
    brightness: Tensor | None = None
    contrast: Tensor | None = None
    saturation: Tensor | None = None

    def rows(self, rows: slice) -> Variation:
        """The numbers of some of the images."""
        drawn = {field.name: getattr(self, field.name) for field in fields(self)}
        return Variation(
            **{
                name: None if values is None else values[:, rows] if name == "offsets" else values[rows]
                for name, values in drawn.items()
            }
        )


@dataclass(frozen=True)
class Augmentation:
    """Which random changes a training image goes through.

    Attributes:
        shift: Largest shift in pixels, up, down, left and right: the same as padding by ``shift`` and cropping
            at random. 1 suits 8x8 digits, 4 suits CIFAR.
        flip: Whether every other image is mirrored left to right. Digits must not be.
        crop_scale: Smallest and largest share of the image that a random box covers, which is then resized to the
            network's input (bilinear); (0.08, 1.0) is usual for ImageNet. None for no such boxes.
        crop_ratio: Smallest and largest width of the box in relation to its height.
        brightness: Pixels are multiplied by a factor from ``1 - brightness`` (not below 0) to ``1 + brightness``.
        contrast: Likewise, the difference of pixels from the image's mean luminance.
        saturation: Likewise, the difference of pixels from their own luminance.

    Raises:
        ValueError: If a number is out of range, or ``shift`` and ``crop_scale`` are given together.
    """

    shift: int = 0
    flip: bool = False
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift must not be negative, not {self.shift}")
        if self.crop_scale is not None:
            low, high = self.crop_scale
            if not 0 < low <= high <= 1:
                raise ValueError(f"crop_scale must ascend between 0 and 1, not {list(self.crop_scale)}")
            if self.shift:
                raise ValueError("crop_scale moves images already: leave shift at 0")
        narrow, wide = self.crop_ratio
        if not 0.01 <= narrow <= wide <= 100:
            raise ValueError(f"crop_ratio must ascend between 0.01 and 100, not {list(self.crop_ratio)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 10:
                raise ValueError(f"{name} must be between 0 and 10, not {getattr(self, name)}")

    @property
    def changes_images(self) -> bool:
        """Whether it does anything at all."""
        return self != Augmentation(crop_ratio=self.crop_ratio)

    def stored(self, preprocessing: Preprocessing) -> Preprocessing:
        """How to load images that this augmentation is applied to.

        Random boxes are cut from all of the resized image's central square; everything else from the part of it
        that the network sees.
        """
        side = preprocessing.resize_shorter_side
        if self.crop_scale is None or side is None:
            return preprocessing
        return replace(preprocessing, image_size=(side, side))

    def draw(self, count: int, generator: torch.Generator) -> Variation:
        """Draw the random numbers of a batch; what is off draws none.

        Args:
            count: Number of images.
            generator: Source of randomness, on the CPU.
        """
        offsets = torch.randint(0, 2 * self.shift + 1, (2, count, 1), generator=generator) if self.shift else None
        mirrored = torch.rand(count, generator=generator) < 0.5 if self.flip else None
        boxes = positions = None
        if self.crop_scale is not None:
            boxes = torch.rand((count, _ATTEMPTS, 2), generator=generator)
            positions = torch.rand((count, 2), generator=generator)
        return Variation(
            offsets=offsets,
            mirrored=mirrored,
            boxes=boxes,
            positions=positions,
            brightness=_factors(self.brightness, count, generator),
            contrast=_factors(self.contrast, count, generator),
            saturation=_factors(self.saturation, count, generator),
        )

    def vary(self, images: Tensor, preprocessing: Preprocessing, variation: Variation) -> Tensor:
        """Change each image of a batch on its own and make the network's input of it.

        Geometry comes first, then colours, of which white is 1 after ``preprocessing.scale``, then mean and
        standard deviation. Without any change it is ``preprocessing.apply``, bit for bit. What comes in from
        outside is black.

        Args:
            images: (N, C, H, W) pixels as stored, uint8 or float32. Larger images than the network reads are
                cropped: to random boxes where there are some, else at the centre.
            preprocessing: What the network reads.
            variation: From :meth:`draw`, for N images.

        Returns:
            (N, C, *image_size) float32, new, on the device of ``images``.

        Raises:
            DataError: If the images have other channels than the network reads, or are smaller.
        """
        height, width = preprocessing.image_size
        if images.shape[1] != preprocessing.channels or images.shape[2] < height or images.shape[3] < width:
            raise DataError(f"images of shape {tuple(images.shape[1:])}, the network reads {preprocessing.shape}")
        if variation.boxes is not None and variation.positions is not None:
            boxes = self._boxes(variation.boxes, variation.positions, (images.shape[2], images.shape[3]))
            images = crop_and_resize(images, boxes, preprocessing.image_size)
        else:
            top, left = round((images.shape[2] - height) / 2), round((images.shape[3] - width) / 2)
            images = images[:, :, top : top + height, left : left + width]
        if variation.offsets is not None:
            images = shift_images(images, variation.offsets, self.shift)
        if variation.mirrored is not None:
            images = torch.where(_column(variation.mirrored, images), images.flip(3), images)
        constants = torch.tensor([preprocessing.mean, preprocessing.std], device=images.device)[:, :, None, None]
        values = images * torch.tensor(preprocessing.scale, dtype=torch.float32)
        values = vary_colours(values, variation)
        values = values.sub_(constants[0]).div_(constants[1])
        # The view gives axes of length 1 their usual strides: convolutions of one channel round differently without.
        return values.view(values.shape)

    def _boxes(self, drawn: Tensor, positions: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, 4) top, left, height and width in whole pixels, as torchvision's RandomResizedCrop chooses them."""
        assert self.crop_scale is not None
        rows, columns = size
        area = rows * columns * (self.crop_scale[0] + drawn[..., 0] * (self.crop_scale[1] - self.crop_scale[0]))
        narrow, wide = (math.log(ratio) for ratio in self.crop_ratio)
        ratio = torch.exp(narrow + drawn[..., 1] * (wide - narrow))
        heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
        fits = (heights >= 1) & (widths >= 1) & (heights <= rows) & (widths <= columns)
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
        found = fits.any(dim=1)
        # The largest box in the centre whose ratio is allowed.
        limited = min(max(columns / rows, self.crop_ratio[0]), self.crop_ratio[1])
        fallback_height = min(rows, round(columns / limited))
        fallback_width = min(columns, round(rows * limited))
        height = torch.where(found, heights.gather(1, first)[:, 0], float(max(1, fallback_height)))
        width = torch.where(found, widths.gather(1, first)[:, 0], float(max(1, fallback_width)))
        places = torch.where(found[:, None], positions, 0.5)
        top = (places[:, 0] * (rows - height + 1)).floor().clamp(max=rows - height)
        left = (places[:, 1] * (columns - width + 1)).floor().clamp(max=columns - width)
        return torch.stack([top, left, height, width], dim=1)


def shift_images(images: Tensor, offsets: Tensor, pixels: int) -> Tensor:
    """Shift each image; what comes in is 0.

    Args:
        images: (N, C, H, W).
        offsets: (2, N, 1) rows and columns, 0 to ``2 * pixels``: the place of the result in the padded image.
        pixels: Largest shift.
    """
    count, _, height, width = images.shape
    windows = functional.pad(images, (pixels,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    chosen = offsets[:, :, 0].to(images.device)
    return windows[torch.arange(count, device=images.device), :, chosen[0], chosen[1]]


def crop_and_resize(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a box from each image and resize it, bilinear, without antialiasing: boxes are rarely larger than ``size``.

    Args:
        images: (N, C, H, W), of any type.
        boxes: (N, 4) top, left, height and width in pixels.
        size: (height, width) of the result.

    Returns:
        (N, C, *size) float32.
    """
    rows, columns = images.shape[2:]
    top, left, height, width = boxes.unbind(dim=1)
    theta = torch.zeros(len(boxes), 2, 3)
    # Coordinates run from -1 to 1 over all of the image, edge to edge.
    theta[:, 0, 0], theta[:, 0, 2] = width / columns, (2 * left + width) / columns - 1
    theta[:, 1, 1], theta[:, 1, 2] = height / rows, (2 * top + height) / rows - 1
    shape = [len(images), images.shape[1], *size]
    grid = functional.affine_grid(theta.to(images.device), shape, align_corners=False)
    return functional.grid_sample(
        images.to(torch.float32), grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def vary_colours(values: Tensor, variation: Variation) -> Tensor:
    """Change brightness, contrast and saturation, in this order, and clip to 0..1 after each.

    Args:
        values: (N, C, H, W) float32 from 0 to 1; is overwritten.
        variation: The factors.
    """
    if variation.brightness is not None:
        values = values.mul_(_column(variation.brightness, values)).clamp_(0, 1)
    if variation.contrast is not None:
        mean = _luminance(values).mean(dim=(1, 2, 3), keepdim=True)
        values = _blend(values, mean, variation.contrast)
    if variation.saturation is not None:
        values = _blend(values, _luminance(values), variation.saturation)
    return values


def _factors(strength: float, count: int, generator: torch.Generator) -> Tensor | None:
    """(N,) factors around 1, or None where there is nothing to change."""
    if not strength:
        return None
    low, high = max(0.0, 1 - strength), 1 + strength
    return low + torch.rand(count, generator=generator) * (high - low)


def _luminance(values: Tensor) -> Tensor:
    """(N, 1, H, W); the plain mean where the channels are not red, green and blue."""
    if values.shape[1] != len(_LUMINANCE):
        return values.mean(dim=1, keepdim=True)
    return (values * torch.tensor(_LUMINANCE, device=values.device).reshape(-1, 1, 1)).sum(dim=1, keepdim=True)


def _blend(values: Tensor, grey: Tensor, factors: Tensor) -> Tensor:
    """``grey + factor * (values - grey)``, clipped to 0..1, in place."""
    return values.sub_(grey).mul_(_column(factors, values)).add_(grey).clamp_(0, 1)


def _column(drawn: Tensor, images: Tensor) -> Tensor:
    """(N,) numbers as (N, 1, 1, 1) on the images' device."""
    return drawn.to(images.device).reshape(-1, 1, 1, 1)
