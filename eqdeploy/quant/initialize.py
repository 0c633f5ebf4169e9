"""Scales and zero-points that minimize the quantization error of given values, for all channels at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqdeploy.quant.affine import dequantize, quantize
from eqdeploy.quant.form import Form, Symmetry

#: Coarse steps of a search over scales, from a bit more than the whole range of the values downwards.
_COARSE_STEPS = 20
_LARGEST_RATIO = 1.15
#: Smallest part of the range that a grid may cover: few bits may ignore rare large values, many need not.
_SMALLEST_RATIO_FEW_BITS = 0.01
_SMALLEST_RATIO_MANY_BITS = 0.15
_FEW_BITS = 5
#: Parts of a coarse step by which the best scale is then moved, either way.
_REFINE_STEPS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
_LEAST_SQUARES_ROUNDS = 3
#: Values that one operation quantizes: enough for several threads, few enough for a core's cache.
_VALUES_AT_A_TIME = 1 << 17
#: Its multiples, modulo 1, are spread evenly and never repeat.
_GOLDEN_RATIO = 0.6180339887498949
#: Enough values to place a scale within a fraction of a percent; more only costs time.
MAXIMUM_VALUES = 1 << 14


def subsample(values: Tensor, limit: int = MAXIMUM_VALUES) -> Tensor:
    """Keep at most about ``limit`` values per row, evenly spread, and always each row's extremes.

    Where one is taken within its part of the row differs from part to part: with equal steps, rows that hold images
    would always show the same pixels, often those of one edge.

    Args:
        values: Shape (rows, N).
        limit: Largest number of values to keep per row.

    Returns:
        Shape (rows, M) with M <= limit + 2.
    """
    count = values.shape[1]
    if count <= limit:
        return values
    part = torch.arange(limit, dtype=torch.float64, device=values.device)
    index = ((part + (part * _GOLDEN_RATIO).frac()) * (count / limit)).long().clip(max=count - 1)
    return torch.cat([values[:, index], values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)], dim=1)


@torch.no_grad()
def minimize_error(values: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Search the scale (and zero-point) with the smallest mean squared error in each row.

    The whole range of clipping is searched, coarsely and then around the best candidate; the result scales
    exactly with powers of two. Rows without any non-zero value get the scale of the largest row, or 1.

    Args:
        values: Finite float32, shape (rows, N), N >= 1.
        form: Form to initialize; its range and symmetry count, its granularity does not.

    Returns:
        scale: float32, shape (rows,), positive.
        zero_point: float32 holding integers inside the form's range, shape (rows,).
    """
    low = values.amin(dim=1).clip(max=0.0)
    high = values.amax(dim=1).clip(min=0.0)
    extent = torch.maximum(high, -low)
    # Bring every row near 1: squares of very small or very large values leave float32.
    exponent = torch.frexp(extent).exponent.clip(-100, 126)
    best = _Best(torch.ldexp(values, -exponent[:, None]), form)
    bounds = torch.ldexp(low, -exponent), torch.ldexp(high, -exponent)
    if form.symmetry is Symmetry.SYMMETRIC:
        _search_symmetric(best, *bounds, form)
    else:
        _search_asymmetric(best, *bounds, form)
    scale, zero_point = torch.ldexp(best.scale, exponent).clip(max=torch.finfo(torch.float32).max), best.zero_point
    largest = int(extent.argmax())
    fallback = scale[largest] if extent[largest] > 0 else torch.ones_like(scale[largest])
    usable = (extent > 0) & (scale >= torch.finfo(torch.float32).tiny)
    return (
        torch.where(usable, scale, fallback.clip(min=torch.finfo(torch.float32).tiny)),
        torch.where(usable, zero_point, float(max(form.q_min, 0))),
    )


