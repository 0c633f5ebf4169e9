"""What is left of a BatchNorm whose gains are in the weights before it: one gain for all channels, at most.

A BatchNorm in training divides each channel by its own standard deviation; on a device with one weight scale that gain
has no place. These modules keep of it what any weight scale and bias take in exactly.

The bias of a device is an integer in units of s_x · s_w, the scales of the layer's input and weight. At few bits that
is coarse (at 2 bits a third of the activations' standard deviation is not unusual), so training has to see it, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eqdeploy.network import BatchNormTraining


class FoldedNorm(nn.Module):
    """Base of the modules: y = gain · (x − mean) + bias along axis 1.

    Running statistics are named, updated and calibrated like those of ``nn.BatchNorm2d``, whose momentum and epsilon
    they take over. Across processes each uses the statistics of its own batch.

    Attributes:
        num_features: Number of channels.
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics; None for their plain average.
        weight: The one gain, shape (), or None.
        bias: Per channel, shape (C,).
        running_mean: Shape (C,), or None.
        running_var: Shape (), or None.
        num_batches_tracked: Number of batches in the running statistics, or None.
        accumulator_scale: s_x · s_w of each channel of the active subnet, shape (C,): what comes before the gain is a
            multiple of it, the mean and the bias included. Zero where the layer is not quantized. It belongs to no
            checkpoint: :meth:`eqdeploy.supernet.supernet.Supernet.activate` sets it.
    """

    bias: nn.Parameter
    accumulator_scale: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.register_parameter("weight", None)
        self.bias = nn.Parameter(torch.zeros(num_features))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, None)
        self.accumulator_scale = torch.zeros(num_features)

    def extra_repr(self) -> str:
        """Fields for ``print``."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"

    @torch.no_grad()
    def _track(self, **statistics: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        tracked = self.num_batches_tracked
        assert isinstance(tracked, Tensor)
        tracked.add_(1)
        weight = 1.0 / float(tracked) if self.momentum is None else self.momentum
        for name, value in statistics.items():
            running = getattr(self, name)
            running.lerp_(value.to(running), weight)


class LearnedBias(FoldedNorm):
    """Adds a learned bias; there are no statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``, (N, C, ...)."""
        return (_wide(x) + _along_channels(_on_grid(self.bias, self.accumulator_scale), x)).to(x.dtype)


class MeanNorm(FoldedNorm):
    """Subtracts the mean of each channel and adds a learned bias."""

    running_mean: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``, (N, C, ...).

        Raises:
            ValueError: In training, if a channel has a single value.
        """
        mean = self.running_mean
        if self.training:
            _require_several_values(x)
            mean = _wide(x).mean(dim=_all_but_channels(x))
            self._track(running_mean=mean)
        shift = _on_grid(self.bias - mean, self.accumulator_scale)
        return (_wide(x) + _along_channels(shift, x)).to(x.dtype)


class LayerNormalization(FoldedNorm):
    """Subtracts the mean of each channel and divides all of them by one standard deviation.

    The variance of the layer is the mean of its channels' variances, so that a channel keeps the size that its
    weights give it relative to the others.
    """

    weight: nn.Parameter
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(()))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``, (N, C, ...).

        Raises:
            ValueError: In training, if a channel has a single value.
        """
        if not self.training:
            gain = self.weight * torch.rsqrt(self.running_var + self.eps)
            shift = _on_grid(self.bias - gain * self.running_mean, self.accumulator_scale * gain.detach())
            return torch.addcmul(_along_channels(shift, x), _wide(x), gain).to(x.dtype)
        _require_several_values(x)
        result, mean, variance = _Normalize.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.accumulator_scale, self.eps
        )
        count = x.numel() // x.shape[1]
        self._track(running_mean=mean, running_var=variance * (count / (count - 1)))
        normalized: Tensor = result
        return normalized


class _Normalize(torch.autograd.Function):
    """Normalization with the statistics of the batch, in as few passes over the tensor as BatchNorm needs.

    With a = g/√(v + ε), v the mean over all n values of (x − m_c)²: y = a·(x − m_c) + b_c, and
    dx = a·(dy − mean_c dy) − a·(x − m_c)·S/(n·(v + ε)), S = Σ dy·(x − m_c); dg = S/√(v + ε), db_c = Σ_c dy. That
    b_c − a·m_c is rounded to the accumulator's grid passes gradients straight through.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, accumulator_scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = _wide(x).mean(dim=_all_but_channels(x))
        # Several times faster than torch.var_mean, and no difference of large numbers either.
        centered = (_wide(x) - _along_channels(mean, x)).to(x.dtype)
        variance = _dot(centered, centered) / x.numel()
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(centered, weight, inverse)
        ctx.mark_non_differentiable(mean, variance)
        gain = weight * inverse
        on_grid = _on_grid(bias - gain * mean, accumulator_scale * gain) + gain * mean
        result = torch.addcmul(_along_channels(on_grid, x), _wide(centered), gain)
        return result.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        centered, weight, inverse = ctx.saved_tensors
        sums = _wide(gradient).sum(dim=_all_but_channels(gradient))
        total = _dot(gradient, centered)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gain = weight * inverse
            shift = -gain * sums * (centered.shape[1] / centered.numel())
            slope = -gain * inverse.square() * total / centered.numel()
            gradient_x = torch.addcmul(_along_channels(shift, centered), _wide(centered), slope)
            gradient_x = gradient_x.addcmul_(_wide(gradient), gain).to(centered.dtype)
        return gradient_x, total * inverse, sums, None, None


#: The module of each way to train folded.
FOLDED_NORMS: dict[BatchNormTraining, type[FoldedNorm]] = {
    BatchNormTraining.FOLDED: LayerNormalization,
    BatchNormTraining.FOLDED_MEAN: MeanNorm,
    BatchNormTraining.FOLDED_BIAS: LearnedBias,
}


def _all_but_channels(x: Tensor) -> list[int]:
    """Axes over which statistics of a channel are taken."""
    return [axis for axis in range(x.ndim) if axis != 1]


def _on_grid(shift: Tensor, grid: Tensor) -> Tensor:
    """Round to multiples of the grid, straight-through; nothing where the grid is zero."""
    exact = grid == 0.0
    steps = shift.detach() / torch.where(exact, 1.0, grid)
    return shift + torch.where(exact, 0.0, steps.round() * grid - shift.detach())


def _along_channels(values: Tensor, x: Tensor) -> Tensor:
    """Shape values per channel so that they line up with ``x``."""
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def _wide(x: Tensor) -> Tensor:
    """Half-precision tensors are normalized in float32, as BatchNorm does."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of all products, in float32, without a tensor of the products where both lie in memory alike."""
    a, b = _wide(a), _wide(b)
    if a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.reshape(-1), b.reshape(-1))
    channels_last = torch.channels_last
    if a.ndim == 4 and all(tensor.is_contiguous(memory_format=channels_last) for tensor in (a, b)):
        return torch.dot(a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1))
    return (a * b).sum()


def _require_several_values(x: Tensor) -> None:
    """Refuse, as BatchNorm does, a batch whose statistics would be the values themselves."""
    if x.numel() // max(x.shape[1], 1) < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
