"""Fold BatchNorm into integer weights (pure numpy, one layer at a time).

With gain g = γ/√(σ² + ε) a folded channel is g · w̄. Where the device has one scale per channel, only the scale
changes and the integers stay as trained; otherwise the folded weights are quantized again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqdeploy.network import LayerInfo, OpKind
from eqdeploy.plan import BatchNormFolding, WeightPlan
from eqdeploy.quant.encoding import Encoding, are_powers_of_two
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quant.initialize import minimize_error, nearest_powers_of_two, subsample
from eqdeploy.quantized_model import FoldedLayer

#: Scales below this are treated as zero: their products with activation scales would leave normal float32.
SMALLEST_SCALE = np.float32(2.0**-80)

#: Values per scale over which the error is minimized.
_MAXIMUM_VALUES = 1 << 16

#: Largest bias in accumulator units: leaves half of int32 to the sum of products.
_LARGEST_BIAS = 2.0**30
#: A constant channel represents its bias in this many steps: about as exact as float32.
_CONSTANT_STEPS = 2.0**22


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """What follows a layer, per output channel: y = gain · layer(x) + shift.

    Attributes:
        gain: float64, shape (C,).
        shift: float64, shape (C,); the layer's own bias is part of it.
    """

    gain: NDArray[np.float64]
    shift: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FoldedWeight:
    """A layer's weight as the device gets it.

    Attributes:
        codes: int32, the shape of the weight.
        encoding: Grid of the codes.
        report: What was done, and its cost.
    """

    codes: NDArray[np.int32]
    encoding: Encoding
    report: FoldedLayer

    @property
    def values(self) -> NDArray[np.float32]:
        """Dequantized weight."""
        return self.encoding.dequantize(self.codes)


def fold(
    weight: NDArray[np.float32],
    trained: Encoding,
    affine: ChannelAffine,
    layer: LayerInfo,
    plan: WeightPlan,
    *,
    power_of_two: bool = False,
) -> FoldedWeight:
    """Quantize a weight in its trained form and fold the gain that follows.

    Args:
        weight: Latent float weight, as torch stores it.
        trained: Numbers of the trained form.
        affine: BatchNorm as gain and shift; gain one where there is none.
        layer: The layer.
        plan: What the device wants.
        power_of_two: Whether scales must be powers of two. Where one is not, the weight is quantized again.

    Returns:
        The weight in the device's form and storage.

    Raises:
        ValueError: If there is a gain to fold but the plan has no method, or one scale for gains that differ.
    """
    if plan.folding is None and not bool(np.all(affine.gain == 1.0)):
        raise ValueError(f"{layer.name}: the plan does not say how BatchNorm is folded")
    codes = trained.quantize(weight)
    target = trained.dequantize(codes).astype(np.float64) * expand(affine.gain, layer)
    if plan.folding is None:
        result = FoldedWeight(codes, trained, _report(layer, "none", exact=True))
    elif plan.folding is BatchNormFolding.INTO_SCALE and (_is_one(affine.gain) or not _gain_needs_groups(layer)):
        result = _fold_into_scale(codes, trained, affine.gain, layer, plan.device)
    else:
        result = _requantize(target, layer, plan.device, power_of_two=power_of_two)
    if power_of_two and not are_powers_of_two(result.encoding.scale).all():
        result = _requantize(target, layer, plan.device, power_of_two=True)
    result = _stored(result, plan.device)
    dead = int(np.count_nonzero(_constant_channels(result, layer.channel_axis)))
    return replace(
        result,
        report=replace(
            result.report,
            relative_error=_relative_error(result.values, target),
            negated_channels=int(np.count_nonzero(affine.gain < 0)),
            dead_channels=dead,
        ),
    )


def fit_bias(
    folded: FoldedWeight,
    layer: LayerInfo,
    shift: NDArray[np.float64],
    input_scale: float,
    *,
    power_of_two: bool = False,
) -> FoldedWeight:
    """Adjust weight scales so that the bias is an int32 on the accumulator's grid s_x · s_w, and an accurate one.

    A channel whose scale is too small for its bias is quantized again on a wider one. Where all weights that share a
    scale are zero, it becomes the one that represents the bias best: the codes say nothing about it.

    Args:
        folded: Weight after folding.
        layer: The layer.
        shift: Bias of each output channel, float64, shape (C,).
        input_scale: Scale of the layer's input.
        power_of_two: Whether scales must be powers of two.

    Returns:
        The same weight when nothing needs to change.
    """
    encoding = folded.encoding
    magnitude = np.abs(shift).reshape(-1)
    if encoding.axis is None:
        magnitude = magnitude.max(initial=0.0).reshape(())
    elif magnitude.size != encoding.scale.size:
        magnitude = magnitude.reshape(layer.groups, -1).max(axis=0)
    needed = magnitude / (input_scale * _LARGEST_BIAS)
    scale = np.maximum(encoding.scale.astype(np.float64), needed)
    zero = folded.codes == _zero(folded)
    constant = zero.all() if encoding.axis is None else _rows(zero, encoding.axis).all(axis=1)
    scale = np.where(constant & (magnitude > 0), magnitude / (input_scale * _CONSTANT_STEPS), scale)
    scale = np.maximum(scale, SMALLEST_SCALE)
    scale = np.asarray(next_power_of_two(scale) if power_of_two else scale, dtype=np.float32)
    if np.array_equal(scale, encoding.scale):
        return folded
    adjusted = replace(encoding, scale=scale)
    before = folded.values
    codes = adjusted.quantize(before)
    after = adjusted.dequantize(codes)
    report = replace(folded.report, widened_channels=int(np.count_nonzero(encoding.scale < needed)))
    if np.any(after != before):
        error = _relative_error(after, before.astype(np.float64))
        report = replace(report, exact=False, relative_error=max(report.relative_error, error))
    return FoldedWeight(codes, adjusted, report)


def next_power_of_two(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """The power of two that is not smaller, for positive values."""
    mantissa, exponent = np.frexp(scale)
    return np.asarray(np.ldexp(1.0, exponent - (mantissa == 0.5)), dtype=np.float64)


def _constant_channels(folded: FoldedWeight, axis: int) -> NDArray[np.bool_]:
    """Channels whose weights are all zero."""
    return np.asarray((_rows(folded.codes - _zero(folded), axis) == 0).all(axis=1))


def _fold_into_scale(
    codes: NDArray[np.int32], trained: Encoding, gain: NDArray[np.float64], layer: LayerInfo, device: Form
) -> FoldedWeight:
    """Multiply each scale by |gain|; mirror the codes of channels with a negative gain.

    There is one scale per channel, or one in all if the device has one and the gain is one number.
    """
    axis = layer.channel_axis if device.granularity is Granularity.PER_CHANNEL else None
    if axis is None and not (_is_one(gain) and trained.axis is None):
        raise ValueError(f"{layer.name}: one scale cannot take in gains that differ between channels")
    # Groups of a transposed convolution share scales: there the gain is one number, too.
    channels = 1 if axis is None else codes.shape[axis]
    gain = gain[:channels]
    scale = np.broadcast_to(trained.scale.astype(np.float64), (channels,)) * np.abs(gain)
    zero_point = np.broadcast_to(trained.zero_point, (channels,)).astype(np.int32)
    dead = scale < SMALLEST_SCALE
    rows = (codes.reshape(1, -1) if axis is None else _rows(codes, axis)).copy()
    rows[dead] = zero_point[dead, None]
    negative = (gain < 0) & ~dead
    mirror = trained.q_min + trained.q_max
    exact = True
    if device.symmetry is Symmetry.ASYMMETRIC or mirror == 0:
        # q -> q_min + q_max - q maps the range onto itself and, with the zero-point, negates exactly.
        rows[negative] = mirror - rows[negative]
        zero_point = np.where(negative, mirror - zero_point, zero_point).astype(np.int32)
    else:
        exact = not bool(np.any(rows[negative] == trained.q_min))
        rows[negative] = np.clip(-rows[negative], trained.q_min, trained.q_max)
    shape = () if axis is None else (channels,)
    encoding = Encoding(
        scale=np.where(dead, 1.0, scale).astype(np.float32).reshape(shape),
        zero_point=zero_point.reshape(shape),
        q_min=trained.q_min,
        q_max=trained.q_max,
        bits=trained.bits,
        signed=trained.signed,
        axis=axis,
    )
    folded = rows.reshape(codes.shape) if axis is None else _unrows(rows, codes.shape, axis)
    return FoldedWeight(folded, encoding, _report(layer, "into_scale", exact=exact))


def _requantize(target: NDArray[np.float64], layer: LayerInfo, device: Form, *, power_of_two: bool) -> FoldedWeight:
    """Quantize folded weights again with the smallest error that the device's form allows."""
    # Searched in the signed range of the same width; storage is settled afterwards.
    form = replace(device, signed=True)
    per_channel = device.granularity is Granularity.PER_CHANNEL
    values = target.astype(np.float32)
    rows = _rows(values, layer.channel_axis) if per_channel else values.reshape(1, -1)
    sample = subsample(torch.from_numpy(np.ascontiguousarray(rows)), _MAXIMUM_VALUES)
    scale, zero_point = minimize_error(sample, form)
    if power_of_two:
        scale, zero_point = nearest_powers_of_two(sample, scale, zero_point, form)
    shape = (-1,) if per_channel else ()
    encoding = Encoding(
        scale=np.maximum(scale.numpy(), SMALLEST_SCALE).reshape(shape),
        zero_point=zero_point.numpy().astype(np.int32).reshape(shape),
        q_min=form.q_min,
        q_max=form.q_max,
        bits=form.bits,
        signed=True,
        axis=layer.channel_axis if per_channel else None,
    )
    return FoldedWeight(encoding.quantize(values), encoding, _report(layer, "requantize", exact=False))


