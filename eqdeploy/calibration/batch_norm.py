"""Re-estimate BatchNorm statistics for the active subnet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from eqdeploy.errors import DataError
from eqdeploy.progress import Advance
from eqdeploy.supernet.inputs import Inputs, batch_size, call, parts
from eqdeploy.supernet.operations import BATCH_NORM_MODULES


@dataclass(frozen=True, eq=False)
class BatchMoments:
    """What one batch brought to a BatchNorm.

    Attributes:
        count: Number of values of each channel.
        mean: float64, shape (C,).
        variance: float64, shape (C,), not corrected for the number of values.
    """

    count: int
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class BatchNormCalibration:
    """What a calibration did.

    Attributes:
        images: Number of images that the statistics average over.
        layers: Number of BatchNorm layers whose statistics were replaced.
        moments: For each of these layers by module path, one entry for each batch, in order; enough to compute any
            batch again and compare.
    """

    images: int
    layers: int
    moments: dict[str, tuple[BatchMoments, ...]] = field(default_factory=dict)


class _Moments:
    """Pools the mean and variance of everything that passes a BatchNorm, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.sum_of_squares = torch.zeros(channels, dtype=torch.float64)
        self.batches: list[BatchMoments] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x, dim=axes, correction=0)
        mean, variance = mean.double().cpu(), variance.double().cpu()
        self.batches.append(BatchMoments(count, mean, variance))
        self.count += count
        self.sum += count * mean
        self.sum_of_squares += count * (variance + mean.square())

    def write(self, module: nn.Module) -> None:
        """Replace the running statistics of a BatchNorm; the variance is unbiased, as torch keeps it.

        One variance for the whole layer is the mean of its channels'.
        """
        mean = self.sum / self.count
        variance = (self.sum_of_squares / self.count - mean.square()).clip(min=0.0)
        for name, value in (("running_mean", mean), ("running_var", variance * (self.count / max(self.count - 1, 1)))):
            buffer = getattr(module, name)
            if buffer is not None:
                buffer.copy_((value if buffer.ndim else value.mean()).to(buffer))


@torch.no_grad()
def calibrate_batch_norm(
    model: nn.Module, batches: Iterable[Inputs], advance: Advance | None = None
) -> BatchNormCalibration:
    """Replace all BatchNorm statistics by those of the given images.

    Every BatchNorm normalizes with the statistics of its batch, as in training, and the statistics of all images
    are pooled exactly (not averaged with momentum). Everything else, dropout included, stays in evaluation mode.
    Weights, modes and momentum of the model are as before when the call returns.

    Args:
        model: A supernet with its subnet active, or any module.
        batches: Preprocessed images, each batch of shape (N, ...). Draw them through the training augmentation:
            weights were tuned against augmented statistics.
        advance: Called with the number of images of each finished batch.

    Raises:
        DataError: If there are no images, too few for a variance, or they are not finite.
    """
    named = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORM_MODULES) and getattr(module, "running_mean", None) is not None
    }
    norms = list(named.values())
    moments = [_Moments(module.num_features) for module in norms]
    handles = [module.register_forward_pre_hook(moment) for module, moment in zip(norms, moments, strict=True)]
    images = 0
    try:
        with _only_training(model, norms):
            for batch in batches:
                if not all(bool(torch.isfinite(part).all()) for part in parts(batch)):
                    raise DataError("a calibration image holds a value that is not finite")
                _forward(model, batch)
                images += batch_size(batch)
                if advance is not None:
                    advance(batch_size(batch))
    finally:
        for handle in handles:
            handle.remove()
    if images == 0:
        raise DataError("the calibration set is empty", hint="give at least a few hundred images")
    for name, moment in zip(named, moments, strict=True):
        if not bool(torch.isfinite(moment.sum_of_squares).all()):
            raise DataError("a calibration image gives BatchNorm values that are not finite", where=name)
    for module, moment in zip(norms, moments, strict=True):
        if moment.count:
            moment.write(module)
    return BatchNormCalibration(
        images=images,
        layers=len(norms),
        moments={name: tuple(moment.batches) for name, moment in zip(named, moments, strict=True)},
    )


def _forward(model: nn.Module, batch: Inputs) -> None:
    """Run one batch; torch refuses a batch with one value per channel."""
    try:
        call(model, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            f"a calibration batch of {batch_size(batch)} image(s) is too small for BatchNorm statistics",
            hint="give at least two images, better a few hundred",
        ) from error


@contextmanager
def _only_training(model: nn.Module, norms: Sequence[nn.Module]) -> Iterator[None]:
    """Put ``norms`` in training mode and all else in evaluation mode; restore modes and statistics counters after."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    saved = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    model.eval()
    for norm in norms:
        norm.training = True
        norm.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in momenta:
            norm.momentum = momentum
        for buffer, before in saved:
            buffer.copy_(before)
