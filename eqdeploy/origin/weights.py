"""Compare integer weights and biases with the numbers of the supernet's quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from eqdeploy.network import OpKind
from eqdeploy.origin.checks import Fault, OriginCheck
from eqdeploy.origin.layers import LayerTarget, along
from eqdeploy.plan import BatchNormFolding, DevicePlan, WeightPlan
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel, QuantizedParameter

#: Half a unit in the last place of float32, relative.
_ROUNDOFF = 2.0**-24
#: Below this a folded scale counts as zero: its products would leave normal float32 numbers.
_DEAD_SCALE = 2.0**-80
#: A bias of more steps than this has its weight scale raised, so that half of int32 is left to the sum of products.
_WIDEST_BIAS = 2.0**30
#: How much worse a requantized weight may be than one whose scale just covers its range: both are searched on samples.
_WORSE = 1.02


@dataclass(frozen=True, eq=False)
class ParameterComparison:
    """What the comparison of all integer weights and biases gave.

    Attributes:
        weights: The check of the weights.
        biases: The check of the biases.
        bounds: How far each entry may be from the subnet's real number, by parameter, for the comparison of tensors.
    """

    weights: OriginCheck
    biases: OriginCheck
    bounds: dict[str, NDArray[np.float64]]


def compare_parameters(
    model: QuantizedModel, plan: DevicePlan, targets: Mapping[str, LayerTarget]
) -> ParameterComparison:
    """Compare every weight and bias.

    Where the gain goes into the scale, codes must be those of the supernet's quantizer (with a negative gain, their
    opposites) and the scale the float32 nearest to |gain| · s. Where a weight had to be quantized again, every entry
    must lie within half a step of the subnet's folded weight, unless it saturates, and the error may not exceed that of
    a scale that just covers the range. A bias must be the multiple of its grid, or the float32, nearest to the subnet's
    shift.
    """
    weight_faults: list[Fault] = []
    bias_faults: list[Fault] = []
    bounds: dict[str, NDArray[np.float64]] = {}
    saturated = exact = 0
    floats = {item.name: item for item in model.graph.graph.initializer}
    for name, target in targets.items():
        parameter = model.parameters.get(f"{name}.weight")
        source = model.activations.get(target.layer.input_tensor)
        if parameter is None or parameter.codes.shape != target.steps.shape:
            weight_faults.append((name, "has no integer weight of its shape"))
            continue
        merged = next((tensor for tensor in plan.tensors if tensor.merged_copy == target.layer.input_tensor), None)
        source = source if merged is None else model.activations.get(merged.tensor)
        input_scale = None if source is None else float(source.encoding.scale)
        found = _Weight(target, plan.weight[name], parameter, input_scale, power_of_two=plan.power_of_two_scales)
        weight_faults += [(name, text) for text in found.faults()]
        bounds[parameter.name] = found.bound
        saturated += found.saturated
        exact += found.folds_exactly
        bias = model.parameters.get(f"{name}.bias")
        if bias is not None:
            bias_faults += [(name, text) for text in _integer_bias(target, parameter.encoding, bias, input_scale)]
            half = np.broadcast_to(bias.encoding.scale.astype(np.float64), bias.codes.shape) / 2
            bounds[bias.name] = half + _ROUNDOFF * np.abs(target.shift) + target.slack
        else:
            held = floats.get(f"{name}.bias")
            bias_faults += [
                (name, text) for text in _float_bias(target, None if held is None else numpy_helper.to_array(held))
            ]
    return ParameterComparison(
        weights=OriginCheck.of(
            "weights",
            f"{exact} of {len(targets)} layers hold the supernet's own integers; the others are within half a step",
            weight_faults,
            exact_layers=exact,
            saturated_weights=saturated,
        ),
        biases=OriginCheck.of("biases", "every bias is the nearest one to the subnet's shift", bias_faults),
        bounds=bounds,
    )


class _Weight:
    """One layer's integers beside what they should be."""

    def __init__(
        self,
        target: LayerTarget,
        plan: WeightPlan,
        parameter: QuantizedParameter,
        input_scale: float | None,
        *,
        power_of_two: bool,
    ) -> None:
        self._target, self._plan = target, plan
        self._encoding = parameter.encoding
        encoding, rank = self._encoding, parameter.codes.ndim
        axis = target.layer.channel_axis
        self._axis = axis
        self._zero = along(encoding.zero_point.astype(np.float64), axis, rank).astype(np.int64)
        self._scale = along(encoding.scale.astype(np.float64), axis, rank)
        self._codes = parameter.codes.astype(np.int64)
        self._steps = self._codes - self._zero
        # One number per scale of the device; gains of groups that share a scale are one number.
        self._gain = target.gain[: encoding.scale.size] if encoding.scale.ndim else target.gain[:1].reshape(())
        self._wanted_scale = np.broadcast_to(target.scale * np.abs(self._gain), encoding.scale.shape)
        self._free = self._free_scales(input_scale)
        self.folds_exactly = self._folds_exactly(power_of_two=power_of_two)
        self._distance = np.abs(self._scale * self._steps - target.weight)
        at_the_end = (self._codes == encoding.q_min) | (self._codes == encoding.q_max)
        clipped = at_the_end & (self._distance > 0.5 * self._scale * (1 + 2 * _ROUNDOFF))
        self.saturated = int(clipped.sum())
        within = np.minimum(self._distance, 0.5 * self._scale)
        self.bound = np.asarray(
            np.where(clipped, self._distance, within) + 2 * _ROUNDOFF * np.abs(target.weight), np.float64
        )

    def faults(self) -> list[str]:
        """What is wrong, in words."""
        form, encoding = self._plan.device, self._encoding
        if (encoding.bits, encoding.signed) != (form.bits, form.signed):
            return [f"has {encoding.bits} bits, {'' if encoding.signed else 'un'}signed, instead of {form.key}"]
        if (encoding.axis is not None) != (form.granularity is Granularity.PER_CHANNEL):
            return [f"does not have the scales of {form.key}"]
        if encoding.axis not in (None, self._axis):
            return [f"has its scales along axis {encoding.axis} instead of {self._axis}"]
        return self._inexact(form) if not self.folds_exactly else self._exact(form)

    def _exact(self, form: Form) -> list[str]:
        """The supernet's own integers, and its scale times the gain."""
        gain = along(np.broadcast_to(self._gain, self._encoding.scale.shape), self._axis, self._steps.ndim)
        free = along(self._free.astype(np.float64), self._axis, self._steps.ndim).astype(bool)
        wanted = np.where(gain < 0, -self._target.steps, self._target.steps)
        # A symmetric range that is not narrow has no opposite of its lowest code.
        mirrored = (
            (gain < 0) & (form.symmetry is Symmetry.SYMMETRIC) & (wanted == self._encoding.q_max - self._zero + 1)
        )
        wanted = np.where(mirrored, wanted - 1, wanted)
        wanted = np.where(free & (self._dead_by_gain()), 0, wanted)
        differing = int(np.count_nonzero(self._steps != wanted))
        if differing:
            return [f"{differing} of {self._steps.size} integers are not those of the supernet's quantizer"]
        scale = self._encoding.scale.astype(np.float64)
        unit = np.spacing(self._wanted_scale.astype(np.float32)).astype(np.float64)
        wrong = (np.abs(scale - self._wanted_scale) > (0.5 + 2.0**-20) * unit) & ~self._free
        if wrong.any():
            place = int(np.argmax(wrong.reshape(-1)))
            found, right = scale.reshape(-1)[place], self._wanted_scale.reshape(-1)[place]
            return [
                f"{int(wrong.sum())} scales are not |gain| · s: scale {place} is {found:.9g} instead of {right:.9g}"
            ]
        return []

    def _inexact(self, form: Form) -> list[str]:
        """Quantized again: within half a step, and no worse than the plainest scale."""
        tolerance = 0.5 * self._scale * (1 + 4 * _ROUNDOFF) + 4 * _ROUNDOFF * np.abs(self._target.weight)
        at_the_end = (self._codes == self._encoding.q_min) | (self._codes == self._encoding.q_max)
        wrong = (self._distance > tolerance) & ~at_the_end
        if wrong.any():
            return [f"{int(wrong.sum())} of {wrong.size} weights are more than half a step from the subnet's"]
        error, plain = float(np.sum(self._distance**2)), self._plain_error(form)
        if not self._free.any() and error > _WORSE * plain:
            return [f"the error of the weights is {np.sqrt(error / plain):.3g} times that of a scale that covers them"]
        return []

    def _plain_error(self, form: Form) -> float:
        """Squared error of the folded weight on the scale that just covers its range, per scale of the device."""
        weight = self._target.weight
        rows = np.moveaxis(weight, self._axis, 0).reshape(self._encoding.scale.size, -1)
        low, high = np.minimum(rows.min(axis=1), 0.0), np.maximum(rows.max(axis=1), 0.0)
        levels = form.q_max - form.q_min
        if form.symmetry is Symmetry.SYMMETRIC:
            steps_high = (levels - 1) // 2
            scale = np.maximum(high / max(steps_high, 1), -low / (levels - steps_high))
            bottom = np.full_like(scale, steps_high - levels)
        else:
            scale = (high - low) / levels
            bottom = np.rint(np.divide(low, scale, out=np.zeros_like(low), where=scale > 0))
        if self._plan.device.granularity is Granularity.PER_CHANNEL or self._encoding.scale.ndim == 0:
            scale = np.where(scale > 0, scale, 1.0)
        if np.all(np.frexp(self._encoding.scale)[0] == 0.5):
            scale = np.exp2(np.ceil(np.log2(scale)))
        steps = np.clip(np.rint(rows / scale[:, None]), bottom[:, None], bottom[:, None] + levels)
        return float(np.sum((steps * scale[:, None] - rows) ** 2))

    def _folds_exactly(self, *, power_of_two: bool) -> bool:
        """Whether scale and integers must be the supernet's own."""
        gain, layer = self._target.gain, self._target.layer
        if self._plan.folding is BatchNormFolding.REQUANTIZE:
            return False
        one = bool(np.all(gain == gain[0]))
        if self._plan.folding is not None and layer.op is OpKind.CONV_TRANSPOSE and layer.groups > 1 and not one:
            return False
        if self._wanted_scale.shape != self._encoding.scale.shape or (self._encoding.axis is None and not one):
            return False
        powers = bool(np.all(np.frexp(self._wanted_scale.astype(np.float32))[0] == 0.5))
        return not (power_of_two and not powers) and not bool(self._widened.any())

    def _free_scales(self, input_scale: float | None) -> NDArray[np.bool_]:
        """Scales that say nothing: of channels whose integers are all zero, or that a bias made wider."""
        shape = self._encoding.scale.shape
        rows = np.moveaxis(self._target.steps, self._axis, 0).reshape(max(self._encoding.scale.size, 1), -1)
        constant = (rows == 0).all(axis=1).reshape(shape) | (self._wanted_scale < _DEAD_SCALE)
        shift = np.abs(self._target.shift)
        size = max(self._encoding.scale.size, 1)
        largest = shift.reshape(-1, size).max(axis=0) if shift.size % size == 0 else np.full(size, shift.max())
        needed = largest.reshape(shape) / ((input_scale or np.inf) * _WIDEST_BIAS)
        self._widened = (self._wanted_scale < needed) & ~constant
        return np.asarray(constant | self._widened, np.bool_)

    def _dead_by_gain(self) -> NDArray[np.bool_]:
        """Channels whose gain is so small that their integers become zero."""
        dead = along((self._wanted_scale < _DEAD_SCALE).astype(np.float64), self._axis, self._steps.ndim)
        return np.asarray(dead, np.bool_)