def _stored(folded: FoldedWeight, device: Form) -> FoldedWeight:
    """Move codes and zero-point to the storage that the device wants."""
    if folded.encoding.signed == device.signed:
        return folded
    encoding = folded.encoding.stored_as(signed=device.signed)
    shift = encoding.q_min - folded.encoding.q_min
    return replace(folded, codes=(folded.codes + shift).astype(np.int32), encoding=encoding)


def _is_one(gain: NDArray[np.float64]) -> bool:
    """Whether all channels have the same gain."""
    return bool(np.all(gain == gain[0]))


def _gain_needs_groups(layer: LayerInfo) -> bool:
    """Whether channels of different groups share a scale: their gains cannot go into it."""
    return layer.op is OpKind.CONV_TRANSPOSE and layer.groups > 1


def expand(gain: NDArray[np.float64], layer: LayerInfo) -> NDArray[np.float64]:
    """Shape a gain per output channel so that it multiplies the weight."""
    trailing = (1,) * (len(layer.weight_shape) - 2)
    if layer.op is OpKind.CONV_TRANSPOSE:
        by_group = gain.reshape(layer.groups, 1, -1)
        rows = np.broadcast_to(by_group, (layer.groups, layer.weight_shape[0] // layer.groups, by_group.shape[2]))
        return rows.reshape(layer.weight_shape[0], -1, *trailing)
    return gain.reshape(-1, 1, *trailing)


def _rows(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Bring the channel axis to the front and flatten the rest."""
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(moved.shape[0], -1)


def _unrows(rows: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[Any]:
    """Undo :func:`_rows`."""
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis))


def _zero(folded: FoldedWeight) -> NDArray[np.int32]:
    """Zero-point, shaped to line up with the codes."""
    encoding = folded.encoding
    if encoding.axis is None:
        return encoding.zero_point
    shape = [1] * folded.codes.ndim
    shape[encoding.axis] = -1
    return encoding.zero_point.reshape(shape)


def _relative_error(values: NDArray[np.float32], target: NDArray[np.float64]) -> float:
    """Norm of the difference over the norm of the target."""
    norm = float(np.linalg.norm(target))
    return float(np.linalg.norm(values.astype(np.float64) - target)) / norm if norm > 0 else 0.0


def _report(layer: LayerInfo, method: str, *, exact: bool) -> FoldedLayer:
    """A report whose figures are filled in later."""
    return FoldedLayer(layer=layer.name, method=method, exact=exact, relative_error=0.0)
