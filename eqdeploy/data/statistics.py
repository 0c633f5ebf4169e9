"""What the images that a network was trained on look like, in a few numbers that fit into its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

#: Channels above this number are pooled into one: what is looked for shows there, too.
_MAXIMUM_CHANNELS = 1024

Numbers = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1, max_length=_MAXIMUM_CHANNELS)
]


class _Part(BaseModel):
    """Strict, immutable part of a checkpoint's metadata."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class ChannelStatistics(_Part):
    """Values of a tensor of shape (N, C, ...) over many images, by channel.

    Attributes:
        mean: Mean value.
        mean_spread: Standard deviation, between images, of an image's mean value.
        power: Mean square.
        power_spread: Standard deviation, between images, of an image's mean square.
    """

    mean: Numbers
    mean_spread: Numbers
    power: Numbers
    power_spread: Numbers


class DataStatistics(_Part):
    """What calibration images are compared with.

    Attributes:
        images: Number of training images that the statistics are of.
        input: Of preprocessed images, without augmentation.
        output: Of the float network's output for them.
    """

    images: Annotated[int, Field(ge=1)]
    input: ChannelStatistics
    output: ChannelStatistics


def channel_statistics(batches: Iterable[NDArray[np.float32]]) -> ChannelStatistics:
    """Measure tensors batch by batch, in float64 and in order.

    Args:
        batches: Arrays of shape (N, C, ...), at least one image in all.
    """
    means, powers = [], []
    for batch in batches:
        values = batch.reshape(len(batch), batch.shape[1] if batch.ndim > 1 else 1, -1).astype(np.float64)
        if values.shape[1] > _MAXIMUM_CHANNELS:
            values = values.reshape(len(values), 1, -1)
        means.append(values.mean(axis=2))
        powers.append(np.square(values).mean(axis=2))
    mean, power = np.concatenate(means), np.concatenate(powers)
    return ChannelStatistics(
        mean=_numbers(mean.mean(axis=0)),
        mean_spread=_numbers(mean.std(axis=0)),
        power=_numbers(power.mean(axis=0)),
        power_spread=_numbers(power.std(axis=0)),
    )


def _numbers(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Rounded to the precision of float32, so that the last bits of a sum stand nowhere."""
    return tuple(float(f"{value:.7g}") for value in values)