@torch.no_grad()
def nearest_powers_of_two(values: Tensor, scale: Tensor, zero_point: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Replace each scale by the power of two below or above it, whichever has the smaller mean squared error.

    Args:
        values: Finite float32, shape (rows, N).
        scale: float32, shape (rows,), positive. Powers of two stay as they are.
        zero_point: float32 holding integers inside the form's range, shape (rows,). Of an asymmetric form it may
            move along, so that the new range lies over the old one.
        form: Its range and symmetry count.

    Returns:
        scale: float32, shape (rows,), exact powers of two.
        zero_point: float32 holding integers inside the form's range, shape (rows,).
    """
    mantissa, exponent = torch.frexp(scale)
    below = exponent - 1
    ratio = 2.0 * mantissa  # of the old scale to the power below; in [1, 2)
    best = _Best(torch.ldexp(values, -below[:, None]), form)
    for factor in (1.0, 2.0):
        candidate = torch.where(ratio == 1.0, 1.0, factor)
        best.offer(candidate, zero_point)
        if form.symmetry is Symmetry.ASYMMETRIC:
            middle = (form.q_min + form.q_max) / 2
            moved = ((zero_point - middle) * (ratio / candidate) + middle).round()
            best.offer(candidate, torch.where(ratio == 1.0, zero_point, moved.clip(form.q_min, form.q_max)))
    # Both factors are exact, and exp2 of an integer is, too.
    return torch.exp2(below.float()) * best.scale, best.zero_point


class _Best:
    """The best scale and zero-point of each row so far."""

    def __init__(self, values: Tensor, form: Form) -> None:
        self.values = values
        self.form = form
        self.scale = torch.ones_like(values[:, 0])
        self.zero_point = torch.zeros_like(self.scale)
        self.error = torch.full_like(self.scale, torch.inf)

    def offer(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take a candidate, shape (rows,) each, where its mean squared error is smaller."""
        self._take(scale[None], zero_point)

    def offer_multiples(self, scale: Tensor, factors: Sequence[float], zero_point: Tensor) -> None:
        """Take the best of a scale's multiples where its mean squared error is smaller.

        Many at a time: small operations would keep one core busy and leave the others waiting.
        """
        count = max(1, _VALUES_AT_A_TIME // self.values.numel())
        for start in range(0, len(factors), count):
            chunk = torch.tensor(factors[start : start + count], dtype=scale.dtype, device=scale.device)
            self._take(scale * chunk[:, None], zero_point)

    def _take(self, scales: Tensor, zero_point: Tensor) -> None:
        """Take the best of some scales, shape (K, rows), all with one zero-point, where it is better."""
        scales = scales.clip(min=torch.finfo(torch.float32).tiny)
        codes = quantize(self.values, scales[:, :, None], zero_point[:, None], self.form.q_min, self.form.q_max)
        difference = dequantize(codes, scales[:, :, None], zero_point[:, None]).sub_(self.values)
        error, index = (_sums(difference.square_()) / self.values.shape[1]).min(dim=0)
        better = error < self.error
        self.scale = torch.where(better, scales.gather(0, index[None])[0], self.scale)
        self.zero_point = torch.where(better, zero_point, self.zero_point)
        self.error = torch.where(better, error, self.error)

    def refine(self, step: float) -> None:
        """Move the scales by parts of a coarse step, given as a factor."""
        for part in _REFINE_STEPS:
            self.offer_multiples(self.scale, (step**part, step**-part), self.zero_point)

    def fit(self) -> None:
        """Give the codes the scale that fits them best in the least-squares sense, a few times."""
        for _ in range(_LEAST_SQUARES_ROUNDS):
            zero_point = self.zero_point[:, None]
            codes = quantize(self.values, self.scale[:, None], zero_point, self.form.q_min, self.form.q_max)
            steps = codes - zero_point
            scale = _sums(steps * self.values) / _sums(steps.square()).clip(min=1.0)
            self.offer(torch.where(scale > 0, scale, self.scale), self.zero_point)


def _sums(values: Tensor) -> Tensor:
    """Sums over the last axis, the same for any number of threads and on any processor.

    In which order terms are added depends on both. Partial sums are float64, so that the float32 result does not show
    it.
    """
    return values.sum(dim=-1, dtype=torch.float64).to(values.dtype)


def _coarse_step(form: Form) -> float:
    """Factor between neighbouring scales of a coarse search."""
    smallest = _SMALLEST_RATIO_FEW_BITS if form.bits <= _FEW_BITS else _SMALLEST_RATIO_MANY_BITS
    return float((smallest / _LARGEST_RATIO) ** (1.0 / _COARSE_STEPS))


def _coarse_factors(step: float) -> list[float]:
    """Multiples of the scale that just covers the range, for a coarse search."""
    return [_LARGEST_RATIO * step**index for index in range(_COARSE_STEPS + 1)]


def _search_symmetric(best: _Best, low: Tensor, high: Tensor, form: Form) -> None:
    """Search the scale; the zero-point stays at real zero."""
    zero_point = torch.zeros_like(low)
    # The scale at which the grid just reaches both extremes, each on its own side.
    whole = torch.maximum(high / max(form.q_max, 1), -low / max(-form.q_min, 1))
    # Values on the one side where the grid has no codes all become zero: any scale will do.
    whole = torch.where(whole > 0, whole, torch.maximum(high, -low) / max(form.q_max, -form.q_min, 1))
    best.offer(whole, zero_point)
    step = _coarse_step(form)
    best.offer_multiples(whole, _coarse_factors(step), zero_point)
    best.refine(step)
    best.fit()


def _search_asymmetric(best: _Best, low: Tensor, high: Tensor, form: Form) -> None:
    """Search the scale with real zero where it covers both ends, in the middle, and then one step to either side."""
    levels = max(form.q_max - form.q_min, 1)
    step = _coarse_step(form)
    whole = ((high - low) / levels).clip(min=torch.finfo(torch.float32).tiny)
    covering = (form.q_min - low / whole).round().clip(form.q_min, form.q_max)
    middle = torch.full_like(covering, (form.q_min + form.q_max + 1) // 2)
    best.offer(whole, covering)
    best.offer_multiples(whole, _coarse_factors(step), covering)
    best.offer_multiples(2 * whole, _coarse_factors(step)[::2], middle)
    for shift in (-1, 1):
        zero_point = (best.zero_point + shift).clip(form.q_min, form.q_max)
        best.offer_multiples(best.scale, [step ** (index / 2) for index in range(-3, 4)], zero_point)
    best.refine(step)
    best.fit()