def _integer_bias(
    target: LayerTarget, weight: Encoding, bias: QuantizedParameter, input_scale: float | None
) -> list[str]:
    """A bias on the grid s_x · s_w: the nearest integer to shift / scale."""
    if bias.codes.shape != target.shift.shape:
        return [f"the bias has shape {bias.codes.shape} instead of {target.shift.shape}"]
    if input_scale is None:
        return ["the bias is an integer, but the layer's input carries no encoding"]
    product = (np.float64(input_scale) * weight.scale.astype(np.float64)).astype(np.float32)
    copies = bias.codes.size // max(product.size, 1)
    wanted = np.tile(product, copies) if product.ndim else product
    if not np.array_equal(bias.encoding.scale, wanted) or bool(bias.encoding.zero_point.any()):
        return ["the bias does not have the grid s_x · s_w"]
    scale = wanted.astype(np.float64)
    distance = np.abs(bias.codes * scale - target.shift)
    # Half-way between two integers the rule decides, half to even; after arithmetic it is open what is half-way.
    tied = (target.slack == 0) & (bias.codes != np.rint(target.shift / scale))
    wrong = (distance > 0.5 * scale * (1 + _ROUNDOFF) + target.slack) | (tied & (distance <= 0.5 * scale))
    if wrong.any():
        worst = int(np.argmax(distance / scale))
        steps = float((distance / scale).reshape(-1)[worst])
        return [
            f"{int(wrong.sum())} of {wrong.size} biases are not the nearest; channel {worst} is {steps:.3g} steps off"
        ]
    return []


def _float_bias(target: LayerTarget, bias: NDArray[np.float32] | None) -> list[str]:
    """A bias that stays float: the shift rounded to float32."""
    if not target.has_bias:
        return [] if bias is None or not bias.any() else ["has a bias, the subnet has none"]
    if bias is None or bias.shape != target.shift.shape:
        return ["has no bias of its shape"]
    wrong = (
        np.abs(bias.astype(np.float64) - target.shift) > _ROUNDOFF * np.abs(target.shift) * (1 + 1e-6) + target.slack
    )
    return [f"{int(wrong.sum())} of {wrong.size} biases are not the subnet's shift"] if wrong.any() else []
