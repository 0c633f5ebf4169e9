"""Scales and zero-points that minimize the quantization error of given values, for all channels at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eqdeploy.quant.affine import dequantize, quantize
from eqdeploy.quant.form import Form, Symmetry

_COARSE_STEPS = 24
#: One end of an asymmetric range is searched after both together were: fewer steps do.
_ONE_END_STEPS = 10
_REFINE_STEPS = 8
_SMALLEST_RATIO = 0.04
#: Enough values to place a scale within a fraction of a percent; more only costs time.
MAXIMUM_VALUES = 1 << 14


def subsample(values: Tensor, limit: int = MAXIMUM_VALUES) -> Tensor:
    """Keep at most about ``limit`` values per row, evenly spaced, and always each row's extremes.

    Args:
        values: Shape (rows, N).
        limit: Largest number of values to keep per row.

    Returns:
        Shape (rows, M) with M <= limit + 2.
    """
    count = values.shape[1]
    if count <= limit:
        return values
    step = -(-count // limit)
    return torch.cat([values[:, ::step], values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)], dim=1)


@torch.no_grad()
def minimize_error(values: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Search the scale (and zero-point) with the smallest mean squared error in each row.

    The whole range of clipping is searched, coarsely and then around the best candidate. Rows without any
    non-zero value get the scale of the largest row, or 1.

    Args:
        values: Finite float32, shape (rows, N), N >= 1.
        form: Form to initialize; its range and symmetry count, its granularity does not.

    Returns:
        scale: float32, shape (rows,), positive.
        zero_point: float32 holding integers inside the form's range, shape (rows,).
    """
    low = values.amin(dim=1).clip(max=0.0)
    high = values.amax(dim=1).clip(min=0.0)
    if form.symmetry is Symmetry.SYMMETRIC:
        scale, zero_point = _search_symmetric(values, torch.maximum(high, -low), form)
    else:
        scale, zero_point = _search_asymmetric(values, low, high, form)
    extent = torch.maximum(high, -low)
    largest = int(extent.argmax())
    fallback = scale[largest] if extent[largest] > 0 else torch.ones_like(scale[largest])
    usable = (extent > 0) & torch.isfinite(scale) & (scale >= torch.finfo(torch.float32).tiny)
    return torch.where(usable, scale, fallback), torch.where(usable, zero_point, float(max(form.q_min, 0)))


def _error(values: Tensor, scale: Tensor, zero_point: Tensor, form: Form) -> Tensor:
    """Mean squared error of each row."""
    scale, zero_point = scale[:, None], zero_point[:, None]
    codes = quantize(values, scale, zero_point, form.q_min, form.q_max)
    return (dequantize(codes, scale, zero_point) - values).square().mean(dim=1)


def _search_symmetric(values: Tensor, extent: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Search one clipping ratio; the zero-point stays at real zero."""
    zero_point = torch.zeros_like(extent)
    # Half a step beyond the last code still rounds into range, so ratio 1 need not cover the extreme value.
    unit = (extent / max(form.q_max, -form.q_min, 1)).clip(min=torch.finfo(torch.float32).tiny)

    ratio = _search_ratio(lambda ratio: _error(values, unit * ratio, zero_point, form), extent)
    return unit * ratio, zero_point


def _search_asymmetric(values: Tensor, low: Tensor, high: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Search the clipping of both ends in turn; the zero-point follows from the lower end."""
    levels = max(form.q_max - form.q_min, 1)

    def numbers(low_ratio: Tensor, high_ratio: Tensor) -> tuple[Tensor, Tensor]:
        bottom, top = low * low_ratio, high * high_ratio
        scale = ((top - bottom) / levels).clip(min=torch.finfo(torch.float32).tiny)
        zero_point = (form.q_min - bottom / scale).round().clip(form.q_min, form.q_max)
        return scale, zero_point

    def error_of(low_ratio: Tensor, high_ratio: Tensor) -> Tensor:
        return _error(values, *numbers(low_ratio, high_ratio), form)

    both = _search_ratio(lambda ratio: error_of(ratio, ratio), low)
    low_ratio = _search_ratio(lambda ratio: error_of(ratio, both), low, _ONE_END_STEPS)
    high_ratio = _search_ratio(lambda ratio: error_of(low_ratio, ratio), low, _ONE_END_STEPS)
    candidates = [(both, both), (low_ratio, both), (low_ratio, high_ratio)]
    errors = torch.stack([error_of(*candidate) for candidate in candidates])
    best = errors.argmin(dim=0)
    chosen_low = torch.stack([candidate[0] for candidate in candidates]).gather(0, best[None])[0]
    chosen_high = torch.stack([candidate[1] for candidate in candidates]).gather(0, best[None])[0]
    return numbers(chosen_low, chosen_high)


def _search_ratio(error_at: Callable[[Tensor], Tensor], like: Tensor, coarse_steps: int = _COARSE_STEPS) -> Tensor:
    """Minimize ``error_at(ratio)`` per row over ratios in (0, 1.1], coarsely and then finely."""
    best_ratio = torch.ones_like(like)
    best_error = torch.full_like(like, torch.inf)
    step = (1.1 - _SMALLEST_RATIO) / coarse_steps
    for index in range(coarse_steps + 1):
        best_ratio, best_error = _keep_better(
            error_at, torch.full_like(like, 1.1 - index * step), best_ratio, best_error
        )
    centre = best_ratio
    for index in range(1, _REFINE_STEPS):
        offset = step * (2.0 * index / _REFINE_STEPS - 1.0)
        best_ratio, best_error = _keep_better(error_at, (centre + offset).clip(min=1e-3), best_ratio, best_error)
    return best_ratio


def _keep_better(
    error_at: Callable[[Tensor], Tensor], ratio: Tensor, best_ratio: Tensor, best_error: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace the best ratio of each row where ``ratio`` has a smaller error."""
    error = error_at(ratio)
    better = error < best_error
    return torch.where(better, ratio, best_ratio), torch.where(better, error, best_error)
